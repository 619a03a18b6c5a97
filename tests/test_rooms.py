"""The house: which room may import which, where each awkward package is allowed, and what no room may do.

A test that fails here asks a question, not for a longer list: does the line belong into another room? A new room gets
its row in `ARROWS` and in the room table of CONTRIBUTING.md.
"""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).resolve().parent.parent / "helpers"
ROOMS = sorted(path.stem for path in HELPERS.glob("*.py") if path.stem != "__init__")

ARROWS = {  # room: the rooms it may import, at the top or inside a function
    "units": "",
    "need": "",
    "child": "need",
    "progress": "",
    "architectures": "",
    "formats": "units",
    "models": "architectures",
    "mixes": "architectures formats",
    "planner": "architectures formats",
    "memory": "architectures formats mixes planner units",
    "fit": "architectures formats memory mixes models units",
    "quant": "formats gguf",
    "figures_numbers": "figures units",
    "panels_numbers": "figures figures_numbers need quant",
    "ghost": "architectures formats",
    "gguf": "architectures formats remote units",
    "hardware": "need units",
    "download": "bundle need units",
    "remote": "download need units",
    "check": "progress units",
    "commands": "memory",
    "claims": "memory models units",
    "report": "check commands figures fit memory progress units",
    "engine_worker": "architectures child ghost units",
    "engine": "architectures child formats gguf memory mixes need units",
    "template_child": "child units",
    "runner_child": "child need units",
    "speed_model": "architectures formats memory mixes units",
    "speed": "download gguf hardware need runner speed_model units",
    "quality_child": "child units",
    "quality": "child download formats gguf hardware memory need units",
    "ports": "units",
    "servers": "need ports runner stores units",
    "stores": "download fit formats gguf hardware memory units",
    "hub": "download fit formats gguf hardware memory need remote units",
    "bundle": "need units",
    "classroom": "download fit formats gguf hardware memory models need units",
    "work": "need progress runner units",
    "rag": "download need quality runner units work",
    "runner": "child download fit gguf hardware memory need units",
    "doctor": "child hardware need units",
    "figures": "fit formats memory need units",
    "figures_machine": "figures memory speed units",
    "figures_quality": "figures figures_numbers units",
    "figures_speed": "figures speed units",
    "panels_live": "figures figures_machine hardware need runner units",
    "panels_hub": "download figures hub need units",
    "explore": "architectures commands engine figures figures_speed fit formats hardware memory models need speed "
    "units",
    "panels": "commands download engine explore figures fit formats gguf hardware memory models need runner units",
}
MATHS = {"units", "formats", "architectures", "mixes", "planner", "memory", "fit", "models", "speed_model"}
WITH_NUMPY = {"gguf", "quant"}  # rooms that are about rows of numbers, and load numpy with them
FOR_MATHS = {"numpy", "gguf", "tomli"}  # tomli: the catalogue's format, before Python 3.11 knows it

AWKWARD = {  # package: the rooms that may import it, inside a function, when it is used
    "llama_cpp": {"engine_worker", "quality_child", "runner_child"},
    "psutil": {"hardware", "runner"},  # runner: the memory of its own child, where there is no /proc
    "pynvml": {"hardware"},
    "huggingface_hub": {"download", "hub", "remote"},  # whole files, what there is, and parts of files
    "plotly": {"figures"},
    "ipywidgets": {"explore", "panels", "panels_hub", "panels_live", "panels_numbers"},
    "anywidget": {"explore"},
    "openai": {"servers"},
    "ollama": {"servers", "stores"},  # stores only says the tool's name
    "faiss": {"rag"},
    "jinja2": {"template_child"},
}
PROGRAMS = {"bundle", "child", "doctor", "ghost", "hardware"}  # rooms that start other programs
FACTORS = {float(base**power) for base in (1000, 1024) for power in (1, 2, 3, 4)}


@functools.cache
def tree(room):
    return ast.parse((HELPERS / f"{room}.py").read_text(encoding="utf-8"))


