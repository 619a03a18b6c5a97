"""lessons/build.py: each rule is seen red once, and two builds give the same bytes."""

import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_build():
    spec = importlib.util.spec_from_file_location("lessons_build", ROOT / "lessons" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


build = load_build()

TITLE = """\
# %% [markdown]
# # A lesson
#
# - **Promise:** At the end the test passes.
# - **Needs:** nothing
# - **Minutes:** 20
"""
EXERCISE = """
# %%
from helpers.check import ____

# %%
# stub
answer = ____  # in bytes
# solution
answer = secret_formula(1)
# end solution
print(answer)

# %% tags=["solution"]
print("only solved")
"""


@pytest.fixture
def kit(tmp_path):
    """A kit with one good lesson; `kit(text)` writes another text into it."""
    (tmp_path / "lessons").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "lessons" / "glossary.md").write_text("words")

    def put(body="", title=TITLE, name="07_good.py"):
        (tmp_path / "lessons" / name).write_text(title + body, encoding="utf-8", newline="\n")
        return tmp_path

    put(EXERCISE)
    put.root = tmp_path
    return put


def run(root, *arguments):
    return build.main(list(arguments), root)


def sources(root, *parts):
    notebook = nbformat.read(root.joinpath("notebooks", *parts), as_version=4)
    return [cell.source for cell in notebook.cells]


def tree(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted((root / "notebooks").rglob("*")) if p.is_file()}


# Two copies


@pytest.mark.slow
def test_two_builds_are_byte_identical(kit):
    assert run(kit.root) == 0
    first = tree(kit.root)
    assert run(kit.root) == 0
    assert tree(kit.root) == first
    for path in first:
        (kit.root / path).unlink()
    program = "import pathlib, build; raise SystemExit(build.main([], pathlib.Path.cwd()))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONPATH": str(ROOT / "lessons")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=kit.root)
    assert tree(kit.root) == first


