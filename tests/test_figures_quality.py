"""`helpers.figures_quality`: points where their numbers are, named, with tables; measured and published kept apart."""

import json
import re
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import figures_quality, quality

EVIL = "<script>alert('x')</script>&\""
KEPT = Path(figures_quality.__file__).parent / "data" / "quality_recorded.json"
REFERENCE, *ROWS = (quality.Row(**row) for row in json.loads(KEPT.read_text(encoding="utf-8"))["rows"])
MEASURED = [replace(row, source="measured") for row in ROWS]
FRONT = quality.Comparison(tuple(ROWS), REFERENCE, "a text", 512).pareto()
PUBLISHED = [row for row in quality.published("Llama-3-8B") if row.kld_mean and row.bits_per_weight]


def error(name, layer, role, relative_rms, type="Q4_0"):
    return quality.TensorError(name, layer, role, type, 0.01, relative_rms)


ERRORS = [error(f"blk.{i}.{role}", i, role, (i + 1) / 100) for i in range(4) for role in ("attn_q", "ffn_down")]
ERRORS += [error("token_embd.weight", None, "token_embd", 0.0, "Q8_0")]


def drawing(text):
    return xml.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def rows(text):
    """The cells of the tables' rows, without their heads."""
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text) if "<td" in row]


def points(text):
    """{quantization: (x, y)} of the marks; a title begins with the name."""
    found = {}
    for group in drawing(text).iter("g"):
        title, circle = group.find("title"), group.find("circle")
        if title is not None and circle is not None:
            found[title.text.split(" (")[0]] = (float(circle.get("cx")), float(circle.get("cy")))
    return found


def labels(text):
    return [node.text for node in drawing(text).iter("text")]


def all_of_them():
    evil = replace(ROWS[0], name=EVIL, quantization=EVIL)
    theirs = replace(PUBLISHED[0], model=EVIL)
    return {
        "loss": figures_quality.loss_html([evil, *ROWS], [theirs], front=[EVIL], reference=REFERENCE, title=EVIL),
        "published": figures_quality.published_html([replace(theirs, text=EVIL, table=EVIL)], EVIL),
        "errors": figures_quality.errors_html([error(EVIL, 0, EVIL, 0.1, EVIL), *ERRORS], EVIL),
        "steps": figures_quality.steps_html({EVIL: range(64)}, title=EVIL),
        "tokens": figures_quality.tokens_html([EVIL, "b"], {EVIL: [0.5, 0.5]}, {EVIL: EVIL}, right=EVIL, title=EVIL),
    }


@pytest.mark.parametrize("name", ["loss", "errors", "steps", "tokens"])
def test_each_has_a_text_for_screen_readers_and_a_table(name):
    text = all_of_them()[name]
    svg = drawing(text)
    assert svg.get("role") == "img"
    assert len(svg.get("aria-label")) > 20
    assert svg.find("title").text == svg.get("aria-label")
    assert rows(text) and 'scope="col"' in text


@pytest.mark.parametrize("name", ["loss", "published", "errors", "steps", "tokens"])
def test_names_are_escaped(name):
    assert "<script>" not in all_of_them()[name]


# loss against size


def test_points_stand_in_the_order_of_their_numbers():
    found = points(figures_quality.loss_html(ROWS, front=FRONT, reference=REFERENCE))
    assert set(found) == {row.quantization for row in ROWS}
    by_size = sorted(ROWS, key=lambda row: row.bits_per_weight)
    assert [found[row.quantization][0] for row in by_size] == sorted(x for x, _ in found.values())
    by_loss = sorted(ROWS, key=lambda row: -row.kld_mean)
    assert [found[row.quantization][1] for row in by_loss] == sorted(y for _, y in found.values())


