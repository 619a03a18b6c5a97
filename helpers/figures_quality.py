"""Pictures of quality: loss against size, the error of each tensor, steps in weights, two models' next token.

Each is SVG and HTML with the same numbers as a table. Measured and published points differ by mark, line and word;
nothing is calculated here but places on the screen.
"""

import functools
import html
import math

from . import figures, units
from .figures import INK, svg_line, svg_text
from .figures_numbers import facts_html

_wide_table = functools.partial(figures.table_html, fixed=False)
PAPER = "#ffffff"
MEASURED, PUBLISHED = "#0072B2", "#A85B00"
WIDTH, HEIGHT = 860, 372
PLOT = {"left": 78, "right": 836, "top": 14, "bottom": 306}
LETTER, BOLD = 7.4, 8.8  # width of a letter at 13 px, for labels that must not overlap
MARK = 6  # half the width of a mark
MEASURES = {  # field of a row -> (words, field of its error, equal factors instead of equal steps)
    "kld_mean": ("mean KL divergence from the reference", "kld_mean_error", True),
    "perplexity": ("perplexity", "perplexity_error", False),
    "top1_agreement": ("same first choice as the reference", "", False),
}
AXES = {"bits_per_weight": "bits per weight", "file_bytes": "bytes of the file"}
HOW = {"measured": "measured here", "recorded": "recorded on another machine"}  # source of a row -> words
PLACES = ((1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1))  # of a label around its mark
FURTHER = tuple((side, up) for far in (2, 3, 4) for up in (-far, far) for side in (1, -1))  # with a thin line to it
BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8, 10, 12, 16, 24, 32)


# ---------------------------------------------------------------- loss against size


def loss_html(rows, published=(), measure="kld_mean", against="bits_per_weight", front=(), reference=None, title=""):
    """Loss (y) against size (x): measured rows with error bars, the Pareto front, published rows beside; and a table.

    Parameters
    ----------
    rows : sequence of quality.Row
        Measured here, or recorded on another machine (`source`).
    published : sequence of quality.Published
        Printed by somebody else, about another model.
    measure : str
        A key of `MEASURES`. KL divergence is drawn in equal factors.
    against : str
        A key of `AXES`.
    front : sequence of str
        Names of the measured rows that no other row beats in both size and loss.
    reference : quality.Row
        What the loss is measured from. In equal factors a loss of 0 has no place, and is named below the drawing.

    Raises
    ------
    ValueError
        For an unknown measure or axis, for published rows where another model has no place on the axis (bytes,
        perplexity), or when no row has the measure.

    Notes
    -----
    *When it misleads*: another model on another text stands beside, not on the same scale; compare orders, not heights.
    """
    _check(measure, against, published)
    drawn = [row for row in rows if _drawable(row, measure, against)]
    beside = [row for row in published if _drawable(row, measure, against)]
    if not drawn and not beside:
        raise ValueError(f"no row has {measure} and {against}; measure a model first, or hand in published rows.")
    title = title or f"{_capital(MEASURES[measure][0])} against {AXES[against]}"
    says = _loss_says(title, drawn, beside, measure, against, front)
    drawing = _svg(HEIGHT, says, _loss_shapes(drawn, beside, measure, against, front, reference))
    notes = _loss_notes(rows, drawn, beside, measure, front, reference)
    table = table_html([*filter(None, [reference]), *rows, *published], front)
    return figures.page(_heading(title), drawing, *notes, table)


def _check(measure, against, published):
    for given, known, what in ((measure, MEASURES, "measure"), (against, AXES, "against")):
        if given not in known:
            raise ValueError(f"{what}={given!r} is not known here; take one of {', '.join(known)}.")
    if published and (measure == "perplexity" or against == "file_bytes"):
        raise ValueError(
            "published rows are about another model: compare them by KL divergence or first choices, against bits per "
            "weight, not by perplexity or bytes."
        )


