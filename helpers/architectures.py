"""Model shape -> the list of its tensors. One table per family; llama.cpp refuses a wrong one."""

import functools
import html
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a model, in llama.cpp's own words; counts without unit, sizes in elements.

    `n_head_kv` is a number, or one per layer. `n_swa` is the sliding window in tokens (0: none) and `swa_pattern` says
    that every `swa_pattern`-th layer sees the whole context (0: no layer is windowed).
    `tied` models have no output matrix of their own: they use the token embedding twice.
    """

    name: str
    architecture: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int | tuple[int, ...]
    n_embd_head_k: int
    n_embd_head_v: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    tied: bool = False
    n_swa: int = 0
    swa_pattern: int = 0
    rope_freqs: bool = False  # Llama 3.1 and later store their rotary frequencies as a tensor
    tokenizer: str = "bpe"  # "bpe" (byte pairs) or "spm" (SentencePiece): decides what the vocabulary costs
    title: str = ""
    license: str = ""
    languages: str = ""
    ollama: str = ""
    ollama_tag: str = ""
    ollama_serves: tuple[str, ...] = ()
    hub: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""

    @property
    def n_params(self):
        """Number of weights, by adding up all tensors of the GGUF file.

        *When it misleads*: publishers' counts leave out the rotary frequencies that some files store as a tensor.

        >>> from helpers import models
        >>> models.get("smollm2-135m").n_params
        134515008
        """
        return sum(math.prod(t.shape) for t in tensors(self))

    def kv_heads(self, layer):
        """KV heads of one layer (a count)."""
        return self.n_head_kv if isinstance(self.n_head_kv, int) else self.n_head_kv[layer]

    @property
    def most_kv_heads(self):
        """KV heads of the layer that has most (a count)."""
        return self.n_head_kv if isinstance(self.n_head_kv, int) else max(self.n_head_kv)

    def is_windowed(self, layer):
        """True when this layer only sees the last `n_swa` tokens."""
        return bool(self.n_swa and self.swa_pattern) and layer % self.swa_pattern < self.swa_pattern - 1

    def __str__(self):
        return f"{self.title or self.name} ({self.architecture}, {self.n_params:,} parameters, {self.n_layer} layers)"

    def _repr_html_(self):
        return f"<p>{html.escape(str(self))}</p>"


@dataclass(frozen=True)
class Tensor:
    """Name and shape of one tensor; `shape` in ggml's order, row length first."""

    name: str
    shape: tuple[int, ...]


# What each family adds to the plain llama layout. `qkv`: one fused matrix; `gate_up`: gate and up in one;
# `qk_norm`, `post_norm`: extra norms; `qkv_bias`: biases on query, key and value; `tied_only`: never an output matrix;
# `windows`: layers that see a sliding window only (`windows_only`: always some).
FAMILIES = {
    "llama": frozenset(),
    "qwen2": frozenset({"qkv_bias"}),
    "qwen3": frozenset({"qk_norm"}),
    "gemma2": frozenset({"post_norm", "tied_only", "windows", "windows_only"}),
    "gemma3": frozenset({"post_norm", "qk_norm", "windows"}),
    "phi3": frozenset({"qkv", "gate_up"}),
}


