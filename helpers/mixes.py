"""Which tensor type each tensor gets in a quantization: the mixes behind names like Q4_K_M.

llama.cpp gives sensitive tensors (attention values, the down projection, the output) more bits than the rest. The
rules below say so in one table; a test compares every tensor with llama.cpp's own quantizer.
"""

import functools

from . import formats

# A row that is no whole number of blocks falls back to a type with blocks of 32.
FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

VERY_LOW = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")

ROLES = (  # the first that occurs in the tensor's name decides
    ("output.weight", "output"),
    ("token_embd.weight", "embedding"),
    ("attn_qkv.weight", "value"),
    ("attn_kv_b.weight", "value"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "query_key"),
    ("attn_q.weight", "query_key"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "up_gate"),
    ("ffn_gate", "up_gate"),
    ("ffn_down", "down"),
)


def tensor_types(spec, quantization):
    """Tensor name -> ggml type name for a whole model.

    *When it misleads*: publishers may give an importance matrix (which changes some I-quants), their own overrides
    ("UD", "XL"), or store an output tensor of a tied model separately. Read the file's header for what is really there.

    Source: llama.cpp `src/llama-quant.cpp`; `tests/test_mixes.py` compares every tensor with the quantizer itself.
    """
    return dict(_tensor_types(spec, formats.quantization(quantization).name))


@functools.lru_cache(maxsize=4096)
def _tensor_types(spec, quantization):
    from . import architectures

    return tuple((t.name, tensor_type(t.name, t.shape, spec, quantization)) for t in architectures.tensors(spec))


def tensor_type(name, shape, spec, quantization):
    """The ggml type that one tensor gets.

    >>> from helpers import models
    >>> spec = models.get("llama-3.1-8b")
    >>> tensor_type("blk.0.attn_v.weight", (4096, 1024), spec, "Q4_K_M")
    'Q6_K'
    >>> tensor_type("blk.0.attn_q.weight", (4096, 4096), spec, "Q4_K_M")
    'Q4_K'
    """
    base = formats.QUANTIZATIONS[quantization].base
    if len(shape) < 2 or "_norm.weight" in name or "ffn_gate_inp.weight" in name or not name.endswith("weight"):
        return "F32"
    if base in ("F32", "F16", "BF16"):
        return base
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    wanted = _wanted(_role(name, spec), layer, shape[0], spec, quantization, base)
    return _fitting(wanted, shape[0])


def _role(name, spec):
    if name == "token_embd.weight" and spec.tied:
        return "output"
    if name == "output.weight":
        return "output"
    return next((role for part, role in ROLES[1:] if part in name), "other")


def _fitting(type_name, row_length):
    for candidate in (type_name, FALLBACK.get(type_name, type_name)):
        if row_length % formats.block_type(candidate).block_length == 0:
            return candidate
    return "F16"


def _more_bits(layer, n_layer):
    """The first and last eighth of the layers, and every third between."""
    return layer < n_layer // 8 or layer >= 7 * n_layer // 8 or (layer - n_layer // 8) % 3 == 2


def _wanted(role, layer, row_length, spec, quantization, base):
    n_layer = spec.n_layer
    n_head_kv = spec.n_head_kv if isinstance(spec.n_head_kv, int) else spec.n_head_kv[0]
    shared_values = spec.n_head // n_head_kv >= 4  # grouped-query attention: few value heads, each one matters more
    early = layer < n_layer // 8
    more = _more_bits(layer, n_layer)

    if role == "output":
        if row_length % formats.block_type(base).block_length:
            return "Q8_0"
        if quantization in (*VERY_LOW, "IQ3_XXS"):
            return "Q5_K"
        return base if base == "Q8_0" else "Q6_K"
    if role == "embedding":
        return {
            **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
            **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
            **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
        }.get(quantization, base)
    if quantization in VERY_LOW:
        better = "IQ3_S" if quantization in ("IQ2_S", "IQ2_M") else "Q2_K"
        if role == "value":
            return "Q4_K" if shared_values else better
        if role == "down" and early:
            return better
        if role == "attention_output" and quantization != "IQ2_XXS" and quantization != "IQ2_XS":
            return "IQ3_S" if better == "IQ3_S" else "IQ2_XXS"
        return base
    if role == "value":
        wanted = {
            "Q2_K": "Q4_K" if shared_values else "Q3_K",
            "Q2_K_S": "Q4_K" if shared_values else base,
            "IQ3_XXS": "Q4_K" if shared_values else "IQ3_S",
            "IQ3_XS": "Q4_K" if shared_values else base,
            "IQ3_S": "Q4_K" if shared_values else base,
            "IQ3_M": "Q4_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ4_NL": "Q5_K" if shared_values else base,
            "IQ4_XS": "Q5_K" if shared_values else base,
            "Q4_K_M": "Q6_K" if more else base,
            "Q5_K_M": "Q6_K" if more else base,
            "Q4_K_S": "Q5_K" if layer < 4 else base,
        }.get(quantization, base)
        seventy = spec.architecture == "llama" and n_layer == 80 and spec.n_head != n_head_kv
        return "Q5_K" if seventy and wanted in ("Q3_K", "Q4_K") else wanted
    if role == "query_key":
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(quantization, base)
    if role == "down":
        return {
            "Q2_K": "Q3_K",
            "Q2_K_S": "Q4_K" if early else base,
            "IQ3_XXS": "Q4_K" if early else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < n_layer // 16 else "Q4_K",
            "IQ3_M": "Q4_K" if early else base,
            "Q3_K_L": "Q5_K",
            "Q4_K_M": "Q6_K" if more else base,
            "Q5_K_M": "Q6_K" if more else base,
            "IQ4_NL": "Q5_K" if early else base,
            "IQ4_XS": "Q5_K" if early else base,
            "Q4_K_S": "Q5_K" if early else base,
        }.get(quantization, base)
    if role == "attention_output":
        return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(
            quantization, base
        )
    if role == "up_gate" and quantization == "IQ3_XS" and n_layer // 8 <= layer < 7 * n_layer // 8:
        return "IQ3_XXS"
    return base