def _drawable(row, measure, against):
    value, size = getattr(row, measure), getattr(row, against, None)
    return value is not None and bool(size) and (value > 0 or not MEASURES[measure][2])


def _label(row):
    return f"{row.quantization}{' (imatrix)' if getattr(row, 'imatrix', '') else ''}"


def _loss_says(title, drawn, beside, measure, against, front):
    points = [f"{_label(row)} {_size(row, against)}: {_value(row, measure)}" for row in drawn]
    says = f"{title}. {_capital(_sources(drawn))}: {'; '.join(points) or 'nothing'}."
    says += f" Front: {', '.join(_by_size(front, drawn))}." if front else ""
    if beside:
        says += f" Published ({_models(beside)}): {len(beside)} points, in the table."
    return says


def _models(rows):
    return ", ".join(dict.fromkeys(row.model for row in rows))


def _sources(rows):
    return ", ".join(dict.fromkeys(row.source for row in rows)) or "measured"


def _by_size(front, rows):
    """The quantizations of the front, small files first."""
    return [_label(row) for row in sorted(rows, key=lambda row: row.bits_per_weight) if _on(front, row)]


def _on(front, row):
    return row.name in front or row.quantization in front


def _loss_notes(rows, drawn, beside, measure, front, reference):
    notes = []
    if front:
        named = ", ".join(_by_size(front, drawn))
        notes.append(f"Pareto front (rings, dashed line): {named}. No other measured file is both smaller and better.")
    nothing = [_label(row) for row in rows if row not in drawn]
    if reference is not None and MEASURES[measure][2]:
        nothing.insert(0, f"{reference.quantization} (the reference)")
    if nothing:
        notes.append(f"Without a place here, because their loss is 0 or unknown: {', '.join(nothing)}.")
    if beside:
        notes.append(
            f"Diamonds are published: {_models(beside)}, another model and another text. Compare the order, not the "
            "heights. Unnamed ones say their name when pointed at, and stand in the table."
        )
    return [figures.note_html(note) for note in notes]


def _loss_shapes(drawn, beside, measure, against, front, reference):
    every = [*drawn, *beside]
    words, _, factors = MEASURES[measure]
    ends = [end for row in every for end in _ends(row, measure)]
    line = reference is not None and not factors and getattr(reference, measure) is not None
    ends += [getattr(reference, measure)] if line else []
    y, y_ticks = _axis(ends, PLOT["bottom"], PLOT["top"], _factor_ticks if factors else _round_ticks, factors)
    sizes = [getattr(row, against) for row in every]
    if measure == "top1_agreement":
        y_ticks = [tick for tick in y_ticks if tick < 1.000001]  # nobody agrees more often than always
    x, x_ticks = _axis(sizes, PLOT["left"], PLOT["right"], _size_ticks[against], against == "bits_per_weight")
    shapes = [_grid(x, x_ticks, y, y_ticks, measure, against), _axis_words(words, AXES[against])]
    if line:
        shapes.append(_reference_line(y(getattr(reference, measure))))
    places = [(x(getattr(row, against)), y(getattr(row, measure))) for row in every]
    on_front = sorted(at for at, row in zip(places, drawn, strict=False) if _on(front, row))
    if len(on_front) > 1:
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in on_front)
        shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.4" stroke-dasharray="6 4"/>'
        )
    for i, (row, place) in enumerate(zip(every, places, strict=True)):
        here = i < len(drawn)
        shapes.append(_point(row, place, measure, against, y, not here, here and _on(front, row)))
    shapes += _labels(places, [_label(row) for row in every], len(drawn), [_bar(row, measure, y) for row in every])
    here = HOW.get(_sources(drawn), _sources(drawn)) if drawn else ""
    shapes.append(_legend(here, _models(beside) if beside else "", reference if line else None, measure))
    return "".join(shapes)


def _ends(row, measure):
    """The value and the ends of its error bar; in equal factors an end must stay above 0."""
    value, error = getattr(row, measure), _error(row, measure)
    low = value - error
    return (value, value + error, low if low > 0 or not MEASURES[measure][2] else value / 2)


