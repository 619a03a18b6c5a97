"""`helpers.speed`: what is measured says how, the arrays are walked through whole, the roof is a division, and what is
foreseen comes from a calibration or says that it does not.

No test compares times: other programs share this machine.
"""

import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import download, gguf, hardware, models, runner, speed, units

SHORT = 0.03


@pytest.fixture(autouse=True)
def small_arrays(monkeypatch):
    monkeypatch.setattr(speed, "ARRAY_BYTES", 2 * units.MIB)


def test_every_figure_says_how_it_was_found():
    found = speed.bandwidth(threads=2, seconds=SHORT)
    assert [kind for kind, _ in found.rows()] == ["read", "copy", "triad"]
    for _, value in found.rows():
        assert value > 0
        assert value.source.startswith("measured: best of ")
        assert value.source.endswith("passes over arrays of 2 MiB, threads: 2")
    assert found.threads == 2 and found.array_bytes == 2 * units.MIB
    assert found.best_bytes_per_s == max(value for _, value in found.rows())
    assert found.best_bytes_per_s.source.startswith("measured")


def test_the_text_has_a_line_for_each_figure():
    lines = str(speed.bandwidth(threads=1, seconds=SHORT)).splitlines()
    assert [line.split()[0] for line in lines] == list(speed.KINDS)
    assert all("B/s" in line and "measured" in line for line in lines)


def test_without_a_number_all_allowed_threads_work(monkeypatch):
    machine = hardware.Machine.pretend("three", 8 * units.GIB, cpu_threads=3)
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    assert speed.bandwidth(seconds=SHORT).threads == 3


@pytest.mark.parametrize(("free", "expected"), [(64 * units.GIB, 2), (0, 1), (24 * units.MIB, 1.5)])
def test_arrays_leave_memory_to_others(free, expected):
    arrays = speed._arrays(free)
    assert [array.nbytes for array in arrays] == [expected * units.MIB] * 3


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_slices_cover_the_arrays_once(threads):
    array = np.arange(1000)
    pieces = speed._split((array, array), threads)
    assert len(pieces) == threads
    assert np.concatenate([left for left, _ in pieces]).tolist() == array.tolist()


def test_more_threads_than_numbers_is_no_error():
    assert sum(len(piece) for (piece,) in speed._split((np.arange(3),), 8)) == 3


def test_the_kernels_do_what_their_names_say():
    n = 3 * speed.CHUNK_ELEMENTS + 5
    left, right, target = np.arange(n, dtype=float), np.full(n, 4.0), np.zeros(n)
    assert speed._read((left,)) == left.sum()
    speed._triad((left, right, target))
    assert (target == left + 2).all()
    speed._copy((right, target))
    assert (target == 4).all()


def test_values_stay_finite_however_long_it_runs():
    arrays = speed._arrays(0)
    for _ in range(200):
        for turn in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            speed._triad([arrays[i][:64] for i in turn])
    assert all(np.isfinite(array).all() for array in arrays)


def test_each_kind_has_two_passes_even_without_time():
    found = speed.bandwidth(threads=1, seconds=1e-9)
    assert all("best of 2 passes" in value.source for _, value in found.rows())


def test_the_fastest_pass_counts(monkeypatch):
    clock = iter([0.0, 0.0, 3.0, 3.0, 4.0, 9.0])  # end of time; two passes of 3 and 1 seconds; the time is over
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with speed.ThreadPoolExecutor(1) as pool:
        assert speed._best_pass(pool, 1, [(np.ones(4),)], speed._read, 1.0) == (1.0, 2)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_impossible_threads_are_refused(threads):
    with pytest.raises(ValueError, match="whole number from 1"):
        speed.bandwidth(threads=threads)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_impossible_seconds_are_refused(seconds):
    with pytest.raises(ValueError, match="above 0"):
        speed.bandwidth(seconds=seconds)


def test_the_roof_is_bandwidth_over_bytes():
    assert speed.roofline_tokens_per_second(2 * units.GB, 30 * units.GB) == 15
    found = speed.Bandwidth(
        hardware.Reading(30 * units.GB, "said"), hardware.Reading(20 * units.GB), hardware.Reading(1), 1, 1
    )
    assert speed.roofline_tokens_per_second(2 * units.GB, found) == 15


@pytest.mark.parametrize(("weights", "per_second"), [(0, 1), (-5, 1), (1, 0), (1, -3), (float("nan"), 1)])
def test_a_roof_needs_bytes_and_bandwidth(weights, per_second):
    with pytest.raises(ValueError, match="must be above 0"):
        speed.roofline_tokens_per_second(weights, per_second)


# ---------------------------------------------------------------- tokens per second


def test_a_spread_is_its_runs():
    spread = speed.Spread((90.0, 100.0, 80.0, 70.0))
    assert (spread.median, spread.lowest, spread.highest) == (85.0, 70.0, 100.0)
    assert str(spread) == "85.0 tokens/s (lowest 70.0, highest 100.0, n = 4)"


