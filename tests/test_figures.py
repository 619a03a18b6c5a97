"""`helpers.figures`: drawings that are as long as their numbers, tables beside them, and nothing unescaped."""

import dataclasses
import html.parser
import re
import xml.etree.ElementTree as xml

import pytest

from helpers import figures, fit, memory, mixes, models, units
from helpers.hardware import Gpu, Machine, Reading

GIB, MIB = units.GIB, units.MIB
EVIL = '<script>alert("x")</script>&\'"'
LLAMA = models.get("llama-3.1-8b")
NEEDS = memory.estimate(LLAMA, "Q4_K_M", n_ctx=8192)


def machine(free=7 * GIB, total=8 * GIB, vram=0):
    return Machine.pretend("test", free, total, vram_bytes=vram)


def drawing(estimate, here, **how):
    """(the svg element, the verdict) of a memory bar."""
    judged = fit.judge(estimate, here)
    text = figures.memory_bar_svg(estimate, judged, **how)
    return xml.fromstring(text[: text.index("</svg>") + len("</svg>")]), judged


def segments(svg):
    """[(title, x, width)] of the coloured pieces, left to right."""
    pieces = [(group.find("title").text, group.find("rect")) for group in svg.findall("g")]
    return [(title, float(rect.get("x")), float(rect.get("width"))) for title, rect in pieces]


