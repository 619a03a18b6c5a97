"""One kernel used for long: its memory does not grow, and when it is killed nothing of it stays, wherever it was.

Real Jupyter kernels (see harm.py); `bench_long_use.py` prints the same numbers as a table.
"""

import contextlib
import json
import os
import signal
import sys

import harm
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
MIB = 2**20
MOST_GROWTH_BYTES = 20 * MIB
MOVES, QUESTIONS = 500, 100
SETUP = """
import gc, itertools, os, threading, time
from IPython.display import display
from helpers import download, engine, explore, hardware, models, panels, quality, runner
path = download.default_model()
"""
USE = """
machine = hardware.Machine.pretend("laptop", 7 * 2**30, 8 * 2**30)
fit = panels._FitPanel(machine, "llama-3.1-8b", "Q4_K_M", 8192, True)
compare = explore.Compare(machine, "llama-3.1-8b", "Q4_K_M", 8192)
display(fit.box, compare.box)
model = runner.load(path, n_ctx=512, progress=False)
steps = itertools.count()

def move(times):
    for step in itertools.islice(steps, times // 2):
        for panel in (fit, compare):
            slider = panel.context if panel is fit else panel.pairs[0][0]
            values = [value for _, value in slider.options]
            slider.value = values[step % len(values)]

def ask(times):
    for number in range(times):
        model.ask(f"What is {number} plus {number}?", max_tokens=4)

def held():
    gc.collect()
    memory = runner.memory_of(os.getpid())
    return [memory.anonymous_bytes, memory.resident_bytes, len(os.listdir("/proc/self/fd")), threading.active_count()]
"""


def grown(kernel, cell):
    """(the kernel before the cell, after it): anonymous bytes, resident bytes, open files, threads."""
    return json.loads(kernel.run("print(held())")), (kernel.run(cell), json.loads(kernel.run("print(held())")))[1]


def killed(kernel):
    """Kill the kernel itself; those of its children that outlive it by 5 s."""
    children = harm.children(kernel.pid)
    os.kill(kernel.pid, signal.SIGKILL)
    harm.wait_until(lambda: all(map(harm.gone, children)), within_s=5)
    return children, [pid for pid in children if not harm.gone(pid)]


def at_work(pid, seconds):
    """Whether one of our processes under `pid` has computed that long; those that look at hardware come and go."""
    import psutil

    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("helpers." in word for word in process.cmdline()) and sum(process.cpu_times()[:2]) >= seconds:
                return True
    return False


def computing(pid, seconds=0.2):
    """Wait until the process has used so much CPU time from now on."""
    import psutil

    before = sum(psutil.Process(pid).cpu_times()[:2])
    return harm.wait_until(lambda: sum(psutil.Process(pid).cpu_times()[:2]) > before + seconds)


@linux
@pytest.mark.slow
@pytest.mark.model
def test_500_slider_moves_and_100_questions_then_sigkill(tmp_path):
    """The kernel grows by under 20 MiB; killed in the middle of an answer, it leaves no process and no file."""
    with harm.notebook(tmp_path) as kernel:
        kernel.run(SETUP + USE)
        kernel.run("move(60); ask(5)")
        before, after = grown(kernel, f"move({MOVES}); ask({QUESTIONS})")
        assert after[0] - before[0] < MOST_GROWTH_BYTES and after[1] - before[1] < MOST_GROWTH_BYTES
        assert after[2:] <= [before[2] + 2, before[3] + 2]
        model, worker = json.loads(kernel.run("print([model.pid, engine.worker_pid()])"))
        kernel.start("model.ask('Count to one thousand.', max_tokens=400)")
        assert computing(model)
        children, left = killed(kernel)
        assert {model, worker} <= set(children) and left == []
        assert list((tmp_path / "tmp").iterdir()) == []


BUSY = {
    "load": "runner.load(path, n_ctx=60_000, progress=False)",
    "prompt": "runner.load(path, n_ctx=8192, progress=False).complete('word ' * 8000, max_tokens=4)",
    "embed": "runner.load(path, progress=False).embed(['word ' * 200] * 2000)",
    "engine": "while True: engine.forget(); engine.reserve(models.get('llama-3.1-8b'), n_ctx=512)",
    "measure": "quality.compare([path], n_ctx=256, max_chunks=100)",
    "quantize": "quality.requantize(path, 'Q2_K', out=OUT, progress=False)",
}


@linux
@pytest.mark.slow
@pytest.mark.model
def test_a_kernel_killed_at_any_other_work_leaves_nothing(tmp_path):
    """All at once, each in a kernel of its own: no process, no temporary file, no half file anywhere."""
    made = tmp_path / "made"
    made.mkdir()
    with contextlib.ExitStack() as stack:
        kernels = {}
        for name in BUSY:
            environment = {"HELPERS_CACHE": str(made)}
            kernels[name] = stack.enter_context(harm.notebook(tmp_path / name, environment=environment))
            kernels[name].run(f"{SETUP}\nOUT = {str(made / 'two.gguf')!r}")
        for name, kernel in kernels.items():
            kernel.start(BUSY[name])
            assert harm.wait_until(lambda pid=kernel.pid, s=0 if name == "load" else 0.4: at_work(pid, s)), name
            children, left = killed(kernel)
            assert children and left == [], name
            assert list((tmp_path / name / "tmp").iterdir()) == [], name
    assert [path for path in made.rglob("*") if path.is_file()] == []
