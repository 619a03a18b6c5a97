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
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "up_gate"),
    ("ffn_gate", "up_gate"),
    ("ffn_down", "down"),
)


def tensor_types(spec, quantization, imatrix=False):
    """Tensor name -> ggml type name for a whole model.

    `imatrix`: the file was made with an importance matrix, which changes the down projections of IQ4_XS, IQ4_NL, Q4_0,
    Q5_0 and IQ3_XXS, and the values of IQ3_XXS; no other size depends on it.

    *When it misleads*: publishers may add their own overrides ("UD", "XL"), or store an output tensor of a tied model
    separately. Read the file's header for what is really there.

    Source: llama.cpp `src/llama-quant.cpp`; `tests/test_mixes.py` compares every tensor with the quantizer itself, and
    `tests/test_published.py` the sums with published files, with and without an importance matrix.

    >>> from helpers import models
    >>> [tensor_types(models.get("qwen3-4b"), "Q4_0", matrix)["blk.0.ffn_down.weight"] for matrix in (False, True)]
    ['Q4_0', 'Q4_1']
    """
    return dict(_tensor_types(spec, formats.quantization(quantization).name, bool(imatrix)))


@functools.lru_cache(maxsize=4096)
def _tensor_types(spec, quantization, imatrix):
    from . import architectures

    tensors = architectures.tensors(spec)
    return tuple((t.name, tensor_type(t.name, t.shape, spec, quantization, imatrix)) for t in tensors)


def tensor_type(name, shape, spec, quantization, imatrix=False):
    """The ggml type that one tensor gets; `imatrix` as in `tensor_types`.

    >>> from helpers import models
    >>> spec = models.get("llama-3.1-8b")
    >>> tensor_type("blk.0.attn_v.weight", (4096, 1024), spec, "Q4_K_M")
    'Q6_K'
    >>> tensor_type("blk.0.attn_q.weight", (4096, 4096), spec, "Q4_K_M")
    'Q4_K'
    """
    base = formats.QUANTIZATIONS[quantization].base
    if stays_f32(name, shape):
        return "F32"
    if base in ("F32", "F16", "BF16"):
        return base
    return _fitting(_wanted(name, shape, spec, quantization, base, imatrix), shape[0])


def stays_f32(name, shape):
    """True for tensors that converters store in 32 bits and the quantizer leaves alone.

    >>> stays_f32("blk.0.attn_norm.weight", (4096,)), stays_f32("blk.0.attn_q.weight", (4096, 4096))
    (True, False)
    """
    router_or_table = "ffn_gate_inp.weight" in name or name == "position_embd.weight"
    return len(shape) < 2 or "_norm.weight" in name or router_or_table or not name.endswith("weight")


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


def _wanted(name, shape, spec, quantization, base, imatrix):
    role, layer = _role(name, spec), int(name.split(".")[1]) if name.startswith("blk.") else 0
    if quantization == "MXFP4":
        return "MXFP4" if len(shape) == 3 else "Q8_0"
    if role == "output":
        return _wanted_output(shape[0], spec, quantization, base)
    if role == "embedding":
        return _EMBEDDING.get(quantization, base)
    facts = _Facts(spec, layer)
    if quantization in VERY_LOW:
        return _wanted_very_low(name, role, quantization, base, facts)
    if imatrix and role in ("value", "down") and (quantization, role) in _WITH_IMATRIX:
        return _wanted_with_imatrix(quantization, role, base, facts)
    if role == "value":
        return _wanted_value(quantization, base, facts)
    eight = spec.n_expert == 8
    if role == "key" and eight:
        return "Q8_0"
    if role in ("query", "key"):
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(quantization, base)
    if role == "down":
        return _wanted_down(quantization, base, facts)
    if role == "attention_output":
        return _wanted_attention_output(quantization, base, facts)
    if role == "up_gate" and quantization == "IQ3_XS" and facts.n_layer // 8 <= layer < 7 * facts.n_layer // 8:
        return "IQ3_XXS"
    return base


_EMBEDDING = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
}


class _Facts:
    """What the rules ask about one layer of a model."""

    def __init__(self, spec, layer):
        n_head_kv = spec.kv_heads(0)
        self.layer, self.n_layer = layer, spec.n_layer
        self.shared_values = spec.n_head // n_head_kv >= 4  # few value heads, so each one matters more
        self.early = layer < spec.n_layer // 8
        self.more = _more_bits(layer, spec.n_layer)
        self.n_expert, self.n_expert_shared = spec.n_expert, spec.n_expert_shared
        self.n_layer_dense_lead = spec.n_layer_dense_lead
        self.falcon = spec.architecture == "falcon"
        llama_70b = spec.architecture == "llama" and spec.n_head != n_head_kv
        self.seventy = spec.n_layer == 80 and (llama_70b or spec.architecture == "qwen2")