@functools.lru_cache(maxsize=1024)
def tensors(spec):
    """All tensors of a model as llama.cpp expects them, in the order of its layers.

    Raises `ValueError` for a family without a table here or a shape that cannot be.
    Source: llama.cpp `src/models/*.cpp`; the engine refuses a missing or misshapen tensor (`tests/test_engine.py`).
    """
    check(spec)
    family, embd = FAMILIES[spec.architecture], spec.n_embd
    top = [Tensor("token_embd.weight", (embd, spec.n_vocab)), Tensor("output_norm.weight", (embd,))]
    if not spec.tied:
        top.append(Tensor("output.weight", (embd, spec.n_vocab)))
    if spec.rope_freqs:
        top.append(Tensor("rope_freqs.weight", (spec.n_embd_head_k // 2,)))
    layers = (
        Tensor(f"blk.{layer}.{name}", shape)
        for layer in range(spec.n_layer)
        for name, shape in _layer(spec, family, spec.kv_heads(layer))
    )
    return (*top, *layers)


def _layer(spec, family, n_head_kv):
    embd, ff = spec.n_embd, spec.n_ff
    q, k, v = spec.n_head * spec.n_embd_head_k, n_head_kv * spec.n_embd_head_k, n_head_kv * spec.n_embd_head_v
    yield "attn_norm.weight", (embd,)
    if "qkv" in family:
        yield "attn_qkv.weight", (embd, q + k + v)
    else:
        yield "attn_q.weight", (embd, q)
        yield "attn_k.weight", (embd, k)
        yield "attn_v.weight", (embd, v)
    if "qkv_bias" in family:
        yield "attn_q.bias", (q,)
        yield "attn_k.bias", (k,)
        yield "attn_v.bias", (v,)
    if "qk_norm" in family:
        yield "attn_q_norm.weight", (spec.n_embd_head_k,)
        yield "attn_k_norm.weight", (spec.n_embd_head_k,)
    yield "attn_output.weight", (spec.n_head * spec.n_embd_head_v, embd)
    if "post_norm" in family:
        yield "post_attention_norm.weight", (embd,)
    yield "ffn_norm.weight", (embd,)
    if "gate_up" in family:
        yield "ffn_up.weight", (embd, 2 * ff)
    else:
        yield "ffn_gate.weight", (embd, ff)
        yield "ffn_up.weight", (embd, ff)
    yield "ffn_down.weight", (ff, embd)
    if "post_norm" in family:
        yield "post_ffw_norm.weight", (embd,)


LIMITS = {  # generous: ten times what the largest published models have
    "n_layer": 512,
    "n_embd": 2**18,
    "n_head": 2**12,
    "n_embd_head_k": 2**12,
    "n_embd_head_v": 2**12,
    "n_ff": 2**20,
    "n_vocab": 2**23,
    "n_ctx_train": 2**30,
}


MAY_BE_ZERO = ("n_embd_head_k", "n_embd_head_v", "n_ff")  # in some families without a table here


def check(spec):
    """Raise `ValueError` naming the first thing that is impossible about a shape, with its value."""
    if spec.architecture not in FAMILIES:
        raise ValueError(
            f"{spec.name}: no tensor table for the family {spec.architecture!r}. Known: {', '.join(FAMILIES)}. "
            "A GGUF file of this family can still be read with gguf.read_header."
        )
    check_numbers(spec)
    _check_family(spec)


def check_numbers(spec):
    """As `check`, for any family: what no model at all can be."""
    for name, most in LIMITS.items():
        value, least = getattr(spec, name), int(spec.architecture in FAMILIES or name not in MAY_BE_ZERO)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{spec.name}: {name} is {value!r}; it must be a whole number from {least} to {most:,}.")
    per_layer = (spec.n_head_kv,) * spec.n_layer if isinstance(spec.n_head_kv, int) else spec.n_head_kv
    if len(per_layer) != spec.n_layer:
        raise ValueError(f"{spec.name}: n_head_kv lists {len(per_layer)} layers, but the model has {spec.n_layer}.")
    for n_head_kv in set(per_layer):
        if not isinstance(n_head_kv, int) or not 0 <= n_head_kv <= spec.n_head:
            raise ValueError(
                f"{spec.name}: n_head_kv is {n_head_kv!r}; it must be a whole number from 0 to {spec.n_head} (n_head)."
            )
    if spec.n_swa < 0 or spec.swa_pattern < 0 or spec.swa_pattern == 1:
        raise ValueError(
            f"{spec.name}: n_swa is {spec.n_swa} and swa_pattern {spec.swa_pattern}; neither can be negative, and a "
            "pattern of 1 leaves no layer windowed (0 says so)."
        )


def _check_family(spec):
    for n_head_kv in {spec.kv_heads(layer) for layer in range(spec.n_layer)}:
        if n_head_kv == 0 or spec.n_head % n_head_kv:
            raise ValueError(
                f"{spec.name}: n_head_kv is {n_head_kv!r}; the {spec.n_head} query heads must share a whole number of "
                "KV heads."
            )
    if spec.n_embd_head_k % 2:
        raise ValueError(
            f"{spec.name}: n_embd_head_k is {spec.n_embd_head_k}; rotary positions need an even head size."
        )
    if spec.n_embd_head_k != spec.n_embd_head_v:
        raise ValueError(
            f"{spec.name}: n_embd_head_k is {spec.n_embd_head_k} and n_embd_head_v {spec.n_embd_head_v}; "
            f"the heads of the family {spec.architecture} must be equal."
        )
    if spec.architecture in ("qwen2", "phi3") and spec.n_head * spec.n_embd_head_k != spec.n_embd:
        raise ValueError(
            f"{spec.name}: n_embd is {spec.n_embd}, but {spec.n_head} heads of {spec.n_embd_head_k} make "
            f"{spec.n_head * spec.n_embd_head_k}; in the family {spec.architecture} they must be equal."
        )
    family, windows = FAMILIES[spec.architecture], spec.n_swa > 0 and spec.swa_pattern > 0
    if windows and "windows" not in family or not windows and "windows_only" in family:
        raise ValueError(
            f"{spec.name}: n_swa is {spec.n_swa} and swa_pattern {spec.swa_pattern}, but llama.cpp gives the family "
            f"{spec.architecture} {'no' if windows else 'always'} windowed layers."
        )
    if "tied_only" in family and not spec.tied:
        raise ValueError(f"{spec.name}: tied is False, but the family {spec.architecture} has no output matrix.")
