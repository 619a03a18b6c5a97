"""`helpers.speed_model`: the terms are those one can add up on paper, and a calibration finds its own factors again."""

from dataclasses import replace

import pytest

from helpers import fit, formats, memory, models, units
from helpers import speed_model as model

SMOL, LLAMA = models.get("smollm2-135m"), models.get("llama-3.1-8b")
PIPE = 20 * units.GB
HERE = model.Calibration(PIPE, core_factor=1.0, prompt_factor=1.0, n_threads=2, source="said")
CARD = replace(HERE, gpu_name="Card", gpu_bytes_per_s=1000 * units.GB)


def test_the_terms_are_those_of_paper():
    """SmolLM2 at Q8_0: 134,479,872 weights in matrices, and 61 norms of 576 numbers in 32 bits."""
    norms = 61 * 576
    matrices = SMOL.n_params - norms
    found = model.predict(SMOL, "Q8_0", HERE, n_prompt=100, n_answer=10)
    assert found.read_bytes == matrices * 34 // 32 + 4 * norms
    assert found.bytes_seconds == pytest.approx(found.read_bytes / PIPE)
    work = matrices * model.KERNELS["Q8_0"][0] + norms * model.KERNELS["F32"][0]
    assert found.unpack_seconds == pytest.approx(work * 1e-12)
    assert found.waiting_seconds == pytest.approx(30 * 19 * model.OPERATION_SECONDS)
    assert found.sampling_seconds == pytest.approx(49152 * model.SAMPLING_SECONDS)
    cells, cell_bytes = 105, 3 * (64 + 64) * 2
    look = 9 * (model.ATTENTION["head"] + 128 * model.ATTENTION["number"])
    assert found.cache_seconds == pytest.approx(30 * cells * (cell_bytes / PIPE + look))
    assert sum(found.terms().values()) == pytest.approx(found.seconds)
    assert found.bytes_seconds + found.layer_seconds + found.cache_seconds == pytest.approx(found.seconds)
    assert found.answer.likely == pytest.approx(1 / found.seconds)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b"])
@pytest.mark.parametrize("quantization", ["Q4_K_M", "IQ2_M", "F16"])
def test_bands_hold_the_likeliest_figure(name, quantization):
    found = model.predict(models.get(name), quantization, HERE)
    for band in (found.answer, found.prompt):
        assert 0 < band.low < band.likely < band.high
        assert band.likely in band
    assert found.rules in found.terms()
    assert found.source == "formula"


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-1b"])
def test_bytes_are_those_that_the_roof_counts(name):
    """With experts the chosen ones only."""
    spec = models.get(name)
    expected = fit.active_bytes(memory.estimate(spec, "Q4_K_M"))
    assert model.predict(spec, "Q4_K_M", HERE).read_bytes == pytest.approx(expected, abs=2 * spec.n_layer)


def test_no_answer_is_above_the_roof():
    for name in models.names()[::5]:
        found = model.predict(models.get(name), "Q4_K_M", HERE)
        assert found.answer.likely < PIPE / found.read_bytes


def test_a_calibration_finds_its_factors_again():
    true = replace(HERE, core_factor=1.7, prompt_factor=0.6)
    seen = model.predict(SMOL, "Q4_1", true, 160, 128, 32)
    found = model.calibrated(SMOL, "Q4_1", seen.seconds, 1 / seen.prompt.likely, 128, 32, HERE)
    assert found.core_factor == pytest.approx(1.7, rel=1e-6)
    assert found.prompt_factor == pytest.approx(0.6, rel=1e-6)
    assert found.bandwidth_bytes_per_s == PIPE


def test_an_engine_faster_than_the_probe_raises_the_bandwidth():
    roof = model.predict(SMOL, "Q4_1", HERE).bytes_seconds
    found = model.calibrated(SMOL, "Q4_1", roof / 2, 0.001, 128, 32, HERE)
    assert found.bandwidth_bytes_per_s > 2 * PIPE
    assert any("raised" in note for note in found.notes)
    assert model.predict(SMOL, "Q4_1", found, 160, 128, 32).seconds == pytest.approx(roof / 2, rel=0.02)


def test_a_longer_text_makes_tokens_slower_up_to_the_window():
    def cache(spec, n_prompt):
        return model.predict(spec, "Q4_K_M", HERE, 8192, n_prompt).cache_seconds

    assert cache(LLAMA, 4000) > 3.8 * cache(LLAMA, 1000)
    gemma = models.get("gemma-3-1b")  # five layers of six see 512 tokens
    assert cache(gemma, 4000) < 2.5 * cache(gemma, 1000)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_weights_of_long_rows_are_read_faster_with_a_prompt(kind):
    """At the row which the table holds for: as the table says. Four times as long: what a row costs is shared."""
    usual, share = model.ROWS[kind == "Q4_K"]
    at_table, longer = (HERE.prompt_seconds(kind, row) for row in (usual, 4 * usual))
    assert at_table == pytest.approx(model.KERNELS[kind][1] * 1e-12)
    assert longer == pytest.approx(at_table * (share + (1 - share) / 4))


