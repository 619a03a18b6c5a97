"""`helpers.figures_speed`: drawings as long as their numbers, each with its table and its text, nothing unescaped."""

import dataclasses
import math
import re
import xml.etree.ElementTree as xml

import pytest

from helpers import figures_speed, models, speed, speed_model

EVIL = "<script>alert('x')</script>&\""


def prediction(read_bytes=100_000_000, read=0.003, unpack=0.002, wait=0.003, choose=0.001, look=0.001):
    """A prediction whose terms are these seconds, with a band around what they add up to."""
    likely = 1 / (read + unpack + wait + choose + look)
    band = speed_model.Band(0.8 * likely, likely, 1.25 * likely)
    return speed_model.Prediction(
        "a model", band, speed_model.Band(500, 600, 700), read, unpack, wait, choose, look, read_bytes, 128
    )


SMALL, LARGE = prediction(), prediction(5_000_000_000, 0.2, 0.15, 0.001, 0.001, 0.02)
SWEEP = {1: speed.Spread((70, 60, 75)), 2: 95.0, 4: 2.1}


def drawing(text):
    return xml.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def rows(text):
    """The cells of the table's rows, without its head."""
    found = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in found if "<td" in row]


def texts(svg):
    return [element.text for element in svg.iter("text")]


ALL = {
    "terms": lambda: figures_speed.terms_html({EVIL: SMALL, "b": LARGE}),
    "shares": lambda: figures_speed.terms_html({EVIL: SMALL, "b": LARGE}, shares=True),
    "ceilings": lambda: figures_speed.ceilings_html({EVIL: SMALL, "b": LARGE}, {EVIL: 90}),
    "bands": lambda: figures_speed.bands_html({EVIL: SMALL, "b": LARGE}, {EVIL: 90}, title=EVIL),
    "threads": lambda: figures_speed.threads_html(SWEEP, 2),
}


@pytest.mark.parametrize("name", ALL)
def test_each_has_a_text_for_screen_readers_and_a_table(name):
    text = ALL[name]()
    svg = drawing(text)
    assert svg.get("role") == "img"
    assert len(svg.get("aria-label")) > 40
    assert svg.find("title").text == svg.get("aria-label")
    assert rows(text)
    assert 'scope="col"' in text
    assert "<script>" not in text
    assert len(text) < 12_000


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_drawn_outside(name):
    svg = drawing(ALL[name]())
    width, height = map(float, svg.get("viewBox").split()[2:])
    for box in svg.iter("rect"):
        if box.get("x"):
            x, y, w, h = (float(box.get(side)) for side in ("x", "y", "width", "height"))
            assert x >= 0 and x + w <= width and y >= 0 and y + h <= height
            assert w >= 0 and h >= 0
    for line in svg.iter("line"):
        assert all(-1 <= float(line.get(end)) <= width for end in ("x1", "x2"))
        assert all(-1 <= float(line.get(end)) <= height for end in ("y1", "y2"))


# where the time goes


def pieces(svg):
    """[(words, width)] of the pieces of all bars."""
    return [(g.find("title").text, float(g.find("rect").get("width"))) for g in svg.findall("g")]


def test_pieces_are_as_long_as_their_seconds():
    found = pieces(drawing(figures_speed.terms_html({"a": SMALL, "b": LARGE})))
    said = ["read weights: 3.0 ms", "unpack weights: 2.0 ms", "threads wait: 3.0 ms", "choose a token: 1.0 ms"]
    assert [words for words, _ in found[:5]] == [*said, "look back: 1.0 ms"]
    widths = [width for _, width in found]
    unit = widths[5] / 0.2
    seconds = (0.003, 0.002, 0.003, 0.001, 0.001, 0.2, 0.15, 0.001, 0.001, 0.02)
    assert widths == pytest.approx([unit * n for n in seconds], abs=0.1)


def test_shares_make_all_bars_equally_long():
    widths = [width for _, width in pieces(drawing(figures_speed.terms_html({"a": SMALL, "b": LARGE}, shares=True)))]
    assert sum(widths[:5]) == pytest.approx(sum(widths[5:]), abs=0.3)
    assert widths[0] / sum(widths[:5]) == pytest.approx(0.3, abs=0.01)


