"""Data -> pictures. Every picture has the same numbers as a table; no colour is the only sign of anything.

What moves with a slider is an SVG string (a few KB, readable by screen readers); what one explores is a plotly figure.
"""

import functools
import html
import itertools
import math
import sys
from collections import Counter

from . import fit, formats, memory, units
from .need import need

INK = "#1b1b1b"
# Okabe and Ito's palette, told apart with any kind of colour vision; patterns repeat the distinction.
COLOURS = {
    "weights": "#0072B2",
    "kv": "#E69F00",
    "compute": "#009E73",
    "output": "#CC79A7",
    "overhead": "#999999",
    "repacked": "#56B4E9",
    "vision": "#F0E442",
    "others": "#DDDDDD",
}
NAMES = {
    "weights": "weights",
    "kv": "KV cache",
    "compute": "compute",
    "output": "output",
    "overhead": "process",
    "repacked": "repacked copy",
    "vision": "images (mmproj)",
    "others": "other programs",
}
RESIDENT = {"file": "file pages (can be dropped)", "anonymous": "anonymous (cannot be dropped)"}
PATTERNS = ("", "/", "x", "\\", ".", "+", "-", "|")
ASKED = ("weights", "kv", "compute", "output")  # the parts that the engine answers for
VERDICT_COLOURS = {
    "fits": ("#E3F4EC", "#00563F"),
    "tight": ("#FFF3D6", "#6B4A00"),
    "swaps": ("#FFE3CC", "#8A3B00"),
    "no": ("#F9DCE3", "#8A0F33"),
}
STYLE = """<style>
.kit{font:14px/1.45 system-ui,sans-serif;color:#1b1b1b;background:#fff;padding:2px 4px}
.kit table{border-collapse:collapse;width:100%;margin:0;font-size:13px}
.kit th,.kit td{padding:2px 8px;text-align:right;border-bottom:1px solid #e4e4e4;color:#1b1b1b;background:#fff}
.kit td{white-space:nowrap}
.kit th:first-child,.kit td:first-child,.kit td.l,.kit th.l{text-align:left}
.kit td.l{white-space:normal}
.kit .sentence{font-size:19px;font-weight:600;padding:7px 12px;border-radius:6px;border-left:8px solid;margin:0 0 6px}
.kit .strip{display:flex;gap:4px;margin:4px 0}
.kit .chip{flex:1;min-width:0;text-align:center;border-radius:4px;padding:3px 2px;font-size:12px}
.kit .chip{border:2px solid transparent}
.kit .chip.on{border-color:#1b1b1b}
.kit .chip b{display:block}
.kit pre{white-space:pre-wrap;margin:2px 0 8px;padding:6px 8px;background:#f5f5f5;color:#1b1b1b;font-size:12.5px}
.kit .note{color:#444;font-size:12.5px;margin:3px 0}
.kit h4{margin:4px 0 2px;font-size:13px}
.kit a{color:#0060A0;text-decoration:underline}
</style>"""


def page(*pieces):
    """Pieces of HTML with the kit's style, ready for `ipywidgets.HTML` or `IPython.display.HTML`."""
    content = "".join(pieces)
    return f'{STYLE}<div class="kit">{units.printable(content, len(content))}</div>'


def svg_text(x, y, said, anchor="start", ink=INK, weight=400, size=13):
    """Words in a drawing, from `x` on, around it ("middle") or up to it ("end"); escaped."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{ink}">'
        f"{html.escape(str(said))}</text>"
    )


def svg_line(x1, y1, x2, y2, colour, width=1.0, dashes=""):
    """A straight line in a drawing."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dashed}/>'


_small = functools.partial(svg_text, size=12)


def hatching(x, y, width, height, ink, pen=2, step=8.5):
    """Slanting lines in a rectangle of an SVG, each one drawn.

    A `<pattern>` is found by its id, the first on the page; where that one is in a hidden tab, nothing is painted.
    """
    lines = []
    for n in range(-int(height / step), math.ceil(width / step)):
        left, right = max(n * step, 0), min(n * step + height, width)
        down = y + height + n * step
        lines.append(f"M{x + left:.1f} {down - left:.1f}L{x + right:.1f} {down - right:.1f}")
    return f'<path d="{"".join(lines)}" stroke="{ink}" stroke-width="{pen}"/>'


