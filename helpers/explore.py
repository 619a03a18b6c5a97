"""Five panels to explore with: every model here, memory against context, a model of one's own, two memories, speed.

Wiring only: each panel shows what a pure `..._view` function makes of its controls. `helpers.panels` is where they are
reached from.
"""

import contextlib
import dataclasses
import functools
import threading

from . import (
    architectures,
    commands,
    engine,
    figures,
    figures_speed,
    fit,
    formats,
    hardware,
    memory,
    models,
    speed,
    units,
)
from .need import need

CONTEXTS = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072)
QUANTIZATIONS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS",
                 "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_XS", "Q2_K", "IQ2_M")  # fmt: skip
CACHE_TYPES = ("f16", "q8_0", "q4_0")
NO_ENGINE = "llama-cpp-python is not installed, so the engine cannot be asked; the formula stands alone."
ROW = {"flex_flow": "row wrap", "align_items": "center"}
ONE_ROW = {"display": "flex", "flex_flow": "row wrap", "align_items": "center", "width": "auto"}
STATUSES = (
    ("all models", ""),
    *((f"{fit.SIGNS[status]} {says}", status) for status, says in zip(fit.STATUSES, (
        "something fits", "tight at best", "only from disk", "nothing fits"), strict=True)),
)  # fmt: skip
BY_SPEED = "most tokens/s"
ORDERS = (*fit.ORDERS, BY_SPEED)
MEASURE_S = 8.0  # what `speed.calibrate` may take when somebody asks for it
NOBODY = "(none)"
START_CURVES = ("llama-3.1-8b", "gemma-3-4b", "qwen3-1.7b")
PRETENDED_GIB = 8.0
# Field -> (words, least and most of its slider); None: a field alone.
SHAPE = {
    "n_layer": ("layers", (1, 128, 1)),
    "n_embd": ("width", (64, 16384, 64)),
    "n_ff": ("feed-forward", (64, 65536, 64)),
    "n_head": ("query heads", None),
    "n_head_kv": ("KV heads", None),
    "n_embd_head": ("size of a head", None),
    "n_vocab": ("vocabulary", None),
    "n_swa": ("window in tokens", None),
    "swa_pattern": ("every how many-th layer sees all", None),
    "n_expert": ("experts", None),
    "n_expert_used": ("experts used by a token", None),
    "n_ff_exp": ("width of one expert, 0: n_ff", None),
}
DESIGN_VIEWS = ("Numbers", "Where the weights are", "Code")
CHOSEN_VIEWS = ("Numbers", "Code and commands")
ANSWERED = 64  # tokens of the answer that `speed_panel` foresees
OFFLOAD_VIEWS = ("Numbers", "Code and commands")


# --- what the panels show, as pure data ----------------------------------------------------------------------------


def compare_view(rows, choice, quantizations=fit.LADDER, calibration=None):
    """The grid of `compare_panel` and a line about it: `rows` from `fit.compare`; `choice` has text, status, order.

    `calibration`: a `speed.Calibration`; without it no speed is foreseen.
    """
    left = fit.choose_rows(rows, choice["text"], choice["status"])
    answers = {row.spec.name: _answer(row, calibration) for row in left} if calibration else {}
    if choice["order"] == BY_SPEED:
        left = sorted(left, key=lambda row: -getattr(answers.get(row.spec.name), "likely", 0))
    else:
        left = fit.sort_rows(left, choice["order"])
    losses = {name: models.published_loss(name) for name in quantizations}
    on_gpu = any(needs.by_device for row in left for needs, _ in row.cells.values())
    paces = {name: _pace_texts(band, calibration) for name, band in answers.items() if band}
    return {
        "rows": left,
        "grid": figures.grid_html(left, quantizations, losses, paces),
        "note": figures.page(figures.note_html(_speeds(calibration, on_gpu)), _known(left)),
    }


def _answer(row, calibration):
    """Tokens/s of an answer of a model's best quantization, a `Band`, or None where nothing is foreseen."""
    if not row.best:
        return None
    return _band(row.spec, row.best, calibration, row.cells[row.best][0].settings["n_gpu_layers"])


@functools.lru_cache(maxsize=1024)  # a slider of the context seldom changes it
def _band(spec, quantization, calibration, n_gpu_layers):
    try:
        return speed.predict(spec, quantization, 0, calibration, n_gpu_layers=n_gpu_layers).answer
    except ValueError:  # an unknown card, or a type of tensors that nobody timed
        return None


def _pace_texts(band, calibration):
    """(the likeliest, the band); without a measurement the band alone."""
    wide = f"{figures_speed.speed_text(band.low)} to {figures_speed.speed_text(band.high)}"
    return ("" if calibration.source == "assumed" else figures_speed.speed_text(band.likely)), wide


