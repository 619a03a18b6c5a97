"""`helpers.mixes`: every tensor's type against llama.cpp's own quantizer, in a dry run without weights."""

import dataclasses
import random

import pytest
from shapes import random_spec

from helpers import architectures, engine, formats, memory, mixes, models, units
from helpers.architectures import FAMILIES

pytestmark = pytest.mark.slow  # test_memory samples the same comparisons fast


@pytest.mark.model
@pytest.mark.parametrize("name", models.names())
def test_quantizations_equal_the_quantizers(name):
    """Some of all quantizations, for each model others."""
    spec = models.get(name)
    for quantization in random.Random(name).sample(list(formats.QUANTIZATIONS), 6):
        assert mixes.tensor_types(spec, quantization) == engine.tensor_types(spec, quantization), quantization


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_quantization_equals_the_quantizers(name):
    spec = models.get(name)
    for quantization in formats.QUANTIZATIONS:
        assert mixes.tensor_types(spec, quantization) == engine.tensor_types(spec, quantization), quantization


@pytest.mark.model
@pytest.mark.parametrize("family", FAMILIES)
def test_random_shapes_equal_the_quantizers(family):
    pick = random.Random(family)
    for _ in range(6):
        spec, quantization = random_spec(pick, family), pick.choice(list(formats.QUANTIZATIONS))
        assert mixes.tensor_types(spec, quantization) == engine.tensor_types(spec, quantization), (spec, quantization)


def odd_shapes(n):
    """Shapes the rules were not written for: few and many layers, odd widths, all kinds of head sharing."""
    pick = random.Random(20)
    for number in range(n):
        n_head_kv, head = pick.choice([1, 2, 4, 8]), pick.choice([32, 64, 80, 128])
        n_head = n_head_kv * pick.choice([1, 2, 4, 8])
        yield dataclasses.replace(
            models.get("llama-3.1-8b"),
            name=f"odd-{number}",
            n_layer=pick.choice([1, 2, 3, 7, 8, 15, 16, 17, 33, 80]),
            n_embd=pick.choice([n_head * head, 32 * pick.randint(2, 64)]),
            n_head=n_head,
            n_head_kv=n_head_kv,
            n_embd_head_k=head,
            n_embd_head_v=head,
            n_ff=32 * pick.randint(2, 200),
            n_vocab=pick.choice([1000, 32000, 49152]),
            tied=pick.random() < 0.5,
        )


@pytest.mark.model
@pytest.mark.parametrize("spec", list(odd_shapes(12)), ids=lambda spec: spec.name)
def test_odd_shapes_equal_the_quantizers(spec):
    for quantization in ("Q4_K_M", "Q5_K_M", "Q3_K_M", "Q2_K", "Q6_K", "IQ4_XS", "IQ3_XXS", "IQ2_M", "IQ1_S", "TQ1_0"):
        assert mixes.tensor_types(spec, quantization) == engine.tensor_types(spec, quantization), quantization


@pytest.mark.parametrize("quantization", formats.QUANTIZATIONS)
def test_every_type_fits_the_rows(quantization):
    for name in ("smollm2-135m", "gemma-3-270m", "qwen2.5-0.5b"):  # widths 576, 640 and 896: no multiples of 256
        spec = models.get(name)
        types = mixes.tensor_types(spec, quantization)
        for tensor in architectures.tensors(spec):
            assert formats.tensor_bytes(types[tensor.name], tensor.shape) > 0


FOR_ALL = [quantization for quantization in formats.QUANTIZATIONS.values() if quantization.name != "MXFP4"]


@pytest.mark.parametrize("quantization", FOR_ALL, ids=lambda quantization: quantization.name)
def test_what_a_quantization_says_is_true_of_an_8b_model(quantization):
    spec = models.get("llama-3.1-8b")
    bits = units.bits_per_weight(memory.weights_bytes(spec, quantization.name), spec.n_params)
    assert float(quantization.says.split()[0]) == pytest.approx(bits, abs=0.051)


def test_mxfp4_is_for_experts():
    types = mixes.tensor_types(models.get("gpt-oss-20b"), "MXFP4")
    kinds = [formats.block_type(types[f"blk.7.{name}.weight"]) for name in ("ffn_up_exps", "attn_q")]
    assert [kind.bits_per_weight for kind in kinds] == [4.25, 8.5]
    assert formats.QUANTIZATIONS["MXFP4"].says.startswith("4.25 bits for experts, 8.5 for the rest")


def test_odd_widths_fall_back_to_blocks_of_32_and_then_to_16_bits():
    spec = models.get("smollm2-135m")
    assert mixes.tensor_type("blk.0.attn_q.weight", (576, 576), spec, "Q4_K_M") == "Q5_0"
    assert mixes.tensor_type("blk.0.attn_q.weight", (100, 576), spec, "Q4_K_M") == "F16"


def test_vectors_and_norms_stay_at_32_bits():
    types = mixes.tensor_types(models.get("qwen2.5-0.5b"), "Q2_K")
    assert types["output_norm.weight"] == types["blk.3.attn_q.bias"] == types["blk.3.ffn_norm.weight"] == "F32"


def test_sensitive_tensors_get_more_bits_in_some_layers():
    types = mixes.tensor_types(models.get("llama-3.1-8b"), "Q4_K_M")
    down = [types[f"blk.{layer}.ffn_down.weight"] for layer in range(32)]
    assert down.count("Q6_K") == 16 and down[:4] == ["Q6_K"] * 4 and down[-4:] == ["Q6_K"] * 4
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"


def test_a_tied_embedding_is_treated_as_the_output_it_also_is():
    assert mixes.tensor_types(models.get("qwen3-0.6b"), "Q4_K_M")["token_embd.weight"] == "Q6_K"


def test_the_answer_is_a_copy():
    spec = models.get("smollm2-135m")
    mixes.tensor_types(spec, "Q8_0").clear()
    assert mixes.tensor_types(spec, "Q8_0")


def test_unknown_quantization():
    with pytest.raises(ValueError, match="Unknown quantization 'Q4_K_XL'"):
        mixes.tensor_types(models.get("smollm2-135m"), "Q4_K_XL")
