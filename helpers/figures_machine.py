"""Pictures of a file, of a growing cache, of a machine's memory and of its roofline: SVG, each with its table.

Nothing here reads files or asks the machine; colours come with words, marks, dashes or hatching.
"""

import html
import math

from . import figures, memory, speed, units
from .figures import INK, svg_text

WIDTH = 860
MARKS = ("circle", "square", "diamond", "triangle")
DASHES = ("", "9 5", "3 4", "12 4 3 4")
LINES = tuple(figures.COLOURS[part] for part in ("weights", "kv", "compute", "output"))
LETTER = 7.2  # width of a letter at 13 px, for labels that must not overlap

FILE_PARTS = {  # part of a file -> (colour, ink); the first words that occur in a tensor's name decide
    "header": ("#999999", INK),
    "embedding": ("#56B4E9", INK),
    "attention": ("#E69F00", INK),
    "feed-forward": ("#0072B2", "#ffffff"),
    "norms and others": ("#F0E442", INK),
    "output": ("#CC79A7", INK),
}
PART_OF = (
    ("token_embd", "embedding"),
    ("norm", "norms and others"),
    ("attn_", "attention"),
    ("ffn_", "feed-forward"),
    ("output", "output"),
)


# ---------------------------------------------------------------- a file


def file_parts(tensors, header_bytes=0):
    """Bytes of each part of a model file: {part: bytes}, in the order of a reader, without empty parts.

    `tensors` are pairs of name and bytes. Experts belong to the feed-forward part.

    >>> file_parts([("token_embd.weight", 8), ("blk.0.attn_q.weight", 2), ("blk.1.attn_q.weight", 2)], header_bytes=1)
    {'header': 1, 'embedding': 8, 'attention': 4}
    """
    found = dict.fromkeys(FILE_PARTS, 0)
    found["header"] = header_bytes
    for name, n_bytes in tensors:
        found[next((part for word, part in PART_OF if word in name), "norms and others")] += n_bytes
    return {part: n_bytes for part, n_bytes in found.items() if n_bytes}


def file_html(parts, title):
    """A model file as a strip whose pieces are as long as their bytes, and the same numbers as a table."""
    total = sum(parts.values())
    says = f"{title}: " + ", ".join(f"{part} {_share(n, total)}" for part, n in parts.items())
    pieces = [(part, n, *FILE_PARTS[part], False) for part, n in parts.items()]
    rows = [(part, units.show(n, 2), _share(n, total)) for part, n in parts.items()]
    rows.append(("total", units.show(total, 2), "100 %"))
    strip = svg_figure(_strip(pieces, total, 2), 52, says) if total else ""
    return figures.page(_heading(title), strip, figures.table_html(("part", "bytes", "share"), rows))


def _share(n_bytes, total):
    return f"{100 * n_bytes / total:.1f} %"


# ---------------------------------------------------------------- a cache that grows


