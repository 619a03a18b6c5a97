"""Odd machines: each runs what it can, and says what it cannot.

The measure is always the same: the solved lessons that need no model, run as a plain program on that machine, must
find every exercise correct. Where a real oddity can be had (a namespace, a memory limit, another Python) it is used.
"""

import ast
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import harm
import pytest

from helpers import hardware, units

ROOT = Path(__file__).resolve().parent.parent
LINUX = sys.platform.startswith("linux")
ONLY_LINUX = pytest.mark.skipif(not LINUX, reason="this oddity is made with Linux's own means")
LESSONS = ("01", "02", "03", "04", "05", "07")
# Whatever a lesson prints goes into a string, as in a notebook, whose page can show any letter.
WORK = """
import contextlib, io, json, sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path.insert(0, str(root))
{before}
for number in sys.argv[2:]:
    (path,) = (root / "notebooks" / "solved").glob(number + "_*.ipynb")
    space = {{}}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        tags = set(cell["metadata"].get("tags", ()))
        if cell["cell_type"] == "code" and not tags & {{"raises-exception", "network", "model"}}:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec("".join(cell["source"]), space)
            except ImportError as error:  # in a notebook the next cell goes on too
                if type(error).__name__ != "MissingPackage":
                    raise
                print("MISSING", error)
{after}
print("DONE")
"""
ANSWER = """
from helpers import download, runner
with runner.load(download.default_model(), n_ctx=256) as model:
    answer = model.ask("Say hello.", max_tokens=8, temperature=0)
    assert answer.text.strip()
    print("ANSWERED", model.settings["n_threads"])
"""


