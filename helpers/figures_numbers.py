"""Pictures of numbers: bits, levels, blocks. Each is an SVG or HTML string, with the same numbers as a table.

What is drawn comes in as the values of `quant`; nothing is calculated here but places on the screen.
"""

import html

from . import figures, units
from .figures import INK, svg_line, svg_text

# Okabe and Ito's palette; a letter in each box, or a word beside it, says the same.
PARTS = {
    "sign": ("#D55E00", "#ffffff", "s"),
    "exponent": ("#E69F00", "#1b1b1b", "e"),
    "fraction": ("#56B4E9", "#1b1b1b", "f"),
    "number": ("#56B4E9", "#1b1b1b", "n"),
    "scale of scales": ("#0072B2", "#ffffff", "S"),
    "scale of offsets": ("#CC79A7", "#1b1b1b", "O"),
    "scale": ("#E69F00", "#1b1b1b", "s"),
    "offset": ("#009E73", "#ffffff", "o"),
    "weights": ("#DDDDDD", "#1b1b1b", "w"),
}
BOX, LINE = 24, 68  # a bit, and a number with its captions, in pixels
MANY = 40  # weights from here on are drawn thinner
CLIPPED = "#D55E00"


def bits_html(numbers, flipped=None):
    """The bits of some `quant.Stored` numbers: boxes with a letter for their part, and the table of the same.

    `flipped`: a place (from the left, 0 the first) that gets a frame in every number; the last one has it flipped.
    """
    numbers = tuple(numbers)
    return figures.page(bits_svg(numbers, flipped), bits_table_html(numbers))


def bits_svg(numbers, flipped=None):
    """Rows of boxes, one for each bit; the text alternative says the bits and what they stand for."""
    longest = max(len(number.bits) for number in numbers)
    width, height = 70 + BOX * longest, LINE * len(numbers) + 4
    title = "Bits: " + "; ".join(str(number) for number in numbers)
    last = len(numbers) - 1
    rows = "".join(_bits_row(number, LINE * i, flipped, i == last) for i, number in enumerate(numbers))
    return _svg(width, height, title, rows)


def _bits_row(number, y, flipped, last):
    pieces = [svg_text(0, y + 33, number.format, weight=700, size=15)]
    if flipped is not None:
        pieces.append(svg_text(0, y + 52, "after" if last else "before"))
    place = 0
    for name, bits in number.fields:
        paper, ink, letter = PARTS[name]
        start = 70 + BOX * place
        said = f"{name} ({letter})" if len(bits) > 3 else letter
        pieces.append(svg_text(start + BOX * len(bits) / 2, y + 58, said, "middle", size=14))
        for bit in bits:
            x = 70 + BOX * place
            stroke = f'stroke="{INK}" stroke-width="3"' if place == flipped else 'stroke="#fff"'
            pieces.append(f'<rect x="{x}" y="{y + 15}" width="{BOX - 2}" height="28" fill="{paper}" {stroke}/>')
            pieces.append(svg_text(x + BOX / 2 - 1, y + 35, bit, "middle", ink, 700 if place == flipped else 400, 15))
            if place == flipped and last:
                pieces.append(svg_text(x + BOX / 2 - 1, y + 12, "▼ flipped", "middle", size=12))
            place += 1
    return "".join(pieces)


def bits_table_html(numbers):
    """The same bits in words: format, each part, and the number they stand for."""
    head = ("format", "bits", "sign", "exponent", "fraction or number", "stands for")
    rows = []
    for number in numbers:
        fields = dict(number.fields)
        last = fields.get("fraction", fields.get("number"))
        cells = (number.format, len(number.bits), fields["sign"], fields.get("exponent", "-"), last)
        rows.append((*cells, f"{number.value:.9g}"))
    return table_html(head, rows)