def _speeds(calibration, on_gpu):
    """How the tokens/s of the grid are known."""
    if calibration is None:
        return "Tokens/s: not foreseen."
    says = "Tokens/s: answers of the best that fits, while the context is short. "
    if on_gpu and not calibration.gpu_bytes_per_s:
        says += f"The bandwidth of {calibration.gpu_name or 'this card'} is not known here, so none is foreseen on it. "
    return (
        says
        + ("Formula. " if calibration.source == "assumed" else "Formula, calibrated. ")
        + " ".join(calibration.notes)
    )


def _known(left):
    quality, fitting = models.published_quality(), sum(bool(row.best) for row in left)
    says = (
        f"{len(left)} models, {fitting} of them fit. Totals and reads (weights that a token reads): formula. Loss: "
        f"published, perplexity of {quality['model']} on {quality['text']} against F16 (IQ types with an "
        "importance matrix); small models lose more."
    )
    return figures.note_html(says, quality["link"])


def chosen_view(choice, machine, calibration=None):
    """One cell in full: `choice` has "model", "quantization" and any of `memory.Settings`."""
    spec, settings = _spec_and_settings(choice)
    needs = memory.estimate(spec, choice["quantization"], **vars(settings))
    verdict = fit.judge(needs, machine)
    pieces = commands.everywhere(spec, choice["quantization"], settings)
    name = figures.note_html(f"{needs.name}: {formats.quantization(choice['quantization']).says}")
    pace = figures.note_html(_pace(spec, choice["quantization"], settings, calibration or machine))
    return {
        "estimate": needs,
        "verdict": verdict,
        "result": figures.page(figures.sentence_html(verdict), figures.memory_bar_svg(needs, verdict)),
        "Numbers": figures.page(
            name, pace, figures.parts_table_html(needs, rule_bytes=fit.rule_of_thumb_bytes(needs)),
            figures.reasons_html(verdict, needs),
        ),
        "Code and commands": figures.page(figures.code_html(pieces)),
    }  # fmt: skip


def _pace(spec, quantization, settings, where):
    """The speed of an answer in a line, or why it cannot be foreseen."""
    try:
        found = speed.predict(spec, quantization, 0, where, n_gpu_layers=settings.n_gpu_layers)
    except ValueError as error:  # an unknown card, or a type of tensors that nobody timed
        return f"Speed: {error}"
    said = f"Speed, if it fits: {figures_speed.band_text(found.answer)} tokens/s (formula). "
    return said + " ".join(found.assumptions)


def context_view(names, quantization, machine, **settings):
    """What `context_panel` shows for some models: the picture and its table."""
    specs = [models.get(name) for name in names]
    curves = fit.curves(specs, quantization, machine, CONTEXTS, **settings)
    best = max(curves, key=lambda curve: curve.longest, default=None)
    if best is None:
        sentence = figures.says_html("Choose a model.")
    elif best.longest:
        beyond = f" (trained for {best.spec.n_ctx_train:,})" if best.longest > best.spec.n_ctx_train else ""
        said = f"{best.spec.title or best.spec.name} goes furthest: {best.longest:,} tokens fit{beyond}."
        sentence = figures.says_html(said)
    else:
        sentence = figures.says_html("None of these fits, however short the context is.")
    free = machine.ram_available_bytes
    table = figures.curves_table_html(curves, fit.CONTEXTS)
    note = figures.note_html(
        "Formula. Each line: one model, thin beyond what it was trained for; ring: where it crosses the free memory."
    )
    return {
        "curves": curves,
        "result": figures.page(sentence, figures.curves_svg(curves, free)),
        "details": figures.page(table, note),
    }


def design_spec(choice):
    """The `ModelSpec` that `design_panel`'s fields describe; raises `ValueError` with a sentence when it cannot be."""
    start = models.get(choice["start"])
    latent = "mla" in architectures.FAMILIES[choice["architecture"]]
    names = ("n_layer", "n_embd", "n_ff", "n_head", "n_head_kv", "n_vocab")
    shape = {name: choice[name] for name in names}
    if not latent:
        shape |= {"n_embd_head_k": choice["n_embd_head"], "n_embd_head_v": choice["n_embd_head"]}
    for switch, fields in (
        ("windows", ("n_swa", "swa_pattern")),
        ("experts", ("n_expert", "n_expert_used", "n_ff_exp")),
    ):
        shape |= {name: choice[name] if choice[switch] else 0 for name in fields}
    if choice["experts"] and False not in architectures.may_have(choice["architecture"])["experts"]:
        shape["n_ff_exp"] = choice["n_ff_exp"] or choice["n_ff"]
    spec = architectures.redesign(start, architecture=choice["architecture"], tied=choice["tied"], **shape)
    architectures.check(spec)
    return spec