def test_a_prompt_reads_the_experts_of_all_its_tokens():
    """8 of 128 for one token; two choose by chance, so 7.5 more; hundreds choose all."""
    experts = models.get("qwen3-30b-a3b")
    assert [model._chosen_in_batch(experts, n) for n in (1, 2)] == pytest.approx([1, (8 + 8 * 120 / 128) / 8])
    assert model._chosen_in_batch(experts, 512) == pytest.approx(16)
    assert model._chosen_in_batch(LLAMA, 512) == 1
    slow, n = replace(HERE, bandwidth_bytes_per_s=units.GB), 512
    whole_prompt = n / model.predict(experts, "Q8_0", slow, n_prompt=n).prompt.likely
    without_reading = n / model.predict(experts, "Q8_0", replace(slow, bandwidth_bytes_per_s=1e18), 0, n).prompt.likely
    stored = memory.estimate(experts, "Q8_0").weights_bytes
    assert whole_prompt - without_reading == pytest.approx(stored / units.GB, rel=0.03)


def test_empty_room_costs_no_time():
    small, large, enough = (model.predict(SMOL, "Q4_1", HERE, n_ctx=n_ctx) for n_ctx in (256, 8192, 0))
    assert small == large == enough


def test_narrow_heads_are_slow_where_vectors_are_wide():
    slow = replace(HERE, narrow_is_slow=True)
    assert model.predict(SMOL, "Q4_1", slow).cache_seconds > 2 * model.predict(SMOL, "Q4_1", HERE).cache_seconds
    assert model.predict(LLAMA, "Q4_1", slow).cache_seconds == model.predict(LLAMA, "Q4_1", HERE).cache_seconds


def test_every_type_of_a_quantization_has_a_speed():
    for name in formats.QUANTIZATIONS:
        assert model.predict(LLAMA, name, HERE).answer.likely > 0


def test_a_card_is_said_to_be_unmeasured_and_its_prompt_unknown():
    found = model.predict(LLAMA, "Q4_K_M", CARD, n_gpu_layers=-1)
    assert found.prompt is None
    assert any("never measured here" in note and "Card" in note for note in found.assumptions)
    assert "not foreseen" in str(found)
    alone = model.predict(LLAMA, "Q4_K_M", HERE)
    half = model.predict(LLAMA, "Q4_K_M", CARD, n_gpu_layers=16)
    assert alone.answer.likely < half.answer.likely < found.answer.likely


def test_no_layer_on_a_card_is_as_without_one():
    assert model.predict(LLAMA, "Q8_0", CARD, n_gpu_layers=0).answer == model.predict(LLAMA, "Q8_0", HERE).answer


def test_a_card_without_bandwidth_is_refused():
    with pytest.raises(ValueError, match="n_gpu_layers is 4, but no bandwidth"):
        model.predict(LLAMA, "Q4_K_M", HERE, n_gpu_layers=4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n_prompt": 0}, "n_prompt is 0"),
        ({"n_answer": 1.5}, "n_answer is 1.5"),
        ({"n_ctx": 100}, "do not fit into a context of 100"),
        ({"n_ctx": -1}, "n_ctx is -1"),
    ],
)
def test_impossible_numbers_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        model.predict(LLAMA, "Q4_K_M", HERE, **{"n_prompt": 128, **changed})


def test_bytes_alone_are_not_enough():
    with pytest.raises(ValueError, match="types of the tensors"):
        model.predict(LLAMA, 5_000_000_000, HERE)


def test_an_unknown_type_is_named():
    types = dict.fromkeys((tensor.name for tensor in model.architectures.tensors(SMOL)), "F32")
    types["blk.0.ffn_up.weight"] = "Q8_1"
    with pytest.raises(ValueError, match="type Q8_1"):
        model.predict(SMOL, types, HERE)


@pytest.mark.parametrize("seconds", [(0, 1), (1, -1), (float("nan"), 1)])
def test_a_calibration_needs_a_time(seconds):
    with pytest.raises(ValueError, match="above 0"):
        model.calibrated(SMOL, "Q4_1", *seconds, 128, 32, HERE)


def test_repacking_widens_the_band_of_the_prompt_only():
    plain, packed = (model.predict(LLAMA, "Q4_0", HERE, repack=repack) for repack in (False, True))
    assert packed.prompt.high > plain.prompt.high and packed.answer == plain.answer
    assert any("Repacked" in note for note in packed.assumptions)


def test_text_and_page_say_the_same():
    found = model.predict(SMOL, "Q4_1", HERE)
    assert "answer" in str(found) and "read weights" in str(found)
    assert "wait after operations" in found._repr_html_()
    assert "memory bandwidth" in str(HERE) and "<pre>" in HERE._repr_html_()
    assert "<b>" not in replace(found, name="<b>")._repr_html_()
