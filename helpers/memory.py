"""The closed form: what llama.cpp reserves for a model at given settings, by arithmetic one can redo on paper."""

import bisect
import functools
import html
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from . import architectures, formats, mixes, planner, units

PARTS = ("weights", "vision", "kv", "compute", "output", "overhead", "repacked")
# Measured as resident memory of a llama-cpp-python process: see "overhead" in `overhead_bytes`.
PROCESS_BYTES = 43 * units.MB
VOCABULARY_BYTES_PER_TOKEN = {"bpe": 370, "spm": 165}
# Resident memory of the process that `runner` starts, by `tests/bench_resident.py`: Python, numpy, llama_cpp.
LIBRARY_FILE_BYTES = 23 * units.MB
PYTHON_ANONYMOUS_BYTES = 23 * units.MB
FIRST_ANSWER_BYTES = 2_500_000  # stacks of the threads, the graph, the sampler: touched by the first token
CANDIDATE_BYTES = 12  # of each word of the vocabulary, among which the sampler chooses (llama_token_data)
GPU_DRIVER_BYTES = 330 * units.MIB
GPU_DRIVER_BAND = "153 to 456 MiB published for NVIDIA and AMD cards, none for Apple's"


@dataclass(frozen=True)
class Settings:
    """How llama.cpp is asked to run; the names and defaults are llama-server's.

    `n_ctx`, `n_batch`, `n_ubatch`, `n_outputs_max` in tokens (0: the model's, or `n_batch`); `n_parallel` slots;
    `repack` is llama.cpp's `use_extra_bufts`: False, or the kind of CPU ("avx2", "avx512", "amx", "arm").
    Raises `ValueError` naming the value that cannot be.
    """

    n_ctx: int = 4096
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: bool = True
    n_batch: int = 2048
    n_ubatch: int = 512
    n_parallel: int = 1
    kv_unified: bool = False
    swa_full: bool = False
    n_outputs_max: int = 0
    repack: bool | str = False
    n_gpu_layers: int = 0
    n_gpus: int = 1
    tensor_split: tuple | None = None

    def __post_init__(self):
        ranges = {
            "n_ctx": (0, 2**27),
            "n_batch": (1, 2**20),
            "n_ubatch": (1, 2**20),
            "n_parallel": (1, 256),
            "n_outputs_max": (0, 2**20),
            "n_gpu_layers": (-1, 2**16),
            "n_gpus": (1, 16),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from {least} to {most:,}.")
        for name in ("cache_type_k", "cache_type_v"):
            if getattr(self, name) not in formats.CACHE_TYPES:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(formats.CACHE_TYPES)}.")
        if not self.flash_attn and formats.block_type(self.cache_type_v).block_length > 1:
            raise ValueError(
                f"cache_type_v is {self.cache_type_v!r} without flash attention; llama.cpp refuses that. "
                "Set flash_attn=True or keep cache_type_v at f16."
            )
        if self.repack not in (False, True, "", "avx2", "avx512", "amx", "arm"):
            raise ValueError(f"repack is {self.repack!r}; choose False, 'avx2', 'avx512', 'amx' or 'arm'.")
        if self.tensor_split is not None:
            object.__setattr__(self, "tensor_split", _shares(self.tensor_split, self.n_gpus))

    def resolve(self, spec):
        """What llama.cpp makes of these settings for one model: a `Resolved`. Source: llama-context.cpp."""
        _check_heads(self, spec)
        n_ctx = units.pad(self.n_ctx or spec.n_ctx_train, 256)
        asked = self.n_ctx or spec.n_ctx_train
        n_batch = min(self.n_batch, asked)
        n_ubatch = min(n_batch, self.n_ubatch)
        n_outputs_max = self.n_outputs_max or n_batch
        if n_outputs_max < self.n_parallel:
            raise ValueError(
                f"{n_outputs_max} outputs cannot serve {self.n_parallel} slots, which need one each. Set n_outputs_max "
                f"to 0 or at least {self.n_parallel}, and n_batch and n_ctx to at least {self.n_parallel}."
            )
        if self.kv_unified:
            n_ctx_seq, n_stream = n_ctx, 1
        else:
            n_ctx_seq, n_stream = units.pad(n_ctx // self.n_parallel, 256), self.n_parallel
            n_ctx = n_ctx_seq * n_stream
        n_outputs = min(n_ctx, n_ubatch, n_outputs_max)
        n_tokens = units.pad(min(n_ctx, n_ubatch), self.n_parallel)
        return Resolved(n_ctx, n_ctx_seq, n_stream, n_tokens, n_outputs, self._window_cells(spec, n_ctx_seq, n_ubatch))

    def _window_cells(self, spec, n_ctx_seq, n_ubatch):
        if not (spec.n_swa and spec.swa_pattern):
            return 0
        if self.swa_full:
            return n_ctx_seq
        windows = spec.n_swa * (self.n_parallel if self.kv_unified else 1) + n_ubatch
        return min(n_ctx_seq, units.pad(min(n_ctx_seq, windows), 256))


@dataclass(frozen=True)
class Resolved:
    """Settings after llama.cpp's own rounding; all in tokens (or cells: one cell holds one token)."""

    n_ctx: int
    n_ctx_seq: int
    n_stream: int
    n_tokens: int
    n_outputs: int
    window_cells: int


def _shares(tensor_split, n_gpus):
    """A split as a tuple; one share per GPU, as it decides nothing for a single one it may have any length there."""
    try:
        shares = tuple(tensor_split)
        fine = bool(shares) and n_gpus in (1, len(shares)) and min(shares) >= 0 < sum(shares) < float("inf")
    except TypeError:
        fine = False
    if not fine:
        raise ValueError(
            f"tensor_split is {tensor_split!r}; give one share for each of the {n_gpus} GPUs, such as (3, 1) for two, "
            "none of them negative and not all 0."
        )
    return shares


def _check_heads(settings, spec):
    """Quantized caches need heads that are whole blocks, as llama.cpp demands."""
    for name, head in (("cache_type_k", spec.n_embd_head_k), ("cache_type_v", spec.n_embd_head_v)):
        block = formats.block_type(getattr(settings, name))
        if head % block.block_length:
            raise ValueError(
                f"{name} is {block.name.lower()}, which stores {block.block_length} values together; the heads of "
                f"{spec.name} have {head}. Use f16."
            )
    if spec.kv_lora_rank and settings.cache_type_k != settings.cache_type_v:
        raise ValueError(
            f"cache_type_k is {settings.cache_type_k!r} and cache_type_v {settings.cache_type_v!r}; {spec.name} stores "
            "keys and values in one (MLA), so they must be equal."
        )


@dataclass(frozen=True)
class Estimate:
    """What a model needs in memory, in bytes, and how we know it.

    `source` is "formula" or "engine". `by_device` holds the same parts per device when layers are offloaded: "cpu" and
    "gpu", or "gpu0", "gpu1", ... when there are several. `assumptions` says where the number may be off, and why.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    overhead_bytes: int
    source: str
    repacked_bytes: int = 0
    vision_bytes: int = 0
    assumptions: tuple[str, ...] = ()
    by_device: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    name: str = ""
    spec: architectures.ModelSpec | None = field(default=None, repr=False)
    quantization: object = field(default=None, repr=False)  # what `estimate` was given, so that others can vary it

    @property
    def total_bytes(self):
        """Sum of all parts, in bytes."""
        return sum(self.parts().values())

    @property
    def reserved_bytes(self):
        """What llama.cpp itself reserves: the total without the process around it."""
        return self.total_bytes - self.overhead_bytes

    def parts(self):
        """Part name -> bytes, in the order in which people read them."""
        return {part: getattr(self, f"{part}_bytes") for part in PARTS}

    def gpu_parts(self):
        """As `parts`, of all GPUs together; all 0 when nothing is offloaded."""
        gpus = [parts for device, parts in self.by_device.items() if device != "cpu"]
        return {part: sum(parts.get(part, 0) for parts in gpus) for part in PARTS}

    def __str__(self):
        lines = [f"{self.name}  [{self.source}]"]
        lines += [f"  {part:<10}{units.show(n, 2):>12}" for part, n in self.parts().items() if n]
        lines += [f"  {'total':<10}{units.show(self.total_bytes, 2):>12}"]
        return units.printable("\n".join([*lines, *(f"  note: {text}" for text in self.assumptions)]))

    def _repr_html_(self):
        return f"<pre>{html.escape(str(self))}</pre>"


def estimate(
    spec,
    quantization="Q4_K_M",
    n_ctx=4096,
    cache_type_k="f16",
    cache_type_v="f16",
    flash_attn=True,
    n_batch=2048,
    n_ubatch=512,
    n_parallel=1,
    kv_unified=False,
    swa_full=False,
    n_outputs_max=0,
    repack=False,
    n_gpu_layers=0,
    n_gpus=1,
    tensor_split=None,
):
    """Memory that a model needs at these settings, in bytes, by the closed form.

    Parameters
    ----------
    spec : ModelSpec
    quantization : str, mapping of tensor names to types, or int
        A name such as "Q4_K_M"; the types of a real file; or the bytes of its tensors when they are known.
    n_ctx, n_batch, n_ubatch, n_outputs_max : int
        Tokens, as in llama.cpp.
    cache_type_k, cache_type_v : str
        "f16", "q8_0", "q4_0", ...
    repack : bool or str
        See `Settings`.
    n_gpu_layers : int
        Layers on the GPU; the output matrix counts as one more. -1 means all.
    n_gpus : int
        GPUs that share those layers.
    tensor_split : sequence of numbers, optional
        The share of each GPU, such as (3, 1); without it they share equally. (Left alone, llama.cpp takes the free
        memory of each card as its share.)

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        For a shape or setting that cannot be, naming the value.

    Notes
    -----
    weights + KV cache + compute + output + overhead. *When it misleads*: memory-mapped weights can be dropped by the
    system and read again, so "too large" may mean "slow"; a conversation that is shorter than `n_ctx` touches less.

    Source: llama.cpp, checked against its own dry run by `tests/bench_memory.py`.

    Examples
    --------
    >>> from helpers import models
    >>> needs = estimate(models.get("llama-3.1-8b"), "Q4_K_M", n_ctx=8192)
    >>> needs.kv_bytes == 8192 * 32 * (1024 + 1024) * 2      # tokens x layers x (keys + values) x 2 bytes
    True
    """
    settings = Settings(
        n_ctx, cache_type_k, cache_type_v, flash_attn, n_batch, n_ubatch, n_parallel, kv_unified, swa_full,
        n_outputs_max, repack, n_gpu_layers, n_gpus, tensor_split,
    )  # fmt: skip
    resolved = settings.resolve(spec)
    weights, notes = _weights(spec, quantization, bool(settings.repack))
    if settings.n_gpu_layers:
        devices = _by_device(spec, quantization, settings, resolved, weights)
        notes = (*notes, *_gpu_notes(settings))
    else:
        devices = {"cpu": _on_cpu(spec, quantization, settings, resolved, weights)}
    total = {part: sum(device[part] for device in devices.values()) for part in PARTS}
    return Estimate(
        **{f"{part}_bytes": n for part, n in total.items()},
        source="formula",
        assumptions=(*notes, *_assumptions(spec, settings)),
        by_device=devices if settings.n_gpu_layers else {},
        settings=asdict(settings),
        name=f"{spec.title or spec.name}, {quantization_name(quantization)}, {resolved.n_ctx:,} tokens",
        spec=spec,
        quantization=quantization,
    )


def grid(specs, quantizations, contexts, cache_types=("f16",), **settings):
    """Total need in bytes of many choices at once: (model name, quantization, n_ctx, cache type) -> bytes.

    The same numbers as `estimate(...).total_bytes` on the processor alone, without the explanations: everything but the
    weights is worked out once for all quantizations. Choices that cannot be (a cache type that the heads do not allow)
    are left out.

    >>> from helpers import models
    >>> spec = models.get("smollm2-135m")
    >>> grid([spec], ["Q8_0"], [2048])["smollm2-135m", "Q8_0", 2048, "f16"] == estimate(spec, "Q8_0", 2048).total_bytes
    True
    """
    totals = {}
    for spec in specs:
        weights = {
            name: (weights_bytes(spec, name), repacked_bytes(spec, name, settings.get("repack")))
            for name in quantizations
        }
        for cache in cache_types:
            for n_ctx in contexts:
                try:
                    chosen = Settings(n_ctx, cache, cache, **settings)
                    parts = _on_cpu(spec, 1, chosen, chosen.resolve(spec), 0)
                except ValueError:
                    continue
                rest = sum(parts.values())
                for name, (n_bytes, repacked) in weights.items():
                    totals[spec.name, name, n_ctx, cache] = rest + n_bytes + repacked
    return totals


def quantization_name(quantization):
    """How a quantization is called when it may be a name, a mapping or a number of bytes.

    >>> quantization_name("q4_k_m"), quantization_name(1000)
    ('Q4_K_M', 'a file')
    """
    return quantization.upper() if isinstance(quantization, str) else "a file"


def _on_cpu(spec, quantization, settings, resolved, weights):
    return {
        "weights": weights,
        "vision": vision_bytes(spec),
        "kv": kv_cache_bytes(spec, settings),
        "compute": planner.plan(spec, settings, resolved).n_bytes,
        "output": output_bytes(spec, settings),
        "overhead": overhead_bytes(spec),
        "repacked": repacked_bytes(spec, quantization, settings.repack),
    }


def _weights(spec, quantization, repack=False):
    if isinstance(quantization, int) and not isinstance(quantization, bool):
        if quantization <= 0:
            raise ValueError(f"The weights cannot take {quantization} bytes.")
        architectures.check_numbers(spec)
        return quantization, ("Only the bytes of the weights are known: copies by repacking are not counted.",) * repack
    return weights_bytes(spec, quantization), ()


def weights_bytes(spec, quantization):
    """Bytes of all tensors of a model at a quantization.

    Formula: the sum over tensors of weights / block length x bytes per block.
    *When it misleads*: the file is larger by its header (vocabulary, a few MB), and publishers may override types.

    >>> from helpers import models
    >>> norms_and_rotary = 65 * 4096 + 64                    # these stay at 4 bytes each
    >>> weights_bytes(models.get("llama-3.1-8b"), "F16") == 2 * 8_030_261_312 + 2 * norms_and_rotary
    True
    """
    if isinstance(quantization, Mapping):
        return _sum_bytes(spec, quantization)
    return _named_weights_bytes(spec, formats.quantization(quantization).name)


@functools.lru_cache(maxsize=4096)
def _named_weights_bytes(spec, quantization):
    return _sum_bytes(spec, mixes.tensor_types(spec, quantization))


def _sum_bytes(spec, types):
    tensors = architectures.tensors(spec)
    missing = [tensor.name for tensor in tensors if tensor.name not in types]
    if missing:
        raise ValueError(f"{spec.name}: no type is given for {len(missing)} of its tensors, such as {missing[0]}.")
    return sum(formats.tensor_bytes(types[tensor.name], tensor.shape) for tensor in tensors)


# How many bytes a vocabulary takes in a file (its words, their kinds, and scores or merges), and how many words it has.
VOCABULARIES = {
    # read from the vocabularies that llama.cpp carries for its tests (models/ggml-vocab-*.gguf)
    "deepseek-coder": (1_155_119, 32_256),
    "deepseek-llm": (3_969_313, 102_400),
    "falcon": (2_287_069, 65_024),
    "gpt-2": (1_766_262, 50_257),
    "gpt-neox": (1_770_801, 50_432),
    "llama-2": (723_058, 32_000),
    "llama-3": (7_817_421, 128_256),
    "phi-3": (724_759, 32_064),
    "qwen2": (5_927_627, 151_936),
    # read from the two packaged models
    "gemma-3": (6_509_809, 262_144),
    "smollm2": (1_767_810, 49_152),
    # one published file each, without its tensors and settings: gemma-2-2b-it Q2_K, gpt-oss-20b MXFP4,
    # mistral-7b-instruct-v0.1 Q4_0, yi:9b Q4_0 (tests/published/file_sizes.csv)
    "gemma": (6_026_231, 256_000),
    "gpt-oss": (12_977_294, 201_088),
    "mistral": (714_570, 32_000),
    "yi": (1_474_570, 64_000),
}
FILE_BYTES_PER_TOKEN = {"bpe": 40, "spm": 23}  # of a vocabulary that is not in the table: 34 to 61, and 21 to 25
PADDING_TOKEN_BYTES = 23  # "[PAD151936]" with its length and kind
SETTINGS_BYTES = 3_000  # name, shape, special tokens, chat template: 700 to 6,000 in the files compared


def header_bytes(spec):
    """Bytes before the first tensor of a GGUF file: settings, vocabulary, and a description of each tensor.

    Formula: 24 + for each tensor 24 + length of its name + 8 x dimensions + vocabulary + 3,000 of settings, rounded up
    to 32. The vocabulary comes from `VOCABULARIES`, or is 40 (byte pairs) or 23 bytes (SentencePiece) a token.
    *When it misleads*: chat templates differ by a few KB; older converters stored scores for byte pairs as well, or
    merges for SentencePiece (1 to 9 MB more).

    Source: the GGUF specification; compared with published files by `tests/bench_published.py`.

    >>> from helpers import models
    >>> tinyllama = models.get("tinyllama-1.1b")              # 201 tensors, names of 4,226 letters, 2 dimensions or 1
    >>> descriptions = 201 * 24 + 4_226 + 8 * (156 * 2 + 45)
    >>> header_bytes(tinyllama) == units.pad(24 + descriptions + 723_058 + 3_000, 32)
    True
    """
    return units.pad(24 + _descriptions_bytes(spec) + vocabulary_file_bytes(spec) + SETTINGS_BYTES, 32)


@functools.lru_cache(maxsize=1024)
def _descriptions_bytes(spec):
    return sum(24 + len(tensor.name) + 8 * len(tensor.shape) for tensor in architectures.tensors(spec))


def vocabulary_file_bytes(spec):
    """Bytes that the vocabulary takes in a file.

    >>> from helpers import models
    >>> vocabulary_file_bytes(models.get("qwen2.5-7b")) == 5_927_627 + 23 * 128     # 128 words of padding
    True
    """
    n_bytes, n_tokens = VOCABULARIES.get(spec.vocabulary, (0, spec.n_vocab + 1))
    if spec.n_vocab < n_tokens:  # another vocabulary than the table's
        return FILE_BYTES_PER_TOKEN.get(spec.tokenizer, FILE_BYTES_PER_TOKEN["bpe"]) * spec.n_vocab
    return n_bytes + PADDING_TOKEN_BYTES * (spec.n_vocab - n_tokens)


def file_bytes(spec, quantization):
    """Bytes of the GGUF file of a model at a quantization: header + tensors, without a vision part's own file.

    *When it misleads*: as `header_bytes` and `weights_bytes`.

    >>> from helpers import models
    >>> round(file_bytes(models.get("llama-3.1-8b"), "Q4_K_M") / 4_920_739_232, 5)     # a published file
    1.0
    """
    return header_bytes(spec) + _weights(spec, quantization)[0]


def vision_bytes(spec):
    """Bytes of the part that sees images: a file of its own (mmproj), usually kept at 16 bits.

    >>> from helpers import models
    >>> vision_bytes(models.get("qwen2.5-vl-7b")) == 2 * 676_550_144
    True
    """
    return units.bytes_from_bits(spec.n_params_vision, 16)


def kv_cache_bytes(spec, settings):
    """Bytes of the key-value cache, which llama.cpp reserves whole at load.

    Formula, per layer: cells x KV heads x (head size of K x bytes of K + head size of V x bytes of V); a sliding-window
    layer has fewer cells, and MLA stores no values of their own. Exact for all families here.
    Source: llama-kv-cache.cpp.

    >>> from helpers import models
    >>> kv_cache_bytes(models.get("tinyllama-1.1b"), Settings(n_ctx=2048)) == 2048 * 22 * 4 * (64 + 64) * 2
    True
    """
    resolved = settings.resolve(spec)
    equal = {}
    for layer in range(spec.n_layer):
        equal.setdefault((spec.is_windowed(layer), spec.kv_heads(layer)), []).append(layer)
    return sum(len(layers) * _kv_layer_bytes(spec, settings, resolved, layers[0]) for layers in equal.values())


def _kv_layer_bytes(spec, settings, resolved, layer):
    cells = resolved.window_cells if spec.is_windowed(layer) else resolved.n_ctx_seq
    heads = spec.kv_heads(layer)
    row = formats.row_bytes(settings.cache_type_k, heads * spec.n_embd_head_k)
    if spec.kv_lora_rank:  # MLA: the values are a part of the keys
        return row * cells * resolved.n_stream
    if not settings.flash_attn:  # values are stored transposed, as wide as in the widest layer
        heads = spec.most_kv_heads
    row += formats.row_bytes(settings.cache_type_v, heads * spec.n_embd_head_v)
    return row * cells * resolved.n_stream


def compute_stages(spec, settings):
    """Bytes that each stage of the calculation reaches in the compute buffer, which is as large as the largest.

    The graph is planned for the worst case: `n_ubatch` tokens at once with a full cache. Stages: "inputs", "attention",
    "feed-forward", "logits" (one number per vocabulary entry and output token). Layers reuse the same room, so their
    number does not matter.

    *When it misleads*: recurrent layers are not covered; `Estimate.assumptions` says when.
    Source: `planner`, which repeats llama.cpp's planning; `tests/bench_memory.py` prints the error per family.

    >>> from helpers import models
    >>> stages = compute_stages(models.get("llama-3.1-8b"), Settings(n_ctx=8192))
    >>> stages["logits"] == 4 * 512 * (128_256 + 2 * 4096 + 1)    # vocabulary, two tensors of width 4096, token numbers
    True
    """
    return dict(_plan(spec, settings).stages)


def compute_pieces(spec, settings):
    """What is in the compute buffer at its fullest moment: named tensors and gaps, from its start to its end.

    Their bytes add up to the buffer. A gap is room that earlier tensors left and that was too small for later ones.

    >>> from helpers import models
    >>> pieces = compute_pieces(models.get("llama-3.1-8b"), Settings(n_ctx=8192))
    >>> [(piece.name, piece.rows, piece.width) for piece in pieces if piece.name != "gap"]
    [('input embeddings', 512, 4096), ('residual', 512, 4096), ('logits', 512, 128256)]
    """
    return _plan(spec, settings).pieces


def _plan(spec, settings):
    return planner.plan(spec, settings, settings.resolve(spec))


def output_bytes(spec, settings):
    """Bytes of the buffer that hands the logits out: 4 bytes per vocabulary entry and slot.

    >>> from helpers import models
    >>> output_bytes(models.get("smollm2-135m"), Settings()) == 4 * 49_152
    True
    """
    return 4 * spec.n_vocab * settings.n_parallel


def overhead_bytes(spec):
    """Bytes of the process around the model: Python with llama.cpp, and the vocabulary as a lookup structure.

    Formula: 43 MB + vocabulary x 370 bytes (byte-pair) or 165 bytes (SentencePiece).
    *When it misleads*: llama.cpp's own programs need no Python; notebooks and browsers come on top.
    Source: resident memory measured here on two models (17 MB for 49k byte-pair tokens, 43 MB for 262k SentencePiece).

    >>> from helpers import models
    >>> overhead_bytes(models.get("smollm2-135m"))
    61186240
    """
    return PROCESS_BYTES + _vocabulary_bytes_per_token(spec) * spec.n_vocab


def _vocabulary_bytes_per_token(spec):
    return VOCABULARY_BYTES_PER_TOKEN.get(spec.tokenizer, VOCABULARY_BYTES_PER_TOKEN["bpe"])


# Extra bytes per block that AMX adds to the packed form (ggml-cpu/amx/mmq.cpp); the row must be whole blocks.
AMX_EXTRA = {"Q4_0": 0, "Q4_1": 0, "Q8_0": 4, "Q4_K": 4, "Q5_K": 4, "Q6_K": 0, "IQ4_XS": 2, "F16": 0}
REPACKED = {  # ggml-cpu/repack.cpp, for blocks of eight rows (four on some ARM types)
    "avx2": frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
    "avx512": frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"}),
    "arm": frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0"}),
}


def repacked_bytes(spec, quantization, repack):
    """Bytes of the second copy that a repacking CPU build keeps of many weights (0 for `repack=False`).

    Weights used in matrix products are stored again in the order the processor likes; a tied embedding, which is also
    read row by row, always stays in its first form too. With memory mapping the first copy are file pages that the
    system may drop; until then both count.

    Source: llama.cpp `ggml-cpu/repack.cpp`, `ggml-cpu/amx/`; compared with a real load in `tests/test_memory.py`.

    >>> from helpers import models
    >>> repacked_bytes(models.get("llama-3.1-8b"), "Q4_K_M", False)
    0
    """
    if not repack or isinstance(quantization, int):
        return 0
    kind = "avx2" if repack is True else repack
    types = quantization if isinstance(quantization, Mapping) else mixes.tensor_types(spec, quantization)
    return sum(_repacked_tensor_bytes(t, types[t.name], kind, spec.tied) for t in architectures.tensors(spec))


def _repacked_tensor_bytes(tensor, type_name, kind, tied):
    if len(tensor.shape) < 2 or (tensor.name == "token_embd.weight" and not tied):
        return 0
    width, rows, *experts = tensor.shape
    if experts and "_exps." not in tensor.name:  # MLA's matrices for all heads in one are used as they are
        return 0
    n_bytes = formats.tensor_bytes(type_name, tensor.shape)
    if kind == "amx" and not experts and type_name in AMX_EXTRA and rows % 32 == 0 and width % 16 == 0:
        return n_bytes + AMX_EXTRA[type_name] * (width // formats.block_type(type_name).block_length) * rows
    table = REPACKED["avx512" if kind == "amx" else kind]
    return n_bytes if type_name in table and rows % 8 == 0 else 0


@dataclass(frozen=True)
class Resident:
    """Bytes that a model's process really holds in RAM, by the closed form.

    `file` are pages of files (mapped weights, libraries), which the system may drop and read again; `anonymous` are
    all others. Both map a part's name to its bytes.
    """

    file: dict
    anonymous: dict

    @property
    def file_bytes(self):
        return sum(self.file.values())

    @property
    def anonymous_bytes(self):
        return sum(self.anonymous.values())

    @property
    def total_bytes(self):
        return self.file_bytes + self.anonymous_bytes

    def __str__(self):
        rows = [(f"file: {part}", n) for part, n in self.file.items()]
        rows += [(f"anonymous: {part}", n) for part, n in self.anonymous.items()]
        return "\n".join(f"{name:<24}{units.show(n):>12}" for name, n in [*rows, ("total", self.total_bytes)] if n)


def resident(estimate, n_prompt=0, n_answer=0, use_mmap=True):
    """Bytes of RAM that the process of a loaded model really holds: a `Resident`.

    Parameters
    ----------
    estimate : Estimate
        From `estimate`, for the processor alone.
    n_prompt, n_answer : int
        Tokens of the longest question so far, and of its answer; 0 and 0: loaded, and nothing asked yet.
    use_mmap : bool
        Weights are mapped (file pages), or copied (anonymous).

    Raises
    ------
    ValueError
        For layers on a GPU, a shape that is not known, or more tokens than the context holds.

    Notes
    -----
    Reserved is not resident: a page counts once it was touched. Weights are touched while loading, and so is the whole
    cache, which llama.cpp fills with zeros. The compute buffer is planned for `n_ubatch` tokens and a full cache;
    touched is about what the same plan needs for the tokens that came at once and the cells in use (multiples of 256).

    file = mapped weights + libraries. anonymous = Python + vocabulary + cache + output + repacked copies + compute in
    use + work (the inputs of a matrix product, quantized: 34/32 bytes x tokens at once x the widest of them) + what the
    first answer takes (2.5 MB + 12 bytes x vocabulary).

    *When it misleads*: memory that is short shrinks the file pages. Processes that map the same file share its pages,
    and each counts them. Measured on Linux; without flash attention, or with an `n_ubatch` just above the prompt's
    length, the compute in use is up to a fifth larger. The constants are those of Python with llama-cpp-python.

    Source: measured by `tests/bench_resident.py`; the constants come from one model, the errors from all others.

    Examples
    --------
    >>> from helpers import models
    >>> needs = estimate(models.get("tinyllama-1.1b"), "Q4_0", n_ctx=2048)
    >>> resident(needs).file == {"weights": needs.weights_bytes, "libraries": 23_000_000}
    True
    >>> resident(needs).anonymous["cache"] == needs.kv_bytes            # nothing was asked, and the cache is there
    True
    """
    spec = estimate.spec
    if spec is None or estimate.by_device:
        why = "layers on a GPU" if estimate.by_device else "a shape that no formula here knows"
        raise ValueError(f"{estimate.name} has {why}; what becomes resident is known for the processor alone.")
    settings = Settings(**estimate.settings)
    n_tokens = n_prompt + n_answer
    n_ctx = settings.resolve(spec).n_ctx_seq
    if n_prompt < 0 or n_answer < 0 or n_tokens > n_ctx:
        raise ValueError(f"{n_prompt} + {n_answer} tokens do not go into a context of {n_ctx}. Give fewer.")
    copied = 0 if use_mmap else estimate.weights_bytes - _moved_bytes(spec, estimate.quantization, settings.repack)
    at_once = min(n_prompt or n_answer, settings.n_ubatch, settings.n_batch)
    return Resident(
        {"weights": estimate.weights_bytes if use_mmap else 0, "libraries": LIBRARY_FILE_BYTES},
        {
            "weights": copied,
            "python": PYTHON_ANONYMOUS_BYTES,
            "vocabulary": _vocabulary_bytes_per_token(spec) * spec.n_vocab,
            "cache": estimate.kv_bytes,
            "output": estimate.output_bytes,
            "vision": estimate.vision_bytes,
            "repacked": estimate.repacked_bytes,
            "compute": _compute_in_use(spec, settings, at_once, n_tokens) if n_tokens else 0,
            "first answer": FIRST_ANSWER_BYTES + CANDIDATE_BYTES * spec.n_vocab if n_tokens else 0,
        },
    )


def _compute_in_use(spec, settings, at_once, n_tokens):
    """Bytes of the plan for `at_once` tokens with `n_tokens` in the cache, and of the work beside the buffer."""
    resolved = settings.resolve(spec)
    cells = min(units.pad(n_tokens, 256), resolved.n_ctx_seq)
    now = replace(
        settings, n_ctx=cells, n_batch=at_once, n_ubatch=at_once, n_parallel=1, kv_unified=False, n_outputs_max=1
    )
    planned = replace(now.resolve(spec), window_cells=min(cells, resolved.window_cells))
    widest = max(
        spec.n_embd, spec.n_ff, spec.n_head * spec.n_embd_head_k, spec.n_expert_used * (spec.n_ff_exp or spec.n_ff)
    )
    return planner.plan(spec, now, planned).n_bytes + formats.row_bytes("Q8_0", units.pad(widest, 32)) * at_once


def _moved_bytes(spec, quantization, repack):
    """Bytes of the weights whose first form a repacking build does not keep when the file is not mapped."""
    if not repack or isinstance(quantization, int):
        return 0
    kind = "avx2" if repack is True else repack
    types = quantization if isinstance(quantization, Mapping) else mixes.tensor_types(spec, quantization)
    return sum(
        formats.tensor_bytes(types[tensor.name], tensor.shape)
        for tensor in architectures.tensors(spec)
        if tensor.name != "token_embd.weight" and _repacked_tensor_bytes(tensor, types[tensor.name], kind, spec.tied)
    )


def _gpu_notes(settings):
    yield "No GPU was present when this was written; weights and cache agree with loads that others published."
    yield "A GPU's compute buffer is the CPU's formula: within 4 % of 25 published ones, 17 % too small for another."
    yield f"The driver's own share of a card is taken as {units.show(GPU_DRIVER_BYTES, 0)} ({GPU_DRIVER_BAND})."
    if settings.n_gpus > 1 and settings.tensor_split is None:
        yield "The GPUs share equally; left alone, llama.cpp gives each as much as it has free memory."


def layer_devices(spec, settings):
    """The device of each layer, and at the end that of the output matrix: "cpu", "gpu", or "gpu0", "gpu1", ...

    The last `n_gpu_layers` are offloaded, the output matrix counted as one more. Of n offloaded layers, number i goes
    to the first GPU up to which the shares add up to more than i / n. Source: llama.cpp `llama-model.cpp`.

    >>> from helpers import models
    >>> devices = layer_devices(models.get("llama-3.1-8b"), Settings(n_gpu_layers=20, n_gpus=2, tensor_split=(3, 1)))
    >>> [devices.count(device) for device in ("cpu", "gpu0", "gpu1")], devices[-1]
    ([13, 15, 5], 'gpu1')
    """
    n_layers = spec.n_layer + 1
    n_offloaded = n_layers if settings.n_gpu_layers < 0 else min(settings.n_gpu_layers, n_layers)
    names = _gpu_names(settings)
    if len(names) == 1:
        return ["cpu"] * (n_layers - n_offloaded) + names * n_offloaded
    ends = list(itertools.accumulate(settings.tensor_split or [1] * len(names)))
    share = [bisect.bisect_right(ends, layer * ends[-1] / n_offloaded) for layer in range(n_offloaded)]
    return ["cpu"] * (n_layers - n_offloaded) + [names[gpu] for gpu in share]


def _gpu_names(settings):
    return ["gpu"] if settings.n_gpus == 1 else [f"gpu{number}" for number in range(settings.n_gpus)]


def _by_device(spec, quantization, settings, resolved, weights):
    """Parts per device. The input embedding stays on the host; a GPU that was given no layer still costs its driver."""
    devices = layer_devices(spec, settings)
    weights_on = _device_weights(spec, quantization, devices, weights)
    kv_on = kv_by_device(spec, settings)
    compute_on = _device_compute(spec, settings, resolved, devices)
    names = _gpu_names(settings)
    rest = {"cpu": {"output": output_bytes(spec, settings), "overhead": overhead_bytes(spec)}}
    rest |= {name: {"overhead": GPU_DRIVER_BYTES} for name in names}
    rest[names[0]]["vision"] = vision_bytes(spec)
    return {
        name: {
            **dict.fromkeys(PARTS, 0),
            "weights": weights_on[name],
            "kv": kv_on.get(name, 0),
            "compute": compute_on[name],
            **rest[name],
        }
        for name in ("cpu", *names)
    }


def _device_weights(spec, quantization, devices, weights):
    """Device -> bytes. With a tied embedding the sum is larger than `weights`: it lies on the host and with the output.

    CUDA pads rows that are no multiple of 512 weights, under 0.1 % of a model, which is not counted.
    """
    found = Counter()
    if isinstance(quantization, int):  # only the sum is known: layers are taken as equal
        for device, n_layers in Counter(devices[:-1]).items():
            found[device] = round(weights * n_layers / spec.n_layer)
        found["cpu"] = weights - sum(n_bytes for device, n_bytes in found.items() if device != "cpu")
        return found
    if isinstance(quantization, Mapping):
        at_input, layers, at_output, tied = _place_bytes(spec, quantization)
    else:
        at_input, layers, at_output, tied = _named_place_bytes(spec, formats.quantization(quantization).name)
    for device, n_bytes in zip(devices, (*layers, at_output), strict=True):
        found[device] += n_bytes
    found["cpu"] += at_input
    if devices[-1] != "cpu":
        found[devices[-1]] += tied
    return found


@functools.lru_cache(maxsize=4096)
def _named_place_bytes(spec, quantization):
    return _place_bytes(spec, mixes.tensor_types(spec, quantization))


def _place_bytes(spec, types):
    """Bytes of the input tensors, of each layer, of the output tensors, and of the copy of a tied embedding there."""
    at_input = at_output = tied = 0
    layers = [0] * spec.n_layer
    for tensor in architectures.tensors(spec):
        n_bytes = formats.tensor_bytes(types[tensor.name], tensor.shape)
        if tensor.name.startswith("blk."):
            layers[int(tensor.name.split(".")[1])] += n_bytes
        elif tensor.name in ("token_embd.weight", "position_embd.weight"):
            at_input += n_bytes
            tied += n_bytes if spec.tied and tensor.name == "token_embd.weight" else 0
        else:
            at_output += n_bytes
    return at_input, tuple(layers), at_output, tied


def kv_by_device(spec, settings):
    """Bytes of the key-value cache on each device that has some: every layer's cache lies where the layer does.

    >>> from helpers import models
    >>> kv_by_device(models.get("llama-3.1-8b"), Settings(n_ctx=8192, n_gpu_layers=-1, n_gpus=2))
    {'gpu0': 570425344, 'gpu1': 503316480}
    """
    resolved, found, sizes = settings.resolve(spec), Counter(), {}
    for layer, device in enumerate(layer_devices(spec, settings)[:-1]):
        kind = spec.is_windowed(layer), spec.kv_heads(layer)
        if kind not in sizes:
            sizes[kind] = _kv_layer_bytes(spec, settings, resolved, layer)
        found[device] += sizes[kind]
    return dict(found)


def _device_compute(spec, settings, resolved, devices):
    """Device -> bytes. Only the device of the output matrix reaches the logits stage.

    A host that has no layers left prepares the inputs: embeddings and mask. When several GPUs hold all layers,
    llama.cpp works on four batches at once, each with inputs of its own (pipeline parallelism, llama-context.cpp).
    """
    plan = planner.plan(spec, settings, resolved)
    before_output = max(n_bytes for stage, n_bytes in plan.stages.items() if stage != "logits")
    embeddings = 4 * resolved.n_tokens * spec.n_embd
    mask = (2 if settings.flash_attn else 4) * resolved.n_tokens * (resolved.n_ctx_seq + resolved.window_cells)
    copies = 4 if settings.n_gpus > 1 and "cpu" not in devices else 1
    found = Counter(cpu=2 * embeddings + copies * mask)
    for device in set(devices):
        found[device] = plan.n_bytes if device == devices[-1] else before_output
        found[device] += 0 if device == "cpu" else (copies - 1) * (embeddings + mask)
    return found


def _assumptions(spec, settings):
    if spec.architecture not in architectures.FAMILIES:
        yield f"The family {spec.architecture!r} is not modelled: cache and compute are counted as plain attention."
    if spec.notes:
        yield spec.notes  # of a file: what its header says that a shape cannot hold
    if settings.n_ctx > spec.n_ctx_train:
        name = spec.title or spec.name
        yield f"{name} was trained for {spec.n_ctx_train:,} tokens; beyond that its answers get worse."
    if spec.tokenizer not in VOCABULARY_BYTES_PER_TOKEN:
        yield f"Tokenizer {spec.tokenizer!r} is unknown; its memory is counted as byte-pair."
    if spec.n_params_vision:
        size = units.show(vision_bytes(spec))
        yield f"Includes {size} for the part that sees images (the mmproj file); without it the model is text only."
    if settings.repack is True:
        yield "Repacking is counted for a laptop processor with AVX2."


def arithmetic(spec, quantization, settings):
    """The formulas with the numbers filled in: a list of (part, text, bytes).

    >>> from helpers import models
    >>> arithmetic(models.get("tinyllama-1.1b"), "Q8_0", Settings(n_ctx=2048))[1][1]
    '2,048 cells x 22 layers x 4 KV heads x (64 x 2 B + 64 x 2 B)'
    """
    resolved = settings.resolve(spec)
    rows = [
        ("weights", *_weights_text(spec, quantization)),
        ("kv", _kv_text(spec, settings, resolved), kv_cache_bytes(spec, settings)),
        ("compute", *_compute_text(spec, settings, resolved)),
        ("output", f"4 B x {spec.n_vocab:,} vocabulary x {settings.n_parallel} slots", output_bytes(spec, settings)),
        (
            "overhead",
            f"43 MB process + {spec.n_vocab:,} tokens x {_vocabulary_bytes_per_token(spec)} B",
            overhead_bytes(spec),
        ),
    ]
    if spec.n_params_vision:
        rows.insert(1, ("vision", f"{spec.n_params_vision:,} weights x 16 bits / 8", vision_bytes(spec)))
    if settings.repack and not isinstance(quantization, int):
        text = "the tensors that the processor wants in another order, stored once more"
        rows.append(("repacked", text, repacked_bytes(spec, quantization, settings.repack)))
    return rows


def _weights_text(spec, quantization):
    n_bytes, _ = _weights(spec, quantization)
    bits = units.bits_per_weight(n_bytes, spec.n_params)
    return f"{spec.n_params:,} weights x {bits:.3f} bits / 8 (the mix of tensor types, added up)", n_bytes


def _kv_text(spec, settings, resolved):
    k, v = (formats.block_type(kind) for kind in (settings.cache_type_k, settings.cache_type_v))
    heads = "/".join(map(str, sorted({spec.kv_heads(layer) for layer in range(spec.n_layer)})))
    windowed = sum(spec.is_windowed(layer) for layer in range(spec.n_layer))
    slots = f" x {resolved.n_stream} slots" if resolved.n_stream > 1 else ""
    if spec.kv_lora_rank:
        per_token = f"{spec.n_embd_head_k} x {k.bytes_per_weight:g} B{slots} (keys and values in one, MLA)"
        return f"{resolved.n_ctx_seq:,} cells x {spec.n_layer} layers x {per_token}"
    per_token = (
        f"{heads} KV heads x ({spec.n_embd_head_k} x {k.bytes_per_weight:g} B"
        f" + {spec.n_embd_head_v} x {v.bytes_per_weight:g} B)"
    )
    full = f"{resolved.n_ctx_seq:,} cells x {spec.n_layer - windowed} layers"
    if windowed:
        return f"({full} + {resolved.window_cells:,} cells x {windowed} windowed layers) x {per_token}{slots}"
    return f"{full} x {per_token}{slots}"


def _compute_text(spec, settings, resolved):
    plan = planner.plan(spec, settings, resolved)
    products, small = {}, 0
    for piece in plan.pieces:
        if piece.name != "gap" and piece.n_bytes > plan.n_bytes / 500:
            products.setdefault((piece.number_bytes, piece.rows), []).append(f"{piece.width:,} {piece.name}")
        elif piece.name != "gap":
            small += piece.n_bytes
    terms = [f"{n_bytes} B x {rows} tokens x ({' + '.join(widths)})" for (n_bytes, rows), widths in products.items()]
    gaps = sum(piece.n_bytes for piece in plan.pieces if piece.name == "gap")
    rest = [f"{n:,} B {what}" for n, what in ((small, "small inputs"), (gaps, "gaps")) if n]
    stage = max(plan.stages, key=plan.stages.get)
    return f"fullest in the {stage} stage: {' + '.join([*terms, *rest])}", plan.n_bytes
