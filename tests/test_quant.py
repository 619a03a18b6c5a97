"""`helpers.quant`: blocks bit for bit as ggml and the `gguf` package make them, on random, awkward and real weights."""

import ctypes
import importlib.util
import itertools
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from helpers import download, formats, gguf, quant

TYPES = ("Q8_0", "Q4_0", "Q4_1")
TINY = np.float32(1e-30)  # its square underflows, 1 / it does not overflow


def reference(name):
    """(quantize, dequantize) of the gguf package for one type."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[name]
    return (lambda x: quants.quantize(x, kind)), (lambda raw: quants.dequantize(raw, kind))


def cases():
    random = np.random.default_rng(7)
    outlier = random.normal(0, 0.02, (4, 64)).astype(np.float32)
    outlier[2, 5] = 40
    halves = np.tile(np.arange(-16, 16, dtype=np.float32) / 2, (2, 2))
    yield "normal", random.normal(0, 0.02, (64, 576))
    yield "uniform", random.uniform(-3, 5, (64, 96))
    yield "heavy tails", random.standard_t(2, (64, 256))
    yield "all zeros", np.zeros((2, 64))
    yield "minus zeros", -np.zeros((1, 32))
    yield "zeros of both signs", np.tile([0.0, -0.0, -0.0], (1, 32))
    yield "zeros of both signs, minus first", np.tile([-0.0, 0.0], (1, 16))
    yield "one outlier", outlier
    yield "negative maximum", -np.abs(random.normal(0, 1, (8, 32)))
    yield "positive only", np.abs(random.normal(0, 1, (8, 32)))
    yield "a constant", np.full((1, 32), 0.3)
    yield "middles", halves
    yield "same size, both signs", np.tile([1.0, -1.0], (1, 16))
    yield "tiny", random.normal(0, TINY, (4, 32))
    yield "scale below FP16", random.normal(0, 1e-7, (4, 64))
    yield "scale at the top of FP16", np.linspace(-65504, 65504, 32)[None]


CASES = {name: np.asarray(x, dtype=np.float32) for name, x in cases()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TYPES)
def test_quantize_as_the_gguf_package(name, case):
    their_quantize, their_dequantize = reference(name)
    ours, theirs = quant.quantize(name, CASES[case]), their_quantize(CASES[case])
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    if "zeros" in case and case != "all zeros":
        return  # here the package and ggml's C code differ in the sign of a scale of 0; ours is the C code's
    assert np.array_equal(ours, theirs)
    back = quant.dequantize(name, ours)
    assert back.dtype == np.float32 and back.tobytes() == their_dequantize(theirs).tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_dequantize_as_the_gguf_package(name):
    """All that a file may hold: also scales that no quantizer writes."""
    raw = np.random.default_rng(1).integers(0, 256, (500, formats.row_bytes(name, 64)), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        ours, theirs = quant.dequantize(name, raw), reference(name)[1](raw)
    assert ours.shape == theirs.shape and np.array_equal(ours, theirs, equal_nan=True)


def ggml():
    """llama.cpp's own ggml as a C library, without importing llama_cpp."""
    found = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (found.submodule_search_locations if found else ())]
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    path = next((folder / name for folder in folders for name in names if (folder / name).exists()), None)
    return ctypes.CDLL(str(path)) if path else None


@pytest.mark.model
@pytest.mark.parametrize("name", TYPES)
def test_quantize_as_ggml_itself(name):
    """The C code's own reference functions; compilers may fuse a multiplication and an addition, so this is a test."""
    library = ggml()
    if library is None:
        pytest.skip("llama-cpp-python, which carries ggml, is not installed")
    encode, decode = library[f"quantize_row_{name.lower()}_ref"], library[f"dequantize_row_{name.lower()}"]
    for function in (encode, decode):
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        function.restype = None
    for case, x in CASES.items():
        x = np.ascontiguousarray(x.reshape(-1))
        raw = np.zeros(formats.row_bytes(name, x.size), np.uint8)
        encode(x.ctypes.data, raw.ctypes.data, x.size)
        assert np.array_equal(quant.quantize(name, x), raw), case
        back = np.zeros_like(x)
        decode(raw.ctypes.data, back.ctypes.data, x.size)
        assert np.array_equal(quant.dequantize(name, raw), back), case