def sentence_html(verdict):
    """The verdict's sentence with sign, word and colour; announced by screen readers when it changes."""
    paper, ink = VERDICT_COLOURS[verdict.status]
    return (
        f'<div class="sentence" role="status" aria-live="polite" data-status="{verdict.status}" '
        f'style="background:{paper};color:{ink};border-color:{ink}">'
        f'<span aria-hidden="true">{fit.SIGNS[verdict.status]}</span> {html.escape(verdict.sentence)}</div>'
    )


def memory_bar_svg(estimate, verdict, width=860):
    """A stacked bar of the parts, in bytes, against the line of what is there; parts that share no colour or label.

    Text alternatives: the `<title>` says the numbers, `parts_table_html` shows them.
    """
    others = max(verdict.total_bytes - verdict.free_bytes, 0)
    parts = _parts_at_limit(estimate, verdict)
    used = sum(parts.values())
    scale = width / (1.02 * max(used + others, verdict.total_bytes, 1))
    x, shapes = 0.0, []
    for part, n_bytes in {"others": others, **parts}.items():
        w = n_bytes * scale
        if w < 0.05:
            continue
        shapes.append(_segment(part, n_bytes, x, w))
        x += w
    legend = _legend({"others": others, **parts})
    limit = verdict.total_bytes * scale
    anchor, shift = ("end", -5) if limit > width / 2 else ("start", 5)
    title = f"Stacked bar: {', '.join(f'{NAMES[p]} {units.show(n)}' for p, n in parts.items() if n)}; "
    title += f"{units.show(verdict.free_bytes)} free of {units.show(verdict.total_bytes)}"
    return (
        f'<svg viewBox="0 0 {width} 74" width="100%" height="74" role="img" aria-label="{html.escape(title)}" '
        f'preserveAspectRatio="none" style="display:block;max-width:{width}px"><title>{html.escape(title)}</title>'
        f"{''.join(shapes)}"
        f'<line x1="{limit:.1f}" y1="4" x2="{limit:.1f}" y2="74" stroke="#1b1b1b" stroke-width="3" '
        'stroke-dasharray="7 4"/>'
        f'<text x="{limit + shift:.1f}" y="14" text-anchor="{anchor}" font-size="13" font-weight="600" fill="#1b1b1b">'
        f"{html.escape(verdict.limit)}: {units.show(verdict.total_bytes)}</text></svg>{legend}"
    )


def _legend(parts):
    """Names and sizes under the bar, for the parts that are too narrow to carry theirs."""
    entries = (
        f'<span style="white-space:nowrap;margin-right:6px"><span aria-hidden="true" '
        f'style="color:{"#999" if part == "others" else COLOURS[part]}">{"▨" if part == "others" else "■"}</span> '
        f"{NAMES[part]} {units.show(n_bytes)}</span>"
        for part, n_bytes in parts.items()
        if n_bytes
    )
    return f'<div class="note" style="font-size:12px">{" ".join(entries)}</div>'


def _parts_at_limit(estimate, verdict):
    if not estimate.by_device:
        return estimate.parts()
    return estimate.gpu_parts() if verdict.limit == "video memory" else estimate.by_device["cpu"]


def _ink(part):
    """Text colour that can be read on a part's colour."""
    return "#ffffff" if part == "weights" else "#1b1b1b"


def _segment(part, n_bytes, x, width, y=22):
    exact = units.show(n_bytes, 2)
    return _block(NAMES[part], units.show(n_bytes), x, width, COLOURS[part], _ink(part), y, exact, part == "others")


def _block(name, number, x, width, fill, ink, y, exact=None, hatched=False):
    """A rectangle that carries its name and number where they have room, and always says them."""
    label = hatching(x, y, width, 48, "#999") if hatched else ""
    if width > 7.2 * len(name) + 6:
        middle = f'x="{x + width / 2:.1f}" text-anchor="middle" fill="{ink}"'
        label += f'<text {middle} y="{y + 22}" font-size="13">{name}</text>'
        label += f'<text {middle} y="{y + 39}" font-size="12">{number}</text>'
    return (
        f"<g><title>{name}: {exact or number}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="48" fill="{fill}" stroke="#fff"/>{label}</g>'
    )


