"""`helpers.architectures`: the tensor tables, against published parameter counts and by hand. See also test_engine."""

import dataclasses
import math

import pytest

from helpers import architectures, models
from helpers.architectures import FAMILIES, ModelSpec, Tensor

TINY = ModelSpec("tiny", "llama", 2, 8, 4, 2, 2, 2, 16, 100, 64)  # width 8: 4 heads of 2, 2 of them for keys and values
PUBLISHED = [name for name in models.names() if models.published_params(name)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_equal_the_published_ones(name):
    spec = models.get(name)
    # Llama 3.1's files also store its rotary frequencies, one per pair of a head's numbers: no trained weights.
    stored_frequencies = spec.n_embd_head_k // 2 if spec.rope_freqs else 0
    assert spec.n_params - stored_frequencies == models.published_params(name)[0]


def test_enough_of_the_counts_are_published():
    assert len(PUBLISHED) >= 33
    unpublished = {"phi2", "deepseek2", "bitnet", "falcon", "gptneox", "gpt2"}  # rounded numbers only, as "2.7B"
    assert {models.get(name).architecture for name in PUBLISHED} == set(FAMILIES) - unpublished


def test_llama_3_1_stores_the_frequencies_that_llama_3_has_not():
    llama_3, *later = (models.get(name) for name in ("llama-3-8b", "llama-3.1-8b", "deepseek-r1-distill-llama-8b"))
    assert {spec.n_params - llama_3.n_params for spec in later} == {64}
    assert llama_3.n_params == models.published_params("llama-3.1-8b")[0]


def test_llama_by_hand():
    layer = {
        "attn_norm.weight": (8,),
        "attn_q.weight": (8, 8),
        "attn_k.weight": (8, 4),
        "attn_v.weight": (8, 4),
        "attn_output.weight": (8, 8),
        "ffn_norm.weight": (8,),
        "ffn_gate.weight": (8, 16),
        "ffn_up.weight": (8, 16),
        "ffn_down.weight": (16, 8),
    }
    expected = {"token_embd.weight": (8, 100), "output_norm.weight": (8,), "output.weight": (8, 100)}
    expected |= {f"blk.{number}.{name}": shape for number in (0, 1) for name, shape in layer.items()}
    assert {tensor.name: tensor.shape for tensor in architectures.tensors(TINY)} == expected
    assert TINY.n_params == 800 + 8 + 800 + 2 * (8 + 64 + 32 + 32 + 64 + 8 + 3 * 128)


def names(spec):
    return {tensor.name for tensor in architectures.tensors(spec)}


def shape_of(spec, name):
    return next(tensor.shape for tensor in architectures.tensors(spec) if tensor.name == name)


def test_what_each_family_adds():
    plain = names(TINY)
    assert names(dataclasses.replace(TINY, tied=True)) == plain - {"output.weight"}
    assert names(dataclasses.replace(TINY, rope_freqs=True)) == plain | {"rope_freqs.weight"}
    qwen2 = names(dataclasses.replace(TINY, architecture="qwen2"))
    assert qwen2 - plain == {f"blk.{n}.attn_{x}.bias" for n in (0, 1) for x in "qkv"}
    qwen3 = names(dataclasses.replace(TINY, architecture="qwen3"))
    assert qwen3 - plain == {f"blk.{n}.attn_{x}_norm.weight" for n in (0, 1) for x in "qk"}
    phi3 = dataclasses.replace(TINY, architecture="phi3")
    assert shape_of(phi3, "blk.1.attn_qkv.weight") == (8, 8 + 4 + 4)
    assert shape_of(phi3, "blk.1.ffn_up.weight") == (8, 32)
    assert "blk.1.ffn_gate.weight" not in names(phi3)


def test_heads_may_be_wider_than_the_model():
    spec = models.get("qwen3-0.6b")
    assert spec.n_head * spec.n_embd_head_k == 2 * spec.n_embd
    assert shape_of(spec, "blk.0.attn_output.weight") == (2048, 1024)


def test_windows_by_layer():
    gemma = models.get("gemma-3-1b")
    assert [layer for layer in range(gemma.n_layer) if not gemma.is_windowed(layer)] == [5, 11, 17, 23]
    assert not any(TINY.is_windowed(layer) for layer in range(TINY.n_layer))


def test_kv_heads_per_layer():
    spec = dataclasses.replace(TINY, n_head_kv=(4, 1))
    assert (spec.kv_heads(0), spec.kv_heads(1), spec.most_kv_heads, TINY.most_kv_heads) == (4, 1, 4, 2)
    assert shape_of(spec, "blk.0.attn_k.weight") == (8, 8)
    assert shape_of(spec, "blk.1.attn_k.weight") == (8, 2)


GEMMA2 = dataclasses.replace(TINY, architecture="gemma2", tied=True, n_swa=16, swa_pattern=2)


@pytest.mark.parametrize(
    ("spec", "change", "says"),
    [
        (TINY, {"n_layer": 0}, "n_layer is 0; it must be a whole number from 1 to 512"),
        (TINY, {"n_layer": -3}, "n_layer is -3"),
        (TINY, {"n_layer": True}, "n_layer is True"),
        (TINY, {"n_vocab": 10**12}, "n_vocab is 1000000000000"),
        (TINY, {"n_embd": 8.0}, "n_embd is 8.0"),
        (TINY, {"n_embd": 2**40}, "n_embd is 1099511627776"),
        (TINY, {"n_ff": "16"}, "n_ff is '16'"),
        (TINY, {"n_ff": 0}, "n_ff is 0"),
        (TINY, {"n_ctx_train": 0}, "n_ctx_train is 0"),
        (TINY, {"n_head_kv": 3}, "n_head_kv is 3; the 4 query heads must share a whole number"),
        (TINY, {"n_head_kv": 0}, "n_head_kv is 0; the 4 query heads"),
        (TINY, {"n_head_kv": 8}, "n_head_kv is 8; it must be a whole number from 0 to 4"),
        (TINY, {"n_head_kv": (2, 2, 2)}, "n_head_kv lists 3 layers, but the model has 2"),
        (TINY, {"n_head_kv": (2,)}, "n_head_kv lists 1 layers, but the model has 2"),
        (TINY, {"n_head_kv": (2, 3)}, "n_head_kv is 3; the 4 query heads"),
        (TINY, {"n_embd_head_k": 3, "n_embd_head_v": 3}, "n_embd_head_k is 3; rotary positions need an even"),
        (TINY, {"n_embd_head_v": 4}, "n_embd_head_k is 2 and n_embd_head_v 4"),
        (TINY, {"n_swa": -1}, "n_swa is -1"),
        (TINY, {"n_swa": 16, "swa_pattern": 2}, "gives the family llama no windowed layers"),
        (TINY, {"architecture": "mamba"}, "no tensor table for the family 'mamba'. Known: llama, qwen2"),
        (TINY, {"architecture": "phi3", "n_embd": 16}, "n_embd is 16, but 4 heads of 2 make 8"),
        (TINY, {"architecture": "qwen2", "n_embd": 16}, "n_embd is 16, but 4 heads of 2 make 8"),
        (GEMMA2, {"n_swa": 0}, "gives the family gemma2 always windowed layers"),
        (GEMMA2, {"swa_pattern": 1}, "a pattern of 1 leaves no layer windowed"),
        (GEMMA2, {"tied": False}, "the family gemma2 has no output matrix"),
    ],
)
def test_impossible_shapes_are_named(spec, change, says):
    architectures.check(spec)
    with pytest.raises(ValueError) as refused:
        architectures.check(dataclasses.replace(spec, **change))
    assert says in str(refused.value)


def test_other_families_may_leave_some_numbers_at_zero():
    architectures.check_numbers(dataclasses.replace(TINY, architecture="mamba", n_ff=0, n_head_kv=0))
    with pytest.raises(ValueError, match="n_layer is 0; it must be a whole number from 1"):
        architectures.check_numbers(dataclasses.replace(TINY, architecture="mamba", n_layer=0))


def test_tensors_are_unique_and_in_order():
    for name in models.names():
        spec = models.get(name)
        tensors = architectures.tensors(spec)
        assert len({tensor.name for tensor in tensors}) == len(tensors)
        assert sum(math.prod(tensor.shape) for tensor in tensors) == spec.n_params
        assert tensors[0] == Tensor("token_embd.weight", (spec.n_embd, spec.n_vocab))


def test_as_text():
    hostile = dataclasses.replace(TINY, title="<script>")
    assert str(hostile) == "<script> (llama, 2,792 parameters, 2 layers)"
    assert "<script>" not in hostile._repr_html_()
