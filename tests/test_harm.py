"""Children killed in every way, and memory that really runs out: the learner's kernel lives, and says what happened.

What a killed child means for one room alone is in test_child.py, test_runner.py and test_engine.py. Here are the
moments that those leave out, the system's own out-of-memory killer (in a control group, see harm.py), and loads that
meet.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import harm
import pytest
from test_quality import N_CTX, RANDOM_TEXT, SHAPE, tiny_weights
from test_quality import write_tiny as write_shaped
from test_runner import write_tiny

from helpers import download, engine, hardware, models, quality, runner, units
from helpers.child import Child, ChildDied
from helpers.quality import QualityError
from helpers.runner import Claim, LoadError, ModelDied, WontFit

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and Linux's signals")
GIB, MIB = units.GIB, units.MIB
SIGNALS = ("SIGKILL", "SIGSEGV", "SIGABRT")
TRY = {"SIGKILL": "smaller n_ctx", "SIGSEGV": "repack=False", "SIGABRT": "last lines"}
LONG = "word " * 1900  # is read for seconds


@pytest.fixture
def group():
    """Room for 1 GiB in all, kernel and children together."""
    if harm.why_no_group():
        pytest.skip(harm.why_no_group())
    with harm.control_group(GIB) as made:
        yield made


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def own_memory():
    """Of this process: its anonymous bytes, open files, threads."""
    return runner.memory_of(os.getpid()).anonymous_bytes, len(os.listdir("/proc/self/fd")), threading.active_count()


# --- signals: the moments that the rooms' own tests leave out ------------------------------------------------------


def kill_when(true, pid_of, name):
    """In a thread: wait until `true(pid)`, then send the signal to that process."""

    def work():
        until = time.monotonic() + 20
        while time.monotonic() < until:
            pid = pid_of()
            if pid and true(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, getattr(signal, name))
                return
            time.sleep(0.002)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def holds(pid, word):
    """Whether the process has mapped a file with this word in its name."""
    try:
        return word in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


@linux
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("name", SIGNALS)
def test_killed_while_loading(name, monkeypatch):
    """Inside llama.cpp: its library is there, its weights are not yet."""
    started = []
    monkeypatch.setattr(runner, "Child", lambda *args, **more: started.append(Child(*args, **more)) or started[-1])
    before = own_memory()
    killer = kill_when(lambda pid: holds(pid, "libllama"), lambda: started and started[0].pid, name)
    with pytest.raises(ModelDied, match=f"ended while loading: killed by {name}.*{TRY[name]}.*notebook is unharmed"):
        runner.load(download.default_model(), n_ctx=8192, progress=False)
    killer.join()
    assert harm.gone(started[0].pid)
    after = own_memory()
    assert after[0] < before[0] + 10 * MIB and after[1] <= before[1]
    with runner.load(download.default_model(), n_ctx=512, progress=False) as model:
        assert model.ask("Hi", max_tokens=2).answer_tokens


@linux
@pytest.mark.slow
@pytest.mark.model
def test_killed_while_the_prompt_is_read_again_and_again():
    """Three deaths of one model: nothing is said, so nothing is kept, and after the third the kernel holds no more."""
    model = runner.load(download.default_model(), progress=False)
    calm = model.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=4).text
    before = own_memory()
    for name in SIGNALS:
        began = time.monotonic()
        killer = kill_when(lambda pid, began=began: time.monotonic() > began + 0.3, lambda: model.pid, name)
        with pytest.raises(ModelDied, match=f"killed by {name}.*{TRY[name]}.*model.reload") as caught:
            model.complete(LONG, max_tokens=4)
        killer.join()
        assert caught.value.partial_text == "" and harm.gone(model.pid)
        assert model.reload().complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=4).text == calm
    after = own_memory()
    model.close()
    assert after[0] < before[0] + 10 * MIB and after[1:] == before[1:]


@linux
@pytest.mark.model
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_the_engine_starts_a_worker_anew_once_and_then_says_why_not(name):
    """One death is made good without a word; a question that kills every worker is an error with the signal's name."""
    spec = models.get("smollm2-135m")
    calm = engine.reserve(spec, n_ctx=512).kv_bytes
    for deaths in (1, 2):
        engine.forget()
        killed = []
        frozen = engine.worker_pid()
        os.kill(frozen, signal.SIGSTOP)  # so that the question is under way when it dies

        def kill(killed=killed, deaths=deaths, frozen=frozen):
            until = time.monotonic() + 20
            while len(killed) < deaths and time.monotonic() < until:
                pid = engine.worker_pid()
                if pid and pid not in killed and (pid != frozen or not killed):
                    time.sleep(0.05 if pid == frozen else 0)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, getattr(signal, name))
                        os.kill(pid, signal.SIGCONT)
                    killed.append(pid)
                time.sleep(0.001)

        killer = threading.Thread(target=kill)
        killer.start()
        if deaths == 1:
            assert engine.reserve(spec, n_ctx=512).kv_bytes == calm
        else:
            with pytest.raises(engine.EngineError, match=f"stopped during its dry run: killed by {name}"):
                engine.reserve(spec, n_ctx=512)
        killer.join()
        assert len(killed) == deaths and all(map(harm.gone, killed))
    assert engine.reserve(spec, n_ctx=512).kv_bytes == calm