def design_view(choice, asked=None, note="", asking=False):
    """What `design_panel` shows for its fields; `asked` is the engine's Estimate or None."""
    spec = design_spec(choice)
    settings = memory.Settings(n_ctx=choice["n_ctx"], cache_type_k=choice["cache"], cache_type_v=choice["cache"])
    needs = memory.estimate(spec, choice["quantization"], **vars(settings))
    file_bytes = memory.file_bytes(spec, choice["quantization"])
    active = f", {units.show_count(spec.n_params_active)} active" if spec.n_expert else ""
    sentence = (
        f"{units.show_count(spec.n_params)} weights{active}; file {units.show_decimal(file_bytes)} "
        f"({choice['quantization']}); memory {units.show(needs.total_bytes)} at {choice['n_ctx']:,} tokens."
    )
    parts = architectures.params_by_part(spec)
    about = figures.note_html(
        f"Family {spec.architecture}, the rest as in {models.get(choice['start']).title}. Formula."
    )
    code = commands.design_cell(models.get(choice["start"]), spec, choice["quantization"], settings)
    return {
        "spec": spec,
        "estimate": needs,
        "result": figures.page(figures.says_html(sentence), figures.params_bar_svg(parts), about),
        "Numbers": design_numbers(needs, asked, note, asking),
        "Where the weights are": figures.page(figures.params_table_html(parts)),
        "Code": figures.page(figures.code_html([("In Python", code)])),
    }


def design_numbers(needs, asked=None, note="", asking=False):
    """The table of `design_panel`: the formula, and the engine beside it."""
    table = figures.parts_table_html(needs, asked, note, fit.rule_of_thumb_bytes(needs), asking)
    return figures.page(table, *(figures.note_html(line) for line in needs.assumptions))


def offload_view(choice, machine):
    """What `offload_panel` shows for one choice: `choice` as in `chosen_view`, with "n_gpu_layers"."""
    spec, settings = _spec_and_settings(choice)
    needs = memory.estimate(spec, choice["quantization"], **vars(settings))
    without = {name: value for name, value in vars(settings).items() if name != "n_gpu_layers"}
    verdict, limits = fit.judge(needs, machine), fit.limits(needs, machine, idle_gpu=True)
    most = fit.most_gpu_layers(spec, choice["quantization"], machine, **without)
    reads = {"cpu": 0, "gpu": 0, **fit.read_bytes_by_device(needs)}
    layers = f"{settings.n_gpu_layers} of {spec.n_layer + 1} layers on the GPU (the output matrix counts as one); "
    layers += f"the most that fit its memory: {most}."
    speed = (
        f"Each token reads {units.show_decimal(reads['cpu'])} of weights from memory and "
        f"{units.show_decimal(reads['gpu'])} from video memory (formula). No GPU was present when this was written, so "
        "no tokens per second are promised: the less the slower memory has to read, the faster."
    )
    pieces = commands.everywhere(spec, choice["quantization"], settings)
    reasons = figures.reasons_html(verdict, needs)
    return {
        "estimate": needs,
        "verdict": verdict,
        "most": most,
        "result": figures.page(
            figures.sentence_html(verdict), figures.note_html(layers), figures.devices_svg(needs, limits)
        ),
        "Numbers": figures.page(
            figures.note_html(speed), figures.devices_table_html(needs, limits, reads), reasons
        ),
        "Code and commands": figures.page(figures.code_html(pieces)),
    }  # fmt: skip


def speed_view(choice, computer):
    """What `speed_panel` shows for one choice ("model", "quantization", "n_ctx"); `computer`: words of `speed.predict`.

    The context is taken to be full but for an answer of `ANSWERED` tokens; beside it the same with an empty one.
    """
    spec, quantization, n_ctx = models.get(choice["model"]), choice["quantization"], choice["n_ctx"]
    full, empty = (
        speed.predict(spec, quantization, n_ctx, n_prompt=n_prompt, n_answer=ANSWERED, **computer)
        for n_prompt in (n_ctx - ANSWERED, 1)
    )
    return {"prediction": full, "result": figures_speed.prediction_html(full, empty)}


def with_pretended_gpu(machine, vram_bytes):
    """A machine with a GPU of so much free memory; one that has a GPU keeps its own."""
    if machine.gpus:
        return machine
    pretended = hardware.Machine.pretend("pretended", 0, vram_bytes=vram_bytes)
    return dataclasses.replace(machine, gpus=pretended.gpus)


def _spec_and_settings(choice):
    others = {name: value for name, value in choice.items() if name not in ("model", "quantization")}
    return models.get(choice["model"]), memory.Settings(**others)


# --- what the panels have in common --------------------------------------------------------------------------------


def shown(method):
    """Run a callback under the panel's lock; an error becomes a sentence in the panel."""

    @functools.wraps(method)
    def run(self, *args):
        with self.lock:
            try:
                return method(self, *args)
            except Exception as error:
                self._fail(error)

    return run


