"""The formula of speed: from a model's shape and one calibration to seconds per token, prompt and answer apart.

A token costs five things: weights are read, weights are unpacked and multiplied, threads wait for each other after
every operation, a token of the vocabulary is chosen, and the cache is looked at. Memory sets the first, the cores the
others; a calibration says how fast both are on one machine, the table of kernels what types of weights cost beside
each other.
"""

import functools
import html
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from . import architectures, formats, memory, mixes, units

PICO, NANO, MICRO, MILLI = 1e-12, 1e-9, 1e-6, 1e-3
# What llama.cpp's CPU kernels need for one weight: in an answer (one token at once, weights in the core's own cache)
# and in a prompt (many tokens at once), in 10^-12 s, on 2 threads of a server processor with AVX-512, not repacked.
# Obtained once, with llama-cpp-python 0.3.36, from models with random weights, all matrices of one type, in turns with
# Q4_1: answers from one layer of 3 million weights (F32, F16 and BF16, too large for that cache: from six layers of 12
# million, less the time to read them), prompts from the six layers. No real model took part. A calibration scales all
# by one factor; processors whose kernels differ in kind (AVX2, NEON) have other proportions: the band is for that.
_KERNELS = """
    F32      29.0  12.7
    F16      43.0  12.1
    BF16     47.0  12.2
    Q8_0     44.1  11.9
    Q6_K     41.0   7.3
    Q5_K     45.8   7.0
    Q5_1     49.5  27.4
    Q5_0     47.5  13.4
    Q4_K     36.2   6.8
    Q4_1     45.5  23.5
    Q4_0     44.1  12.0
    IQ4_NL   48.1  13.0
    IQ4_XS   46.8   6.3
    Q3_K     45.3   7.2
    IQ3_S    90.3   6.8
    IQ3_XXS  68.0   6.4
    Q2_K     35.6   7.1
    IQ2_S    61.0   7.1
    IQ2_XS   66.5   7.2
    IQ2_XXS  61.4   6.5
    IQ1_M    60.0   7.5
    IQ1_S    57.2   6.4
    MXFP4    48.4  23.0
    TQ2_0    29.9   9.3
    TQ1_0    41.9  18.2
"""
KERNELS = {name: (float(answer), float(prompt)) for name, answer, prompt in map(str.split, _KERNELS.split("\n")[1:-1])}
# In a prompt each row also costs a start, for each token, so that a weight of a long row costs less. (Row for which the
# second column holds, share of it that goes with the weights; the rest goes with the rows): for blocks of 256, as in K-
# and I-quants, and for the others. Fitted to llama-2048 and llama-4096 of `tests/bench_speed.py --shapes`.
ROWS = {True: (955, 0.35), False: (683, 0.65)}
REFERENCE_THREADS = 2
OPERATION_SECONDS = 1.6 * MICRO  # one operation of an answer that does nothing: start it, wait for the other thread
OPERATIONS = 19  # of a layer of the llama family; each more for
MORE_OPERATIONS = {
    "qk_norm": 4,
    "post_norm": 4,
    "qkv_bias": 3,
    "sub_norm": 4,
    "norm_bias": 2,
    "ffn_bias": 2,
    "experts": 12,
}
SAMPLING_SECONDS = 2.5 * NANO  # per entry of the vocabulary: copy its score and look at it
# One head looks at one earlier token: answer, prompt; by numbers of key and value. Processors with AVX512-FP16 take 128
# numbers at a time, and what is left over, all of a head of 64, one by one.
ATTENTION = {"head": 11 * NANO, "number": 0.039 * NANO, "narrow": 50 * NANO, "prompt_number": 0.025 * NANO}
NARROW = 128
LEAST_FACTOR, MOST_FACTOR = 0.01, 100.0
# Graphics cards, from what others published and never measured here: the share of the data sheet's bandwidth that an
# answer reaches, the time of a layer beside it, and the band around that.
GPU_SHARE, GPU_LAYER_SECONDS, GPU_LOW, GPU_HIGH = 0.65, 40 * MICRO, 0.5, 1.4
REPACK_HIGH = 4.0
UBATCH = 512
ROW_SECONDS, ROW_SECONDS_PER_NUMBER = 3.5 * MICRO, 11 * NANO  # of a prompt: norms, sums and the like, per layer


