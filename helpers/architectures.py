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
    n_rot: int = 0  # numbers of a head that carry the position (0: all of them)
    n_expert: int = 0
    n_expert_used: int = 0
    n_expert_shared: int = 0
    n_ff_exp: int = 0  # width of one expert
    n_layer_dense_lead: int = 0  # first layers without experts
    kv_lora_rank: int = 0  # MLA: keys and values are stored as one short vector
    n_embd_head_k_mla: int = 0
    n_embd_head_v_mla: int = 0
    n_params_vision: int = 0  # a second file (mmproj) for images, 16 bits
    rope_freqs: bool = False  # Llama 3.1 and later store their rotary frequencies as a tensor
    tokenizer: str = "bpe"  # "bpe" (byte pairs) or "spm" (SentencePiece): decides what the vocabulary costs
    vocabulary: str = ""  # whose words these are, by its name in `memory.VOCABULARIES`; "" when it is in no table
    title: str = ""
    year: int = 0  # of publication
    uses: tuple[str, ...] = ()
    license: str = ""
    languages: str = ""
    ollama: str = ""
    ollama_quantization: str = ""  # what that tag serves
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
        return _n_params(self)

    @property
    def n_params_active(self):
        """Number of weights that one token is multiplied with: all, or with experts only the chosen ones.

        *When it misleads*: the embedding counts whole here, though a token reads one row of it.

        >>> from helpers import models
        >>> round(models.get("qwen3-30b-a3b").n_params_active / 1e9, 1)      # the "A3B" of its name
        3.4
        """
        if not self.n_expert:
            return self.n_params
        experts = sum(math.prod(t.shape) for t in tensors(self) if "_exps." in t.name)
        return self.n_params - experts + experts * self.n_expert_used // self.n_expert

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


# What each family adds to the plain llama layout. `qkv`: one fused matrix; `gate_up`: gate and up in one, `no_gate`: up;
# `qk_norm`, `post_norm`, `sub_norm`, `second_norm`: more norms; `norm_bias`, `qkv_bias`, `out_bias`, `ffn_bias`,
# `output_bias`: biases; `one_norm`: attention and feed-forward share one; `sinks`: one number per head that takes
# attention off; `expert_bias`; `positions`: a learned table; `mla`: see `kv_lora_rank`; `tied_only`: no output matrix;
# `windows`: layers may see a sliding window, `windows_only`: some always do; `as_wide`: the heads make up the width.
FAMILIES = {
    "llama": frozenset(),
    "qwen2": frozenset({"qkv_bias", "as_wide"}),
    "qwen2vl": frozenset({"qkv_bias", "as_wide"}),
    "qwen3": frozenset({"qk_norm"}),
    "qwen3moe": frozenset({"qk_norm"}),
    "gemma": frozenset({"tied_only"}),
    "gemma2": frozenset({"post_norm", "tied_only", "windows", "windows_only"}),
    "gemma3": frozenset({"post_norm", "qk_norm", "windows"}),
    "phi2": frozenset(
        {"qkv_bias", "out_bias", "norm_bias", "ffn_bias", "no_gate", "one_norm", "output_bias", "as_wide"}
    ),
    "phi3": frozenset({"qkv", "gate_up", "as_wide"}),
    "gpt-oss": frozenset(
        {"qkv_bias", "out_bias", "sinks", "expert_bias", "norm_after_attention", "windows", "windows_only"}
    ),
    "deepseek2": frozenset({"mla"}),
    "bitnet": frozenset({"sub_norm", "tied_only", "as_wide"}),
    "falcon": frozenset({"qkv", "norm_bias", "no_gate", "one_norm", "second_norm", "as_wide"}),
    "gptneox": frozenset({"qkv", "qkv_bias", "out_bias", "norm_bias", "ffn_bias", "no_gate", "as_wide"}),
    "gpt2": frozenset({"qkv", "qkv_bias", "out_bias", "norm_bias", "ffn_bias", "no_gate", "positions", "as_wide"}),
}


@functools.lru_cache(maxsize=1024)
def _n_params(spec):
    return sum(math.prod(tensor.shape) for tensor in tensors(spec))


@functools.lru_cache(maxsize=1024)
def tensors(spec):
    """All tensors of a model as llama.cpp expects them, in the order of its layers.

    Raises `ValueError` for a family without a table here or a shape that cannot be.
    Source: llama.cpp `src/models/*.cpp`; the engine refuses a missing or misshapen tensor (`tests/test_engine.py`).
    """
    check(spec)
    family = FAMILIES[spec.architecture]
    top = (Tensor(name, shape) for name, shape in _top(spec, family))
    layers = (
        Tensor(f"blk.{layer}.{name}", shape)
        for layer in range(spec.n_layer)
        for part in (_attention, _feed_forward)
        for name, shape in part(spec, family, layer)
    )
    return (*top, *layers)