def test_every_term_of_a_prediction_is_drawn():
    """The terms have places of their own here; a new one in `speed` must not be left out."""
    calibration = speed.Calibration(28_000_000_000, 1.0, 1.0, 2, "assumed")
    found = speed.predict(models.get("qwen3-30b-a3b"), "Q4_K_M", where=calibration)
    assert [getattr(found, term) for term in figures_speed.TERMS] == list(found.terms().values())
    assert sum(getattr(found, term) for term in figures_speed.TERMS) == pytest.approx(found.seconds)


def test_the_table_of_terms_says_the_same():
    assert rows(figures_speed.terms_html({"a": SMALL}))[0] == [
        "a", "3.0 ms", "2.0 ms", "3.0 ms", "1.0 ms", "1.0 ms", "10.0 ms", "100 (80 to 125) tokens/s",
    ]  # fmt: skip


def test_narrow_pieces_carry_a_letter_or_nothing():
    said = texts(drawing(figures_speed.terms_html({"a": prediction(1, 1.0, 0.05, 0.001, 0.001, 0.001)})))
    assert "read weights 1,000 ms" in said
    assert "u" in said
    assert not {"w", "t", "b"} & set(said)  # a thousandth of the bar has no room for a letter; the table has it
    assert "r: read weights, u: unpack weights, w: threads wait, t: choose a token, b: look back" in said


def test_a_prediction_in_a_sentence():
    text = figures_speed.prediction_html(SMALL, LARGE)
    said = "About 100 (80 to 125) tokens/s. Of the 10.0 ms of a token: 30% read weights, 20% unpack weights"
    assert said in text and "Prompt: 600 tokens/s." in text
    assert [row[0] for row in rows(text)] == ["context full", "context empty"]
    noted = dataclasses.replace(SMALL, prompt=None, assumptions=(EVIL,))
    text = figures_speed.prediction_html(noted)
    assert "Prompt" not in text and "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "seconds, said", [(1.5943, "1,594 ms"), (0.0123, "12.3 ms"), (0.0004, "0.40 ms"), (0, "0.00 ms")]
)
def test_milliseconds_in_words(seconds, said):
    assert figures_speed._milliseconds(seconds) == said


# three ceilings