def _error(row, measure):
    field = MEASURES[measure][1]
    return (getattr(row, field, None) or 0.0) if field else 0.0


def _bar(row, measure, y):
    """Top and bottom of an error bar, in pixels."""
    _, high, low = _ends(row, measure)
    return y(high), y(low)


def _axis(values, start, end, ticks, factors):
    """A function from values to pixels, and the values that get a grid line."""
    scale = math.log10 if factors else float
    low, high = scale(min(values)), scale(max(values))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.1
    low, high = low - room, high + room
    shown = [tick for tick in ticks(low, high) if low <= scale(tick) <= high]
    return lambda value: start + (end - start) * (scale(value) - low) / (high - low), shown


def _round_ticks(low, high, unit=1):
    step = unit * _step((high - low) / 6 / unit)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _byte_ticks(low, high):
    return _round_ticks(low, high, units.GIB if high - low > units.GIB else units.MIB)


def _factor_ticks(low, high):
    """1, 2 and 5 times powers of ten; powers alone where that would be too many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [n * 10.0**power for power in powers for n in ((1, 2, 5) if high - low < 3.4 else (1,))]


def _bit_ticks(low, high):
    halves = high - low < 0.35
    return [bits for bits in BITS if halves or (bits == int(bits) and bits != 7)]


_size_ticks = {"bits_per_weight": _bit_ticks, "file_bytes": _byte_ticks}


def _step(least):
    """The next round step: 1, 2 or 5 times a power of ten.

    >>> _step(0.3), _step(60), _step(2)
    (0.5, 100.0, 2.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))


def _grid(x, x_ticks, y, y_ticks, measure, against):
    shapes = []
    for tick in y_ticks:
        shapes.append(svg_line(PLOT["left"], y(tick), PLOT["right"], y(tick), "#e4e4e4"))
        says = f"{100 * tick:g} %" if measure == "top1_agreement" else f"{tick:g}"
        shapes.append(svg_text(PLOT["left"] - 7, y(tick) + 4, says, "end"))
    for tick in x_ticks:
        shapes.append(svg_line(x(tick), PLOT["top"], x(tick), PLOT["bottom"], "#efefef"))
        says = f"{tick:g}" if against == "bits_per_weight" else units.show(tick, 0)
        shapes.append(svg_text(x(tick), PLOT["bottom"] + 17, says, "middle"))
    return "".join(shapes)


def _axis_words(y_words, x_words):
    middle = (PLOT["top"] + PLOT["bottom"]) / 2
    turned = f'<g transform="translate(14 {middle:.0f}) rotate(-90)">{svg_text(0, 0, y_words, "middle")}</g>'
    return turned + svg_text((PLOT["left"] + PLOT["right"]) / 2, PLOT["bottom"] + 36, x_words, "middle")


def _reference_line(y):
    return svg_line(PLOT["left"], y, PLOT["right"], y, INK, 1.6, "2 4")


def _point(row, place, measure, against, y, published, ring):
    left, top = place
    colour = PUBLISHED if published else MEASURED
    high, low = _bar(row, measure, y)
    bar = ""
    if _error(row, measure):
        bar = svg_line(left, low, left, high, colour, 1.6)
        bar += "".join(svg_line(left - 5, end, left + 5, end, colour, 1.6) for end in (low, high))
    if published:
        corners = f"{left},{top - MARK} {left + MARK},{top} {left},{top + MARK} {left - MARK},{top}"
        mark = f'<polygon points="{corners}" fill="{PAPER}" stroke="{colour}" stroke-width="1.8"/>'
    else:
        mark = f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{MARK - 1}" fill="{colour}"/>'
    if ring:
        mark += f'<circle cx="{left:.1f}" cy="{top:.1f}" r="9" fill="none" stroke="{INK}" stroke-width="1.8"/>'
    how = f"published, {row.model}" if published else row.source
    says = f"{_label(row)} ({how}): {_size(row, against)}, {_value(row, measure)}"
    return f"<g><title>{html.escape(says)}</title>{bar}{mark}</g>"


