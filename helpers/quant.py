"""Quantizers a learner can read: the bits of one number, one scale for a row, and ggml's own blocks, bit for bit.

Three floors: `store` shows how FP32, FP16, BF16 and INT8 keep one number; `symmetric` and `asymmetric` squeeze a row
into small integers; `quantize` and `dequantize` do what ggml does with blocks of 32. `error` says what was lost.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from . import formats

# --- the bits of one number ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FloatFormat:
    """How a float is stored: one sign bit, then the exponent, then the fraction.

    >>> FORMATS["FP16"].largest, FORMATS["FP16"].bits
    (65504.0, 16)
    """

    name: str
    exponent_bits: int
    fraction_bits: int

    @property
    def bits(self):
        """Bits of one number."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def parts(self):
        """(name, number of bits) of each part, from left to right."""
        return ("sign", 1), ("exponent", self.exponent_bits), ("fraction", self.fraction_bits)

    @property
    def bias(self):
        """What is taken off the stored exponent: the power of two is the stored exponent minus this.

        >>> FORMATS["FP32"].bias            # 8 bits of exponent: 2**7 - 1
        127
        """
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def largest(self):
        """The largest finite number: all fraction bits set, at the highest power.

        >>> FORMATS["FP16"].largest         # (2 - 1/1024) x 2**15
        65504.0
        """
        return (2 - self.step) * 2.0**self.bias

    @property
    def smallest(self):
        """The smallest number above zero (a subnormal one).

        >>> FORMATS["FP16"].smallest == 2.0**-24        # 2**-14 is the lowest power, 10 bits below it the last step
        True
        """
        return self.step * 2.0 ** (1 - self.bias)

    @property
    def step(self):
        """The distance from 1 to the next number above it; between 2 and 4 it is twice that, and so on.

        >>> FORMATS["BF16"].step            # 7 bits of fraction: 1/128
        0.0078125
        """
        return 2.0**-self.fraction_bits


@dataclass(frozen=True)
class IntFormat:
    """A whole number with a sign, in two's complement: the leftmost bit counts negative.

    >>> FORMATS["INT8"].smallest, FORMATS["INT8"].largest
    (-128, 127)
    """

    name: str
    bits: int
    step = 1

    @property
    def parts(self):
        """(name, number of bits) of each part, from left to right."""
        return ("sign", 1), ("number", self.bits - 1)

    @property
    def largest(self):
        """The largest number."""
        return 2 ** (self.bits - 1) - 1

    @property
    def smallest(self):
        """The lowest number; there is one more below zero than above."""
        return -(2 ** (self.bits - 1))


FORMATS = {
    "FP32": FloatFormat("FP32", exponent_bits=8, fraction_bits=23),
    "FP16": FloatFormat("FP16", exponent_bits=5, fraction_bits=10),
    "BF16": FloatFormat("BF16", exponent_bits=8, fraction_bits=7),
    "INT8": IntFormat("INT8", bits=8),
}


@dataclass(frozen=True, repr=False)
class Stored:
    """One number as a format keeps it: `pattern` holds the bits, as a whole number.

    >>> store(1.5, "FP16")                  # 1.5 = 1.1 in binary x 2**0; the stored exponent is 0 + 15
    FP16 0 01111 1000000000 = 1.5
    """

    format: str
    pattern: int

    @property
    def bits(self):
        """All bits as text, the most significant first.

        >>> store(5, "INT8").bits           # 4 + 1
        '00000101'
        """
        return f"{self.pattern:0{FORMATS[self.format].bits}b}"

    @property
    def fields(self):
        """(name, bits) of each part, from left to right.

        >>> store(-2, "FP16").fields
        (('sign', '1'), ('exponent', '10000'), ('fraction', '0000000000'))
        """
        found, start = [], 0
        for name, length in FORMATS[self.format].parts:
            found.append((name, self.bits[start : start + length]))
            start += length
        return tuple(found)

    @property
    def value(self):
        """The number these bits stand for, as a Python number.

        >>> Stored("INT8", 0b11111111).value        # -128 + 127
        -1
        """
        kind = FORMATS[self.format]
        if isinstance(kind, IntFormat):
            return self.pattern - 2**kind.bits * (self.pattern >> kind.bits - 1)
        shift = 16 if self.format == "BF16" else 0  # BF16 is the left half of FP32
        unsigned, floating = (np.uint16, np.float16) if self.format == "FP16" else (np.uint32, np.float32)
        return float(unsigned(self.pattern << shift).view(floating))

    def flip(self, place):
        """The same bits with one of them turned around; `place` counts from the left, which is 0.

        Raises `ValueError` for a place that is not there.

        >>> store(1, "FP16").flip(0).value          # the sign
        -1.0
        >>> store(1, "INT8").flip(1).value          # 64 + 1
        65
        """
        bits = FORMATS[self.format].bits
        if place not in range(bits):
            raise ValueError(f"{self.format} has the places 0 (left) to {bits - 1} (right), but not {place}.")
        return replace(self, pattern=self.pattern ^ (1 << (bits - 1 - place)))

    def part(self, place):
        """The name of the part that a place belongs to.

        >>> store(1, "BF16").part(8)
        'exponent'
        """
        for name, length in FORMATS[self.format].parts:
            if place < length:
                return name
            place -= length
        raise ValueError(f"{self.format} has only {FORMATS[self.format].bits} places.")

    def __str__(self):
        return f"{self.format} {' '.join(bits for _, bits in self.fields)} = {self.value:.9g}"

    __repr__ = __str__


