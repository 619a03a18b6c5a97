"""`helpers.figures_machine`: drawings that are as long as their numbers, with tables, and nothing unescaped."""

import re
import xml.etree.ElementTree as xml

import pytest

from helpers import architectures, figures_machine, formats, memory, mixes, models, units
from helpers.hardware import Gpu, Machine, Reading

EVIL = "<script>alert('x')</script>&\""
LLAMA = models.get("llama-3.1-8b")
GEMMA = models.get("gemma-3-4b")
PARTS = {"header": 10, "embedding": 30, "attention": 60}


def drawing(text):
    return xml.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def rows(text):
    """The cells of the table's rows, without its head."""
    found = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in found if "<td" in row]


def boxes(svg):
    """{title: width} of the pieces of all strips."""
    return {g.find("title").text: float(g.find("rect").get("width")) for g in svg.findall("g")}


def pretend(free=6, total=8, vram=0):
    return Machine.pretend("test", free * units.GIB, total * units.GIB, vram_bytes=vram * units.GIB)


def all_of_them():
    machine = pretend(vram=4)
    return {
        "file": figures_machine.file_html(PARTS, EVIL),
        "cache": figures_machine.kv_growth_html([LLAMA, GEMMA], names=[EVIL, "b"]),
        "machine": figures_machine.machine_html(machine, units.GIB, 2 * units.GIB),
        "roofline": figures_machine.roofline_html([(EVIL, 5), ("b", 50)], 100, {EVIL: 3}),
    }


@pytest.mark.parametrize("name", ["file", "cache", "machine", "roofline"])
def test_each_has_a_text_for_screen_readers_and_a_table(name):
    text = all_of_them()[name]
    svg = drawing(text)
    assert svg.get("role") == "img"
    assert len(svg.get("aria-label")) > 20
    assert svg.find("title").text == svg.get("aria-label")
    assert rows(text)
    assert 'scope="col"' in text


@pytest.mark.parametrize("name", ["file", "cache", "roofline"])
def test_names_are_escaped(name):
    assert "<script>" not in all_of_them()[name]


def test_a_gpu_name_is_escaped():
    gpu = Gpu(EVIL, Reading(4), Reading(2), "cuda")
    machine = pretend()
    object.__setattr__(machine, "gpus", (gpu,))
    assert "<script>" not in figures_machine.machine_html(machine)


def test_drawings_are_small():
    assert all(len(text) < 16_000 for text in all_of_them().values())


# a file


def test_every_tensor_of_a_model_is_counted():
    types = mixes.tensor_types(LLAMA, "Q4_K_M")
    tensors = [(t.name, formats.tensor_bytes(types[t.name], t.shape)) for t in architectures.tensors(LLAMA)]
    parts = figures_machine.file_parts(tensors, memory.header_bytes(LLAMA))
    assert sum(parts.values()) == memory.file_bytes(LLAMA, "Q4_K_M")
    assert list(parts) == list(figures_machine.FILE_PARTS)
    assert parts["embedding"] == dict(tensors)["token_embd.weight"]
    assert parts["output"] == dict(tensors)["output.weight"]


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("blk.3.attn_output.weight", "attention"),
        ("blk.3.attn_norm.weight", "norms and others"),
        ("blk.3.ffn_down_exps.weight", "feed-forward"),
        ("output_norm.weight", "norms and others"),
        ("rope_freqs.weight", "norms and others"),
        ("output.weight", "output"),
    ],
)
def test_tensors_find_their_part(tensor, part):
    assert figures_machine.file_parts([(tensor, 4)]) == {part: 4}


def test_pieces_of_a_file_are_as_long_as_their_bytes():
    widths = boxes(drawing(figures_machine.file_html(PARTS, "a file")))
    assert list(widths.values()) == pytest.approx([86, 258, 516], abs=0.1)


def test_shares_of_a_file_add_up():
    table = rows(figures_machine.file_html(PARTS, "a file"))
    assert [row[2] for row in table] == ["10.0 %", "30.0 %", "60.0 %", "100 %"]


def test_an_empty_file_draws_nothing_and_fails_nowhere():
    assert "<svg" not in figures_machine.file_html({}, "nothing")


# a cache


