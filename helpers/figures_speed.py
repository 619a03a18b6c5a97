"""Pictures of speed: three ceilings, the time of a token, a band beside measurements, a sweep of threads.

Each is SVG with its table. Predictions and measurements come in as the values of `speed`; nothing is calculated here
but places on the screen and the ratios of the tables.
"""

import html
import math

from . import figures, units
from .figures import INK, svg_line, svg_text

GRID = "#e4e4e4"
WIDTH = 860
LETTER = 7.5  # width of a letter at 13 px, rather too much than too little
TERMS = {  # term of a Prediction -> its words, letter, colour, ink
    "bytes_seconds": ("read weights", "r", "#0072B2", "#ffffff"),
    "unpack_seconds": ("unpack weights", "u", "#56B4E9", INK),
    "waiting_seconds": ("threads wait", "w", "#009E73", INK),
    "sampling_seconds": ("choose a token", "t", "#F0E442", INK),
    "cache_seconds": ("look back", "b", "#E69F00", INK),
}
ROOF, BAND, SEEN = "#0072B2", "#B9DDF3", "#A63E00"
MILLISECONDS = 1e3


def speed_text(tokens_per_second):
    """Tokens per second as people say them.

    >>> speed_text(1234.5), speed_text(98.76), speed_text(4.56), speed_text(0.123)
    ('1,234', '99', '4.6', '0.12')
    """
    if tokens_per_second >= 9.95:
        return f"{tokens_per_second:,.0f}"
    return f"{tokens_per_second:.1f}" if tokens_per_second >= 1 else f"{tokens_per_second:.2g}"


def band_text(band):
    """A band in words: "26 (20 to 33)"."""
    return f"{speed_text(band.likely)} ({speed_text(band.low)} to {speed_text(band.high)})"


# ---------------------------------------------------------------- where the time of a token goes


def terms_html(predictions, shares=False):
    """Seconds of one token of the answer as stacked bars, a piece for each term; `predictions` maps names to them.

    The bars share one scale, so a longer bar is a slower model; with `shares` each bar is as long as the others and
    its pieces are shares. Letters in narrow pieces stand for the terms.
    """
    longest = max(prediction.seconds for prediction in predictions.values())
    left = 14 + LETTER * max(map(len, predictions))
    shapes, rows, says = [], [], []
    for line, (name, prediction) in enumerate(predictions.items()):
        y, x = 34 * line, left
        scale = (WIDTH - left - 190) / (prediction.seconds if shares else longest)
        shapes.append(svg_text(left - 8, y + 20, name, "end"))
        for term, (words, letter, colour, ink) in TERMS.items():
            seconds = getattr(prediction, term)
            shapes.append(_piece(x, y, seconds * scale, words, letter, colour, ink, _milliseconds(seconds)))
            x += seconds * scale
        whole, reached = _milliseconds(prediction.seconds), speed_text(prediction.answer.likely)
        shapes.append(svg_text(x + 8, y + 20, f"{whole}: {reached} tokens/s", weight=600))
        each = [_milliseconds(getattr(prediction, term)) for term in TERMS]
        rows.append((name, *each, whole, f"{band_text(prediction.answer)} tokens/s"))
        says.append(f"{name} {whole}, {reached} tokens/s")
    key = ", ".join(f"{letter}: {words}" for words, letter, *_ in TERMS.values())
    shapes.append(svg_text(left, 34 * len(predictions) + 16, key))
    head = ("", *(words for words, *_ in TERMS.values()), "one token", "answer (formula)")
    drawing = _svg("".join(shapes), 34 * len(predictions) + 24, "Time of one token: " + "; ".join(says))
    return figures.page(_heading("Where the time of one token goes (formula)"), drawing, figures.table_html(head, rows))


def _milliseconds(seconds):
    value = seconds * MILLISECONDS
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


def _piece(x, y, width, words, letter, colour, ink, number):
    said = next((text for text in (f"{words} {number}", words, letter) if LETTER * len(text) + 4 < width), "")
    return (
        f"<g><title>{words}: {number}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="28" fill="{colour}" stroke="#fff"/>'
        f"{svg_text(x + width / 2, y + 19, said, 'middle', ink=ink) if said else ''}</g>"
    )


