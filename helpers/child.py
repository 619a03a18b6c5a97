"""A child process that may crash without taking the learner's kernel with it.

Native code (llama.cpp) asserts, segfaults and runs out of memory. `engine` and `runner` therefore talk to a
child over JSON lines: requests on its stdin, messages on its stdout; the last lines of its log are kept.
"""

import collections
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

from .need import MissingPackage

DEBUG, INFO, ERROR, CONTINUED = 1, 2, 4, 5  # levels of llama.cpp's log
PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)


class ChildDied(RuntimeError):
    """The child process ended before it answered; `.how` says how, `.log` holds its last lines."""

    def __init__(self, how, log=""):
        super().__init__(how)
        self.how, self.log = how, log


class Refused(Exception):
    """Something that cannot be done with this file or this text; `kind` tells the parent which error to raise."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


def describe_exit(code, out_of_memory=False):
    """How a process ended, in words; `out_of_memory`: the system counted such a kill meanwhile.

    >>> describe_exit(-9)
    'killed by SIGKILL (often the system running out of memory)'
    """
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = {
        "SIGKILL": " (the system ran out of memory)" if out_of_memory else " (often the system running out of memory)",
        "SIGSEGV": " (a crash inside native code)",
        "SIGABRT": " (native code stopped itself: a failed check)",
        "SIGILL": " (the program was built for another processor)",
    }.get(name, "")
    return f"killed by {name}{hint}"


class Log:
    """llama.cpp's own words, in the process that holds it: kept until `take`.

    From the level `shown` on they also go to stderr, where the parent keeps the last lines. A `listener` hears all.
    """

    def __init__(self, lib, shown=INFO):
        self.listener, self._shown = None, shown
        self._text, self._errors, self._level = [], [], 0
        self._callback = lib.llama_log_callback(self._keep)
        lib.llama_log_set(self._callback, None)

    def _keep(self, level, text, _):
        self._level = self._level if level == CONTINUED else level
        if self._level <= DEBUG:
            return
        text = text.decode(errors="replace")
        self._text.append(text)
        if self._level >= self._shown:
            sys.stderr.write(text)
        if self._level == ERROR:
            self._errors.append(text)
        if self.listener:
            self.listener(text)

    def take(self):
        """(everything, the errors) since the last call."""
        text, errors = "".join(self._text), "".join(self._errors)
        self._text.clear()
        self._errors.clear()
        return text, errors


class Child:
    """`python -m module` in a process of its own, spoken to in JSON lines; `arguments` are for others to see."""

    def __init__(self, module, env=None, arguments=()):
        if sys.platform == "emscripten":
            raise MissingPackage(
                "llama.cpp cannot run inside a browser page; the formulas go on without it. "
                "Install the kit on a computer to ask the engine or a model."
            )
        paths = [PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the notebook must not reach native code
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(env or {})},
        )
        self._messages, self._kills = queue.SimpleQueue(), _kills_for_memory()
        self._log = collections.deque(maxlen=200)
        threading.Thread(target=_pump, args=(self.process.stdout, self._messages), daemon=True).start()
        self._log_keeper = threading.Thread(target=_keep, args=(self.process.stderr, self._log), daemon=True)
        self._log_keeper.start()
        self._finalizer = weakref.finalize(self, _end, self.process)

    @property
    def pid(self):
        return self.process.pid

    @property
    def alive(self):
        return self.process.poll() is None

    def send(self, message):
        if self.alive:
            self._kills = _kills_for_memory()
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, OSError):
            raise self._died() from None

    def receive(self, timeout=None):
        """The next message; `ChildDied` when there will be none, `TimeoutError` after `timeout` seconds."""
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no answer within {timeout} s") from None
        if message is None:
            self._messages.put(None)
            raise self._died()
        return message

    def log_tail(self):
        return "".join(self._log)

    def close(self):
        self._finalizer()

    def _died(self):
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._log_keeper.join(timeout=1)  # its last words may still be on their way
        return ChildDied(describe_exit(code, _kills_for_memory() > self._kills), self.log_tail())


def _kills_for_memory():
    """How many processes Linux has ended for want of memory since it started; 0 where nobody counts."""
    with contextlib.suppress(OSError):
        found = re.search(rb"^oom_kill (\d+)$", Path("/proc/vmstat").read_bytes(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _pump(stream, messages):
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            messages.put(json.loads(line))
    messages.put(None)


def _keep(stream, lines):
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            lines.append(line.decode(errors="replace"))


def _end(process):
    process.kill()
    with contextlib.suppress(Exception):
        process.wait(timeout=5)
    for stream in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(Exception):
            stream.close()


def offer_to_die_first():
    """Tell Linux to end this process, not the learner's notebook, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


class Parent:
    """The child's side: `requests()` yields what the parent sends, `send` answers.

    A thread reads stdin, so the child ends at once when its parent is gone, even inside a long native call; the files
    named in `unfinished` go with it, for nobody is left to finish them.
    Whatever native code prints to stdout goes to the log instead of breaking the messages. When memory runs out, it is
    the first to go.
    """

    def __init__(self):
        offer_to_die_first()
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._requests = queue.SimpleQueue()
        self.cancelled, self.unfinished = threading.Event(), ()
        self._counting = threading.Lock()
        self._received = self._taken = self._unwanted = 0  # requests so far; a cancel means those before it only
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if message.get("do") == "cancel":
                with self._counting:
                    self._unwanted = self._received
                    self.cancelled.set()
            else:
                self._received += 1
                self._requests.put(message)
        for path in self.unfinished:
            with contextlib.suppress(OSError):
                os.unlink(path)
        os._exit(0)

    def requests(self):
        while True:
            request = self._requests.get()
            with self._counting:
                self._taken += 1
                if self._taken > self._unwanted:
                    self.cancelled.clear()
            yield request

    def send(self, message):
        with self._lock:
            self._out.write(json.dumps(message).encode() + b"\n")
            self._out.flush()