@linux
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("name", SIGNALS)
def test_killed_while_quality_is_measured(name, tmp_path, monkeypatch):
    """At the first of 150 chunks: an error with the signal's name, no half file; the same call works again."""
    monkeypatch.setenv("HELPERS_CACHE", str(tmp_path / "cache"))
    files = [write_shaped(tmp_path / f"{n}.gguf", tiny_weights(n, **SHAPE), **SHAPE) for n in (1, 2)]
    children = []
    monkeypatch.setattr(quality, "Child", lambda *args, **more: children.append(Child(*args, **more)) or children[-1])

    def kill(fraction, text):
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[-1].pid, getattr(signal, name))

    settings = {"text": RANDOM_TEXT * 30, "n_ctx": N_CTX, "max_chunks": 150}
    with pytest.raises(QualityError, match=rf"(?s){name}"):
        quality.compare(files, progress=kill, **settings)
    assert all(harm.gone(child.pid) for child in children)
    assert not list((tmp_path / "cache").rglob("*.part"))
    found = quality.compare(files, progress=False, **settings)
    assert len(found) == 1  # beside its reference


def test_a_death_for_want_of_memory_is_told_from_others(monkeypatch):
    """Linux counts such kills; a child that dies meanwhile by SIGKILL is taken for one of them."""
    from helpers import child

    counted = iter([3, 3, 4])  # at its start, at the question, at its death
    monkeypatch.setattr(child, "_kills_for_memory", lambda: next(counted))
    made = Child("code")  # Python's own prompt: waits for what nobody types
    made.send({})
    made.process.kill()
    with pytest.raises(ChildDied, match=r"^killed by SIGKILL \(the system ran out of memory\)$"):
        made.receive(timeout=20)
    made.close()


# --- memory that really runs out -----------------------------------------------------------------------------------

REFUSED = """
from helpers import download, runner
path = download.default_model()
try:
    runner.load(path, n_ctx=90_000, progress=False)
except runner.WontFit as refusal:
    print(refusal)
"""
FORCED = """
try:
    runner.load(path, n_ctx=90_000, progress=False, force=True)
except runner.ModelDied as death:
    print(death)
"""
NEXT = """
with runner.load(path, n_ctx=512, progress=False) as model:
    print(model.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=8).text)
"""


@linux
@pytest.mark.slow
@pytest.mark.model
def test_a_load_of_2_gib_where_1_gib_is_left(group, tmp_path):
    """A Jupyter kernel with 1 GiB: refused with the arithmetic; forced, the child dies of it, the kernel does not."""
    with harm.notebook(tmp_path, group) as kernel:
        said = kernel.run(REFUSED)
        assert "was not loaded. Needs 2.2 GiB but only" in said and "does not fit" in said
        assert "(weights 92.1 MiB + kv 1.9 GiB + compute" in said
        assert "1.0 GiB in all" in said and "What helps: context" in said and "force=True" in said
        assert group.kills() == 0
        said = kernel.run(FORCED)
        assert "ended while loading: killed by SIGKILL (the system ran out of memory). Try a smaller n_ctx" in said
        assert group.kills() == 1
        assert kernel.run(NEXT).startswith(" 6, 7")
        assert harm.children(kernel.pid) == []


AT_THE_PROMPT = """
model = runner.load(path, n_ctx=8192, n_batch=8192, n_ubatch=8192, flash_attn=False, progress=False, force=True)
try:
    model.complete("word " * 8000, max_tokens=4)
except runner.ModelDied as death:
    print(death, repr(death.partial_text), len(death.log) > 100)
model.close()
"""


