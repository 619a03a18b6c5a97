"""`helpers.planner`: the compute buffer, by hand and against llama.cpp's own planner."""

import dataclasses
import itertools
import random

import pytest
from shapes import random_cases

from helpers import engine, memory, models, planner, units
from helpers.architectures import FAMILIES
from helpers.memory import Settings

pytestmark = pytest.mark.slow  # test_memory samples the same comparisons fast

PRINTED = 0.005 * units.MIB + 1  # llama.cpp prints two digits


def plan(spec, **settings):
    chosen = Settings(**settings)
    return planner.plan(spec, chosen, chosen.resolve(spec))


def test_best_fit_takes_the_smallest_hole_and_of_equal_ones_the_last():
    buffer = planner.Buffer()
    for name, width in (("a", 32), ("1", 8), ("b", 16), ("2", 8), ("c", 16), ("3", 8)):
        buffer.take(name, 1, width)
    buffer.free("a", "b", "c")
    assert buffer.holes == [[0, 128], [160, 64], [256, 64]]
    assert buffer.take("d", 1, 12) == 256  # 48 bytes: the later of two holes of 64
    assert buffer.take("e", 1, 100) == 352  # larger than every hole: at the end


def test_holes_side_by_side_become_one():
    buffer = planner.Buffer()
    for name in "abcde":
        buffer.take(name, 1, 8)
    buffer.free("b", "d")
    buffer.free("c")
    assert buffer.holes == [[32, 96]]
    buffer.free("e")
    assert buffer.holes == [] and buffer.end == 32


def test_places_are_multiples_of_32_bytes():
    buffer = planner.Buffer()
    assert [buffer.take(name, 1, 1) for name in "abc"] == [0, 32, 64]


def test_random_buffers_never_overlap():
    pick = random.Random(3)
    for _ in range(30):
        buffer = planner.Buffer()
        for step in range(200):
            if buffer.placed and pick.random() < 0.45:
                buffer.free(pick.choice(sorted(buffer.placed)))
            else:
                buffer.take(str(step), pick.randint(1, 40), pick.randint(1, 40), pick.choice((2, 4, 8)))
            used = sorted((start, start + n_bytes) for start, n_bytes, *_ in buffer.placed.values())
            free = sorted((start, start + n_bytes) for start, n_bytes in buffer.holes)
            both = sorted([*used, *free])
            assert all(end == start for (_, end), (start, _) in itertools.pairwise(both))  # no overlap, no loss
            assert all(end < start for (_, end), (start, _) in itertools.pairwise(free))  # holes are merged
            assert (both[-1][1] if both else 0) == buffer.end
        assert sum(piece.n_bytes for piece in buffer.pieces()) == buffer.most


def test_a_saved_buffer_goes_on_alike():
    buffer = planner.Buffer()
    buffer.take("a", 1, 50)
    buffer.take("b", 1, 10)
    buffer.free("a")
    again = planner.Buffer()
    again.load(buffer.save())
    assert again.save() == buffer.save()
    assert again.take("c", 1, 20) == buffer.take("c", 1, 20) == 0


def test_llama_by_hand():
    """Llama 3.1 8B, 512 tokens of 8192, one output: the fullest moment is in the feed-forward stage."""
    found = plan(models.get("llama-3.1-8b"), n_ctx=8192, n_outputs_max=1)
    numbers = 4 * 512  # bytes of one 32-bit number for each of the 512 tokens
    small = 512 * 4 + 512 * 4 + 512 * 8 + 512 * 8 + 32  # tokens, positions, places in K and V, place of the output
    mask = 2 * 512 * 8192
    between = 2 * 4096  # what the normed input and the first query left: too small for the feed-forward tensors
    assert found.n_bytes == small + mask + numbers * (4096 + between + 4096 + 3 * 14336)
    assert max(found.stages, key=found.stages.get) == "feed-forward"


def test_scores_without_flash_attention_by_hand():
    """SmolLM2, no flash attention: one number for every head, token and cell; everything else is small beside it."""
    found = plan(models.get("smollm2-135m"), n_ctx=32768, flash_attn=False, n_outputs_max=1)
    scores = next(piece for piece in found.pieces if piece.name == "scores")
    assert scores.n_bytes == 4 * 512 * 32768 * 9
    mask = next(piece for piece in found.pieces if piece.name == "mask")
    assert mask.n_bytes == 4 * 512 * 32768
    assert 0 < found.n_bytes - scores.n_bytes - mask.n_bytes < 10 * units.MIB


def widths_of(found):
    return {piece.name: piece.width for piece in found.pieces if piece.name != "gap"}


def test_experts_by_hand():
    """Qwen3 30B-A3B: a token goes through 8 of 128 experts, each 768 wide, and gets 8 outputs as wide as the model."""
    found = plan(models.get("qwen3-30b-a3b"), n_ctx=8192, n_outputs_max=1)
    assert max(found.stages, key=found.stages.get) == "feed-forward"
    widths = widths_of(found)
    assert (widths["experts' outputs"], widths["activation"]) == (8 * 2048, 8 * 768)
    assert (widths["experts by score"], widths["weights"]) == (128, 8)