def _fixed(height):
    """A place of its own height (px), so that nothing moves when what it shows gets longer."""
    return {"height": f"{height}px", "overflow": "auto"}


class _Panel:
    """Controls, one refresh for every change, a result that an error replaces. A field is true, its slider follows."""

    def __init__(self):
        self.w = need("ipywidgets", "show the panel")
        self.lock = threading.RLock()
        self.quiet = False
        self.shown = None
        self.inputs, self.pairs = {}, []
        self.result = self.w.HTML()
        self.details = self.w.HTML()

    def _start(self, rows):
        self._refresh()
        self._observe()
        self.box = self.w.VBox(rows, layout={"width": "100%"})
        self.box.add_class("kit-app")

    def _observe(self):
        for slider, field in self.pairs:
            slider.observe(functools.partial(self._slider_moved, field), "value")
        for widget in self.inputs.values():
            widget.observe(self._changed, "value")

    @shown
    def _slider_moved(self, field, change):
        if not self.quiet:
            field.value = change["new"]

    @shown
    def _changed(self, change):
        if self.quiet:
            return
        with self._quietly():
            self._move_sliders()
            self._follow(change["owner"])
        self._refresh()

    @contextlib.contextmanager
    def _quietly(self):
        """While it lasts, changes of controls show nothing."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def _move_sliders(self):
        for slider, field in self.pairs:
            if hasattr(slider, "options"):
                slider.value = min((n for _, n in slider.options), key=lambda n: abs(n - field.value))
            else:
                slider.value = field.value

    def _follow(self, widget):
        """Set the controls that follow another one, before anything is shown."""

    def _put(self, **values):
        """Set several controls, and show the result once."""
        with self._quietly():
            for name, value in values.items():
                self.inputs[name].value = value
            self._move_sliders()
        self._refresh()

    def _fail(self, error):
        """The sentence of an error instead of a result; what was shown before would be read as the answer."""
        self.shown = None
        self.result.value = figures.error_html(error)
        self.details.value = ""

    # controls

    def _dropdown(self, name, value, options, description, width, label=82):
        self.inputs[name] = self.w.Dropdown(value=value, options=options, description=description,
                                            style={"description_width": f"{label}px"},
                                            layout={"width": f"{width}px"})  # fmt: skip
        return self.inputs[name]

    def _number(self, name, value, least, most, description, width, label):
        self.inputs[name] = self.w.BoundedIntText(value=value, min=least, max=most, description=description,
                                                  style={"description_width": f"{label}px"},
                                                  layout={"width": f"{width}px"})  # fmt: skip
        return self.inputs[name]

    def _context(self, n_ctx, width=330, field_width=150):
        """A slider over usual contexts and the field that takes any."""
        slider = self.w.SelectionSlider(
            value=min(CONTEXTS, key=lambda n: abs(n - n_ctx)), options=[(f"{n:,}", n) for n in CONTEXTS],
            description="Context", readout=False, style={"description_width": "82px"}, layout={"width": f"{width}px"},
        )  # fmt: skip
        field = self._number("n_ctx", n_ctx, 256, 1_048_576, "tokens", field_width, 50)
        self.pairs.append((slider, field))
        return slider, field

    def _toggle(self, options, description, width):
        return self.w.ToggleButtons(
            options=options, description=description, layout=ONE_ROW,
            style={"button_width": f"{width}px", "description_width": "82px"},
        )  # fmt: skip

    # the machine

    def _machine_row(self, machine, vram=False):
        """ "this computer", or another one with the memory that its field says."""
        self.here = machine
        self.inputs["which"] = self._toggle((("this computer", "here"), ("another one", "other")), "Judge by", 115)
        slider = self.w.FloatSlider(value=8.0, min=1, max=128, step=0.5, description="Free RAM", readout=False,
                                    style={"description_width": "65px"}, layout={"width": "190px"})  # fmt: skip
        field = self.w.BoundedFloatText(value=8.0, min=0.5, max=2048, step=0.5, description="GiB RAM",
                                        style={"description_width": "60px"}, layout={"width": "140px"})  # fmt: skip
        self.inputs["ram"] = field
        self.pairs.append((slider, field))
        self.again = self.w.Button(description="look again", tooltip="Read this computer's free memory again",
                                   layout={"width": "95px"})  # fmt: skip
        self.again.on_click(self._look_again)
        self.only_other, self.only_here = [slider, field], [self.again]
        if vram:
            self.only_other.append(self._vram_field(0.0))
        return self.w.HBox([self.inputs["which"], *self.only_other, self.again], layout=ROW)

    def _vram_field(self, gib):
        self.inputs["vram"] = self.w.BoundedFloatText(value=gib, min=0, max=2048, step=0.5, description="GiB VRAM",
                                                      style={"description_width": "70px"},
                                                      layout={"width": "140px"})  # fmt: skip
        return self.inputs["vram"]

    @property
    def machine(self):
        if self.inputs["which"].value == "here":
            return self.here
        vram = self.inputs["vram"].value if "vram" in self.inputs else 0
        return hardware.Machine.pretend(
            "another computer", units.from_gib(self.inputs["ram"].value), vram_bytes=units.from_gib(vram)
        )

    def _show_machine_controls(self):
        other = self.inputs["which"].value == "other"
        for widget in self.only_other:
            widget.layout.display = None if other else "none"
        for widget in self.only_here:
            widget.layout.display = "none" if other else None

    @shown
    def _look_again(self, _):
        self.here = hardware.detect()
        self._refresh()

    # two views below the result

    def _views(self, names, height):
        self.view = self._toggle(names, "Show", 170)
        self.details.layout = _fixed(height)
        self.view.observe(self._view_changed, "value")

    @shown
    def _view_changed(self, _):
        if self.shown:
            self.details.value = self.shown[self.view.value]

    def _show(self, view):
        self.shown = view
        self.result.value = view["result"]
        self.details.value = view[self.view.value]


# --- every model here ----------------------------------------------------------------------------------------------


@functools.cache
def _grid_class():
    """The table that can be clicked, as a widget; its other half is data/grid.js."""
    anywidget = need("anywidget", "click on the grid")
    import traitlets

    class Grid(anywidget.AnyWidget):
        _esm = models.DATA.joinpath("grid.js")
        html = traitlets.Unicode().tag(sync=True)
        picked = traitlets.Unicode().tag(sync=True)
        height = traitlets.Unicode().tag(sync=True)

    return Grid


class Compare(_Panel):
    """Every model at every quantization; a cell that is picked is shown in full."""

    def __init__(self, machine, model, quantization, n_ctx, calibration=None):
        super().__init__()
        self.computed = self.rows = None
        self.calibration = calibration
        model, quantization = models.get(model).name, formats.quantization(quantization).name
        first = [
            *self._context(n_ctx),
            self._dropdown("cache", "f16", CACHE_TYPES, "Cache type", 160),
            self._number("slots", 1, 1, 64, "Slots", 100, 40),
        ]
        second = self._machine_row(machine, vram=True)
        self.measure = self.w.Button(
            description="measure speed", layout={"width": "125px"},
            tooltip=f"Time the packaged model on this computer, about {MEASURE_S:.0f} s; narrows the tokens/s",
        )  # fmt: skip
        self.measure.on_click(self._measure)
        second.children = (*second.children, self.measure)
        self.inputs["text"] = self.w.Text(description="Filter", placeholder="name or family", layout={"width": "230px"},
                                          style={"description_width": "82px"})  # fmt: skip
        self.inputs["on_gpu"] = self.w.Checkbox(value=True, description="all on the GPU", indent=False,
                                                layout={"width": "130px", "margin": "2px 2px 2px 8px"})  # fmt: skip
        third = [
            self.inputs["text"],
            self._dropdown("status", "", STATUSES, "Models", 210, 60),
            self._dropdown("order", ORDERS[0], ORDERS, "Sort by", 235, 60),
            self.inputs["on_gpu"],
        ]
        self.grid = _grid_class()(height="262px", picked=f"{model}|{quantization}")
        self.note = self.w.HTML(layout=_fixed(86))
        fourth = [
            self._dropdown("model", model, models.names(), "Model", 330),
            self._dropdown(
                "quantization", fit.suited(models.get(model), quantization),
                tuple(dict.fromkeys((*fit.LADDER, "MXFP4", quantization))), "Quantization", 200, 90,
            ),
        ]  # fmt: skip
        self._views(CHOSEN_VIEWS, 270)
        self.result.layout = _fixed(150)
        box = functools.partial(self.w.HBox, layout=ROW)
        rows = [box(first), second, box(third), self.grid, self.note, box(fourth), self.result, self.view, self.details]
        self._start(rows)
        self.grid.observe(self._picked, "picked")

    def _settings(self):
        cache = self.inputs["cache"].value
        return {
            "n_ctx": self.inputs["n_ctx"].value,
            "cache_type_k": cache,
            "cache_type_v": cache,
            "n_parallel": self.inputs["slots"].value,
            "n_gpu_layers": -1 if self.inputs["on_gpu"].value and self.machine.gpus else 0,
        }

    @shown
    def _picked(self, change):
        if self.quiet:
            return
        model, _, quantization = change["new"].partition("|")
        if model in models.names() and quantization in fit.quantizations_of(models.get(model)):
            with self._quietly():
                self.inputs["model"].value, self.inputs["quantization"].value = model, quantization
            self._show_chosen()

    def _follow(self, widget):
        self.inputs["quantization"].value = fit.suited(
            models.get(self.inputs["model"].value), self.inputs["quantization"].value
        )

    @shown
    def _measure(self, _):
        self.measure.disabled, self.measure.description = True, "measuring ..."
        threading.Thread(target=self._calibrate, daemon=True).start()

    def _calibrate(self):
        """In the other thread: a short run of the packaged model."""
        try:
            found = speed.calibrate(seconds=MEASURE_S)
            with self.lock:
                self.calibration = found
                self._refresh()
        except Exception as error:  # no model, no memory for it: its sentence belongs on the screen
            with self.lock:
                self._fail(error)
        finally:
            self.measure.disabled, self.measure.description = False, "measure again"

    def _refresh(self):
        self._show_machine_controls()
        settings, machine = self._settings(), self.machine
        here = self.inputs["which"].value == "here"
        can = here and engine.available() and machine.system != "imagined"
        self.measure.layout.display = None if can else "none"
        self.where = self.calibration if here and self.calibration else speed.assumed(machine)
        self.inputs["on_gpu"].layout.display = None if machine.gpus else "none"
        if self.computed != (settings, machine):
            self.rows, self.computed = fit.compare(machine, **settings), (settings, machine)
        choice = {name: self.inputs[name].value for name in ("text", "status", "order")}
        view = compare_view(self.rows, choice, calibration=self.where)
        with self._quietly():
            self.grid.html = view["grid"]
            self.grid.picked = f"{self.inputs['model'].value}|{self.inputs['quantization'].value}"
        self.note.value = view["note"]
        self._show_chosen()

    def _show_chosen(self):
        chosen = {name: self.inputs[name].value for name in ("model", "quantization")}
        self._show(chosen_view({**chosen, **self._settings()}, self.machine, self.where))


# --- memory against context ----------------------------------------------------------------------------------------


class Context(_Panel):
    """Memory of several models against context, with the machine's line."""

    def __init__(self, machine, names, quantization):
        super().__init__()
        names = [*(models.get(name).name for name in names), *[NOBODY] * 5][:5]
        choices = [
            self._dropdown(f"model {number}", name, (NOBODY, *models.names()), f"Model {number}", 270, 62)
            for number, name in enumerate(names, 1)
        ]
        choices.append(self._dropdown("quantization", quantization, QUANTIZATIONS, "Quantization", 200, 90))
        self.inputs["flash"] = self.w.Checkbox(value=True, description="flash attention", indent=False,
                                               layout={"width": "140px", "margin": "2px 2px 2px 14px"})  # fmt: skip
        third = [
            self._dropdown("cache", "f16", CACHE_TYPES, "Cache type", 160, 78),
            self._number("slots", 1, 1, 64, "Slots", 100, 40),
            self.inputs["flash"],
        ]
        box = functools.partial(self.w.HBox, layout=ROW)
        self.result.layout, self.details.layout = (
            {"height": "356px", "overflow": "auto"},
            {"height": "190px", "overflow": "auto"},
        )
        machine_row = self._machine_row(machine)
        self._start([box(choices), box(third), machine_row, self.result, self.details])

    def _refresh(self):
        self._show_machine_controls()
        chosen = (self.inputs[f"model {number}"].value for number in range(1, 6))
        names = [name for name in dict.fromkeys(chosen) if name != NOBODY]
        cache, flash = self.inputs["cache"].value, self.inputs["flash"].value
        self.shown = context_view(
            names, self.inputs["quantization"].value, self.machine, cache_type_k=cache,
            cache_type_v=cache if flash else "f16", flash_attn=flash, n_parallel=self.inputs["slots"].value,
        )  # fmt: skip
        self.result.value, self.details.value = self.shown["result"], self.shown["details"]


