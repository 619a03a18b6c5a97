"""`helpers.panels` without a kernel: widgets fire their callbacks under plain pytest, so a test can be the learner."""

import dataclasses
import html
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import engine, fit, hardware, memory, models, panels, units
from helpers.hardware import Gpu, Machine, Reading
from helpers.need import MissingPackage

W = pytest.importorskip("ipywidgets")
GIB = units.GIB
LAPTOP = Machine.pretend("laptop", 7 * GIB, 8 * GIB)
CHOICE = {"model": "llama-3.1-8b", "quantization": "Q4_K_M", "n_ctx": 8192}
NO_ENGINE_ASKED = {"ask_engine": False}


def panel(machine=LAPTOP, model="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192, ask_engine=False):
    return panels._FitPanel(machine, model, quantization, n_ctx, ask_engine)


def read(source):
    """What a person reads of some HTML."""
    return html.unescape(re.sub(r"<style.*?</style>|<title>.*?</title>|<[^>]+>", " ", source, flags=re.DOTALL))


def sentence(made):
    return html.unescape(re.search(r'class="sentence".*?>(?:<span.*?</span> )?([^<]*)<', made.result.value)[1])


def expected(made, **settings):
    """The sentence that the panel must show, from the rooms below it."""
    estimate = memory.estimate(models.get(made.model.value), made.quantization.value, **settings)
    return fit.judge(estimate, made.machine).sentence


def until(condition, seconds=20):
    """Wait for another thread to bring something about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def every(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def visible_levers(made):
    return [button for button in made.levers if button.layout.visibility == "visible"]


@pytest.fixture
def fake_engine(monkeypatch):
    """An engine that is there, answers at once, and remembers what it was asked."""
    asked = []

    def reserve(spec, quantization, **settings):
        asked.append((spec.name, quantization, settings))
        return dataclasses.replace(memory.estimate(spec, quantization, **settings), source="engine", compute_bytes=GIB)

    monkeypatch.setattr(engine, "available", lambda: True)
    monkeypatch.setattr(engine, "tensor_types", lambda *_: {})
    monkeypatch.setattr(engine, "reserve", reserve)
    return asked


# --- what it shows -------------------------------------------------------------------------------------------------


def test_fit_panel_is_a_widget_and_displays_nothing(capsys):
    box = panels.fit_panel(LAPTOP, ask_engine=False)
    assert isinstance(box, W.VBox)
    assert "kit-app" in box._dom_classes
    assert capsys.readouterr().out == ""


def test_fit_panel_looks_for_a_machine_only_when_none_is_given(monkeypatch):
    looked = []
    monkeypatch.setattr(hardware, "detect", lambda: looked.append(1) or LAPTOP)
    panels.fit_panel(LAPTOP, ask_engine=False)
    assert not looked
    panels.fit_panel(ask_engine=False)
    assert looked


def test_moving_the_slider_changes_sentence_table_and_field():
    made = panel()
    before, table = sentence(made), made.details.value
    assert before == expected(made, n_ctx=8192)
    made.context.value = 32768
    assert made.n_ctx.value == 32768
    assert sentence(made) == expected(made, n_ctx=32768) != before
    assert (
        units.show(memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=32768).kv_bytes, 2) in made.details.value
    )
    assert made.details.value != table


def test_the_field_takes_what_the_slider_has_no_place_for():
    made = panel()
    made.n_ctx.value = 5000
    assert sentence(made) == expected(made, n_ctx=5000)
    assert made.context.value == 4096  # the nearest place
    made.n_ctx.value = 200_000
    assert made.context.value == 131_072
    assert made.n_ctx.value == 200_000


@pytest.mark.parametrize(
    "widget, value, settings",
    [
        ("quantization", "Q8_0", {}),
        ("cache", "q8_0", {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
        ("flash", False, {"flash_attn": False}),
        ("slots", 4, {"n_parallel": 4}),
        ("ubatch", 128, {"n_ubatch": 128}),
        ("last_only", True, {"n_outputs_max": 1}),
        ("repack", True, {"repack": "avx2"}),
        ("model", "Qwen3 0.6B", {}),
    ],
)
def test_every_control_counts(widget, value, settings):
    made = panel()
    getattr(made, widget).value = value
    assert made.shown["estimate"] == memory.estimate(
        models.get(made.model.value), made.quantization.value, **{"n_ctx": 8192, **settings}
    )
    assert sentence(made) == expected(made, n_ctx=8192, **settings)


def test_slots_keep_one_output_each():
    made = panel()
    made.slots.value, made.last_only.value = 4, True
    assert made.shown["estimate"].settings["n_outputs_max"] == 4
    assert "n_parallel=4" in made.shown["Code and commands"]
    assert "--parallel 4" in made.shown["Code and commands"]
    assert "OLLAMA_NUM_PARALLEL=4" in made.shown["Code and commands"]


def test_a_quantized_cache_without_flash_attention_is_for_keys_only():
    made = panel()
    made.cache.value, made.flash.value = "q8_0", False
    assert made.shown["estimate"].settings["cache_type_k"] == "q8_0"
    assert made.shown["estimate"].settings["cache_type_v"] == "f16"
    assert "Needs" in sentence(made)


def test_repacking_is_what_this_processor_would_do():
    made = panel(dataclasses.replace(LAPTOP, cpu_flags=frozenset({"avx2", "avx512f", "amx_int8"})))
    made.repack.value = True
    assert made.shown["estimate"].settings["repack"] == "amx"


def test_the_views():
    made = panel()
    views = {}
    for view in panels.VIEWS:
        made.view.value = view
        views[view] = made.details.value
        made.context.value = 4096 if made.context.value != 4096 else 8192
        assert made.details.value != views[view]  # each follows the controls
    assert "rule: file x 1.2" in read(views["Numbers"])
    assert "cells x 32 layers" in read(views["Arithmetic"])
    assert "llama-server" in read(views["Code and commands"])
    assert "PARAMETER num_ctx" in read(views["Code and commands"])


def test_the_strip_marks_the_chosen_quantization():
    made = panel()
    made.quantization.value = "Q6_K"
    assert re.search(r'aria-current="true"[^>]*><b>Q6_K<', made.result.value)


def test_a_model_that_comes_in_one_form_has_that_form():
    made = panel()
    made.model.value = "gpt-oss-20b"
    assert made.quantization.value == "MXFP4" and made.shown["estimate"].quantization == "MXFP4"
    made.quantization.value = "Q2_K"
    assert made.quantization.value == "MXFP4"
    made.model.value = "phi-2"
    assert made.quantization.value == "Q4_K_M"
    made.undo.click()
    assert (made.model.value, made.quantization.value) == ("gpt-oss-20b", "MXFP4")
    assert panel(model="gpt-oss-20b").quantization.value == "MXFP4"


def test_any_quantization_can_be_the_first():
    made = panel(quantization="iq1_m")
    assert made.quantization.value == "IQ1_M"
    with pytest.raises(ValueError, match="Q99"):
        panel(quantization="Q99")
    with pytest.raises(KeyError, match="Near matches"):
        panel(model="llama")


# --- fit_view ------------------------------------------------------------------------------------------------------


def test_fit_view_is_pure(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("fit_view looked outside")

    monkeypatch.setattr(hardware, "detect", refuse)
    monkeypatch.setattr(engine, "reserve", refuse)
    given = dict(CHOICE)
    first, second = panels.fit_view(given, LAPTOP), panels.fit_view(given, LAPTOP)
    assert first == second
    assert given == CHOICE
    assert set(panels.VIEWS) < set(first)
    other = panels.fit_view({**CHOICE, "n_ctx": 4096}, LAPTOP)
    assert other["result"] != first["result"]


def test_fit_view_shows_the_engines_answer_it_is_given():
    closed = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=8192)
    asked = dataclasses.replace(closed, source="engine", kv_bytes=2 * closed.kv_bytes)
    view = panels.fit_view(CHOICE, LAPTOP, asked, "asked <just> now")
    assert "0.5000" in read(view["Numbers"])
    assert "asked <just> now" in read(view["Numbers"])


def test_fit_view_needs_no_widgets():
    code = (
        "import sys; from helpers import hardware, panels; "
        "panels.fit_view({'model': 'smollm2-135m', 'quantization': 'Q4_1'}, hardware.Machine.pretend('x', 10**9)); "
        "print([name for name in ('ipywidgets', 'plotly', 'llama_cpp', 'psutil') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_ipywidgets_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(MissingPackage, match="pip install ipywidgets"):
        panels.fit_panel(LAPTOP)


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_an_unknown_model_shows_near_matches_and_a_right_one_recovers():
    made = panel()
    before = sentence(made)
    made.model.value = "lama 3.1 <8b>"
    assert "No model called 'lama 3.1 <8b>'" in sentence(made)
    assert "llama-3.1-8b" in sentence(made)
    assert "<8b>" not in made.result.value
    assert made.details.value == ""  # the old numbers would be read as this model's
    assert visible_levers(made) == []
    made.quantization.value = "Q8_0"  # still no model, still alive
    assert "No model called" in sentence(made)
    for button in made.levers:
        button.click()
    made.view.value = "Arithmetic"
    assert "No model called" in sentence(made)
    made.model.value = "qwen3-1.7b"
    assert sentence(made) == expected(made, n_ctx=8192) != before
    assert "cells x 28 layers" in read(made.details.value)


def test_undo_leaves_an_unknown_model():
    made = panel()
    made.quantization.value = "Q6_K"
    before = sentence(made)
    made.model.value = "nonsense"
    assert not made.undo.disabled
    made.undo.click()
    assert (made.model.value, made.quantization.value) == ("llama-3.1-8b", "Q6_K")
    assert sentence(made) == before
    made.undo.click()
    assert made.quantization.value == "Q4_K_M"
    assert made.undo.disabled


def test_undo_leaves_the_very_first_mistake():
    made = panel()
    before = sentence(made)
    made.model.value = "nonsense"
    made.undo.click()
    assert sentence(made) == before
    assert made.undo.disabled


def test_a_setting_this_model_cannot_have_is_a_sentence(monkeypatch):
    odd = dataclasses.replace(models.get("llama-3.1-8b"), n_embd_head_k=80, n_embd_head_v=80, title="Odd heads")
    get = models.get
    monkeypatch.setattr(models, "get", lambda name: odd if name == "odd" else get(name))
    made = panel(model="odd")
    made.cache.value = "q8_0"
    assert "have 80" in sentence(made)
    made.cache.value = "f16"
    assert "Needs" in sentence(made)


def test_an_error_in_a_callback_is_shown_and_the_panel_lives(monkeypatch):
    made = panel()
    judge = fit.verdict

    def fail(*_):
        raise RuntimeError("something <b>odd</b> happened")

    monkeypatch.setattr(fit, "verdict", fail)
    made.context.value = 1024
    assert sentence(made) == "something <b>odd</b> happened"
    assert 'role="alert"' in made.result.value
    monkeypatch.setattr(fit, "verdict", judge)
    made.context.value = 2048
    assert sentence(made) == expected(made, n_ctx=2048)


def test_look_again_reads_the_machine(monkeypatch):
    made = panel()
    monkeypatch.setattr(hardware, "detect", lambda: Machine.pretend("now", 5 * GIB, 8 * GIB))
    made.again.click()
    assert "5.0 GiB" in sentence(made)
    monkeypatch.setattr(hardware, "detect", lambda: 1 / 0)
    made.again.click()
    assert "division by zero" in sentence(made)


# --- levers and undo -----------------------------------------------------------------------------------------------

STARTS = [
    {},
    {"quantization": "Q8_0", "n_ctx": 65536, "slots": 4},
    {"quantization": "F16", "flash": False, "n_ctx": 2048},
    {"model": "phi-3-mini", "n_ctx": 4096, "slots": 4, "last_only": True},
    {"model": "qwen3-8b", "quantization": "Q2_K", "repack": True, "n_ctx": 512},
    {"which": "other", "ram": 16.0, "vram": 4.0, "gpu_layers": 33},
]


def started(start):
    made = panel()
    for name, value in start.items():
        getattr(made, name).value = value
    return made


@pytest.mark.parametrize("start", STARTS, ids=range(len(STARTS)))
def test_every_lever_does_what_it_says_and_undo_takes_it_back(start):
    for index in range(len(visible_levers(started(start)))):
        made = started(start)
        before, state, needed = sentence(made), made._state(), made.shown["estimate"]
        button, lever = made.levers[index], made.shown["verdict"].levers[index]
        assert units.show(lever.saved_bytes) in button.description
        assert lever.name in button.description
        assert lever.cost in button.tooltip
        button.click()
        wanted = fit.apply(needed, lever.change)
        assert made.shown["estimate"].total_bytes == wanted.total_bytes
        assert made.shown["verdict"].status == lever.status
        assert sentence(made) != before
        made.undo.click()
        assert made._state() == state
        assert sentence(made) == before


def test_levers_fit_the_controls():
    assert set(fit.LADDER) <= set(panels.QUANTIZATIONS)
    assert set(fit.CONTEXTS) <= set(panels.CONTEXTS)


def test_undo_goes_back_step_by_step():
    made = panel()
    assert made.undo.disabled
    seen = [sentence(made)]
    steps = {"quantization": "Q6_K", "cache": "q8_0", "n_ctx": 4096, "repack": True, "which": "other", "ram": 3.0}
    for name, value in steps.items():
        getattr(made, name).value = value
        seen.append(sentence(made))
    for text in reversed(seen):
        assert sentence(made) == text
        made.undo.click()
    assert made.undo.disabled
    assert sentence(made) == seen[0]


def test_undo_remembers_only_so_much():
    made = panel()
    for n in range(panels.UNDO_AT_MOST + 20):
        made.n_ctx.value = 1000 + n
    assert len(made.past) == panels.UNDO_AT_MOST


# --- other machines ------------------------------------------------------------------------------------------------


def test_another_computer_is_judged_by_its_own_memory():
    made = panel()
    assert made.other_row.layout.display == "none"
    made.which.value = "other"
    assert made.other_row.layout.display is None
    assert "8.0 GiB free" in sentence(made)
    made.ram.value = 4
    assert "only 4.0 GiB is free" in sentence(made)
    made.ram_slider.value = 64
    assert made.ram.value == 64
    assert "64.0 GiB free" in sentence(made)
    made.which.value = "here"
    assert "7.0 GiB free" in sentence(made)


def test_the_memory_field_reaches_further_than_its_slider():
    made = panel()
    made.which.value = "other"
    made.ram.value = 256
    assert made.ram.value == 256
    assert made.ram_slider.value == made.ram_slider.max == 128
    assert "256.0 GiB free" in sentence(made)


def test_gpu_layers_appear_with_a_gpu():
    made = panel()
    assert made.gpu_layers.layout.display == "none"
    made.which.value = "other"
    assert made.gpu_layers.layout.display == "none"
    made.vram_slider.value = 6
    assert made.vram.value == 6
    assert made.gpu_layers.layout.display is None
    made.gpu_layers.value = 33
    estimate = made.shown["estimate"]
    assert estimate.settings["n_gpu_layers"] == 33
    assert "of video memory" in sentence(made)
    assert "--n-gpu-layers 33" in made.shown["Code and commands"]
    made.vram.value = 2
    assert "only 2.0 GiB of video memory" in sentence(made)
    made.vram.value = 0
    assert made.gpu_layers.layout.display == "none"
    assert made.shown["estimate"].settings["n_gpu_layers"] == 0


def test_a_gpu_that_is_there_can_be_used_at_once():
    gpu = Gpu("card", Reading(8 * GIB), Reading(7 * GIB), "cuda")
    made = panel(dataclasses.replace(LAPTOP, gpus=(gpu,)))
    assert made.gpu_layers.layout.display is None
    made.gpu_layers.value = 33
    assert "7.0 GiB of video memory free" in sentence(made)


# --- the engine's column -------------------------------------------------------------------------------------------


def test_the_engine_is_asked_for_exactly_this_choice(fake_engine):
    made = panel(ask_engine=True)
    until(lambda: "own dry run" in made.details.value)
    made.slots.value = 2
    made.cache.value = "q8_0"
    name, quantization, settings = fake_engine[-1]
    assert (name, quantization) == ("llama-3.1-8b", "Q4_K_M")
    assert memory.Settings(**settings) == memory.Settings(
        n_ctx=8192, n_parallel=2, cache_type_k="q8_0", cache_type_v="q8_0"
    )
    assert "1.00 GiB" in made.details.value
    assert "formula / engine" in made.details.value


def test_the_engine_is_asked_only_where_its_answer_is_seen(fake_engine):
    made = panel(ask_engine=True)
    until(lambda: "own dry run" in made.details.value)
    made.view.value = "Arithmetic"
    asked = len(fake_engine)
    made.context.value = 1024
    made.context.value = 2048
    assert len(fake_engine) == asked
    made.view.value = "Numbers"
    assert fake_engine[-1][2]["n_ctx"] == 2048
    assert "own dry run" in made.details.value


def test_the_sentence_does_not_wait_for_the_engine(fake_engine, monkeypatch):
    made = panel(ask_engine=True)
    until(lambda: "own dry run" in made.details.value)
    seen = []
    monkeypatch.setattr(engine, "reserve", lambda *_, **__: seen.append(sentence(made)) or 1 / 0)
    made.context.value = 1024
    assert seen == [expected(made, n_ctx=1024)]


def test_with_a_gpu_the_engine_says_that_it_saw_none(fake_engine):
    made = panel(dataclasses.replace(LAPTOP, gpus=Machine.pretend("x", 1, vram_bytes=8 * GIB).gpus), ask_engine=True)
    until(lambda: "own dry run" in made.details.value)
    assert "no GPU took part" not in made.details.value
    made.gpu_layers.value = 10
    assert "no GPU took part" in made.details.value


@pytest.mark.parametrize(
    "error", [engine.EngineError("llama.cpp stopped <here>."), MissingPackage("install <it>"), ValueError("not <that>")]
)
def test_an_error_of_the_engine_is_a_sentence_beside_the_formula(fake_engine, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(engine, "reserve", fail)
    made = panel(ask_engine=True)
    until(lambda: html.escape(str(error)) in made.details.value)
    assert sentence(made) == expected(made, n_ctx=8192)
    assert str(error) in read(made.details.value)
    assert "formula / engine" not in made.details.value


def test_an_engine_that_cannot_start_is_a_sentence_too(fake_engine, monkeypatch):
    def fail(*_, **__):
        raise engine.EngineError("no engine today")

    monkeypatch.setattr(engine, "tensor_types", fail)
    monkeypatch.setattr(engine, "reserve", fail)
    made = panel(ask_engine=True)
    until(lambda: "no engine today" in made.details.value)


def test_without_llama_cpp_the_formula_stands_alone(monkeypatch):
    monkeypatch.setattr(engine, "available", lambda: False)
    monkeypatch.setattr(engine, "reserve", lambda *_, **__: 1 / 0)
    made = panel(ask_engine=True)
    head = re.findall(r"<th[^>]*>([^<]*)</th>", made.details.value)
    assert head == ["part", "formula"]
    assert "llama-cpp-python is not installed" in read(made.details.value)
    assert sentence(made) == expected(made, n_ctx=8192)


def test_an_engine_nobody_wants_is_not_called_missing():
    made = panel(ask_engine=False)
    assert "not installed" not in read(made.details.value)
    assert re.findall(r"<th[^>]*>([^<]*)</th>", made.details.value) == ["part", "formula"]


@pytest.mark.model
def test_the_real_engine_agrees_with_the_formula():
    made = panel(model="smollm2-135m", quantization="Q4_K_M", n_ctx=2048, ask_engine=True)
    until(lambda: "own dry run" in made.details.value, seconds=90)
    kv = re.search(r"KV cache</td>(.*?)</tr>", made.details.value)[1]
    assert kv.endswith("<td>1.0000</td>")


# --- accessibility, threads ----------------------------------------------------------------------------------------


def app_boxes():
    return {"fit": panels.fit_panel(LAPTOP, **NO_ENGINE_ASKED), "ask": panels.ask_panel(FakeModel())}


class FakeModel:
    """Stands in for `runner.Model`: answers with `pieces`, waits where it is told to."""

    def __init__(self, pieces=("Blue ", "light ", "scatters."), hold=None, error=None):
        self.pieces, self.hold, self.error = pieces, hold, error
        self.calls, self.cancelled, self.reloads, self.alive = [], 0, 0, True

    def ask(self, prompt, stream=None, **how):
        self.calls.append((prompt, how))
        for index, piece in enumerate(self.pieces):
            stream(piece)
            if index == 0 and self.hold:
                assert self.hold.wait(20)
        if self.error:
            raise self.error
        return FakeAnswer("".join(self.pieces))

    def cancel(self):
        self.cancelled += 1

    def reload(self):
        self.reloads += 1
        self.alive = True


@dataclasses.dataclass
class FakeAnswer:
    text: str
    prompt: str = "<|user|>the whole prompt"
    notes: tuple = ()

    def measured(self):
        return "5 + 3 tokens, answer 61.5 tokens/s"


@pytest.mark.parametrize("which", ["fit", "ask"])
def test_every_control_has_a_name(which):
    found = list(every(app_boxes()[which]))
    controls = [widget for widget in found if hasattr(widget, "description") and not isinstance(widget, W.HTML)]
    assert len(controls) > 8
    nameless = [w for w in controls if not w.description and w.layout.visibility != "hidden"]
    assert nameless == []


@pytest.mark.parametrize("which", ["fit", "ask"])
def test_every_slider_has_a_named_field_beside_it(which):
    # ipywidgets gives sliders no accessible name, so each value must be reachable by a labelled field too.
    found = list(every(app_boxes()[which]))
    for box in found:
        children = list(getattr(box, "children", ()))
        for index, widget in enumerate(children):
            if type(widget) in (W.FloatSlider, W.SelectionSlider, W.IntSlider):
                field = children[index + 1]
                assert isinstance(field, (W.BoundedIntText, W.BoundedFloatText))
                assert field.description
                assert field.value == widget.value


def test_many_threads_at_once_end_in_one_answer():
    made = panel()
    values = [512, 1024, 2048, 4096, 8192, 16384]

    def drag(offset):
        for step in range(15):
            made.n_ctx.value = values[(step + offset) % len(values)]

    threads = [threading.Thread(target=drag, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    made.n_ctx.value = 3333
    assert sentence(made) == expected(made, n_ctx=3333)
    assert made.quiet is False


# --- asking a model ------------------------------------------------------------------------------------------------


def ask(model, **how):
    return panels._AskPanel(
        model, *{"question": "Why?", "system": "", "temperature": 0.7, "max_tokens": 128, **how}.values()
    )


def finished(made):
    until(lambda: not made.ask.disabled)
    return read(made.result.value)


def test_ask_panel_is_a_widget():
    box = panels.ask_panel(FakeModel())
    assert isinstance(box, W.VBox)
    assert {"kit-app", "kit-ask"} <= set(box._dom_classes)


def test_pieces_arrive_one_by_one_and_the_measured_line_ends_them():
    hold = threading.Event()
    made = ask(FakeModel(hold=hold))
    made.ask.click()
    until(lambda: "Blue" in made.result.value)
    assert "scatters" not in made.result.value
    assert "answering" in read(made.result.value)
    assert made.ask.disabled and not made.stop.disabled
    hold.set()
    text = finished(made)
    assert "Blue light scatters." in text
    assert "61.5 tokens/s" in text
    assert "<|user|>the whole prompt" in read(made.prompt.value)
    assert made.stop.disabled


def test_the_settings_reach_the_model():
    model = FakeModel()
    made = ask(model)
    made.question.value, made.system.value = "How many?", "Be brief."
    made.temperature.value, made.top_p.value, made.max_tokens.value = 0.2, 0.5, 7
    made.ask.click()
    finished(made)
    how = {"system": "Be brief.", "temperature": 0.2, "top_p": 0.5, "max_tokens": 7}
    assert model.calls == [("How many?", how)]
    made.system.value = ""
    made.ask.click()
    finished(made)
    assert model.calls[1][1]["system"] is None


def test_slider_and_field_hold_one_value():
    made = ask(FakeModel())
    sliders = [widget for widget in every(made.box) if isinstance(widget, W.FloatSlider)]
    assert len(sliders) == 2
    sliders[0].value = 1.35
    assert made.temperature.value == 1.35
    made.top_p.value = 0.4
    assert sliders[1].value == 0.4


def test_notes_about_an_answer_are_shown(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(model, "ask", lambda *_, **__: FakeAnswer("yes", notes=("This model has no chat template.",)))
    made = ask(model)
    made.ask.click()
    assert "no chat template" in finished(made)


def test_a_double_click_asks_once():
    hold = threading.Event()
    model = FakeModel(hold=hold)
    made = ask(model)
    made.ask.click()
    made.ask.click()
    until(lambda: model.calls)
    made.ask.click()
    hold.set()
    finished(made)
    assert len(model.calls) == 1
    made.ask.click()  # and afterwards it can be asked again
    finished(made)
    assert len(model.calls) == 2


def test_stop_ends_the_answer():
    hold = threading.Event()
    model = FakeModel(hold=hold)
    made = ask(model)
    made.ask.click()
    until(lambda: model.calls)
    made.stop.click()
    assert model.cancelled == 1
    hold.set()
    finished(made)


def test_a_stop_that_fails_is_shown(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(model, "cancel", lambda: 1 / 0)
    made = ask(model)
    made.stop.click()
    assert "division by zero" in read(made.result.value)


@pytest.mark.parametrize("pieces", [(), ("half an ",)])
def test_an_error_is_shown_with_what_was_said_before(pieces):
    made = ask(FakeModel(pieces=pieces, error=RuntimeError("the model <died>")))
    made.ask.click()
    text = finished(made)
    assert "the model <died>" in text
    assert ("half an" in text) is bool(pieces)
    assert 'role="alert"' in made.result.value
    assert made.stop.disabled
    made.model = FakeModel()
    made.ask.click()
    assert "Blue light scatters." in finished(made)


def test_a_closed_model_is_loaded_again():
    model = FakeModel()
    model.alive = False
    made = ask(model)
    made.ask.click()
    assert "Blue light scatters." in finished(made)
    assert model.reloads == 1


def test_html_in_an_answer_stays_text():
    evil = "<script>alert(1)</script><b>bold</b>"
    made = ask(FakeModel(pieces=(evil,)))
    made.ask.click()
    assert evil in finished(made)
    assert "<script>" not in made.result.value + made.prompt.value
    assert "<b>" not in made.result.value


def test_a_fast_model_does_not_flood_the_page(monkeypatch):
    clock = iter(range(10**6))
    every_ms = SimpleNamespace(monotonic=lambda: next(clock) / 1000)
    monkeypatch.setattr(panels, "time", every_ms)
    painted = []
    screen = W.HTML()
    screen.observe(lambda change: painted.append(change["new"]), "value")
    pieces = panels._Pieces(screen)
    for number in range(1000):
        pieces(f"{number} ")
    assert pieces.text == "".join(f"{number} " for number in range(1000))
    assert 0 < len(painted) <= 21