def store(number, format):
    """`number` as "FP32", "FP16", "BF16" or "INT8" keep it, rounded to the nearest number they have (`Stored`).

    Floats that lie in the middle go to the even neighbour; beyond their range they become infinite. INT8 takes whole
    numbers from -128 to 127 only: raises `ValueError` for others, as there is no scale yet that would make them fit.

    *When it misleads*: a format is not only its length. FP16 and BF16 have 16 bits each and hold different numbers.

    >>> store(0.1, "BF16").value            # 205/128 x 2**-4, the nearest that 7 bits of fraction allow
    0.10009765625
    >>> store(70000, "FP16").value
    inf
    """
    kind = FORMATS.get(str(format).upper())
    if kind is None:
        raise ValueError(f"Unknown number format {format!r}. Known: {', '.join(FORMATS)}.")
    if isinstance(kind, IntFormat):
        whole = math.isfinite(number) and number == int(number)
        if not whole or not kind.smallest <= number <= kind.largest:
            raise ValueError(
                f"{kind.name} holds whole numbers from {kind.smallest} to {kind.largest}, not {number}. "
                "Divide by a scale first (see `symmetric`)."
            )
        return Stored(kind.name, int(number) % 2**kind.bits)
    with np.errstate(over="ignore"):  # beyond the range is infinite: that is what the format says
        if kind.name == "FP16":
            return Stored(kind.name, int(np.float16(number).view(np.uint16)))
        pattern = int(np.float32(number).view(np.uint32))
    return Stored(kind.name, _left_half(pattern) if kind.name == "BF16" else pattern)


def _left_half(pattern):
    """The 16 bits of BF16 from the 32 of FP32: to the nearest, the middle to the even one."""
    if pattern & 0x7FFFFFFF > 0x7F800000:  # not a number: rounding would turn some of these into infinity
        return pattern >> 16 | 64
    return (pattern + 0x7FFF + (pattern >> 16 & 1)) >> 16


# --- a row of numbers with one scale -------------------------------------------------------------------------------


def round_half_away(x):
    """Whole numbers nearest to `x`; what lies in the middle goes away from zero, as C's `roundf` does it.

    >>> round_half_away([0.5, 1.5, -0.5, 0.49999997]).tolist()      # numpy's own rounding gives 0, 2, -0, 0
    [1.0, 2.0, -1.0, 0.0]
    """
    x = np.asarray(x, dtype=np.float32)
    below = np.floor(np.abs(x))
    return np.copysign(below + (np.abs(x) - below >= 0.5), x)


@dataclass(frozen=True)
class Squeezed:
    """A row as small integers: each weight is about `scale` x integer + `offset`."""

    integers: np.ndarray
    scale: float
    offset: float
    bits: int
    lowest: int  # the integers go from here ...
    highest: int  # ... to here
    n_clipped: int = 0  # weights beyond the limits, which became the outermost level

    @property
    def levels(self):
        """All values that these bits, this scale and this offset can give back, in order.

        >>> symmetric([-3, 1, 3], bits=3).levels.tolist()
        [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
        """
        return np.arange(self.lowest, self.highest + 1) * self.scale + self.offset

    def weights(self):
        """The weights that come back: `scale` x integer + `offset`."""
        return self.integers * self.scale + self.offset