# --- a model of one's own ------------------------------------------------------------------------------------------


class _Newest:
    """Works in a thread of its own, only ever on the newest question: those that still wait are dropped."""

    def __init__(self, work):
        self.work, self.lock = work, threading.Lock()
        self.waiting, self.busy = None, False

    def ask(self, question):
        with self.lock:
            self.waiting = question
            if self.busy:
                return
            self.busy = True
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            with self.lock:
                question, self.waiting = self.waiting, None
                if question is None:
                    self.busy = False
                    return
            self.work(question)


class Design(_Panel):
    """Fields for every number of a model's shape; the formula answers at once, the engine as soon as it can."""

    def __init__(self, start, quantization, n_ctx, ask_engine):
        super().__init__()
        self.ask_engine = ask_engine and engine.available()
        self.why_not = NO_ENGINE if ask_engine else "The engine was not to be asked; the formula stands alone."
        self.newest = _Newest(self._ask)
        spec = models.get(start)
        first = [
            self._dropdown("start", spec.name, models.names(), "Start from", 280, 95),
            self._dropdown("architecture", spec.architecture, tuple(architectures.FAMILIES), "architecture", 200, 90),
            self._dropdown("quantization", quantization, QUANTIZATIONS, "Quantization", 190, 90),
            self._dropdown("cache", "f16", CACHE_TYPES, "Cache type", 150, 78),
        ]
        paired = [self._paired(name) for name in ("n_layer", "n_embd", "n_ff")]
        context = self._context(n_ctx, 270, 145)
        plain = [self._field(name) for name in ("n_head", "n_head_kv", "n_embd_head", "n_vocab")]
        windows = [self._switch("windows", "sliding window"), *map(self._field, ("n_swa", "swa_pattern"))]
        experts = [self._switch("experts", "experts"), *map(self._field, ("n_expert", "n_expert_used", "n_ff_exp"))]
        tied = self._switch("tied", "tied embeddings")
        box = functools.partial(self.w.HBox, layout=ROW)
        self._views(DESIGN_VIEWS, 250)
        self.result.layout = _fixed(160)
        with self._quietly():
            self._take(spec)
            self._fill_switched()
        rows = [box(first), box([*paired[0], *paired[1]]), box([*paired[2], *context]), box(plain)]
        self._start([*rows, box([*windows, tied]), box(experts), self.result, self.view, self.details])

    # controls

    def _field(self, name, width=203, label=95):
        words, _ = SHAPE[name]
        self.inputs[name] = self.w.IntText(value=0, description=name, tooltip=words,
                                           style={"description_width": f"{label}px"},
                                           layout={"width": f"{width}px"})  # fmt: skip
        return self.inputs[name]

    def _paired(self, name):
        words, (least, most, step) = SHAPE[name]
        slider = self.w.IntSlider(value=least, min=least, max=most, step=step, description=words, readout=False,
                                  style={"description_width": "95px"}, layout={"width": "262px"})  # fmt: skip
        field = self._field(name, 145, 60)
        self.pairs.append((slider, field))
        return slider, field

    def _switch(self, name, description):
        self.inputs[name] = self.w.Checkbox(value=False, description=description, indent=False,
                                            layout={"width": "163px", "margin": "2px 2px 2px 42px"})  # fmt: skip
        return self.inputs[name]

    # following

    def _follow(self, widget):
        inputs = self.inputs
        if widget is inputs["start"]:
            self._take(models.get(inputs["start"].value))
        elif widget is inputs["architecture"]:
            self._make_possible()
        elif widget in (inputs["windows"], inputs["experts"]):
            self._choose_family("windows", "experts")
            self._make_possible()
        elif widget is inputs["tied"]:  # where no family has it, the sentence of `check` says so
            self._choose_family("windows", "experts", "tied")
        self._fill_switched()

    def _choose_family(self, *names):
        """Keep the family if it may have these switches, else take the plainest that may."""
        switches = {name: self.inputs[name].value for name in names}
        family = self.inputs["architecture"]
        family.value = architectures.family_with(family.value, **switches)

    def _make_possible(self):
        """Turn the switches that the family does not leave open."""
        for switch, possible in architectures.may_have(self.inputs["architecture"].value).items():
            if self.inputs[switch].value not in possible:
                self.inputs[switch].value = not self.inputs[switch].value

    def _take(self, spec):
        """Put a model's shape into the fields."""
        values = {name: getattr(spec, name) for name in SHAPE if name != "n_embd_head"}
        values |= {"n_head_kv": spec.most_kv_heads, "n_embd_head": spec.n_embd_head_k, "tied": spec.tied}
        values |= {"architecture": spec.architecture, "experts": spec.n_expert > 0}
        values["windows"] = spec.n_swa > 0 and spec.swa_pattern > 0
        for name, value in values.items():
            self.inputs[name].value = value
        self._move_sliders()

    def _fill_switched(self):
        """Something to begin with where a switch was turned on and its fields are empty."""
        usual = {"windows": {"n_swa": 1024, "swa_pattern": 6}, "experts": {"n_expert": 8, "n_expert_used": 2}}
        for switch, fields in usual.items():
            on, empty = self.inputs[switch].value, not any(self.inputs[name].value for name in fields)
            for name, value in fields.items():
                self.inputs[name].disabled = not on
                if on and empty:
                    self.inputs[name].value = value
        self.inputs["n_ff_exp"].disabled = not self.inputs["experts"].value

    # showing

    def _refresh(self):
        choice = {name: widget.value for name, widget in self.inputs.items()}
        note = "Asking the engine ..." if self.ask_engine else self.why_not
        view = design_view(choice, note=note, asking=self.ask_engine)
        self._show(view)
        if self.ask_engine:
            self.newest.ask(view["estimate"])

    def _ask(self, needs):
        """In the other thread: the engine's answer, if it is still wanted when it comes."""
        note = "Engine: llama.cpp's own dry run of exactly this shape, without weights."
        try:
            asked = engine.reserve(needs.spec, needs.quantization, **needs.settings)
        except Exception as error:  # llama.cpp's own words about this shape, or why it cannot be asked
            asked, note = None, str(error)
        with self.lock:
            if self.shown and self.shown["estimate"] is needs:
                self.shown["Numbers"] = design_numbers(needs, asked, note)
                self.details.value = self.shown[self.view.value]