def _wanted_output(row_length, spec, quantization, base):
    if spec.architecture == "falcon" or row_length % formats.block_type(base).block_length:
        return "Q8_0"
    if quantization in (*VERY_LOW, "IQ3_XXS"):
        return "Q5_K"
    return base if base == "Q8_0" else "Q6_K"


def _nth_down(name, facts):
    """Down projections before this one: the lowest mixes count these, not layers, and shared experts count as well."""
    with_experts = max(facts.layer - facts.n_layer_dense_lead, 0) if facts.n_expert_shared else 0
    return facts.layer + with_experts + ("_shexp" in name)


def _wanted_very_low(name, role, quantization, base, facts):
    better = "IQ3_S" if quantization in ("IQ2_S", "IQ2_M") else "Q2_K"
    if role == "value":
        return "Q4_K" if facts.shared_values or facts.n_expert >= 4 else better
    if role == "key" and facts.n_expert == 8:
        return "Q4_K"
    if role == "down" and _nth_down(name, facts) < facts.n_layer // 8:
        return better
    if role == "attention_output" and facts.n_expert == 8:
        return "Q5_K"
    if role == "attention_output" and quantization not in ("IQ2_XXS", "IQ2_XS"):
        return "IQ3_S" if better == "IQ3_S" else "IQ2_XXS"
    return base


_WITH_IMATRIX = {("IQ3_XXS", "value")} | {(name, "down") for name in ("IQ3_XXS", "IQ4_NL", "IQ4_XS", "Q4_0", "Q5_0")}


def _wanted_with_imatrix(quantization, role, base, facts):
    """Where weights are known to matter, I-quants need no larger type; Q4_0 and Q5_0 get one in the first layers."""
    if role == "value":
        if facts.n_expert == 8:
            return "Q8_0"
        return ("Q5_K" if facts.seventy else "Q4_K") if facts.shared_values else base
    larger = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}
    return larger.get(quantization, base) if facts.early else base


def _wanted_value(quantization, base, facts):
    shared = facts.shared_values
    wanted = {
        "Q2_K": "Q4_K" if shared else "Q3_K",
        "Q2_K_S": "Q4_K" if shared else base,
        "IQ3_XXS": "Q4_K" if shared else "IQ3_S",
        "IQ3_XS": "Q4_K" if shared else base,
        "IQ3_S": "Q4_K" if shared else base,
        "IQ3_M": "Q4_K",
        "Q3_K_M": "Q5_K" if facts.layer < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "IQ4_NL": "Q5_K" if shared else base,
        "IQ4_XS": "Q5_K" if shared else base,
        "Q4_K_M": "Q6_K" if facts.more else base,
        "Q5_K_M": "Q6_K" if facts.more else base,
        "Q4_K_S": "Q5_K" if facts.layer < 4 else base,
    }.get(quantization, base)
    if facts.n_expert == 8:
        return "Q8_0"
    return "Q5_K" if facts.seventy and wanted in ("Q3_K", "Q4_K") else wanted


def _wanted_down(quantization, base, facts):
    if facts.falcon:
        in_falcon = {
            "Q3_K_M": "Q5_K" if facts.layer < facts.n_layer // 16 else "Q4_K" if facts.more else "Q3_K",
            "Q3_K_L": "Q4_K",
            "Q4_K_M": "Q6_K" if facts.layer < facts.n_layer // 16 else "Q5_K" if facts.more else "Q4_K",
            "Q4_K_S": base,
        }
        if quantization in in_falcon:
            return in_falcon[quantization]
    return {
        "Q2_K": "Q3_K",
        "Q2_K_S": "Q4_K" if facts.early else base,
        "IQ3_XXS": "Q4_K" if facts.early else "Q3_K",
        "Q3_K_M": "Q5_K" if facts.layer < facts.n_layer // 16 else "Q4_K",
        "IQ3_M": "Q4_K" if facts.early or (facts.n_expert == 8 and facts.more) else base,
        "Q3_K_L": "Q5_K",
        "Q4_K_M": "Q6_K" if facts.more else base,
        "Q5_K_M": "Q6_K" if facts.more else base,
        "IQ4_NL": "Q5_K" if facts.early else base,
        "IQ4_XS": "Q5_K" if facts.early else base,
        "Q4_K_S": "Q5_K" if facts.early else base,
    }.get(quantization, base)


_EIGHT_EXPERTS = frozenset(
    ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS")
)


def _wanted_attention_output(quantization, base, facts):
    if facts.falcon:
        return "Q4_K" if quantization == "Q3_K_L" else base
    if facts.n_expert == 8:
        return "Q5_K" if quantization in _EIGHT_EXPERTS else base
    mine = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
    return mine.get(quantization, base)