def number_line_html(held, low, high, width=860):
    """The numbers that formats can hold between two others, as ticks on one axis, and a table.

    `held` maps a format's name to its numbers in order, from `low` to `high`; at least two.
    """
    scale, pieces, rows = (width - 130) / (high - low), [], []
    for line, (name, values) in enumerate(held.items()):
        y = 22 + 42 * line
        ticks = "".join(f"M{100 + scale * (x - low):.1f} {y - 12}v24" for x in values)
        pieces += [svg_text(0, y + 5, name, weight=700, size=15), svg_line(100, y, width - 30, y, "#999")]
        pieces.append(f'<path d="{ticks}" stroke="{INK}" stroke-width="2"/>')
        first, following = values[:2]
        rows.append((name, len(values), *(f"{x:.12g}" for x in (first, following, following - first))))
    y = 42 * len(held) + 20
    pieces += [svg_text(100, y, f"{low:g}", "middle"), svg_text(width - 30, y, f"{high:g}", "middle")]
    title = f"Numbers from {low:g} to {high:g}: " + ", ".join(f"{name} {len(xs)}" for name, xs in held.items())
    head = ("format", f"numbers from {low:g} to {high:g}", "the first", "the next", "step")
    return figures.page(_svg(width, y + 8, title, "".join(pieces)), table_html(head, rows))


def levels_html(weights, squeezed, names=("weights", "levels")):
    """Weights above, the levels below, and a line from each weight to the level that comes back; and the table."""
    return figures.page(levels_svg(weights, squeezed, names), levels_table_html(weights, squeezed))


def levels_svg(weights, squeezed, names=("weights", "levels"), width=860, ends=None, follow=None):
    """The picture of `levels_html`: a clipped weight is a cross, any other a dot.

    `ends`: the lowest and highest number of the axis, so that two pictures share one; levels beyond are not drawn.
    `follow`: a slice of the weights that get dots and lines; the others become thin ticks, so that many stay quick.
    """
    levels, back = [float(x) for x in squeezed.levels], [float(x) for x in squeezed.weights()]
    weights = [float(x) for x in weights]
    shown = ends or (levels[0], levels[-1])
    low, high = min(*shown, *weights, *back), max(*shown, *weights, *back)
    span = (high - low) or 1.0
    seen = [x for x in levels if low <= x <= high]

    def place(x):
        return 100 + (width - 130) * (x - low) / span

    pieces = [svg_text(0, y, name, weight=700, size=14) for y, name in zip((29, 115), names, strict=True)]
    pieces += [svg_line(place(low), 24, place(high), 24, "#999"), svg_line(place(low), 110, place(high), 110, "#999")]
    pieces += [svg_line(place(x), 103, place(x), 117, INK, 2) for x in seen]
    if follow:
        ticks = "".join(f"M{place(x):.1f} 17v14" for x in weights)
        pieces.append(f'<path d="{ticks}" stroke="#777" stroke-width="0.8"/>')
    drawn = list(zip(weights, back, strict=True))[follow or slice(None)]
    pen, dot = (0.6, 2.5) if len(drawn) >= MANY else (1.6, 5)
    for weight, found in drawn:
        x, clipped = place(weight), not levels[0] <= weight <= levels[-1]
        pieces.append(
            svg_line(x, 30, place(found), 103, CLIPPED if clipped else "#0072B2", pen, "5 3" if clipped else "")
        )
        pieces.append(_cross(x, 24) if clipped else f'<circle cx="{x:.1f}" cy="24" r="{dot}" fill="#0072B2"/>')
    pieces += _ends_of_levels(seen, place)
    legend = "dot: rounded to the nearest level"
    legend += "; cross and dashed line: clipped to the last one" if squeezed.n_clipped else ""
    legend += "; tick above: another weight of the block" if follow else ""
    legend += f"; levels on this axis: {len(seen)} of {len(levels)}" if len(seen) < len(levels) else ""
    pieces.append(svg_text(width / 2, 156, legend, "middle"))
    title = f"{len(weights)} weights on {len(levels)} levels from {levels[0]:.3g} to {levels[-1]:.3g}, "
    title += f"{squeezed.n_clipped} of them clipped"
    return _svg(width, 164, title, "".join(pieces))


def _ends_of_levels(seen, place):
    """The lowest and highest level that are drawn, as numbers below them; beside them where they lie close."""
    if len(seen) < 2:
        return [svg_text(place(x), 136, f"{x:.3g}", "middle") for x in seen]
    sides = ("end", "start") if place(seen[-1]) - place(seen[0]) < 130 else ("start", "end")
    return [svg_text(place(x), 136, f"{x:.3g}", side) for x, side in zip((seen[0], seen[-1]), sides, strict=True)]