class Told(runner.Model):
    """A model that says what a test tells it; one word is one token."""

    def __init__(self, n_words=lambda text: 99, n_ctx=512, per_second=50.0):
        self.path, self.settings = Path("told.gguf"), {"n_ctx": n_ctx, "n_threads": 2}
        self.n_words, self.per_second, self.asked = n_words, per_second, []

    def __repr__(self):
        return "<Told>"

    def tokenize(self, text):
        return [(1, "<s>"), *((number, word) for number, word in enumerate(text.split()))]

    def complete(self, text, max_tokens=256, temperature=0.7, **_):
        self.asked.append((text, temperature))
        n = min(max_tokens, self.n_words(text))
        return SimpleNamespace(
            answer_tokens=n,
            prompt_tokens=len(self.tokenize(text)),
            finish_reason="stop" if n < max_tokens else "length",
            tokens_per_second=self.per_second and self.per_second + len(self.asked),
            prompt_tokens_per_second=10 * self.per_second,
            seconds=4.0,
        )

    def cancel(self):
        pass


def test_what_is_measured_is_what_was_asked():
    model = Told()
    found = speed.measure(model, n_prompt=40, n_answer=16, repeats=3)
    assert (found.n_prompt, found.n_answer, found.n_threads, found.source) == (40, 16, 2, "measured")
    assert found.answer.runs == (52.0, 53.0, 54.0), "the first run warms up"
    assert found.prompt.median == 500 and not found.notes
    assert {temperature for _, temperature in model.asked} == {0}
    assert len({text for text, _ in model.asked}) == 1


def test_a_model_that_falls_silent_gets_another_prompt():
    silent = Told(lambda text: 99 if "history" in text else 5)
    assert speed.measure(silent, 40, 16, 2).n_answer == 16
    assert len(silent.asked) == 3 + 2


def test_fewer_tokens_are_said():
    found = speed.measure(Told(lambda text: 7), 40, 16, 2)
    assert found.n_answer == 7
    assert found.notes == ("7 tokens were written instead of 16: ended by the model.",)


def test_too_few_tokens_are_no_measurement():
    with pytest.raises(ValueError, match="ended its answer after 2 tokens"):
        speed.measure(Told(lambda text: 2), 40, 16, 2)


def test_a_run_without_a_second_token_has_a_speed_all_the_same():
    found = speed.measure(Told(per_second=0), 40, 16, 2)
    assert found.answer.runs == (0.25, 0.25) and found.prompt.runs == (10.0, 10.0)
    assert "too fast" in found.notes[-1]


def test_no_run_is_begun_after_the_time():
    assert len(speed.measure(Told(), 8, 8, repeats=50, seconds=1e-9).answer.runs) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"n_prompt": 0}, "n_prompt is 0"),
        ({"n_answer": -1}, "n_answer is -1"),
        ({"repeats": 2.5}, "repeats is 2.5"),
        ({"n_threads": 2}, "give its path"),
        ({"n_prompt": 510}, "do not fit into this model's context of 512"),
    ],
)
def test_impossible_measurements_are_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        speed.measure(Told(), **asked)


@pytest.mark.parametrize("n_threads", [0, -3, 1.5, True, "2"])
def test_impossible_numbers_of_threads_are_refused_before_loading(n_threads):
    with pytest.raises(ValueError, match="threads is .* whole number from 1"):
        speed.measure("no-such-file.gguf", n_threads=n_threads)
    with pytest.raises(ValueError, match="threads is .* whole number from 1"):
        speed.sweep_threads("no-such-file.gguf", threads=(n_threads,))


def test_a_sweep_needs_threads_and_time():
    with pytest.raises(ValueError, match="threads is empty"):
        speed.sweep_threads("no-such-file.gguf", threads=())
    with pytest.raises(ValueError, match="seconds is 0"):
        speed.sweep_threads("no-such-file.gguf", seconds=0)
    with pytest.raises(ValueError, match="seconds is -1"):
        speed.calibrate(seconds=-1)


@pytest.mark.parametrize("allowed", [1, 2, 3, 4, 6, 8, 12, 64])
def test_a_sweep_goes_up_to_the_allowed_threads_and_beyond(allowed):
    threads = speed.default_threads(allowed)
    assert threads == tuple(sorted(set(threads)))
    assert threads[0] == 1 and threads[-3:] == (allowed, 2 * allowed, 4 * allowed)
    assert len(threads) <= 6


# ---------------------------------------------------------------- foreseen


def test_a_measurement_becomes_a_calibration_that_explains_it():
    spec = models.get("smollm2-135m")
    seen = speed.Measured("m", speed.Spread((400.0,)), speed.Spread((90.0,)), 128, 32, 2, 256)
    found = speed.calibration_from(seen, spec, "Q4_1", 25 * units.GB)
    again = speed.predict(spec, "Q4_1", where=found, n_prompt=128, n_answer=32)
    assert again.answer.likely == pytest.approx(90, rel=1e-4)
    assert again.prompt.likely == pytest.approx(400, rel=1e-4)
    assert found.n_threads == 2 and found.source.startswith("measured: m, 128 + 32")
    assert 90 in again.answer and 400 in again.prompt