def parts_table_html(estimate, engine_estimate=None, engine_note="", rule_bytes=None, asking=False):
    """The parts as a table: the formula; where the engine was asked, its figure and the ratio; last a rule of thumb.

    `asking`: the engine's answer is on its way, and its columns wait for it.
    """
    theirs = engine_estimate.parts() if engine_estimate else None
    rows = []
    for part, n_bytes in estimate.parts().items():
        if not n_bytes and not (theirs and theirs[part]):
            continue
        swatch = f'<span aria-hidden="true" style="color:{COLOURS[part]}">■</span>'
        asked = part in ASKED
        rows.append((f"{swatch} {NAMES[part]}", n_bytes, theirs[part] if theirs and asked else None))
    rows.append(("<b>total</b>", estimate.total_bytes, engine_estimate.total_bytes if engine_estimate else None))
    if rule_bytes is not None:
        rows.append((f"rule: file x 1.2 ({rule_bytes / estimate.total_bytes:.2f} x the formula)", rule_bytes, None))
    columns = ("part", "formula", *(("engine", "formula / engine") if theirs or asking else ()))
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(_row(*row, with_engine=bool(theirs or asking)) for row in rows)
    note = f'<p class="note">{html.escape(engine_note)}</p>' if engine_note else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _row(name, ours, theirs, with_engine):
    cells = [name, units.show(ours, 2)]
    if with_engine:
        cells += [units.show(theirs, 2) if theirs is not None else "-", f"{ours / theirs:.4f}" if theirs else "-"]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def ladder_html(rows, chosen):
    """A strip of quantizations, each with its need and its verdict as sign, word and colour."""
    chips = []
    for name, estimate, verdict in rows:
        paper, ink = VERDICT_COLOURS[verdict.status]
        word = {"fits": "fits", "tight": "tight", "swaps": "disk", "no": "no"}[verdict.status]
        on = ' on" aria-current="true' if name == chosen else ""
        says = html.escape(formats.quantization(name).says)
        chips.append(
            f'<div class="chip{on}" style="background:{paper};color:{ink}" title="{says}">'
            f"<b>{name}</b>{units.show(estimate.total_bytes)}<br>{fit.SIGNS[verdict.status]} {word}</div>"
        )
    return f'<div class="strip" role="group" aria-label="All quantizations of this model">{"".join(chips)}</div>'


def arithmetic_html(spec, quantization, settings):
    """The formulas with this choice's numbers filled in."""
    rows = "".join(
        f'<tr><td>{NAMES[part]}</td><td class="l">{html.escape(text)}</td>'
        f"<td>= {n_bytes:,} B</td><td>{units.show(n_bytes, 2)}</td></tr>"
        for part, text, n_bytes in memory.arithmetic(spec, quantization, settings)
    )
    return f'<table><tbody>{rows}</tbody></table><p class="note">1 GiB = 1024 x 1024 x 1024 B = 1.0737 GB.</p>'


def code_html(pieces):
    """Named pieces of code or commands, ready to copy: `pieces` is a list of (title, text)."""
    shown = ((html.escape(title), html.escape(units.printable(text))) for title, text in pieces)
    return "".join(f"<h4>{title}</h4><pre>{text}</pre>" for title, text in shown)


def reasons_html(verdict, estimate):
    """Why: the reasons of the verdict and the assumptions of the estimate, as a short list."""
    lines = (*verdict.reasons, *estimate.assumptions)
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)


def answer_html(text, status):
    """A model's answer as plain text (whatever it contains), with a line about how it went."""
    shown = html.escape(units.printable(text))
    return page(
        '<div role="log" aria-live="polite" style="white-space:pre-wrap;font-size:15px;min-height:60px;'
        f'padding:8px 12px;border-left:8px solid #0072B2;background:#f2f7fb;color:#1b1b1b">{shown}</div>'
        f'<p class="note">{html.escape(status)}</p>'
    )


