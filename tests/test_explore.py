"""`helpers.explore`: four panels driven as a learner drives them, the views underneath, their pictures and figures."""

import dataclasses
import html
import html.parser
import json
import math
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as xml

import pytest

from helpers import (
    architectures,
    commands,
    engine,
    explore,
    figures,
    figures_speed,
    fit,
    hardware,
    memory,
    mixes,
    models,
    panels,
    speed,
    units,
)
from helpers.figures_speed import speed_text
from helpers.hardware import Gpu, Machine, Reading
from helpers.need import MissingPackage

pytestmark = pytest.mark.slow  # together more than ten seconds

W = pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")
GIB = units.GIB
LAPTOP = Machine.pretend("laptop", 7 * GIB, 8 * GIB)
DESKTOP = Machine.pretend("desktop", 12 * GIB, 16 * GIB, vram_bytes=4 * GIB)
EVIL = '<script>alert("x")</script>&\'"'
LLAMA = models.get("llama-3.1-8b")


def compare(machine=LAPTOP, model="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192):
    return explore.Compare(machine, model, quantization, n_ctx)


def context(machine=LAPTOP, names=explore.START_CURVES, quantization="Q4_K_M"):
    return explore.Context(machine, names, quantization)


def design(start="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192, ask_engine=False):
    return explore.Design(start, quantization, n_ctx, ask_engine)


def offload(machine=DESKTOP, model="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192):
    return explore.Offload(machine, model, quantization, n_ctx)


PANELS = {"compare": compare, "context": context, "design": design, "offload": offload}
every_panel = pytest.mark.parametrize("make", PANELS.values(), ids=PANELS)


def read(source):
    """What a person reads of some HTML."""
    return html.unescape(re.sub(r"<style.*?</style>|<title>.*?</title>|<[^>]+>", " ", source, flags=re.DOTALL))


def sentence(made):
    return html.unescape(re.search(r'class="sentence".*?>(?:<span.*?</span> )?([^<]*)<', made.result.value)[1])


def table(source):
    """{first cell: the other cells} of the rows of some HTML."""
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", source)]
    return {read(row[0]).replace("■", "").strip(): [read(cell).strip() for cell in row[1:]] for row in rows if row}


def every(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


# --- all four ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compare_panel", "context_panel", "offload_panel"])
def test_a_panel_is_a_widget_that_displays_nothing(name, capsys, monkeypatch):
    looked = []
    monkeypatch.setattr(hardware, "detect", lambda: looked.append(1) or LAPTOP)
    box = getattr(panels, name)(LAPTOP)
    assert isinstance(box, W.VBox) and "kit-app" in box._dom_classes
    assert not looked  # only where no machine was given
    getattr(panels, name)()
    assert looked
    assert capsys.readouterr().out == ""


def test_the_design_panel_needs_no_machine(monkeypatch):
    monkeypatch.setattr(hardware, "detect", lambda: 1 / 0)
    assert "kit-app" in panels.design_panel(ask_engine=False)._dom_classes


@every_panel
def test_every_control_has_a_name(make):
    found = list(every(make().box))
    controls = [widget for widget in found if hasattr(widget, "description") and not isinstance(widget, W.HTML)]
    assert len(controls) > 8
    assert [widget for widget in controls if not widget.description] == []


@every_panel
def test_every_slider_has_a_named_field_beside_it(make):
    # ipywidgets gives sliders no accessible name, so each value must be reachable by a labelled field too.
    sliders = 0
    for box in every(make().box):
        children = list(getattr(box, "children", ()))
        for index, widget in enumerate(children):
            if type(widget) in (W.FloatSlider, W.SelectionSlider, W.IntSlider):
                field, sliders = children[index + 1], sliders + 1
                assert isinstance(field, (W.IntText, W.BoundedIntText, W.BoundedFloatText))
                assert field.description
                assert field.value == widget.value
    assert sliders


@every_panel
def test_fields_reach_further_than_sliders_and_sliders_follow(make):
    made = make()
    for slider, field in made.pairs:
        options = [n for _, n in slider.options] if hasattr(slider, "options") else [slider.min, slider.max]
        field.value = options[-1] if field.value != options[-1] else options[0]
        assert slider.value == field.value
        slider.value = options[0]
        assert field.value == options[0]
        assert made.quiet is False


@every_panel
def test_what_is_shown_keeps_its_place(make):
    made = make()
    assert made.result.layout.height and made.details.layout.height
    assert made.result.layout.overflow == made.details.layout.overflow == "auto"


@every_panel
def test_an_error_in_a_callback_is_a_sentence_and_the_panel_lives(make, monkeypatch):
    made = make()
    estimate = memory.estimate

    def fail(*_, **__):
        raise RuntimeError("something <b>odd</b> happened")

    monkeypatch.setattr(memory, "estimate", fail)
    made.inputs["cache"].value = "q8_0"
    assert sentence(made) == "something <b>odd</b> happened"
    assert 'role="alert"' in made.result.value
    assert made.details.value == ""  # old numbers would be read as this choice's
    if hasattr(made, "view"):
        made.view.value = made.view.options[1]
    monkeypatch.setattr(memory, "estimate", estimate)
    made.inputs["cache"].value = "f16"
    assert 'role="alert"' not in made.result.value
    assert made.details.value


@every_panel
def test_nobody_looks_outside_while_a_control_moves(make, monkeypatch):
    made = make()
    monkeypatch.setattr(hardware, "detect", lambda: 1 / 0)
    monkeypatch.setattr(engine, "reserve", lambda *_, **__: 1 / 0)
    made.inputs["cache"].value = "q8_0"
    assert 'role="alert"' not in made.result.value


def test_they_work_without_llama_cpp(monkeypatch):
    monkeypatch.setattr(engine, "available", lambda: False)
    monkeypatch.setattr(engine, "reserve", lambda *_, **__: 1 / 0)
    made = design(ask_engine=True)
    assert "llama-cpp-python is not installed" in read(made.details.value)
    assert "formula / engine" not in made.details.value
    assert "not installed" not in read(design().details.value)  # nobody wanted it


def test_without_ipywidgets_they_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for make in (panels.compare_panel, panels.context_panel, panels.offload_panel):
        with pytest.raises(MissingPackage, match="pip install ipywidgets"):
            make(LAPTOP)


def test_views_need_no_widgets():
    code = (
        "import sys; from helpers import explore, fit, hardware; m = hardware.Machine.pretend('x', 2**33);"
        "explore.compare_view(fit.compare(m, names=['phi-2']), {'text': '', 'status': '', 'order': fit.ORDERS[0]});"
        "explore.chosen_view({'model': 'phi-2', 'quantization': 'Q4_0'}, m);"
        "explore.context_view(['phi-2'], 'Q4_0', m);"
        "explore.offload_view({'model': 'phi-2', 'quantization': 'Q4_0'}, m);"
        "print([name for name in ('ipywidgets', 'anywidget', 'plotly', 'llama_cpp', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=models.DATA.parent.parent, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


@every_panel
def test_many_threads_at_once_end_in_one_answer(make):
    made = make()
    names = ("f16", "q8_0", "q4_0")

    def drag(offset):
        for step in range(8):
            made.inputs["cache"].value = names[(step + offset) % 3]

    threads = [threading.Thread(target=drag, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    made.inputs["cache"].value = "f16"
    last = made.result.value
    made.inputs["cache"].value = "q8_0"
    made.inputs["cache"].value = "f16"
    assert made.result.value == last
    assert made.quiet is False


@pytest.mark.parametrize("make", [compare, context, offload], ids=["compare", "context", "offload"])
def test_another_computer_is_judged_by_its_own_memory(make):
    made = make(LAPTOP)
    before = made.result.value
    assert {widget.layout.display for widget in made.only_other} == {"none"}
    made.inputs["which"].value = "other"
    assert {widget.layout.display for widget in made.only_other} == {None}
    assert made.again.layout.display == "none"
    made.inputs["ram"].value = 3.0
    assert "3.0 GiB" in made.result.value
    assert made.result.value != before
    made.inputs["which"].value = "here"
    assert made.result.value == before


@pytest.mark.parametrize("make", [compare, context, offload], ids=["compare", "context", "offload"])
def test_look_again_reads_the_machine(make, monkeypatch):
    made = make(LAPTOP)
    monkeypatch.setattr(hardware, "detect", lambda: Machine.pretend("now", 5 * GIB, 8 * GIB))
    made.again.click()
    assert "5.0 GiB" in made.result.value
    monkeypatch.setattr(hardware, "detect", lambda: 1 / 0)
    made.again.click()
    assert "division by zero" in sentence(made)


# --- compare_panel -------------------------------------------------------------------------------------------------


def cells(source):
    """{(model, quantization): (status, text)} of the grid."""
    found = {}
    for row in re.findall(r"<tr data-model=.*?</tr>", source):
        model = re.search(r'data-model="([^"]*)"', row)[1]
        for status, quantization, text in re.findall(r'<td class="(\w+)" data-quantization="(\w+)".*?>(.*?)</td>', row):
            found[model, quantization] = status, read(text)
    return found


def test_the_grid_has_every_model_at_every_quantization():
    made = compare()
    found = cells(made.grid.html)
    in_one_form = [name for name in models.names() if name.startswith("gpt-oss")]
    assert len(found) == (len(models.names()) - len(in_one_form)) * len(fit.LADDER) + len(in_one_form)
    for model, quantization in [("llama-3.1-8b", "Q4_K_M"), ("gpt-oss-120b", "MXFP4"), ("smollm2-135m", "Q2_K")]:
        needs = memory.estimate(models.get(model), quantization, n_ctx=8192)
        judged = fit.judge(needs, LAPTOP)
        status, text = found[model, quantization]
        assert status == judged.status
        assert units.show(needs.total_bytes, int(GIB <= needs.total_bytes < 100 * GIB)) in text
        assert fit.SIGNS[status] in text and figures.WORDS[status] in text  # not by colour alone


def test_every_status_can_be_told_apart_in_the_grid():
    machine = dataclasses.replace(LAPTOP, swap_free_bytes=Reading(4 * GIB))
    found = {status for status, _ in cells(compare(machine).grid.html).values()}
    assert found == set(fit.STATUSES)


def test_a_click_on_a_cell_shows_it_in_full():
    made = compare()
    made.grid.picked = "qwen3-8b|Q6_K"  # what a click or Enter sends
    assert (made.inputs["model"].value, made.inputs["quantization"].value) == ("qwen3-8b", "Q6_K")
    expected = explore.chosen_view(
        {"model": "qwen3-8b", "quantization": "Q6_K", "n_ctx": 8192, "n_parallel": 1}, LAPTOP
    )
    assert sentence(made) == expected["verdict"].sentence
    assert "rule: file x 1.2" in made.details.value
    made.view.value = "Code and commands"
    assert "qwen3-8b-Q6_K.gguf" in made.details.value and "PARAMETER num_ctx 8192" in made.details.value


def test_the_dropdowns_mark_the_cell():
    made = compare()
    made.inputs["model"].value = "phi-2"
    assert made.grid.picked == "phi-2|Q4_K_M"
    made.inputs["quantization"].value = "F16"
    assert made.grid.picked == "phi-2|F16"


@pytest.mark.parametrize("picked", ["", "|", "nonsense", "llama-3.1-8b|Q99", f"{EVIL}|F16", "a|b|c"])
def test_what_a_page_sends_may_be_nonsense(picked):
    made = compare()
    before = sentence(made)
    made.grid.picked = picked
    assert sentence(made) == before
    assert made.inputs["model"].value == "llama-3.1-8b"


def test_a_model_in_one_form_is_one_wide_cell():
    made = compare()
    row = re.search(r'<tr data-model="gpt-oss-20b">.*?</tr>', made.grid.html)[0]
    assert f'colspan="{len(fit.LADDER)}"' in row and "MXFP4, the only form of this model" in read(row)
    made.inputs["model"].value = "gpt-oss-20b"
    assert made.grid.picked == "gpt-oss-20b|MXFP4"
    made.inputs["model"].value = "phi-2"
    assert made.grid.picked == "phi-2|Q4_K_M"
    made.grid.picked = "gpt-oss-20b|MXFP4"
    assert made.shown["estimate"].quantization == "MXFP4"


def paces(made):
    """{model: its tokens/s as they are read}."""
    rows = re.findall(r'<tr data-model="([^"]*)"><th.*?</th><td class="b">.*?</td><td>(.*?)</td>', made.grid.html)
    return {model: " ".join(read(text).split()) for model, text in rows}


def test_the_grid_says_how_fast_each_model_answers():
    made = compare()
    [row] = fit.compare(LAPTOP, names=["llama-3.1-8b"], n_ctx=8192)
    rough = speed.predict(LLAMA, row.best, 0, LAPTOP).answer
    assert paces(made)["llama-3.1-8b"] == f"{speed_text(rough.low)} to {speed_text(rough.high)}"
    assert paces(made)["llama-3.1-70b"] == "-"  # nothing of it fits
    assert "Not calibrated" in read(made.note.value)
    made = explore.Compare(LAPTOP, "llama-3.1-8b", "Q4_K_M", 8192, MEASURED)
    likely = speed.predict(LLAMA, row.best, 0, MEASURED).answer
    assert paces(made)["llama-3.1-8b"].startswith(f"{speed_text(likely.likely)} {speed_text(likely.low)} to ")
    assert "Formula, calibrated" in read(made.note.value) and "Not calibrated" not in read(made.details.value)
    made.inputs["which"].value = "other"  # somebody else's computer was not measured
    assert "Not calibrated" in read(made.note.value)


def test_the_grid_can_be_sorted_by_tokens_per_second():
    made = explore.Compare(LAPTOP, "llama-3.1-8b", "Q4_K_M", 8192, MEASURED)
    made.inputs["order"].value = explore.BY_SPEED
    texts = list(paces(made).values())
    numbers = [0 if text == "-" else float(text.split()[0].replace(",", "")) for text in texts]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > 0 == numbers[-1]


def test_no_speed_on_a_card_that_nobody_knows():
    made = compare(DESKTOP)
    assert set(paces(made).values()) == {"-"}
    assert "is not known here" in read(made.note.value)
    made.inputs["on_gpu"].value = False
    assert "to" in paces(made)["llama-3.1-8b"] and "is not known" not in read(made.note.value)


def test_speed_is_measured_only_when_somebody_asks(monkeypatch):
    asked = []
    monkeypatch.setattr(speed, "calibrate", lambda **how: asked.append(how) or MEASURED)
    monkeypatch.setattr(engine, "available", lambda: True)
    assert compare().measure.layout.display == "none"  # an imagined computer cannot be measured
    made = compare(dataclasses.replace(LAPTOP, system="Linux"))
    assert made.measure.layout.display is None and not asked
    made.measure.click()
    until(lambda: made.measure.description == "measure again")
    assert asked == [{"seconds": explore.MEASURE_S}] and "Formula, calibrated" in read(made.note.value)
    monkeypatch.setattr(speed, "calibrate", lambda **how: 1 / 0)
    made.measure.click()
    until(lambda: 'role="alert"' in made.result.value)
    until(lambda: not made.measure.disabled)


def test_a_click_does_not_send_the_grid_again():
    made = compare()
    sent = []
    made.grid.observe(sent.append, "html")
    made.grid.picked = "phi-2|Q2_K"
    made.view.value = "Code and commands"
    assert sent == []


def test_filters_and_orders_do_not_estimate_again(monkeypatch):
    made = compare()
    monkeypatch.setattr(fit, "compare", lambda *_, **__: 1 / 0)
    made.inputs["text"].value = "qwen 7b"
    left = {model for model, _ in cells(made.grid.html)}
    assert left == {name for name in models.names() if "qwen" in name and "7b" in name}
    made.inputs["text"].value = "nothing of the kind"
    assert cells(made.grid.html) == {}
    assert "No model is left" in read(made.grid.html)
    made.inputs["text"].value, made.inputs["order"].value = "", "most parameters"
    assert next(iter(cells(made.grid.html)))[0] == models.names()[-1]
    assert "division" not in sentence(made)


def test_the_filter_by_verdict():
    made = compare()
    total = 0
    for label, status in explore.STATUSES[1:]:
        made.inputs["status"].value = status
        left = {model for model, _ in cells(made.grid.html)}
        total += len(left)
        assert label[0] == fit.SIGNS[status]
        for row in fit.compare(LAPTOP, names=left, n_ctx=8192):
            assert row.status == status
    assert total == len(models.names())


def test_a_model_that_cannot_have_these_settings_says_why():
    made = compare()
    made.inputs["cache"].value = "q8_0"
    row = re.search(r'<tr data-model="phi-2">.*?</tr>', made.grid.html)[0]
    assert "heads of phi-2 have 80" in read(row)
    assert "data-quantization" not in row
    made.inputs["model"].value = "phi-2"
    assert "heads of phi-2 have 80" in sentence(made)
    assert made.details.value == ""


def test_the_grid_on_a_gpu():
    made = compare(DESKTOP)
    assert made.inputs["on_gpu"].layout.display is None
    assert "of video memory" in sentence(made)
    made.inputs["on_gpu"].value = False
    assert "video" not in sentence(made)
    made.inputs["which"].value = "other"
    assert made.inputs["on_gpu"].layout.display == "none"
    made.inputs["on_gpu"].value = True
    made.inputs["vram"].value = 24.0
    assert made.shown["estimate"].settings["n_gpu_layers"] == -1
    assert dict(cells(made.grid.html))["qwen3-14b", "Q8_0"][0] == "fits"
    made.inputs["vram"].value = 2.0
    assert "only 2.0 GiB of video memory" in sentence(made)


def test_quality_loss_names_its_source():
    made = compare()
    assert "published" in read(made.note.value) and "Llama 3 8B" in read(made.note.value)
    assert models.published_quality()["link"] in made.note.value
    head = read(re.search(r"<thead>.*?</thead>", made.grid.html)[0])
    assert "2.8% loss" in head and "reference" in head


def test_any_quantization_can_be_the_first():
    made = compare(quantization="q5_k_s")
    assert made.inputs["quantization"].value == "Q5_K_S"
    assert "Needs" in sentence(made)
    with pytest.raises(ValueError, match="Q99"):
        compare(quantization="Q99")
    with pytest.raises(KeyError, match="Near matches"):
        compare(model="llama")


def test_hostile_titles_are_text(monkeypatch):
    evil = dataclasses.replace(LLAMA, title=EVIL, name=EVIL)
    rows = (fit.Row(evil, {}, EVIL), dataclasses.replace(fit.compare(LAPTOP, names=["phi-2"])[0], spec=evil))
    curves = (fit.Curve(evil, {}, 0, EVIL), dataclasses.replace(fit.curves([LLAMA], "Q4_0", LAPTOP)[0], spec=evil))
    sources = (
        figures.grid_html(rows, fit.LADDER, {}),
        figures.curves_svg(curves, GIB),
        figures.curves_table_html(curves),
        figures.says_html(EVIL),
        figures.note_html(EVIL, EVIL),
    )
    for source in sources:
        tags, attributes = parsed(source)
        assert "script" not in tags
        assert not [name for name, _ in attributes if name.startswith("on")]


def parsed(source):
    tags, attributes = [], []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, given):
            tags.append(tag)
            attributes.extend(given)

    Reader().feed(source)
    return tags, attributes


def test_the_grids_other_half_is_there_and_asks_for_nothing_outside():
    source = models.DATA.joinpath("grid.js").read_text(encoding="utf-8")
    assert "export default" in source
    assert "http" not in source and "import" not in source
    made = compare()
    assert made.grid._esm == source
    for name in set(re.findall(r'model\.get\("(\w+)"\)', source)):
        assert made.grid.has_trait(name)


NODE = shutil.which("node")


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_the_grids_other_half_can_be_read_by_javascript(tmp_path):
    copy = tmp_path / "grid.mjs"
    copy.write_text(models.DATA.joinpath("grid.js").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([NODE, "--check", str(copy)], check=True, timeout=30)


# --- fit.compare and what sorts it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"n_ctx": 30_000, "n_parallel": 3}, {"n_gpu_layers": -1}, {"n_gpu_layers": 5}]
)
def test_a_row_holds_what_estimate_and_judge_say(settings):
    names = ["llama-3.1-8b", "gemma-3-4b", "qwen3-30b-a3b", "smollm2-135m"]
    for row in fit.compare(DESKTOP, names=names, **settings):
        assert list(row.cells) == list(fit.LADDER)
        for quantization, (estimate, judged) in row.cells.items():
            assert estimate == memory.estimate(row.spec, quantization, **settings)
            assert judged == fit.judge(estimate, DESKTOP)


def test_a_row_with_repacked_weights():
    [row] = fit.compare(DESKTOP, names=["llama-3.1-8b"], repack="avx2")
    for quantization, (estimate, _) in row.cells.items():
        assert estimate == memory.estimate(LLAMA, quantization, repack="avx2")


def test_settings_that_no_model_can_have_are_an_error():
    with pytest.raises(ValueError, match="n_ctx is -1"):
        fit.compare(LAPTOP, n_ctx=-1)
    with pytest.raises(ValueError, match="n_ubatch is 0"):
        fit.curves([LLAMA], "Q4_0", LAPTOP, n_ubatch=0)


def test_the_best_of_a_row():
    rows = {row.spec.name: row for row in fit.compare(LAPTOP, n_ctx=8192)}
    for row in rows.values():
        statuses = [judged.status for _, judged in row.cells.values()]
        assert row.status == min(statuses, key=fit.STATUSES.index)
        if row.status == "fits":
            assert row.best == fit.LADDER[statuses.index("fits")]
    assert rows["llama-3.1-70b"].best == ""
    assert fit.Row(LLAMA, {}, "cannot").status == "no"
    assert fit.Row(LLAMA, {}, "cannot").best == ""


def test_orders():
    rows = fit.compare(LAPTOP, n_ctx=8192)
    placed = {by: fit.sort_rows(rows, by) for by in fit.ORDERS}
    for order in placed.values():
        assert set(map(id, order)) == set(map(id, rows))
    params = [row.spec.n_params for row in placed["fewest parameters"]]
    assert params == sorted(params)
    assert [row.spec.n_params for row in placed["most parameters"]] == params[::-1]
    values = {
        "least memory": lambda row: row.cells[row.best][0].total_bytes,
        "least quality loss": lambda row: (models.published_loss(row.best), -row.spec.n_params),
        "least read per token": lambda row: fit.active_bytes(row.cells[row.best][0]),
    }
    for by, value in values.items():
        fitting = [bool(row.best) for row in placed[by]]
        assert fitting == sorted(fitting, reverse=True)
        found = [value(row) for row in placed[by] if row.best]
        assert found == sorted(found)
    with pytest.raises(ValueError, match="no order 'size'"):
        fit.sort_rows(rows, "size")


def test_an_order_takes_rows_without_cells():
    rows = fit.compare(LAPTOP, cache_type_k="q8_0", cache_type_v="q8_0")
    assert [row.problem for row in rows if row.problem]
    for by in fit.ORDERS:
        assert len(fit.sort_rows(rows, by)) == len(rows)


def test_published_losses_grow_as_weights_shrink():
    figures_of = models.published_quality()["perplexity"]
    assert set(fit.LADDER) <= set(figures_of)
    k_types = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    losses = [models.published_loss(name) for name in k_types]
    assert losses[0] == 0 and losses == sorted(losses)
    assert models.published_loss("MXFP4") is None
    assert set(models.published_quality()["imatrix"]) < set(figures_of)


# --- fit.read_bytes_by_device --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "smollm2-135m", "mixtral-8x7b", "gpt-oss-20b", "deepseek-coder-v2-lite"]
)
def test_a_token_reads_each_matrix_once(name):
    spec = models.get(name)
    types = mixes.tensor_types(spec, "Q4_K_M")
    whole = memory.weights_bytes(spec, "Q4_K_M")
    tensors = {tensor.name: tensor for tensor in architectures.tensors(spec)}

    def n_bytes(tensor):
        return memory.formats.tensor_bytes(types[tensor.name], tensor.shape)

    idle = 0 if spec.tied else n_bytes(tensors["token_embd.weight"])
    for tensor in tensors.values():
        if "_exps." in tensor.name:
            idle += n_bytes(tensor) - n_bytes(tensor) * spec.n_expert_used // spec.n_expert
    needs = memory.estimate(spec, "Q4_K_M")
    assert fit.read_bytes_by_device(needs) == {"cpu": whole - idle}
    assert fit.active_bytes(needs) == whole - idle
    assert fit.active_bytes(memory.estimate(spec, types)) == whole - idle


def test_layers_on_the_gpu_are_read_there():
    whole = fit.active_bytes(memory.estimate(LLAMA, "Q4_K_M"))
    before = 0
    for n_gpu_layers in range(1, 34):
        reads = fit.read_bytes_by_device(memory.estimate(LLAMA, "Q4_K_M", n_gpu_layers=n_gpu_layers))
        assert sum(reads.values()) == whole
        assert reads["gpu"] > before
        before = reads["gpu"]
    assert reads["cpu"] == 0
    assert fit.read_bytes_by_device(memory.estimate(LLAMA, "Q4_K_M", n_gpu_layers=-1)) == reads


def test_of_a_file_only_the_sum_may_be_known():
    needs = memory.estimate(LLAMA, 5 * GIB)
    assert fit.read_bytes_by_device(needs) == {"cpu": 5 * GIB}
    mixtral = memory.estimate(models.get("mixtral-8x7b"), 26 * GIB)
    assert fit.active_bytes(mixtral) < 8 * GIB


# --- context_panel -------------------------------------------------------------------------------------------------

MACHINES = [Machine.pretend("m", n * GIB // 2) for n in (1, 5, 12, 60, 900)]


@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3.1-8b", "gemma-3-4b", "deepseek-coder-v2-lite", "gpt-3-175b"])
@pytest.mark.parametrize("settings", [{}, {"n_parallel": 3}, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}])
def test_the_longest_context_is_the_last_that_fits(name, settings):
    spec = models.get(name)
    if settings.get("cache_type_k") and spec.n_embd_head_k % 32:
        return
    for machine in MACHINES:
        longest = fit.longest_context(spec, "Q4_K_M", machine, **settings)

        def fits(n_ctx, machine=machine):
            return fit.judge(memory.estimate(spec, "Q4_K_M", n_ctx=n_ctx, **settings), machine).status in (
                "fits",
                "tight",
            )

        assert longest % 256 == 0
        assert not longest or fits(longest)
        assert longest == fit.MOST_TOKENS or not fits(longest + 256)


def test_the_longest_context_has_an_end():
    assert fit.longest_context(LLAMA, "Q4_K_M", Machine.pretend("x", 2**70)) == fit.MOST_TOKENS
    assert fit.longest_context(LLAMA, "Q4_K_M", Machine.pretend("x", 1)) == 0


def test_bisection_is_counting():
    for most in (0, 1, 2, 7, 30):
        for limit in range(most + 3):
            assert fit._most(lambda n, limit=limit: n <= limit, most) == min(limit, most)


def test_context_panel_shows_where_each_model_crosses():
    made = context()
    found = table(made.details.value)
    assert found["model"][-2:] == ["fits up to", "trained for"]
    for name in explore.START_CURVES:
        spec = models.get(name)
        longest = fit.longest_context(spec, "Q4_K_M", LAPTOP)
        assert found[spec.title][-2:] == [f"{longest:,}" if longest else "none", f"{spec.n_ctx_train:,}"]
        totals = [memory.estimate(spec, "Q4_K_M", n_ctx=n).total_bytes for n in fit.CONTEXTS]
        assert found[spec.title][:-2] == list(map(units.show, totals))
        assert (f"fits to {longest:,}" if longest else "fits with no context") in made.result.value


def test_models_can_be_added_changed_and_taken_away():
    made = context()
    made.inputs["model 4"].value = "qwen3-0.6b"
    assert "Qwen3 0.6B" in made.details.value
    made.inputs["model 5"].value = "qwen3-0.6b"  # twice is once
    assert made.details.value.count("Qwen3 0.6B") == 1
    for number in range(1, 6):
        made.inputs[f"model {number}"].value = explore.NOBODY
    assert sentence(made) == "Choose a model."
    made.inputs["model 2"].value = "llama-3.1-70b"
    assert "None of these fits" in sentence(made)


def test_a_model_that_cannot_have_this_cache_leaves_the_others_alone():
    made = context(names=["phi-2", "qwen3-1.7b"])
    made.inputs["cache"].value = "q8_0"
    found = table(made.details.value)
    assert "heads of phi-2 have 80" in found["Phi-2"][0]
    assert len(found["Qwen3 1.7B"]) == len(fit.CONTEXTS) + 2
    assert "Qwen3 1.7B goes furthest" in sentence(made)


def test_a_quantized_cache_without_flash_attention_is_for_keys_only():
    made = context()
    made.inputs["cache"].value, made.inputs["flash"].value = "q8_0", False
    wanted = fit.longest_context(LLAMA, "Q4_K_M", LAPTOP, cache_type_k="q8_0", flash_attn=False)
    assert table(made.details.value)[LLAMA.title][-2] == (f"{wanted:,}" if wanted else "none")


def svg(source):
    return xml.fromstring(source[source.index("<svg") : source.index("</svg>") + len("</svg>")])


SHOWN = ["llama-3.1-8b", "gemma-3-4b", "gpt-oss-120b", "gpt-3-175b", "smollm2-135m"]


@pytest.mark.parametrize("free", [0, GIB // 2, 8 * GIB, 3000 * GIB])
def test_lines_lie_where_their_numbers_are(free):
    machine = Machine.pretend("m", free)
    curves = fit.curves([models.get(name) for name in SHOWN], "Q4_K_M", machine, explore.CONTEXTS)
    drawn = svg(figures.curves_svg(curves, free))
    plot = figures.PLOT
    points = []
    for curve, group in zip(curves, drawn.findall("g")[1:], strict=True):  # the first turns the axis' words
        found = [
            tuple(map(float, p.split(","))) for line in group.findall("polyline") for p in line.get("points").split()
        ]
        assert len(set(found)) == len({round(x, 1) for x, _ in found})
        for (x, _), n in zip(sorted(set(found)), sorted(curve.totals), strict=True):
            share = (x - plot["left"]) / (plot["right"] - plot["left"])
            assert 512 * 256**share == pytest.approx(n, rel=0.01)
        points += [(y, curve.totals[n]) for (_, y), n in zip(sorted(set(found)), sorted(curve.totals), strict=True)]
        assert len(group.findall("circle")) == (curve.longest in curve.totals)
    (y0, b0), (y1, b1) = max(points), min(points)
    assert all(plot["top"] <= y <= plot["bottom"] for y, _ in points)
    for y, n_bytes in points:
        share = (y0 - y) / (y0 - y1)
        assert math.log2(b0) + share * math.log2(b1 / b0) == pytest.approx(math.log2(n_bytes), abs=0.03)


def test_lines_are_told_apart_without_colour():
    assert len(set(figures.CURVE_DASHES)) == len(set(figures.CURVE_MARKS)) == len(figures.CURVE_COLOURS) == 5
    curves = fit.curves([models.get(name) for name in SHOWN], "Q4_K_M", LAPTOP)
    drawn = svg(figures.curves_svg(curves, 7 * GIB))
    says = drawn.get("aria-label")
    for curve in curves:
        assert curve.spec.title in says
        assert f"{curve.longest:,}" in says or not curve.longest


def test_labels_do_not_touch():
    same = fit.curves([dataclasses.replace(LLAMA, title=f"Twin {n}") for n in range(5)], "Q4_K_M", LAPTOP)
    for curves in (same, fit.curves([models.get(name) for name in SHOWN], "Q4_K_M", LAPTOP)):
        drawn = svg(figures.curves_svg(curves, 7 * GIB))
        heights = [float(text.get("y")) for text in drawn.findall("text") if text.get("font-weight") == "600"]
        assert len(heights) == 5
        assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) >= 30.9
        assert heights[0] >= 5 and heights[-1] + 14 <= figures.PLOT["height"]


def test_nothing_to_draw_is_no_error():
    for free in (0, GIB):
        svg(figures.curves_svg((), free))
    assert "<tbody></tbody>" in figures.curves_table_html(())


# --- design_panel --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.names())
def test_every_model_of_the_catalogue_can_be_the_start(name):
    made = design(start=name)
    spec = models.get(name)
    assert 'role="alert"' not in made.result.value, sentence(made)
    built = made.shown["spec"]
    text_only = dataclasses.replace(spec, n_params_vision=0)
    assert built.n_params == spec.n_params
    assert made.shown["estimate"].total_bytes == memory.estimate(text_only, "Q4_K_M", n_ctx=8192).total_bytes


def test_presets_fill_the_fields():
    made = design()
    made.inputs["start"].value = "gpt-oss-20b"
    shown = {name: made.inputs[name].value for name in explore.SHAPE}
    spec = models.get("gpt-oss-20b")
    assert shown["n_layer"] == spec.n_layer and shown["n_expert"] == 32 and shown["n_swa"] == 128
    assert made.inputs["architecture"].value == "gpt-oss"
    assert made.inputs["windows"].value and made.inputs["experts"].value and not made.inputs["tied"].value
    assert "20.91 billion weights, " in sentence(made)
    made.inputs["start"].value = "llama-3.1-8b"
    assert made.inputs["n_expert"].disabled and made.inputs["n_swa"].disabled
    assert made.shown["spec"].n_params == LLAMA.n_params


def test_fields_change_the_model():
    made = design()
    made.inputs["n_layer"].value = 40
    wanted = architectures.redesign(LLAMA, n_layer=40)
    assert made.shown["spec"] == wanted
    assert units.show_count(wanted.n_params) in sentence(made)
    assert units.show_decimal(memory.file_bytes(wanted, "Q4_K_M")) in sentence(made)
    assert units.show(memory.estimate(wanted, "Q4_K_M", n_ctx=8192).total_bytes) in sentence(made)
    made.view.value = "Where the weights are"
    found = table(made.details.value)
    for part, n_params in architectures.params_by_part(wanted).items():
        assert found[part][0] == f"{n_params:,}"
    assert found["all"][0] == f"{wanted.n_params:,}"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"n_head_kv": 7}, "n_head_kv is 7"),
        ({"n_layer": -3}, "n_layer is -3"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"n_embd": 0}, "n_embd is 0"),
        ({"n_embd_head": 63}, "even head size"),
        ({"n_vocab": 0}, "n_vocab is 0"),
        ({"windows": True, "swa_pattern": 1}, "swa_pattern 1"),
        ({"windows": True, "n_swa": -5}, "n_swa is -5"),
        ({"experts": True, "n_expert": 4, "n_expert_used": 9}, "n_expert_used is 9"),
        ({"experts": True, "n_expert": 100_000}, "n_expert is 100000"),
        ({"experts": True, "n_ff_exp": 100}, "n_ff_exp is 100"),
        ({"start": "qwen2.5-7b", "n_embd": 1024}, "they must be equal"),
        ({"cache": "q8_0", "n_embd_head": 80}, "have 80"),
    ],
)
def test_an_impossible_shape_is_a_sentence(changes, words):
    made = design()
    for name, value in changes.items():
        made.inputs[name].value = value
    assert words in sentence(made)
    assert "my-model" in sentence(made)
    assert made.details.value == ""
    made.inputs["start"].value = "smollm2-135m"
    made.inputs["cache"].value = "f16"
    assert "134.5 million weights" in sentence(made)


def test_switches_choose_a_family_that_has_them():
    made = design()
    inputs = made.inputs
    inputs["windows"].value = True
    assert inputs["architecture"].value == "gemma3"
    assert (inputs["n_swa"].value, inputs["swa_pattern"].value) == (1024, 6)
    inputs["experts"].value = True
    assert inputs["architecture"].value == "gpt-oss"
    assert (inputs["n_expert"].value, inputs["n_expert_used"].value) == (8, 2)
    assert made.shown["spec"].n_ff_exp == made.shown["spec"].n_ff  # 0 in the field says so
    inputs["windows"].value = False
    assert inputs["architecture"].value == "llama"
    assert made.shown["spec"].n_swa == 0
    inputs["tied"].value = True
    assert made.shown["spec"].tied
    inputs["experts"].value = False
    assert made.shown["spec"].n_expert == made.shown["spec"].n_expert_used == 0
    assert inputs["n_expert"].value == 8  # remembered for the next time


def test_a_family_turns_the_switches_it_needs():
    made = design()
    for family, (windows, experts, tied) in {
        "gpt-oss": (True, True, False), "gemma2": (True, False, True), "qwen3moe": (False, True, None),
        "llama": (False, None, None),
    }.items():  # fmt: skip
        made.inputs["architecture"].value = family
        assert made.inputs["windows"].value is windows
        assert experts is None or made.inputs["experts"].value is experts
        assert tied is None or made.inputs["tied"].value is tied
        assert "weights" in sentence(made)


def test_a_switch_that_no_family_has_is_explained():
    made = design(start="gpt-oss-20b")
    made.inputs["tied"].value = True
    assert "always has an output matrix" in sentence(made)


def test_the_code_makes_the_same_model():
    made = design(start="qwen3-8b")
    made.inputs["n_layer"].value, made.inputs["windows"].value, made.inputs["n_ctx"].value = 12, True, 5000
    made.view.value = "Code"
    code = html.unescape(re.search(r"<pre>(.*?)</pre>", made.details.value, re.DOTALL)[1])
    names = {}
    exec("\n".join(line for line in code.splitlines() if "engine.reserve" not in line), names)
    assert names["spec"] == made.shown["spec"]
    assert "n_ctx=5000" in code and "n_layer=12" in code


def test_the_slider_of_the_layers_is_the_field():
    made = design()
    slider = next(slider for slider, field in made.pairs if field is made.inputs["n_layer"])
    slider.value = 48
    assert made.inputs["n_layer"].value == made.shown["spec"].n_layer == 48
    made.inputs["n_layer"].value = 300
    assert slider.value == 128
    assert made.shown["spec"].n_layer == 300


@pytest.fixture
def fake_engine(monkeypatch):
    """An engine that is there, and waits until it is told to answer."""
    asked, hold = [], threading.Event()
    hold.set()

    def reserve(spec, quantization, **settings):
        asked.append(spec)
        assert hold.wait(20)
        return dataclasses.replace(memory.estimate(spec, quantization, **settings), source="engine", compute_bytes=GIB)

    monkeypatch.setattr(engine, "available", lambda: True)
    monkeypatch.setattr(engine, "reserve", reserve)
    return asked, hold


def test_the_engine_answers_when_it_can(fake_engine):
    asked, _ = fake_engine
    made = design(ask_engine=True)
    until(lambda: "own dry run" in made.details.value)
    assert "1.00 GiB" in made.details.value
    made.inputs["n_layer"].value = 7
    until(lambda: "own dry run" in made.details.value)
    assert asked[-1] == made.shown["spec"]


def test_nothing_waits_for_the_engine_and_old_answers_are_dropped(fake_engine):
    asked, hold = fake_engine
    made = design(ask_engine=True)
    until(lambda: "own dry run" in made.details.value)
    hold.clear()
    for n_layer in range(1, 30):
        made.inputs["n_layer"].value = n_layer
        assert made.shown["spec"].n_layer == n_layer
        assert "Asking the engine" in read(made.details.value)
        assert "formula / engine" in made.details.value  # its columns stay, so that nothing jumps
    hold.set()
    until(lambda: "own dry run" in made.details.value)
    assert asked[-1].n_layer == 29
    assert len(asked) <= 4  # the first, one that waited, the newest
    until(lambda: not made.newest.busy)


def test_an_answer_about_another_shape_is_not_shown(fake_engine):
    _, hold = fake_engine
    made = design(ask_engine=True)
    until(lambda: "own dry run" in made.details.value)
    hold.clear()
    made.inputs["n_layer"].value = 5
    made.inputs["n_head_kv"].value = 7
    hold.set()
    until(lambda: not made.newest.busy)
    assert "n_head_kv is 7" in sentence(made)
    assert made.details.value == ""


def test_the_engines_words_stand_beside_the_formula(fake_engine, monkeypatch):
    def refuse(*_, **__):
        raise engine.EngineError("llama.cpp <refused> this.")

    monkeypatch.setattr(engine, "reserve", refuse)
    made = design(ask_engine=True)
    until(lambda: "refused" in made.details.value)
    assert "llama.cpp <refused> this." in read(made.details.value)
    assert "weights" in sentence(made)


def test_the_view_that_is_chosen_stays_when_the_engine_answers(fake_engine):
    _, hold = fake_engine
    made = design(ask_engine=True)
    hold.clear()
    made.inputs["n_layer"].value = 9
    made.view.value = "Code"
    hold.set()
    until(lambda: not made.newest.busy)
    assert "redesign" in made.details.value
    made.view.value = "Numbers"
    assert "own dry run" in made.details.value


@pytest.mark.model
@pytest.mark.slow
def test_llama_cpp_accepts_what_check_accepts():
    """Random changes of the catalogue's models: each is a sentence here, or a model that llama.cpp takes as well."""
    if not engine.available():
        pytest.skip("llama-cpp-python is not installed")
    pick, accepted = random.Random(4), 0
    for _ in range(120):
        made = design(start=pick.choice(models.names()))
        for _ in range(pick.randint(1, 4)):
            name = pick.choice([*explore.SHAPE, "windows", "experts", "tied", "architecture"])
            widget = made.inputs[name]
            if name in ("windows", "experts", "tied"):
                widget.value = not widget.value
            elif name == "architecture":
                widget.value = pick.choice(widget.options)
            else:  # many experts at once are more than llama.cpp's graphs hold
                most = 4 if name == "n_expert_used" else 14
                widget.value = pick.choice((1, 2, 4, 8, 3, 16, 32, 64, 96, 128, 256, 1000, 2048, 4096)[:most])
        if not made.shown:
            assert "Error" not in sentence(made)
            continue
        spec, settings = made.shown["spec"], made.shown["estimate"].settings
        asked = engine.reserve(spec, "Q8_0", **settings)
        ours = memory.estimate(spec, "Q8_0", **settings)
        assert ours.kv_bytes == pytest.approx(asked.kv_bytes, abs=22_000), spec
        accepted += 1
    assert accepted > 20


# --- architectures: what a design needs ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.names())
def test_parts_add_up_to_all_weights(name):
    spec = models.get(name)
    parts = architectures.params_by_part(spec)
    assert sum(parts.values()) == spec.n_params
    assert tuple(parts) == architectures.PARAMETER_PARTS == tuple(figures.PARAMETER_COLOURS)
    assert parts["embeddings"] >= spec.n_embd * spec.n_vocab * (1 if spec.tied else 2)
    assert parts["norms and other vectors"] < 0.01 * spec.n_params


def test_the_parts_are_drawn_as_long_as_they_are():
    parts = architectures.params_by_part(LLAMA)
    drawn = svg(figures.params_bar_svg(parts, width=1000))
    widths = {g.find("title").text.split(":")[0]: float(g.find("rect").get("width")) for g in drawn.findall("g")}
    for part, n_params in parts.items():
        assert widths.get(part, 0) == pytest.approx(1000 * n_params / LLAMA.n_params, abs=0.06)
    assert drawn.get("aria-label").count("%") == 4


def test_a_redesign_is_no_published_model():
    mine = architectures.redesign(models.get("qwen2.5-vl-7b"), n_layer=3)
    assert (mine.name, mine.ollama, mine.hub, mine.n_params_vision, mine.sources) == ("my-model", "", "", 0, ())
    assert commands.ollama_tag(mine, "Q4_K_M") is None


def test_another_family_drops_what_only_the_old_one_has():
    lite = models.get("deepseek-coder-v2-lite")
    same = architectures.redesign(lite, n_layer=4)
    assert same.kv_lora_rank == lite.kv_lora_rank and same.n_layer_dense_lead == lite.n_layer_dense_lead
    other = architectures.redesign(
        lite, architecture="llama", n_expert=0, n_expert_used=0, n_ff_exp=0, n_embd_head_k=128, n_embd_head_v=128
    )
    architectures.check(other)
    assert other.kv_lora_rank == other.n_layer_dense_lead == other.n_expert_shared == 0
    assert architectures.redesign(models.get("phi-2"), n_embd_head_k=16, n_embd_head_v=16).n_rot == 0


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("qwen3-8b", {"n_expert": 4, "n_expert_used": 1}, "has no experts"),
        ("qwen3-30b-a3b", {"n_expert": 0}, "always has experts"),
        ("qwen3-30b-a3b", {"n_ff_exp": 0}, "width of one expert"),
        ("mixtral-8x7b", {"n_expert_used": 0}, "n_expert_used is 0"),
        ("mixtral-8x7b", {"n_ff_exp": 64}, "as wide as n_ff"),
        ("gpt-oss-20b", {"n_expert": 513}, "n_expert is 513"),
        ("phi-2", {"tied": True}, "always has an output matrix"),
        ("phi-2", {"n_rot": 81}, "n_rot is 81"),
        ("phi-2", {"n_rot": 82}, "n_rot is 82"),
        ("deepseek-coder-v2-lite", {"n_embd_head_k": 128}, "must be kv_lora_rank + n_rot"),
        ("deepseek-coder-v2-lite", {"n_embd_head_v": 128}, "must be kv_lora_rank"),
        ("deepseek-coder-v2-lite", {"n_embd_head_k_mla": 10}, "n_embd_head_k_mla is 10"),
    ],
)
def test_check_knows_what_llama_cpp_refuses(name, change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        architectures.check(dataclasses.replace(models.get(name), **change))


@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_what_a_family_leaves_open_is_what_check_accepts(family):
    spec = next(models.get(name) for name in models.names() if models.get(name).architecture == family)
    possible = architectures.may_have(family)
    variants = {
        "tied": ({"tied": True}, {"tied": False}),
        "windows": ({"n_swa": 512, "swa_pattern": 2}, {"n_swa": 0, "swa_pattern": 0}),
        "experts": (
            {"n_expert": 4, "n_expert_used": 2, "n_ff_exp": spec.n_ff_exp}, {"n_expert": 0, "n_expert_used": 0},
        ),
    }  # fmt: skip
    for switch, (on, off) in variants.items():
        for value, change in ((True, on), (False, off)):
            changed = dataclasses.replace(spec, **change)
            if value in possible[switch]:
                architectures.check(changed)
            else:
                with pytest.raises(ValueError):
                    architectures.check(changed)


def test_a_family_with_these_switches():
    for windows in (True, False):
        for experts in (True, False):
            for start in architectures.FAMILIES:
                family = architectures.family_with(start, windows=windows, experts=experts)
                possible = architectures.may_have(family)
                assert windows in possible["windows"] and experts in possible["experts"]
                start_has = architectures.may_have(start)
                if windows in start_has["windows"] and experts in start_has["experts"]:
                    assert family == start


# --- offload_panel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3.1-8b", "gemma-3-4b", "mixtral-8x7b"])
@pytest.mark.parametrize("vram", [GIB // 8, GIB, 4 * GIB, 40 * GIB])
def test_the_most_layers_are_the_last_that_fit(name, vram):
    spec, machine = models.get(name), Machine.pretend("m", 64 * GIB, vram_bytes=vram)
    most = fit.most_gpu_layers(spec, "Q4_K_M", machine, n_ctx=8192)
    needs = [
        sum(memory.estimate(spec, "Q4_K_M", n_ctx=8192, n_gpu_layers=n).by_device["gpu"].values())
        for n in range(1, spec.n_layer + 2)
    ]
    assert most == sum(n_bytes <= vram for n_bytes in needs)


def test_without_a_gpu_no_layer_fits_one():
    assert fit.most_gpu_layers(LLAMA, "Q4_K_M", LAPTOP) == 0


def test_limits_are_what_judge_judges():
    needs = memory.estimate(LLAMA, "Q4_K_M", n_gpu_layers=20)
    both = fit.limits(needs, DESKTOP)
    assert [limit.limit for limit in both] == ["memory", "video memory"]
    assert fit.judge(needs, DESKTOP).needed_bytes in [limit.needed_bytes for limit in both]
    idle = memory.estimate(LLAMA, "Q4_K_M")
    assert len(fit.limits(idle, DESKTOP)) == 1
    assert fit.limits(idle, DESKTOP, idle_gpu=True)[1].needed_bytes == 0
    assert len(fit.limits(idle, LAPTOP, idle_gpu=True)) == 1


def test_offload_panel_starts_with_the_most_that_fit():
    made = offload()
    most = fit.most_gpu_layers(LLAMA, "Q4_K_M", DESKTOP, n_ctx=8192)
    assert 0 < made.inputs["n_gpu_layers"].value == most < 33
    assert f"the most that fit its memory: {most}" in read(made.result.value)
    made.inputs["n_gpu_layers"].value = 33
    assert "of video memory is free: does not fit" in sentence(made)
    made.most.click()
    assert made.inputs["n_gpu_layers"].value == made.layers.value == most
    assert "does not fit" not in read(made.result.value)


@pytest.mark.parametrize("n_gpu_layers", [0, 1, 20, 33])
def test_both_memories_are_drawn_and_tabled(n_gpu_layers):
    made = offload()
    made.inputs["n_gpu_layers"].value = n_gpu_layers
    needs = memory.estimate(LLAMA, "Q4_K_M", n_ctx=8192, n_gpu_layers=n_gpu_layers)
    devices = needs.by_device or {"cpu": needs.parts(), "gpu": dict.fromkeys(memory.PARTS, 0)}
    found = table(made.details.value)
    assert found["part"] == ["memory", "video memory"]
    for part, name in figures.NAMES.items():
        if part in memory.PARTS and any(device[part] for device in devices.values()):
            assert found[name] == [units.show(devices[device][part], 2) for device in ("cpu", "gpu")]
    assert found["total"] == [units.show(sum(device.values()), 2) for device in devices.values()]
    reads = {"cpu": 0, "gpu": 0, **fit.read_bytes_by_device(needs)}
    assert found["read per token (formula)"] == [units.show_decimal(n) for n in reads.values()]
    drawn = svg(made.result.value)
    scale = None
    for limit, line, text in zip(
        fit.limits(needs, DESKTOP, idle_gpu=True), drawn.findall("line"), drawn.findall("text"), strict=True
    ):
        x = float(line.get("x1"))
        scale = scale or limit.total_bytes / x
        assert limit.total_bytes / x == pytest.approx(scale, rel=0.01)  # one scale for both
        assert fit.SIGNS[limit.status] in text.text and fit.SAYS[limit.status] in text.text
    for row, device in enumerate(("cpu", "gpu")):
        y = str(24 + 82 * row)
        rects = {g.find("title").text: g.find("rect") for g in drawn.findall("g") if g.find("rect").get("y") == y}
        for part, n_bytes in devices[device].items():
            title = f"{figures.NAMES[part]}: {units.show(n_bytes, 2)}"
            if n_bytes / scale > 0.1:
                assert float(rects[title].get("width")) == pytest.approx(n_bytes / scale, rel=0.02, abs=0.1)


def test_a_gpu_that_is_not_there_is_pretended_and_said():
    made = offload(LAPTOP)
    assert "pretended" in read(made.pretended.value)
    assert made.vram_row.layout.display is None
    made.inputs["vram"].value = 2.0
    made.most.click()
    few = made.inputs["n_gpu_layers"].value
    made.inputs["vram"].value = 6.0
    made.most.click()
    assert made.inputs["n_gpu_layers"].value > few
    made.inputs["which"].value = "other"
    assert "pretended" not in read(made.pretended.value)
    made.inputs["vram"].value = 0.0
    assert "the most that fit its memory: 0" in read(made.result.value)
    made.inputs["n_gpu_layers"].value = 0
    assert "video memory" not in sentence(made)


def test_a_gpu_that_is_there_is_used():
    gpu = Gpu("card", Reading(8 * GIB), Reading(7 * GIB), "cuda")
    made = offload(dataclasses.replace(LAPTOP, gpus=(gpu,)))
    assert made.vram_row.layout.display == "none"
    assert "7.0 GiB free (8.0 GiB in all)" in read(made.result.value)
    made.inputs["which"].value = "other"
    assert made.vram_row.layout.display is None


def test_another_model_has_other_layers():
    made = offload()
    made.inputs["n_gpu_layers"].value = 33
    made.inputs["model"].value = "gemma-3-1b"
    assert made.inputs["n_gpu_layers"].max == made.layers.max == 27
    assert made.inputs["n_gpu_layers"].value == made.layers.value == 27
    assert "27 of 27 layers" in read(made.result.value)
    made.inputs["model"].value = "llama-3.1-70b"
    assert made.layers.max == 81


def test_no_speed_is_promised():
    made = offload()
    said = read(made.details.value)
    assert "no tokens per second are promised" in said and "(formula)" in said
    assert not re.search(r"\d tokens/s", said + read(made.result.value))
    made.view.value = "Code and commands"
    assert "--n-gpu-layers" in made.details.value


def test_pretending_keeps_a_real_gpu():
    assert explore.with_pretended_gpu(DESKTOP, GIB) is DESKTOP
    assert explore.with_pretended_gpu(LAPTOP, GIB).gpus[0].vram_free_bytes == GIB
    assert explore.with_pretended_gpu(LAPTOP, 0).gpus == ()


# --- words and colours ---------------------------------------------------------------------------------------------


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_lines_and_labels_can_be_seen():
    assert all(contrast(colour, "#FFFFFF") >= 4.5 for colour in figures.CURVE_COLOURS)
    assert all(contrast(paper, ink) >= 4.5 for paper, ink in figures.PARAMETER_COLOURS.values())
    assert contrast("#E8F1F8", "#003A5C") >= 4.5
    for status, (paper, ink) in figures.VERDICT_COLOURS.items():
        assert f".kit .g td.{status}{{background:{paper};color:{ink}}}" in figures.GRID_STYLE


def test_counts_are_said_in_words():
    assert units.show_count(999) == "999"
    assert units.show_count(1_500_000) == "1.5 million"
    assert units.show_count(175_000_000_000) == "175 billion"


def test_the_quality_table_names_its_link():
    quality = models.published_quality()
    assert quality["link"].startswith("https://") and quality["source"] and quality["model"]
    assert json.dumps(quality)  # plain data


# --- speed ---------------------------------------------------------------------------------------------------------

MEASURED = speed.Calibration(28_000_000_000, 1.2, 1.1, 2, "measured")
CARD = {"where": MEASURED, "n_gpu_layers": -1, "gpu_bytes_per_s": 500_000_000_000}


def pace(computers=None, n_ctx=8192):
    return explore.Speed(computers or {"here": {"where": MEASURED}, "a card": CARD}, "llama-3.1-8b", "Q4_K_M", n_ctx)


def test_the_speed_panel_shows_what_is_predicted():
    made = pace()
    expected = speed.predict(LLAMA, "Q4_K_M", 8192, MEASURED, n_prompt=8192 - 64)
    assert made.shown["prediction"] == expected
    assert figures_speed.band_text(expected.answer) in sentence(made)
    whole = table(made.result.value)
    assert whole["context empty"][-1] != whole["context full"][-1]


def test_a_longer_context_and_fewer_bits_move_the_speed():
    made = pace()
    before = made.shown["prediction"]
    made.inputs["n_ctx"].value = 65536
    assert made.shown["prediction"].cache_seconds > 7 * before.cache_seconds
    made.inputs["n_ctx"].value = 8192
    made.inputs["quantization"].value = "Q2_K"
    assert made.shown["prediction"].bytes_seconds < before.bytes_seconds


def test_a_graphics_card_says_that_nobody_measured_it():
    made = pace()
    made.inputs["computer"].value = "a card"
    assert made.shown["prediction"].prompt is None
    assert "never measured here" in read(made.result.value)
    assert "Prompt" not in sentence(made)


def test_a_computer_that_cannot_be_is_a_sentence():
    made = pace({"here": {"where": MEASURED}, "wrong": {"where": MEASURED, "gpu_bytes_per_s": -1}})
    made.inputs["computer"].value = "wrong"
    assert "gpu_bytes_per_s is -1" in sentence(made)
    made.inputs["computer"].value = "here"
    assert "tokens/s" in sentence(made)


def test_the_shortest_context_leaves_room_for_the_answer():
    made = pace(n_ctx=256)
    assert made.shown["prediction"].n_prompt == 256 - explore.ANSWERED


def test_the_comparison_says_how_fast_the_chosen_cell_is():
    made = compare()
    found = speed.predict(LLAMA, "Q4_K_M", 0, LAPTOP)
    assert f"{figures_speed.band_text(found.answer)} tokens/s (formula)" in read(made.details.value)
    assert "Not calibrated" in read(made.details.value)


def test_the_comparison_without_a_known_card_says_so():
    made = compare(DESKTOP)
    assert "Speed: " in read(made.details.value) and "no bandwidth" in read(made.details.value)
