"""helpers.check and helpers.progress: what a learner is told, and that the record survives."""

import copy
import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from helpers import check, progress, units
from helpers.check import ____

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A learner's folder and a fresh kernel."""
    monkeypatch.delenv("HELPERS_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "_exercises", {})
    monkeypatch.setattr(progress, "_unsaved", {})
    monkeypatch.setattr(progress, "_told", set())
    return tmp_path


def kept(folder):
    return json.loads((folder / ".progress.json").read_text())


def kv(answer, **changes):
    settings = {"unit": "GiB", "ideas": {"K alone": lambda e: e / 2, "every head": 4.0}, "hints": ("one", "two")}
    return check.number("05-kv", answer, 1.0, **{**settings, **changes})


# Blanks


def test_a_blank_survives_whatever_a_cell_does_with_it():
    x = ____
    for value in (
        x + 1,
        1 - x,
        2 * x / 3,
        x**2,
        2**x,
        -x,
        abs(x),
        x // 2,
        7 % x,
        round(x, 2),
        x[0],
        x(1),
        x.real,
        x @ x,
    ):
        assert value is ____
    for value in (
        np.float64(2) * x,
        x * np.ones(3),
        np.sqrt(x),
        divmod(x, 2),
        "a" + x,
        [1] * x,
        sum([x, 3]),
        math.ceil(x),
    ):
        assert value is ____
    assert not any((x == x, x != 1, x < 1, x > 1, x >= 0, bool(x), 3 in x))
    assert [*x] == [] and len(x) == 0 and int(x) == 0 and list(range(x)) == [] and math.isnan(math.sqrt(x))
    assert np.isnan(np.array([x, 1.0])[0]) and np.asarray(x, dtype=int) == 0
    assert f"{x:.2f} {x!r} {x:>10} {x}" == " ".join(["____ (not filled in yet)"] * 4)
    assert max(x, 3) is x and min(3, x) == 3
    assert copy.deepcopy(x) is x and pickle.loads(pickle.dumps(x)) is x and len({x, x}) == 1
    assert not hasattr(x, "_repr_html_") and not hasattr(x, "_ipython_display_")


def test_what_counts_as_not_attempted():
    for answer in (____, None, ..., "", "____", [1, ____], {"n_ctx": ____}, ____ * 2, {"a": {"b": ____}}):
        assert check.is_blank(answer), answer
    for answer in (0, 0.0, False, "no", [], {}, math.nan, np.zeros(2)):
        assert not check.is_blank(answer), answer


# Numbers


def test_blank_wrong_and_right():
    assert kv(____).status == "not attempted"
    assert kv(3.3).status == "not yet" and kv(3.3).idea == ""
    assert kv(1.01).status == "correct"
    assert kv(1.03).status == "not yet"
    assert "too large" in str(kv(3.3)) and "too small" in str(kv(0.01))


IDEAS = {
    "bits instead of bytes": 8,
    "bytes instead of bits": 1 / 8,
    "GB instead of GiB": 1024**3 / 1000**3,
    "GiB instead of GB": 1000**3 / 1024**3,
    "1,000 times too large": 1000,
    "1,024 times too large": 1024,
    "1,073,741,824 times too small": 1 / 1024**3,
    "K without V": 0.5,
    "twice as much": 2,
    "sign": -1,
}


@pytest.mark.parametrize("words", IDEAS)
def test_the_usual_wrong_ideas_are_named(words):
    result = check.number("05-kv", 5.0 * IDEAS[words], 5.0, unit="GiB")
    assert result.status == "not yet" and words in result.idea and words in str(result)


def test_ratios_have_ideas_of_their_own():
    assert check.number("07-r", 1 / 1.25, 1.25, unit="times").idea == "the ratio upside down"
    assert check.number("07-r", 125, 1.25, unit="times").idea == "per cent instead of a fraction"
    assert check.number("07-r", 0.35, 35, unit="%").idea == "a fraction instead of per cent"
    assert check.number("07-r", 8 * 35, 35, unit="%").idea == ""


def test_prefix_ideas_follow_the_unit():
    assert check.number("05-kv", 104.8576, 100, unit="MB").idea == "MB instead of MiB"
    assert check.number("05-kv", 8 * 40, 40, unit="tokens/s").idea == ""
    assert check.number("05-kv", 8 * 40, 40, unit="GB/s").idea == "bits instead of bytes"


def test_the_lessons_ideas_come_first_and_in_order():
    assert kv(0.5).idea == "K alone"
    assert kv(4.0).idea == "every head"
    same = {"first": lambda e: 8 * e, "second": lambda e: 8 * e}
    assert kv(8.0, ideas=same).idea == "first"
    assert kv(8.1, ideas={"own": lambda e: 8 * e}).idea == "own"


def test_an_idea_that_is_right_by_chance_is_not_mentioned():
    assert kv(1.0, ideas={"the same": lambda e: e * 1.001}).correct
    assert kv(1.021, ideas={"nearly": lambda e: e * 1.01}).idea == ""
    assert check.number("05-kv", 1, 0, ideas={"inverted": lambda e: 1 / e, "one": 1}).idea == "one"


def test_zero_tolerance_asks_for_the_exact_number():
    assert kv(1, tolerance=0).correct and kv(1.0000001, tolerance=0).status == "not yet"
    assert check.number("05-kv", 0.1 + 0.2, 0.3, tolerance=0).correct


def test_answers_of_other_kinds_get_a_sentence():
    assert "bare number" in str(kv("1.0"))
    assert "blank further up" in str(kv(math.nan)) and "blank further up" in str(kv(10**400))
    for answer in (True, [1.0], {"a": 1}, 1j, object(), np.ones(3), lambda: 1):
        assert kv(answer).status == "not yet", answer
    for answer in (np.float32(1), np.int64(1), np.array(1.0)):
        assert kv(answer).correct, answer
    assert check.number("05-kv", 1, ____).status == "not attempted"


def test_mistakes_of_an_author_are_errors():
    with pytest.raises(ValueError, match="named like"):
        check.number("kv cache", 1, 1)
    with pytest.raises(ValueError, match="one finite number"):
        check.number("05-kv", 1, "8")
    with pytest.raises(ValueError, match="tuple of sentences"):
        check.number("05-kv", 1, 1, hints="only one")
    with pytest.raises(ValueError, match="words of its own"):
        check.choice("05-kv", "a", "c", ideas={"a": "same", "b": "same"})
    with pytest.raises(ValueError, match="differs from"):
        check.choice("05-kv", "a", "A", ideas={"a": "wrong"})


# Choices and open answers


def pick(answer):
    return check.choice(
        "07-lever", answer, "context", ideas={"quantization": "size first", "threads": "speed"}, why="Yes."
    )


def test_choice():
    assert pick(____).status == "not attempted"
    assert str(pick("Context ")) == "✓ correct: context. Yes."
    assert pick("quantization").idea == "size first" and pick("threads").idea == "speed"
    assert "write one of: context, quantization, threads" in str(pick("banana"))
    assert check.choice("07-b", True, True, ideas={False: "no"}).correct


def settings(answer):
    ideas = {
        "broken": lambda a: 1 / 0,
        "too long": lambda a: a["n_ctx"] > 8192,
        "too short": lambda a: a["n_ctx"] < 512,
    }
    samples = {"too long": {"n_ctx": 10**6}, "too short": {"n_ctx": 1}}
    return check.true("07-own", answer, lambda a: 512 <= a["n_ctx"] <= 8192, ideas=ideas, samples=samples)


def test_true():
    assert settings({"n_ctx": ____}).status == "not attempted"
    assert settings({"n_ctx": 4096}).correct
    assert settings({"n_ctx": 9000}).idea == "too long"
    assert "could not be tried out (TypeError" in str(settings(3))
    assert check.true("07-own", 1, False).status == "not yet"
    assert check.true("07-own", 1, lambda a: ____).status == "not attempted"


# Hints


def test_hints_come_rung_by_rung():
    assert "run the cell" in str(check.hint("05-kv"))
    assert 'check.hint("05-kv")' in str(kv(3.3))
    assert [str(check.hint("05-kv")) for _ in range(3)] == [
        "→ hint 1 of 2: one",
        "→ hint 2 of 2: two",
        "→ hint 2 of 2: two",
    ]
    kv(1.0, hints=())
    assert "has none" in str(check.hint("05-kv"))


# What is shown


class Text(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.words, self.tags = [], []
        self.feed(text)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_html_says_what_text_says_and_escapes():
    results = [
        kv(____),
        kv(3.3),
        kv(1.0),
        check.hint("05-kv"),
        check.predict("05-p", 3),
        kv("<script>alert(1)</script>"),
    ]
    for result in results:
        shown = Text(result._repr_html_())
        assert "".join(shown.words) == str(result) == repr(result)
        assert "script" not in shown.tags
        assert "color" not in result._repr_html_()
    assert len({str(result)[0] for result in results[:5]}) == 5, "each has a sign of its own"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8", "no-such-encoding"])
def test_a_terminal_without_the_signs_gets_plain_ones(monkeypatch, encoding):
    """Old Windows consoles and LANG=C: whatever a check says can be printed."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii" if encoding.startswith("no") else encoding)
    shown = terminal if not encoding.startswith("no") else types.SimpleNamespace(encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    said = [
        check.number("03-bits", ____, expected=8),
        check.number("03-bits", 8, expected=8, why="Größe → 日本"),
        check.choice("03-way", "\ud800 é", expected="a", ideas={"b": "an idea"}),
        check.predict("03-guess", "groß ✓"),
        check.hint("03-gone"),
        check.summary(),
        check.predictions(),
    ]
    for one in said:
        print(one, repr(one), file=terminal)
    terminal.flush()
    text = terminal.buffer.getvalue().decode(terminal.encoding)
    signs = ("○ not attempted", "✓ correct: 8.") if encoding == "utf-8" else ("- not attempted", "+ correct: 8.")
    assert all(sign in text for sign in signs) and "03-guess: predicted gro" in text
    assert ("→ 日本" in text) == (encoding == "utf-8")


def test_numbers_are_shown_short():
    assert check.show(units.GIB, "bytes") == "1,073,741,824 bytes (1.0 GiB)"
    assert check.show(0.1 + 0.2) == "0.3" and check.show(1234567.8) == "1,234,568" and check.show(-4.0) == "-4"
    assert check.show(10**5000) == "a number too large to show"
    assert len(check.show("x" * 10_000)) == 200


# Predictions


def test_predictions_are_kept_for_the_last_lesson():
    assert check.predict("07-weights", ____).status == "not attempted"
    assert check.predictions() == ()
    assert str(check.predict("07-weights", 8, unit="GB")) == "✎ noted: 8 GB. A prediction is never marked."
    check.predict("07-weights", 4, unit="GB")
    check.predict("01-word", "about half")
    result = check.outcome("07-weights", 5, unit="GB")
    assert "predicted 4 GB; it is 5 GB" in str(result) and "0.80 times" in str(result)
    first, second = check.predictions()
    assert (first.name, first.guess, first.outcome) == ("01-word", "about half", None)
    assert (second.guess, second.first, second.unit, second.outcome) == (4, 8, "GB", 5)
    assert str(second) == "07-weights: predicted 4 GB (at first 8 GB); it was 5 GB"


def test_an_outcome_without_a_prediction():
    assert "no prediction" in str(check.outcome("07-weights", 5, unit="GB"))
    assert check.outcome("07-weights", ____).status == "not attempted"
    assert check.predictions() == ()
    check.predict("07-weights", "no idea")
    assert "times" not in str(check.outcome("07-weights", 5, unit="GB"))


def test_any_guess_can_be_kept(folder):
    for guess in (
        np.float32(0.5),
        np.int64(3),
        math.nan,
        math.inf,
        10**5000,
        (1, [2]),
        {"a": {1}},
        1j,
        "\ud800",
        object(),
    ):
        assert check.predict("07-any", guess).status == "noted"
        assert kept(folder)["predictions"]["07-any"]


# Progress


def test_progress_keeps_the_best_and_counts_attempts(folder):
    for answer in (____, 3.3, 3.3, 0.5, 1.0, ____, 7.7):
        kv(answer)
    row = kept(folder)["exercises"]["05-kv"]
    assert (row["status"], row["attempts"], row["answer"], row["last"]) == ("correct", 4, 7.7, "not yet")
    kv(1.0)
    assert "It was correct before, with 1." in str(kv(____))
    check.hint("05-kv")
    assert str(check.summary()) == "05-kv: ✓ correct; attempts 5, hints 1"
    assert Text(check.summary()._repr_html_()).words[-4:] == ["05-kv", "✓ correct", "5", "1"]


def test_a_demonstration_leaves_no_trace(folder):
    kv(3.3, record=False)
    check.predict("07-weights", 8, record=False)
    assert list(folder.iterdir()) == [] and check.rehearse() == ()


def test_the_record_survives_the_kernel(folder):
    kv(1.0)
    check.predict("07-weights", 8)
    program = "from helpers import check; print(check.predictions()[0].guess, check.summary())"
    done = in_python(program, folder)
    assert done.stdout.strip() == "8 05-kv: ✓ correct; attempts 1, hints 0"


def in_python(program, folder, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    options = {"check": True, "capture_output": True, "text": True, "encoding": "utf-8", **options}
    return subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, **options)


def test_the_file_can_be_elsewhere(folder, monkeypatch):
    monkeypatch.setenv("HELPERS_PROGRESS", str(folder / "new" / "mine.json"))
    kv(1.0)
    assert json.loads((folder / "new" / "mine.json").read_text())["exercises"]
    monkeypatch.setenv("HELPERS_PROGRESS", str(folder / "new"))
    kv(1.0)
    assert (folder / "new" / ".progress.json").exists() and not (folder / ".progress.json").exists()


DAMAGED = [
    b"",
    b"{",
    b'{"exercises": {}',
    b"\xff\xfe\x00",
    b"[1, 2]",
    b'{"exercises": 3}',
    b'{"predictions": {"a": 1}}',
    b"[" * 10**5,
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_set_aside(folder, content, capsys):
    for n in (1, 2):
        (folder / ".progress.json").write_bytes(content)
        assert kv(1.0).correct
        assert kept(folder)["exercises"]["05-kv"]["status"] == "correct"
        assert (folder / f".progress.damaged-{n}.json").read_bytes() == content
        assert ".progress.json was damaged" in (said := capsys.readouterr().out) and f"damaged-{n}.json" in said


def test_strange_rows_and_later_versions_are_kept(folder):
    strange = {"version": 2, "later": [1], "exercises": {"05-kv": {"attempts": "x", "hints": [], "status": ["?"]}}}
    (folder / ".progress.json").write_text(json.dumps({**strange, "predictions": {"05-p": {}}}))
    check.summary(), check.predictions()
    kv(3.3), check.hint("05-kv")
    assert (kept(folder)["version"], kept(folder)["later"]) == (2, [1])
    assert kept(folder)["exercises"]["05-kv"]["hints"] == 1


READ_ONLY = """
import os
from helpers import check
os.environ["HELPERS_PROGRESS"] = ".progress.json"  # relative: nobody may not look into pytest's own folders
os.chmod(".", 0o555)
if os.getuid() == 0:
    os.setuid(65534)
for answer in (3, 1):
    print(check.number("05-kv", answer, 1.0, hints=("one", "two")).status)
check.predict("07-weights", 8)
print(check.hint("05-kv"), check.hint("05-kv"), check.predictions()[0].guess, check.summary())
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="Windows has no read-only folders of this kind")
@pytest.mark.parametrize("existing", [None, '{"exercises": {"05-kv": {"attempts": 6}}}', "damaged"])
def test_a_read_only_folder_is_said_once_and_works_in_memory(folder, existing):
    if existing:
        (folder / ".progress.json").write_text(existing)
    lines = in_python(READ_ONLY, folder).stdout.splitlines()
    folder.chmod(0o755)
    said = [line for line in lines if "until the kernel stops" in line]
    rest = [line for line in lines if line not in said]
    assert len(said) == 1 and ".progress.json" in said[0] and str(folder) not in said[0]
    attempts = 8 if existing and existing != "damaged" else 2
    assert rest[:2] == ["not yet", "correct"]
    assert rest[2] == f"→ hint 1 of 2: one → hint 2 of 2: two 8 05-kv: ✓ correct; attempts {attempts}, hints 2"
    assert [p.name for p in folder.iterdir()] == ([".progress.json"] if existing else [])
    assert not existing or (folder / ".progress.json").read_text() == existing


def test_an_unreadable_place_is_never_overwritten(folder, capsys):
    (folder / ".progress.json").mkdir()
    assert kv(3.3).status == "not yet" and kv(1.0).correct
    assert check.progress.read()["exercises"]["05-kv"]["attempts"] == 2
    assert capsys.readouterr().out.count("until the kernel stops") == 1


def test_a_full_disk_is_survived_and_made_up_for(folder, monkeypatch, capsys):
    kv(3.3)
    with monkeypatch.context() as broken:
        broken.setattr(progress.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        kv(0.5)
        assert kept(folder)["exercises"]["05-kv"]["attempts"] == 1
        assert "No space left" in capsys.readouterr().out
    check.predict("07-weights", 8)
    assert kept(folder)["exercises"]["05-kv"]["attempts"] == 2 and kept(folder)["predictions"]
    assert not list(folder.glob("*.draft"))


def test_a_folder_removed_under_the_kernel(folder, tmp_path_factory):
    gone = tmp_path_factory.mktemp("gone")
    program = "import os, pathlib\nos.rmdir(os.getcwd())\nfrom helpers import check\n"
    program += "print(check.number('05-kv', 1, 1).status)"
    if os.name == "nt":
        pytest.skip("Windows does not remove a folder in use")
    assert in_python(program, gone).stdout.splitlines()[-1] == "correct"


TWO_KERNELS = """
import sys
import types
from helpers import check
for n in range(40):
    check.predict(f"07-{sys.argv[1]}-{n}", n)
    check.number("07-both", n, -1)
"""


def test_two_kernels_lose_nothing(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kernels = [
        subprocess.Popen([sys.executable, "-c", TWO_KERNELS, who], cwd=folder, env=environment) for who in ("a", "b")
    ]
    assert [kernel.wait(120) for kernel in kernels] == [0, 0]
    assert len(check.predictions()) == 80
    assert 40 <= kept(folder)["exercises"]["07-both"]["attempts"] <= 80


ENDLESS = """
import itertools
from helpers import check
for n in itertools.count(1):
    check.predict(f"07-{n}", "x" * 150)
    print(n, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_in_the_middle_leaves_a_whole_file(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for wait_for in (1, 7, 20, 33):
        kernel = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=folder, env=environment, stdout=subprocess.PIPE)
        while int(kernel.stdout.readline()) < wait_for:
            pass
        kernel.send_signal(signal.SIGKILL)
        said = [int(line) for line in kernel.stdout] or [wait_for]
        kernel.stdout.close()
        kernel.wait(30)
        assert len(kept(folder)["predictions"]) >= said[-1]
    kv(1.0)
    assert not list(folder.glob("*damaged*"))


def test_a_leftover_draft_is_swept(folder):
    old, new = folder / ".progress.json.1.draft", folder / ".progress.json.2.draft"
    old.write_text("{"), new.write_text("{")
    os.utime(old, (0, 0))
    kv(1.0)
    assert not old.exists() and new.exists()


@pytest.mark.skipif(os.name == "nt", reason="fcntl is for POSIX")
def test_a_stopped_kernel_that_holds_the_lock_delays_but_does_not_block(folder, monkeypatch):
    import fcntl

    monkeypatch.setattr(progress, "LOCK_WAIT_S", 0.05)
    with (folder / ".progress.json.lock").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert kv(1.0).correct
    assert kept(folder)["exercises"]


# Rehearsal, which the notebook tests build on


def test_rehearse_tries_every_wrong_idea():
    kv(1.0), pick("context"), settings({"n_ctx": 600})
    before = json.dumps(kept(Path.cwd()))
    rows = check.rehearse()
    assert all(row.named for row in rows), [row for row in rows if not row.named]
    ideas = {name: {row.idea for row in rows if row.name == name} for name in ("05-kv", "07-lever", "07-own")}
    assert {"", "K alone", "every head", "bits instead of bytes"} <= ideas["05-kv"]
    assert ideas["07-lever"] == {"", "size first", "speed"}
    assert ideas["07-own"] == {"", "too long", "too short"}
    assert all(row.result.status == ("not yet" if row.idea else "not attempted") for row in rows)
    assert json.dumps(kept(Path.cwd())) == before


def test_rehearse_shows_an_idea_that_hides_behind_another():
    kv(1.0, ideas={"first": lambda e: 3 * e, "second": lambda e: 3 * e})
    assert [row.idea for row in check.rehearse() if not row.named] == ["second"]


def test_importing_check_is_light():
    program = "import sys, helpers.check; print(*(set(sys.modules) & {'numpy', 'IPython', 'ipywidgets', 'psutil'}))"
    assert in_python(program, ROOT).stdout.strip() == ""