def error_html(error):
    """An error that a person can read, where the result would have been."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
    text, (paper, ink) = html.escape(units.printable(text, 5_000)), VERDICT_COLOURS["no"]
    return page(f'<div class="sentence" role="alert" style="background:{paper};color:{ink}">{text}</div>')


def table_html(head, rows, left=1, fixed=True):
    """Rows of text as a table; the first `left` columns are words, the others numbers.

    `fixed=False`: columns as wide as their text needs.
    """

    def cell(tag, text, column, more=""):
        side = ' class="l"' if column < left else ""
        return f"<{tag}{more}{side}>{html.escape(str(text))}</{tag}>"

    top = "".join(cell("th", text, i, ' scope="col"') for i, text in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', text, i) for i, text in enumerate(row))}</tr>" for row in rows)
    style = "" if fixed else ' style="table-layout:auto"'
    return f"<table{style}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def compare_figure(columns, title="Predicted, reserved, resident"):
    """Stacked bars side by side (plotly); `columns` maps a name to {part: bytes}. Its twin: `compare_table_html`."""
    go = need("plotly.graph_objects", "draw this figure")
    parts = [part for part in (*memory.PARTS, *RESIDENT) if any(column.get(part) for column in columns.values())]
    readable = max(sum(column.values()) for column in columns.values()) / 20
    colours = {**COLOURS, "file": "#56B4E9", "anonymous": "#D55E00"}
    names = {**NAMES, **RESIDENT}
    figure = go.Figure()
    for part, pattern in zip(parts, itertools.cycle(PATTERNS), strict=False):
        values = [column.get(part, 0) / units.MIB for column in columns.values()]
        text = [units.show(column[part]) if column.get(part, 0) > readable else "" for column in columns.values()]
        figure.add_bar(
            x=list(columns), y=values, name=names[part], text=text, marker_color=colours[part],
            marker_pattern_shape=pattern, marker_pattern_fgopacity=0.25, textfont_color=_ink(part),
            textposition="inside", hovertemplate="%{y:.1f} MiB<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(
        barmode="stack", title=title, yaxis_title="MiB", template="plotly_white", height=400, font_size=14,
        margin={"l": 60, "r": 20, "t": 50, "b": 40},
    )  # fmt: skip
    return _as_data(figure) if sys.platform == "emscripten" else figure


def _as_data(figure):
    """The figure as plain data for the page: plotly's own display asks for nbformat, which a browser page has not."""
    bundle = {"application/vnd.plotly.v1+json": figure.to_plotly_json(), "text/plain": "a plotly figure"}
    figure._ipython_display_ = figure._repr_html_ = None
    figure._repr_mimebundle_ = lambda include=None, exclude=None: bundle
    return figure


def compare_table_html(columns):
    """The numbers of `compare_figure` as a table, with each total's ratio to the first."""
    first = sum(next(iter(columns.values())).values())
    rows = []
    for name, column in columns.items():
        total = sum(column.values())
        names = {**NAMES, **RESIDENT}
        parts = html.escape(", ".join(f"{names.get(part, part)} {units.show(n)}" for part, n in column.items() if n))
        numbers = f"<td>{units.show(total)}</td><td>{f'{total / first:.3f}' if first else '-'}</td>"
        rows.append(f'<tr><td>{html.escape(name)}</td><td class="l">{parts}</td>{numbers}</tr>')
    head = '<tr><th scope="col">what</th><th class="l" scope="col">parts</th>'
    head += '<th scope="col">total</th><th scope="col">ratio</th></tr>'
    return page(_table(head, "".join(rows), ' style="table-layout:auto"'))