def work(folder, root=ROOT, before="", after="", lessons=LESSONS, prefix=(), python=sys.executable, **options):
    """Run the lessons in `folder` as a program; its output. The record must say that every exercise is correct."""
    program = folder / "work.py"
    program.write_text(WORK.format(before=before, after=after), encoding="utf-8")
    inherited = {name: word for name, word in os.environ.items() if name not in ("HELPERS_PROGRESS", "PYTHONPATH")}
    environ = {**inherited, **options.pop("environment", {})}
    may_miss = options.pop("may_miss", False)
    done = subprocess.run(
        [*prefix, python, str(program), str(root), *lessons], cwd=folder, env=environ, timeout=240, capture_output=True,
        **options,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode("utf-8", errors="replace")
    assert done.returncode == 0 and "DONE" in said, said
    assert may_miss or "MISSING" not in said, said
    kept = json.loads((folder / ".progress.json").read_text(encoding="utf-8"))["exercises"]
    assert {name[:2] for name in kept} == set(lessons)
    assert {row["status"] for row in kept.values()} == {"correct"}, kept
    return said


# --- memory and cores ----------------------------------------------------------------


def test_no_swap(tmp_path):
    """Neither a computer without any, nor a /proc/meminfo that does not speak of it, is anything special."""
    (tmp_path / "proc").mkdir()
    lines = "MemTotal: 8388608 kB\nMemFree: 1048576 kB\nMemAvailable: 4194304 kB\n"
    for more in ("SwapTotal: 0 kB\nSwapFree: 0 kB\n", ""):
        (tmp_path / "proc" / "meminfo").write_text(lines + more)
        machine = hardware.detect(root=tmp_path, env={})
        assert (machine.swap_free_bytes, machine.ram_available_bytes) == (0, 4 * units.GIB)
        assert "Swap free" in str(machine)


@pytest.mark.slow
@ONLY_LINUX
@pytest.mark.parametrize("with_model", [False, pytest.param(True, marks=pytest.mark.model)])
def test_one_core(tmp_path, with_model):
    core = min(os.sched_getaffinity(0))
    after = "from helpers import hardware\nprint('THREADS', int(hardware.detect().cpu_threads))\n" + ANSWER * with_model
    said = work(tmp_path, after=after, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert "THREADS 1" in said
    assert not with_model or "ANSWERED 1" in said


SMALL = """
from helpers import fit, hardware, memory, models
machine = hardware.detect()
print("RAM", int(machine.ram_total_bytes), machine.ram_total_bytes.source)
needs = memory.estimate(models.get("llama3.1:8b" if "llama3.1:8b" in models.names() else models.names()[-1]), "Q8_0")
print("VERDICT", fit.verdict(needs, machine).status)
"""


@pytest.mark.slow
@ONLY_LINUX
@pytest.mark.parametrize("with_model", [False, pytest.param(True, marks=pytest.mark.model)])
def test_512_mib(tmp_path, with_model):
    """All lessons without a model, and the small model too; the large one is refused in words."""
    if why_not := harm.why_no_group():
        pytest.skip(why_not)
    with harm.control_group(512 * units.MIB) as group:
        said = work(tmp_path, after=SMALL + ANSWER * with_model, preexec_fn=group.join)
    assert f"RAM {512 * units.MIB}" in said and "VERDICT no" in said, said
    assert not with_model or "ANSWERED" in said


# --- places ----------------------------------------------------------------


def in_a_namespace(*commands):
    """Words before a command that run it after mounting things which only it sees."""
    if not LINUX or not shutil.which("unshare"):
        pytest.skip("mounts that only one program sees are Linux's")
    script = " && ".join([*commands, 'exec "$@"'])
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
    if os.geteuid() != 0 or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("mounts that only one program sees need root here")
    return prefix


@pytest.mark.slow
def test_a_read_only_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    prefix = in_a_namespace(f"mount -t tmpfs -o ro kit '{home}'")
    after = (
        "from helpers import doctor, download, stores\n"
        "try:\n    open(Path.home() / 'x', 'w')\n    print('WRITABLE')\nexcept OSError:\n    pass\n"
        "print(*doctor.check(), sep='\\n')\nstores.local_models(progress=False)\n"
        "try:\n    download.fetch('me/model', 'a.gguf', '0' * 40)\n"
        "except download.DownloadError as error:\n    print('SAID', error)\n"
    )
    names = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN")
    environ = {"HOME": str(home), **dict.fromkeys(names, ""), "HF_ENDPOINT": "http://127.0.0.1:9"}
    said = work(tmp_path, prefix=prefix, after=after, environment=environ)
    assert "WRITABLE" not in said and "SAID" in said and "failed (" not in said.partition("SAID")[0]


@pytest.mark.slow
def test_no_proc(tmp_path):
    """What is not known is a note, not an error."""
    prefix = in_a_namespace("mount -t tmpfs kit /proc")
    after = "from helpers import doctor, hardware\nprint('MACHINE', hardware.detect())\n"
    after += "print(*doctor.check(), sep='\\n')\nprint('FILES', len(list(Path('/proc').iterdir())))\n"
    said = work(tmp_path, prefix=prefix, after=after)
    assert "FILES 0" in said and "RAM free right now" in said and "Traceback" not in said


def test_no_proc_at_all_is_said(tmp_path):
    machine = hardware.detect(root=tmp_path, env={}, psutil=None)
    assert machine.ram_available_bytes == 0 and machine.cpu_threads >= 1
    assert any("HELPERS_RAM" in note for note in machine.notes), machine.notes


def copy_of_the_kit(target, change=lambda content: content):
    """The kit in another place; `change` is applied to the bytes of its texts."""
    for name in ("helpers", "notebooks", "lessons"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = target / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(change(path.read_bytes()))
    for name in ("start.py", "pyproject.toml", "requirements.lock", "README.md", "environment.yml", "LICENSE"):
        (target / name).write_bytes(change((ROOT / name).read_bytes()))
    return target


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [False, pytest.param(True, marks=pytest.mark.model)])
def test_spaces_and_chinese_in_the_path(tmp_path, with_model):
    """Kit, working folder and temporary folder; also where the system's own encoding knows no Chinese."""
    folder = tmp_path / "my kit 本地 模型 ü"
    folder.mkdir()
    kit = copy_of_the_kit(folder)
    (folder / "temp 试").mkdir()
    environ = {"TMPDIR": str(folder / "temp 试"), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    after = "from helpers import doctor\nprint(*doctor.check(), sep='\\n')\n"
    after += "from helpers import fit, hardware, memory, models, report\nneeds = memory.estimate(models.get('qwen3:8b' "
    after += "if 'qwen3:8b' in models.names() else models.names()[0]), 'Q4_K_M')\n"
    after += "assert report.html(needs, hardware.detect()).exists()\n"
    model = ANSWER
    if with_model:  # its file too lies in such a place
        from helpers import download

        (folder / "模型.gguf").symlink_to(download.default_model())
        model = ANSWER.replace("download.default_model()", "Path('模型.gguf').absolute()")
        environ = {"TMPDIR": environ["TMPDIR"]}  # C knows no Chinese: such a name cannot even be written down there
    said = work(folder, root=kit, after=after + model * with_model, environment=environ)
    assert "failed (" not in said
    assert not with_model or "ANSWERED" in said


@pytest.mark.slow
def test_windows_line_endings(tmp_path):
    """A git that turns every text into CRLF: same lessons, same numbers, same notebooks."""

    def to_crlf(content):
        with contextlib.suppress(UnicodeDecodeError):
            content.decode()
            return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        return content

    kit = copy_of_the_kit(tmp_path / "kit", to_crlf)
    assert b"\r\n" in (kit / "helpers" / "data" / "models.toml").read_bytes()
    after = """
from helpers import claims, models, quality, rag, report
for name in models.names():
    models.get(name)
"""
    (tmp_path / "work").mkdir()
    work(tmp_path / "work", root=kit, after=after)
    pytest.importorskip("jupytext")
    for path in (ROOT / "notebooks").rglob("*.ipynb"):  # .gitattributes keeps these as they are
        (kit / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    check = [sys.executable, str(kit / "lessons" / "build.py"), "--check"]
    done = subprocess.run(check, capture_output=True, timeout=200)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    needs = "import sys; sys.path.insert(0, ''); import start; print(start.needs(start.ROOT, 'dependencies'))"
    lists = [
        subprocess.run([sys.executable, "-c", needs], cwd=place, capture_output=True, check=True).stdout
        for place in (kit, ROOT)
    ]
    assert lists[0] == lists[1]


# --- letters ----------------------------------------------------------------

LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a Windows console": {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    "a pipe of plain letters": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCALES)
def test_a_locale_that_is_not_utf_8(tmp_path, name):
    folder = tmp_path / "试 ü"
    folder.mkdir()
    work(folder, environment=LOCALES[name], lessons=("01", "07"))
    environ = {**os.environ, **LOCALES[name], "PYTHONPATH": str(ROOT)}
    for program in (["-m", "helpers.hardware"], ["-m", "helpers.doctor"], [str(ROOT / "start.py"), "--help"]):
        done = subprocess.run([sys.executable, *program], cwd=folder, env=environ, capture_output=True, timeout=200)
        assert b"Traceback" not in done.stderr and done.stdout, (program, done.stderr.decode(errors="replace"))


def without_encoding(tree):
    """Calls that read or write text in whatever encoding the system happens to have."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or {"encoding", None} & {word.arg for word in node.keywords}:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        binary = any(set(word) <= set("rwxab+") and "b" in word for word in words)
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        whole = (name == "read_text" and not node.args) or (name == "write_text" and len(node.args) < 2)
        opened = name == "open" and not binary and (not owner or (words and owner not in ("os", "tarfile")))
        if whole or opened:
            yield node


@pytest.mark.parametrize("folder", ["helpers", "lessons", "."])
def test_every_text_is_read_and_written_as_utf_8(folder):
    for path in (ROOT / folder).glob("*.py"):
        for node in without_encoding(ast.parse(path.read_text(encoding="utf-8"))):
            line = ast.unparse(node)
            assert "/proc/" in line, f"{path.name}:{node.lineno}: say encoding='utf-8' in {line}"


@pytest.mark.parametrize("line", ["p.read_text()", "p.write_text(x)", "open('a')", "open('a', 'w')", "p.open('w')"])
def test_a_text_in_the_systems_encoding_is_seen(line):
    assert list(without_encoding(ast.parse(line)))
    assert not list(without_encoding(ast.parse("p.read_text('utf-8'); open('a', 'rb'); p.open('wb'); p.open('rb')")))


# --- other Pythons ----------------------------------------------------------------

VERSIONS = ("3.10", "3.11", "3.12", "3.13")


@functools.cache
def python(version):
    """A Python of this version: from `KIT_PYTHONS` (paths), the PATH, or pyenv's folder; a skip when there is none."""
    named = [path for path in os.environ.get("KIT_PYTHONS", "").split(os.pathsep) if path]
    named += [sys.executable, shutil.which(f"python{version}") or ""]
    named += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    for path in filter(None, named):
        asked = [path, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        with contextlib.suppress(OSError):
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
                return path
    return ""


STANDARD_LIBRARY_ONLY = """
import doctest, importlib, sys
done = []
for room in sys.argv[1:]:
    module = importlib.import_module("helpers." + room)
    if room in {tried}:
        result = doctest.testmod(module)
        assert not result.failed, room
    done.append(room)
print(sys.version.split()[0], *done)
"""
BARE = {"units", "need", "check", "progress", "child"}  # rooms whose examples need nothing but Python


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_supported_python(tmp_path, version):
    """Every file is a program of that Python, every room can be imported there, with packages or without; where numpy
    and the block table are there too, the lessons run."""
    path = python(version)
    if not path:
        pytest.skip(f"there is no Python {version} here (KIT_PYTHONS may name one); CI has it")
    code = "import sys, pathlib\nfor name in sys.argv[1:]:\n"
    code += "    compile(pathlib.Path(name).read_bytes(), name, 'exec')\nprint('COMPILED')"
    files = [str(p) for name in ("helpers", "lessons", "tests") for p in sorted((ROOT / name).glob("*.py"))]
    files.append(str(ROOT / "start.py"))
    done = subprocess.run([path, "-c", code, *files], capture_output=True, text=True, timeout=100)
    assert "COMPILED" in done.stdout, done.stderr
    rooms = sorted(p.stem for p in (ROOT / "helpers").glob("*.py") if p.stem not in ("__init__", "gguf", "quant"))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    program = STANDARD_LIBRARY_ONLY.format(tried=BARE)
    has_numpy = subprocess.run([path, "-c", "import numpy, gguf"], capture_output=True).returncode == 0
    if not has_numpy:
        rooms = [room for room in rooms if not needs_numpy(room)]
    done = subprocess.run([path, "-c", program, *rooms], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith(version) and set(done.stdout.split()) > BARE, done.stderr
    if has_numpy and subprocess.run([path, "-c", "import ipywidgets, plotly"], capture_output=True).returncode == 0:
        work(tmp_path, python=path)


@functools.cache
def needs_numpy(room):
    """Whether importing a room imports numpy or the block table, itself or through another room."""
    tree = ast.parse((ROOT / "helpers" / f"{room}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import) and {alias.name for alias in node.names} & {"numpy", "gguf"}:
            return True
        if isinstance(node, ast.ImportFrom):
            inner = (
                [node.module.split(".")[-1]] if node.module not in (None, "helpers") else [a.name for a in node.names]
            )
            if any((ROOT / "helpers" / f"{name}.py").exists() and needs_numpy(name) for name in inner):
                return True
    return room in ("gguf", "quant")


# --- packages that are missing ----------------------------------------------------------------

# Python imports `sitecustomize` by itself, in child processes too.
ABSENT = """
import importlib.util, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
plain_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] == {name!r} else plain_find(name, *more)
sys.meta_path.insert(0, Absent())
"""
SAY = """
from helpers import download, engine, figures, fit, hardware, memory, models, panels
spec = models.get(models.names()[0])
needs = memory.estimate(spec, "Q4_K_M", n_ctx=4096)
print("VERDICT", fit.verdict(needs, hardware.detect()).status)
try:
    print("WORKED", {act})
except Exception as error:
    print("SAID", type(error).__name__, error)
"""
MISSING = {  # package: what then says so; the words it must say
    "llama_cpp": ("engine.reserve(spec)", "llama-cpp-python"),
    "plotly": ("figures.need('plotly', 'draw')", "pip install plotly"),
    "ipywidgets": ("panels.fit_panel()", "pip install ipywidgets"),
    "anywidget": ("panels.compare_panel()", "anywidget"),
    "huggingface_hub": ("download.fetch('a/b', 'c.gguf', '0' * 40)", "pip install huggingface-hub"),
    "psutil": ("hardware.detect().ram_total_bytes", ""),
    "pynvml": ("hardware.detect().gpus", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_costs_only_what_needs_it(tmp_path, package):
    act, words = MISSING[package]
    hook = tmp_path / "absent"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(ABSENT.format(name=package), encoding="utf-8")
    environ = {"PYTHONPATH": str(hook)}
    said = work(tmp_path, after=SAY.format(act=act), environment=environ, may_miss=package in ("ipywidgets", "plotly"))
    assert "VERDICT" in said and "Traceback" not in said, said
    assert words in said and ("SAID" in said if words else "WORKED" in said), said


@pytest.mark.slow
def test_no_compiler_and_no_other_program(tmp_path):
    """An empty PATH: no compiler, no nvidia-smi, nothing. What start.py says then is in `test_start.py`."""
    after = "from helpers import doctor\nprint(*doctor.check(), sep='\\n')\n"
    said = work(tmp_path, environment={"PATH": str(tmp_path)}, after=after)
    assert "failed (" not in said


@pytest.mark.slow
def test_the_measure_can_fail(tmp_path):
    """A lesson that cannot run, and an exercise that comes out wrong, are seen."""
    with pytest.raises(AssertionError):
        work(tmp_path, before="sys.modules['helpers.units'] = None", lessons=("01",))
    wrong = "from helpers import units\nunits.GIB += 1\nunits.BITS_PER_BYTE = 9\nfrom helpers import check\n"
    wrong += "check.number('01-broken', 1, 2)\n"
    with pytest.raises(AssertionError):
        work(tmp_path, before=wrong, lessons=("01",))