def lines(svg):
    """[[(x, y), ...]] of the ceilings, in their order."""
    found = [line.get("points").split() for line in svg.findall("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line] for line in found]


def test_memory_and_cores_fall_and_waiting_is_level():
    many = {str(n): prediction(n, n / 25e9, n / 50e9, 0.001) for n in (10**8, 10**9, 10**10)}
    memory, cores, waiting = lines(drawing(figures_speed.ceilings_html(many)))
    for falling in (memory, cores):
        (x1, y1), (x2, y2), (x3, y3) = falling
        assert (y2 - y1) / (x2 - x1) == pytest.approx((y3 - y2) / (x3 - x2), abs=0.01)
        assert y1 < y2  # SVG counts downwards
    assert len({y for _, y in waiting}) == 1
    assert memory[0][1] > waiting[0][1] and memory[-1][1] > waiting[-1][1]  # waiting is no limit here


def test_the_band_lies_below_all_ceilings():
    svg = drawing(figures_speed.ceilings_html({"a": SMALL}))
    (box,) = [rect for rect in svg.iter("rect") if rect.get("fill") == figures_speed.BAND]
    middle = float(box.get("y")) + float(box.get("height")) / 2
    assert all(middle > y for line in lines(svg) for _, y in line)


def test_names_of_models_that_are_nearly_alike_stand_below_each_other():
    names = ("a name that is long", "another long name")
    twins = {name: prediction(100_000_000 + n) for n, name in enumerate(names)}
    heights = [float(t.get("y")) for t in drawing(figures_speed.ceilings_html(twins)).iter("text") if t.text in names]
    assert heights[1] - heights[0] >= 15


def test_what_costs_nothing_sets_no_ceiling():
    text = figures_speed.ceilings_html({"a": prediction(unpack=0.0)})
    assert len(lines(drawing(text))) == 2
    assert rows(text)[0][3] == "-"


def test_the_table_of_ceilings():
    table = rows(figures_speed.ceilings_html({"large": LARGE, "small": SMALL}, {"small": 90}))
    assert table == [
        ["small", "100.00 MB", "333", "500", "333", "100 (80 to 125)", "90 tokens/s", "0.27"],
        ["large", "5.00 GB", "5.0", "6.7", "1,000", "2.7 (2.2 to 3.4)", "-", "-"],
    ]
    assert all(len(row) == 6 for row in rows(figures_speed.ceilings_html({"a": SMALL})))


# bands


def test_a_measurement_stands_where_its_number_is():
    svg = drawing(figures_speed.bands_html({"a": SMALL}, {"a": 80.0}))
    (box,) = [rect for rect in svg.iter("rect") if rect.get("fill") == figures_speed.BAND]
    (mark,) = [path for path in svg.iter("path") if path.get("fill") == figures_speed.SEEN]
    x = float(mark.get("d")[1:].split()[0])
    assert x == pytest.approx(float(box.get("x")), abs=0.2)  # 80 is the lower end of the band


def test_equal_factors_are_equally_long():
    svg = drawing(figures_speed.bands_html({"a": SMALL, "b": LARGE}))
    first, second = (float(r.get("width")) for r in svg.iter("rect") if r.get("fill") == figures_speed.BAND)
    assert first == pytest.approx(second, abs=0.2)


@pytest.mark.parametrize("reached, inside", [(79, "no"), (80.1, "yes"), (100, "yes"), (126, "no")])
def test_the_table_says_whether_the_band_was_right(reached, inside):
    table = rows(figures_speed.bands_html({"a": SMALL, "b": LARGE}, {"a": reached}))
    assert table[0][3:] == [f"{100 / reached:.2f}", inside]
    assert table[1][2:] == ["-", "-", "-"]


def test_a_spread_is_shown_with_its_ends():
    assert (
        rows(figures_speed.bands_html({"a": SMALL}, {"a": speed.Spread((70, 90, 95))}))[0][2]
        == "90 (70 to 95) tokens/s"
    )


def test_bands_without_measurements_have_no_empty_columns():
    text = figures_speed.bands_html({"a": SMALL.answer})
    assert all(len(row) == 2 for row in rows(text))
    assert "measured" not in text.replace("Predicted, and measured", "")


# threads


def test_bars_are_as_high_as_their_speed():
    svg = drawing(figures_speed.threads_html(SWEEP, 2))
    heights = [float(g.find("rect").get("height")) for g in svg.findall("g")]
    assert [h / heights[1] for h in heights] == pytest.approx([70 / 95, 1, 2.1 / 95], abs=0.01)


def test_bars_beyond_what_one_may_use_are_hatched_and_the_line_is_between():
    svg = drawing(figures_speed.threads_html(SWEEP, 2))
    bars = [g.find("rect") for g in svg.findall("g")]
    assert [g.find("path") is not None for g in svg.findall("g")] == [False, False, True]
    (border,) = [float(line.get("x1")) for line in svg.iter("line") if line.get("stroke-dasharray")]
    assert float(bars[1].get("x")) + float(bars[1].get("width")) < border < float(bars[2].get("x"))


def test_the_table_of_threads():
    assert rows(figures_speed.threads_html(SWEEP, 2)) == [
        ["1", "yes", "70", "60 to 75", "1.4 times slower"],
        ["2", "yes", "95", "95 to 95", "the fastest"],
        ["4", "no", "2.1", "2.1 to 2.1", "45.2 times slower"],
    ]


def test_without_too_many_threads_there_is_no_line():
    svg = drawing(figures_speed.threads_html({1: 5.0, 2: 9.0}, 2))
    assert not [line for line in svg.iter("line") if line.get("stroke-dasharray")]


# pieces


def test_ticks_are_round_and_inside():
    ticks = figures_speed._ticks(math.log10(3), math.log10(70))
    assert ticks == pytest.approx([5, 10, 20, 50])


@pytest.mark.parametrize("value, said", [(1234.4, "1,234"), (9.96, "10"), (10.2, "10"), (0.0456, "0.046")])
def test_speeds_in_words(value, said):
    assert figures_speed.speed_text(value) == said
