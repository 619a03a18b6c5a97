"""Data -> pictures. Every picture has the same numbers as a table; no colour is the only sign of anything.

What moves with a slider is an SVG string (a few KB, readable by screen readers); what one explores is a plotly figure.
"""

import html
import itertools

from . import fit, formats, memory, units
from .need import need

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
</style>"""


def page(*pieces):
    """Pieces of HTML with the kit's style, ready for `ipywidgets.HTML` or `IPython.display.HTML`."""
    return f'{STYLE}<div class="kit">{"".join(pieces)}</div>'


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
        '<defs><pattern id="kit-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)">'
        '<rect width="6" height="6" fill="#DDDDDD"/><line x1="0" y1="0" x2="0" y2="6" stroke="#999" stroke-width="2"/>'
        f"</pattern></defs>{''.join(shapes)}"
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
    return estimate.by_device["gpu" if verdict.limit == "video memory" else "cpu"]


def _ink(part):
    """Text colour that can be read on a part's colour."""
    return "#ffffff" if part == "weights" else "#1b1b1b"


def _segment(part, n_bytes, x, width):
    fill = "url(#kit-hatch)" if part == "others" else COLOURS[part]
    ink = _ink(part)
    label = ""
    if width > 7.2 * len(NAMES[part]) + 6:
        middle = f'x="{x + width / 2:.1f}" text-anchor="middle" fill="{ink}"'
        label = f'<text {middle} y="44" font-size="13">{NAMES[part]}</text>'
        label += f'<text {middle} y="61" font-size="12">{units.show(n_bytes)}</text>'
    return (
        f"<g><title>{NAMES[part]}: {units.show(n_bytes, 2)}</title>"
        f'<rect x="{x:.1f}" y="22" width="{width:.1f}" height="48" fill="{fill}" stroke="#fff"/>{label}</g>'
    )


def parts_table_html(estimate, engine_estimate=None, engine_note="", rule_bytes=None):
    """The parts as a table: the formula; where the engine was asked, its figure and the ratio; last a rule of thumb."""
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
    columns = ("part", "formula", *(("engine", "formula / engine") if theirs else ()))
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(_row(*row, with_engine=bool(theirs)) for row in rows)
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
    return "".join(f"<h4>{html.escape(title)}</h4><pre>{html.escape(text)}</pre>" for title, text in pieces)


def reasons_html(verdict, estimate):
    """Why: the reasons of the verdict and the assumptions of the estimate, as a short list."""
    lines = (*verdict.reasons, *estimate.assumptions)
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)


def answer_html(text, status):
    """A model's answer as plain text (whatever it contains), with a line about how it went."""
    return page(
        '<div role="log" aria-live="polite" style="white-space:pre-wrap;font-size:15px;min-height:60px;'
        f'padding:8px 12px;border-left:8px solid #0072B2;background:#f2f7fb;color:#1b1b1b">{html.escape(text)}</div>'
        f'<p class="note">{html.escape(status)}</p>'
    )


def error_html(error):
    """An error that a person can read, where the result would have been."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
    paper, ink = VERDICT_COLOURS["no"]
    return page(f'<div class="sentence" role="alert" style="background:{paper};color:{ink}">{html.escape(text)}</div>')


def compare_figure(columns, title="Predicted, reserved, resident"):
    """Stacked bars side by side (plotly); `columns` maps a name to {part: bytes}. Its twin: `compare_table_html`."""
    go = need("plotly.graph_objects", "draw this figure")
    parts = [part for part in (*memory.PARTS, *RESIDENT) if any(part in column for column in columns.values())]
    colours = {**COLOURS, "file": "#56B4E9", "anonymous": "#D55E00"}
    names = {**NAMES, **RESIDENT}
    figure = go.Figure()
    for part, pattern in zip(parts, itertools.cycle(PATTERNS), strict=False):
        values = [column.get(part, 0) / units.MIB for column in columns.values()]
        text = [units.show(column[part]) if column.get(part, 0) > 8 * units.MIB else "" for column in columns.values()]
        figure.add_bar(
            x=list(columns), y=values, name=names[part], text=text, marker_color=colours[part],
            marker_pattern_shape=pattern, marker_pattern_fgopacity=0.25, textfont_color=_ink(part),
            hovertemplate="%{y:.1f} MiB<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(
        barmode="stack", title=title, yaxis_title="MiB", template="plotly_white", height=400, font_size=14,
        margin={"l": 60, "r": 20, "t": 50, "b": 40},
    )  # fmt: skip
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
    return page(f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>")


def context_figure(specs, quantization, machine, contexts=fit.CONTEXTS, **settings):
    """Memory against context length for several models (plotly, log axes), with the machine's free memory as a line."""
    go = need("plotly.graph_objects", "draw this figure")
    figure = go.Figure()
    dashes, marks = ("solid", "dash", "dot", "dashdot"), ("circle", "square", "diamond", "x")
    palette = [COLOURS[part] for part in ("weights", "kv", "compute", "output", "repacked")]
    for index, spec in enumerate(specs):
        totals = [memory.estimate(spec, quantization, n_ctx=n, **settings).total_bytes / units.GIB for n in contexts]
        figure.add_scatter(
            x=list(contexts), y=totals, name=html.escape(spec.title or spec.name), mode="lines+markers",
            line_dash=dashes[index % 4], marker_symbol=marks[index % 4], line_color=palette[index % 5],
            hovertemplate="%{x:,} tokens: %{y:.2f} GiB<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    free = machine.ram_available_bytes  # a trace, because plotly misplaces horizontal lines on a log axis
    figure.add_scatter(
        x=list(contexts), y=[free / units.GIB] * len(contexts), name=f"free here: {units.show(free)}", mode="lines",
        line={"color": "#1b1b1b", "dash": "longdash", "width": 3}, hoverinfo="name",
    )  # fmt: skip
    ticks = [_short(n) for n in contexts]
    figure.update_xaxes(type="log", title="context (tokens)", tickvals=list(contexts), ticktext=ticks)
    figure.update_yaxes(type="log", title="memory needed (GiB)")
    title = f"Memory against context, {html.escape(memory.quantization_name(quantization))}"
    figure.update_layout(template="plotly_white", height=430, font_size=14, title=title)
    return figure


def context_table_html(specs, quantization, contexts=fit.CONTEXTS, **settings):
    """The numbers of `context_figure` as a table."""
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