def context_table_html(specs, quantization, contexts=fit.CONTEXTS, **settings):
    """Memory against context for several models, as a table."""
    head = "".join(f'<th scope="col">{_short(n)}</th>' for n in contexts)
    rows = []
    for spec in specs:
        totals = (memory.estimate(spec, quantization, n_ctx=n, **settings).total_bytes for n in contexts)
        cells = "".join(f"<td>{units.show(n)}</td>" for n in totals)
        rows.append(f"<tr><td>{html.escape(spec.title or spec.name)}</td>{cells}</tr>")
    head = f'<tr><th scope="col">model</th>{head}</tr>'
    return page(f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>")


def _short(n_tokens):
    return f"{n_tokens // units.KIB}k" if n_tokens >= units.KIB else str(n_tokens)


# --- explore: many models, many contexts, a model of one's own, two memories --------------------------------------

WORDS = {"fits": "fits", "tight": "tight", "swaps": "disk", "no": "no"}  # short enough for a cell
PARAMETER_COLOURS = {  # part of the weights -> its colour and what can be read on it
    "embeddings": ("#56B4E9", "#1b1b1b"),
    "attention": ("#E69F00", "#1b1b1b"),
    "feed-forward": ("#0072B2", "#ffffff"),
    "norms and other vectors": ("#999999", "#1b1b1b"),
}
GRID_STYLE = (
    "<style>.kit .g td,.kit .g th{padding:1px 3px;font-size:12px;line-height:1.25;text-align:center}"
    ".kit .g thead th{position:sticky;top:0;z-index:1;background:#fff;box-shadow:0 1px #999}"
    ".kit .g th[scope=row],.kit .g td.b{text-align:left;white-space:normal;font-weight:400}"
    ".kit .g th.b{text-align:left}"
    ".kit .g small{font-size:11px;color:#444;font-weight:400;white-space:nowrap}"
    ".kit .fixed{table-layout:fixed}.kit .fixed col{width:7.25%}"  # known widths: nothing jumps, and drawn faster
    ".kit .fixed col.model{width:17.75%}.kit .fixed col.best{width:8%}.kit .fixed col.pace{width:9%}"
    ".kit .g thead th{white-space:nowrap}"
    ".kit .g [data-quantization]{cursor:pointer;border:2px solid #fff;padding:1px}"
    ".kit .g [aria-selected=true]{box-shadow:inset 0 0 0 2px #1b1b1b;font-weight:700}"
    ".kit .g [data-quantization]:focus{outline:3px solid #0072B2;outline-offset:-2px}"
    + "".join(
        f".kit .g td.{status}{{background:{paper};color:{ink}}}" for status, (paper, ink) in VERDICT_COLOURS.items()
    )
    + "</style>"
)


def says_html(text):
    """A sentence that judges nothing, announced by screen readers when it changes."""
    style = "background:#E8F1F8;color:#003A5C;border-color:#003A5C;font-size:17px"
    return f'<div class="sentence" role="status" aria-live="polite" style="{style}">{html.escape(text)}</div>'


def note_html(text, link=""):
    """A small line of text, with the address of its source."""
    source = f' <a href="{html.escape(link)}" target="_blank" rel="noopener">source</a>' if link else ""
    return f'<p class="note">{html.escape(text)}{source}</p>'


def grid_html(rows, quantizations, losses=None, paces=None):
    """Models x quantizations as a table: each cell says its total and its verdict by sign, word and colour.

    With layers on a GPU the total is of both memories together.

    `rows` come from `fit.compare`; `losses` maps a quantization to its published loss; `paces` maps a model's name to
    its tokens/s, a pair of texts: the likeliest figure ("" where there is none) and the band. A cell carries its
    quantization and its row its model (`data-quantization`, `data-model`), so that a click can be told from another.
    """
    columns = "".join(
        f'<th scope="col" title="{html.escape(formats.quantization(name).says)}">{name}'
        f"<br><small>{_loss((losses or {}).get(name))}</small></th>"
        for name in quantizations
    )
    best = '<th class="b" scope="col" title="the best that fits; what a token reads">best<br><small>reads</small></th>'
    best += '<th scope="col">tokens/s<br><small>answer</small></th>'
    head = f'<tr><th scope="col">model<br><small>weights</small></th>{best}{columns}</tr>'
    body = "".join(_grid_row(row, quantizations, (paces or {}).get(row.spec.name, ("", "-"))) for row in rows)
    if not rows:
        body = f'<tr><td class="b" colspan="{len(quantizations) + 3}">No model is left. Empty the filters.</td></tr>'
    widths = '<colgroup><col class="model"><col class="best"><col class="pace">' + "<col>" * len(quantizations)
    table = _table(
        head, body, ' class="g fixed" role="grid" aria-label="Models and quantizations"', f"{widths}</colgroup>"
    )
    return GRID_STYLE + page(table)


def _table(head, body, more="", widths=""):
    return f"<table{more}>{widths}<thead>{head}</thead><tbody>{body}</tbody></table>"


def _grid_row(row, quantizations, pace):
    name = html.escape(row.spec.title or row.spec.name)
    head = f'<th scope="row">{name}<br><small>{units.show_count(row.spec.n_params)}</small></th>'
    if row.problem:
        body = f'<td class="b" colspan="{len(quantizations) + 2}">{html.escape(row.problem)}</td>'
    else:
        best = f"{row.best}<br><small>{_reads(row.cells[row.best][0])}</small>" if row.best else "none"
        likely = f"<b>{pace[0]}</b><br>" if pace[0] else ""
        body = f'<td class="b">{best}</td><td>{likely}<small>{pace[1]}</small></td>'
        span = len(quantizations) if len(row.cells) == 1 < len(quantizations) else 1  # the only form of this model
        body += "".join(_grid_cell(name, *row.cells[name], span) for name in row.cells)
    return f'<tr data-model="{html.escape(row.spec.name)}">{head}{body}</tr>'


def _grid_cell(quantization, estimate, verdict, span=1):
    digits = int(units.GIB <= estimate.total_bytes < 100 * units.GIB)
    says = f"{units.show(estimate.total_bytes, digits)}<br>{fit.SIGNS[verdict.status]} {WORDS[verdict.status]}"
    wide = f' colspan="{span}"' if span > 1 else ""
    only = f"{quantization}, the only form of this model: " if span > 1 else ""
    return f'<td class="{verdict.status}" data-quantization="{quantization}"{wide}>{only}{says}</td>'


def _reads(estimate):
    return units.show_decimal(fit.active_bytes(estimate), 1)


def _loss(loss):
    if not loss:
        return "-" if loss is None else "reference"
    return f"{loss:.1%} loss" if loss < 0.1 else f"{loss:.0%} loss"


CURVE_COLOURS = ("#0072B2", "#A85B00", "#00704F", "#9C3F77", "#5E3C99")  # Okabe and Ito's, dark enough for thin lines
CURVE_DASHES = ("", "9 4", "2 3", "12 3 2 3", "5 2")
CURVE_MARKS = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M-4 -4h8v8h-8z", "M0 -5l5 5l-5 5l-5 -5z", "M0 -5l5 9h-10z",
               "M0 5l5 -9h-10z")  # fmt: skip