@linux
@pytest.mark.slow
@pytest.mark.model
def test_memory_runs_out_while_the_prompt_is_read(group, tmp_path):
    """Scores for 8000 tokens at once: reserved at the load without being taken, and then not there."""
    with harm.notebook(tmp_path, group) as kernel:
        kernel.run(REFUSED)
        said = kernel.run(AT_THE_PROMPT)
        assert "Its process ended: killed by SIGKILL (the system ran out of memory)" in said
        assert "model.reload() loads it again. '' True" in said
        assert group.kills() == 1 and kernel.run(NEXT).startswith(" 6, 7")


GREEDY = """
import subprocess, sys, threading, time
from helpers import download, engine, models, quality, runner
path = download.default_model()
EATER = "a = []\\nwhile True: a.append(bytearray(1 << 24))"

def eat():
    subprocess.run([sys.executable, "-c", EATER])
"""
MID_ANSWER = """
model, pieces = runner.load(path, progress=False), []

def listen(piece):
    pieces.append(piece)
    if len(pieces) == 4:
        threading.Thread(target=eat).start()

try:
    model.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=2000, stream=listen)
except runner.ModelDied as death:
    print(death, death.partial_text == "".join(pieces), death.partial_text[:5])
while threading.active_count() > 20 or any(t._target is eat for t in threading.enumerate()):
    time.sleep(0.02)
print(model.reload().complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=8).text)
"""


@linux
@pytest.mark.slow
@pytest.mark.model
def test_another_program_takes_the_memory_in_the_middle_of_an_answer(group, tmp_path):
    """The model goes first, not the kernel; its words are kept; when the other program is gone, it loads again."""
    with harm.notebook(tmp_path, group) as kernel:
        kernel.run(GREEDY)
        said = kernel.run(MID_ANSWER)
        assert "killed by SIGKILL (the system ran out of memory)" in said
        assert "True  6, 7" in said and said.rstrip().endswith(" 6, 7, 8") and group.kills() >= 2


ENGINE_AND_QUALITY = """
thread = threading.Thread(target=eat)
spec = models.get("smollm2-135m")
engine.reserve(spec, n_ctx=512)
try:
    quality.compare([path], progress=lambda *_: thread.ident or thread.start(), n_ctx=256, max_chunks=8)
except quality.QualityError as error:
    print(error)
thread.join()
print(sum(engine.reserve(spec, n_ctx=n).kv_bytes > 0 for n in (256, 512, 1024)))
print(quality.compare([path], progress=False, n_ctx=256, max_chunks=1).reference.n_chunks)
"""


@linux
@pytest.mark.slow
@pytest.mark.model
def test_another_program_takes_the_memory_of_engine_and_quality(group, tmp_path):
    """Whichever of the children dies for the kernel's sake, both do their work afterwards."""
    with harm.notebook(tmp_path, group, {"HELPERS_CACHE": str(tmp_path)}) as kernel:
        kernel.run(GREEDY)
        said = kernel.run(ENGINE_AND_QUALITY).splitlines()
        assert "process ended: killed by SIGKILL (the system ran out of memory). The notebook is unharmed" in said[0]
        assert said[1:] == ["3", "1"] and group.kills() >= 2


NO_ADDRESSES = """
import resource
from helpers import download, runner
path = download.default_model()
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    runner.load(path, n_ctx=200_000, progress=False, force=True)
except (runner.LoadError, runner.ModelDied) as error:
    print(type(error).__name__, error)
with runner.load(path, n_ctx=512, progress=False) as model:
    print(model.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=8).text)
"""


@linux
@pytest.mark.slow
@pytest.mark.model
def test_an_allocation_that_the_system_refuses():
    """Under `ulimit -v` nothing is killed: llama.cpp gets no memory, and the next load works. Needs no root."""
    done = harm.run(NO_ADDRESSES)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith(("LoadError", "ModelDied")) and lines[-1].startswith(" 6, 7")


@linux
@pytest.mark.parametrize("module", ["helpers.runner_child", "helpers.engine_worker", "helpers.quality_child"])
def test_every_child_offers_to_die_first(module):
    child = Child(module)
    try:
        score = Path(f"/proc/{child.pid}/oom_score_adj")
        assert harm.wait_until(lambda: score.read_text().strip() == "900")
        assert Path("/proc/self/oom_score_adj").read_text().strip() != "900"
    finally:
        child.close()


# --- loads that meet -----------------------------------------------------------------------------------------------