def lines(svg):
    """[[(x, y), ...]] of the lines of a drawing."""
    points = [line.get("points").split() for line in svg.findall("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line] for line in points]


def test_the_cache_of_plain_attention_is_a_straight_line():
    (line,) = lines(drawing(figures_machine.kv_growth_html([LLAMA])))
    slopes = {round((y2 - y1) / (x2 - x1), 1) for (x1, y1), (x2, y2) in zip(line[1:], line[2:], strict=False)}
    assert len(slopes) == 1


def test_a_sliding_window_bends_the_line():
    (line,) = lines(drawing(figures_machine.kv_growth_html([GEMMA])))
    early, late = (line[0][1] - line[1][1]), (line[-2][1] - line[-1][1])
    assert early > 3 * late > 0


def test_the_table_of_caches_agrees_with_the_formula():
    table = rows(figures_machine.kv_growth_html([LLAMA, GEMMA], n_ctx=32_768))
    for row, spec in zip(table, (LLAMA, GEMMA), strict=True):
        n_bytes = memory.kv_cache_bytes(spec, memory.Settings(n_ctx=32_768))
        assert row[0] == spec.title and row[4] == units.show(n_bytes)


def test_settings_reach_the_formula():
    small = rows(figures_machine.kv_growth_html([LLAMA], cache_type_k="q8_0", cache_type_v="q8_0"))
    assert small[0][4] == "2.1 GiB"


def test_lines_differ_without_colour():
    specs = [models.get(name) for name in ("llama-3.1-8b", "gemma-3-4b", "phi-3-mini", "qwen3-8b")]
    svg = drawing(figures_machine.kv_growth_html(specs))
    assert len({line.get("stroke-dasharray") for line in svg.findall("polyline")}) == 4
    for spec in specs:
        assert spec.title in svg.get("aria-label")


def test_a_model_keeps_its_colour_in_the_next_figure():
    def line(text, place):
        shape = drawing(text).findall("polyline")[place]
        return shape.get("stroke"), shape.get("stroke-dasharray")

    both = [LLAMA, GEMMA]
    alone = figures_machine.kv_growth_html([GEMMA], among=both)
    assert line(alone, 0) == line(figures_machine.kv_growth_html(both), 1)


def test_labels_do_not_lie_on_each_other():
    assert figures_machine._spread([10, 11, 12], 18, 0, 300) == [10, 28, 46]
    assert figures_machine._spread([12, 10], 18, 0, 300) == [28, 10]
    assert max(figures_machine._spread([299, 300], 18, 0, 300)) == 300
    assert figures_machine._spread([], 18, 0, 300) == []


# a machine


def test_the_strip_of_memory_adds_up():
    text = figures_machine.machine_html(pretend(free=6, total=8), file_cache_bytes=2 * units.GIB)
    assert [row[1:] for row in rows(text)] == [
        ["in use", "2.0 GiB"],
        ["free: file cache", "2.0 GiB"],
        ["free: empty", "4.0 GiB"],
    ]
    assert sum(boxes(drawing(text)).values()) == pytest.approx(figures_machine.WIDTH, abs=0.2)


@pytest.mark.parametrize("cached", [-5, 99 * units.GIB])
def test_a_file_cache_that_cannot_be_is_cut(cached):
    table = rows(figures_machine.machine_html(pretend(), file_cache_bytes=cached))
    assert {row[1]: row[2] for row in table}["free: empty"] in ("6.0 GiB", "0 B")


def test_a_card_has_a_strip_of_its_own_to_the_same_scale():
    text = figures_machine.machine_html(pretend(free=8, total=8, vram=4), needs_bytes=2 * units.GIB)
    widths = list(boxes(drawing(text)).values())
    assert widths == pytest.approx([860, 430, 215], abs=0.1)
    assert "this machine" not in figures_machine.machine_html(pretend(), title="Another")


def test_unified_memory_is_not_counted_twice():
    gpu = Gpu("Apple M3", Reading(6 * units.GIB), Reading(4 * units.GIB), "metal", unified=True)
    machine = pretend()
    object.__setattr__(machine, "gpus", (gpu,))
    text = figures_machine.machine_html(machine)
    assert {row[0] for row in rows(text)} == {"RAM"}
    assert "Apple M3 shares this RAM" in text


# a roofline


def test_the_roof_is_straight_between_equal_factors():
    (line,) = lines(drawing(figures_machine.roofline_html([("a", 10), ("b", 100), ("c", 1000)], 10_000)))
    (x1, y1), (x2, y2), (x3, y3) = line
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.2)


def test_measured_speeds_stand_beside_their_roof():
    table = rows(figures_machine.roofline_html([("a", 10), ("b", 100)], 1000, {"a": 25.0}))
    assert table[0][2:] == ["100 tokens/s", "25 tokens/s", "0.25"]
    assert table[1][2:] == ["10 tokens/s", "-", "-"]


def test_without_measurements_there_are_no_empty_columns():
    assert all(len(row) == 3 for row in rows(figures_machine.roofline_html([("a", 10)], 1000)))


def test_one_model_alone_can_be_drawn():
    drawing(figures_machine.roofline_html([("a", 4_000_000_000)], 30_000_000_000))