PLOT = {"width": 830, "height": 300, "left": 64, "right": 640, "top": 10, "bottom": 262}


def curves_svg(curves, free_bytes, contexts=fit.CONTEXTS):
    """Memory against context for several models, both axes in doublings, with the machine's free memory as a line.

    A line is thin beyond the context that its model was trained for; the ring is where it crosses the free memory.
    Its twin is `curves_table_html`.
    """
    drawn = [(index, curve) for index, curve in enumerate(curves) if curve.totals]
    every = [n_bytes for _, curve in drawn for n_bytes in curve.totals.values()]
    marks = [*every, free_bytes] if free_bytes else every or [units.GIB]
    low, high = min(marks), max(marks)
    low, high = 2.0 ** math.floor(math.log2(low)), 2.0 ** math.ceil(math.log2(high * 1.05))

    def x(n_ctx):
        share = math.log2(n_ctx / contexts[0]) / math.log2(contexts[-1] / contexts[0])
        return PLOT["left"] + share * (PLOT["right"] - PLOT["left"])

    def y(n_bytes):
        share = math.log2(max(n_bytes, low) / low) / math.log2(high / low)
        return PLOT["bottom"] - share * (PLOT["bottom"] - PLOT["top"])

    shapes = [*_axes(contexts, low, high, x, y), *_free_line(free_bytes, y)]
    shapes += [_curve(index, curve, free_bytes, x, y) for index, curve in drawn]
    shapes += _curve_labels(drawn, y)
    says = "; ".join(f"{_curve_name(curve)} {_up_to(curve)}" for _, curve in drawn)
    return (
        f'<svg viewBox="0 0 {PLOT["width"]} {PLOT["height"]}" width="100%" height="{PLOT["height"]}" role="img" '
        f'aria-label="{html.escape(says)}" style="display:block;max-width:{PLOT["width"]}px">'
        f"<title>{html.escape(f'Memory against context. {says}')}</title>{''.join(shapes)}</svg>"
    )