def test_equal_factors_of_kl_divergence_are_equal_steps():
    three = [replace(ROWS[0], quantization=f"Q{n}", kld_mean=0.1 * 2**n, kld_mean_error=0) for n in range(3)]
    found = points(figures_quality.loss_html(three))
    heights = [found[f"Q{n}"][1] for n in range(3)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_an_error_bar_is_as_long_as_two_errors():
    low, high = (
        replace(ROWS[0], quantization=q, perplexity=p, perplexity_error=2.0) for q, p in (("A", 20), ("B", 30))
    )
    text = figures_quality.loss_html([low, high], measure="perplexity", against="file_bytes")
    found = points(text)
    group = next(g for g in drawing(text).iter("g") if g.find("title") is not None and g.find("circle") is not None)
    bar = group.findall("line")[0]
    a_unit = abs(found["A"][1] - found["B"][1]) / 10
    assert abs(float(bar.get("y1")) - float(bar.get("y2"))) == pytest.approx(4 * a_unit, abs=0.3)


def test_an_error_larger_than_the_value_stays_on_the_page():
    text = figures_quality.loss_html([replace(ROWS[0], kld_mean_error=9 * ROWS[0].kld_mean), ROWS[1]])
    assert all(0 <= float(line.get("y1")) <= figures_quality.HEIGHT for line in drawing(text).iter("line"))


def test_the_front_is_drawn_named_and_marked_in_the_table():
    text = figures_quality.loss_html(MEASURED, front=FRONT, reference=REFERENCE)
    assert "IQ3_XS" not in FRONT and "Q4_0" in FRONT
    assert len(drawing(text).find(".//polyline").get("points").split()) == len(FRONT)
    assert "Pareto front (rings, dashed line): Q2_K, Q4_0, Q4_K_M, Q6_K." in text
    assert {cells[0] for cells in rows(text) if "(front)" in cells[0]} == {f"{name} (front)" for name in FRONT}


def test_every_measured_row_has_its_name_and_no_two_names_touch():
    text = figures_quality.loss_html(MEASURED, PUBLISHED, front=FRONT, reference=REFERENCE)
    assert {row.quantization for row in MEASURED} <= set(labels(text))
    names = {row.quantization for row in (*MEASURED, *PUBLISHED)}
    boxes = []
    for node in drawing(text).iter("text"):
        if node.text in names:
            left, bottom = float(node.get("x")), float(node.get("y"))
            boxes.append((left, bottom - 10, left + 7 * len(node.text), bottom))
    touching = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if figures_quality._touch(a, b)]
    assert not touching


def test_published_points_have_another_mark_the_word_and_the_model():
    text = figures_quality.loss_html(MEASURED, PUBLISHED)
    assert len(drawing(text).findall(".//polygon")) == len(PUBLISHED) + 1, "one more in the legend"
    assert "published: Llama-3-8B" in labels(text)
    assert "measured here, with its standard error" in labels(text)
    assert {cells[1] for cells in rows(text)} == {"measured", "published: Llama-3-8B"}


def test_an_importance_matrix_is_said():
    with_matrix = next(row for row in PUBLISHED if row.imatrix)
    assert f"{with_matrix.quantization} (imatrix)" in figures_quality.loss_html(MEASURED, [with_matrix])


def test_a_recorded_run_never_says_measured_here():
    text = figures_quality.loss_html(ROWS, reference=REFERENCE)
    assert "recorded on another machine, with its standard error" in labels(text)
    assert "easured here" not in text


def test_the_reference_has_no_place_in_equal_factors_and_a_line_in_equal_steps():
    assert "Q4_1 (the reference)" in figures_quality.loss_html(ROWS, reference=REFERENCE)
    text = figures_quality.loss_html(ROWS, measure="perplexity", reference=REFERENCE)
    assert "reference Q4_1: 19.87" in labels(text)


@pytest.mark.parametrize("wrong", [{"measure": "beauty"}, {"against": "price"}])
def test_unknown_words_are_refused_with_the_known_ones(wrong):
    with pytest.raises(ValueError, match="is not known here; take one of .*"):
        figures_quality.loss_html(ROWS, **wrong)


@pytest.mark.parametrize("wrong", [{"measure": "perplexity"}, {"against": "file_bytes"}])
def test_another_models_perplexity_and_bytes_have_no_place_here(wrong):
    with pytest.raises(ValueError, match="published rows are about another model"):
        figures_quality.loss_html(ROWS, PUBLISHED, **wrong)