def _labels(places, names, must, bars):
    """A name beside each mark, where none touches another; from `must` on a name without room is left out."""
    taken = [
        (left - 9, min(top - 9, high), left + 9, max(top + 9, low))
        for (left, top), (high, low) in zip(places, bars, strict=True)
    ]
    for index, ((left, top), name) in enumerate(zip(places, names, strict=True)):
        here = index < must
        width = (BOLD if here else LETTER) * len(name)
        boxes = [_box(left, top, width, *side) for side in (*PLACES, *(FURTHER if here else ()))]
        free = [box for box in boxes if _inside(box) and not any(_touch(box, other) for other in taken)]
        if not free and not here:
            continue
        box = (free or boxes)[0]
        taken.append(box)
        if boxes.index(box) >= len(PLACES):
            end = box[0] if box[0] > left else box[2]
            yield svg_line(left, top, end, (box[1] + box[3]) / 2, "#777", 0.8)
        yield svg_text(box[0], box[3] - 4, name, weight=600 if here else 400)


def _box(left, top, width, side, up):
    """(left, top, right, bottom) of a label on one side of its mark."""
    start = {1: left + 12, -1: left - 12 - width, 0: left - width / 2}[side]
    middle = top + (14 if side else 18) * up
    return (start, middle - 8, start + width, middle + 8)


def _inside(box):
    return (
        PLOT["left"] <= box[0] and box[2] <= PLOT["right"] + 20 and PLOT["top"] <= box[1] and box[3] <= PLOT["bottom"]
    )