def _axes(contexts, low, high, x, y):
    middle = (PLOT["top"] + PLOT["bottom"]) / 2
    doublings = round(math.log2(high / low))
    every = max(1, -(-doublings // 9))  # so that the labels stay apart
    for power in range(0, doublings + 1, every):
        n_bytes = low * 2**power
        yield f'<path d="M{PLOT["left"]} {y(n_bytes):.1f}H{PLOT["right"]}" stroke="#e0e0e0"/>'
        yield _small(PLOT["left"] - 5, y(n_bytes) + 4, units.show(n_bytes, 0), "end")
    for n_ctx in contexts:
        yield f'<path d="M{x(n_ctx):.1f} {PLOT["top"]}V{PLOT["bottom"]}" stroke="#efefef"/>'
        yield _small(x(n_ctx), PLOT["bottom"] + 15, _short(n_ctx), "middle")
    yield _small((PLOT["left"] + PLOT["right"]) / 2, PLOT["bottom"] + 32, "context (tokens)", "middle")
    yield f'<g transform="translate(10 {middle:.0f}) rotate(-90)">{_small(0, 0, "memory needed", "middle")}</g>'


def _free_line(free_bytes, y):
    if not free_bytes:
        return
    height, width = y(free_bytes), PLOT["right"] - PLOT["left"]
    yield (
        f'<rect x="{PLOT["left"]}" y="{PLOT["top"]}" width="{width}" height="{max(height - PLOT["top"], 0):.1f}" '
        'fill="#F9DCE3" opacity="0.55"/>'
        f'<path d="M{PLOT["left"]} {height:.1f}H{PLOT["right"]}" stroke="#1b1b1b" stroke-width="3" '
        'stroke-dasharray="7 4"/>'
    )
    below = height + 15 if height < PLOT["top"] + 30 else height - 6
    yield _small(
        PLOT["left"] + 6, below, f"free here: {units.show(free_bytes)}; above it nothing fits", "start", weight=700
    )


def _curve(index, curve, free_bytes, x, y):
    trained = curve.spec.n_ctx_train
    pieces = []
    for thin in (False, True):
        points = [n for n in curve.totals if (n >= trained if thin else n <= trained)]
        if len(points) > 1:
            line = " ".join(f"{x(n):.1f},{y(curve.totals[n]):.1f}" for n in points)
            pieces.append(
                f'<polyline points="{line}" fill="none" stroke="{CURVE_COLOURS[index]}" '
                f'stroke-width="{1.2 if thin else 2.6}" stroke-dasharray="{CURVE_DASHES[index]}"/>'
            )
    for n in fit.CONTEXTS[::2]:
        if n in curve.totals:
            pieces.append(_mark(x(n), y(curve.totals[n]), index))
    if curve.longest in curve.totals:
        place = f'cx="{x(curve.longest):.1f}" cy="{y(curve.totals[curve.longest]):.1f}"'
        pieces.append(f'<circle {place} r="8" fill="none" stroke="#1b1b1b" stroke-width="2"/>')
    return f"<g><title>{html.escape(f'{_curve_name(curve)}: {_up_to(curve)}')}</title>{''.join(pieces)}</g>"


def _mark(x, y, index):
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{CURVE_MARKS[index]}" fill="{CURVE_COLOURS[index]}"/>'


def _curve_labels(drawn, y):
    """Names at the right end of the lines, pushed apart where they would touch."""
    wanted = sorted((y(curve.totals[max(curve.totals)]), index, curve) for index, curve in drawn)
    gap, heights = 31, []
    for height, _, _ in wanted:
        heights.append(max(height, heights[-1] + gap) if heights else max(height, PLOT["top"] + 6))
    over = max(heights[-1] + 14 - PLOT["bottom"], 0) if heights else 0
    for place in range(len(heights) - 1, -1, -1):
        limit = PLOT["bottom"] - 14 - gap * (len(heights) - 1 - place)
        heights[place] = min(heights[place], limit) if over else heights[place]
    for height, (end, index, curve) in zip(heights, wanted, strict=True):
        left = PLOT["right"]
        colour = CURVE_COLOURS[index]
        yield f'<path d="M{left + 2} {end:.1f}L{left + 14} {height:.1f}" stroke="{colour}" stroke-width="1"/>'
        yield _mark(left + 20, height, index)
        yield _small(left + 29, height + 1, _curve_name(curve, 21), weight=600)
        yield _small(left + 29, height + 15, _up_to(curve), "start")


def _curve_name(curve, most=60):
    name = curve.spec.title or curve.spec.name
    return name if len(name) <= most else name[: most - 1] + "…"


def _up_to(curve):
    if not curve.longest:
        return f"{fit.SIGNS['no']} fits with no context"
    return f"{fit.SIGNS['fits']} fits to {curve.longest:,}"


def curves_table_html(curves, contexts=fit.CONTEXTS):
    """The numbers of `curves_svg` as a table: totals by context, the longest context that fits, and the trained one."""
    head = "".join(f'<th scope="col">{_short(n)}</th>' for n in contexts)
    head = f'<tr><th scope="col">model</th>{head}<th scope="col">fits up to</th><th scope="col">trained for</th></tr>'
    rows = []
    for curve in curves:
        name = f'<th scope="row">{html.escape(_curve_name(curve))}</th>'
        if curve.problem:
            rows.append(f'<tr>{name}<td class="b" colspan="{len(contexts) + 2}">{html.escape(curve.problem)}</td></tr>')
            continue
        cells = "".join(f"<td>{units.show(curve.totals[n])}</td>" for n in contexts)
        longest = f"{curve.longest:,}" if curve.longest else "none"
        rows.append(f"<tr>{name}{cells}<td><b>{longest}</b></td><td>{curve.spec.n_ctx_train:,}</td></tr>")
    return GRID_STYLE + _table(head, "".join(rows), ' class="g"')


def params_bar_svg(parts, width=830):
    """Where the weights of a model are, as one bar; `parts` maps a part to its number of weights.

    Its twin is `params_table_html`.
    """
    total = max(sum(parts.values()), 1)
    x, shapes = 0.0, []
    for part, n_params in parts.items():
        share = n_params / total
        if share * width >= 0.05:
            shapes.append(_block(part, f"{share:.1%}", x, share * width, *PARAMETER_COLOURS[part], y=2))
        x += share * width
    title = ", ".join(f"{part} {n_params / total:.1%}" for part, n_params in parts.items())
    return (
        f'<svg viewBox="0 0 {width} 52" width="100%" height="52" role="img" aria-label="{html.escape(title)}" '
        f'preserveAspectRatio="none" style="display:block;max-width:{width}px"><title>{html.escape(title)}</title>'
        f"{''.join(shapes)}</svg>"
    )


def params_table_html(parts):
    """The numbers of `params_bar_svg` as a table."""
    total = max(sum(parts.values()), 1)
    rows = "".join(
        f'<tr><td><span aria-hidden="true" style="color:{PARAMETER_COLOURS[part][0]}">■</span> {part}</td>'
        f"<td>{n_params:,}</td><td>{n_params / total:.2%}</td></tr>"
        for part, n_params in parts.items()
    )
    head = '<tr><th scope="col">where the weights are</th><th scope="col">weights</th><th scope="col">share</th></tr>'
    rows += f"<tr><td><b>all</b></td><td>{sum(parts.values()):,}</td><td></td></tr>"
    return _table(head, rows)


def devices_svg(estimate, limits, width=830):
    """Two bars on one scale, the memory and the video memory, each against the line of what is there.

    `limits` come from `fit.limits`. Its twin is `devices_table_html`.
    """
    bars = [(limit, _parts_on(estimate, limit)) for limit in limits]
    others = [max(limit.total_bytes - limit.free_bytes, 0) for limit in limits]
    reach = max(
        [n + sum(parts.values()) for n, (_, parts) in zip(others, bars, strict=True)]
        + [limit.total_bytes for limit in limits]
        + [1]
    )
    scale, shapes, legend, titles = width / (1.02 * reach), [], Counter(), []
    for row, (n_others, (limit, parts)) in enumerate(zip(others, bars, strict=True)):
        y, x = 24 + 82 * row, 0.0
        pieces = {"others": n_others, **parts}
        for part, n_bytes in pieces.items():
            if n_bytes * scale >= 0.05:
                shapes.append(_segment(part, n_bytes, x, n_bytes * scale, y))
            x += n_bytes * scale
            legend[part] += n_bytes
        end = limit.total_bytes * scale
        shapes.append(
            f'<line x1="{end:.1f}" y1="{y}" x2="{end:.1f}" y2="{y + 52}" stroke="#1b1b1b" stroke-width="3" '
            'stroke-dasharray="7 4"/>'
        )
        says = f"{limit.limit}: {units.show(limit.needed_bytes)} of {units.show(limit.free_bytes)} free"
        says += f" ({units.show(limit.total_bytes)} in all)"
        titles.append(f"{says}, {fit.SAYS[limit.status]}")
        shapes.append(_small(2, y - 6, f"{fit.SIGNS[limit.status]} {says}: {fit.SAYS[limit.status]}", weight=600))
    height = 82 * len(bars)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" height="{height}" role="img" '
        f'aria-label="{html.escape("; ".join(titles))}" preserveAspectRatio="none" '
        f'style="display:block;max-width:{width}px"><title>{html.escape("; ".join(titles))}</title>'
        f"{''.join(shapes)}</svg>{_legend(legend)}"
    )


def devices_table_html(estimate, limits, reads):
    """The numbers of `devices_svg` as a table, with the bytes of weights that a token reads from each memory."""
    columns = [_parts_on(estimate, limit) for limit in limits]
    rows = [
        (f'<span aria-hidden="true" style="color:{COLOURS[part]}">■</span> {NAMES[part]}', *numbers)
        for part in memory.PARTS
        if any(numbers := [column[part] for column in columns])
    ]
    rows.append(("<b>total</b>", *(sum(column.values()) for column in columns)))
    rows.append(("free", *(limit.free_bytes for limit in limits)))
    body = "".join(_row_of(name, *map(_two_digits, numbers)) for name, *numbers in rows)
    shown = map(units.show_decimal, list(reads.values())[: len(limits)])
    body += _row_of("read per token (formula)", *shown)
    head = "".join(f'<th scope="col">{limit.limit}</th>' for limit in limits)
    return _table(f'<tr><th scope="col">part</th>{head}</tr>', body)


def _row_of(*cells):
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _two_digits(n_bytes):
    return units.show(n_bytes, 2)


def _parts_on(estimate, limit):
    """The parts that lie in one memory; a GPU without layers holds none."""
    if limit.limit == "video memory" and not estimate.by_device:
        return dict.fromkeys(memory.PARTS, 0)
    return _parts_at_limit(estimate, limit)
