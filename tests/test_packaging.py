"""The files that say what is installed agree with each other."""

import contextlib
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOL = PYPROJECT["project"], PYPROJECT["tool"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
spec = importlib.util.spec_from_file_location("start_for_packaging", ROOT / "start.py")
start = importlib.util.module_from_spec(spec)
spec.loader.exec_module(start)


def by_name(lines):
    """{name: range} of requirement lines, in one spelling, without the markers."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): item.specifier for item in requirements}


def conda_lines():
    """The conda packages of environment.yml; the file keeps to one quoted or plain name a line."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies:\n(.*?)^  - pip:", text, re.MULTILINE | re.DOTALL).group(1)
    return [line.strip().removeprefix("- ").strip('"') for line in listed.splitlines()]


def lock_lines():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked(python, system="linux"):
    """{name: version} that the lock gives for one Python."""
    environment = {"python_version": python, "sys_platform": system}
    chosen = [item for item in lock_lines() if item.marker is None or item.marker.evaluate(environment)]
    names = [canonicalize_name(item.name) for item in chosen]
    assert len(names) == len(set(names)), "two lines of the lock hold at once"
    return {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in chosen}


def test_environment_yml_has_the_names_and_ranges_of_pyproject():
    conda = by_name(conda_lines())
    assert str(conda.pop("pip")) == ""
    assert conda.pop("python") == Requirement(f"python{PROJECT['requires-python']},<3.14").specifier
    wanted = by_name(PROJECT["dependencies"] + EXTRAS["engine"])
    del wanted["ollama"]  # conda-forge's package of that name is the server; pip brings the client with the kit
    assert conda == wanted


def test_environment_yml_quotes_every_range():
    """An unquoted 3.10 is the number 3.1 in YAML."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert not re.search(r"^[^#\"]*[<>=]", text, re.MULTILINE)


def test_workflows_quote_python_versions():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for versions in re.findall(r"python: \[(.*)\]", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r'"3\.\d+"(, "3\.\d+")*', versions), f"{path.name}: {versions}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_every_direct_dependency_inside_its_range(python):
    versions = locked(python)
    for line in PROJECT["dependencies"] + EXTRAS["engine"] + EXTRAS["app"] + EXTRAS["dev"]:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}: {version} is locked"


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_the_lock_knows_what_only_other_systems_need(system):
    only_there = set(locked("3.12", system)) - set(locked("3.12"))
    assert only_there == {"win32": {"colorama", "pywinpty"}, "darwin": {"appnope"}}[system]


def test_the_lock_holds_what_is_installed_here_or_a_neighbour_of_it():
    """Everything that an installed package of the kit asks for has its line."""
    from importlib import metadata

    versions = locked(f"{sys.version_info[0]}.{sys.version_info[1]}", sys.platform)
    for name in versions:
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name in {canonicalize_name(Requirement(line).name) for line in start.MODEL + start.TEST_MODELS}:
            continue  # installed without what they ask for
        for line in asked:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in versions, f"{name} asks for {line}"


def test_the_lock_needs_no_late_bug_fix_of_python():
    """A system's own Python may be the 3.11.2 of years ago; soupsieve 4 wants 3.11.5."""
    from importlib import metadata

    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for name, version in locked(python, sys.platform).items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            package = metadata.distribution(name)
            wanted = SpecifierSet(package.metadata["Requires-Python"] or "")
            assert package.version != version or wanted.contains(f"{python}.0"), f"{name} {version} wants {wanted}"


def test_the_lock_is_exact_and_names_no_address():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and "--" not in text.replace("--constraint", "") and "@" not in text
    assert all(re.fullmatch(r"==[\w.]+", str(item.specifier)) for item in lock_lines())


def test_the_lock_has_the_model_packages_of_start_py():
    versions = locked("3.12")
    for line in start.MODEL + start.TEST_MODELS:
        name, version = line.split("==")
        assert versions[name] == version


@pytest.mark.parametrize("group", ["dependencies", "engine", "app", "dev"])
def test_start_py_reads_pyproject_as_a_toml_reader_does(group):
    assert start.needs(ROOT, group) == (PROJECT["dependencies"] if group == "dependencies" else EXTRAS[group])


def test_contributing_says_why_each_dependency_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.lower() for line in text.splitlines() if line.startswith("|")]
    for line in PROJECT["dependencies"] + EXTRAS["engine"] + EXTRAS["app"] + EXTRAS["dev"]:
        name = Requirement(line).name
        assert any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", row) for row in rows), f"no table row: {name}"


def test_the_licence_is_the_apache_licence_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_package_brings_its_data():
    assert TOOL["setuptools"] == {"packages": ["helpers"], "package-data": {"helpers": ["data/*", "data/texts/*"]}}
    beside_the_code = [path for path in (ROOT / "helpers").rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert {path.parent for path in beside_the_code} <= {ROOT / "helpers" / "data", ROOT / "helpers" / "data" / "texts"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_the_ci_script_can_be_run():
    for name in ("run", "lock"):
        assert os.access(ROOT / ".ci" / name, os.X_OK), f".ci/{name} is not executable"