def prediction_html(prediction, empty=None):
    """A prediction as a sentence, with a bar of its terms; `empty` is the same with nothing in the context."""
    whole = prediction.seconds
    shares = {words: getattr(prediction, term) / whole for term, (words, *_) in TERMS.items()}
    most = ", ".join(f"{share:.0%} {words}" for words, share in shares.items() if share >= 0.005)
    said = f"About {band_text(prediction.answer)} tokens/s. Of the {_milliseconds(whole)} of a token: {most}."
    if prediction.prompt:
        said += f" Prompt: {speed_text(prediction.prompt.likely)} tokens/s."
    rows = {"context full": prediction, **({"context empty": empty} if empty else {})}
    notes = "".join(map(figures.note_html, prediction.assumptions))
    return figures.page(figures.says_html(said), terms_html(rows), notes)


# ---------------------------------------------------------------- three ceilings


def ceilings_html(predictions, measured=None):
    """Tokens per second against bytes per token, both axes in equal factors, beneath three ceilings.

    Memory: bandwidth / bytes. Cores: as if weights came at once and had only to be unpacked and multiplied. Waiting: as
    if there were nothing to do but to wait for the other threads after each operation; it is nearly level. A
    prediction, drawn as a band, lies below all of them. `measured` maps names to tokens per second that were reached.
    """
    measured = measured or {}
    ordered = dict(sorted(predictions.items(), key=lambda row: row[1].read_bytes))
    rows, says = [], []
    for name, prediction in ordered.items():
        reached, roofs = measured.get(name), _roofs(prediction)
        seen = (f"{speed_text(reached)} tokens/s", f"{reached / roofs['memory']:.2f}") if reached else ("-", "-")
        limits = [speed_text(roofs[of]) if of in roofs else "-" for of in CEILINGS]
        rows.append((name, units.show_decimal(prediction.read_bytes), *limits, band_text(prediction.answer), *seen))
        said = f"{name} by memory {limits[0]}, predicted {band_text(prediction.answer)}"
        says.append(said + (f", measured {speed_text(reached)}" if reached else ""))
    head = ("model", "read per token", *CEILINGS, "predicted", "measured", "measured / memory")
    columns = 8 if measured else 6
    drawing = _ceilings_svg(ordered, measured, "Tokens per second beneath three ceilings: " + "; ".join(says))
    heading = _heading("Three ceilings of an answer, in tokens/s (formula)")
    return figures.page(heading, drawing, figures.table_html(head[:columns], [row[:columns] for row in rows]))


CEILINGS = {"memory": (ROOF, ""), "cores": ("#00704F", "9 5"), "waiting": ("#9C3F77", "3 4")}  # colour, dashes


def _roofs(prediction):
    """Tokens per second if there were but one thing to do: {ceiling: height}; what costs nothing sets none."""
    seconds = {
        "memory": prediction.bytes_seconds,
        "cores": prediction.unpack_seconds,
        "waiting": prediction.waiting_seconds,
    }
    return {of: 1 / n for of, n in seconds.items() if n > 0}


def _ceilings_svg(ordered, measured, says):
    left, right, top, bottom = 64, WIDTH - 16, 12, 330
    roofs = {name: _roofs(prediction) for name, prediction in ordered.items()}
    speeds = [n for prediction in ordered.values() for n in (prediction.answer.low, prediction.answer.high)]
    speeds += [n for each in roofs.values() for n in each.values()] + list(measured.values())
    sizes = [prediction.read_bytes for prediction in ordered.values()]
    x_low, x_high = _logs(sizes, 0.3, 0.45)
    y_low, y_high = _logs(speeds, 0.3, 0.25)

    def place(n_bytes, per_second):
        x = (math.log10(n_bytes) - x_low) / (x_high - x_low)
        y = (math.log10(per_second) - y_low) / (y_high - y_low)
        return left + (right - left) * x, bottom - (bottom - top) * y

    shapes = []
    for value in _ticks(y_low, y_high):
        y = place(sizes[0], value)[1]
        shapes += [svg_line(left, y, right, y, GRID), svg_text(left - 6, y + 4, speed_text(value), "end")]
    for power in _powers(x_low, x_high):
        x = place(10.0**power, speeds[0])[0]
        shapes.append(svg_line(x, top, x, bottom, GRID))
        shapes.append(svg_text(x, bottom + 16, units.show_decimal(10**power, 0), "middle"))
    shapes.append(svg_text((left + right) / 2, bottom + 34, "bytes read for each token", "middle"))
    for of, (colour, dashes) in CEILINGS.items():
        points = [place(p.read_bytes, roofs[name][of]) for name, p in ordered.items() if of in roofs[name]]
        if points:
            shapes.append(_polyline(points, colour, dashes))
            shapes.append(svg_text(points[0][0] - 6, points[0][1] - 4, of, "end", colour, 600))
    taken, under = -WIDTH, 0  # where the last label ends, and how low it is: labels come from left to right
    for name, prediction in ordered.items():
        shapes.append(_band_upright(prediction, place))
        x, y = place(prediction.read_bytes, prediction.answer.low)
        if name in measured:
            y = max(y, place(prediction.read_bytes, measured[name])[1] + 5)
            shapes.append(_seen(*place(prediction.read_bytes, measured[name])))
        half = LETTER * len(name) / 2
        y = max(y + 16, under + 16) if x - half < taken and y + 16 > under - 16 else y + 16
        taken, under = x + half, y
        shapes.append(svg_text(x, y, name, "middle"))
    key = "bar: predicted band, its line the likeliest" + ("; diamond: measured" if measured else "")
    shapes.append(svg_text(left + 6, bottom - 8, key))
    return _svg("".join(shapes), bottom + 42, says)


