"""`helpers.speed`: what is measured says how, the arrays are walked through whole, and the roof is a division.

No test compares times: other programs share this machine.
"""

import time

import numpy as np
import pytest

from helpers import hardware, speed, units

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