def modules_of(node):
    """Full names of the modules that an import statement brings in; `helpers.x` for a room."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = f"helpers.{node.module or ''}".rstrip(".") if node.level else node.module
        return [f"helpers.{alias.name}" for alias in node.names] if module == "helpers" else [module]
    return []


@functools.cache
def imports(room, top_only=False):
    nodes = tree(room).body if top_only else ast.walk(tree(room))
    return {module for node in nodes for module in modules_of(node)}


def rooms_of(room, **only):
    return {module.split(".")[1] for module in imports(room, **only) if module.startswith("helpers.")} & set(ROOMS)


def packages_of(room, **only):
    roots = {module.split(".")[0] for module in imports(room, **only)}
    return roots - {"helpers", "__future__"} - set(sys.stdlib_module_names)


@functools.cache
def named_in_calls(room):
    """Text arguments of calls, such as `need("psutil", ...)`; asking `find_spec` is not importing."""
    calls = [node for node in ast.walk(tree(room)) if isinstance(node, ast.Call)]
    arguments = [word for node in calls if getattr(node.func, "attr", "") != "find_spec" for word in node.args]
    return {word.value for word in arguments if isinstance(word, ast.Constant) and isinstance(word.value, str)}


def test_every_room_is_in_the_map():
    assert set(ROOMS) - set(ARROWS) == set(), "a new room: add its row to ARROWS and to CONTRIBUTING.md"
    assert set(ARROWS) - set(ROOMS) == set(), "a room that is gone"


@pytest.mark.parametrize("room", ROOMS)
def test_arrows(room):
    allowed = set(ARROWS.get(room, "").split())
    assert rooms_of(room) <= allowed, f"{room} may not import {sorted(rooms_of(room) - allowed)}"


def test_arrows_point_inward_only():
    """The map has no circle, so every room can be read, tested and taken away without those outside of it."""
    left = {room: set(inner.split()) for room, inner in ARROWS.items()}
    while left:
        innermost = {room for room, inner in left.items() if not inner & set(left)}
        assert innermost, f"a circle among {sorted(left)}"
        left = {room: inner for room, inner in left.items() if room not in innermost}


def test_nobody_imports_the_panels():
    assert [room for room in ROOMS if "panels" in rooms_of(room)] == []


def test_no_room_uses_what_another_keeps_to_itself():
    """A name with an underscore in front may change at any time; what two rooms need has a name of its own."""
    found = []
    for room in ROOMS:
        for node in ast.walk(tree(room)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ROOMS:
                found += [f"{room}: {node.value.id}.{node.attr}"] * node.attr.startswith("_")
            elif isinstance(node, ast.ImportFrom) and node.level:
                found += [f"{room}: {node.module}.{name.name}" for name in node.names if name.name.startswith("_")]
    assert found == []


@pytest.mark.parametrize("package", AWKWARD)
def test_awkward_packages_have_their_rooms(package):
    found = set()
    for room in set(ROOMS) - {"need"}:
        called = {name.split(".")[0] for name in named_in_calls(room)}
        if package in packages_of(room) or package in called:
            found.add(room)
    assert found <= AWKWARD[package], f"{package} is imported by {sorted(found - AWKWARD[package])}"
    assert found, f"nobody imports {package}: take it out of the map"


@pytest.mark.parametrize("room", ROOMS)
def test_other_packages_are_imported_when_used(room):
    at_the_top = packages_of(room, top_only=True)
    assert at_the_top <= ({"numpy"} if room in WITH_NUMPY else set()), (
        f"{sorted(at_the_top)}: import inside the function"
    )


@pytest.mark.parametrize("room", sorted(MATHS))
def test_maths_rooms_need_only_numpy_and_the_block_table(room):
    assert packages_of(room) <= FOR_MATHS
    outside = {"os", "subprocess", "socket", "urllib", "ctypes", "shutil", "tempfile", "threading", "time", "random"}
    assert imports(room) & outside == set(), "a maths room looks at nothing but its arguments"
    if room != "models":  # it reads the catalogue
        assert "pathlib" not in imports(room)


@pytest.mark.parametrize("room", sorted(MATHS))
def test_maths_rooms_neither_print_nor_open(room):
    calls = [
        node.func.id for node in ast.walk(tree(room)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert {"print", "open", "input", "exec", "eval"} & set(calls) == set()


@pytest.mark.parametrize("room", ROOMS)
def test_only_some_rooms_start_programs(room):
    starts = "subprocess" in imports(room) or "multiprocessing" in imports(room)
    assert not starts or room in PROGRAMS


def number(node):
    """The value of a literal such as 1024, 1e9, 2**30 or 1024 * 1024; None for anything else."""
    try:
        value = eval(compile(ast.Expression(node), "literal", "eval"), {"__builtins__": {}})
    except Exception:
        return None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def conversions(module):
    """Source of every multiplication or division by a factor of bytes, or by 8 where bits or bytes are spoken of."""
    for node in ast.walk(module):
        if not isinstance(node, (ast.BinOp, ast.AugAssign)):
            continue
        left, right = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
        if isinstance(node.op, ast.LShift) and number(right) in (10, 20, 30, 40):
            yield ast.unparse(node)
        if isinstance(node.op, (ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)):
            for literal, other in ((right, left), (left, right)):
                said = ast.unparse(other).lower()
                speaks_of_bits = "bit" in said or "byte" in said
                if number(literal) in FACTORS or (number(literal) == 8 and speaks_of_bits and number(other) is None):
                    yield ast.unparse(node)


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"units"}))
def test_conversions_are_made_by_units_only(room):
    assert list(conversions(tree(room))) == [], "use units.GIB, units.show, units.bits_per_weight ..."


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("x = n_bytes / 1024**3", True),
        ("x = size / 1e9", True),
        ("x = 2**30 * n", True),
        ("x = n >> 3; y = n << 20", True),
        ("n //= 1_000_000", True),
        ("bits = n_bytes * 8", True),
        ("n_bytes = 8 * bits_per_weight", True),
        ("early = layer < n_layer // 8", False),
        ("x = 8 * units.MIB", False),
        ("limit = 2**18", False),
        ("y = 'n / 1024'", False),
        ("x = 3 * 1.2", False),
    ],
)
def test_the_check_for_conversions_can_fail(line, is_one):
    assert bool(list(conversions(ast.parse(line)))) == is_one


@pytest.mark.parametrize("room", ["panels", "explore"])
def test_panels_do_not_calculate(room):
    """Wiring only: text may be repeated, numbers are worked out further inside."""
    operations = (ast.Mult, ast.Div, ast.FloorDiv, ast.Pow)
    found = [
        ast.unparse(node)
        for node in ast.walk(tree(room))
        if isinstance(node, ast.BinOp) and isinstance(node.op, operations) and not isinstance(node.left, ast.List)
    ]
    assert found == []


LIGHT = """
import sys, importlib
def heavy():
    return sorted({heavy} & set(sys.modules))
