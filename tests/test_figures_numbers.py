"""`helpers.figures_numbers` and `helpers.panels_numbers`: pictures that hold their numbers, each with its table."""

import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from helpers import figures_numbers, panels_numbers, quant

SVG = "{http://www.w3.org/2000/svg}"
ROW = np.random.default_rng(2).normal(0, 0.02, 64)


def drawn(text):
    """The svg element of some HTML; that it can be read as XML is a test of its own."""
    return xml.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def texts(svg):
    return [element.text for element in svg.iter(f"{SVG}text")]


def cells(text):
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", text)]


def test_every_bit_is_drawn_and_told():
    numbers = [quant.store(0.1, "FP16"), quant.store(-3, "INT8")]
    text = figures_numbers.bits_html(numbers, flipped=3)
    svg = drawn(text)
    digits = "".join(said for said in texts(svg) if said in ("0", "1"))
    assert digits == "".join(number.bits for number in numbers)
    assert texts(svg).count("▼ flipped") == 1, "only the last number has it flipped"
    assert [said for said in texts(svg) if said in ("before", "after")] == ["before", "after"]
    assert svg.get("role") == "img" and all(str(number) in svg.get("aria-label") for number in numbers)
    assert "0.0999755859" in cells(text) and "1001100110" in cells(text) and "-3" in cells(text)


def test_levels_show_what_is_clipped_by_shape_too():
    squeezed = quant.symmetric([-10, -1, 0.4, 1, 10], bits=4, limit=7)
    text = figures_numbers.levels_html([-10, -1, 0.4, 1, 10], squeezed)
    svg = drawn(text)
    assert len(list(svg.iter(f"{SVG}circle"))) == 3
    assert sum(line.get("stroke-dasharray") is not None for line in svg.iter(f"{SVG}line")) == 2
    assert "2 of them clipped" in svg.get("aria-label")
    assert cells(text).count("clipped") == 2 and cells(text).count("rounded") == 3
    for line in svg.iter(f"{SVG}line"):
        assert 90 <= float(line.get("x1")) <= 860 and 90 <= float(line.get("x2")) <= 860


def test_levels_of_a_constant_row():
    assert "0.3" in figures_numbers.levels_html([0.3, 0.3], quant.asymmetric([0.3, 0.3], 4))


def test_a_number_line_has_a_tick_for_each_number():
    text = figures_numbers.number_line_html({"<b>": [1.0, 1.25, 1.5], "b": [1.0, 1.5]}, 1, 1.5)
    paths = [path.get("d") for path in drawn(text).iter(f"{SVG}path")]
    assert [path.count("M") for path in paths] == [3, 2] and paths[1].startswith("M100.0 ") and "M830.0 " in paths[1]
    assert cells(text) == ["&lt;b&gt;", "3", "1", "1.25", "0.25", "b", "2", "1", "1.5", "0.5"]


def test_two_pictures_of_levels_can_share_an_axis():
    wide, narrow = quant.symmetric(ROW, 4, limit=1), quant.symmetric(ROW, 4)
    ends = narrow.levels[0], narrow.levels[-1]
    above, below = (drawn(figures_numbers.levels_svg(ROW, squeezed, ends=ends)) for squeezed in (wide, narrow))
    first, second = ([dot.get("cx") for dot in svg.iter(f"{SVG}circle")] for svg in (above, below))
    assert first == second and len(first) == 64
    assert "levels on this axis: 1 of 15" in texts(above)[-1] and "axis" not in texts(below)[-1]
    for line in above.iter(f"{SVG}line"):
        assert 90 <= float(line.get("x1")) <= 860 and 90 <= float(line.get("x2")) <= 860


