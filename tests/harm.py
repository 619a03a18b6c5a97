"""Real harm for `test_harm.py` and `test_long_use.py`: a limit on memory that the system enforces, programs under it.

    with harm.control_group(1 * GIB) as group:
        done = group.run("print('lives under 1 GiB')")
        assert group.kills() == 0

A control group needs root and a writable folder of the system; `why_no_group()` says what is missing.
"""

import contextlib
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
V1, V2 = "memory.limit_in_bytes", "memory.max"


@functools.cache
def why_no_group():
    """Why no control group can be made here, as a sentence for `pytest.skip`; "" when it can."""
    if sys.platform != "linux":
        return "control groups are Linux's"
    try:
        with control_group(64 * 2**20) as group:
            done = group.run("print(open('/proc/self/cgroup').read())")
        return "" if group.folder.name in done.stdout else f"a program could not be put into it: {done.stderr[-200:]}"
    except OSError as error:
        return f"no control group can be made here ({error}); it needs root and a writable /sys/fs/cgroup"


@contextlib.contextmanager
def control_group(limit_bytes):
    """A control group in which all programs together may have so much memory, and no swap."""
    folder, name = _new_folder(), V1
    try:
        if not (folder / V1).exists():
            name = V2
        (folder / name).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):  # where the system does not count swap there is none to forbid
            swap, n_bytes = ("memory.memsw.limit_in_bytes", limit_bytes) if name == V1 else ("memory.swap.max", 0)
            (folder / swap).write_text(str(n_bytes))
        yield Group(folder)
    finally:
        _remove(folder)


def _new_folder():
    error = OSError("no folder for control groups")
    for place in PLACES:
        folder = place / f"kit-harm-{os.getpid()}-{time.monotonic_ns()}"
        try:
            if not (place / "cgroup.procs").exists():
                continue
            if not (place / V1).exists():
                (place / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
            if (folder / V1).exists() or (folder / V2).exists():
                return folder
            folder.rmdir()
        except OSError as found:
            error = found
    raise error


def _remove(folder):
    """End what still runs in it, then the folder itself, which the kernel lets go only when it is empty."""
    until = time.monotonic() + 10
    while folder.exists() and time.monotonic() < until:
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), 9)
        with contextlib.suppress(OSError):
            folder.rmdir()
        time.sleep(0.02)


class Group:
    """A control group; programs that run in it share its memory."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, code, *arguments, **options):
        """`python -c code` inside the group, as a `Popen` with pipes."""
        enter = f"open({str(self.folder / 'cgroup.procs')!r}, 'w').write('0')\n"
        return _start(enter + code, *arguments, **options)

    def join(self):
        """Put the calling process into the group, for `preexec_fn`."""
        (self.folder / "cgroup.procs").write_text("0")

    def run(self, code, *arguments, within_s=60):
        """As `start`, to its end: a `CompletedProcess`."""
        return _finished(self.start(code, *arguments), within_s)

    def kills(self):
        """How many processes the kernel has ended in it for want of memory."""
        name = "memory.oom_control" if (self.folder / "memory.oom_control").exists() else "memory.events"
        facts = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(facts["oom_kill"])


def _start(code, *arguments, environment=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def _finished(process, within_s):
    with process:
        try:
            out, err = process.communicate(timeout=within_s)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(code, *arguments, within_s=60):
    """`python -c code` to its end, as a `CompletedProcess`."""
    return _finished(_start(code, *arguments), within_s)


def gone(pid):
    """Whether the process has ended, if only as a zombie that waits for somebody to read its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(true, within_s=10):
    until = time.monotonic() + within_s
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def children(pid):
    """Process numbers of all that descend from `pid`."""
    import psutil

    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


@contextlib.contextmanager
def notebook(folder, group=None, environment=None):
    """A real Jupyter kernel, as `Kernel`; its temporary files go to `folder / "tmp"`. Killed at the end."""
    from jupyter_client.manager import KernelManager

    for name in ("tmp", "runtime", "ipython"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    places = {name: str(folder / "tmp") for name in ("TMPDIR", "TEMP", "TMP")}
    places |= {"JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "IPYTHONDIR": str(folder / "ipython")}
    manager = KernelManager(kernel_name="python3", connection_file=str(folder / "runtime" / "kernel.json"))
    manager.start_kernel(env={**os.environ, "PYTHONPATH": str(ROOT), **places, **(environment or {})})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        running = Kernel(manager, client)
        if group:
            running.run(f"open({str(group.folder / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))")
        yield running
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


class Kernel:
    """A running kernel: `run` is one cell, `start` a cell that nobody waits for."""

    def __init__(self, manager, client):
        self.manager, self.client = manager, client

    @property
    def pid(self):
        return self.manager.provisioner.pid

    def start(self, code):
        self.client.execute(code)

    def run(self, code, within_s=120):
        """What the cell printed; `AssertionError` with the traceback when it fails."""
        printed, errors = [], []

        def keep(message):
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed.append(content["text"])
            if message["msg_type"] == "error":
                errors.append("\n".join(content["traceback"]))

        self.client.execute_interactive(code, timeout=within_s, output_hook=keep, store_history=False)
        assert not errors, errors[0]
        return "".join(printed)