def symmetric(x, bits=8, limit=None):
    """Squeeze a row into integers from -m to m with one scale (`Squeezed`); m = 2**(bits-1) - 1, zero stays zero.

    Formula: scale = limit / m; integer = round(x / scale), clipped to -m..m.

    Parameters
    ----------
    x : array of floats, finite
    bits : int
        2 to 16.
    limit : float, optional
        The largest size that is kept; weights beyond are clipped. Left out: the largest size in the row.

    *When it misleads*: a single outlier sets the scale of all others.

    >>> symmetric([0.5, -1, 7], bits=4).integers.tolist()       # scale 1: 0.5 goes up, to 1
    [1, -1, 7]
    >>> symmetric([0.5, -1, 7], bits=4, limit=3.5).weights().tolist()
    [0.5, -1.0, 3.5]
    """
    x, most = _row(x), 2 ** (_bits(bits) - 1) - 1
    limit = float(np.abs(x).max(initial=0)) if limit is None else _positive(limit)
    scale = limit / most
    integers = np.clip(_steps(x, scale), -most, most)
    return Squeezed(integers, scale, 0.0, bits, -most, most, int((np.abs(x) > limit).sum()))


def asymmetric(x, bits=8, low=None, high=None):
    """Squeeze a row into integers from 0 to 2**bits - 1 with a scale and an offset (`Squeezed`).

    Formula: scale = (high - low) / (2**bits - 1); integer = round((x - low) / scale), clipped to 0..2**bits - 1;
    offset = low.

    Parameters
    ----------
    x : array of floats, finite
    bits : int
        2 to 16.
    low, high : float, optional
        What is kept; weights beyond are clipped. Left out: the smallest and the largest of the row.

    *When it misleads*: zero is a level only by chance, so a weight of exactly 0 may come back as something else.

    >>> asymmetric([10, 12, 13], bits=2).integers.tolist()      # scale 1, offset 10
    [0, 2, 3]
    >>> asymmetric([10, 12, 13], bits=2).offset
    10.0
    """
    x, most = _row(x), 2 ** _bits(bits) - 1
    low = float(x.min()) if low is None else float(low)
    high = float(x.max()) if high is None else float(high)
    if not low <= high < math.inf:
        raise ValueError(f"low must not be above high, and both finite: got {low} and {high}.")
    scale = (high - low) / most
    integers = np.clip(_steps(x - low, scale), 0, most)
    return Squeezed(integers, scale, low, bits, 0, most, int(((x < low) | (x > high)).sum()))


def _row(x):
    x = np.asarray(x, dtype=np.float64)
    if not x.size:
        raise ValueError("There are no weights to squeeze: the row is empty.")
    _check_finite(x)
    return x


def _steps(x, scale):
    return round_half_away(x / scale if scale else np.zeros_like(x)).astype(np.int64)


def _bits(bits):
    if bits not in range(2, 17):
        raise ValueError(f"bits must be a whole number from 2 to 16, not {bits!r}.")
    return int(bits)


def _positive(limit):
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be a finite number above 0, not {limit!r}.")
    return float(limit)


def _check_finite(x):
    wrong = x[~np.isfinite(x)]
    if wrong.size:
        raise ValueError(
            f"{wrong.size} of {x.size} weights are not finite (the first is {wrong[0]}): there is no scale for them. "
            "A model with such weights is damaged; download or convert it again."
        )


# --- ggml's blocks of 32 -------------------------------------------------------------------------------------------

MOST_READ_BYTES = 2**28  # a file may claim rows of any length; weights of 4 bits become eight times as many bytes
BLOCK = 32  # weights that share a scale, in each of the types below
HALF = BLOCK // 2  # 4-bit types: byte i keeps weight i in its right half and weight i + 16 in its left half
LARGEST_SCALE = FORMATS["FP16"].largest