def _band_upright(prediction, place):
    band = prediction.answer
    (x, low), (_, middle), (_, high) = (place(prediction.read_bytes, n) for n in (band.low, band.likely, band.high))
    box = f'<rect x="{x - 7:.1f}" y="{high:.1f}" width="14" height="{low - high:.1f}" fill="{BAND}" stroke="{INK}"/>'
    return box + svg_line(x - 11, middle, x + 11, middle, INK, 3)


# ---------------------------------------------------------------- a band beside measurements


def bands_html(predictions, measured=None, title="Predicted, and measured"):
    """Predicted bands of the answer as lying bars, with measurements on them where there are any.

    `predictions` maps names to `Band` or to a `Prediction`, whose answer counts; `measured` maps some of the names to
    a `Spread` or a number.
    """
    bands = {name: getattr(value, "answer", value) for name, value in predictions.items()}
    seen = {name: _spread(value) for name, value in (measured or {}).items() if name in bands}
    ends = [n for band in bands.values() for n in (band.low, band.high)]
    low, high = _logs([*ends, *(n for spread in seen.values() for n in spread)], 0.05, 0.05)
    left, right = 14 + LETTER * max(map(len, bands)), WIDTH - 130
    bottom = 30 * len(bands) + 6

    def place(per_second):
        return left + (right - left) * (math.log10(per_second) - low) / (high - low)

    shapes = []
    for value in _ticks(low, high):
        x = place(value)
        shapes += [svg_line(x, 0, x, bottom, GRID), svg_text(x, bottom + 16, speed_text(value), "middle")]
    shapes.append(svg_text((left + right) / 2, bottom + 34, "tokens/s (equal steps are equal factors)", "middle"))
    rows, says = [], []
    for line, (name, band) in enumerate(bands.items()):
        y = 30 * line + 4
        shapes.append(svg_text(left - 8, y + 15, name, "end"))
        shapes.append(_band_lying(place(band.low), place(band.likely), place(band.high), y))
        said = f"{name} predicted {band_text(band)}"
        cells = [name, f"{band_text(band)} tokens/s"]
        if name in seen:
            least, median, most = seen[name]
            shapes += [svg_line(place(least), y + 11, place(most), y + 11, SEEN, 2), _seen(place(median), y + 11)]
            ratio = f"{band.likely / median:.2f}"
            shapes.append(svg_text(right + 10, y + 15, f"{ratio} of measured"))
            said += f", measured {speed_text(median)}"
            cells += [f"{speed_text(median)} ({speed_text(least)} to {speed_text(most)}) tokens/s", ratio]
            cells.append("yes" if band.low <= median <= band.high else "no")
        elif seen:
            cells += ["-", "-", "-"]
        rows.append(cells)
        says.append(said)
    key = "bar: predicted band, its line the likeliest" + ("; diamond: measured, lowest to highest" if seen else "")
    shapes.append(svg_text(left, bottom + 52, key))
    head = ("", "predicted", "measured", "predicted / measured", "inside the band")[: 5 if seen else 2]
    drawing = _svg("".join(shapes), bottom + 60, f"{title}, in tokens per second: {'; '.join(says)}")
    return figures.page(_heading(title), drawing, figures.table_html(head, rows))


def _spread(value):
    """(lowest, median, highest) of a `Spread`, or of a number alone."""
    if hasattr(value, "median"):
        return value.lowest, value.median, value.highest
    return value, value, value


