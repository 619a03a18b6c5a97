"""The interactive panels: ipywidgets wiring, no arithmetic. Each returns a widget and never displays on import.

Callbacks may run in other threads than the cell, so each panel has one lock; an exception in a callback would be
invisible, so it is shown where the result would be.
"""

import collections
import contextlib
import functools
import threading
import time

from . import commands, engine, explore, figures, fit, formats, hardware, memory, models, units
from .explore import CONTEXTS, NO_ENGINE, ONE_ROW, QUANTIZATIONS, shown
from .need import need

N_LEVERS = 3
VIEWS = ("Numbers", "Arithmetic", "Code and commands")
UNDO_AT_MOST = 200
WIDGETS = {  # a setting of a lever -> the input that holds it
    "model": "model", "quantization": "quantization", "n_ctx": "n_ctx", "cache_type_k": "cache",
    "cache_type_v": "cache", "flash_attn": "flash", "n_parallel": "slots", "n_ubatch": "ubatch",
    "n_outputs_max": "last_only", "n_gpu_layers": "gpu_layers", "repack": "repack",
}  # fmt: skip


def fit_panel(machine=None, model="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192, ask_engine=True):
    """Sliders that answer "will it fit on this computer?" (an `ipywidgets.VBox`).

    Parameters
    ----------
    machine : hardware.Machine, optional
        The computer to judge by; found out when left out. "another computer" in the panel asks about any other.
    model, quantization, n_ctx
        Where to start.
    ask_engine : bool
        Also ask llama.cpp itself when it is installed.

    *When it misleads*: free memory is read when the panel is made and when you press "look again".
    """
    return _FitPanel(machine or hardware.detect(), model, quantization, n_ctx, ask_engine).box


def fit_view(choice, machine, asked=None, note=""):
    """Everything that `fit_panel` shows for one choice, as pure data: the panel only puts it on the screen.

    `choice` has "model", "quantization" and any of `memory.Settings`; `asked` is the engine's Estimate or None.
    """
    spec = models.get(choice["model"])
    others = {name: value for name, value in choice.items() if name not in ("model", "quantization")}
    settings = memory.Settings(**others)
    needs = memory.estimate(spec, choice["quantization"], **vars(settings))
    verdict = fit.verdict(needs, machine)
    rows = fit.ladder(spec, machine, **vars(settings))
    result = figures.page(
        figures.sentence_html(verdict),
        figures.memory_bar_svg(needs, verdict),
        figures.ladder_html(rows, choice["quantization"]),
    )
    pieces = commands.everywhere(spec, choice["quantization"], settings)
    return {
        "estimate": needs,
        "verdict": verdict,
        "result": result,
        "Numbers": _numbers(needs, verdict, asked, note),
        "Arithmetic": figures.page(figures.arithmetic_html(spec, choice["quantization"], settings)),
        "Code and commands": figures.page(figures.code_html(pieces)),
    }


def _numbers(needs, verdict, asked, note):
    table = figures.parts_table_html(needs, asked, note, rule_bytes=fit.rule_of_thumb_bytes(needs))
    return figures.page(table, figures.reasons_html(verdict, needs))


class _FitPanel:
    def __init__(self, machine, model, quantization, n_ctx, ask_engine):
        self.w = need("ipywidgets", "show the panel")
        self.lock = threading.RLock()
        self.here = machine
        self.ask_engine = ask_engine and engine.available()
        self.why_not = NO_ENGINE if ask_engine else "The engine was not to be asked; the formula stands alone."
        self.engine_warm = False
        self.quiet = False
        self.shown = None
        self.past = collections.deque(maxlen=UNDO_AT_MOST)
        self._make_choice(model, quantization, n_ctx)
        self._make_machine(machine)
        self._make_result()
        self.box = self._assemble()
        self.last = self._state()
        self._refresh()
        self._observe()
        if self.ask_engine:
            threading.Thread(target=self._warm, daemon=True).start()

    # widgets

    def _make_choice(self, model, quantization, n_ctx):
        w, wide = self.w, {"description_width": "92px"}
        quantization = fit.suited(models.get(model), formats.quantization(quantization).name)
        self.model = w.Combobox(
            value=model, options=models.names(), description="Model", continuous_update=False, style=wide,
            layout={"width": "300px"}, tooltip="Type to search; empty the field to see all",
        )  # fmt: skip
        self.quantization = w.Dropdown(
            value=quantization, options=tuple(dict.fromkeys((*QUANTIZATIONS, "MXFP4", quantization))),
            description="Quantization", style=wide, layout={"width": "220px"},
        )  # fmt: skip
        self.context = w.SelectionSlider(
            value=min(CONTEXTS, key=lambda n: abs(n - n_ctx)), options=[(f"{n:,}", n) for n in CONTEXTS],
            description="Context", readout=False, style=wide, layout={"width": "400px"},
        )  # fmt: skip
        self.n_ctx = w.BoundedIntText(
            value=n_ctx, min=256, max=1_048_576, step=256, description="tokens", style={"description_width": "50px"},
            layout={"width": "160px"},
        )  # fmt: skip
        self.cache = w.Dropdown(value="f16", options=("f16", "q8_0", "q4_0"), description="Cache type", style=wide,
                                layout={"width": "180px"})  # fmt: skip
        self.flash = w.Checkbox(value=True, description="flash attention", indent=False,
                                layout={"width": "135px", "margin": "2px 2px 2px 14px"})  # fmt: skip
        self.last_only = w.Checkbox(value=False, description="last token's scores only", indent=False,
                                    layout={"width": "185px"})  # fmt: skip
        self.slots = w.BoundedIntText(value=1, min=1, max=64, description="Slots", style={"description_width": "40px"},
                                      layout={"width": "100px"})  # fmt: skip
        self.ubatch = w.Dropdown(value=512, options=(64, 128, 256, 512, 1024, 2048), description="Micro-batch",
                                 style={"description_width": "80px"}, layout={"width": "170px"})  # fmt: skip
        self.repack = w.Checkbox(value=False, description="repacking CPU build", indent=False,
                                 layout={"width": "160px"})  # fmt: skip
        self.gpu_layers = w.BoundedIntText(value=0, min=0, max=200, description="GPU layers",
                                           style={"description_width": "75px"}, layout={"width": "150px"})  # fmt: skip

    def _make_machine(self, machine):
        w = self.w
        self.which = w.ToggleButtons(
            options=(("this computer", "here"), ("another computer", "other")), value="here", description="Judge by",
            style={"button_width": "150px", "description_width": "75px"}, layout=ONE_ROW,
        )  # fmt: skip
        gib = {"min": 0.5, "max": 512.0, "step": 0.5}
        short = {"description_width": "92px"}
        self.ram_slider = w.FloatSlider(value=8.0, min=1, max=128, step=0.5, description="Free RAM", readout=False,
                                        style=short, layout={"width": "270px"})  # fmt: skip
        self.ram = w.BoundedFloatText(value=8.0, description="GiB RAM", **gib, layout={"width": "150px"},
                                      style={"description_width": "60px"})  # fmt: skip
        self.vram_slider = w.FloatSlider(value=0.0, min=0, max=96, step=0.5, description="Free VRAM", readout=False,
                                         style={"description_width": "75px"}, layout={"width": "215px"})  # fmt: skip
        self.vram = w.BoundedFloatText(value=0.0, min=0, max=512, step=0.5, description="GiB VRAM",
                                       layout={"width": "150px"}, style={"description_width": "65px"})  # fmt: skip
        self.again = w.Button(description="look again", tooltip="Read this computer's free memory again",
                              layout={"width": "100px"})  # fmt: skip

    def _make_result(self):
        w = self.w
        self.result = w.HTML(layout={"min_height": "236px"})
        self.levers = [w.Button(layout={"width": "auto", "max_width": "320px"}) for _ in range(N_LEVERS)]
        self.undo = w.Button(description="undo", disabled=True, tooltip="Take the last change back",
                             layout={"width": "80px"})  # fmt: skip
        self.view = w.ToggleButtons(options=VIEWS, value=VIEWS[0], description="Show",
                                    style={"button_width": "170px", "description_width": "75px"},
                                    layout=ONE_ROW)  # fmt: skip
        self.details = w.HTML(layout={"height": "244px", "overflow": "auto"})

    def _assemble(self):
        w, row = self.w, {"flex_flow": "row wrap", "align_items": "center"}
        self.other_row = w.HBox([self.ram_slider, self.ram, self.vram_slider, self.vram], layout=row)
        lever_row = w.HBox([w.HTML("<b>Save memory:</b>"), *self.levers], layout=row)
        machine_row = w.HBox([self.which, self.again, self.undo], layout=row)
        box = w.VBox(
            [
                w.HBox([self.model, self.quantization, self.cache], layout=row),
                w.HBox([self.context, self.n_ctx, self.slots], layout=row),
                w.HBox([self.ubatch, self.flash, self.last_only, self.repack, self.gpu_layers], layout=row),
                machine_row,
                self.other_row,
                self.result,
                lever_row,
                self.view,
                self.details,
            ],
            layout={"width": "100%"},
        )
        box.add_class("kit-app")
        return box

    # state

    def _choice(self):
        slots = self.slots.value
        return {
            "model": self.model.value,
            "quantization": self.quantization.value,
            "n_ctx": self.n_ctx.value,
            "cache_type_k": self.cache.value,
            "cache_type_v": self.cache.value if self.flash.value else "f16",
            "flash_attn": self.flash.value,
            "n_parallel": slots,
            "n_ubatch": self.ubatch.value,
            "n_outputs_max": slots if self.last_only.value else 0,
            "repack": (self.machine.repack or "avx2") if self.repack.value else False,
            "n_gpu_layers": self.gpu_layers.value if self.machine.gpus else 0,
        }

    @property
    def machine(self):
        if self.which.value == "here":
            return self.here
        return hardware.Machine.pretend(
            "another computer", units.from_gib(self.ram.value), vram_bytes=units.from_gib(self.vram.value)
        )

    @property
    def inputs(self):
        """Every widget that a person sets, by name."""
        names = (*dict.fromkeys(WIDGETS.values()), "which", "ram", "vram")
        return {name: getattr(self, name) for name in names}

    def _state(self):
        return {name: widget.value for name, widget in self.inputs.items()}

    def _put(self, state):
        """Put a state into the widgets without a redraw for each of them."""
        self.quiet = True
        try:
            for name, value in state.items():
                self.inputs[name].value = value
            self._move_sliders()
        finally:
            self.quiet = False

    # wiring

    def _observe(self):
        for slider, field in self._pairs():
            slider.observe(functools.partial(self._slider_moved, field), "value")
        for widget in self.inputs.values():
            widget.observe(self._changed, "value")
        self.view.observe(self._view_changed, "value")
        for index, button in enumerate(self.levers):
            button.on_click(functools.partial(self._pull, index))
        self.undo.on_click(self._undo)
        self.again.on_click(self._look_again)

    def _pairs(self):
        """Sliders, each with the field beside it that holds the value; the field reaches further."""
        return (self.context, self.n_ctx), (self.ram_slider, self.ram), (self.vram_slider, self.vram)

    @shown
    def _slider_moved(self, field, change):
        if not self.quiet:
            field.value = change["new"]

    def _move_sliders(self):
        """Every slider to the place nearest to its field."""
        quiet, self.quiet = self.quiet, True
        self.context.value = min(CONTEXTS, key=lambda n: abs(n - self.n_ctx.value))
        self.ram_slider.value, self.vram_slider.value = self.ram.value, self.vram.value
        self.quiet = quiet

    @shown
    def _changed(self, _):
        if not self.quiet:
            self._put({"quantization": fit.suited(models.get(self.model.value), self.quantization.value)})
            self._remember_and_refresh()

    def _remember_and_refresh(self):
        self._refresh()  # raises for an unknown model, so that only what worked is remembered
        state = self._state()
        if state != self.last:
            self.past.append(self.last)
            self.last = state
        self.undo.disabled = not self.past

    @shown
    def _view_changed(self, _):
        if self.shown:
            self._show_details()

    @shown
    def _pull(self, index, _):
        if not self.shown or index >= len(self.shown["verdict"].levers):
            return
        change = self.shown["verdict"].levers[index].change
        state = {WIDGETS[name]: value for name, value in change.items()}
        if "last_only" in state:
            state["last_only"] = bool(state["last_only"])
        self._put(state)
        self._remember_and_refresh()

    @shown
    def _undo(self, _):
        if self._state() == self.last and self.past:  # otherwise the last change failed, and `last` is before it
            self.last = self.past.pop()
        self._put(self.last)
        self._refresh()
        self.undo.disabled = not self.past

    @shown
    def _look_again(self, _):
        self.here = hardware.detect()
        self._refresh()

    def _fail(self, error):
        """The sentence of an error instead of a result; what was shown before would be read as the answer."""
        self.shown = None
        self.result.value = figures.error_html(error)
        self.details.value = ""
        self._show_levers(())
        self.undo.disabled = False

    # showing

    def _refresh(self):
        """The sentence goes to the page first; the engine is asked after that, and only where its answer is seen."""
        machine = self.machine
        self.shown = fit_view(self._choice(), machine)
        self.result.value = self.shown["result"]
        self._show_levers(self.shown["verdict"].levers)
        self.other_row.layout.display = None if self.which.value == "other" else "none"
        self.gpu_layers.layout.display = None if machine.gpus else "none"
        self._show_details()

    def _show_details(self):
        if self.view.value == "Numbers":
            needs = self.shown["estimate"]
            asked, note = self._asked(needs)
            self.shown["Numbers"] = _numbers(needs, self.shown["verdict"], asked, note)
        self.details.value = self.shown[self.view.value]

    def _show_levers(self, levers):
        for button, lever in zip(self.levers, [*levers, *[None] * N_LEVERS], strict=False):
            with button.hold_sync():
                button.layout.visibility = "visible" if lever else "hidden"
                if lever:
                    button.description = f"{lever.name}: -{units.show(lever.saved_bytes)} {fit.SIGNS[lever.status]}"
                    button.tooltip = str(lever)

    def _asked(self, needs):
        """(the engine's Estimate or None, a sentence about it)."""
        if not self.ask_engine:
            return None, self.why_not
        if not self.engine_warm:
            return None, "Starting the engine ..."
        try:
            asked = engine.reserve(needs.spec, needs.quantization, **needs.settings)
        except (engine.EngineError, ImportError, ValueError) as error:
            return None, str(error)
        without_gpu = " It was asked for the processor alone; no GPU took part." if needs.by_device else ""
        return asked, f"Engine: llama.cpp's own dry run of exactly this choice, without weights.{without_gpu}"

    def _warm(self):
        with self.lock:
            choice = self._choice()
        with contextlib.suppress(Exception):  # what is shown next asks again, and says what is wrong
            engine.tensor_types(models.get(choice["model"]), choice["quantization"])
        self._engine_ready()

    @shown
    def _engine_ready(self):
        self.engine_warm = True
        if self.shown:
            self._show_details()


def ask_panel(model, question="Why is the sky blue?", system="", temperature=0.7, max_tokens=128):
    """Talk to a loaded model, with its settings at hand; the answer streams (an `ipywidgets.VBox`).

    Parameters
    ----------
    model : runner.Model
        From `runner.load`.
    question, system, temperature, max_tokens
        Where to start.
    """
    return _AskPanel(model, question, system, temperature, max_tokens).box


class _AskPanel:
    def __init__(self, model, question, system, temperature, max_tokens):
        self.w = need("ipywidgets", "show the panel")
        self.model = model
        self.lock = threading.RLock()
        self.busy = False
        w, label = self.w, {"description_width": "110px"}
        self.question = w.Textarea(value=question, description="Question", rows=2, style=label, layout={"width": "98%"})
        self.system = w.Text(value=system, description="System prompt", style=label, layout={"width": "98%"},
                             placeholder="standing instructions, may stay empty")  # fmt: skip
        self.temperature, temperature_row = self._slider("Temperature", temperature, 2.0)
        self.top_p, top_p_row = self._slider("Top-p", 0.95, 1.0)
        self.max_tokens = w.BoundedIntText(value=max_tokens, min=1, max=4096, description="Max tokens", style=label,
                                           layout={"width": "200px"})  # fmt: skip
        self.ask = w.Button(description="Ask", button_style="primary", tooltip="Send the question")
        self.stop = w.Button(description="Stop", disabled=True, tooltip="End the answer here")
        self.result = w.HTML(layout={"min_height": "120px"})
        self.prompt = w.HTML()
        self.ask.on_click(self._ask)
        self.stop.on_click(self._stop)
        self.box = w.VBox(
            [
                self.question,
                self.system,
                w.HBox(temperature_row),
                w.HBox(top_p_row),
                w.HBox([self.max_tokens, self.ask, self.stop], layout={"align_items": "center"}),
                self.result,
                self.prompt,
            ]
        )
        self.box.add_class("kit-app")
        self.box.add_class("kit-ask")

    def _slider(self, name, value, most):
        """A slider and the labelled field that says and takes its number (sliders have no accessible name)."""
        w = self.w
        slider = w.FloatSlider(value=value, min=0, max=most, step=0.05, description=name, readout=False,
                               style={"description_width": "110px"}, layout={"width": "400px"})  # fmt: skip
        field = w.BoundedFloatText(value=value, min=0, max=most, step=0.05, description=f"{name} value",
                                   style={"description_width": "130px"}, layout={"width": "220px"})  # fmt: skip
        w.link((slider, "value"), (field, "value"))
        return field, (slider, field)

    @shown
    def _ask(self, _):
        if self.busy:
            return
        self._work(True)
        self.result.value = figures.answer_html("", "reading the question ...")
        threading.Thread(target=self._answer, daemon=True).start()

    @shown
    def _stop(self, _):
        self.model.cancel()

    def _work(self, busy):
        self.busy = self.ask.disabled = busy
        self.stop.disabled = not busy

    def _fail(self, error):
        self.result.value = figures.error_html(error)

    def _answer(self):
        pieces = _Pieces(self.result)
        try:
            if not self.model.alive:  # closed by a later cell, or its process died: a question wants an answer anyway
                self.result.value = figures.answer_html("", "loading the model again ...")
                self.model.reload()
            answer = self.model.ask(
                self.question.value,
                system=self.system.value or None,
                temperature=self.temperature.value,
                top_p=self.top_p.value,
                max_tokens=self.max_tokens.value,
                stream=pieces,
            )
            self.result.value = figures.answer_html(answer.text, " ".join([answer.measured(), *answer.notes]))
            self.prompt.value = figures.page(figures.code_html([("What the model was really given", answer.prompt)]))
        except Exception as error:  # a dead model, a question too long: its sentence belongs on the screen
            said = figures.answer_html(pieces.text, "so far, before the error") if pieces.text else ""
            self.result.value = figures.error_html(error) + said
        finally:
            with self.lock:
                self._work(False)


class _Pieces:
    """Collects streamed pieces and repaints at most 20 times a second, so that a fast model does not flood the page."""

    def __init__(self, screen, every_s=0.05):
        self.screen, self.every_s = screen, every_s
        self.text, self.painted = "", 0.0

    def __call__(self, piece):
        self.text += piece
        now = time.monotonic()
        if now - self.painted >= self.every_s:
            self.screen.value = figures.answer_html(self.text, "answering ...")
            self.painted = now


def compare_panel(machine=None, model="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192, calibration=None):
    """Every model at every quantization, judged by a machine (an `ipywidgets.VBox`); click a cell to see it in full.

    Parameters
    ----------
    machine : hardware.Machine, optional
        The computer to judge by; found out when left out.
    model, quantization, n_ctx
        Where to start.
    calibration : speed.Calibration, optional
        From `speed.calibrate()` on that computer, for its tokens/s; without it they are a rough band.
    """
    return explore.Compare(machine or hardware.detect(), model, quantization, n_ctx, calibration).box


def context_panel(machine=None, names=explore.START_CURVES, quantization="Q4_K_M"):
    """Memory against context for up to five models, and where each crosses the machine (an `ipywidgets.VBox`).

    Parameters
    ----------
    machine : hardware.Machine, optional
        The computer to judge by; found out when left out.
    names, quantization
        Where to start.
    """
    return explore.Context(machine or hardware.detect(), names, quantization).box


def design_panel(start="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192, ask_engine=True):
    """Design a model: its weights, its file, its memory by formula and engine, live (an `ipywidgets.VBox`).

    Parameters
    ----------
    start, quantization, n_ctx
        Where to start; `start` is a model of the catalogue.
    ask_engine : bool
        Also ask llama.cpp itself when it is installed.
    """
    return explore.Design(start, quantization, n_ctx, ask_engine).box


def offload_panel(machine=None, model="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192):
    """Layers on the GPU: what lies in which memory, and what a token reads from each (an `ipywidgets.VBox`).

    Parameters
    ----------
    machine : hardware.Machine, optional
        The computer to judge by; found out when left out. Without a GPU one is pretended, and the panel says so.
    model, quantization, n_ctx
        Where to start.
    """
    return explore.Offload(machine or hardware.detect(), model, quantization, n_ctx).box


def speed_panel(computers, model="llama-3.1-8b", quantization="Q4_K_M", n_ctx=8192):
    """The predicted speed of a model, and what its time goes into (an `ipywidgets.VBox`).

    Parameters
    ----------
    computers : dict
        Names of computers, the first one chosen; each value holds keywords of `speed.predict` that describe it, such
        as {"where": speed.calibrate()}.
    model, quantization, n_ctx
        Where to start; `n_ctx` counts the tokens that are in the context.
    """
    return explore.Speed(computers, model, quantization, n_ctx).box


def all_panels(machine=None):
    """The five panels for one machine behind tabs (an `ipywidgets.Tab`): what the app without code shows.

    Parameters
    ----------
    machine : hardware.Machine, optional
        The computer to judge by; found out when left out.
    """
    machine = machine or hardware.detect()
    shown = {
        "Will it fit?": fit_panel(machine),
        "Every model": compare_panel(machine),
        "Context": context_panel(machine),
        "A model of your own": design_panel(),
        "Two memories": offload_panel(machine),
    }
    return need("ipywidgets", "show the panels").Tab(list(shown.values()), titles=list(shown))
