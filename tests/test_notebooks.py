"""The committed notebooks: what their lessons say, without outputs, and running to the end in both copies."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import alone
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(path.stem for path in (ROOT / "lessons").glob("[0-9][0-9]_*.py"))
COPIES = ("learner", "solved")
FREE = {"90_lab_memory"}  # free sliders: no exercises, no predictions
SECONDS = 300  # a cell that takes longer hangs

REHEARSE = """
import json as _json
from helpers import check as _check
print(_json.dumps([[r.name, r.idea, str(r.answer), r.result.status, r.named] for r in _check.rehearse()]))
"""


def notebook_path(lesson, copy):
    return ROOT.joinpath("notebooks", *(["solved"] if copy == "solved" else []), f"{lesson}.ipynb")


BOTH = [pytest.param(lesson, copy, id=f"{lesson}-{copy}") for lesson in LESSONS for copy in COPIES]


def model_is_here():
    """Whether the cells tagged `model` can run: the engine, and the packaged default model."""
    if not importlib.util.find_spec("llama_cpp"):
        return False
    from helpers import download

    try:
        return download.default_model().exists()
    except Exception:  # whatever is wrong with it, the model is not here
        return False


def execute(notebook, folder):
    """Run a notebook in `folder` to the first error: with this Python, away from the user's own Jupyter settings, and
    without a network. Whatever it asks of one, or offers on it, is an error."""
    watch = alone.Watch(folder)
    environment = {**os.environ, **watch.environment}
    environment |= {name: str(folder / ".jupyter") for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
    environment.pop("HELPERS_PROGRESS", None)
    client = NotebookClient(
        notebook,
        km=alone.kernel_manager(sys.executable),
        timeout=SECONDS,
        store_widget_state=True,  # False crashes nbclient when an Output widget gets output
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment, cleanup_kc=True)  # a manager of our own is not cleaned up unasked
    assert watch.foreign() == [], "no lesson may ask another computer for anything"
    return notebook


def runnable(path):
    """The notebook without the cells that this machine cannot run."""
    notebook = nbformat.read(path, as_version=4)
    missing = {"network"} | (set() if model_is_here() else {"model"})
    notebook.cells = [cell for cell in notebook.cells if not missing & set(cell.metadata.get("tags", ()))]
    return notebook


def printed(cell):
    """All text that a cell shows."""
    texts = []
    for output in cell.get("outputs", ()):
        texts.append(output.get("text", ""))
        texts += [str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def test_there_are_lessons():
    assert LESSONS, "no lesson in lessons/: the tests below would pass by having nothing to do"


def test_the_notebooks_are_what_the_lessons_say():
    command = [sys.executable, ROOT / "lessons" / "build.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("lesson, copy", BOTH)
def test_no_outputs_are_committed(lesson, copy):
    notebook = json.loads(notebook_path(lesson, copy).read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell["source"]


@pytest.mark.slow
@pytest.mark.parametrize("lesson, copy", BOTH)
def test_it_runs_to_the_end(lesson, copy, tmp_path):
    run_and_judge(notebook_path(lesson, copy), copy, tmp_path, free=lesson in FREE)


def run_and_judge(path, copy, folder, free=False):
    """Run one copy: the blank one leaves every exercise open, the solved one answers all; wrong ideas are named."""
    notebook = runnable(path)
    notebook.cells.append(nbformat.v4.new_code_cell(REHEARSE))
    execute(notebook, folder)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells[:-1]:
        kinds = {output.output_type for output in cell.get("outputs", ())}
        if "raises-exception" in cell.metadata.get("tags", ()):
            assert "error" in kinds, f"meant to fail, but did not:\n{cell.source}"
        else:
            assert "error" not in kinds, cell.source
            assert "Traceback (most recent call last)" not in printed(cell), f"{cell.source}\n{printed(cell)}"
        assert str(folder) not in printed(cell), f"shows a folder of this machine:\n{cell.source}"
    rows = json.loads(notebook.cells[-1].outputs[0].text)
    judge_record(folder, copy, {name for name, *_ in rows})
    judge_rehearsal(rows, free)


def judge_record(folder, copy, names):
    path = folder / ".progress.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"exercises": {}}
    expected = {"learner": "not attempted", "solved": "correct"}[copy]
    assert {name: row["status"] for name, row in record["exercises"].items()} == dict.fromkeys(names, expected)


def judge_rehearsal(rows, free):
    """Each exercise tells a blank from an answer, and names at least two wrong ideas."""
    names = {name for name, *_ in rows}
    assert names or free, "no exercise in this lesson"
    for name in sorted(names):
        tried = [(idea, answer, status, named) for of, idea, answer, status, named in rows if of == name]
        assert [status for idea, _, status, _ in tried if not idea] == ["not attempted"], name
        wrong = [row for row in tried if row[0]]
        assert len(wrong) >= 2, f"{name} knows fewer than two wrong ideas"
        hidden = [idea for idea, _, _, named in wrong if not named]
        assert not hidden, f"{name}: never named, because an earlier idea gives the same answer: {hidden}"


@pytest.mark.slow
@pytest.mark.parametrize("copy", COPIES)
def test_the_template_runs_to_the_end(copy, tmp_path):
    (tmp_path / "lessons").mkdir()
    for name, target in (("TEMPLATE.py", "42_template.py"), ("glossary.md", "glossary.md"), ("build.py", "build.py")):
        content = (ROOT / "lessons" / name).read_bytes()
        (tmp_path / "lessons" / target).write_bytes(content)
    subprocess.run([sys.executable, tmp_path / "lessons" / "build.py"], check=True, capture_output=True)
    work = tmp_path / "work"
    work.mkdir()
    run_and_judge(
        tmp_path.joinpath("notebooks", *(["solved"] if copy == "solved" else []), "42_template.ipynb"), copy, work
    )


# The judges themselves, seen red

OPENING = "from helpers import check\nfrom helpers.check import ____\n"
NUMBER = OPENING + "check.number('42-x', {answer}, 5, unit='GiB'{more})"
CALL = "import socket, contextlib\nwith contextlib.suppress(OSError), socket.socket() as s:\n"
CALL += "    s.settimeout(1)\n    s.connect(('192.0.2.1', 80))"
BAD = {
    "an error": ("learner", "1 / 0", (), "ZeroDivisionError"),
    "a fails cell that works": ("learner", "1", ("raises-exception",), "meant to fail, but did not"),
    "an exception printed by a panel": ("learner", "print('Traceback (most recent call last)')", (), "Traceback"),
    "a folder of this machine": ("learner", "import os; print(os.getcwd())", (), "shows a folder"),
    "a call to another computer": ("learner", CALL, (), "no lesson may ask another computer"),
    "no exercise": ("solved", "1", (), "no exercise in this lesson"),
    "an answer left in the learner copy": ("learner", NUMBER.format(answer=5, more=""), (), "42-x"),
    "a blank in the solved copy": ("solved", NUMBER.format(answer="____", more=""), (), "42-x"),
    "a solution that is wrong": ("solved", NUMBER.format(answer=7, more=""), (), "42-x"),
    "a hidden idea": ("solved", NUMBER.format(answer=5, more=", ideas={'a': 1, 'b': 1}"), (), "never named"),
    "no wrong ideas": ("solved", OPENING + "check.true('42-x', 1, True)", (), "fewer than two wrong ideas"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_bad_notebook_is_seen(case, tmp_path):
    copy, source, tags, words = BAD[case]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    with pytest.raises((AssertionError, CellExecutionError), match=words):
        run_and_judge(tmp_path / "bad.ipynb", copy, tmp_path)
