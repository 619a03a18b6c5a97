"""`helpers.child`: a process that may crash, spoken to in JSON lines."""

import gc
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from helpers.child import PACKAGE_PARENT, Child, ChildDied, describe_exit

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix has them")

MODULE = """
import ctypes, os, signal, sys, time
from helpers.child import Parent

parent = Parent()
print("hello from", os.getpid(), file=sys.stderr, flush=True)
for request in parent.requests():
    match request["do"]:
        case "echo":
            parent.send({"said": request["text"]})
        case "print":  # Python's print and a native printf to stdout must not break the messages
            print("this is no JSON")
            os.write(1, b"nor is this\\n")
            parent.send({"said": "printed"})
        case "count":
            for number in range(request["to"]):
                parent.send({"number": number})
        case "wait":
            began = time.monotonic()
            while not parent.cancelled.is_set() and time.monotonic() - began < 20:
                time.sleep(0.005)
            parent.send({"cancelled": parent.cancelled.is_set()})
        case "leave":
            os._exit(request["code"])
        case "fall":
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), request["signal"])
            time.sleep(5)
        case "environment":
            parent.send({"said": os.environ.get(request["name"])})
"""


@pytest.fixture
def child(tmp_path):
    (tmp_path / "talker.py").write_text(MODULE)
    child = Child("talker", env={"PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, str(tmp_path)]), "COLOUR": "blue"})
    yield child
    child.close()


def ask(child, **request):
    child.send(request)
    return child.receive(timeout=20)


def test_messages_go_both_ways(child):
    assert child.alive and child.pid != os.getpid()
    for text in ("hello", "", "grüße \u2028 \0 \n {}", "x" * 200_000):
        assert ask(child, do="echo", text=text) == {"said": text}


def test_many_messages_keep_their_order(child):
    child.send({"do": "count", "to": 500})
    assert [child.receive(timeout=20)["number"] for _ in range(500)] == list(range(500))


def test_what_native_code_prints_goes_to_the_log(child):
    assert ask(child, do="print") == {"said": "printed"}
    until = time.monotonic() + 5
    while "nor is this" not in child.log_tail() and time.monotonic() < until:
        time.sleep(0.01)
    assert "nor is this" in child.log_tail()


def test_the_environment_is_passed_on(child):
    assert ask(child, do="environment", name="COLOUR") == {"said": "blue"}


def test_cancel_reaches_a_busy_child(child):
    child.send({"do": "wait"})
    time.sleep(0.05)
    child.send({"do": "cancel"})
    assert child.receive(timeout=10) == {"cancelled": True}
    assert ask(child, do="echo", text="still here") == {"said": "still here"}


def test_no_answer_in_time(child):
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        child.receive(timeout=0.05)
    assert ask(child, do="echo", text="late") == {"said": "late"}


def test_an_exit_is_told_with_its_code(child):
    child.send({"do": "leave", "code": 7})
    for _ in range(2):  # and again, whoever asks
        with pytest.raises(ChildDied, match="exit code 7"):
            child.receive(timeout=20)
    with pytest.raises(ChildDied, match="exit code 7"):
        child.send({"do": "echo", "text": "anybody there?"})
    assert not child.alive


@posix
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL if hasattr(signal, "SIGKILL") else 9, "SIGKILL (often the system running out of memory)"),
        (signal.SIGSEGV, "SIGSEGV (a crash inside native code)"),
        (signal.SIGABRT, "SIGABRT (native code stopped itself: a failed check)"),
    ],
)
def test_a_death_is_told_with_its_signal_and_last_words(child, number, says):
    child.send({"do": "fall", "signal": int(number)})
    with pytest.raises(ChildDied) as death:
        child.receive(timeout=20)
    assert death.value.how == f"killed by {says}"
    assert "last words" in death.value.log


def test_a_waiting_reader_is_woken_by_the_end(child):
    found = []

    def wait():
        with pytest.raises(ChildDied) as death:
            child.receive(timeout=20)
        found.append(death.value.how)

    waiting = threading.Thread(target=wait)
    waiting.start()
    child.process.kill()
    waiting.join(timeout=10)
    assert len(found) == 1


def test_close_ends_the_process_and_may_be_repeated(child):
    assert ask(child, do="echo", text="x")
    child.close()
    assert child.process.poll() is not None
    child.close()


def test_a_forgotten_child_is_ended(tmp_path):
    (tmp_path / "talker.py").write_text(MODULE)
    child = Child("talker", env={"PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, str(tmp_path)])})
    ask(child, do="echo", text="x")
    process, gone = child.process, weakref.ref(child)
    del child
    gc.collect()
    assert gone() is None
    assert process.poll() is not None


def test_the_child_ends_when_nobody_can_ask_any_more(child):
    child.send({"do": "wait"})  # even inside a long call
    child.process.stdin.close()
    assert child.process.wait(timeout=5) == 0


@posix
def test_ctrl_c_in_the_terminal_does_not_reach_the_child(child):
    assert ask(child, do="echo", text="x")
    assert os.getpgid(child.pid) != os.getpgid(0)


def test_a_module_that_does_not_exist_says_so():
    child = Child("helpers.there_is_no_such_module")
    with pytest.raises(ChildDied) as death:
        child.receive(timeout=20)
    assert "exit code 1" in death.value.how
    assert "there_is_no_such_module" in death.value.log


def test_exits_in_words():
    assert describe_exit(None) == "still running"
    assert describe_exit(0) == "exit code 0"
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9999) == "killed by signal 9999"