def _touch(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend(here, models, reference, measure):
    y, x, pieces = HEIGHT - 12, PLOT["left"], []
    if here:
        pieces.append(f'<circle cx="{x + 6}" cy="{y - 4}" r="5" fill="{MEASURED}"/>')
        error = ", with its standard error" if MEASURES[measure][1] else ""
        pieces.append(svg_text(x + 18, y, f"{here}{error}"))
        x += 40 + LETTER * len(here + error)
    if models:
        corners = f"{x + 6},{y - 10} {x + 12},{y - 4} {x + 6},{y + 2} {x},{y - 4}"
        pieces.append(f'<polygon points="{corners}" fill="{PAPER}" stroke="{PUBLISHED}" stroke-width="1.8"/>')
        pieces.append(svg_text(x + 18, y, f"published: {models}"))
        x += 40 + LETTER * len("published: " + models)
    if reference is not None:
        pieces.append(svg_line(x, y - 4, x + 30, y - 4, INK, 1.6, "2 4"))
        pieces.append(
            svg_text(x + 38, y, f"reference {reference.quantization}: {_number(getattr(reference, measure), measure)}")
        )
    return "".join(pieces)


# ---------------------------------------------------------------- rows as a table


def table_html(rows, front=()):
    """Rows of a comparison or of a published table: who says so, the size, each measure; "-": not said."""
    head = ("quantization", "how we know", "file", "bits/weight", "perplexity")
    head += ("mean KLD", "99 % KLD", "same 1st", "RMS Δp")
    body = [
        (
            f"{_label(row)}{' (front)' if row.source != 'published' and _on(front, row) else ''}",
            f"published: {row.model}" if row.source == "published" else row.source,
            units.show(row.file_bytes) if getattr(row, "file_bytes", 0) else "-",
            f"{row.bits_per_weight:.2f}" if row.bits_per_weight else "-",
            _with_error(row, "perplexity"),
            _with_error(row, "kld_mean"),
            _number(row.kld_q99, "kld_mean"),
            _number(row.top1_agreement, "top1_agreement"),
            _number(row.rms_dp, "top1_agreement"),
        )
        for row in rows
    ]
    return _wide_table(head, body, left=2)


def published_html(rows, title="Published"):
    """Published rows as a table of their own, with the text, the table and the link that they come from."""
    sources = dict.fromkeys((row.model, row.text, row.table, row.url) for row in rows)
    notes = [figures.note_html(f"{model}: {table}; text: {text}.", url) for model, text, table, url in sources]
    return figures.page(_heading(title), table_html(rows), *notes)


def _with_error(row, measure):
    value, error = getattr(row, measure), _error(row, measure)
    return _number(value, measure) + (f" ± {_number(error, measure, value)}" if error else "")


def _value(row, measure):
    return f"{MEASURES[measure][0].split(' from')[0]} {_with_error(row, measure)}"


def _number(value, measure, like=None):
    """A value as people read it; `like` is the value whose error it is, and gives the number of places."""
    if value is None:
        return "-"
    if measure == "top1_agreement":
        return f"{100 * value:.1f} %"
    if measure == "perplexity":
        return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
    like = abs(value if like is None else like)
    places = 3 if like >= 0.1 else 4 if like >= 0.01 else 5
    return f"{value:.{places}f}" if value else "0"


def _size(row, against):
    return f"{row.bits_per_weight:.2f} bits per weight" if against == "bits_per_weight" else units.show(row.file_bytes)


def _capital(text):
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------- the error of each tensor


def errors_html(errors, title="Error of each tensor, in per cent of its weights"):
    """A map of layers (across) and roles (down): how far each tensor's weights moved, relative to their own size.

    `errors` come from `quality.tensor_errors`. Each cell has its number where there is room, and always as words;
    tensors that did not change are named below.
    """
    changed = [error for error in errors if error.relative_rms > 0]
    same = sorted({error.role for error in errors} - {error.role for error in changed})
    if not changed:
        raise ValueError("no tensor differs: the two files hold the same weights.")
    roles = list(dict.fromkeys(error.role for error in changed))
    worst = max(changed, key=lambda error: error.relative_rms)
    says = f"{title}. Largest: {worst.name} ({worst.type}) {_per_cent(worst)}."
    drawing = _svg(50 + 27 * len(roles), says, _map_shapes(changed, roles, worst.relative_rms))
    note = figures.note_html(f"Unchanged: {', '.join(same)}.") if same else ""
    rows = [_role_row(role, [error for error in changed if error.role == role]) for role in roles]
    table = _wide_table(("role", "types", "tensors", "least", "mean", "most", "most in layer"), rows, left=2)
    return figures.page(_heading(title), drawing, note, table, _all_errors(changed, roles))


def _map_shapes(errors, roles, most):
    layers = sorted({_layer(error) for error in errors})
    left, top = 118, 6
    width = (WIDTH - left - 4) / len(layers)
    shapes = [svg_text(left - 8, top + 27 * row + 18, role, "end") for row, role in enumerate(roles)]
    for error in errors:
        x, y = left + width * layers.index(_layer(error)), top + 27 * roles.index(error.role)
        share = error.relative_rms / most
        number = f"{100 * error.relative_rms:.2g}" if error.relative_rms < 0.1 else f"{100 * error.relative_rms:.0f}"
        label = ""
        if width > 6.2 * len(number) + 2:
            ink = PAPER if share > 0.85 else INK
            label = svg_text(x + width / 2, y + 17, number, "middle", ink=ink, size=11)
        says = f"{error.name} ({error.type}): {_per_cent(error)}"
        shapes.append(
            f'<g><title>{html.escape(says)}</title><rect x="{x:.1f}" y="{y}" width="{max(width - 1, 1):.1f}" '
            f'height="26" fill="{_shade(share)}"/>{label}</g>'
        )
    every = max(1, math.ceil(len(layers) * 18 / (WIDTH - left)))
    for column, layer in enumerate(layers):
        if column % every == 0:
            said = "all" if layer < 0 else layer
            shapes.append(svg_text(left + width * (column + 0.5), top + 27 * len(roles) + 14, said, "middle", size=11))
    shapes.append(svg_text(left - 8, top + 27 * len(roles) + 14, "layer", "end", size=11))
    shapes.append(svg_text(left, top + 27 * len(roles) + 34, "darker: further from the reference's weights"))
    return "".join(shapes)


def _layer(error):
    return -1 if error.layer is None else error.layer


def _shade(share):
    """From near white to the palette's blue.

    >>> _shade(0), _shade(1)
    ('#eef5fa', '#0072b2')
    """
    mixed = (round(a + (b - a) * share) for a, b in ((0xEE, 0x00), (0xF5, 0x72), (0xFA, 0xB2)))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _per_cent(error):
    return f"{100 * error.relative_rms:.2f} %"


def _role_row(role, errors):
    shares = [error.relative_rms for error in errors]
    worst = max(errors, key=lambda error: error.relative_rms)
    types = ", ".join(dict.fromkeys(error.type for error in errors))
    layer = "-" if _layer(worst) < 0 else worst.layer
    numbers = (f"{100 * share:.2f} %" for share in (min(shares), sum(shares) / len(shares), max(shares)))
    return (role, types, len(errors), *numbers, layer)


def _all_errors(errors, roles):
    """Every number of the map, folded away."""
    found = {(_layer(error), error.role): error for error in errors}
    rows = []
    for layer in sorted({layer for layer, _ in found}):
        cells = (found.get((layer, role)) for role in roles)
        rows.append(("all" if layer < 0 else layer, *(_per_cent(cell) if cell else "-" for cell in cells)))
    return f"<details><summary>All {len(errors)} numbers</summary>{_wide_table(('layer', *roles), rows)}</details>"


# ---------------------------------------------------------------- steps in weights


def steps_html(tensors, block_length=32, bins=240, title="Where the weights of a block lie"):
    """How often each place between a block's smallest (0) and largest weight (1) occurs, tensor by tensor.

    `tensors` maps a name to its weights (any shape; whole blocks). Rounded weights stand on few places: steps.
    Weights that were never rounded lie everywhere. The table says how many places are used.
    """
    counts = {name: _counts(weights, block_length, bins) for name, weights in tensors.items()}
    rows, says = [], []
    for name, count in counts.items():
        used = sum(n > 0 for n in count)
        share = _share_in_busiest(count, bins // 10)
        rows.append((name, f"{sum(count):,}", f"{used} of {bins + 1}", f"{share:.0%}"))
        says.append(f"{name} uses {used} of {bins + 1} places, {share:.0%} of its weights on the busiest tenth")
    pieces = [_steps(name, count, 112 * row) for row, (name, count) in enumerate(counts.items())]
    foot = 112 * len(counts)
    pieces.append(
        svg_text(
            WIDTH / 2, foot + 32, f"place between the smallest (0) and the largest (1) of {block_length}", "middle"
        )
    )
    pieces += [svg_text(_step_x(share), foot + 14, f"{share:g}", "middle") for share in (0, 0.25, 0.5, 0.75, 1)]
    head = ("weights", "how many", "places used", "on the busiest tenth of places")
    return figures.page(
        _heading(title), _svg(foot + 40, f"{title}. {'; '.join(says)}.", "".join(pieces)), _wide_table(head, rows)
    )


def places_in_block(weights, block_length=32):
    """Where each weight lies between the smallest (0) and the largest (1) of its block, from 0 to 1; no unit.

    >>> places_in_block([1, 2, 3, 5], block_length=4)
    array([[0.  , 0.25, 0.5 , 1.  ]])
    """
    import numpy as np

    blocks = np.asarray(weights, dtype=np.float64).reshape(-1, block_length)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    return (blocks - low) / np.where(high > low, high - low, 1)


def _counts(weights, block_length, bins):
    import numpy as np

    places = np.rint(places_in_block(weights, block_length) * bins).astype(int)
    return np.bincount(places.ravel(), minlength=bins + 1).tolist()


def _share_in_busiest(count, n):
    return sum(sorted(count, reverse=True)[:n]) / max(sum(count), 1)


def _step_x(share):
    return 20 + (WIDTH - 40) * share


def _steps(name, count, top):
    bins, most = len(count) - 1, max(count[1:-1] or [1]) or 1  # every block has a 0 and a 1: they would dwarf the rest
    base, width = top + 102, max((WIDTH - 40) / bins - 0.6, 0.8)
    bars = "".join(
        f'<rect x="{_step_x(place / bins) - width / 2:.1f}" y="{base - 78 * min(n / most, 1):.1f}" width="{width:.1f}" '
        f'height="{78 * min(n / most, 1):.1f}" fill="{MEASURED}"/>'
        for place, n in enumerate(count)
        if n
    )
    return svg_text(20, top + 16, name, weight=600) + bars + svg_line(20, base, WIDTH - 20, base, "#999")


# ---------------------------------------------------------------- the next token, twice


def tokens_html(words, columns, facts=None, right="", title="The next token"):
    """Next-token probabilities of two models as paired bars, with facts in words above and the numbers as a table.

    Parameters
    ----------
    words : sequence of str
        The candidates.
    columns : dict
        {name of a model: probabilities, one for each word}, at most two.
    facts : dict
        Words -> text, announced by screen readers when it changes.
    right : str
        The word that really came; it gets a sign.
    """
    status = facts_html(facts) if facts else ""
    signed = [f"{word} (came)" if word == right else word for word in words]
    rows = [(word, *(f"{column[i]:.3f}" for column in columns.values())) for i, word in enumerate(signed)]
    says = f"{title}. " + "; ".join(
        f"{word}: {', '.join(f'{name} {column[i]:.2f}' for name, column in columns.items())}"
        for i, word in enumerate(signed)
    )
    drawing = _svg(24 + 46 * len(words), says, _token_bars(signed, columns))
    return figures.page(_heading(title), status, drawing, _wide_table(("word", *columns), rows))


def _token_bars(words, columns):
    left, reach = 150, WIDTH - 150 - 70
    fills = (MEASURED, "url(#kit-after)")
    shapes, x = [], left
    for name, fill in zip(columns, fills, strict=False):
        shapes.append(f'<rect x="{x}" y="4" width="14" height="12" fill="{fill}" stroke="{INK}" stroke-width="0.6"/>')
        shapes.append(svg_text(x + 20, 15, name))
        x += 40 + LETTER * len(name)
    for i, word in enumerate(words):
        y = 26 + 46 * i
        shapes.append(svg_text(left - 10, y + 23, word, "end", weight=600 if word.endswith("(came)") else 400))
        for row, (column, fill) in enumerate(zip(columns.values(), fills, strict=False)):
            w = reach * column[i]
            place = f'x="{left}" y="{y + 18 * row}" width="{w:.1f}" height="16"'
            shapes.append(f'<rect {place} fill="{fill}" stroke="{INK}" stroke-width="0.6"/>')
            shapes.append(svg_text(left + w + 6, y + 18 * row + 13, f"{column[i]:.2f}", size=12))
    return "".join(shapes)


# ---------------------------------------------------------------- pieces of drawings


def _heading(text):
    return f"<h4>{html.escape(text)}</h4>"


def _svg(height, says, shapes):
    """A drawing as wide as the page allows; `says` is what screen readers say."""
    says = html.escape(says)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="{says}" '
        f'style="display:block;max-width:{WIDTH}px;background:#fff"><title>{says}</title>'
        '<defs><pattern id="kit-after" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="6" height="6" fill="#F3D9B8"/>'
        f'<line x1="0" y1="0" x2="0" y2="6" stroke="{PUBLISHED}" stroke-width="2.4"/></pattern></defs>'
        f'<g font-family="system-ui,sans-serif">{shapes}</g></svg>'
    )
