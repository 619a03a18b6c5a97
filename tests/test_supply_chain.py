"""Where everything comes from: packages and models are named exactly; nothing new slips in; and the page of promises.

`test_packaging.py` holds the files of packages together and wants a reason for each dependency in CONTRIBUTING.md.
"""

import ast
import functools
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import download
from helpers.need import INSTALL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Imported without being asked for in pyproject.toml: the package that asks for it, and so brings it.
BROUGHT = {
    "jinja2": "jupyterlab",
    "jsonschema": "nbformat",
    "packaging": "jupyterlab",
    "tqdm": "huggingface-hub",
    "traitlets": "ipywidgets",
}
OPTIONAL = {"faiss"}  # lesson 13 goes on without it, and `need` says how to install it


def declared():
    """The names of all packages that pyproject.toml asks for, in one spelling."""
    lines = [*PROJECT["dependencies"], *(line for group in PROJECT["optional-dependencies"].values() for line in group)]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def third_party(tree):
    """The foreign modules that a file imports anywhere, or names in `need(...)`."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("need", "import_module", "__import__"):
                parts = ast.walk(node.args[0])
                names = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        for name in (name.split(".")[0] for name in names):
            if name.isidentifier() and name != "helpers" and name not in sys.stdlib_module_names:
                yield name


def package_of(module):
    return canonicalize_name(INSTALL.get(module, module))


def unaccounted(tree):
    return {m for m in third_party(tree) if package_of(m) not in declared() and m not in {*BROUGHT, *OPTIONAL}}


@functools.cache
def trees():
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "helpers").glob("*.py")}


def test_every_package_that_helpers_import_is_declared():
    assert {room: found for room, tree in trees().items() if (found := unaccounted(tree))} == {}


@pytest.mark.parametrize(
    "line", ["import requests", "def f():\n    from pandas import DataFrame", "need('scipy.stats', 1)"]
)
def test_an_undeclared_package_is_seen(line):
    assert unaccounted(ast.parse(line))


@functools.cache
def used():
    """The foreign modules that any room imports."""
    return {name for tree in trees().values() for name in third_party(tree)}


@pytest.mark.parametrize("module", BROUGHT)
def test_what_is_not_declared_is_really_brought(module):
    assert module in used(), f"nobody imports {module}: take it out of BROUGHT"
    assert canonicalize_name(BROUGHT[module]) in declared()
    asked = {canonicalize_name(Requirement(line).name) for line in metadata.requires(BROUGHT[module]) or ()}
    assert package_of(module) in asked, f"{BROUGHT[module]} no longer asks for {module}: declare it in pyproject.toml"


# --- models ----------------------------------------------------------------


def test_the_packaged_models_are_named_by_version_and_the_default_one_by_its_bytes():
    text = (ROOT / "start.py").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:TEST_)?MODEL[S]? \+?= \[(.*)\]", text, re.MULTILINE)
    assert len(lists) == 3 and all(re.search(r"==\d+(\.\d+)+\"", line) for line in lists)
    assert download.SHA256.fullmatch(download.DEFAULT_SHA256)
    assert download.DEFAULT_PACKAGE in lists[0]


def unpinned(text):
    """Places that take a model from wherever a branch points today."""
    branch = r"(?:main|master)"
    return re.findall(rf"resolve/{branch}|allow_unpinned\s*=\s*True|revision\s*=\s*[\"']{branch}[\"']", text)


def test_no_lesson_or_table_takes_a_model_from_a_branch():
    places = [*(ROOT / "lessons").glob("[0-9]*.py"), *(ROOT / "helpers").glob("*.py"), ROOT / "start.py"]
    places += (ROOT / "helpers" / "data").glob("*.toml")
    for path in places:
        lines = path.read_text(encoding="utf-8").splitlines()
        code = "\n".join(line for line in lines if not (path.name == "download.py" and "allow_unpinned=True" in line))
        assert unpinned(code) == [], path.name  # download.py only says the words, in its refusal
    assert unpinned("fetch(a, b, revision='main')") and unpinned("https://host/a/b/resolve/main/c.gguf")
    with pytest.raises(download.DownloadError, match="not a commit"):
        download.fetch("me/model", "a.gguf", "main")


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "yaml"}


def loads_code(tree):
    """Ways to run code that lies in a data file."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.split(".")[0] in FORBIDDEN)
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__"):
                yield called
            yield from ("allow_pickle" for word in node.keywords if word.arg == "allow_pickle" and word.value.value)


def test_no_room_runs_code_out_of_a_file():
    assert {room: found for room, tree in trees().items() if (found := list(loads_code(tree)))} == {}


@pytest.mark.parametrize(
    "line", ["import pickle", "from joblib import load", "eval(x)", "np.load(p, allow_pickle=True)"]
)
def test_running_code_out_of_a_file_is_seen(line):
    assert list(loads_code(ast.parse(line)))


# --- the audit ----------------------------------------------------------------


def test_the_weekly_run_audits_the_lock_and_every_exception_is_explained():
    text = (ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8")
    commands = re.findall(r"pip-audit .*", text)
    assert any("requirements.lock" in command and "--strict" in command for command in commands)
    security = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")
    for exception in re.findall(r"--ignore-vuln[ =](\S+)", text):
        assert re.search(rf"^- {re.escape(exception)}: \S", security, re.MULTILINE), f"SECURITY.md: why {exception}?"
    assert "pip-audit --strict --no-deps --disable-pip -r requirements.lock" in security


# --- the promises ----------------------------------------------------------------

PROMISES = ROOT / "lessons" / "promises.md"
NAMED = re.compile(r"`(test_\w+)::(test_\w+)`")


def promises(text):
    """[(a promise, its tests as (file, function))]; a promise is an item of a list, and may go over several lines."""
    items = re.findall(r"^- (.*(?:\n  \S.*)*)", text, re.MULTILINE)
    return [(item, NAMED.findall(item)) for item in items]


@functools.cache
def functions(name):
    """The test functions of a file; none when there is no such file."""
    path = ROOT / "tests" / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def broken(text):
    """What is wrong with a page of promises."""
    for promise, tests in promises(text):
        if not tests:
            yield f"no test is named for: {promise[:60]}"
        for name, function in tests:
            if function not in functions(name):
                yield f"there is no {name}.py::{function}"


def test_every_promise_has_a_test_and_every_named_test_exists():
    text = PROMISES.read_text(encoding="utf-8")
    assert len(promises(text)) >= 40 and list(broken(text)) == []


@pytest.mark.parametrize(
    "line", ["- We promise much.", "- A promise. `test_check::test_gone`", "- One. `test_no::test_x`"]
)
def test_a_promise_without_a_test_is_seen(line):
    assert list(broken(line))