def quantize(type_name, weights):
    """Weights as ggml stores them: bytes of "Q8_0", "Q4_0" or "Q4_1", bit for bit those of its reference code.

    Formulas, for each block of 32, in FP32; the scale d (and the offset m) is then stored as FP16:

    - Q8_0: d = largest size / 127; integer = round(x / d)
    - Q4_0: d = the weight of the largest size, with its sign, / -8; integer = truncate(x / d + 8.5), at most 15
    - Q4_1: m = smallest; d = (largest - m) / 15; integer = truncate((x - m) / d + 0.5), at most 15

    Parameters
    ----------
    type_name : str
    weights : array of floats, shape (..., a multiple of 32)

    Returns
    -------
    array of uint8, shape (..., bytes of a row)

    Raises `ValueError` for weights that are not finite, for rows that are no whole number of blocks, and where the
    scale is too large for FP16 (ggml would store infinity).

    *When it misleads*: the integers are found with the scale in FP32, but the weights come back with the scale in FP16.
    In a block whose weights are all below 1e-37 ggml's result is undefined; here they count as zeros, and zeros is what
    comes back in any case.

    Source: ggml `src/ggml-quants.c`, quantize_row_*_ref; tests compare with it and with `gguf.quants`.

    >>> quantize("Q8_0", [127, -1] + [0] * 30)[:4].tolist()     # scale 1 = 00 3C in FP16, then 127, then -1 as a byte
    [0, 60, 127, 255]
    """
    encode = _kind(type_name)[0]
    x = np.asarray(weights, dtype=np.float32)
    _check_finite(x)
    n_bytes = formats.row_bytes(type_name, x.shape[-1] if x.ndim else 0)
    return encode(x.reshape(-1, BLOCK)).reshape(*x.shape[:-1], n_bytes)


def unpack(type_name, raw):
    """The parts of stored blocks: (scales, integers, offsets), so that each weight is scale x integer + offset.

    Returns
    -------
    scales, offsets : arrays of float32, shape (blocks, 1)
    integers : array of int8, shape (blocks, 32)

    >>> scales, integers, offsets = unpack("Q4_0", quantize("Q4_0", [-8, 1, 2] + [0] * 29))
    >>> scales.tolist(), integers[0, :4].tolist()
    ([[1.0]], [-8, 1, 2, 0])
    """
    decode = _kind(type_name)[1]
    raw = _bytes(raw)
    block_bytes = formats.block_type(type_name).block_bytes
    if not raw.ndim or raw.shape[-1] % block_bytes:
        raise ValueError(
            f"{type_name} has blocks of {block_bytes} bytes, and {raw.shape[-1] if raw.ndim else 0} bytes are no whole "
            "number of them: part of a row is missing, or the type is another one."
        )
    return decode(raw.reshape(-1, block_bytes))


def dequantize(type_name, raw):
    """The weights that stored bytes stand for, in FP32, bit for bit as ggml gives them back.

    Formula: scale x integer + offset (Q4_1; without the offset for Q8_0 and Q4_0). "F32", "F16" and "BF16" are known
    too: for them there is only a change of format.

    Parameters
    ----------
    type_name : str
    raw : bytes, or array of uint8, shape (..., bytes of a row)

    Returns
    -------
    array of float32, shape (..., weights of a row)

    >>> dequantize("Q4_1", quantize("Q4_1", [5.0] * 31 + [20.0]))[[0, 31]].tolist()    # scale 1, offset 5
    [5.0, 20.0]
    """
    name, raw = str(type_name).upper(), _bytes(raw)
    if name in PLAIN:
        return PLAIN[name](raw)
    scales, integers, offsets = unpack(name, raw)
    weights = scales * integers.astype(np.float32)
    if name == "Q4_1":  # adding 0 elsewhere would turn -0 into 0
        weights = weights + offsets
    return weights.reshape(*raw.shape[:-1], -1)


def _encode_q8_0(x):
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    integers = round_half_away(x * _one_over(d)).astype(np.int8)
    return np.hstack([_fp16_bytes(d), integers.view(np.uint8)])


def _decode_q8_0(raw):
    d = _fp16_at(raw, 0)
    return d, raw[:, 2:].view(np.int8), np.zeros_like(d)


def _encode_q4_0(x):
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = (largest + 0) / np.float32(-8)  # + 0 turns -0 into 0, where ggml's search begins
    integers = np.minimum(np.trunc(x * _one_over(d) + np.float32(8.5)), 15)
    return np.hstack([_fp16_bytes(d), _pack_halves(integers)])