def _band_lying(low, likely, high, y):
    box = f'<rect x="{low:.1f}" y="{y}" width="{max(high - low, 1):.1f}" height="22" fill="{BAND}" stroke="{INK}"/>'
    return box + svg_line(likely, y - 2, likely, y + 24, INK, 3)


# ---------------------------------------------------------------- a sweep of threads


def threads_html(sweep, allowed):
    """Tokens per second of the answer against the number of threads, with a line at the `allowed` ones.

    `sweep` maps numbers of threads to a `Spread` or a number; the thin line of a bar goes from the lowest to the
    highest run.
    """
    seen = {n: _spread(value) for n, value in sorted(sweep.items())}
    best = max(median for _, median, _ in seen.values())
    top, bottom, left = 46, 260, 64
    scale = (bottom - top) / max(most for *_, most in seen.values())
    step = (WIDTH - left - 20) / len(seen)
    shapes, rows, border = [svg_line(left, bottom, WIDTH - 10, bottom, INK)], [], left
    for column, (n_threads, (least, median, most)) in enumerate(seen.items()):
        x = left + step * (column + 0.5)
        colour = "#fff" if n_threads > allowed else ROOF
        wide, high = min(step * 0.55, 80), median * scale
        beyond = figures.hatching(x - wide / 2, bottom - high, wide, high, SEEN, 5, 11) if n_threads > allowed else ""
        shapes.append(
            f"<g><title>{n_threads} threads: {speed_text(median)} tokens/s</title>"
            f'<rect x="{x - wide / 2:.1f}" y="{bottom - high:.1f}" width="{wide:.1f}" height="{high:.1f}" '
            f'fill="{colour}" stroke="{INK}"/>{beyond}</g>'
        )
        shapes.append(svg_line(x, bottom - least * scale, x, bottom - most * scale, INK, 2))
        shapes.append(svg_text(x, bottom - most * scale - 7, speed_text(median), "middle", weight=600))
        shapes.append(svg_text(x, bottom + 17, n_threads, "middle"))
        slower = "the fastest" if median == best else f"{best / median:.1f} times slower"
        runs = f"{speed_text(least)} to {speed_text(most)}"
        rows.append((n_threads, "yes" if n_threads <= allowed else "no", speed_text(median), runs, slower))
        border = left + step * (column + 1) if n_threads <= allowed else border
    if any(n > allowed for n in seen):
        shapes.append(svg_line(border, 4, border, bottom + 24, INK, 3, "7 4"))
        said = f"what one may use here: {allowed}; hatched: more than that"
        shapes.append(svg_text(border + 8, 16, said, weight=600))
    shapes.append(svg_text((left + WIDTH) / 2, bottom + 36, "threads", "middle"))
    shapes.append(svg_text(2, top + 2, "tokens/s"))
    says = "; ".join(f"{n} threads {speed_text(median)} tokens/s" for n, (_, median, _) in seen.items())
    says = f"Speed of the answer against threads, {allowed} may be used: {says}"
    head = ("threads", "may be used", "tokens/s (measured)", "lowest to highest", "beside the fastest")
    heading = _heading("Threads, and the speed of the answer (measured)")
    return figures.page(heading, _svg("".join(shapes), bottom + 44, says), figures.table_html(head, rows, left=0))


# ---------------------------------------------------------------- pieces


def _logs(values, below, above):
    """Powers of ten around the values, with room below and above."""
    return math.log10(min(values)) - below, math.log10(max(values)) + above


def _powers(low, high):
    return range(math.ceil(low), math.floor(high) + 1)


def _ticks(low, high):
    """Round numbers 1, 2, 5, 10 ... inside the powers of ten `low` to `high`.

    >>> _ticks(0.9, 2.1)
    [10.0, 20.0, 50.0, 100.0]
    """
    steps = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
    return [step for step in steps if 10**low <= step <= 10**high]


def _heading(text):
    return f"<h4>{html.escape(text)}</h4>"


def _svg(shapes, height, says):
    """A drawing as wide as the page allows; `says` is what screen readers say."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="{html.escape(says)}" '
        f'style="display:block;max-width:{WIDTH}px"><title>{html.escape(says)}</title>'
        f"{shapes}</svg>"
    )


def _polyline(points, colour, dashes):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dashed}/>'


def _seen(x, y):
    """The mark of a measurement."""
    path = f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"
    return f'<path d="{path}" fill="{SEEN}" stroke="#fff"/>'