def test_next_to_nothing_counts_as_zero():
    """1 / scale is no number of FP32 here, and C leaves open what an integer of it is; FP16 keeps 0 in any case."""
    for name, x in itertools.product(TYPES, (np.float32(1e-40), np.float32(1e-45))):
        row = np.zeros(32, np.float32)
        row[3:6] = x, -x, x / 2
        assert not quant.dequantize(name, quant.quantize(name, row)).any()


@pytest.mark.parametrize("bad", (math.inf, -math.inf, math.nan))
@pytest.mark.parametrize("name", TYPES)
def test_infinite_weights_are_refused(name, bad):
    row = np.ones(64, np.float32)
    row[40] = bad
    with pytest.raises(ValueError, match=r"1 of 64 weights are not finite .*damaged"):
        quant.quantize(name, row)
    with pytest.raises(ValueError, match="not finite"):
        quant.symmetric(row)
    with pytest.raises(ValueError, match="not finite"):
        quant.asymmetric(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [("Q8_0", [1e7]), ("Q4_0", [-1e6]), ("Q4_1", [-7e4, 0]), ("Q4_1", [0, 1e6]), ("Q4_1", [-3e38, 3e38])],
)
def test_a_scale_beyond_fp16_is_refused(name, row):
    with pytest.raises(ValueError, match="FP16 holds at most 65504"):
        quant.quantize(name, np.resize(np.float32(row), 32))


def test_rows_that_are_no_blocks_are_refused():
    with pytest.raises(ValueError, match="A row of 33 weights is no whole number of Q4_0 blocks"):
        quant.quantize("Q4_0", np.zeros(33))
    with pytest.raises(ValueError, match="17 bytes are no whole number"):
        quant.dequantize("Q4_0", bytes(17))
    with pytest.raises(ValueError, match="uint8.*float64"):
        quant.dequantize("Q4_0", np.zeros(18))
    with pytest.raises(ValueError, match="No readable quantizer for 'Q4_K'.*Q8_0, Q4_0, Q4_1"):
        quant.quantize("Q4_K", np.zeros(256))


def test_a_block_can_be_packed_by_hand():
    """Weight i lies in the right half of byte i, weight i + 16 in the left half; the scale comes first."""
    raw = quant.quantize("Q4_0", [-8, *range(-7, 8), *range(-8, 8)])
    assert raw[:2].tobytes() == struct.pack("<e", 1.0)
    assert raw[2:].tolist() == [level * 16 + level for level in range(16)]
    assert quant.dequantize("q4_0", raw.tobytes()).tolist() == [*range(-8, 8), *range(-8, 8)]


@pytest.mark.parametrize("name", TYPES)
def test_unpack_gives_the_parts_of_the_formula(name):
    scales, integers, offsets = quant.unpack(name, quant.quantize(name, CASES["uniform"]))
    assert integers.shape == (64 * 3, 32) and scales.shape == offsets.shape == (64 * 3, 1)
    back = (scales * integers + offsets).reshape(64, 96)
    assert np.array_equal(back, quant.dequantize(name, quant.quantize(name, CASES["uniform"])))


# Real weights


@pytest.fixture(scope="module")
def model():
    try:
        return download.default_model()
    except download.DownloadError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("tensor", "type_name"),
    [("blk.0.ffn_down.weight", "Q4_1"), ("blk.29.attn_q.weight", "Q4_1"), ("token_embd.weight", "Q8_0")],
)
def test_real_blocks(model, tensor, type_name):
    rows = quant.read_rows(model, tensor, n_rows=128, first=3)
    assert rows.type == type_name and rows.raw.shape[0] == 128
    weights = rows.weights()
    assert weights.tobytes() == reference(type_name)[1](rows.raw).tobytes()
    assert 0.001 < weights.std() < 1, "these are no weights: the offset in the file is wrong"
    for name in TYPES:
        assert np.array_equal(quant.quantize(name, weights), reference(name)[0](weights))