def test_latent_attention_by_hand():
    """DeepSeek Coder V2 Lite: a vector of 512 numbers and 64 rotated ones stand for the keys and values of 16 heads."""
    widths = widths_of(plan(models.get("deepseek-coder-v2-lite"), n_ctx=8192, n_outputs_max=1, flash_attn=False))
    assert (widths["query"], widths["scores"]) == (16 * (512 + 64), 16 * 8192)
    assert widths["transposed cache"] == 512 and "V places" not in widths


def test_shared_experts_and_first_dense_layers_take_room():
    spec = models.get("deepseek-coder-v2-lite")
    wide = dataclasses.replace(spec, n_expert_shared=20)
    dense = dataclasses.replace(spec, n_layer_dense_lead=spec.n_layer)
    found = [plan(each, n_ctx=512, n_outputs_max=1).stages["feed-forward"] for each in (dense, spec, wide)]
    assert found == sorted(found) and len(set(found)) == 3


def test_a_cache_in_full_precision_is_copied_in_half():
    widths = widths_of(plan(models.get("gemma-2-2b"), n_ctx=32768, cache_type_k="f32", n_outputs_max=1))
    assert widths["key cache in half precision"] == 4 * 256 and "value cache in half precision" not in widths


def test_logits_of_every_token_or_of_one():
    spec = models.get("gemma-3-1b")
    every, one = plan(spec, n_ctx=8192), plan(spec, n_ctx=8192, n_outputs_max=1)
    assert every.stages["logits"] > 512 * 262_144 * 4
    assert one.stages["logits"] < one.stages["feed-forward"] == one.n_bytes
    assert every.stages["attention"] - one.stages["attention"] == 512 * 4 - 32  # where the outputs are, in steps of 32


@pytest.mark.parametrize("name", models.names())
def test_pieces_add_up(name):
    for settings in ({}, {"flash_attn": False}, {"n_outputs_max": 1}, {"n_parallel": 4}, {"swa_full": True}):
        found = plan(models.get(name), n_ctx=8192, **settings)
        assert sum(piece.n_bytes for piece in found.pieces) == found.n_bytes == max(found.stages.values())
        assert set(found.stages) == {"inputs", "attention", "feed-forward", "logits"}


def test_layers_that_repeat_may_be_skipped():
    """More layers of the same kind need no more room."""
    for spec, _ in random_cases(40, seed=7):
        if not spec.n_swa:
            deep, deeper = (dataclasses.replace(spec, n_layer=n) for n in (24, 96))
            assert plan(deep, n_ctx=2048).n_bytes == plan(deeper, n_ctx=2048).n_bytes


def test_an_unknown_family_is_planned_like_llama():
    spec = models.get("smollm2-135m")
    assert plan(dataclasses.replace(spec, architecture="granite"), n_ctx=512) == plan(spec, n_ctx=512)


def test_a_shape_without_heads_is_planned_too():
    """Recurrent families, such as Mamba, have no attention; a quantized cache must not make us wait for ever."""
    spec = dataclasses.replace(models.get("smollm2-135m"), architecture="mamba", n_head=0, n_head_kv=0)
    spec = dataclasses.replace(spec, n_embd_head_k=0, n_embd_head_v=0, n_ff=0)
    assert plan(spec, n_ctx=512, cache_type_k="q8_0", cache_type_v="q8_0").n_bytes > 0


def test_values_of_different_widths_are_padded_without_flash_attention():
    spec = dataclasses.replace(models.get("smollm2-135m"), n_layer=2, n_head_kv=(9, 3))
    equal = dataclasses.replace(spec, n_head_kv=9)
    places = {piece.name: piece.width for piece in plan(spec, n_ctx=4096, flash_attn=False, n_outputs_max=1).pieces}
    assert places["V places"] == 9 * 64
    assert plan(spec, n_ctx=4096).n_bytes <= plan(equal, n_ctx=4096).n_bytes


@pytest.mark.model
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_random_shapes_equal_llama_cpps_planner(family):
    for spec, settings in random_cases(25, seed=11, family=family):
        theirs = engine.reserve(spec, "Q8_0", **settings)
        ours = memory.estimate(spec, "Q8_0", **settings)
        assert abs(ours.compute_bytes - theirs.compute_bytes) < PRINTED, (spec, settings)


@pytest.mark.model
def test_feed_forward_that_fits_into_a_hole():
    """A feed-forward narrower than the holes before it lies elsewhere in every layer, until a layer repeats."""
    spec = dataclasses.replace(models.get("qwen3-0.6b"), n_layer=9)
    for n_ff in (512, 1024, 1536, 2048, 3072):
        narrow = dataclasses.replace(spec, n_ff=n_ff)
        for flash_attn in (True, False):
            settings = {"n_ctx": 512, "n_ubatch": 128, "n_outputs_max": 1, "flash_attn": flash_attn}
            theirs = engine.reserve(narrow, "Q8_0", **settings)
            assert abs(plan(narrow, **settings).n_bytes - theirs.compute_bytes) < PRINTED, (n_ff, flash_attn)