import helpers
print("helpers", *heavy())
for room in {rooms}:
    importlib.import_module("helpers." + room)
    print(room, *heavy())
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=HELPERS.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_is_light():
    """Neither the package nor any room loads a heavy module before it is used (numpy: only the header reader)."""
    heavy = {*AWKWARD, "numpy", "gguf", "IPython", "requests", "httpx", "tqdm", "asyncio", "pandas"}
    rooms = [room for room in ROOMS if room not in (*WITH_NUMPY, "engine_worker", "runner_child")]
    for line in run(LIGHT.format(heavy=heavy, rooms=rooms)):
        room, *loaded = line.split()
        assert loaded == [], f"importing {room} loads {loaded}"
    assert run(LIGHT.format(heavy=heavy - {"numpy"}, rooms=["gguf"]))[-1] == "gguf"


ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError("No module named " + repr(name))
sys.meta_path.insert(0, Absent())
from helpers import fit, hardware, memory, models
laptop = hardware.Machine.pretend("laptop", ram_available_bytes=8_000_000_000)
for name in models.names():
    needs = memory.estimate(models.get(name), "Q4_K_M", n_ctx=8192)
    print(name, needs.total_bytes, fit.verdict(needs, laptop).status)
"""


def test_the_maths_runs_without_the_awkward_packages():
    from helpers import models

    absent = {*AWKWARD, "IPython", "jupyterlab", "tqdm_notebook", "requests", "httpx"}
    assert len(run(ALONE.format(absent=absent))) == len(models.names())
