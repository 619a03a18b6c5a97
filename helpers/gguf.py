"""Read the header of a GGUF file: metadata, tensor descriptions and the model's shape, without its weights.

A header is short beside its file, but it holds the vocabulary: up to 800,000 strings. They are stepped over, not
built, so reading takes milliseconds. Whatever a file claims is checked before it is believed; a damaged or hostile
one is a `GGUFError`.
"""

import html
import itertools
import math
import re
import stat
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from . import formats, remote, units
from .architectures import ModelSpec

MAX_KEYS = 4_096  # published files have below 100
MAX_TENSORS = 16_384  # published files have below 3,000
MAX_NAME_BYTES = 65_535  # the format's own limit for keys
MAX_FAMILY_CHARACTERS = 64  # llama.cpp's longest name of an architecture has below 30
MAX_HEADER_BYTES = 48 * units.MIB  # bytes really looked at; the largest vocabularies need below 20 MiB
MAX_SLOW_STEPS = 300_000  # strings stepped over one by one; real vocabularies need next to none
MAX_KEPT_BYTES = 24 * units.MIB  # memory for names and values
WINDOW_BYTES = 64 * units.KIB  # fits the processor's cache; larger windows are slower
SHORT_NUMBERS, SHORT_STRINGS = 1024, 64  # arrays up to these lengths become tuples
MOST_INT64 = 2**63 - 1

SCALARS = {  # value type -> name, struct code
    0: ("UINT8", "B"),
    1: ("INT8", "b"),
    2: ("UINT16", "H"),
    3: ("INT16", "h"),
    4: ("UINT32", "I"),
    5: ("INT32", "i"),
    6: ("FLOAT32", "f"),
    7: ("BOOL", "?"),
    10: ("UINT64", "Q"),
    11: ("INT64", "q"),
    12: ("FLOAT64", "d"),
}
STRING, ARRAY = 8, 9
U32, U64, TYPE_AND_U64 = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
AFTER_N_DIMS = [struct.Struct(f"<{n}QIQ") for n in range(5)]  # the extents, the type, the offset
LENGTH_BYTES = U64.size

MAGIC = b"GGUF"
AGAIN = "The file is cut short or damaged: download it again."
STEPPED_OVER = f"Texts that would take more than {units.show(MAX_KEPT_BYTES, 0)} of memory were stepped over."
ELSEWHERE = "The file is damaged or made to waste time: download the model from another place."
RESUME = "Resume it, or download the file again."
WEB_PAGE = "It looks like a web page saved in its place: download it again, logged in if the site asks for it."
ON_THE_SERVER = {  # advice about a file on this computer, in words for one that was never downloaded
    AGAIN: "The copy on the server is cut short or damaged: choose another.",
    RESUME: "The copy on the server cannot be used: choose another.",
    WEB_PAGE: "It looks like a web page: copy the address of the download itself, and log in if the site asks for it.",
    "if it should be, download it again": "if it should be, choose another copy",
    "the download is incomplete": "the file on the server is incomplete",
}
BEFORE_GGUF = "It is a model in a format from before GGUF (2023): download a newer version of the model."
MISTAKEN_FOR = {  # what people have in their hands when it is not GGUF
    b"version https://git-lfs": "It is a Git LFS pointer: run `git lfs pull`, or download the file itself.",
    b"<": WEB_PAGE,
    b"PK": "It looks like a ZIP or PyTorch file: convert it to GGUF first, or download a GGUF version.",
    b"lmgg": BEFORE_GGUF,
    b"fmgg": BEFORE_GGUF,
    b"tjgg": BEFORE_GGUF,
    b"\0\0\0\0": "It starts with zeros, as an unfinished download does: download it again.",
}

# Families whose sliding window llama.cpp uses: every n-th layer sees everything, and the window when none is stored.
WINDOWED = {
    "gemma2": (2, 4096),
    "gemma3": (6, 0),
    "gemma3n": (5, 0),
    "gpt-oss": (2, 0),
    "cohere2": (4, 0),
    "olmo2": (4, 0),
}
WINDOW_IGNORED = ("llama", "phi3")