def test_no_tick_is_above_all_of_them():
    text = figures_quality.loss_html([replace(ROWS[0], top1_agreement=1.0)], measure="top1_agreement")
    shares = [float(said[:-2]) for said in labels(text) if said.endswith(" %")]
    assert max(shares) == 100 and len(shares) > 2


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="no row has kld_mean"):
        figures_quality.loss_html([replace(ROWS[0], kld_mean=0.0)])


def test_a_missing_number_is_a_dash_not_a_zero():
    text = figures_quality.published_html(PUBLISHED[:1])
    assert rows(text)[0][2] == "-" and 'href="https://github.com/' in text


# the error of each tensor


def test_the_map_has_every_number_and_darkens_with_it():
    text = figures_quality.errors_html(ERRORS)
    groups = [g for g in drawing(text).iter("g") if g.find("title") is not None]
    assert len(groups) == 8
    shades = {g.find("title").text.split(": ")[1]: g.find("rect").get("fill") for g in groups}
    reds = [int(shades[f"{n}.00 %"][1:3], 16) for n in (1, 2, 3, 4)]
    assert reds == sorted(reds, reverse=True) and len(set(reds)) == 4
    assert ["attn_q", "Q4_0", "4", "1.00 %", "2.50 %", "4.00 %", "3"] in rows(text)
    assert ["3", "4.00 %", "4.00 %"] in rows(text), "all numbers, folded away"
    assert "Unchanged: token_embd." in text


def test_equal_files_have_no_map():
    with pytest.raises(ValueError, match="no tensor differs"):
        figures_quality.errors_html(ERRORS[-1:])


def test_eighty_layers_keep_their_numbers_in_the_table_where_cells_are_too_narrow():
    many = [error(f"blk.{i}.attn_q", i, "attn_q", 0.052) for i in range(80)]
    text = figures_quality.errors_html(many)
    assert "5.2" not in labels(text) and len(rows(text)) == 81
    assert all(
        float(r.get("x")) + float(r.get("width")) <= figures_quality.WIDTH
        for r in drawing(text).iter("rect")
        if r.get("x")
    )


# steps


def test_rounded_weights_stand_on_few_places():
    import numpy as np

    smooth = np.random.default_rng(1).normal(size=(64, 32))
    low, high = smooth.min(axis=1, keepdims=True), smooth.max(axis=1, keepdims=True)
    rounded = low + np.rint((smooth - low) / (high - low) * 15) / 15 * (high - low)
    found = rows(figures_quality.steps_html({"smooth": smooth, "4 bits": rounded}))
    assert found[1] == ["4 bits", "2,048", "16 of 241", "100%"]
    assert int(found[0][2].split()[0]) > 200


def test_a_block_of_equal_weights_is_no_error():
    assert rows(figures_quality.steps_html({"zeros": [0.0] * 32}))[0][2] == "1 of 241"


# the next token


def test_bars_are_as_long_as_probabilities():
    text = figures_quality.tokens_html(["a", "b"], {"one": [0.75, 0.25], "two": [0.5, 0.5]}, {"KL": "0.1"}, right="a")
    bars = [float(r.get("width")) for r in drawing(text).iter("rect") if r.get("height") == "16"]
    assert bars[0] == pytest.approx(3 * bars[2], abs=0.2) and bars[1] == bars[3]
    assert ["a (came)", "0.750", "0.500"] in rows(text)
    assert 'role="status" aria-live="polite"' in text and "KL <b>0.1</b>" in text


def test_what_moves_with_a_slider_is_small():
    assert len(figures_quality.tokens_html(list("abcd"), {"one": [0.25] * 4, "two": [0.25] * 4})) < 6_000
    assert len(figures_quality.loss_html(MEASURED, PUBLISHED[:12], front=FRONT, reference=REFERENCE)) < 24_000


def test_the_recorded_run_is_whole_and_says_so():
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    assert kept["says"].startswith("Recorded, not measured here")
    assert {row["source"] for row in kept["rows"]} == {"recorded"}
    assert REFERENCE.kld_mean == 0 and all(row.kld_mean > 0 and row.n_tokens == REFERENCE.n_tokens for row in ROWS)
