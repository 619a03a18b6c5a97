"""A strip that shows the memory of a model's process while it loads and answers: looked at from outside, by the parent.

A thread of this notebook reads what the system says about the process a few times a second. It ends by itself when the
model is closed or its process dies. Nothing is measured inside the model, so nothing there gets slower.
"""

import html
import threading
import time
from dataclasses import dataclass

from . import figures, figures_machine, hardware, runner, units
from .need import need

EVERY_S = 0.25
IDLE_EVERY_S = 1.0  # when nothing has changed for a while
IDLE_AFTER_S = 20.0
MOST_SAMPLES = 240
SEEN_SHARE = 0.002  # a change below this share of what is held is not drawn
ANONYMOUS, ANONYMOUS_INK, FILE = "#0072B2", "#ffffff", "#A9D8F2"
LEFT, RIGHT, TOP, BOTTOM = 78, 852, 30, 170
WAITING, LOADING, LOADED, ENDED = "waiting", "loading", "loaded", "ended"


@dataclass(frozen=True)
class Scene:
    """What the strip shows: pairs of (file bytes, anonymous bytes) in their order, and what they are compared with.

    `expected` is a `memory.Resident` for a full context, or None; `free_bytes` was free before the model was loaded.
    """

    name: str
    state: str
    samples: tuple
    free_bytes: int
    expected: object = None
    every_s: float = EVERY_S
    split: bool = True

    @property
    def now(self):
        return self.samples[-1] if self.samples else (0, 0)

    @property
    def most(self):
        return max(self.samples, key=sum, default=(0, 0))


def live_memory(model=None, machine=None, every_s=EVERY_S, patience_s=600.0):
    """A strip of the memory that a model holds, live (an `ipywidgets.HTML`).

    Parameters
    ----------
    model : runner.Model, optional
        From `runner.load`. Left out, the strip waits for the next model that this notebook loads: show it first, load
        in the next cell, and watch.
    machine : hardware.Machine, optional
        Whose free memory is the limit line; found out when left out.
    every_s : float
        Seconds between two looks.
    patience_s : float
        How long to wait for a model.

    *When it misleads*: a peak between two looks is missed (`Answer.peak_bytes` looks more often). Pages of a file count
    here although other processes may share them. Times in which nothing changed are left out.
    """
    return Meter(model, machine or hardware.detect(), every_s, patience_s).start().box


def live_text(model, machine=None):
    """The same as one sentence, of this moment.

    *When it misleads*: as `live_memory`; there is no peak in it.
    """
    meter = Meter(model, machine or hardware.detect(), box=False)
    meter.look()
    return sentence(meter.scene())


class Meter:
    """Looks at one model's process and keeps what it saw; `look` is one look, `start` a thread of them."""

    def __init__(self, model, machine, every_s=EVERY_S, patience_s=600.0, box=True):
        self.model, self.every_s, self.patience_s = model, every_s, patience_s
        self.free_bytes = int(machine.ram_available_bytes)
        if model is not None and model.alive:  # its memory is no longer among the free
            self.free_bytes += runner.memory_of(model.pid).anonymous_bytes
        self.known = [] if model is not None else runner.running()
        self.state, self.samples, self.expected, self.split = WAITING, [], None, True
        self.box = need("ipywidgets", "show the strip").HTML(layout={"min_height": "336px"}) if box else None
        self.thread = None
        self._paint()

    def start(self):
        self.thread = threading.Thread(target=self._run, name="live memory", daemon=True)
        self.thread.start()
        return self

    def scene(self):
        name = self.model.path.name if self.model is not None else ""
        return Scene(
            name, self.state, tuple(self.samples), self.free_bytes, self.expected, self.every_s, split=self.split
        )

    def look(self):
        """One look; whether there is something new to draw."""
        if self.model is None:
            self.model = next((model for model in runner.running() if model not in self.known), None)
            if self.model is None:
                return False
            self.known = []
        before = self.state
        if not self.model.alive:
            self.state = ENDED
            return before != ENDED
        self.state = LOADED if self.model in runner.loaded() else LOADING
        if self.expected is None:
            self.expected = _expected(self.model)
        try:
            held = runner.memory_of(self.model.pid)
        except Exception:  # it ended between the question and the look, or the system does not tell
            return before != self.state
        if not held.resident_bytes:  # it is dying: its memory is gone, and the system still lists it
            return before != self.state
        self.split = held.source.startswith("/proc")
        return self._keep((held.file_bytes, held.anonymous_bytes)) or before != self.state

    def _keep(self, sample):
        last = self.samples[-1] if self.samples else (0, 0)
        if max(abs(a - b) for a, b in zip(sample, last, strict=True)) <= SEEN_SHARE * sum(sample):
            return False
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:  # every second one goes, but never the fullest
            fullest = max(self.samples, key=sum)
            self.samples = [s for i, s in enumerate(self.samples) if i % 2 or s == fullest]
            self.every_s *= 2
        return True

    def _run(self):
        began = changed = time.monotonic()
        try:
            while self.state != ENDED:
                now = time.monotonic()
                if self.look():
                    changed = now
                    self._paint()
                if self.model is None and now - began > self.patience_s:
                    self.box.value = figures.page(figures.says_html("No model was loaded; run this cell again."))
                    return
                time.sleep(self.every_s if now - changed < IDLE_AFTER_S else max(self.every_s, IDLE_EVERY_S))
        except Exception as error:  # an exception in a thread would be invisible
            self.box.value = figures.error_html(error)

    def _paint(self):
        if self.box is not None:
            self.box.value = strip_html(self.scene())


def _expected(model):
    """What the formula says for a full context, or None where it does not know."""
    try:
        return model.expects(n_prompt=model.estimate.settings["n_ctx"])
    except (ValueError, KeyError):
        return None