def test_a_machine_is_taken_from_the_table_with_a_wide_band():
    spec = models.get("llama-3.1-8b")
    laptop = hardware.Machine.pretend("laptop", 16 * units.GIB)
    mac = replace(laptop, cpu_name=hardware.Word("Apple M2 Pro", "said"))
    plain, fast = (speed.predict(spec, where=machine) for machine in (laptop, mac))
    assert plain.answer.high / plain.answer.low > 5
    assert any("Not calibrated" in note and "DDR4-3200 x2, 51.2 GB/s" in note for note in plain.assumptions)
    assert any("Apple M2 Pro, 200.0 GB/s" in note for note in fast.assumptions)
    assert fast.bytes_seconds < plain.bytes_seconds


def test_a_card_by_name_or_by_its_data_sheet():
    spec = models.get("llama-3.1-8b")
    card = hardware.Gpu(
        "NVIDIA GeForce RTX 4090", hardware.Reading(24 * units.GIB), hardware.Reading(24 * units.GIB), "cuda"
    )
    desktop = replace(hardware.Machine.pretend("desktop", 16 * units.GIB), gpus=(card,))
    known = speed.predict(spec, where=desktop, n_gpu_layers=-1)
    said = speed.predict(spec, where=desktop, n_gpu_layers=-1, gpu_bytes_per_s=504 * units.GB)
    assert known.answer.likely > said.answer.likely
    assert any("RTX 4090" in note and "never measured here" in note for note in known.assumptions)
    unknown = replace(desktop, gpus=(replace(card, name="Card of tomorrow"),))
    with pytest.raises(ValueError, match="gpu_bytes_per_s"):
        speed.predict(spec, where=unknown, n_gpu_layers=-1)
    with pytest.raises(ValueError, match="gpu_bytes_per_s is 0"):
        speed.predict(spec, where=unknown, n_gpu_layers=-1, gpu_bytes_per_s=0)


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        ("NVIDIA GeForce RTX 4090", 1008),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 672),
        ("NVIDIA GeForce RTX 4070 Ti", 504),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 576),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", None),
        ("NVIDIA GeForce RTX 2080 SUPER", None),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("Tesla T4", 320),
        ("AMD Radeon RX 7900 XTX", 960),
        ("Apple M2 Pro GPU", 200),
        ("Apple M3 Max", None),
        ("Intel(R) Xeon(R) Processor", None),
        ("", None),
    ],
)
def test_the_table_knows_cards_by_what_drivers_call_them(name, gb_per_s):
    found = speed.known_bandwidth(name)
    assert (found and found[1]) == (gb_per_s and gb_per_s * units.GB)
    assert found is None or found[2]


def test_memory_in_the_table_is_transfers_times_width():
    for name, n_bytes, source in speed._bandwidth_table():
        kind = re.fullmatch(r"L?P?DDR[45]X?-(\d+) (?:x(\d)|(\d+)-bit)", name)
        if source.startswith("arithmetic"):
            width = 8 * int(kind[2]) if kind[2] else int(kind[3]) // 8
            assert n_bytes == pytest.approx(int(kind[1]) * units.MB * width, rel=2e-3), name


PUBLISHED = {  # Llama 3.1 8B at Q4_K_M, tokens/s of the answer: brand-o/normiebench, issues 3 and 40
    "Apple M4": 20.87,
    "Apple M1 Max": 46.2,
}


@pytest.mark.parametrize("chip", PUBLISHED)
def test_what_others_published_lies_in_the_band(chip):
    gpu = hardware.Gpu(f"{chip} GPU", hardware.Reading(12 * units.GIB), hardware.Reading(12 * units.GIB), "metal", True)
    mac = replace(hardware.Machine.pretend(chip, 16 * units.GIB), gpus=(gpu,), unified_memory=True)
    assert PUBLISHED[chip] in speed.predict(models.get("llama-3.1-8b"), where=mac, n_gpu_layers=-1).answer


@pytest.mark.model
@pytest.mark.slow
def test_the_packaged_model_is_measured_swept_and_foreseen():
    with runner.load(download.default_model(), n_ctx=256, progress=False) as model:
        seen = speed.measure(model, n_prompt=50, n_answer=8, repeats=2)
        assert model.alive
    assert (seen.n_prompt, seen.n_answer, len(seen.answer.runs)) == (50, 8, 2)
    assert seen.answer.lowest > 0 and seen.prompt.lowest > 0
    sweep = speed.sweep_threads(threads=(1, 2), n_prompt=8, n_answer=6, repeats=1)
    assert [found.n_threads for found in sweep] == [1, 2]
    found = speed.calibrate(seconds=2)
    header = gguf.read_header(download.default_model())
    again = speed.predict(header.spec, header.tensor_types, where=found, n_prompt=128, n_answer=32)
    assert again.answer.likely == pytest.approx(found.answer.median, rel=0.1)
    assert 0.005 < found.core_factor < 99


@pytest.mark.model
@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended_and_counts_as_far_as_it_came():
    seen = speed.measure(n_prompt=8, n_answer=2000, repeats=1, n_ctx=2048, longest=0.7)
    assert 0 < seen.n_answer < 2000
    assert "ended by the clock" in seen.notes[0]