BEYOND_SPEC = {  # what changes memory or speed, but has no field in ModelSpec
    "attention.q_lora_rank": "it compresses its queries",
    "ssm.conv_kernel": "it has recurrent layers",
    "nextn_predict_layers": "it has extra layers that predict further tokens",
}


class GGUFError(ValueError):
    """A file that is no readable GGUF file; the message says what is wrong and what to do next."""


@dataclass(frozen=True, slots=True)
class Array:
    """Stands for an array that was stepped over (a very long text is one of UINT8).

    `offset` is the place of its first element in the file, in bytes.
    """

    type: str
    length: int
    offset: int

    def __len__(self):
        return self.length


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` in ggml's order (row length first), `offset` in bytes from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, repr=False)
class Header:
    """What a GGUF file says about itself.

    `metadata` maps keys to values; long arrays are `Array` placeholders. `notes` are sentences about anything unusual.

    *When it misleads*: `tensors`, `n_params` and `tensor_bytes` cover this file, perhaps one part of a split model.
    """

    name: str
    version: int
    metadata: dict
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_bytes: int
    notes: tuple[str, ...] = ()

    @cached_property
    def tensor_types(self):
        """Tensor name -> ggml type name."""
        return {tensor.name: tensor.type for tensor in self.tensors}

    @cached_property
    def n_params(self):
        """Number of weights stored in this file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @cached_property
    def tensor_bytes(self):
        """Bytes of all tensors, without the padding between them."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @cached_property
    def spec(self):
        """The model's shape as a `ModelSpec`. Raises `GGUFError` when the file describes no language model."""
        try:
            return _spec(self)
        except GGUFError as error:
            raise GGUFError(f"{units.plain(self.name)}: {error}") from None

    def __str__(self):
        rows = _rows(self)
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    __repr__ = __str__  # notebooks show the repr where they cannot show HTML

    def _repr_html_(self):
        rows = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(label)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for label, text in _rows(self)
        )
        return f"<table>{rows}</table>"


def read_header(path, limits=None, progress=True):
    """The `Header` of a GGUF file (version 2 or 3, little endian), on this computer or on the web.

    Weights are never read: the time depends on the vocabulary (some milliseconds), not on the model's size.
    Raises `GGUFError` for a file that is missing, incomplete, damaged or something else.

    A text such as `"https://..."` or `"hf://owner/repo/model.gguf"` is a file on the web: only its header is fetched (2
    to 10 MB), with a progress bar when that takes longer than 2 seconds. `limits` is a `remote.Limits`, for slow lines.

    *When it misleads*: a header can be in order while the weights behind it are not.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "tiny.gguf")
    ...     _ = path.write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + bytes(16))     # version 3, no tensors, no metadata
    ...     read_header(path).file_bytes                                       # 4 + 4 + 8 + 8
    24
    """
    if remote.is_address(path):
        return _read_remote(path, limits, progress)
    shown = units.plain(str(path))
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise GGUFError(f"{shown} is a folder. Give the path of one .gguf file in it.")
        if not stat.S_ISREG(status.st_mode):  # a named pipe would make us wait for ever
            raise GGUFError(f"{shown} is no ordinary file. Give the path of a .gguf file.")
        with path.open("rb") as file:
            return parse(_file_source(file), status.st_size, path.name)
    except FileNotFoundError:
        raise GGUFError(f"There is no file {shown}. Check the folder and the spelling.") from None
    except GGUFError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = units.plain(getattr(error, "strerror", None) or str(error))
        raise GGUFError(f"{shown} could not be opened ({reason}). Check the path and that you may read it.") from error


def _file_source(file):
    def read(offset, n):
        file.seek(offset)
        return file.read(n)

    return read


def _read_remote(address, limits, progress):
    try:
        with remote.Source(address, limits, progress) as source:
            return _parse(_Cursor(source.read, source.total_bytes), source.name)
    except remote.RemoteError as error:
        raise GGUFError(str(error)) from None  # what lies below may quote a signed address
    except GGUFError as error:
        problem = str(error)
        for here, there in ON_THE_SERVER.items():
            problem = problem.replace(here, there)
        raise GGUFError(f"{source.shown}: {problem}") from None


def parse(read, file_bytes, name="file"):
    """The `Header` found through `read(offset, n) -> bytes`, a source of `file_bytes` bytes called `name`.

    >>> tiny = b"GGUF" + bytes([3, 0, 0, 0]) + bytes(16)
    >>> parse(lambda offset, n: tiny[offset : offset + n], len(tiny)).version
    3
    """
    try:
        return _parse(_Cursor(read, file_bytes), name)
    except GGUFError as error:
        raise GGUFError(f"{units.plain(name)}: {error}") from None


def _parse(cursor, name):
    _check_magic(cursor)
    version = _version(cursor)
    n_tensors = _announced(cursor, "tensors", MAX_TENSORS)
    n_keys = _announced(cursor, "metadata entries", MAX_KEYS)
    notes = []
    metadata = _metadata(cursor, n_keys, notes)
    alignment = _alignment(metadata)
    tensors = _tensors(cursor, n_tensors, notes)
    data_offset = units.pad(cursor.at, alignment) if tensors else cursor.at
    _check_layout(tensors, data_offset, alignment, cursor.end, notes)
    notes += _split_notes(metadata)
    return Header(name, version, metadata, tensors, data_offset, cursor.end, tuple(notes))


class _Cursor:
    """A place in the file that only moves forward, and a window of bytes around it; the budgets live here."""

    def __init__(self, read, end):
        self.read, self.end = read, end
        self.at = self.start = 0
        self.window = b""
        self.seen_bytes = self.kept_bytes = self.slow_steps = 0

    @property
    def left(self):
        return self.end - self.at

    def have(self, n, what):
        """Bring the next `n` bytes into the window; returns their index there."""
        index = self.at - self.start
        if index + n <= len(self.window):
            return index
        if n > self.left:
            raise GGUFError(f"{what} needs {n:,} bytes at byte {self.at:,}, but the file ends at {self.end:,}. {AGAIN}")
        size = min(max(n, WINDOW_BYTES), self.left)
        self.seen_bytes += size
        if self.seen_bytes > MAX_HEADER_BYTES:
            raise GGUFError(
                f"the header goes on for more than {units.show(MAX_HEADER_BYTES, 0)} (now in {what}), which no model "
                f"needs. {ELSEWHERE}"
            )
        self.start, self.window = self.at, self.read(self.at, size)
        if len(self.window) < size:
            raise GGUFError(f"the file became shorter while {what} was read. Try again when it is complete.")
        return 0

    def take(self, layout, what):
        index = self.have(layout.size, what)  # first: it may replace the window
        values = layout.unpack_from(self.window, index)
        self.at += layout.size
        return values

    def claim(self, n, what):
        """Refuse a claim of `n` bytes that the file cannot hold."""
        if n > self.left:
            raise GGUFError(f"{what} claims {n:,} bytes, but only {self.left:,} are left in the file. {AGAIN}")

    def keep(self, n_bytes):
        """True when there is room for a value that takes `n_bytes` of memory."""
        if self.kept_bytes + n_bytes > MAX_KEPT_BYTES:
            return False
        self.kept_bytes += n_bytes
        return True

    def text_bytes(self, what):
        (n,) = self.take(U64, what)
        self.claim(n, what)
        return n

    def text(self, n, what):
        index = self.have(n, what)
        raw = self.window[index : index + n]
        self.at += n
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            bad = f"byte {raw[error.start]:#04x} at {error.start:,}"
            raise GGUFError(f"{what} is not valid UTF-8 text ({bad}). {AGAIN}") from None

    def name(self, what):
        n = self.text_bytes(what)
        if not 1 <= n <= MAX_NAME_BYTES:
            raise GGUFError(f"{what} is {n:,} bytes long; 1 to {MAX_NAME_BYTES:,} are possible. {AGAIN}")
        if not self.keep(500 + 4 * n):  # Python needs up to 4 bytes a character; 500: what a name stands for
            raise GGUFError(f"the names up to {what} take more than {units.show(MAX_KEPT_BYTES, 0)}. {ELSEWHERE}")
        return self.text(n, what)

    def skip_texts(self, count, what):
        """Step over `count` strings, without building them."""
        self.claim(count * LENGTH_BYTES, what)
        done = 0
        while done < count:
            index = self.have(LENGTH_BYTES, what)
            leaps, place = _leap(self.window, index, count - done)
            steps, place = _step(self.window, place, count - done - leaps)
            done += leaps + steps
            self.at = self.start + place
            if self.at > self.end:
                raise GGUFError(f"text {done:,} of {count:,} in {what} runs past the end of the file. {AGAIN}")
            self.slow_steps += steps
            if self.slow_steps > MAX_SLOW_STEPS:
                raise GGUFError(
                    f"{what} holds too many texts that are empty, long or full of zeros ({done:,} of {count:,} read); "
                    f"it is no vocabulary. {ELSEWHERE}"
                )


def _step(window, place, count):
    """Follow up to `count` strings one by one; returns how many, and where the next starts (even beyond the window)."""
    length_at, last, done = U64.unpack_from, len(window) - LENGTH_BYTES, 0
    while done < count and place <= last:
        place += LENGTH_BYTES + length_at(window, place)[0]
        done += 1
    return done, place


def _leap(window, place, count):
    """Follow many strings at once; returns how many and where the next starts.

    A length below 65,536 is two bytes and six zeros, then comes text, which holds no zeros. So all places that look
    like this are found at once, and each is believed only if the string before it, counted from the first, ends there.
    """
    data = np.frombuffer(window, np.uint8, offset=place)
    if count < 100 or len(data) < 100:
        return 0, place
    zero = data == 0
    two = zero[:-1] & zero[1:]  # two[i]: bytes i and i+1 are zero
    six = two[:-4] & two[2:-2] & two[4:]
    starts = np.flatnonzero(six[2:-1] > zero[8:])  # bytes 2 to 7 after a start are zero, and byte 8 is not
    if not len(starts) or starts[0] != 0:
        return 0, place
    lengths = np.ndarray(len(data) - 1, "<u2", data, strides=(1,))[starts]
    ends = starts + LENGTH_BYTES + lengths
    broken = np.flatnonzero(ends[:-1] != starts[1:])
    done = min(count, int(broken[0]) + 1 if len(broken) else len(starts))
    return done, place + int(ends[done - 1])


def _check_magic(cursor):
    if not cursor.end:
        raise GGUFError("the file is empty. Download it again.")
    cursor.have(1, "the start")
    start = cursor.window[:24]
    if start.startswith(MAGIC):
        cursor.at = len(MAGIC)
        return
    hints = [hint for begin, hint in MISTAKEN_FOR.items() if start.startswith(begin)]
    if start[8:9] == b"{":
        hints = ["It looks like a safetensors file: convert it to GGUF first, or download a GGUF version."]
    hint = hints[0] if hints else "Check that this is the .gguf file itself; if it should be, download it again."
    raise GGUFError(f"it is no GGUF file: it starts with {start[:4]!r} instead of {MAGIC!r}. {hint}")


def _version(cursor):
    (version,) = cursor.take(U32, "the version")
    if version in (2, 3):
        return version
    if version == 1:
        raise GGUFError(
            "it has GGUF version 1 (of 2023), which llama.cpp dropped. Download a newer version of the model."
        )
    if not version & 0xFFFF:
        raise GGUFError(
            f"its version reads as {version:#010x}: the file is big endian, made for other processors. "
            "Download the usual (little-endian) file."
        )
    raise GGUFError(f"it has GGUF version {version}; 2 and 3 can be read. Update this kit, or download another file.")


def _announced(cursor, things, most):
    (count,) = cursor.take(U64, f"the number of {things}")
    if count > most:
        raise GGUFError(f"it announces {count:,} {things}; at most {most:,} are believed. {AGAIN}")
    return count


def _metadata(cursor, count, notes):
    metadata = {}
    for i in range(count):
        key = cursor.name(f"the name of metadata entry {i + 1} of {count}")
        if key in metadata:
            raise GGUFError(f"the metadata key {_quote(key)} occurs twice. {AGAIN}")
        metadata[key] = _value(cursor, key, notes)
    return metadata


def _value(cursor, key, notes):
    what = f"the value of {_quote(key)}"
    (kind,) = cursor.take(U32, what)
    if kind in SCALARS:
        return cursor.take(struct.Struct("<" + SCALARS[kind][1]), what)[0]
    if kind == STRING:
        return _text(cursor, what, notes)
    if kind == ARRAY:
        return _array(cursor, what, notes)
    raise GGUFError(f"{what} has type {kind}; GGUF knows the types 0 to 12. {AGAIN}")


def _text(cursor, what, notes):
    n = cursor.text_bytes(what)
    if cursor.keep(100 + 4 * n):
        return cursor.text(n, what)
    if STEPPED_OVER not in notes:
        notes.append(STEPPED_OVER)
    cursor.at += n
    return Array("UINT8", n, cursor.at - n)


def _array(cursor, what, notes):
    kind, count = cursor.take(TYPE_AND_U64, what)
    offset = cursor.at
    if kind == STRING:
        if count <= SHORT_STRINGS and cursor.keep(100 * count):
            return tuple(_text(cursor, what, notes) for _ in range(count))
        cursor.skip_texts(count, what)
        return Array("STRING", count, offset)
    if kind not in SCALARS:
        nested = "arrays" if kind == ARRAY else f"elements of type {kind}"
        raise GGUFError(f"{what} is an array of {nested}, which llama.cpp refuses too. Download another file.")
    name, code = SCALARS[kind]
    n_bytes = count * struct.calcsize(f"<{code}")
    cursor.claim(n_bytes, what)
    if count <= SHORT_NUMBERS and cursor.keep(40 * count):
        return cursor.take(struct.Struct(f"<{count}{code}"), what)
    cursor.at += n_bytes
    return Array(name, count, offset)


def _alignment(metadata):
    alignment = metadata.get("general.alignment", 32)
    power_of_two = type(alignment) is int and alignment > 0 and not alignment & (alignment - 1)
    if not power_of_two:
        raise GGUFError(f"general.alignment is {_quote(alignment)}; it must be a power of two, such as 32. {AGAIN}")
    return alignment


def _tensors(cursor, count, notes):
    tensors, names = [], set()
    blocks = {block.type_id: block for block in formats.TYPES.values()} if count else {}
    for i in range(count):
        tensor = _tensor(cursor, f"tensor {i + 1} of {count}", blocks)
        if tensor.name in names:
            raise GGUFError(f"two tensors are called {_quote(tensor.name)}. {AGAIN}")
        names.add(tensor.name)
        tensors.append(tensor)
    long = [name for name in names if len(name.encode()) > 63]
    if long:
        notes.append(f"llama.cpp refuses tensor names above 63 bytes, such as {_quote(min(long))}.")
    return tuple(tensors)


def _tensor(cursor, what, blocks):
    name = cursor.name(f"the name of {what}")
    (n_dims,) = cursor.take(U32, what)
    if n_dims >= len(AFTER_N_DIMS):
        raise GGUFError(f"tensor {_quote(name)} has {n_dims:,} dimensions; GGUF knows at most 4. {AGAIN}")
    *shape, kind, offset = cursor.take(AFTER_N_DIMS[n_dims], what)
    if kind not in blocks:
        raise GGUFError(
            f"tensor {_quote(name)} has the unknown type {kind}. "
            "If the file is very new, update the `gguf` package; if it is old, download a newer version of the model."
        )
    block = blocks[kind]
    row = shape[0] if shape else 1
    if row % block.block_length:
        raise GGUFError(
            f"tensor {_quote(name)} has rows of {row:,} weights, no whole number of {block.name} blocks "
            f"({block.block_length} weights each). {AGAIN}"
        )
    n_bytes = math.prod(shape) // block.block_length * block.block_bytes
    if not 0 < n_bytes <= MOST_INT64:
        raise GGUFError(f"tensor {_quote(name)} has the impossible shape {tuple(shape)}. {AGAIN}")
    return TensorInfo(name, tuple(shape), block.name, offset, n_bytes)


def _check_layout(tensors, data_offset, alignment, file_bytes, notes):
    """Every tensor aligned, inside the file, and none over another."""
    if not tensors:
        return
    for tensor in tensors:
        if tensor.offset % alignment:
            raise GGUFError(
                f"tensor {_quote(tensor.name)} starts at byte {tensor.offset:,} of the tensor data, "
                f"no multiple of the alignment {alignment:,}. {AGAIN}"
            )
    by_place = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(by_place):
        if before.offset + before.n_bytes > after.offset:
            raise GGUFError(f"tensors {_quote(before.name)} and {_quote(after.name)} overlap. {AGAIN}")
    stray, expected = _out_of_place(tensors, alignment)
    last = by_place[-1]
    total = data_offset + last.offset + last.n_bytes
    missing = total - file_bytes
    if missing > 0 and stray:
        raise GGUFError(f"tensor {_quote(last.name)} ends {missing:,} bytes behind the end of the file. {AGAIN}")
    if missing > 0:
        raise GGUFError(
            f"the download is incomplete: {missing:,} bytes of {total:,} are missing ({units.show(missing)} of "
            f"{units.show(total)}). {RESUME}"
        )
    if stray:
        notes.append(
            f"Tensor {_quote(stray.name)} starts at byte {stray.offset:,} of the tensor data, not at {expected:,}, "
            "right after the one before it: llama.cpp refuses such a file."
        )


def _out_of_place(tensors, alignment):
    """The first tensor that doesn't follow right after the one before, and where it should be; or None."""
    expected = 0
    for tensor in tensors:
        if tensor.offset != expected:
            return tensor, expected
        expected = units.pad(expected + tensor.n_bytes, alignment)
    return None, expected


def _split_notes(metadata):
    part, parts = metadata.get("split.no", 0), metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts <= 1:
        return []
    where = f"part {part + 1} of {parts}" if isinstance(part, int) else f"one of {parts} parts"
    return [
        f"This is {where} of a split model: the tensors, weights and bytes shown are this part's only. "
        "To load the model, keep all parts in one folder and open the first."
    ]


class _Keys:
    """The metadata of one architecture, read with suspicion."""

    def __init__(self, metadata, architecture):
        self.metadata, self.prefix = metadata, f"{architecture}."

    def __contains__(self, key):
        return self.prefix + key in self.metadata

    def get(self, key, default=None):
        return self.metadata.get(self.prefix + key, default)

    def number(self, key, default=None, least=0):
        value = self.get(key, default)
        if type(value) is not int or value < least:
            self.refuse(key, value, f"a whole number from {least}")
        return value

    def per_layer(self, key, default, n_layer):
        """A number, or a tuple of numbers, one per layer, when they differ."""
        value = self.get(key, default)
        if not isinstance(value, tuple):
            return self.number(key, default)
        if len(value) != n_layer or any(type(each) is not int or each < 0 for each in value):
            self.refuse(key, value, f"a whole number, or {n_layer} of them")
        return value[0] if len(set(value)) == 1 else value

    def refuse(self, key, value, wanted):
        found = "missing" if value is None else _quote(value)
        key = _quote(self.prefix + key)
        raise GGUFError(f"{key} is {found}; it must be {wanted}. Download another file of this model.")


def _spec(header):
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or f"{architecture}.block_count" not in metadata:
        raise GGUFError(_no_model(header, architecture))
    if not architecture.isprintable() or len(architecture) > MAX_FAMILY_CHARACTERS:  # it stands in many sentences
        raise GGUFError(
            f"its architecture is {_quote(architecture)}, which is no name of one (printable, at most "
            f"{MAX_FAMILY_CHARACTERS} characters). {ELSEWHERE}"
        )
    keys = _Keys(metadata, architecture)
    names = header.tensor_types
    n_layer = keys.number("block_count", least=1)
    n_embd = keys.number("embedding_length", least=1)
    heads = keys.per_layer("attention.head_count", 0, n_layer)  # 0: no attention at all, as in Mamba
    n_head = _largest(heads)
    head_size = n_embd // n_head if n_head else 0
    n_ff = keys.per_layer("feed_forward_length", 0, n_layer)
    n_swa, swa_pattern, notes = _window(keys, architecture, n_layer)
    notes += [f"This shape leaves something out: {why}." for key, why in BEYOND_SPEC.items() if keys.get(key)]
    if isinstance(heads, tuple) or isinstance(n_ff, tuple):
        notes.append("Its layers differ in size: n_head and n_ff are those of the largest layer.")
    latent, more_notes = _latent(keys)
    notes += more_notes
    tied = "output.weight" not in names
    if tied and _split_notes(metadata):
        tied = False
        notes.append("The output matrix may be in another part of this split model; it is counted as present.")
    head_size_k, n_rot = keys.number("attention.key_length", head_size), keys.number("rope.dimension_count", 0)
    return ModelSpec(
        name=_slug(header),
        architecture=architecture,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=keys.per_layer("attention.head_count_kv", heads, n_layer),
        n_embd_head_k=head_size_k,
        n_embd_head_v=keys.number("attention.value_length", head_size),
        n_ff=_largest(n_ff),
        n_vocab=_n_vocab(header, keys),
        n_ctx_train=keys.number("context_length"),
        tied=tied,
        n_swa=n_swa,
        swa_pattern=swa_pattern,
        n_rot=n_rot if n_rot != head_size_k else 0,
        n_expert=keys.number("expert_count", 0),
        n_expert_used=_largest(keys.per_layer("expert_used_count", 0, n_layer)),
        n_expert_shared=keys.number("expert_shared_count", 0),
        n_ff_exp=_largest(keys.per_layer("expert_feed_forward_length", 0, n_layer)),
        n_layer_dense_lead=keys.number("leading_dense_block_count", 0),
        **latent,
        rope_freqs="rope_freqs.weight" in names,
        tokenizer="spm" if metadata.get("tokenizer.ggml.model") == "llama" else "bpe",
        title=_said(metadata, "general.name"),
        license=_said(metadata, "general.license"),
        languages=_said(metadata, "general.languages"),
        sources=(f"header of {units.plain(header.name)}",),
        notes=" ".join(notes),
    )


def _latent(keys):
    """What MLA adds to a shape, and a sentence about a file that leaves it unused."""
    if not keys.number("attention.kv_lora_rank", 0):
        return {}, []
    if not keys.number("attention.key_length_mla", 0):
        return {}, ["It could cache one short vector for all heads (MLA), but this file is stored without that."]
    return {
        "kv_lora_rank": keys.number("attention.kv_lora_rank"),
        "n_embd_head_k_mla": keys.number("attention.key_length_mla"),
        "n_embd_head_v_mla": keys.number("attention.value_length_mla"),
    }, []


def _no_model(header, architecture):
    kind = header.metadata.get("general.type")
    said = f"its architecture is {_quote(architecture)}" if architecture else "it names no architecture"
    said += f", its type {_quote(kind)}" if kind else ""
    if _split_notes(header.metadata):
        return f"it describes no layers ({said}): it is a later part of a split model. Open the part numbered 00001."
    return (
        f"it describes no language model ({said}, and there is no block_count). It may be an image projector "
        "(mmproj), an adapter (LoRA) or a vocabulary: give the model's main file instead."
    )


def _largest(per_layer):
    return max(per_layer) if isinstance(per_layer, tuple) else per_layer


def _n_vocab(header, keys):
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, (tuple, Array)) and len(tokens):
        return len(tokens)  # like llama.cpp: the list counts, whatever vocab_size says
    if "vocab_size" in keys:
        return keys.number("vocab_size")
    embedding = [tensor for tensor in header.tensors if tensor.name == "token_embd.weight" and len(tensor.shape) > 1]
    if not embedding:
        keys.refuse("vocab_size", None, "the size of the vocabulary, since there is no token list")
    return embedding[0].shape[1]


def _window(keys, architecture, n_layer):
    """Sliding window in tokens, every how many layers one sees everything, and sentences about what is left out."""
    usual_pattern, usual_window = WINDOWED.get(architecture, (0, 0))
    n_swa = keys.number("attention.sliding_window", usual_window)
    if not n_swa:
        return 0, 0, []
    if architecture in WINDOW_IGNORED:
        return 0, 0, [f"llama.cpp ignores its sliding window of {n_swa:,} tokens."]
    unused = [f"Its sliding window of {n_swa:,} tokens is not modelled: every layer is counted with the whole context."]
    if architecture not in WINDOWED:
        return 0, 0, unused
    stored = keys.get("attention.sliding_window_pattern")
    if isinstance(stored, tuple):
        pattern = _pattern_of([bool(windowed) for windowed in stored]) if len(stored) == n_layer else None
    else:
        pattern = keys.number("attention.sliding_window_pattern", usual_pattern)
        pattern = pattern or n_layer + 1  # llama.cpp's 0: every layer is windowed
    if pattern is None:
        return 0, 0, unused
    return (n_swa, pattern, []) if pattern > 1 else (0, 0, [])


def _pattern_of(windowed):
    """The n for which every n-th layer sees everything and the others are windowed; None when there is no such n.

    >>> _pattern_of([True, True, False, True, True, False, True])
    3
    """
    n = windowed.index(False) + 1 if False in windowed else len(windowed) + 1
    return n if windowed == [layer % n < n - 1 for layer in range(len(windowed))] else None


def _slug(header):
    """A name in the catalogue's style, such as smollm2-135m."""
    metadata = header.metadata
    parts = [_said(metadata, "general.basename"), _said(metadata, "general.size_label")]
    text = "-".join(parts) if all(parts) else _said(metadata, "general.name") or Path(header.name).stem
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def _said(metadata, key):
    """A text from the metadata, safe to print; empty when there is none."""
    value = metadata.get(key, "")
    if isinstance(value, tuple):
        value = ", ".join(each for each in value if isinstance(each, str))
    return units.plain(value) if isinstance(value, str) else ""


def _quote(value):
    return units.plain(repr(value), 80)


def _rows(header):
    """Label and text of each line that people are shown."""
    metadata = header.metadata
    rows = [
        ("File", f"{units.plain(header.name)}, {units.show(header.file_bytes)} ({header.file_bytes:,} bytes)"),
        ("Format", f"GGUF version {header.version}, {len(metadata)} metadata entries"),
        ("Model", _said(metadata, "general.name") or "not named"),
        ("Licence", _said(metadata, "general.license") or "not stated"),
        ("Shape", _shape(header)),
        ("Weights", _weights(header)),
    ]
    rows += [("Type", f"{kind}: {units.show(n)}, tensors: {count:,}") for kind, count, n in _by_type(header.tensors)]
    return rows + [("Note", units.plain(note, 400)) for note in header.notes]


def _shape(header):
    try:
        spec = header.spec
    except GGUFError as error:
        return str(error)
    heads = spec.n_head_kv if isinstance(spec.n_head_kv, int) else f"{min(spec.n_head_kv)} to {max(spec.n_head_kv)}"
    return (
        f"{units.plain(spec.architecture)}: {spec.n_layer:,} layers of width {spec.n_embd:,}, {spec.n_head:,} heads "
        f"({heads} for keys and values), vocabulary {spec.n_vocab:,}, trained on {spec.n_ctx_train:,} tokens"
    )


def _weights(header):
    if not header.tensors:
        return "none"
    bits = units.bits_per_weight(header.tensor_bytes, header.n_params)
    return f"{header.n_params:,} in {len(header.tensors):,} tensors, {bits:.2f} bits each on average"


def _by_type(tensors):
    """(type, tensors, bytes), largest first."""
    count, n_bytes = Counter(), Counter()
    for tensor in tensors:
        count[tensor.type] += 1
        n_bytes[tensor.type] += tensor.n_bytes
    return [(kind, count[kind], n) for kind, n in n_bytes.most_common()]