def _top(spec, family):
    yield "token_embd.weight", (spec.n_embd, spec.n_vocab)
    if "positions" in family:
        yield "position_embd.weight", (spec.n_embd, spec.n_ctx_train)
    yield from _norm("output_norm", spec.n_embd, family)
    if not spec.tied:
        yield "output.weight", (spec.n_embd, spec.n_vocab)
    if "output_bias" in family:
        yield "output.bias", (spec.n_vocab,)
    if spec.rope_freqs:
        yield "rope_freqs.weight", (spec.n_embd_head_k // 2,)


def _norm(name, width, family):
    yield f"{name}.weight", (width,)
    if "norm_bias" in family:
        yield f"{name}.bias", (width,)


def _attention(spec, family, layer):
    embd, n_head_kv = spec.n_embd, spec.kv_heads(layer)
    yield from _norm("attn_norm", embd, family)
    if "second_norm" in family and n_head_kv > 1:  # Falcon 40B has it, Falcon 7B with its one KV head has not
        yield from _norm("attn_norm_2", embd, family)
    if "mla" in family:
        yield from _latent_attention(spec)
        return
    widths = {
        "q": spec.n_head * spec.n_embd_head_k,
        "k": n_head_kv * spec.n_embd_head_k,
        "v": n_head_kv * spec.n_embd_head_v,
    }
    if "qkv" in family:
        widths = {"qkv": sum(widths.values())}
    for name, width in widths.items():
        yield f"attn_{name}.weight", (embd, width)
        if "qkv_bias" in family:
            yield f"attn_{name}.bias", (width,)
    if "qk_norm" in family:
        yield "attn_q_norm.weight", (spec.n_embd_head_k,)
        yield "attn_k_norm.weight", (spec.n_embd_head_k,)
    if "sinks" in family:
        yield "attn_sinks.weight", (spec.n_head,)
    yield "attn_output.weight", (spec.n_head * spec.n_embd_head_v, embd)
    if "out_bias" in family:
        yield "attn_output.bias", (embd,)
    if "sub_norm" in family:
        yield "attn_sub_norm.weight", (embd,)
    if "post_norm" in family or "norm_after_attention" in family:
        yield "post_attention_norm.weight", (embd,)


def _latent_attention(spec):
    """DeepSeek's MLA: keys and values of all heads are rebuilt from one vector of `kv_lora_rank` numbers."""
    n_rot = spec.n_rot or spec.n_embd_head_k
    yield "attn_q.weight", (spec.n_embd, spec.n_head * spec.n_embd_head_k_mla)
    yield "attn_kv_a_norm.weight", (spec.kv_lora_rank,)
    yield "attn_kv_a_mqa.weight", (spec.n_embd, spec.kv_lora_rank + n_rot)
    yield "attn_k_b.weight", (spec.n_embd_head_k_mla - n_rot, spec.kv_lora_rank, spec.n_head)
    yield "attn_v_b.weight", (spec.kv_lora_rank, spec.n_embd_head_v_mla, spec.n_head)
    yield "attn_output.weight", (spec.n_head * spec.n_embd_head_v_mla, spec.n_embd)


def _feed_forward(spec, family, layer):
    embd = spec.n_embd
    if "one_norm" not in family and "norm_after_attention" not in family:
        yield from _norm("ffn_norm", embd, family)
    if spec.n_expert and layer >= spec.n_layer_dense_lead:
        yield from _experts(spec, family)
        return
    widths = {"gate": spec.n_ff, "up": spec.n_ff}
    if "gate_up" in family:
        widths = {"up": 2 * spec.n_ff}
    elif "no_gate" in family:
        widths = {"up": spec.n_ff}
    for name, width in widths.items():
        yield f"ffn_{name}.weight", (embd, width)
        if "ffn_bias" in family:
            yield f"ffn_{name}.bias", (width,)
    yield "ffn_down.weight", (spec.n_ff, embd)
    if "ffn_bias" in family:
        yield "ffn_down.bias", (embd,)
    if "sub_norm" in family:
        yield "ffn_sub_norm.weight", (spec.n_ff,)
    if "post_norm" in family:
        yield "post_ffw_norm.weight", (embd,)


def _experts(spec, family):
    embd, width, count = spec.n_embd, spec.n_ff_exp or spec.n_ff, spec.n_expert
    yield "ffn_gate_inp.weight", (embd, count)
    if "expert_bias" in family:
        yield "ffn_gate_inp.bias", (count,)
    for name, shape in (("gate", (embd, width)), ("up", (embd, width)), ("down", (width, embd))):
        yield f"ffn_{name}_exps.weight", (*shape, count)
        if "expert_bias" in family:
            yield f"ffn_{name}_exps.bias", (shape[1], count)
    if spec.n_expert_shared:
        shared = width * spec.n_expert_shared
        yield "ffn_gate_shexp.weight", (embd, shared)
        yield "ffn_up_shexp.weight", (embd, shared)
        yield "ffn_down_shexp.weight", (shared, embd)


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
    family, windows = FAMILIES[spec.architecture], spec.n_swa > 0 and spec.swa_pattern > 0
    if spec.n_embd_head_k != spec.n_embd_head_v and "mla" not in family:
        raise ValueError(
            f"{spec.name}: n_embd_head_k is {spec.n_embd_head_k} and n_embd_head_v {spec.n_embd_head_v}; "
            f"the heads of the family {spec.architecture} must be equal."
        )
    if "as_wide" in family and spec.n_head * spec.n_embd_head_k != spec.n_embd:
        raise ValueError(
            f"{spec.name}: n_embd is {spec.n_embd}, but {spec.n_head} heads of {spec.n_embd_head_k} make "
            f"{spec.n_head * spec.n_embd_head_k}; in the family {spec.architecture} they must be equal."
        )
    if windows and "windows" not in family or not windows and "windows_only" in family:
        raise ValueError(
            f"{spec.name}: n_swa is {spec.n_swa} and swa_pattern {spec.swa_pattern}, but llama.cpp gives the family "
            f"{spec.architecture} {'no' if windows else 'always'} windowed layers."
        )
    if "tied_only" in family and not spec.tied:
        raise ValueError(f"{spec.name}: tied is False, but the family {spec.architecture} has no output matrix.")