# Needs 0.5 GiB, of which only a part is resident after the load: the scores are taken when a long prompt is read.
HALF = {"n_ctx": 4096, "n_batch": 2048, "n_ubatch": 2048, "flash_attn": False, "progress": False}
TWO_IN_ONE = f"""
import json, os
from helpers import download, hardware, runner
path, half = download.default_model(), {HALF!r}
first = runner.load(path, **half)
print(json.dumps([first.estimate.total_bytes, first.memory().anonymous_bytes, hardware.detect().ram_available_bytes]))

def second():
    try:
        with runner.load(path, **half) as model:
            return "loaded"
    except runner.WontFit as refusal:
        return str(refusal)

print(second())
END
print(second())
"""


@linux
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("end", ["first.close()", "os.kill(first.pid, 9); first._child.process.wait()"])
def test_a_second_load_counts_what_the_first_will_still_take(group, end):
    """By what is free now the second would fit; what the first was promised is left to it, until it is gone."""
    done = group.run(TWO_IN_ONE.replace("END", end))
    assert done.returncode == 0, done.stderr
    numbers, refused, loaded = done.stdout.splitlines()
    needed, resident, free = json.loads(numbers)
    assert resident < 0.5 * needed and needed < free  # without counting, the second would be let in
    assert "does not fit" in refused and "will be used by 1 other loaded model, here or in other notebooks" in refused
    assert loaded == "loaded" and group.kills() == 0


AT_ONCE = f"""
import sys
from helpers import download, runner
path, half = download.default_model(), {HALF!r}
for line in sys.stdin:
    try:
        model = runner.load(path, **half)
        print("loaded", flush=True)
    except runner.WontFit:
        model = None
        print("refused", flush=True)
    sys.stdin.readline()
    model and model.close()
    print("ready", flush=True)
"""


@linux
@pytest.mark.slow
@pytest.mark.model
def test_of_two_notebooks_that_load_at_once_one_gets_the_memory(group):
    """However close they come: never both, never none."""
    with group.start(AT_ONCE) as one, group.start(AT_ONCE) as two:

        def both(line):
            for notebook in (one, two):
                notebook.stdin.write(line + "\n")
                notebook.stdin.flush()
            return sorted(notebook.stdout.readline().strip() for notebook in (one, two))

        for _ in range(4):
            assert both("load") == ["loaded", "refused"]
            assert both("close") == ["ready", "ready"]
        one.kill()
        two.kill()
    assert group.kills() == 0


def test_what_a_claim_leaves():
    """The parts that are resident are no longer free; pages of one file are there once for all who map it."""
    claim = Claim(own_bytes=100, file_bytes=40, file="1:2")
    assert claim.still_to_come(held_bytes=0) == 140
    assert claim.still_to_come(held_bytes=70) == 70
    assert claim.still_to_come(held_bytes=500) == 40
    assert claim.still_to_come(70, beside=Claim(1, 40, "1:2")) == 30
    assert claim.still_to_come(70, beside=Claim(1, 0, "1:2")) == 70  # read into memory of its own, not mapped
    assert claim.still_to_come(70, beside=Claim(1, 40, "1:3")) == 70


@pytest.mark.parametrize(
    "text", ["", "--holds=", "--holds=1+2", "--holds=-1+2@3", "--holds=1e9+2@3", "--holds=1+2@3 4"]
)
def test_what_is_no_claim_claims_nothing(text):
    assert Claim.read(text) is None
    assert Claim.read("--holds=1+2@3:4") == Claim(1, 2, "3:4")


@pytest.mark.model
def test_a_machine_that_was_named_is_judged_as_it_is(tiny_file):
    """An imagined machine has no other models."""
    imagined = hardware.Machine.pretend("laptop", GIB)
    with runner.load(tiny_file, progress=False), runner.load(tiny_file, machine=imagined, progress=False) as second:
        assert second.verdict.free_bytes == GIB
        with runner.load(tiny_file, progress=False) as third:
            assert re.search(r"used by ([2-9]|\d\d+) other loaded models, here or in", " ".join(third.verdict.reasons))


PROMISED = "MEM_LIMIT (set by JupyterHub; advisory)"