def test_a_block_that_takes_the_outlier_in_has_wider_levels():
    row = np.tile(ROW, 2)
    row[40] = 1.0
    short, long = (panels_numbers.block_view(row, 4, length) for length in (32, 64))
    assert "weights 0 to 31." in short and "weights 0 to 63." in long and "levels are 0.1429 apart" in long
    svgs = [drawn(text[text.rindex("<svg") :]) for text in (short, long)]
    dots = [[dot.get("cx") for dot in svg.iter(f"{SVG}circle")] for svg in svgs]
    assert dots[0] == dots[1] and len(dots[0]) == 8, "the same weights on the same axis"
    zeros = [int(re.search(r"Come back as 0: (\d)", text)[1]) for text in (short, long)]
    assert zeros[0] < zeros[1] == 8
    assert "weights 0 to 3." in panels_numbers.block_view([0.0] * 8, 4, 4)


def test_layouts_are_as_long_as_their_bits():
    layouts = {name: quant.layout(name) for name in ("Q4_0", "Q8_0", "Q4_K")}
    text = figures_numbers.layout_html(layouts)
    widths = [float(rect.get("width")) for rect in drawn(text).iter(f"{SVG}rect")]
    assert sum(widths[2:4]) / sum(widths[:2]) == pytest.approx(8.5 / 4.5, abs=0.01)
    assert "18 bytes for 32 weights" in text and "144 bytes for 256 weights" in text
    assert len(cells(text)) == 5 * sum(len(parts) + 1 for parts in layouts.values())


def test_every_layout_can_be_drawn():
    layouts = {name: quant.layout(name) for name in quant.LAYOUTS}
    for name in layouts:
        assert name in texts(drawn(figures_numbers.layout_html(layouts)))


def test_text_is_escaped():
    evil = "<script>&"
    made = figures_numbers.table_html((evil,), [(evil,)]) + figures_numbers.facts_html({evil: evil})
    made += figures_numbers.levels_svg([1.0], quant.symmetric([1.0]), names=(evil, evil))
    assert "<script>" not in made and made.count("&lt;script&gt;&amp;") == 6


# Panels

PANELS = {
    "flip": lambda: panels_numbers.flip_panel(),
    "clip": lambda: panels_numbers.clip_panel(ROW),
    "block": lambda: panels_numbers.block_panel(np.tile(ROW, 16)),
}


@pytest.mark.parametrize("name", PANELS)
def test_each_control_changes_what_is_shown(name):
    widgets = pytest.importorskip("ipywidgets")
    row, result = PANELS[name]().children
    assert "<svg" in result.value and "<table" in result.value and "alert" not in result.value
    for control in row.children:
        before = result.value
        if isinstance(control, (widgets.SelectionSlider, widgets.Dropdown)):
            other = control.options[1 if isinstance(control, widgets.SelectionSlider) else -1]
            control.value = other[1] if isinstance(other, tuple) else other
        else:
            control.value = 3
        linked = control.description == "place"  # its slider has just set the same value
        assert linked or result.value != before, control.description
        assert control.description, "a control without a name"


def test_slider_and_field_are_one_value():
    pytest.importorskip("ipywidgets")
    row, result = panels_numbers.clip_panel(ROW).children
    slider, _, field = row.children
    field.value = 40
    assert slider.value == 40 and "clipped weights" in result.value


def test_only_places_that_are_there_can_be_flipped():
    pytest.importorskip("ipywidgets")
    row, _ = panels_numbers.flip_panel(1, "FP32").children
    _, chosen, slider, field = row.children
    slider.value = 31
    chosen.value = "INT8"
    assert (slider.max, slider.value, field.max, field.value) == (7, 7, 7, 7)


def test_an_error_is_shown_in_the_panel():
    pytest.importorskip("ipywidgets")
    row, result = panels_numbers.flip_panel(0.5, "FP16").children
    row.children[1].value = "INT8"
    assert 'role="alert"' in result.value and "not 0.5" in result.value
    row.children[0].value = 3
    assert "alert" not in result.value


def test_a_view_says_what_quant_says():
    text = panels_numbers.clip_view(ROW, 4, 50)
    squeezed = quant.clipped_at(ROW, 4, 50)
    assert f"{squeezed.n_clipped} of 64" in text and f"{quant.error(ROW, squeezed.weights()).rmse:.5f}" in text
    assert "4.5" in panels_numbers.block_view(ROW, 4, 32) and "inf" in panels_numbers.flip_view(1, "FP16", 1)