@pytest.mark.slow
def test_whole_tensor_as_the_gguf_reader_sees_it(model):
    from gguf import GGUFReader

    theirs = next(tensor for tensor in GGUFReader(model).tensors if tensor.name == "blk.7.ffn_down.weight")
    ours = quant.read_rows(model, "blk.7.ffn_down.weight", n_rows=576)
    assert np.array_equal(ours.raw, theirs.data)


def test_norms_are_plain_numbers(model):
    rows = quant.read_rows(model, "output_norm.weight")
    assert rows.type == "F32" and rows.weights().shape == (1, 576)


def test_read_rows_refuses_a_row_that_only_a_hostile_file_claims(tmp_path):
    """It is as long as the header says, and nearly all of it is a hole."""
    path, n_bytes = tmp_path / "long.gguf", 2**30
    writer = pytest.importorskip("gguf").GGUFWriter(path, "llama")
    writer.add_tensor_info("long", (1, n_bytes // 4), np.dtype(np.float32), n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + n_bytes + 64)
    with pytest.raises(ValueError, match="1 rows of long have 1,073,741,824 bytes; at most 268,435,456 are read"):
        quant.read_rows(path, "long")


def test_read_rows_says_what_is_wrong(model, tmp_path):
    with pytest.raises(KeyError, match=r"blk\.0\.attn_q\.weight"):
        quant.read_rows(model, "blk.0.attn_q")
    with pytest.raises(KeyError, match="in this file"):
        quant.read_rows(model, "xyz")
    for n_rows, first in ((577, 0), (1, 576), (0, 0), (1, -1)):
        with pytest.raises(ValueError, match="has the rows 0 to 575"):
            quant.read_rows(model, "blk.0.ffn_down.weight", n_rows, first)
    with pytest.raises(gguf.GGUFError):
        quant.read_rows(tmp_path / "nothing.gguf", "x")


# The bits of one number


@pytest.mark.parametrize("x", [0.0, -0.0, 1.0, -1.5, 0.1, 65504.0, 65520.0, 3e38, 1e-45, 6e-8, math.inf, math.nan])
def test_stored_as_the_processor_stores_it(x):
    assert quant.store(x, "FP32").pattern == struct.unpack("<I", np.float32(x).tobytes())[0]
    with np.errstate(over="ignore"):
        assert quant.store(x, "FP16").pattern == struct.unpack("<H", np.float16(x).tobytes())[0]
    back = quant.store(x, "BF16").value
    assert math.isnan(back) if math.isnan(x) else back == pytest.approx(x, rel=2**-8, abs=1e-40)


def test_bf16_rounds_as_the_gguf_package():
    x = np.random.default_rng(3).normal(0, 1, 2000).astype(np.float32)
    x[:4] = 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -0.0  # two middles, beyond the range, minus zero
    theirs = reference("BF16")[0](x).view(np.uint16)
    assert [quant.store(value, "BF16").pattern for value in x] == theirs.tolist()
    raw = theirs.view(np.uint8)
    assert quant.dequantize("BF16", raw).tolist() == [quant.Stored("BF16", int(p)).value for p in theirs]


@pytest.mark.parametrize("name", quant.FORMATS)
def test_every_flip_can_be_taken_back(name):
    one = quant.store(1, name)
    for place in range(len(one.bits)):
        other = one.flip(place)
        assert other.value != one.value and other.flip(place) == one
        assert [a != b for a, b in zip(one.bits, other.bits, strict=True)].index(True) == place
        assert one.part(place) in dict(one.fields)
    for place in (-1, len(one.bits), 1.5):
        with pytest.raises(ValueError, match="places"):
            one.flip(place)


def test_the_limits_are_those_of_numpy():
    for name, kind in (("FP16", np.float16), ("FP32", np.float32)):
        info, ours = np.finfo(kind), quant.FORMATS[name]
        assert (ours.largest, ours.smallest, ours.step) == (info.max, info.smallest_subnormal, info.eps)
    assert quant.Stored("BF16", 0x7F7F).value == quant.FORMATS["BF16"].largest
    assert quant.Stored("BF16", 0x0001).value == quant.FORMATS["BF16"].smallest


def test_int8_refuses_what_it_cannot_hold():
    assert [quant.store(n, "int8").value for n in (-128, -1, 0, 127)] == [-128, -1, 0, 127]
    for wrong in (128, -129, 0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="whole numbers from -128 to 127"):
            quant.store(wrong, "INT8")
    with pytest.raises(ValueError, match="Unknown number format 'FP8'"):
        quant.store(1, "FP8")


# One scale for a row


@pytest.mark.parametrize("bits", (2, 3, 4, 8, 12))
@pytest.mark.parametrize("squeeze", (quant.symmetric, quant.asymmetric))
def test_unclipped_weights_are_off_by_half_a_step_at_most(squeeze, bits):
    x = np.random.default_rng(bits).normal(0.3, 1, 1000)
    squeezed = squeeze(x, bits)
    assert quant.error(x, squeezed.weights()).largest <= squeezed.scale * (0.5 + 1e-6)
    assert squeezed.n_clipped == 0 and set(squeezed.weights()) <= set(squeezed.levels)
    assert squeezed.integers.min() >= squeezed.lowest and squeezed.integers.max() <= squeezed.highest


def test_clipping():
    squeezed = quant.symmetric([-10, -1, 0, 1, 10], bits=4, limit=7)
    assert squeezed.weights().tolist() == [-7, -1, 0, 1, 7] and squeezed.n_clipped == 2
    squeezed = quant.asymmetric([-10, 0, 3, 10], bits=2, low=0, high=3)
    assert squeezed.weights().tolist() == [0, 0, 3, 3] and squeezed.n_clipped == 2
    assert squeezed.levels.tolist() == [0, 1, 2, 3]


def test_rows_without_a_span():
    assert quant.symmetric([0, 0]).weights().tolist() == [0, 0]
    assert quant.asymmetric([0.3, 0.3]).weights().tolist() == [0.3, 0.3]
    assert quant.asymmetric([0, 0]).levels.tolist() == [0] * 256


@pytest.mark.parametrize(
    "call",
    [
        lambda: quant.symmetric([]),
        lambda: quant.symmetric([1], bits=1),
        lambda: quant.symmetric([1], bits=4.5),
        lambda: quant.symmetric([1], limit=0),
        lambda: quant.symmetric([1], limit=math.inf),
        lambda: quant.asymmetric([1], low=2, high=1),
        lambda: quant.asymmetric([1], high=math.nan),
        lambda: quant.in_blocks([1, 2, 3], 2, 4),
        lambda: quant.in_blocks([1, 2, 3], 0, 4),
        lambda: quant.error([1], [1, 2]),
        lambda: quant.error([], []),
        lambda: quant.layout("IQ2_XXS"),
    ],
)
def test_wrong_arguments_are_sentences(call):
    with pytest.raises(ValueError, match=r"[A-Za-z].*\.$"):
        call()


def test_round_half_away_is_roundf():
    x = np.float32([0.5, -0.5, 1.5, 2.5, -2.5, np.nextafter(np.float32(0.5), np.float32(0)), 8388609, 0])
    assert quant.round_half_away(x).tolist() == [1, -1, 2, 3, -3, 0, 8388609, 0]


def test_in_blocks_is_q8_0_for_its_length():
    """Q8_0 is `symmetric` with 8 bits in blocks of 32, but for integers found with a scale in FP32."""
    x = CASES["normal"][0]
    assert np.allclose(quant.in_blocks(x, 32, 8), quant.dequantize("Q8_0", quant.quantize("Q8_0", x)), atol=1e-6)


def test_the_layouts_add_up_to_the_block_table():
    for name in quant.LAYOUTS:
        assert sum(part.per_weight for part in quant.layout(name)) == formats.block_type(name).bits_per_weight, name
        assert quant.layout(name)[-1].count == formats.block_type(name).block_length


def test_error_of_nothing_and_of_everything():
    assert quant.error([1, 2], [1, 2]) == quant.Error(0.0, 0.0, math.inf)
    assert quant.error([0, 0], [1, 1]).snr_db == -math.inf
    assert quant.error([3, 4], [0, 0]).snr_db == pytest.approx(0)