def _decode_q4_0(raw):
    d = _fp16_at(raw, 0)
    return d, _unpack_halves(raw[:, 2:]) - np.int8(8), np.zeros_like(d)


def _encode_q4_1(x):
    low, high = (np.take_along_axis(x, find(x, axis=1, keepdims=True), axis=1) for find in (np.argmin, np.argmax))
    with np.errstate(over="ignore"):  # a span beyond FP32 is infinite, which _fp16_bytes refuses in words
        d = (high - low) / np.float32(15)
    stored = [_fp16_bytes(d), _fp16_bytes(low)]
    integers = np.minimum(np.trunc((x - low) * _one_over(d) + np.float32(0.5)), 15)
    return np.hstack([*stored, _pack_halves(integers)])


def _decode_q4_1(raw):
    return _fp16_at(raw, 0), _unpack_halves(raw[:, 4:]), _fp16_at(raw, 2)


def _one_over(d):
    """1 / d in FP32, and 0 where there is no such number: a block of zeros, or of next to nothing."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _fp16_bytes(numbers):
    with np.errstate(over="ignore"):
        halves = numbers.astype("<f2")
    if not np.isfinite(halves).all():
        raise ValueError(
            f"A block needs {np.abs(numbers).max():.4g} as its scale or offset, and FP16 holds at most "
            f"{LARGEST_SCALE:.0f}: divide the weights by a constant first."
        )
    return halves.view(np.uint8)


def _fp16_at(raw, start):
    return np.ascontiguousarray(raw[:, start : start + 2]).view("<f2").astype(np.float32)


def _pack_halves(integers):
    """Two integers from 0 to 15 in each byte: 32 of them become 16 bytes."""
    small = integers.astype(np.uint8)
    return small[:, :HALF] | small[:, HALF:] << 4


def _unpack_halves(raw):
    return np.hstack([raw & 15, raw >> 4]).astype(np.int8)


ENCODE_DECODE = {
    "Q8_0": (_encode_q8_0, _decode_q8_0),
    "Q4_0": (_encode_q4_0, _decode_q4_0),
    "Q4_1": (_encode_q4_1, _decode_q4_1),
}
PLAIN = {
    "F32": lambda raw: raw.view("<f4").astype(np.float32),
    "F16": lambda raw: raw.view("<f2").astype(np.float32),
    "BF16": lambda raw: (raw.view("<u2").astype(np.uint32) << 16).view(np.float32),
}


def _kind(type_name):
    found = ENCODE_DECODE.get(str(type_name).upper())
    if found is None:
        raise ValueError(f"No readable quantizer for {type_name!r} here. There are: {', '.join(ENCODE_DECODE)}.")
    return found


def _bytes(raw):
    raw = np.frombuffer(raw, np.uint8) if isinstance(raw, (bytes, bytearray, memoryview)) else np.asarray(raw)
    if raw.dtype != np.uint8:
        raise ValueError(f"Stored blocks are bytes (uint8), but these numbers are {raw.dtype}.")
    return np.ascontiguousarray(raw)


# --- what a block is made of ---------------------------------------------------------------------------------------

LAYOUTS = {  # type -> (part, how many, bits of each); ggml src/ggml-common.h, where K-quants are super-blocks of 256
    "Q8_0": (("scale", 1, 16), ("weights", 32, 8)),
    "Q4_0": (("scale", 1, 16), ("weights", 32, 4)),
    "Q4_1": (("scale", 1, 16), ("offset", 1, 16), ("weights", 32, 4)),
    "Q5_0": (("scale", 1, 16), ("weights", 32, 5)),
    "Q5_1": (("scale", 1, 16), ("offset", 1, 16), ("weights", 32, 5)),
    "Q2_K": (("scale of scales", 1, 16), ("scale of offsets", 1, 16), ("scale", 16, 4), ("offset", 16, 4),
             ("weights", 256, 2)),
    "Q3_K": (("scale of scales", 1, 16), ("scale", 16, 6), ("weights", 256, 3)),
    "Q4_K": (("scale of scales", 1, 16), ("scale of offsets", 1, 16), ("scale", 8, 6), ("offset", 8, 6),
             ("weights", 256, 4)),
    "Q5_K": (("scale of scales", 1, 16), ("scale of offsets", 1, 16), ("scale", 8, 6), ("offset", 8, 6),
             ("weights", 256, 5)),
    "Q6_K": (("scale of scales", 1, 16), ("scale", 16, 8), ("weights", 256, 6)),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One kind of thing in a block: `count` of them, `bits` each; `per_weight` is what it costs a weight, in bits."""

    name: str
    count: int
    bits: int
    per_weight: float


