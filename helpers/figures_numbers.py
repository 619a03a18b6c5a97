"""Pictures of numbers: bits, levels, blocks. Each is an SVG or HTML string, with the same numbers as a table.

What is drawn comes in as the values of `quant`; nothing is calculated here but places on the screen.
"""

import html

from . import figures, units

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
INK, CLIPPED = "#1b1b1b", "#D55E00"


def bits_html(numbers, flipped=None):
    """The bits of some `quant.Stored` numbers: boxes with a letter for their part, and the table of the same.

    `flipped`: a place (from the left, 0 the first) to mark in every number.
    """
    numbers = tuple(numbers)
    return figures.page(bits_svg(numbers, flipped), bits_table_html(numbers))


def bits_svg(numbers, flipped=None):
    """Rows of boxes, one for each bit; the text alternative says the bits and what they stand for."""
    longest = max(len(number.bits) for number in numbers)
    width, height = 70 + BOX * longest, LINE * len(numbers) + 4
    title = "Bits: " + "; ".join(str(number) for number in numbers)
    rows = "".join(_bits_row(number, LINE * line, flipped) for line, number in enumerate(numbers))
    return _svg(width, height, title, rows)


def _bits_row(number, y, flipped):
    pieces = [_text(0, y + 33, number.format, size=15, bold=True)]
    place = 0
    for name, bits in number.fields:
        paper, ink, letter = PARTS[name]
        start = 70 + BOX * place
        said = f"{name} ({letter})" if len(bits) > 3 else letter
        pieces.append(_text(start + BOX * len(bits) / 2, y + 58, said, anchor="middle"))
        for bit in bits:
            x = 70 + BOX * place
            stroke = f'stroke="{INK}" stroke-width="3"' if place == flipped else 'stroke="#fff"'
            pieces.append(f'<rect x="{x}" y="{y + 15}" width="{BOX - 2}" height="28" fill="{paper}" {stroke}/>')
            pieces.append(_text(x + BOX / 2 - 1, y + 35, bit, ink, 15, "middle", place == flipped))
            if place == flipped:
                pieces.append(_text(x + BOX / 2 - 1, y + 12, "▼ flipped", anchor="middle", size=12))
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


def levels_html(weights, squeezed, names=("weights", "levels")):
    """Weights above, the levels below, and a line from each weight to the level that comes back; and the table."""
    return figures.page(levels_svg(weights, squeezed, names), levels_table_html(weights, squeezed))


def levels_svg(weights, squeezed, names=("weights", "levels"), width=860):
    """The picture of `levels_html`: a clipped weight is a cross, any other a dot."""
    levels, back = [float(x) for x in squeezed.levels], [float(x) for x in squeezed.weights()]
    weights = [float(x) for x in weights]
    low, high = min(*levels, *weights), max(*levels, *weights)
    span = (high - low) or 1.0

    def place(x):
        return 100 + (width - 130) * (x - low) / span

    pieces = [_text(0, 29, names[0], bold=True), _text(0, 115, names[1], bold=True)]
    pieces += [_line(place(low), 24, place(high), 24, "#999"), _line(place(low), 110, place(high), 110, "#999")]
    pieces += [_line(place(x), 103, place(x), 117, INK, 2) for x in levels]
    pen, dot = (0.6, 2.5) if len(weights) >= MANY else (1.6, 5)
    for weight, found in zip(weights, back, strict=True):
        x, clipped = place(weight), not levels[0] <= weight <= levels[-1]
        pieces.append(_line(x, 30, place(found), 103, CLIPPED if clipped else "#0072B2", pen, "5 3" if clipped else ""))
        pieces.append(_cross(x, 24) if clipped else f'<circle cx="{x:.1f}" cy="24" r="{dot}" fill="#0072B2"/>')
    for x, anchor in ((levels[0], "start"), (levels[-1], "end")):
        pieces.append(_text(place(x), 136, f"{x:.3g}", anchor=anchor, size=13))
    legend = "dot: rounded to the next level; cross and dashed line: clipped to the last one"
    pieces.append(_text(width / 2, 156, legend, anchor="middle", size=13))
    title = f"{len(weights)} weights on {len(levels)} levels from {levels[0]:.3g} to {levels[-1]:.3g}, "
    title += f"{squeezed.n_clipped} of them clipped"
    return _svg(width, 164, title, "".join(pieces))


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
        pieces.append(_text(0, y + 21, name, bold=True, size=15))
        for part in parts:
            paper, ink, letter = PARTS[part.name]
            w = part.per_weight * scale
            pieces.append(
                f'<rect x="{x:.1f}" y="{y + 3}" width="{w:.1f}" height="27" fill="{paper}" stroke="#fff">'
                f"<title>{name}: {part.name} {part.per_weight:.6g} bits a weight</title></rect>"
            )
            said = f"{part.name} {part.per_weight:.6g}" if part.name == "weights" else letter
            if w > 8 * len(said):
                pieces.append(_text(x + w / 2, y + 22, said, ink, 14, "middle"))
            x += w
        pieces.append(_text(x + 6, y + 22, f"{sum(part.per_weight for part in parts):.6g} bits", size=15, bold=True))
    used = {part.name: PARTS[part.name][2] for parts in layouts.values() for part in parts if part.name != "weights"}
    y = 34 * len(layouts) + 18
    legend = ", ".join(f"{letter} = {name}" for name, letter in used.items())
    pieces.append(_text(70, y, f"bits a weight; {legend} (narrow ones carry no letter)", size=13))
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
    top = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    # JupyterLab makes all columns of a table equally wide; bits need their own widths
    return f'<table style="table-layout:auto"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _svg(width, height, title, body):
    title = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{title}" style="display:block;max-width:100%;height:auto;background:#fff">'
        f'<title>{title}</title><g font-family="system-ui,sans-serif">{body}</g></svg>'
    )


def _text(x, y, said, fill=INK, size=14, anchor="start", bold=False):
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
        f"{html.escape(str(said))}</text>"
    )


def _line(x1, y1, x2, y2, colour, width=1.0, dashes=""):
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dashed}/>'


def _cross(x, y, size=5):
    ends = ((x - size, y - size, x + size, y + size), (x - size, y + size, x + size, y - size))
    return "".join(_line(*end, CLIPPED, 2.5) for end in ends)