class Read(NamedTuple):
    """What one token reads of one type: weights, their bytes, rows, and how many of the bytes a router chose."""

    weights: int = 0
    n_bytes: int = 0
    rows: int = 0
    chosen_bytes: int = 0

    def __add__(self, other):
        return Read(*map(sum, zip(self, other, strict=True)))


@dataclass(frozen=True)
class Band:
    """Tokens per second: the likeliest figure, and from where to where it may lie.

    >>> print(Band(8.0, 10.0, 12.5))
    10 tokens/s (8.0 to 12)
    """

    low: float
    likely: float
    high: float

    def __contains__(self, tokens_per_second):
        return self.low <= tokens_per_second <= self.high

    def __str__(self):
        return f"{_show(self.likely)} tokens/s ({_show(self.low)} to {_show(self.high)})"


def _show(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


@dataclass(frozen=True)
class Calibration:
    """How fast one machine is, in the formula's terms; made by `speed.calibrate`, or assumed from a table.

    `bandwidth_bytes_per_s` with its source. `core_factor` and `prompt_factor`: how many times longer the cores take
    here than the reference of `KERNELS`, for an answer and for a prompt. `low` and `high`: the band, as shares of the
    likeliest speed. `answer` and `prompt`: what was measured for it (None when nothing was).

    *When it misleads*: a photograph, as bandwidth is; and the factors are those of one type of weights, the packaged
    model's, taken to hold for the others.
    """

    bandwidth_bytes_per_s: int
    core_factor: float
    prompt_factor: float
    n_threads: int
    source: str
    low: float = 0.75
    high: float = 1.3
    narrow_is_slow: bool = False
    answer: object = None
    prompt: object = None
    gpu_name: str = ""
    gpu_bytes_per_s: int = 0
    notes: tuple[str, ...] = ()

    @property
    def operation_seconds(self):
        """Seconds of one operation of an answer that has nothing to do."""
        return OPERATION_SECONDS * self.core_factor

    def unpack_seconds(self, type_name):
        """Seconds to unpack one weight of this type and multiply it, in an answer, all threads together."""
        return KERNELS[type_name][0] * PICO * self.core_factor

    def prompt_seconds(self, type_name, row):
        """The same for one weight of a row of so many, and one token of a prompt."""
        usual, share = ROWS[formats.block_type(type_name).block_length == 256]
        return KERNELS[type_name][1] * PICO * self.prompt_factor * (share + (1 - share) * usual / row)

    def rows(self):
        """(what, value, how we know), all text."""
        pipe = self.bandwidth_bytes_per_s
        rows = [
            ("memory bandwidth", f"{units.show_decimal(pipe, 1)}/s", getattr(pipe, "source", self.source)),
            ("cores, answer", f"{self.core_factor:.2f} x the reference's time", self.source),
            ("cores, prompt", f"{self.prompt_factor:.2f} x the reference's time", self.source),
            ("one operation", f"{self.operation_seconds / MICRO:.1f} us", "follows from the cores"),
            ("threads", str(self.n_threads), self.source),
        ]
        if self.gpu_bytes_per_s:
            rows.append((self.gpu_name, f"{units.show_decimal(self.gpu_bytes_per_s, 0)}/s", "data sheet"))
        return rows

    def __str__(self):
        lines = [f"{what:<18}{value:<28}{source}" for what, value, source in self.rows()]
        return units.printable("\n".join([*lines, *(f"Note: {note}" for note in self.notes)]))

    __repr__ = __str__

    def _repr_html_(self):
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclass(frozen=True)
class Prediction:
    """Foreseen speed in tokens per second, prompt and answer apart, and the seconds that one token of an answer takes.

    `bytes_seconds`: weights through the pipe. `layer_seconds`: what the cores do beyond that, which is the sum of
    `unpack_seconds` (weights are unpacked and multiplied), `waiting_seconds`
    (threads wait for each other after each operation) and `sampling_seconds` (choosing among the vocabulary).
    `cache_seconds`: looking at the earlier tokens. `prompt` is None where no formula here foresees it.
    """

    name: str
    answer: Band
    prompt: Band | None
    bytes_seconds: float
    unpack_seconds: float
    waiting_seconds: float
    sampling_seconds: float
    cache_seconds: float
    read_bytes: int
    n_prompt: int
    source: str = "formula"
    assumptions: tuple[str, ...] = ()

    @property
    def layer_seconds(self):
        """Seconds per token in which no weight is read: unpacking, waiting, sampling."""
        return self.unpack_seconds + self.waiting_seconds + self.sampling_seconds

    @property
    def seconds(self):
        """Seconds of one token of the answer."""
        return self.bytes_seconds + self.layer_seconds + self.cache_seconds

    def terms(self):
        """Words -> seconds; they add up to `seconds`."""
        return {
            "read weights": self.bytes_seconds,
            "unpack weights": self.unpack_seconds,
            "wait after operations": self.waiting_seconds,
            "choose a token": self.sampling_seconds,
            "look at the cache": self.cache_seconds,
        }

    @property
    def rules(self):
        """The term that takes most of the time."""
        terms = self.terms()
        return max(terms, key=terms.get)

    def __str__(self):
        lines = [
            f"{self.name}  [{self.source}]",
            f"  answer  {self.answer}",
            f"  prompt  {self.prompt or 'not foreseen'}",
        ]
        whole = self.seconds
        for words, seconds in self.terms().items():
            lines.append(f"  {words:<22}{seconds / MILLI:8.2f} ms  {seconds / whole:4.0%}")
        return units.printable("\n".join([*lines, *(f"  note: {text}" for text in self.assumptions)]))

    def _repr_html_(self):
        return f"<pre>{html.escape(str(self))}</pre>"


def predict(spec, quantization, calibration, n_ctx=4096, n_prompt=128, n_answer=64, repack=False, n_gpu_layers=0):
    """Tokens per second of a model on a calibrated machine: a `Prediction`; see `speed.predict`."""
    settings = memory.Settings(n_ctx=n_ctx, n_gpu_layers=n_gpu_layers)
    _check_tokens(n_ctx, n_prompt, n_answer)
    depth = n_prompt + n_answer / 2
    places = _places(spec, quantization)
    devices = memory.layer_devices(spec, settings)
    here = [place for place, device in zip(places, devices, strict=True) if device == "cpu"]
    there = [place for place, device in zip(places, devices, strict=True) if device != "cpu"]
    if there and not calibration.gpu_bytes_per_s:
        raise ValueError(
            f"n_gpu_layers is {n_gpu_layers}, but no bandwidth of a graphics card is known here. Set n_gpu_layers to "
            "0, or give gpu_bytes_per_s from its data sheet."
        )
    layers_here = [layer for layer, device in enumerate(devices[:-1]) if device == "cpu"]
    layers_there = [layer for layer, device in enumerate(devices[:-1]) if device != "cpu"]
    bytes_seconds, unpack_seconds = _weights_seconds(here, calibration)
    waiting = len(layers_here) * operations(spec) * calibration.operation_seconds
    cache = sum(_attention_seconds(spec, layer, depth, calibration) for layer in layers_here)
    on_gpu = _gpu_seconds(spec, there, layers_there, depth, calibration)
    prediction = Prediction(
        name=f"{spec.title or spec.name} {memory.quantization_name(quantization)}".strip(),
        answer=None,
        prompt=None,
        bytes_seconds=bytes_seconds + on_gpu[0],
        unpack_seconds=unpack_seconds,
        waiting_seconds=waiting + on_gpu[1],
        sampling_seconds=spec.n_vocab * SAMPLING_SECONDS * calibration.core_factor,
        cache_seconds=cache + on_gpu[2],
        read_bytes=sum(read.n_bytes for read in _sum(places).values()),
        n_prompt=n_prompt,
        assumptions=tuple(_assumptions(spec, calibration, repack, layers_there)),
    )
    low, high = (GPU_LOW, GPU_HIGH) if there else (calibration.low, calibration.high)
    answer = _band(1 / prediction.seconds, min(low, calibration.low), max(high, calibration.high))
    if there:
        return replace(prediction, answer=answer)
    each = _prompt_seconds(spec, places, n_prompt, calibration)
    prompt = _band(1 / each, calibration.low, calibration.high * (REPACK_HIGH if repack else 1))
    return replace(prediction, answer=answer, prompt=prompt)


def calibrated(spec, quantization, answer_seconds, prompt_seconds, n_prompt, n_answer, calibration):
    """`calibration` with the factors at which the formula gives the measured seconds per token of one model.

    Formula: what the bandwidth leaves unexplained of the answer is the cores', all their terms scaled alike. When
    memory alone would take longer than was measured, the probe saw it too slow, and the bandwidth is raised instead.
    """
    if not min(answer_seconds, prompt_seconds) > 0:
        raise ValueError(f"The seconds per token are {answer_seconds} and {prompt_seconds}; they must be above 0.")

    def seconds(factor, calibration):
        tried = replace(calibration, core_factor=factor)
        return predict(spec, quantization, tried, n_prompt + n_answer, n_prompt, n_answer).seconds

    pipe = calibration.bandwidth_bytes_per_s
    slowest = seconds(LEAST_FACTOR, calibration)
    if slowest > answer_seconds:
        pipe = round(pipe * slowest / answer_seconds)
        note = "The engine read faster than the probe of bandwidth; the bandwidth was raised to what it reached."
        calibration = replace(calibration, bandwidth_bytes_per_s=pipe, notes=(*calibration.notes, note))
    low, high = LEAST_FACTOR, MOST_FACTOR
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if seconds(middle, calibration) < answer_seconds else (low, middle)
    calibration = replace(calibration, core_factor=middle, prompt_factor=1.0)
    places = _places(spec, quantization)
    fixed = _prompt_seconds(spec, places, n_prompt, replace(calibration, prompt_factor=0.0))
    scaled = _prompt_seconds(spec, places, n_prompt, calibration) - fixed
    return replace(calibration, prompt_factor=max((prompt_seconds - fixed) / scaled, LEAST_FACTOR))


def operations(spec):
    """Operations of one layer while one token is answered (a count): matrices, norms, sums, each done by all threads.

    *When it misleads*: counted from llama.cpp's graph for a family's features, fused ones not always seen.

    >>> from helpers import models
    >>> operations(models.get("smollm2-135m")), operations(models.get("gemma-3-1b"))
    (19, 27)
    """
    family = architectures.FAMILIES.get(spec.architecture, frozenset())
    more = sum(number for feature, number in MORE_OPERATIONS.items() if feature in family and feature != "experts")
    return OPERATIONS + more + (MORE_OPERATIONS["experts"] if spec.n_expert else 0)


def _check_tokens(n_ctx, n_prompt, n_answer):
    for name, value in (("n_prompt", n_prompt), ("n_answer", n_answer)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of tokens from 1.")
    if n_ctx and n_prompt + n_answer > n_ctx:
        raise ValueError(
            f"{n_prompt} tokens of prompt and {n_answer} of answer do not fit into a context of {n_ctx}. "
            f"Set n_ctx to at least {n_prompt + n_answer}."
        )


def _places(spec, quantization):
    """What one token reads: for each layer, and at the end for what follows them, {type: Read}."""
    if isinstance(quantization, str):
        return _named_places(spec, formats.quantization(quantization).name)
    if isinstance(quantization, int):
        raise ValueError("Speed needs to know the types of the tensors, not only their bytes; give a quantization.")
    return _count(spec, quantization)


@functools.lru_cache(maxsize=1024)
def _named_places(spec, quantization):
    return _count(spec, mixes.tensor_types(spec, quantization))


def _count(spec, types):
    places = [{} for _ in range(spec.n_layer + 1)]
    for tensor in architectures.tensors(spec):
        in_layer = tensor.name.startswith("blk.")
        if tensor.name == "position_embd.weight" or (tensor.name == "token_embd.weight" and not spec.tied):
            continue  # one row of a table is read
        place = places[int(tensor.name.split(".")[1]) if in_layer else -1]
        weights, n_bytes = math.prod(tensor.shape), formats.tensor_bytes(types[tensor.name], tensor.shape)
        chosen_bytes = 0
        if "_exps." in tensor.name:
            weights = weights * spec.n_expert_used // spec.n_expert
            chosen_bytes = n_bytes = n_bytes * spec.n_expert_used // spec.n_expert
        read = Read(weights, n_bytes, weights // tensor.shape[0], chosen_bytes)
        place[types[tensor.name]] = place.get(types[tensor.name], Read()) + read
    return tuple(places)


def _sum(places):
    """{type: Read} of several places together."""
    found = {}
    for place in places:
        for name, read in place.items():
            found[name] = found.get(name, Read()) + read
    return found


def _weights_seconds(places, calibration):
    """(reading, unpacking): added up, as here reading hides little of the unpacking."""
    reading = unpacking = 0.0
    for name, read in _sum(places).items():
        _known(name)
        reading += read.n_bytes / calibration.bandwidth_bytes_per_s
        unpacking += read.weights * calibration.unpack_seconds(name)
    return reading, unpacking


def _known(type_name):
    if type_name not in KERNELS:
        raise ValueError(f"No speed is known for tensors of type {type_name}. Known types: {', '.join(KERNELS)}.")


def _numbers(spec):
    """Numbers of a key and a value of one head."""
    return spec.n_embd_head_k + spec.n_embd_head_v


def _seen(spec, layer, depth):
    """Earlier tokens that a layer looks at."""
    return min(depth, spec.n_swa) if spec.is_windowed(layer) else depth


def _attention_seconds(spec, layer, depth, calibration):
    """Of one layer and one token of an answer."""
    narrow = calibration.narrow_is_slow and spec.n_embd_head_k < NARROW
    each = ATTENTION["narrow"] if narrow else ATTENTION["head"] + ATTENTION["number"] * _numbers(spec)
    cells = _seen(spec, layer, depth)
    read = cells * _cell_bytes(spec, layer) / calibration.bandwidth_bytes_per_s
    return read + spec.n_head * cells * each * calibration.core_factor


def _cell_bytes(spec, layer):
    """Bytes of cache that one earlier token has in one layer, at 16 bits."""
    numbers = spec.n_embd_head_k if spec.kv_lora_rank else _numbers(spec)
    return formats.row_bytes("F16", spec.kv_heads(layer) * numbers)


def _gpu_seconds(spec, places, layers, depth, calibration):
    """(reading weights, layers, reading the cache) of what is on the graphics card."""
    if not places:
        return 0.0, 0.0, 0.0
    pipe = calibration.gpu_bytes_per_s * GPU_SHARE
    weights = sum(read.n_bytes for read in _sum(places).values())
    cache = sum(_seen(spec, layer, depth) * _cell_bytes(spec, layer) for layer in layers)
    return weights / pipe, len(layers) * GPU_LAYER_SECONDS, cache / pipe


def _prompt_seconds(spec, places, n_prompt, calibration):
    """Per token of a prompt: the layers for all tokens, the last matrix and the first choice for the last one only."""
    layers = _sum(places[:-1])
    factor = calibration.prompt_factor
    each = sum(
        read.weights * calibration.prompt_seconds(name, read.weights / read.rows) for name, read in layers.items()
    )
    each += spec.n_layer * (ROW_SECONDS + ROW_SECONDS_PER_NUMBER * spec.n_embd) * factor
    attention = sum(_seen(spec, layer, n_prompt / 2) for layer in range(spec.n_layer)) * spec.n_head * _numbers(spec)
    each += attention * ATTENTION["prompt_number"] * factor
    more = _chosen_in_batch(spec, min(n_prompt, UBATCH)) - 1
    read_bytes = sum(read.n_bytes + read.chosen_bytes * more for read in layers.values())
    per_batch = read_bytes / calibration.bandwidth_bytes_per_s
    per_batch += spec.n_layer * operations(spec) * calibration.operation_seconds
    once = sum(_weights_seconds(places[-1:], calibration))
    once += spec.n_vocab * SAMPLING_SECONDS * calibration.core_factor
    return each + (math.ceil(n_prompt / UBATCH) * per_batch + once) / n_prompt


def _chosen_in_batch(spec, n_tokens):
    """How many times as many experts as one token's are read for so many tokens at once, each choosing by chance."""
    if not spec.n_expert:
        return 1
    share = spec.n_expert_used / spec.n_expert
    return (1 - (1 - share) ** n_tokens) / share


def _band(likely, low, high):
    return Band(likely * low, likely, likely * high)


def _assumptions(spec, calibration, repack, layers_there):
    yield from calibration.notes
    if layers_there:
        yield (
            f"{calibration.gpu_name}: by the bandwidth of its data sheet, of which an answer is taken to reach "
            f"{GPU_SHARE:.0%}; never measured here. How fast it reads a prompt is not foreseen."
        )
    if repack:
        yield "Repacked weights: prompts may be read several times faster; never measured here."
    if spec.n_expert:
        yield "Of the experts an answer reads the chosen ones only, a prompt those that any of its tokens chooses."
    if spec.architecture not in architectures.FAMILIES:
        yield f"The family {spec.architecture!r} is not modelled."