def levels_table_html(weights, squeezed, most=12):
    """Weight, integer, what comes back, and the error, for the first weights."""
    rows = []
    for weight, integer, back in list(zip(weights, squeezed.integers, squeezed.weights(), strict=True))[:most]:
        outside = not squeezed.levels[0] <= weight <= squeezed.levels[-1]
        rows.append(
            (f"{weight:.4g}", int(integer), f"{back:.4g}", f"{back - weight:+.4f}", "clipped" if outside else "rounded")
        )
    left = len(squeezed.integers) - len(rows)
    note = f'<p class="note">and {left} more weights</p>' if left else ""
    return table_html(("weight", "integer", "comes back as", "error", "how"), rows) + note


def layout_html(layouts):
    """What blocks consist of: `layouts` maps a type's name to its `quant.layout`; bars in bits per weight, and a table.

    A bar is as long as the bits of one weight, so a bar that is twice as long is a file twice as large.
    """
    return figures.page(layout_svg(layouts), layout_table_html(layouts))


def layout_svg(layouts, width=860):
    """The picture of `layout_html`."""
    most = max(sum(part.per_weight for part in parts) for parts in layouts.values())
    scale = (width - 190) / most
    pieces = []
    for line, (name, parts) in enumerate(layouts.items()):
        x, y = 70.0, 34 * line
        pieces.append(svg_text(0, y + 21, name, weight=700, size=15))
        for part in parts:
            paper, ink, letter = PARTS[part.name]
            w = part.per_weight * scale
            pieces.append(
                f'<rect x="{x:.1f}" y="{y + 3}" width="{w:.1f}" height="27" fill="{paper}" stroke="#fff">'
                f"<title>{name}: {part.name} {part.per_weight:.6g} bits a weight</title></rect>"
            )
            said = f"{part.name} {part.per_weight:.6g}" if part.name == "weights" else letter
            if w > 8 * len(said):
                pieces.append(svg_text(x + w / 2, y + 22, said, "middle", ink, size=14))
            x += w
        pieces.append(
            svg_text(x + 6, y + 22, f"{sum(part.per_weight for part in parts):.6g} bits", weight=700, size=15)
        )
    used = {part.name: PARTS[part.name][2] for parts in layouts.values() for part in parts if part.name != "weights"}
    y = 34 * len(layouts) + 18
    legend = ", ".join(f"{letter} = {name}" for name, letter in used.items())
    pieces.append(svg_text(70, y, f"bits a weight; {legend} (narrow ones carry no letter)"))
    totals = "; ".join(f"{name} {sum(p.per_weight for p in parts):.6g}" for name, parts in layouts.items())
    return _svg(width, y + 8, f"Bits per weight: {totals}", "".join(pieces))


def layout_table_html(layouts):
    """The same numbers: each part of each type, how many, how many bits, and what that costs a weight."""
    rows = []
    for name, parts in layouts.items():
        length = parts[-1].count
        rows += [(name, p.name, p.count, p.bits, f"{p.count * p.bits} / {length} = {p.per_weight:.6g}") for p in parts]
        total = sum(part.per_weight for part in parts)
        n_bytes = units.bytes_from_bits(length, total)
        rows.append((name, "all", "", "", f"{total:.6g} ({n_bytes} bytes for {length} weights)"))
    return table_html(("type", "part", "how many", "bits of each", "bits a weight"), rows)


def facts_html(facts):
    """A few facts in one line that screen readers announce when it changes: `facts` maps words to text."""
    said = ", ".join(f"{html.escape(words)} <b>{html.escape(text)}</b>" for words, text in facts.items())
    return f'<p role="status" aria-live="polite" style="font-size:16px;margin:4px 0">{said}</p>'


def table_html(head, rows):
    """A table with a head row; all text is escaped."""
    return figures.table_html(head, rows, left=0, fixed=False)  # bits need columns of their own widths


def _svg(width, height, title, body):
    title = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{title}" style="display:block;max-width:100%;height:auto;background:#fff">'
        f'<title>{title}</title><g font-family="system-ui,sans-serif">{body}</g></svg>'
    )


def _cross(x, y, size=5):
    ends = ((x - size, y - size, x + size, y + size), (x - size, y + size, x + size, y - size))
    return "".join(svg_line(*end, CLIPPED, 2.5) for end in ends)