class Reader(html.parser.HTMLParser):
    """The tags, attributes and cells of some HTML; `text` is what a person reads."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.rows, self.text = [], [], [], ""
        self._cell = None
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def rows(source):
    """{first cell without its swatch: the other cells} of a table."""
    return {row[0].replace("■", "").strip(): row[1:] for row in Reader(source).rows}


# --- the bar -------------------------------------------------------------------------------------------------------

BARS = [
    (NEEDS, machine()),
    (NEEDS, machine(4 * GIB, 16 * GIB)),
    (memory.estimate(LLAMA, "F16", n_ctx=131072), machine(2 * GIB)),
    (memory.estimate(models.get("smollm2-135m"), "Q4_1"), machine(64 * GIB, 64 * GIB)),
    (memory.estimate(LLAMA, "Q4_K_M", repack="avx2"), machine(12 * GIB, 16 * GIB)),
    (memory.estimate(LLAMA, "Q4_K_M", n_gpu_layers=20), machine(12 * GIB, 16 * GIB, vram=4 * GIB)),
]


@pytest.mark.parametrize("estimate, here", BARS, ids=range(len(BARS)))
def test_the_bar_is_as_long_as_its_bytes(estimate, here):
    width = 860
    svg, judged = drawing(estimate, here, width=width)
    on_card = judged.limit == "video memory"
    parts = estimate.by_device["gpu" if on_card else "cpu"] if estimate.by_device else estimate.parts()
    others = judged.total_bytes - judged.free_bytes
    wanted = {"others": others, **parts}
    scale = width / (1.02 * max(sum(wanted.values()), judged.total_bytes))
    pieces = segments(svg)
    drawn = {title.split(":")[0]: (x, w) for title, x, w in pieces}
    x = 0.0
    for part, n_bytes in wanted.items():
        if n_bytes * scale < 0.05:
            assert figures.NAMES[part] not in drawn
            continue
        assert drawn[figures.NAMES[part]] == (pytest.approx(x, abs=0.06), pytest.approx(n_bytes * scale, abs=0.06))
        x += n_bytes * scale
    assert sum(w for _, _, w in pieces) == pytest.approx(sum(wanted.values()) * scale, abs=0.5)
    line = svg.find("line")
    assert float(line.get("x1")) == float(line.get("x2")) == pytest.approx(judged.total_bytes * scale, abs=0.06)
    assert 0 <= float(line.get("x1")) <= width and x <= width


def test_a_bar_ends_left_of_the_limit_only_when_it_fits():
    for free, fits in ((8 * GIB, True), (3 * GIB, False)):
        svg, judged = drawing(NEEDS, machine(free, free))
        end = sum(segments(svg)[-1][1:])
        assert (end < float(svg.find("line").get("x1"))) is fits is (judged.status in ("fits", "tight"))


def test_nothing_to_draw_is_no_error():
    nothing = memory.Estimate(0, 0, 0, 0, 0, "formula")
    svg, _ = drawing(nothing, machine(0, 0))
    assert segments(svg) == []


def test_the_bar_says_its_numbers():
    svg, judged = drawing(NEEDS, machine())
    label = svg.get("aria-label")
    assert label == svg.find("title").text
    assert svg.get("role") == "img"
    for part, n_bytes in NEEDS.parts().items():
        assert not n_bytes or f"{figures.NAMES[part]} {units.show(n_bytes)}" in label
    assert "7.0 GiB free of 8.0 GiB" in label
    limit = "".join(svg.findall("text")[-1].itertext())
    assert limit == f"{judged.limit}: {units.show(judged.total_bytes)}"


def test_the_legend_names_every_part_with_its_size():
    text = figures.memory_bar_svg(NEEDS, fit.judge(NEEDS, machine()))
    legend = Reader(text[text.index("</svg>") :]).text
    for part, n_bytes in NEEDS.parts().items():
        assert not n_bytes or f"{figures.NAMES[part]} {units.show(n_bytes)}" in legend
    assert "other programs 1.0 GiB" in legend


# --- tables --------------------------------------------------------------------------------------------------------


def test_the_table_has_the_bars_numbers():
    svg, _ = drawing(NEEDS, machine())
    table = rows(figures.parts_table_html(NEEDS))
    for title, _, _ in segments(svg):
        name, size = title.split(": ")
        assert name == "other programs" or table[name] == [size]
    assert table["total"] == [units.show(NEEDS.total_bytes, 2)]


def test_the_table_sets_the_engine_beside_the_formula():
    engine = dataclasses.replace(NEEDS, source="engine", kv_bytes=NEEDS.kv_bytes * 2)
    table = rows(figures.parts_table_html(NEEDS, engine, "asked just now", rule_bytes=fit.rule_of_thumb_bytes(NEEDS)))
    assert table["part"] == ["formula", "engine", "formula / engine"]
    assert table["weights"][2] == "1.0000"
    assert table["KV cache"] == [units.show(NEEDS.kv_bytes, 2), units.show(2 * NEEDS.kv_bytes, 2), "0.5000"]
    assert table["process"][1:] == ["-", "-"]  # the engine was not asked about the process around it
    assert table["total"][2] == f"{NEEDS.total_bytes / engine.total_bytes:.4f}"
    rule = fit.rule_of_thumb_bytes(NEEDS)
    assert table[f"rule: file x 1.2 ({rule / NEEDS.total_bytes:.2f} x the formula)"][0] == units.show(rule, 2)


def test_without_the_engine_its_columns_are_not_there():
    source = figures.parts_table_html(NEEDS, None, "not installed here", rule_bytes=1)
    assert {len(row) for row in Reader(source).rows} == {2}
    assert "engine" not in "".join(Reader(source).rows[0])
    assert "not installed here" in Reader(source).text


def test_a_part_that_only_the_engine_sees_is_shown():
    engine = dataclasses.replace(NEEDS, source="engine", repacked_bytes=GIB)
    assert rows(figures.parts_table_html(NEEDS, engine))["repacked copy"][:2] == ["0 B", "-"]


def test_the_arithmetic_adds_up():
    settings = memory.Settings(n_ctx=8192)
    table = rows(figures.arithmetic_html(LLAMA, "Q4_K_M", settings))
    exact = [int(re.sub(r"\D", "", cells[1])) for cells in table.values()]
    assert sum(exact) == NEEDS.total_bytes
    assert table["KV cache"][2] == units.show(NEEDS.kv_bytes, 2)


def test_the_strip_marks_one_and_words_all():
    ladder = fit.ladder(LLAMA, machine(7 * GIB, 8 * GIB), n_ctx=8192)
    reader = Reader(figures.ladder_html(ladder, "Q4_K_M"))
    assert dict(reader.attributes)["aria-label"]
    assert reader.attributes.count(("aria-current", "true")) == 1
    for name, estimate, judged in ladder:
        word = {"fits": "fits", "tight": "tight", "swaps": "disk", "no": "no"}[judged.status]
        assert f"{name}{units.show(estimate.total_bytes)}{fit.SIGNS[judged.status]} {word}" in reader.text


@pytest.mark.parametrize("status", fit.STATUSES)
def test_a_verdict_is_a_sign_and_a_word_too(status):
    judged = fit.Verdict(status, f"Something {fit.SAYS[status]}.", "memory", 1, 2, 3)
    source = figures.sentence_html(judged)
    assert Reader(source).text.strip() == f"{fit.SIGNS[status]} Something {fit.SAYS[status]}."
    assert len(set(fit.SIGNS.values())) == len(fit.STATUSES)
    attributes = dict(Reader(source).attributes)
    assert attributes["role"] == "status"
    assert attributes["data-status"] == status


# --- plotly figures and their twins --------------------------------------------------------------------------------

COLUMNS = {
    "predicted": {"weights": 90 * MIB, "kv": 45 * MIB, "compute": 30 * MIB},
    "reserved": {"weights": 90 * MIB, "kv": 45 * MIB, "compute": 31 * MIB},
    "resident": {"file": 80 * MIB, "anonymous": 60 * MIB},
}


def test_compare_figure_has_room_for_every_part():
    pytest.importorskip("plotly")
    every = dict.fromkeys((*memory.PARTS, *figures.RESIDENT), GIB)
    assert len(figures.compare_figure({"all": every}).data) == len(every)


def test_compare_figure_holds_the_numbers_of_its_table():
    pytest.importorskip("plotly")
    figure = figures.compare_figure(COLUMNS)
    names = {**figures.NAMES, **figures.RESIDENT}
    assert figure.layout.barmode == "stack"
    assert len(figure.data) == 5
    for trace in figure.data:
        part = next(part for part, name in names.items() if name == trace.name)
        assert list(trace.x) == list(COLUMNS)
        assert [y * MIB for y in trace.y] == [column.get(part, 0) for column in COLUMNS.values()]
    patterns = [trace.marker.pattern.shape for trace in figure.data]
    assert len(set(patterns)) == len(patterns)  # told apart without colour
    table = rows(figures.compare_table_html(COLUMNS))
    for index, (name, column) in enumerate(COLUMNS.items()):
        drawn = round(sum(trace.y[index] for trace in figure.data) * MIB)
        assert table[name][1] == units.show(drawn) == units.show(sum(column.values()))
        assert all(f"{names[part]} {units.show(n)}" in table[name][0] for part, n in column.items())
    assert [table[name][2] for name in COLUMNS] == ["1.000", "1.006", "0.848"]


def test_a_comparison_with_nothing_has_no_ratio():
    assert rows(figures.compare_table_html({"nothing": {}, "something": {"kv": 1}}))["something"][2] == "-"


def test_the_context_table_holds_the_totals_of_the_formula():
    specs = [LLAMA, models.get("gemma-3-1b"), dataclasses.replace(models.get("smollm2-135m"), title="")]
    contexts = (512, 4096, 32768)
    table = rows(figures.context_table_html(specs, "Q4_K_M", contexts, cache_type_k="q8_0"))
    assert table["model"] == ["512", "4k", "32k"]
    for spec in specs:
        totals = [memory.estimate(spec, "Q4_K_M", n_ctx=n, cache_type_k="q8_0").total_bytes for n in contexts]
        assert table[spec.title or spec.name] == [units.show(n) for n in totals]


# --- what comes from outside ---------------------------------------------------------------------------------------


def hostile_pieces():
    spec = dataclasses.replace(LLAMA, title=EVIL, name=EVIL, n_ctx_train=512)
    estimate = memory.estimate(spec, "Q4_K_M", n_ctx=8192, n_gpu_layers=3)
    gpu = Gpu(EVIL, Reading(GIB), Reading(GIB), "cuda")
    judged = fit.judge(estimate, dataclasses.replace(machine(), gpus=(gpu,)))
    yield "sentence", figures.sentence_html(dataclasses.replace(judged, sentence=EVIL))
    yield "bar", figures.memory_bar_svg(estimate, dataclasses.replace(judged, limit=EVIL))
    yield "table", figures.parts_table_html(estimate, engine_note=EVIL)
    yield "reasons", figures.reasons_html(judged, estimate)
    yield "arithmetic", figures.arithmetic_html(spec, mixes.tensor_types(spec, "Q4_K_M"), memory.Settings())
    yield "code", figures.code_html([(EVIL, EVIL)])
    yield "answer", figures.answer_html(EVIL, EVIL)
    yield "error", figures.error_html(ValueError(EVIL))
    yield "unknown", figures.error_html(KeyError(EVIL))
    yield "compare", figures.compare_table_html({EVIL: {EVIL: 1}})
    yield "context", figures.context_table_html([spec], "Q4_K_M", (512,))


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in hostile_pieces()])
def test_what_comes_from_outside_is_text(source):
    reader = Reader(source)
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    balanced = re.sub(r"<(br|input)[^>]*>", "", source.replace(figures.STYLE, ""))
    xml.fromstring(f"<div>{balanced}</div>".replace("&nbsp;", " "))  # every quote and bracket in its place


@pytest.mark.parametrize(
    "error, shown",
    [
        (KeyError("No model called 'x\"y'."), "No model called 'x\"y'."),
        (ValueError("n_ctx is -1."), "n_ctx is -1."),
        (ValueError("'quoted'"), "'quoted'"),
        (RuntimeError(), "RuntimeError"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_its_sentence(error, shown):
    reader = Reader(figures.error_html(error).replace(figures.STYLE, ""))
    assert reader.text == shown
    assert ("role", "alert") in reader.attributes


def test_an_answer_is_shown_as_it_is():
    text = "# a <b>bold</b> line\n\n  and spaces & all"
    assert text in Reader(figures.answer_html(text, "done")).text


# --- names and colours ---------------------------------------------------------------------------------------------


def test_every_part_has_a_name_and_a_colour_of_its_own():
    assert set(figures.NAMES) == set(figures.COLOURS) == {*memory.PARTS, "others"}
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert set(figures.ASKED) < set(memory.PARTS)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """The ratio of WCAG 2: 1 (the same) to 21 (black on white).

    Checked on paper: contrast("#000", "#fff") is 1.05 / 0.05.
    """
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def pairs():
    """(what, text colour, what is behind it) of everything that is read; swatches are not."""
    for status, (paper, ink) in figures.VERDICT_COLOURS.items():
        yield status, ink, paper
    for part, colour in figures.COLOURS.items():
        yield part, figures._ink(part), colour
    yield "hatching", figures._ink("others"), "#999999"
    sources = [figures.STYLE, figures.answer_html("x", "y"), figures.error_html(ValueError("x"))]
    estimate = memory.estimate(LLAMA, "Q4_K_M")
    sources += [
        figures.page(figures.parts_table_html(estimate), figures.reasons_html(fit.judge(estimate, machine()), estimate))
    ]
    for source in sources:
        visible = re.sub(r'<span aria-hidden="true".*?</span>', "", source)
        for rule in re.findall(r'\{([^}]*)\}|style="([^"]*)"', visible):
            colours = dict(re.findall(r"(?:^|;)\s*(color|background):\s*(#[0-9a-fA-F]{3,6})", "".join(rule)))
            if "color" in colours:
                yield "".join(rule)[:40], colours["color"], colours.get("background", "#ffffff")


def test_the_measure_of_contrast_itself():
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_text_can_be_read_on_its_colour():
    seen = list(pairs())
    assert len(seen) > 15
    assert {what: round(contrast(ink, paper), 2) for what, ink, paper in seen if contrast(ink, paper) < 4.5} == {}


def test_labels_in_the_bar_use_the_readable_ink():
    svg, _ = drawing(NEEDS, machine())
    labelled = 0
    for group in svg.findall("g"):
        fill = group.find("rect").get("fill")
        paper = figures.COLOURS["others"] if fill.startswith("url") else fill
        for text in group.findall("text"):
            labelled += 1
            assert contrast(text.get("fill"), paper) >= 4.5
    assert labelled >= 4
    on_white = svg.findall("text")[-1]
    assert contrast(on_white.get("fill"), "#fff") >= 4.5


@pytest.mark.parametrize("width", [0.5, 5.0, 200.0])
def test_hatching_stays_inside_its_rectangle_and_is_found_without_an_id(width):
    source = figures.hatching(10, 22, width, 48, "#999")
    points = [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", source)]
    assert len(points) >= 8
    assert all(10 - 0.1 <= x <= 10 + width + 0.1 and 22 - 0.1 <= y <= 70.1 for x, y in points)
    needs = memory.estimate(models.get("smollm2-135m"), "Q4_1")
    machine = Machine.pretend("laptop", 4 * units.GIB, 8 * units.GIB)
    svg = figures.memory_bar_svg(needs, fit.judge(needs, machine))
    assert "<pattern" not in svg and "url(#" not in svg and svg.count("<path") == 1