def test_notebooks_are_valid_and_bare(kit):
    run(kit.root)
    for path, content in tree(kit.root).items():
        assert content.endswith(b"}\n") and b"\r" not in content
        notebook = json.loads(content)
        nbformat.validate(notebook)
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        assert "widgets" not in notebook["metadata"]
        assert content.decode() == json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n", path
        for cell in notebook["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None


def test_the_learner_copy_has_the_stub_and_no_line_of_the_solution(kit):
    run(kit.root)
    learner, solved = sources(kit.root, "07_good.ipynb"), sources(kit.root, "solved", "07_good.ipynb")
    assert "answer = ____  # in bytes\nprint(answer)" in learner
    assert "answer = secret_formula(1)\nprint(answer)" in solved
    assert len(solved) == len(learner) + 1
    text = (kit.root / "notebooks" / "07_good.ipynb").read_text()
    for word in ("secret_formula", "only solved", "# stub", "# solution", "# end solution"):
        assert word not in text


def test_regions_may_be_indented_and_several():
    source = "def f():\n    # stub\n    return ____\n    # solution\n    return 8\n    # end solution\n"
    source += "# stub\na = ____\nb = ____\n# solution\na, b = 1, 2\n# end solution"
    assert build.choose_region(source, False) == ("def f():\n    return ____\na = ____\nb = ____", [])
    assert build.choose_region(source, True) == ("def f():\n    return 8\na, b = 1, 2", [])


def test_equal_cells_get_different_ids(kit):
    kit("\n# %%\nprint(1)\n\n# %%\nprint(1)\n")
    run(kit.root)
    ids = [cell["id"] for cell in json.loads((kit.root / "notebooks/07_good.ipynb").read_bytes())["cells"]]
    assert ids[1].endswith("-1") and ids[2] == ids[1][:-1] + "2"


def test_an_id_changes_only_with_its_own_cell(kit):
    kit("\n# %%\nprint(1)\n\n# %%\nprint(2)\n")
    before = [cell.id for cell in nbformat.reads(first_bytes(kit), 4).cells]
    kit("\n# %%\nprint(1)\n\n# %%\nprint(3)\n")
    after = [cell.id for cell in nbformat.reads(first_bytes(kit), 4).cells]
    assert before[:2] == after[:2] and before[2] != after[2]


def first_bytes(kit):
    return build.build_all(kit.root)[Path("notebooks/07_good.ipynb")].decode()


def test_tags_become_those_of_jupyter(kit):
    kit('\n# %% tags=["fails"]\n1 / 0\n\n# %% tags=["model", "network"]\n1\n')
    run(kit.root)
    cells = nbformat.read(kit.root / "notebooks/07_good.ipynb", 4).cells
    assert [cell.metadata.get("tags") for cell in cells[1:]] == [["raises-exception"], ["model", "network"]]


def test_comments_that_look_like_commands_stay_comments(kit):
    kit("\n# %%\n# cat is a word\n# why?\n# %time is one too\nprint('# %%')\n")
    run(kit.root)
    assert sources(kit.root, "07_good.ipynb")[1] == "# cat is a word\n# why?\n# %time is one too\nprint('# %%')"


def test_marker_lines_inside_a_string_are_text(kit):
    kit('\n# %%\ntext = """\n# %% [markdown]\n"""\n')
    run(kit.root)
    assert len(sources(kit.root, "07_good.ipynb")) == 2


def test_addresses_are_one_folder_deeper_in_the_solved_copy(kit):
    kit("\n# %% [markdown]\n# [words](../lessons/glossary.md#kv) [self](07_good.ipynb) [far](https://example.org)\n")
    run(kit.root)
    learner, solved = sources(kit.root, "07_good.ipynb")[1], sources(kit.root, "solved", "07_good.ipynb")[1]
    assert learner == "[words](../lessons/glossary.md#kv) [self](07_good.ipynb) [far](https://example.org)"
    assert solved == learner.replace("../lessons", "../../lessons")


# Rules

CODE = "\n# %%\n"
WORDS = "\n# %% [markdown]\n"
RED = {
    "unknown tag": ('\n# %% tags=["solutoin"]\n1\n', 8, "unknown tag 'solutoin'"),
    "jupyter's own tag": ('\n# %% tags=["raises-exception"]\n1\n', 8, "unknown tag"),
    "cell title": ("\n# %% Exercise\n1\n", 8, "only [markdown] and tags"),
    "raw cell": ("\n# %% [raw]\n# x\n", 8, "not raw"),
    "empty cell": (CODE + CODE + "1\n", 8, "empty"),
    "quoted markdown": ('\n# %% [markdown]\n"""\nx\n"""\n', 8, "comment lines"),
    "97 characters": (CODE + "x = 1  # " + "x" * 88 + "\n", 9, "97 characters; at most 96"),
    "13 lines": (CODE + "x = 1\n" * 13, 9, "13 lines; at most 12"),
    "26 cells": ("\n# %%\nx = 1\n" * 26, 84, "26 code cells; a lesson has at most 25"),
    "magic": (CODE + "%time 1\n", 9, "not plain Python"),
    "shell": (CODE + "!ls\n", 9, "not plain Python"),
    "stub without solution": (CODE + "# stub\nx = ____\n", 9, "is not followed by"),
    "solution without stub": (CODE + "x = ____\n# solution\nx = 1\n# end solution\n", 10, "out of order"),
    "open solution": (CODE + "# stub\nx = ____\n# solution\nx = 1\n", 9, "is not followed by"),
    "empty stub": (CODE + "# stub\n\n# solution\nx = 1\n# end solution\n", 11, "the stub above '# solution' is empty"),
    "empty solution": (CODE + "# stub\nx\n# solution\n# end solution\n", 12, "above '# end solution' is empty"),
    "foreign exercise": (CODE + 'check.number("08-kv", 1, 1)\n', 9, "named after its lesson: '07-...'"),
    "no alt text": (WORDS + "# text\n#\n# ![](../lessons/glossary.md)\n", 11, "has no alt text"),
    "far image": (WORDS + "# ![a cat](https://example.org/cat.png)\n", 9, "blank offline"),
    "missing file": (WORDS + "# ![a cat](../cat.png)\n", 9, "does not exist"),
    "missing lesson": (WORDS + "# [next](08_next.ipynb)\n", 9, "has no lesson lessons/08_next.py"),
    "sibling file": (WORDS + "# [x](images/x.png)\n", 9, "write images/x.png as ../notebooks/images/x.png"),
    "place on one machine": (WORDS + "# [x](/etc/passwd)\n", 9, "a place on one machine"),
    "reference link": (WORDS + "# [x][y]\n#\n# [y]: ../lessons/glossary.md\n", 9, "write the link to"),
    "html block": (WORDS + "# <div>x</div>\n", 9, "HTML is not shown"),
    "html inline": (WORDS + "# a <b>bold</b> word\n", 9, "HTML is not shown"),
    "table": (WORDS + "# | a | b |\n# |---|---|\n# | 1 | 2 |\n", 9, "a table is not plain"),
    "directive": (WORDS + "# :::{note}\n# x\n# :::\n", 9, "::: directive"),
    "fence directive": (WORDS + "# ```{note}\n# x\n# ```\n", 9, "is MyST"),
    "role": (WORDS + "# a {term}`token`\n", 9, "{role}"),
    "github box": (WORDS + "# > [!NOTE]\n# > x\n", 9, "[!NOTE] box"),
    "footnote": (WORDS + "# so they say[^1]\n", 9, "footnote"),
    "formula": (WORDS + "# it costs $5, or $6\n", 9, "formula"),
    "emoji": (WORDS + "# \N{ELECTRIC LIGHT BULB} an idea\n", 9, "emoji"),
    "small emoji": (WORDS + "# \N{WHITE HEAVY CHECK MARK} done\n", 9, "emoji"),
}


@pytest.mark.parametrize("case", RED, ids=str)
def test_a_broken_rule_is_named_with_its_line(kit, capsys, case):
    body, line, words = RED[case]
    kit(body)
    assert run(kit.root) == 1
    errors = capsys.readouterr().err
    assert any(e.startswith(f"lessons/07_good.py:{line}: ") and words in e for e in errors.splitlines()), errors
    assert not tree(kit.root), "nothing is written when a lesson is wrong"


TITLES = {
    "no title": ("# %%\n1\n", "the first cell is the title"),
    "second-level title": (TITLE.replace("# # A", "# ## A"), "the first cell is the title"),
    "no promise": (TITLE.replace("Promise", "Vow"), "**Promise:**"),
    "no needs": (TITLE.replace("- **Needs:** nothing", "x"), "**Needs:**"),
    "no minutes": (TITLE.replace("Minutes", "Time"), "**Minutes:**"),
    "long": (TITLE.replace("20", "90"), "from 5 to 40, not '90'"),
    "vague": (TITLE.replace("20", "about 20"), "from 5 to 40"),
    "text before the first cell": ('"""Doc."""\n\n' + TITLE, "begins with a title cell"),
    "nothing": ("", "begins with a title cell"),
}


@pytest.mark.parametrize("case", TITLES, ids=str)
def test_a_broken_title_is_named(kit, capsys, case):
    title, words = TITLES[case]
    kit(title=title)
    assert run(kit.root) == 1
    assert re.search(rf"lessons/07_good\.py:\d+: .*{re.escape(words)}", capsys.readouterr().err)


def test_all_problems_of_all_lessons_come_at_once(kit, capsys):
    kit(CODE + "x = 1\n" * 13 + '\n# %%\ncheck.true("01-x", 1, True)\n')
    kit(WORDS + "# <div>x</div>\n", name="08_bad.py")
    run(kit.root)
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("name", ["7_short.py", "07-dash.py", "07_Upper.py"])
def test_a_misnamed_lesson_is_named(kit, capsys, name):
    kit(name=name)
    assert run(kit.root) == 1
    assert f"lessons/{name}:1: a lesson is named NN_slug.py" in capsys.readouterr().err


def test_two_lessons_with_one_number_are_named(kit, capsys):
    kit(name="07_twin.py")
    assert run(kit.root) == 1
    assert "two lessons have the number 07" in capsys.readouterr().err


def test_a_long_region_counts_as_its_readers_see_it(kit):
    lines = "x = 1\n" * 11
    kit(f"\n# %%\n# stub\n{lines}# solution\n{lines}# end solution\nx\n")
    assert run(kit.root) == 0


# The command


def test_check_sees_one_changed_byte(kit, capsys):
    assert run(kit.root, "--check") == 1
    assert "notebooks/07_good.ipynb is missing. Type: python lessons/build.py --only 07" in capsys.readouterr().out
    run(kit.root)
    assert run(kit.root, "--check") == 0
    path = kit.root / "notebooks" / "solved" / "07_good.ipynb"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert run(kit.root, "--check") == 1
    words = "differs from its lesson. Type: python lessons/build.py --only 07"
    assert capsys.readouterr().out.strip() == f"notebooks/solved/07_good.ipynb {words}"
    assert path.read_bytes() == content, "--check writes nothing"
    assert run(kit.root, "--only", "07") == 0
    assert run(kit.root, "--check") == 0


def test_check_sees_a_changed_lesson(kit):
    run(kit.root)
    kit(EXERCISE + "\n# %%\nprint(1)\n")
    assert run(kit.root, "--check") == 1


def test_a_notebook_without_a_lesson_is_flagged_and_pruned_only_when_ours(kit, capsys):
    kit(name="08_gone.py")
    run(kit.root)
    foreign = kit.root / "notebooks" / "mine.ipynb"
    foreign.write_text('{"cells": []}')
    (kit.root / "lessons" / "08_gone.py").unlink()
    capsys.readouterr()
    assert run(kit.root, "--check") == 1
    said = capsys.readouterr().out
    for name in ("notebooks/08_gone.ipynb", "notebooks/solved/08_gone.ipynb"):
        assert f"{name} has no lesson. Type: python lessons/build.py --prune" in said
    assert "notebooks/mine.ipynb has no lesson. Write its lesson" in said
    assert run(kit.root) == 0
    assert (kit.root / "notebooks" / "08_gone.ipynb").exists(), "only --prune removes"
    assert run(kit.root, "--prune") == 0
    assert [p.name for p in (kit.root / "notebooks").rglob("*.ipynb") if "07" not in p.name] == ["mine.ipynb"]


def test_only_builds_one_lesson(kit, capsys):
    kit(name="08_other.py")
    assert run(kit.root, "--only", "08") == 0
    assert {path.name for path in tree(kit.root)} == {"08_other.ipynb"}
    assert run(kit.root, "--only", "09") == 1
    assert "there is no such lesson" in capsys.readouterr().err


def test_nothing_outside_notebooks_changes_and_no_draft_stays(kit):
    before = {p: p.read_bytes() for p in kit.root.rglob("*") if p.is_file()}
    run(kit.root)
    after = {p: p.read_bytes() for p in kit.root.rglob("*") if p.is_file()}
    new = set(after) - set(before)
    assert {p.relative_to(kit.root).parts[0] for p in new} == {"notebooks"}
    assert {p.suffix for p in new} == {".ipynb"}
    assert all(after[p] == content for p, content in before.items())


def test_a_failed_write_leaves_the_old_notebook_whole(kit, monkeypatch):
    run(kit.root)
    before = tree(kit.root)
    kit(EXERCISE + "\n# %%\nprint(1)\n")
    monkeypatch.setattr(build.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError):
        run(kit.root)
    assert tree(kit.root) == before


def test_an_unchanged_notebook_is_not_written_again(kit):
    run(kit.root)
    times = [path.stat().st_mtime_ns for path in (kit.root / "notebooks").rglob("*.ipynb")]
    run(kit.root)
    assert times == [path.stat().st_mtime_ns for path in (kit.root / "notebooks").rglob("*.ipynb")]


@pytest.mark.slow
def test_the_command_line_runs():
    program = subprocess.run([sys.executable, ROOT / "lessons" / "build.py", "--help"], capture_output=True, text=True)
    assert program.returncode == 0 and "--prune" in program.stdout


def test_doctests():
    assert doctest.testmod(build).failed == 0


# The files that authors start from


def test_the_template_is_a_lesson(kit):
    text = (ROOT / "lessons" / "TEMPLATE.py").read_text(encoding="utf-8")
    kit(title=text, name="42_template.py")
    assert run(kit.root, "--only", "42") == 0
    assert "1024**3" not in sources(kit.root, "42_template.ipynb")[-1]
    shown = {tag for tag in build.TAGS if f"`{tag}`" in text}
    assert shown == set(build.TAGS), "the template explains every tag"


def test_the_glossary_has_one_sentence_and_one_lesson_for_each_term():
    text = (ROOT / "lessons" / "glossary.md").read_text(encoding="utf-8")
    entries = [line for line in text.splitlines() if line.startswith("- ")]
    shape = re.compile(r"- \*\*(.+?)\*\*: (.+\.) \[(\d\d)\]\(\.\./notebooks/(\d\d)_[a-z_]+\.ipynb\)")
    matches = [shape.fullmatch(line) for line in entries]
    assert all(matches), [line for line, match in zip(entries, matches, strict=True) if not match]
    assert len(entries) >= 30
    terms = [match[1].strip("`").casefold() for match in matches]
    assert terms == sorted(set(terms))
    for match in matches:
        assert not re.search(r"[.!?] [A-Z]", match[2]), match[2]
        assert match[3] == match[4]


# The students' archive


def names_in(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def test_the_archive_holds_learner_copies_and_no_solution(kit, tmp_path, capsys):
    (kit.root / "helpers").mkdir()
    (kit.root / "helpers" / "units.py").write_text("GIB = 2**30")
    (kit.root / "helpers" / "__pycache__").mkdir()
    (kit.root / "helpers" / "__pycache__" / "units.pyc").write_bytes(b"x")
    before = tree(kit.root)
    assert run(kit.root, "--student-zip", str(tmp_path / "out" / "kit.zip")) == 0
    files = names_in(tmp_path / "out" / "kit.zip")
    assert set(files) == {"notebooks/07_good.ipynb", "helpers/units.py", "lessons/glossary.md"}
    assert b"secret_formula" not in files["notebooks/07_good.ipynb"] and b"____" in files["notebooks/07_good.ipynb"]
    assert b"only solved" not in files["notebooks/07_good.ipynb"]
    assert tree(kit.root) == before, "packing builds in memory"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kit.zip"]


def test_two_archives_are_byte_identical(kit, tmp_path):
    for name in ("one", "two"):
        assert run(kit.root, "--student-zip", str(tmp_path / name / "kit.zip")) == 0
    assert (tmp_path / "one" / "kit.zip").read_bytes() == (tmp_path / "two" / "kit.zip").read_bytes()


def test_a_solution_in_another_file_is_refused(kit, tmp_path, capsys):
    (kit.root / "README.md").write_text("Stuck?\n    answer = secret_formula(1)\n")
    assert run(kit.root, "--student-zip", str(tmp_path / "kit.zip")) == 1
    assert "secret_formula(1)" in (said := capsys.readouterr().err) and "README.md" in said
    assert not (tmp_path / "kit.zip").exists()


def test_a_solution_that_stays_in_the_learner_copy_is_refused(kit, tmp_path, monkeypatch, capsys):
    choose = build.choose_region
    monkeypatch.setattr(build, "choose_region", lambda source, solved: choose(source, True))
    assert run(kit.root, "--student-zip", str(tmp_path / "kit.zip")) == 1
    assert "notebooks/07_good.ipynb" in capsys.readouterr().err


def test_the_archive_must_be_called_zip(kit, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run(kit.root, "--student-zip", str(tmp_path / "notes.txt")) == 1
    assert "must end in .zip" in capsys.readouterr().err and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_kits_own_archive_gives_no_solution_away(tmp_path):
    assert build.main(["--student-zip", str(tmp_path / "kit.zip")]) == 0
    files = names_in(tmp_path / "kit.zip")
    secret = {path.stem: build.solution_lines(build.read_lesson(path)) for path in build.find_lessons()}
    assert all(secret[path] for path in secret if path != "90_lab_memory"), "every lesson has solutions"
    for lines in secret.values():
        assert list(build.leaks(files, lines)) == []
    assert not [name for name in files if "solved" in name or (name.startswith("lessons/") and name.endswith(".py"))]
    needed = {"start.py", "environment.yml", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"}
    needed |= {"helpers/__init__.py", "helpers/data/models.toml", "helpers/data/claims.toml", "lessons/glossary.md"}
    assert needed <= set(files)
    assert {f"notebooks/{path.stem}.ipynb" for path in build.find_lessons()} <= set(files)