@pytest.mark.parametrize(
    ("free_gib", "promised_gib", "elders", "left_gib", "said"),
    [
        (20, 2, [(1, 0, False)] * 9, 2, ""),  # nine neighbours: they are not in my promise
        (20, 2, [(1, 0.25, True), (1, 0, False)], 1, "1.0 GiB of your MEM_LIMIT is used or claimed by 1 other loaded"),
        (20, 2, [(1, 1.5, True)], 0.5, "1.5 GiB of your MEM_LIMIT"),  # it holds more than it was thought to need
        (5, 2, [(1, 0.5, False)] * 9, 0.5, "4.5 GiB of what is free now will be used by 9 other loaded models"),
        (20, None, [(1, 0, False)] * 9, 11, "9.0 GiB of what is free now"),
    ],
)
def test_what_a_hub_promised_is_not_shared_with_neighbours(monkeypatch, free_gib, promised_gib, elders, left_gib, said):
    """MEM_LIMIT is one learner's; memory that is there is everybody's."""

    def detect(env=None):
        promised = promised_gib and env is None
        total = hardware.Reading(promised_gib * GIB, PROMISED) if promised else hardware.Reading(64 * GIB, "a test")
        free = hardware.Reading(min(free_gib * GIB, total), "a test")
        return dataclasses.replace(
            hardware.Machine.pretend("hub", GIB), ram_total_bytes=total, ram_available_bytes=free
        )

    claims = [
        (Claim(need * GIB, 0, f"1:{i}"), int(held * GIB), False, own) for i, (need, held, own) in enumerate(elders)
    ]
    monkeypatch.setattr(hardware, "detect", detect)
    monkeypatch.setattr(runner, "_elders", lambda pid: claims)
    monkeypatch.setattr(runner, "memory_of", lambda pid: runner.Memory(0, 0, 0, "a test"))
    machine, sentence = runner._machine_left(Claim(GIB, 0, "2:1"), 1)
    assert machine.ram_available_bytes == left_gib * GIB and sentence.startswith(said) and bool(said) == bool(sentence)


@linux
def test_a_learner_is_a_user_of_the_hub_where_all_are_one_user_of_the_system(tmp_path, monkeypatch):
    (tmp_path / "says_nothing.py").write_text("import sys\nsys.stdin.read()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("JUPYTERHUB_USER", "anna")
    with contextlib.ExitStack() as stack:

        def child(claim):
            made = Child("says_nothing", arguments=[runner.CHILD, str(claim)])
            stack.callback(made.close)
            return made

        child(Claim(1, 2, "anna:1"))
        monkeypatch.setenv("JUPYTERHUB_USER", "bert")
        child(Claim(1, 2, "bert:1"))
        monkeypatch.setenv("JUPYTERHUB_USER", "anna")
        asks = child(Claim(1, 2, "anna:2"))
        found = {claim.file: (group, learner) for claim, _, group, learner in runner._elders(asks.pid)}
    assert (found["anna:1"], found["bert:1"]) == ((True, True), (True, False)) and "anna:2" not in found


def test_without_psutil_the_guard_still_judges(tiny_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(WontFit):
        runner.load(tiny_file, n_ctx=10**8, progress=False)


# --- processors with AMX -------------------------------------------------------------------------------------------


def with_flags(*flags):
    return dataclasses.replace(hardware.detect(), cpu_flags=hardware.Flags(flags, "a test"))


@pytest.mark.model
def test_amx_is_said_once_and_the_safe_path_is_taken(tiny_file, monkeypatch, capsys):
    monkeypatch.setattr(runner, "_said", set())
    plain, amx = with_flags("avx2"), with_flags("avx2", "amx_int8")
    said = []
    for machine in (plain, amx, amx):
        with runner.load(tiny_file, machine=machine) as model:
            assert model.settings["repack"] is False and "REPACK" not in model.log and "AMX model" not in model.log
        out, err = capsys.readouterr()
        said.append(err.count("AMX"))
        assert out == ""
    assert said == [0, 1, 0]
    with pytest.raises(LoadError, match="on processors with AMX.*Leave repack at False"):
        runner.load(tiny_file, repack=True, machine=amx)


@linux
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(hardware.detect().repack != "amx", reason="this processor has no AMX")
def test_a_real_crash_in_native_code():
    """Nothing is simulated: forced onto the path that crashes on AMX, the child dies at the first prompt."""
    with runner.load(download.default_model(), n_ctx=512, repack=True, force=True, progress=False) as model:
        try:
            model.ask("Why is the sky blue?", max_tokens=8)
        except ModelDied as death:
            assert "SIGSEGV (a crash inside native code). Try repack=False" in str(death)
    with runner.load(download.default_model(), n_ctx=512, progress=False) as model:
        assert model.ask("Why is the sky blue?", max_tokens=8).answer_tokens