def kv_growth_html(specs, n_ctx=32_768, names=None, among=None, **settings):
    """KV cache in bytes against tokens, one line per model, both axes linear; the same numbers as a table.

    `names` are what the lines are called (by default the models' titles). `settings` are `memory.Settings`. `among`:
    all models of several figures, so that each keeps its colour, dashes and mark in all of them.
    A sliding window shows as a bend: from there on only the other layers grow.
    """
    specs = list(specs)
    names = list(names or (spec.title or spec.name for spec in specs))
    contexts = [n_ctx * step // 32 for step in range(1, 33)]
    lines = [[_kv(spec, n, settings) for n in contexts] for spec in specs]
    ends = ", ".join(f"{name} {units.show(line[-1])}" for name, line in zip(names, lines, strict=True))
    says = f"KV cache against tokens, up to {n_ctx:,} tokens: {ends}"
    shown = [n for n in contexts if n in (n_ctx // 16, n_ctx // 4, n_ctx // 2, n_ctx)]
    rows = [
        (name, *(units.show(line[contexts.index(n)]) for n in shown), f"{units.show(line[-1] // n_ctx)}")
        for name, line in zip(names, lines, strict=True)
    ]
    head = ("model", *(f"{n:,} tokens" for n in shown), "a token")
    heading = _heading("The KV cache against the tokens of the context")
    signs = [list(among or specs).index(spec) for spec in specs]
    return figures.page(heading, _growth_svg(names, contexts, lines, signs, says), figures.table_html(head, rows))


def _kv(spec, n_ctx, settings):
    return memory.kv_cache_bytes(spec, memory.Settings(n_ctx=n_ctx, **settings))


def _growth_svg(names, contexts, lines, signs, says):
    labels = [f"{name}: {units.show(line[-1])}" for name, line in zip(names, lines, strict=True)]
    longest = max(LETTER * len(label) for label in labels)
    left, top, bottom = 74, 14, 270
    right = max(WIDTH - 32 - longest, WIDTH / 2)
    most = max(max(line) for line in lines)
    grid = list(grid_bytes(most))
    most = max(most, grid[-1])

    def place(n, n_bytes):
        return left + (right - left) * n / contexts[-1], bottom - (bottom - top) * n_bytes / most

    shapes = [grid_line(left, right, place(0, n)[1], units.show(n, 0)) for n in grid]
    for share in (1, 2, 3, 4):
        n = contexts[-1] * share // 4
        shapes.append(svg_text(place(n, 0)[0], bottom + 18, f"{n:,}", "middle"))
    shapes.append(svg_text((left + right) / 2, bottom + 38, "tokens in the context", "middle"))
    heights = _spread([place(contexts[-1], line[-1])[1] for line in lines], 18, top, bottom)
    for label, line, sign, height in zip(labels, lines, signs, heights, strict=True):
        points = [place(0, 0), *(place(n, n_bytes) for n, n_bytes in zip(contexts, line, strict=True))]
        shapes.append(_line(points, sign))
        shapes += [_mark(x, y, sign) for x, y in points[8::8]]
        shapes.append(_mark(right + 16, height - 4, sign))
        shapes.append(svg_text(right + 28, height, label))
    return svg_figure("".join(shapes), 318, says)


def grid_bytes(most):
    """Four or so round numbers of bytes up to the largest value."""
    step = 1
    while step * 5 < most:
        step *= 2
    return range(0, -(-most // step) * step + 1, step)


# ---------------------------------------------------------------- a machine


def machine_html(machine, file_cache_bytes=0, needs_bytes=0, title="The memory of this machine"):
    """The memory of a machine as strips: in use, free but holding copies of files, and empty; one strip per GPU.

    `file_cache_bytes` is how much of the free memory holds file pages now (0: unknown or none). `needs_bytes` draws
    what a model would take, to the same scale.
    """
    total, free = int(machine.ram_total_bytes), int(machine.ram_available_bytes)
    cached = max(min(int(file_cache_bytes), free), 0)
    strips = [("RAM", total, {"in use": total - free, "free: file cache": cached, "free: empty": free - cached})]
    for gpu in machine.gpus:
        if not gpu.unified:
            vram, left = int(gpu.vram_total_bytes), int(gpu.vram_free_bytes)
            strips.append((f"VRAM of {gpu.name}", vram, {"in use": vram - left, "free: empty": left}))
    if needs_bytes:
        strips.append(("a model would take", needs_bytes, {"needed": int(needs_bytes)}))
    scale = max(size for _, size, _ in strips)
    shapes, rows, says = [], [], []
    for index, (name, size, parts) in enumerate(strips):
        y = 76 * index
        pieces = [(part, n, *_MEMORY[part]) for part, n in parts.items() if n]
        shapes.append(svg_text(0, y + 15, f"{name}: {units.show(size)}", weight=600))
        shapes.append(_strip(pieces, scale, y + 22))
        rows += [(name, part, units.show(n)) for part, n in parts.items()]
        says.append(f"{name} {units.show(size)}: " + ", ".join(f"{part} {units.show(n)}" for part, n in parts.items()))
    notes = [f"{gpu.name} shares this RAM: it is no extra memory." for gpu in machine.gpus if gpu.unified]
    drawing = svg_figure("".join(shapes), 76 * len(strips), "; ".join(says))
    table = figures.table_html(("memory", "part", "bytes"), rows, left=2)
    said = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    return figures.page(_heading(title), drawing, table, said)


_MEMORY = {  # part -> colour, ink, hatched
    "in use": ("#999999", INK, False),
    "free: file cache": ("#A9D8F2", INK, True),
    "free: empty": ("#E8F4FB", INK, False),
    "needed": ("#0072B2", "#ffffff", False),
}


# ---------------------------------------------------------------- a roofline


def roofline_html(models, bandwidth, measured=None):
    """Tokens per second against bytes per token, both axes in equal factors, with the roof that bandwidth sets.

    `models` are pairs of a name and the bytes that one token reads. `bandwidth` is as for
    `speed.roofline_tokens_per_second`; `measured` maps names to tokens per second that were really reached.
    """
    measured = measured or {}
    roof = [(name, n, speed.roofline_tokens_per_second(n, bandwidth)) for name, n in models]
    rows = [
        (name, units.show_decimal(n), f"{_speed(top)} tokens/s", *_reached(measured.get(name), top))
        for name, n, top in roof
    ]
    head = ("model", "read for each token", "roof (formula)", "measured", "measured / roof")
    columns = 5 if measured else 3
    says = "Roofline: " + ", ".join(f"{name} at most {_speed(top)} tokens/s" for name, _, top in roof)
    says += "".join(f"; {name} measured {_speed(value)} tokens/s" for name, value in measured.items())
    table = figures.table_html(head[:columns], [row[:columns] for row in rows])
    return figures.page(_heading("The roof: bandwidth / bytes per token"), _roofline_svg(roof, measured, says), table)


def _reached(value, top):
    return (f"{_speed(value)} tokens/s", f"{value / top:.2f}") if value else ("-", "-")


def _speed(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _roofline_svg(roof, measured, says):
    left, right, top, bottom = 74, WIDTH - 20, 14, 290
    sizes, speeds = [n for _, n, _ in roof], [s for *_, s in roof] + list(measured.values())
    x_low, x_high = _decades(sizes)
    y_low, y_high = _decades(speeds)

    def place(n_bytes, per_second):
        x = (math.log10(n_bytes) - x_low) / (x_high - x_low)
        y = (math.log10(per_second) - y_low) / (y_high - y_low)
        return left + (right - left) * x, bottom - (bottom - top) * y

    shapes = [
        grid_line(left, right, place(sizes[0], 10**power)[1], _speed(10.0**power)) for power in _whole(y_low, y_high)
    ]
    for power in _whole(x_low, x_high):
        x = place(10**power, speeds[0])[0]
        shapes.append(svg_text(x, bottom + 18, units.show_decimal(10**power, 0), "middle"))
        shapes.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#e4e4e4"/>')
    shapes.append(svg_text((left + right) / 2, bottom + 38, "bytes read for each token", "middle"))
    shapes.append(svg_text(left + 4, top + 8, "tokens/s"))
    ordered = sorted(roof, key=lambda row: row[1])
    shapes.append(_line([place(n, s) for _, n, s in ordered], 0))
    for index, (name, n_bytes, per_second) in enumerate(ordered):
        x, y = place(n_bytes, per_second)
        shapes.append(_mark(x, y, 0))
        shapes.append(_beside(x, y, f"{name}: {_speed(per_second)}", index, right))
        if measured.get(name):
            x, y = place(n_bytes, measured[name])
            shapes += [_mark(x, y, 1), svg_text(x - 2, y + 22, f"{name} measured: {_speed(measured[name])}")]
    return svg_figure("".join(shapes), 338, says)


def _beside(x, y, text, index, right):
    """A label above and to the right of its mark, or to the left where there is no room."""
    fits = x + 10 + LETTER * len(text) < right
    return svg_text(x + 9, y - 7, text) if fits else svg_text(x - 12, y + 18, text, "end")


def _decades(values):
    """Powers of ten around the values, with room at both ends."""
    return math.log10(min(values)) - 0.25, math.log10(max(values)) + 0.3


def _whole(low, high):
    return range(math.ceil(low), math.floor(high) + 1)


# ---------------------------------------------------------------- pieces of drawings


def _heading(text):
    return f"<h4>{html.escape(text)}</h4>"


def svg_figure(shapes, height, says):
    """A drawing as wide as the page allows; `says` is what screen readers say."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="{html.escape(says)}" '
        f'style="display:block;max-width:{WIDTH}px"><title>{html.escape(says)}</title>'
        f"{shapes}</svg>"
    )


def _strip(pieces, scale, y):
    """Pieces (name, bytes, colour, ink, hatched) side by side, `scale` bytes being the whole width."""
    x, shapes = 0.0, []
    for name, n_bytes, colour, ink, hatched in pieces:
        w = WIDTH * n_bytes / scale
        says = f"<title>{html.escape(name)}: {units.show(n_bytes, 2)}</title>"
        box = (
            f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="46" fill="{colour}" stroke="{INK}" stroke-width="0.8"/>'
        )
        label = figures.hatching(x, y, w, 46, "#fff", 3, 11) if hatched else ""
        if w > LETTER * len(name) + 4:
            label += svg_text(x + w / 2, y + 20, name, "middle", ink) + svg_text(
                x + w / 2, y + 38, units.show(n_bytes), "middle", ink
            )
        shapes.append(f"<g>{says}{box}{label}</g>")
        x += w
    return "".join(shapes)


def grid_line(left, right, y, words):
    """A pale line across, with its words on the left."""
    line = f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e4e4e4"/>'
    return line + svg_text(left - 8, y + 4, words, "end")


def _line(points, index):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = f' stroke-dasharray="{DASHES[index % 4]}"' if DASHES[index % 4] else ""
    return f'<polyline points="{path}" fill="none" stroke="{LINES[index % 4]}" stroke-width="2.5"{dash}/>'


def _mark(x, y, index):
    """A small sign of its own for each line."""
    paint = f'fill="{LINES[index % 4]}" stroke="{INK}" stroke-width="1"'
    kind = MARKS[index % 4]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {paint}/>'
    corners = {
        "square": ((-5, -5), (5, -5), (5, 5), (-5, 5)),
        "diamond": ((0, -7), (7, 0), (0, 7), (-7, 0)),
        "triangle": ((0, -6), (6, 5), (-6, 5)),
    }[kind]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" {paint}/>'


def _spread(heights, gap, top, bottom):
    """Heights of labels, moved apart until none is nearer than `gap` to the next; their order stays.

    >>> _spread([50, 52, 90], 18, 0, 100)
    [50, 68, 90]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for i, j in zip(order, order[1:], strict=False):
        placed[j] = max(placed[j], placed[i] + gap)
    too_low = max((max(placed) if placed else 0) - bottom, 0)
    return [height - too_low for height in placed] if too_low else placed