# ---------------------------------------------------------------- drawing


def sentence(scene):
    """What the strip says, in words."""
    if scene.state == WAITING:
        return "Waiting for a model: load one in the next cell."
    file, anonymous = scene.now
    parts = f"{units.show(file)} file pages + {units.show(anonymous)} anonymous" if scene.split else "not split here"
    if scene.state == ENDED:
        held = f"its process has ended and gave back {units.show(sum(scene.now))} ({parts})"
    else:
        held = f"{scene.state}, holds {units.show(sum(scene.now))} ({parts})"
    said = [f"{scene.name}: {held}", f"at most {units.show(sum(scene.most))}"]
    if scene.expected:
        said.append(f"predicted with a full context {units.show(scene.expected.total_bytes)}")
    said.append(f"free before loading {units.show(scene.free_bytes)}")
    return "; ".join(said) + "."


def strip_html(scene):
    """The strip of one moment with its numbers as a table: pure data in, HTML out."""
    says = sentence(scene)
    rows = [("now", *scene.now), ("at most so far", *scene.most)]
    if scene.expected:
        rows.append(("predicted, context full", scene.expected.file_bytes, scene.expected.anonymous_bytes))
    head = ("bytes", "file pages (can be dropped)", "anonymous (cannot be dropped)", "together")
    table = figures.table_html(head, [(what, *map(units.show, (a, b, a + b))) for what, a, b in rows])
    drawing = figures_machine.svg_figure(_drawing(scene), BOTTOM + 26, says)
    return figures.page(f'<p class="note" role="status">{html.escape(says)}</p>', drawing, table)


def _drawing(scene):
    marks = _marks(scene)
    top = max(sum(scene.most), *(n for _, n, _ in marks), 1) * 1.12

    def y(n_bytes):
        return BOTTOM - (BOTTOM - TOP) * n_bytes / top

    grid = figures_machine.grid_bytes(int(top / 1.12))
    shapes = [figures_machine.grid_line(LEFT, RIGHT, y(n), units.show(n, 0)) for n in grid if n <= top]
    shapes += _areas(scene, y)
    for words, n_bytes, dash in marks:
        shapes.append(
            f'<line x1="{LEFT}" y1="{y(n_bytes):.1f}" x2="{RIGHT}" y2="{y(n_bytes):.1f}" stroke="#1b1b1b" '
            f'stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        shapes.append(figures.svg_text(RIGHT, y(n_bytes) - 6, f"{words} {units.show(n_bytes)}", "end", weight=600))
    if not any(words.startswith("limit") for words, *_ in marks):
        far = f"limit: {units.show(scene.free_bytes)} were free, {scene.free_bytes / top:,.0f} times this height"
        shapes.append(figures.svg_text(LEFT, 14, f"\u2191 {far}"))
    seconds = scene.every_s * max(len(scene.samples) - 1, 0)
    shapes.append(figures.svg_text(LEFT, BOTTOM + 18, "start"))
    if seconds:
        shapes.append(figures.svg_text(RIGHT, BOTTOM + 18, f"{seconds:.1f} s in which something changed", "end"))
    return "".join(shapes)


def _marks(scene):
    """(words, bytes, dash) of the lines across; a limit far above what is held would make that a flat line."""
    marks = [("predicted, context full:", scene.expected.total_bytes, "7 4")] if scene.expected else []
    held = max([sum(scene.most), *(n for _, n, _ in marks)])
    if scene.free_bytes <= 1.5 * held:
        marks.append(("limit, free before loading:", scene.free_bytes, "2 3"))
    return marks


def _areas(scene, y):
    """Anonymous pages below, file pages on top of them, hatched; each with its word where there is room."""
    samples = [*scene.samples[:1], *scene.samples]
    if not samples:
        return []
    step = (RIGHT - LEFT) / max(len(samples) - 1, 1)
    xs = [LEFT + step * i for i in range(len(samples))]
    below = [(x, y(anonymous)) for x, (_, anonymous) in zip(xs, samples, strict=True)]
    above = [(x, y(file + anonymous)) for x, (file, anonymous) in zip(xs, samples, strict=True)]
    floor = [(RIGHT, BOTTOM), (LEFT, BOTTOM)]
    shapes = [_area([*below, *floor], ANONYMOUS, "anonymous"), _area([*above, *below[::-1]], FILE, "file pages")]
    shapes.append(_hatching(below, above))
    for name, top, bottom, ink in (
        ("anonymous", below[-1][1], BOTTOM, ANONYMOUS_INK),
        ("file pages", above[-1][1], below[-1][1], figures_machine.INK),
    ):
        if bottom - top > 16 and scene.split:
            shapes.append(figures.svg_text(RIGHT - 8, (top + bottom) / 2 + 5, name, "end", ink))
    return shapes


def _area(points, colour, name):
    path = " ".join(f"{px:.0f},{py:.1f}" for px, py in points)
    outline = f'stroke="{figures_machine.INK}" stroke-width="0.8"'
    return f'<polygon points="{path}" fill="{colour}" {outline}><title>{name}</title></polygon>'


def _hatching(below, above):
    """Upright lines between two lines over the same places, each one drawn (see `figures.hatching`)."""
    lines, place = [], 1
    for x in range(LEFT + 6, RIGHT, 8):
        while below[place][0] < x:
            place += 1
        (x0, _), (x1, _) = below[place - 1 : place + 1]
        share = (x - x0) / (x1 - x0)
        low, high = ((1 - share) * line[place - 1][1] + share * line[place][1] for line in (below, above))
        lines.append(f"M{x} {low:.1f}V{high:.1f}")
    return f'<path d="{"".join(lines)}" stroke="#fff" stroke-width="2"/>'