# --- two memories --------------------------------------------------------------------------------------------------


class Offload(_Panel):
    """Layers on the GPU: what lies in the memory, what in the video memory, and what a token reads from each."""

    def __init__(self, machine, model, quantization, n_ctx):
        super().__init__()
        spec = models.get(model)
        first = [
            self._dropdown("model", spec.name, models.names(), "Model", 330),
            self._dropdown("quantization", quantization, QUANTIZATIONS, "Quantization", 200, 90),
            self._dropdown("cache", "f16", CACHE_TYPES, "Cache type", 160),
        ]
        second = self._context(n_ctx)
        self.layers = self.w.IntSlider(value=0, min=0, max=spec.n_layer + 1, description="GPU layers", readout=False,
                                       style={"description_width": "82px"}, layout={"width": "330px"})  # fmt: skip
        field = self._number("n_gpu_layers", 0, 0, spec.n_layer + 1, "n_gpu_layers", 170, 90)
        self.pairs.append((self.layers, field))
        self.most = self.w.Button(description="the most that fit", layout={"width": "150px"},
                                  tooltip="As many layers as the free video memory holds")  # fmt: skip
        machine_row = self._machine_row(machine)
        vram = self.w.FloatSlider(value=PRETENDED_GIB, min=0, max=96, step=0.5, description="Free VRAM", readout=False,
                                  style={"description_width": "82px"}, layout={"width": "330px"})  # fmt: skip
        self.pairs.append((vram, self._vram_field(PRETENDED_GIB)))
        self.pretended = self.w.HTML()
        box = functools.partial(self.w.HBox, layout=ROW)
        self.vram_row = box([vram, self.inputs["vram"], self.pretended])
        self._views(OFFLOAD_VIEWS, 375)
        self.result.layout = _fixed(296)
        rows = [box(first), box(second), box([self.layers, field, self.most]), machine_row, self.vram_row]
        with self._quietly():
            field.value = self._choice_view()["most"]
            self._move_sliders()
        self._start([*rows, self.result, self.view, self.details])
        self.most.on_click(self._take_most)

    @property
    def machine(self):
        machine = super().machine
        if self.inputs["which"].value == "other":
            return machine
        return with_pretended_gpu(machine, units.from_gib(self.inputs["vram"].value))

    def _choice_view(self):
        cache = self.inputs["cache"].value
        names = ("model", "quantization", "n_ctx", "n_gpu_layers")
        choice = {name: self.inputs[name].value for name in names}
        return offload_view({**choice, "cache_type_k": cache, "cache_type_v": cache}, self.machine)

    def _follow(self, widget):
        if widget is self.inputs["model"]:
            most = models.get(widget.value).n_layer + 1
            self.inputs["n_gpu_layers"].max = self.layers.max = most

    def _refresh(self):
        self._show_machine_controls()
        here = self.inputs["which"].value == "here"
        self.vram_row.layout.display = "none" if here and self.here.gpus else None
        said = "No GPU was found here, so this one is pretended." if here else ""
        self.pretended.value = figures.page(figures.note_html(said))
        self._show(self._choice_view())

    @shown
    def _take_most(self, _):
        if self.shown:
            self._put(n_gpu_layers=self.shown["most"])


# --- speed ---------------------------------------------------------------------------------------------------------


class Speed(_Panel):
    """Tokens per second of one model, with a bar of where the time goes; nothing is measured here."""

    def __init__(self, computers, model, quantization, n_ctx):
        super().__init__()
        self.computers = dict(computers)
        first = [
            self._dropdown("model", models.get(model).name, models.names(), "Model", 330),
            self._dropdown(
                "quantization", formats.quantization(quantization).name, QUANTIZATIONS, "Quantization", 200, 90
            ),
            self._dropdown("computer", next(iter(self.computers)), tuple(self.computers), "Computer", 300),
        ]
        box = functools.partial(self.w.HBox, layout=ROW)
        self.result.layout = _fixed(345)
        self._start([box(first), box([*self._context(n_ctx)]), self.result])

    def _refresh(self):
        choice = {name: self.inputs[name].value for name in ("model", "quantization", "n_ctx")}
        self.shown = speed_view(choice, self.computers[self.inputs["computer"].value])
        self.result.value = self.shown["result"]
