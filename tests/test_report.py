"""The decision report: one whole file, nothing in it that runs or loads, nothing overwritten."""

from html.parser import HTMLParser

import pytest

from helpers import check, fit, hardware, memory, models, report, units
from helpers.check import ____

EVIL = "<script>alert(1)</script><img src=x onerror=y>\"'&"
LAPTOP = hardware.Machine.pretend("laptop", ram_available_bytes=8 * units.GIB, ram_total_bytes=16 * units.GIB)
NEEDS = memory.estimate(models.get("qwen3-8b"), "Q4_K_M", n_ctx=8192)


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_PROGRESS", str(tmp_path / "record.json"))


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in ("meta", "br", "img", "rect", "path", "line", "circle", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_it_says_what_was_chosen():
    text = report.document(NEEDS, LAPTOP, recommended=fit.recommend(LAPTOP, most=2), use="chat", why="for my notes")
    for words in ("Qwen3 8B", "Q4_K_M", "8,192 tokens", "for my notes", "Privacy", "apache-2.0", "num_ctx 8192"):
        assert words in text, words
    assert fit.judge(NEEDS, LAPTOP).sentence in text
    assert "8,192 cells x 36 layers" in text, "the arithmetic"
    for choice in fit.recommend(LAPTOP, most=2):
        assert choice.spec.title in text


def test_what_was_foreseen_stands_apart_from_what_was_measured():
    text = report.document(NEEDS, LAPTOP, measurements={"speed": "5"}, estimates={"speed (formula)": "4 (3 to 5)"})
    measured, foreseen = text.index("Measured on this computer"), text.index("Predicted, or published by others")
    assert measured < text.index("speed: 5") < foreseen < text.index("speed (formula): 4 (3 to 5)")


def test_it_works_with_nothing_recorded():
    text = report.document(NEEDS, LAPTOP)
    for words in ("No prediction was written down", "No exercise has been answered", "No price", "Nothing yet"):
        assert words in text


def test_it_works_with_blanks_left_open():
    text = report.document(NEEDS, LAPTOP, title=____, author=____, use=____, why=____, cloud=report.cost(____, 3))
    assert "____" not in text and "No price was entered" in text


def test_predictions_stand_beside_what_came_out():
    check.predict("07-long", 8, unit="GB")
    check.outcome("07-long", 5.2, unit="GB")
    check.predict("07-rule", 3, unit="x")
    text = report.document(NEEDS, LAPTOP)
    assert "<td>07-long</td><td>8 GB</td><td>5.2 GB</td><td>1.54</td>" in text
    assert "<td>07-rule</td><td>3 x</td><td>not seen yet</td><td></td>" in text


def test_a_changed_guess_shows_the_first_one():
    check.predict("07-long", 8, unit="GB")
    check.predict("07-long", 5, unit="GB")
    assert "5 GB (at first 8 GB)" in report.document(NEEDS, LAPTOP)


@pytest.mark.parametrize(("guess", "outcome", "units_"), [("x", 2, "GB"), (True, 2, "GB"), (2, 0, "GB"), (2, 2, "GiB")])
def test_what_cannot_be_compared_has_no_ratio(guess, outcome, units_):
    assert report.guess_ratio(check.Prediction("07-x", guess, "GB", guess, outcome, units_)) == ""


def test_exercises_are_summed_up():
    check.number("07-x", 5, 5, unit="GB")
    assert "07-x" in report.document(NEEDS, LAPTOP) and "correct" in report.document(NEEDS, LAPTOP)


def test_a_speed_of_lesson_08_is_taken_up():
    assert report.measured() == {}
    check.outcome("08-speed", 42.5, unit="tokens/s")
    assert list(report.measured().values()) == [42.5]
    assert "42.5 tokens/s" in report.document(NEEDS, LAPTOP)


def test_whatever_people_write_stays_text():
    check.predict("07-x", EVIL, unit=EVIL)
    check.outcome("07-x", EVIL, unit=EVIL)
    check.true("07-y", EVIL, test=lambda answer: False)
    text = report.document(
        NEEDS,
        LAPTOP,
        title=EVIL,
        author=EVIL,
        use=EVIL,
        why=EVIL,
        recommended=[EVIL],
        measurements={EVIL: EVIL},
        estimates={EVIL: EVIL},
        cloud=report.Cost(1, 1, 1, 1, 1, currency=EVIL),
    )
    found = Elements(text)
    assert not {"script", "img", "iframe", "link", "object"} & set(found.names)
    assert not [name for name in found.attributes if name.startswith("on")]
    assert text.count("&lt;script&gt;") >= 8


def test_a_model_of_a_file_is_text_too():
    spec = models.get("qwen3-8b")
    evil = type(spec)(**{**vars(spec), "title": EVIL, "license": EVIL, "languages": EVIL, "name": EVIL})
    text = report.document(memory.estimate(evil, "Q4_K_M"), LAPTOP)
    assert "script" not in Elements(text).names


def test_it_needs_nothing_else():
    text = report.document(NEEDS, LAPTOP)
    assert report.POLICY in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "src=" not in text and "@import" not in text and text.count("url(") == text.count("url(#")
    assert Elements(text).open == [], "an element that is never closed"


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "report.html").write_text("my own work")
    first, second = report.html(NEEDS, LAPTOP, folder), report.html(NEEDS, LAPTOP, folder)
    assert (folder / "report.html").read_text() == "my own work"
    assert [first.name, second.name] == ["report-2.html", "report-3.html"]
    assert first.read_text(encoding="utf-8").endswith("</html>\n")
    assert sorted(path.name for path in folder.iterdir()) == ["report-2.html", "report-3.html", "report.html"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        report.html(NEEDS, LAPTOP, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_context_of_0_is_the_models():
    text = report.document(memory.estimate(models.get("qwen3-8b"), "Q4_K_M", n_ctx=0), LAPTOP)
    assert "40,960 tokens" in text and "<td>0 tokens" not in text


def test_cost_without_a_speed_says_so():
    text = str(report.Cost(3, 50_000, currency="EUR"))
    assert "= 4.50 EUR a month" in text and "not known" in text


def test_cost_says_when_a_day_is_too_short():
    assert "more than a day" in str(report.Cost(1, 10_000_000, tokens_per_second=1))


@pytest.mark.parametrize("price", [-1, float("inf"), float("nan"), "3", True, None, ____])
def test_a_price_that_cannot_be_is_refused(price):
    with pytest.raises(ValueError, match="price_per_million is"):
        report.Cost(price, 1)