def layout(type_name):
    """What a block consists of: a tuple of `Part`, whose `per_weight` add up to the type's bits per weight.

    *When it misleads*: in which order and in which halves of bytes the parts lie is another matter (see `unpack`).

    >>> [(part.name, part.count, part.bits, part.per_weight) for part in layout("Q4_0")]     # 16 / 32 = 0.5
    [('scale', 1, 16, 0.5), ('weights', 32, 4, 4.0)]
    >>> sum(part.per_weight for part in layout("Q4_K"))
    4.5
    """
    parts = LAYOUTS.get(str(type_name).upper())
    if parts is None:
        raise ValueError(f"The parts of {type_name!r} are not listed here. There are: {', '.join(LAYOUTS)}.")
    length = parts[-1][1]
    return tuple(Part(name, count, bits, count * bits / length) for name, count, bits in parts)


# --- what was lost -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Error:
    """How far weights that came back are from what they were."""

    rmse: float  # root of the mean squared error, in the unit of the weights
    largest: float  # the largest single error
    snr_db: float  # strength of the weights over strength of the error, in decibels

    def __str__(self):
        return f"rmse {self.rmse:.4g}, largest error {self.largest:.4g}, SNR {self.snr_db:.1f} dB"

    __repr__ = __str__


def error(original, back):
    """What a quantization lost, as an `Error`: rmse, the largest error, and the signal-to-noise ratio in dB.

    Formula: rmse = sqrt(mean((original - back)^2)); SNR = 20 x log10(rms(original) / rmse). Each further bit is worth
    about 6 dB. Without any error the SNR is infinite.

    *When it misleads*: an error in a weight matters as much as what it is multiplied with; the answers of a model may
    hardly change, or change a lot, at the same SNR.

    >>> error([3, 4], [3, 4.5]).largest
    0.5
    >>> error([10, 10], [9, 11])                # rms 10 over rmse 1: 20 dB
    rmse 1, largest error 1, SNR 20.0 dB
    """
    original, back = (np.asarray(x, dtype=np.float64) for x in (original, back))
    if original.shape != back.shape or not original.size:
        raise ValueError(f"Two rows of the same length are compared, not {original.shape} and {back.shape}.")
    off = np.abs(original - back)
    rmse, rms = (math.sqrt(float(np.mean(x * x))) for x in (off, original))
    if not rmse:
        return Error(0.0, 0.0, math.inf)
    return Error(rmse, float(off.max()), 20 * math.log10(rms / rmse) if rms else -math.inf)


# --- real weights --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Rows:
    """Some rows of a tensor as they lie in the file: `raw` has the shape (rows, bytes of a row)."""

    tensor: str
    type: str
    raw: np.ndarray

    def weights(self):
        """The weights in FP32, shape (rows, weights of a row)."""
        return dequantize(self.type, self.raw)

    def __str__(self):
        n_rows, n_bytes = self.raw.shape
        return f"{n_rows} rows of {self.tensor} ({self.type}), {n_bytes} bytes each"

    __repr__ = __str__


