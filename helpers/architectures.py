"""Model shape -> the list of its tensors. One table per family; llama.cpp refuses a wrong one."""

import functools
import html
import math
from dataclasses import dataclass, fields, replace


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
    ollama_note: str = ""
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


# What each family adds to plain llama. `qkv`: one fused matrix; `gate_up`: gate and up in one; `no_gate`: no gate;
# `qk_norm`, `post_norm`, `sub_norm`, `second_norm`: more norms; `norm_bias`, `qkv_bias`, `out_bias`, `ffn_bias`,
# `output_bias`: biases; `one_norm`: attention and feed-forward share one; `sinks`: one number per head that takes
# attention off; `expert_bias`; `positions`: a learned table; `mla`: see `kv_lora_rank`; `tied_only`: no output matrix;
# `windows`: layers may see a sliding window, `windows_only`: some always do; `as_wide`: the heads make up the width;
# `experts`: the feed-forward may be a choice of experts, `experts_only`: it always is; `never_tied`: has an output
# matrix.
FAMILIES = {
    "llama": frozenset({"experts"}),
    "qwen2": frozenset({"qkv_bias", "as_wide"}),
    "qwen2vl": frozenset({"qkv_bias", "as_wide"}),
    "qwen3": frozenset({"qk_norm"}),
    "qwen3moe": frozenset({"qk_norm", "experts", "experts_only"}),
    "gemma": frozenset({"tied_only"}),
    "gemma2": frozenset({"post_norm", "tied_only", "windows", "windows_only"}),
    "gemma3": frozenset({"post_norm", "qk_norm", "windows"}),
    "phi2": frozenset(
        {
            *("qkv_bias", "out_bias", "norm_bias", "ffn_bias", "no_gate", "one_norm", "output_bias", "as_wide"),
            "never_tied",
        }
    ),
    "phi3": frozenset({"qkv", "gate_up", "as_wide"}),
    "gpt-oss": frozenset(
        {
            *("qkv_bias", "out_bias", "sinks", "expert_bias", "norm_after_attention", "windows", "windows_only"),
            *("experts", "experts_only", "never_tied"),
        }
    ),
    "deepseek2": frozenset({"mla", "experts", "experts_only"}),
    "bitnet": frozenset({"sub_norm", "tied_only", "as_wide"}),
    "falcon": frozenset({"qkv", "norm_bias", "no_gate", "one_norm", "second_norm", "as_wide"}),
    "gptneox": frozenset({"qkv", "qkv_bias", "out_bias", "norm_bias", "ffn_bias", "no_gate", "as_wide", "never_tied"}),
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


MOST_EXPERTS = 512  # LLAMA_MAX_EXPERTS
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
    if spec.n_rot % 2 or not 0 <= spec.n_rot <= spec.n_embd_head_k:
        raise ValueError(
            f"{spec.name}: n_rot is {spec.n_rot}; it must be an even number from 0 to {spec.n_embd_head_k} "
            "(n_embd_head_k)."
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
    if "never_tied" in family and spec.tied:
        raise ValueError(f"{spec.name}: tied is True, but the family {spec.architecture} always has an output matrix.")
    _check_experts(spec, family)
    if "mla" in family:
        _check_latent(spec)


def _check_experts(spec, family):
    if not spec.n_expert:
        if "experts_only" in family:
            raise ValueError(f"{spec.name}: n_expert is 0, but the family {spec.architecture} always has experts.")
        if spec.n_expert_used:
            raise ValueError(f"{spec.name}: n_expert_used is {spec.n_expert_used}, but n_expert is 0.")
        return
    if "experts" not in family:
        with_experts = ", ".join(name for name, flags in FAMILIES.items() if "experts" in flags)
        raise ValueError(
            f"{spec.name}: n_expert is {spec.n_expert}, but the family {spec.architecture} has no experts. "
            f"Families with experts: {with_experts}."
        )
    if not 1 <= spec.n_expert <= MOST_EXPERTS:
        raise ValueError(f"{spec.name}: n_expert is {spec.n_expert}; llama.cpp takes from 1 to {MOST_EXPERTS}.")
    if not 1 <= spec.n_expert_used <= spec.n_expert:
        raise ValueError(
            f"{spec.name}: n_expert_used is {spec.n_expert_used}; of {spec.n_expert} experts a token can use from 1 to "
            f"{spec.n_expert}."
        )
    if "experts_only" in family and spec.n_ff_exp < 1:
        raise ValueError(f"{spec.name}: n_ff_exp is {spec.n_ff_exp}; give the width of one expert.")
    if "experts_only" not in family and spec.n_ff_exp not in (0, spec.n_ff):
        raise ValueError(
            f"{spec.name}: n_ff_exp is {spec.n_ff_exp}; in the family {spec.architecture} one expert is as wide as "
            f"n_ff, here {spec.n_ff}."
        )


def _check_latent(spec):
    n_rot = spec.n_rot or spec.n_embd_head_k
    if spec.kv_lora_rank < 1 or spec.n_embd_head_k != spec.kv_lora_rank + n_rot:
        raise ValueError(
            f"{spec.name}: n_embd_head_k is {spec.n_embd_head_k}; with MLA it must be kv_lora_rank + n_rot, here "
            f"{spec.kv_lora_rank} + {n_rot}."
        )
    if spec.n_embd_head_v != spec.kv_lora_rank:
        raise ValueError(
            f"{spec.name}: n_embd_head_v is {spec.n_embd_head_v}; with MLA it must be kv_lora_rank, here "
            f"{spec.kv_lora_rank}."
        )
    if spec.most_kv_heads != 1:
        raise ValueError(f"{spec.name}: n_head_kv is {spec.n_head_kv}; with MLA all heads share one.")
    if spec.n_embd_head_k_mla <= n_rot or spec.n_embd_head_v_mla < 1:
        raise ValueError(
            f"{spec.name}: n_embd_head_k_mla is {spec.n_embd_head_k_mla} and n_embd_head_v_mla "
            f"{spec.n_embd_head_v_mla}; the first must be more than n_rot, here {n_rot}, the second at least 1."
        )


PARAMETER_PARTS = ("embeddings", "attention", "feed-forward", "norms and other vectors")


def params_by_part(spec):
    """Where a model's weights are: part -> number of weights; the numbers add up to `n_params`.

    "embeddings": the token embedding, an output matrix, a table of positions; "norms and other vectors": what is no
    matrix, wherever it stands. The router of a mixture of experts counts as feed-forward.

    >>> from helpers import models
    >>> parts = params_by_part(models.get("tinyllama-1.1b"))
    >>> parts["embeddings"] == 2 * 32_000 * 2_048, parts["feed-forward"] == 22 * 3 * 2_048 * 5_632
    (True, True)
    """
    found = dict.fromkeys(PARAMETER_PARTS, 0)
    for tensor in tensors(spec):
        found[_parameter_part(tensor)] += math.prod(tensor.shape)
    return found


def _parameter_part(tensor):
    if len(tensor.shape) < 2:
        return PARAMETER_PARTS[3]
    if not tensor.name.startswith("blk."):
        return PARAMETER_PARTS[0]
    return PARAMETER_PARTS[1] if ".attn_" in tensor.name else PARAMETER_PARTS[2]


OF_A_FILE = (
    *("n_params_vision", "year", "uses", "license", "languages", "hub", "sources", "notes"),
    *("ollama", "ollama_quantization", "ollama_tag", "ollama_serves"),
)


def redesign(spec, **shape):
    """A new `ModelSpec` like `spec` with some numbers changed, named "my-model"; `check` says whether it can be.

    The part that sees images and all that is known about a published file are dropped; from another family also latent
    attention, rotary frequencies and dense layers before the experts.

    >>> from helpers import models
    >>> deeper = redesign(models.get("tinyllama-1.1b"), n_layer=44)
    >>> deeper.n_params - models.get("tinyllama-1.1b").n_params == 22 * 44_044_288
    True
    """
    dropped = {field.name: field.default for field in fields(ModelSpec) if field.name in OF_A_FILE}
    if spec.n_rot > shape.get("n_embd_head_k", spec.n_embd_head_k):
        dropped["n_rot"] = 0
    if shape.get("architecture", spec.architecture) != spec.architecture:
        dropped |= dict.fromkeys(("n_rot", "kv_lora_rank", "n_embd_head_k_mla", "n_embd_head_v_mla"), 0)
        dropped |= {"rope_freqs": False, "n_expert_shared": 0, "n_layer_dense_lead": 0}
    return replace(spec, **{**dropped, "name": "my-model", "title": "My model", **shape})


def may_have(architecture):
    """What a family leaves open: {"windows": ..., "experts": ..., "tied": ...}, each the set of what may be.

    >>> sorted(may_have("gpt-oss").items())
    [('experts', {True}), ('tied', {False}), ('windows', {True})]
    >>> may_have("llama")["experts"] == {False, True}
    True
    """
    flags = FAMILIES[architecture]
    return {
        "windows": {"windows" in flags, "windows_only" in flags},
        "experts": {"experts" in flags, "experts_only" in flags},
        "tied": {"never_tied" not in flags, "tied_only" in flags},
    }


def family_with(architecture, **switches):
    """A family that may have these switches: `architecture` itself, else the plainest that can, else `architecture`.

    >>> family_with("llama", windows=True, experts=False), family_with("qwen3", experts=True)
    ('gemma3', 'llama')
    """
    candidates = (architecture, "llama", "gemma3", "gpt-oss", *FAMILIES)
    fitting = (name for name in candidates if all(on in may_have(name)[what] for what, on in switches.items()))
    return next(fitting, architecture)
