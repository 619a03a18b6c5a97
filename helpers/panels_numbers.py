"""Small panels about numbers: flip a bit, clip a row, choose a block. Wiring only: `quant` knows, others draw.

Each panel is a pure view of its controls' values, so the same picture can be had without a panel.
"""

import threading

from . import figures, figures_numbers
from .need import need

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
FOLLOWED = 8  # weights that `block_view` follows from the shortest block to the longest
PER_CENT = tuple(range(5, 101, 5))


def flip_panel(number=1.0, format="BF16"):
    """A number, a format, and a slider that chooses which bit is flipped (an `ipywidgets.VBox`)."""
    from . import quant

    w = need("ipywidgets", "show the panel")
    controls = {
        "number": w.FloatText(value=number, description="Number", layout=_wide(170)),
        "format": w.Dropdown(value=format, options=tuple(quant.FORMATS), description="Format", layout=_wide(165)),
        "place": w.IntSlider(value=0, min=0, max=31, description="Flip place", readout=False, layout=_wide(290)),
    }
    field = w.BoundedIntText(value=0, min=0, max=31, description="place", layout=_wide(145))
    w.link((controls["place"], "value"), (field, "value"))

    def limit(_=None):
        controls["place"].max = field.max = quant.FORMATS[controls["format"].value].bits - 1

    controls["format"].observe(limit, "value")
    limit()
    return _panel(controls, flip_view, "270px", field)


def flip_view(number, format, place):
    """What `flip_panel` shows for one choice, as HTML."""
    from . import quant

    before = quant.store(number, format)
    place = min(place, len(before.bits) - 1)
    after = before.flip(place)
    facts = {"place": f"{place} ({before.part(place)})", "before": f"{before.value:.9g}", "after": f"{after.value:.9g}"}
    both = (before, after)
    said = figures_numbers.facts_html(facts)
    return figures.page(said, figures_numbers.bits_svg(both, place), figures_numbers.bits_table_html(both))


def clip_panel(weights, bits=4):
    """A slider for the largest weight that is kept; shows rounding and clipping error (an `ipywidgets.VBox`)."""
    w = need("ipywidgets", "show the panel")
    texts = [(f"{share} %", share) for share in PER_CENT]
    controls = {
        "share": w.SelectionSlider(value=100, options=texts, description="Limit", layout=_wide(380), readout=False),
        "bits": w.Dropdown(value=bits, options=(2, 3, 4, 5, 6, 8), description="Bits", layout=_wide(160)),
    }
    field = w.Dropdown(value=100, options=texts, description="limit", layout=_wide(170))
    w.link((controls["share"], "value"), (field, "value"))
    return _panel(controls, lambda share, bits: clip_view(weights, bits, share), "290px", field)


def clip_view(weights, bits, share):
    """What `clip_panel` shows for one choice, as HTML; `share` is the limit in per cent of the largest weight."""
    from . import quant

    squeezed = quant.clipped_at(weights, bits, share)
    rounding, clipping = quant.rounding_and_clipping(weights, squeezed)
    lost = quant.error(weights, squeezed.weights())
    facts = {"rounding": f"{rounding:.5f}", "clipping": f"{clipping:.5f}", "together (rmse)": f"{lost.rmse:.5f}"}
    facts["clipped weights"] = f"{squeezed.n_clipped} of {len(weights)}"
    head = (*facts, "scale")
    rows = [(*facts.values(), f"{squeezed.scale:.5f}")]
    said = figures_numbers.facts_html(facts)
    return figures.page(said, figures_numbers.levels_svg(weights, squeezed), figures_numbers.table_html(head, rows))


def block_panel(weights, bits=4):
    """A slider for the length of a block; shows bits per weight, error, and one block (an `ipywidgets.VBox`)."""
    w = need("ipywidgets", "show the panel")
    texts = [(f"{length} weights", length) for length in LENGTHS]
    controls = {
        "length": w.SelectionSlider(value=32, options=texts, description="Block", layout=_wide(380), readout=False),
        "bits": w.Dropdown(value=bits, options=(2, 3, 4, 5, 6, 8), description="Bits", layout=_wide(160)),
    }
    field = w.Dropdown(value=32, options=texts, description="block", layout=_wide(200))
    w.link((controls["length"], "value"), (field, "value"))
    return _panel(controls, lambda length, bits: block_view(weights, bits, length), "540px", field)


def block_view(weights, bits, length):
    """What `block_panel` shows for one choice, as HTML: what all blocks cost, and what one of them does."""
    from . import quant

    parts, back = quant.simple_layout(length, bits), quant.in_blocks(weights, length, bits)
    lost = quant.error(weights, back)
    facts = {"bits per weight": f"{sum(part.per_weight for part in parts):.4g}"}
    facts["of them for the scale"] = f"{parts[0].per_weight:.4g}"
    facts |= {"SNR": f"{lost.snr_db:.1f} dB", "rmse": f"{lost.rmse:.5f}"}
    return figures.page(
        figures_numbers.facts_html(facts),
        figures_numbers.layout_svg({"this": parts, **{name: quant.layout(name) for name in ("Q4_0", "Q8_0")}}),
        *_one_block(weights, back, bits, length),
        figures_numbers.layout_table_html({"this": parts}),
    )


def _one_block(weights, back, bits, length):
    """The block of a few weights that lie near the row's largest: a block of 64 or more has it, one of 32 has not."""
    import numpy as np

    from . import quant

    weights, n = np.asarray(weights, float).reshape(-1), min(FOLLOWED, length)
    sizes = abs(weights)
    first = (int(sizes.argmax()) // 32 ^ 1) * 32
    first = first if first + n <= len(weights) else 0
    start = first // length * length
    follow, inside = slice(first, first + n), slice(first - start, first - start + n)
    block, most = weights[start : start + length], float(sizes.max())
    squeezed = quant.symmetric(block, bits)
    svg = figures_numbers.levels_svg(block, squeezed, ends=(-most, most), follow=inside)
    largest, zeros = sizes[start : start + length].max(), int((back[follow] == 0).sum())
    said = (
        f"One of these blocks: weights {start:,} to {start + length - 1:,}. Its largest weight has the size "
        f"{largest:.3f} (the row's {most:.3f}), so its levels are {squeezed.scale:.4f} apart. "
        f"Come back as 0: {zeros} of the {n} weights with dots."
    )
    head = ("weight", *(f"{x:.4f}" for x in weights[follow]))
    rows = [("comes back as", *(f"{x:.4f}" for x in back[follow]))]
    return f"<p>{said}</p>", svg, figures_numbers.table_html(head, rows)


def _wide(pixels):
    return {"width": f"{pixels}px"}


def _panel(controls, view, height, field):
    """The controls in one row, the view below; an error is shown where the view would be."""
    w = need("ipywidgets", "show the panel")
    result, lock = w.HTML(layout={"min_height": height}), threading.RLock()

    def show(_=None):
        with lock:
            try:
                result.value = view(**{name: control.value for name, control in controls.items()})
            except Exception as error:  # an exception in a callback would be invisible
                result.value = figures.error_html(error)

    for control in controls.values():
        control.observe(show, "value")
    show()
    row = w.HBox([*controls.values(), field], layout={"flex_flow": "row wrap", "align_items": "center"})
    box = w.VBox([row, result])
    box.add_class("kit-app")
    return box