def read_rows(path, tensor, n_rows=1, first=0):
    """A few rows of one tensor of a GGUF file (`Rows`); only their bytes are read.

    Parameters
    ----------
    path : str or Path
        A file on this computer.
    tensor : str
        A name such as "blk.0.attn_q.weight"; `gguf.read_header(path).tensor_types` lists them.
    n_rows, first : int
        How many rows, and the first of them.

    Raises `gguf.GGUFError` for a file that is no GGUF file, `KeyError` for a tensor that it does not have, `ValueError`
    for rows that it does not have, or that are more than 256 MiB together.

    *When it misleads*: a row of a tensor is what ggml calls one, the first number of its shape long.

    >>> import tempfile
    >>> from gguf import GGUFWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = GGUFWriter(f"{folder}/two.gguf", "llama")
    ...     writer.add_tensor("two", np.float32([[1] * 32, [2] * 32]))
    ...     for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
    ...         write()
    ...     writer.close()
    ...     read_rows(f"{folder}/two.gguf", "two", first=1).weights()[0, :4].tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    from . import gguf

    header = gguf.read_header(path)
    found = next((info for info in header.tensors if info.name == tensor), None)
    if found is None:
        import difflib

        near = difflib.get_close_matches(str(tensor), header.tensor_types, n=3)
        raise KeyError(f"No tensor {tensor!r} in this file. {'Near: ' if near else ''}{', '.join(near)}".strip())
    there = math.prod(found.shape[1:])
    if not 0 <= first < first + n_rows <= there:
        raise ValueError(
            f"{tensor} has the rows 0 to {there - 1}; rows {first} to {first + n_rows - 1} were asked for."
        )
    row_bytes = formats.row_bytes(found.type, found.shape[0])
    if n_rows * row_bytes > MOST_READ_BYTES:
        raise ValueError(
            f"{n_rows:,} rows of {tensor} have {n_rows * row_bytes:,} bytes; at most {MOST_READ_BYTES:,} are read at "
            "once. Ask for fewer rows; if one is too long already, the file claims what no model has."
        )
    with open(path, "rb") as file:
        file.seek(header.data_offset + found.offset + first * row_bytes)
        data = file.read(n_rows * row_bytes)
    return Rows(tensor, found.type, np.frombuffer(data, np.uint8).reshape(n_rows, row_bytes))


def bits_per_weight(length, bits, n_scales=1, scale_bits=16):
    """Storage of one weight in bits, when `length` weights of `bits` bits share `n_scales` numbers of `scale_bits`.

    >>> bits_per_weight(32, 4)                  # 4 + 16/32
    4.5
    >>> bits_per_weight(32, 4, n_scales=2)      # scale and offset
    5.0
    """
    return (length * bits + n_scales * scale_bits) / length


def in_blocks(x, length, bits):
    """A row squeezed in blocks of `length` weights, each with a scale of its own in FP16, and given back.

    Formula: `symmetric` for each block. Raises `ValueError` when the row is no whole number of blocks.

    >>> in_blocks([7, 0, 0.5, 7], 2, 4).tolist()        # two scales of 1; 0.5 goes up
    [7.0, 0.0, 1.0, 7.0]
    """
    x = _row(x).reshape(-1)
    if length not in range(1, x.size + 1) or x.size % length:
        raise ValueError(f"A row of {x.size} weights is no whole number of blocks of {length!r} weights.")
    blocks = [symmetric(block, bits) for block in x.reshape(-1, length)]
    scales = _fp16_at(_fp16_bytes(np.array([[block.scale] for block in blocks], np.float32)), 0)
    return (np.array([block.integers for block in blocks]) * scales.astype(float)).reshape(-1)


def rounding_and_clipping(x, squeezed):
    """The two parts of the error of a `Squeezed` row: (rmse by rounding, rmse by clipping).

    Formula: the squared errors of the weights within the outermost levels, and of those beyond, each divided by the
    number of all weights, then the root. The squares of both add up to the square of the whole rmse.

    >>> row = [0.25, 0, 0, 5]                                 # scale 1: 0.25 goes to 0; 5 is clipped to 1
    >>> rounding_and_clipping(row, symmetric(row, bits=2, limit=1))
    (0.125, 2.0)
    """
    x = _row(x)
    squares = (x - squeezed.weights()) ** 2
    beyond = (x < squeezed.levels[0]) | (x > squeezed.levels[-1])
    return tuple(math.sqrt(float(squares[where].sum()) / x.size) for where in (~beyond, beyond))


def clipped_at(x, bits, per_cent):
    """`symmetric` with the limit at some per cent of the largest size.

    >>> clipped_at([1, -10], bits=4, per_cent=70).weights().tolist()
    [1.0, -7.0]
    """
    return symmetric(x, bits, limit=float(np.abs(_row(x)).max()) * per_cent / 100)


def simple_layout(length, bits):
    """The `layout` of a block of `length` weights of `bits` bits with one FP16 scale, as `in_blocks` makes them.

    >>> [part.per_weight for part in simple_layout(64, 4)]
    [0.25, 4.0]
    """
    return Part("scale", 1, 16, 16 / length), Part("weights", length, bits, float(bits))
