"""What does a quantization cost? Quantize, measure against a reference, compare; published tables beside.

llama.cpp's quantizer and the model itself run in a child process (`quality_child`). The definitions are those of
llama.cpp's own perplexity program. Every finished row is kept in a cache folder, so an interrupted ladder goes on.
"""

import contextlib
import csv
import hashlib
import html
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

from . import download, formats, hardware, memory, units
from .child import Child, ChildDied
from .need import MissingPackage

CHILD = "helpers.quality_child"
DATA = Path(__file__).parent / "data"
DEFINITIONS = 1  # raise it when a figure is worked out in another way: rows that were kept are then measured again
LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "IQ3_S", "Q2_K")
N_CTX = 512
MAX_CHUNKS = 8
FULL = ("F32", "F16", "BF16")  # what a model is published in; everything else is quantized already
NEEDS_IMATRIX = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")  # tensor types, see `requantize`
SPIN_COUNT = "1000"  # see `runner`
SHOW_BAR_AFTER_S = 2.0
POLL_S = 0.2  # on Windows, Ctrl-C does not end a long wait
ROWS_AT_ONCE_BYTES = 64 * units.MIB
ROWS_IN_NUMPY = 160  # of scores while `quality_child` adds them up: five arrays of its 32 rows
RETRIES = 1
READABLE = 0o644


class QualityError(RuntimeError):
    """Something that could not be quantized or measured; `.log` holds llama.cpp's last lines, if it said any."""

    def __init__(self, text, log=""):
        super().__init__(text)
        self.log = log

    def __reduce__(self):  # errors travel back from other processes
        return type(self), (str(self), self.log)


class Unfinished(QualityError):
    """Some jobs of a comparison failed; `.comparison` holds the finished rows, `.failed` maps the others to reasons."""

    def __init__(self, text, comparison=None, failed=None):
        super().__init__(text)
        self.comparison, self.failed = comparison, failed or {}

    def __reduce__(self):
        return type(self), (str(self), self.comparison, self.failed)


class Requantized(UserWarning):
    """The source was quantized already: good for a lesson, not for a file that somebody will use."""


# --- texts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A text shipped with the kit: its works (title, author, year), where they come from, why they are public."""

    name: str
    language: str
    works: tuple[str, ...]
    source: str
    public_domain: str


@cache
def _texts():
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    found = tomllib.loads((DATA / "texts" / "texts.toml").read_text(encoding="utf-8"))
    return {name: Text(name, **{**facts, "works": tuple(facts["works"])}) for name, facts in found.items()}


def __getattr__(name):
    if name == "TEXTS":
        return _texts()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def text(name=None):
    """A text shipped with the kit, or all of them one after the other; `TEXTS` says which there are.

    *When it misleads*: these texts are famous, so a model has read them and predicts them better than a new one.

    >>> text("english")[:23]
    'All human beings are bo'
    """
    texts = _texts()
    if name is not None and name not in texts:
        raise ValueError(f"There is no text {name!r}. The texts are: {', '.join(texts)}.")
    wanted = list(texts) if name is None else [name]
    return "\n\n".join((DATA / "texts" / f"{n}.txt").read_text(encoding="utf-8").strip() for n in wanted) + "\n"


# --- results ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One file on one text, against a reference.

    `perplexity`: e to the mean of -ln p(next token); `perplexity_error`: its standard error. `kld_mean`,
    `kld_median`, `kld_q99`: Kullback-Leibler divergence of the reference's prediction from this file's, in nats a
    token: sum of p_ref (ln p_ref - ln p) over the vocabulary, without tokens whose p_ref is below e^-16. It may come
    out a little below 0, for ln p_ref is kept in 16 bits. `top1_agreement`: share of tokens for which both find
    the same token likeliest. `mean_dp`, `rms_dp`: mean and root mean square of p - p_ref of the token that the text
    goes on with. `ln_ratio`: ln(perplexity / the reference's), with the error of the pairs, which is far smaller than
    that of either perplexity. `fallback_share`: share of the quantized tensors whose rows do not fill the blocks of
    256 that this quantization wants, so that llama.cpp took another type. Shares and probabilities go from 0 to 1.
    `n_tokens`: the scored ones, of `n_chunks` chunks; `seconds`: for measuring, without loading and quantizing.

    *When it misleads*: on a few thousand tokens of famous texts, differences below the error mean nothing; and a file
    that predicts well need not answer well.
    """

    name: str
    quantization: str
    file_bytes: int
    bits_per_weight: float
    perplexity: float
    perplexity_error: float
    kld_mean: float
    kld_mean_error: float
    kld_median: float
    kld_q99: float
    top1_agreement: float
    rms_dp: float
    mean_dp: float
    n_tokens: int
    seconds: float
    source: str = "measured"
    ln_ratio: float = 0.0
    ln_ratio_error: float = 0.0
    fallback_share: float = 0.0
    n_chunks: int = 0


@dataclass(frozen=True)
class Published:
    """One row of a published table; None where nothing was printed. Shares and probabilities go from 0 to 1."""

    model: str
    quantization: str
    imatrix: str
    bits_per_weight: float | None
    perplexity: float | None
    perplexity_error: float | None
    kld_mean: float | None
    kld_median: float | None
    kld_q99: float | None
    top1_agreement: float | None
    rms_dp: float | None
    mean_dp: float | None
    text: str
    table: str
    url: str
    note: str
    source: str = "published"

    @property
    def name(self):
        return f"{self.model} {self.quantization}{' with imatrix' if self.imatrix else ''}"


COLUMNS = (  # heading, how a row says it
    ("file", lambda row: row.name),
    ("type", lambda row: row.quantization),
    ("size", lambda row: units.show(row.file_bytes)),
    ("bits/weight", lambda row: f"{row.bits_per_weight:.2f}"),
    ("perplexity", lambda row: f"{row.perplexity:.3f} ± {row.perplexity_error:.3f}"),
    ("KLD mean", lambda row: f"{row.kld_mean:.4f} ± {row.kld_mean_error:.4f}"),
    ("median", lambda row: f"{row.kld_median:.4f}"),
    ("99 %", lambda row: f"{row.kld_q99:.3f}"),
    ("same top", lambda row: f"{row.top1_agreement:.1%}"),
    ("RMS Δp", lambda row: f"{row.rms_dp:.2%}"),
    ("fell back", lambda row: f"{row.fallback_share:.0%}"),
    ("s", lambda row: f"{row.seconds:.0f}"),
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Files compared with a reference on one text; `rows` in the order asked for, `reference` apart."""

    rows: tuple[Row, ...]
    reference: Row
    text_name: str
    n_ctx: int
    notes: tuple[str, ...] = ()

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, name):
        every = (*self.rows, self.reference)
        for row in every:
            if name in (row.name, row.quantization):
                return row
        raise KeyError(f"no row {name!r}; there are {', '.join(row.name for row in every)}")

    def pareto(self):
        """Names of the rows that no other row beats: none is smaller (or as small) and nearer (or as near)."""
        return tuple(row.name for row in self.rows if not any(_beats(other, row) for other in self.rows))

    def table(self):
        """(headings, rows of strings), the reference first; a star marks the rows of `pareto()`."""
        best = set(self.pareto())
        lines = []
        for row in (self.reference, *self.rows):
            first, *others = (says(row) for _, says in COLUMNS)
            mark = " (reference)" if row is self.reference else " *" if row.name in best else ""
            lines.append((units.printable(first, 500) + mark, *(units.printable(other, 500) for other in others)))
        return tuple(heading for heading, _ in COLUMNS), tuple(lines)

    def explanation(self):
        row = self.reference
        return (
            f"Measured on {row.n_tokens} tokens of {units.printable(self.text_name, 500)} ({row.n_chunks} chunks of "
            f"{self.n_ctx}, the second half of each scored). * = no other row is both smaller and nearer to the "
            "reference.",
            *map(units.printable, self.notes),
        )

    def __str__(self):
        headings, lines = self.table()
        widths = [max(len(cell) for cell in column) for column in zip(headings, *lines, strict=True)]
        shown = [
            "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(cells))
            for cells in (list(zip(line, widths, strict=True)) for line in (headings, *lines))
        ]
        return "\n".join([line.rstrip() for line in shown] + list(self.explanation()))

    __repr__ = __str__

    def _repr_html_(self):
        headings, lines = self.table()
        head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
        body = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(line[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in line[1:])
            + "</tr>"
            for line in lines
        )
        notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in self.explanation())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _beats(other, row):
    return (other.file_bytes, other.kld_mean) != (row.file_bytes, row.kld_mean) and (
        other.file_bytes <= row.file_bytes and other.kld_mean <= row.kld_mean
    )


# --- the child --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _llama(name):
    """A child process that holds llama.cpp; `ask(request, tell)` is one question. Ctrl-C ends it."""
    child = Child(CHILD, env={"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT), "GGML_NO_BACKTRACE": "1"})

    def ask(request, tell=None):
        try:
            child.send({"id": 1, **request})
            while True:
                try:
                    message = child.receive(POLL_S)
                except TimeoutError:
                    continue
                if "progress" in message and tell:
                    tell(message["progress"], message.get("tensor", ""))
                if "error" in message:
                    raise _refusal(name, message, child.log_tail())
                if "done" in message:
                    return message["done"]
        except ChildDied as death:
            raise QualityError(
                f"{name}: llama.cpp's process ended: {death.how}. The notebook is unharmed and what was finished is "
                f"kept; call again to go on.{_last_words(death.log)}",
                death.log,
            ) from None
        except BaseException:
            child.close()  # before its unfinished file is deleted: Windows keeps what a living process has open
            raise

    try:
        yield ask
    finally:
        child.close()


def _refusal(name, message, log):
    text, kind = message["error"].strip(), message["kind"]
    if kind == "import":
        return MissingPackage(
            f"To measure quality, the package llama-cpp-python is needed and could not be imported ({text}). Install "
            "it with: python -m pip install llama-cpp-python"
        )
    if kind == "value":
        return QualityError(f"{name}: {text}. Give a longer text or a smaller n_ctx.", log)
    if kind == "vocabulary":
        return QualityError(f"{name} cannot be compared with this reference: {text}. Compare files of one model.", log)
    if kind == "base":
        return QualityError(
            f"The reference's scores cannot be read ({text}). quality.forget() deletes them; then call again.", log
        )
    done = {"load": "loaded", "quantize": "quantized", "decode": "run on this text"}.get(kind, "measured")
    return QualityError(f"{name} could not be {done}.{_last_words(text) or ' llama.cpp gave no reason.'}", log)


def _last_words(log):
    lines = [line.strip() for line in log.splitlines() if line.strip(" =")]
    return " llama.cpp said: " + " / ".join(lines[-3:]) if lines else ""


def _threads(n_threads):
    return int(n_threads or hardware.detect().cpu_threads)


@contextlib.contextmanager
def _bar(wanted, what):
    """tell(fraction, text): a bar that appears when something takes a while, or the learner's own function."""
    if callable(wanted):
        yield wanted
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda *_: None
        return
    settings = {"unit": "%", "mininterval": 0, "delay": SHOW_BAR_AFTER_S, "disable": not wanted}
    with tqdm(total=100, desc=what, **settings) as bar:

        def tell(fraction, text=""):
            bar.set_description_str(f"{what} {text}".strip(), refresh=False)
            bar.update(round(fraction * 100) - bar.n)

        yield tell


def _part_of(tell, index, total, name):
    """As `tell`, for one of `total` equal parts."""
    return lambda fraction, text="": tell((index + fraction) / total, f"{name}: {text}" if text else name)


# --- quantize ---------------------------------------------------------------------------------------------------


def requantize(path, quantization="Q4_K_M", out=None, force=False, progress=True, n_threads=None):
    """Write a quantized copy of a GGUF file with llama.cpp's own quantizer; the path of the new file.

    Parameters
    ----------
    path : path of a GGUF file
        Best in F16, BF16 or F32. A file that is quantized already gives a `Requantized` warning.
    quantization : str
        As in `formats.QUANTIZATIONS`. Some need an importance matrix (which says, from a run over text, which weights
        matter) and are refused: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ2_M, IQ3_XXS, IQ3_XS, Q2_K_S, unless the
        model's rows are so short that another type stands in everywhere.
    out : path, optional
        Default: beside the source, with the quantization in its name.
    force : bool
        Write over a file that is there already.
    progress : bool or callable
        A bar when it takes over 2 s; or a function called with (fraction, name of the tensor).

    Raises
    ------
    QualityError
        The file or the quantization is unknown, the file is part of a split model, the disk is too small, or llama.cpp
        refuses or dies. Then, and after Ctrl-C, no partial file stays behind.

    Notes
    -----
    *When it misleads*: what a first quantization has lost, a second one cannot bring back; it adds its own loss. Do
    that to learn, and quantize from the original to use the result.
    """
    source, wanted = _existing(path), _quantization(quantization)
    out = _beside(source, wanted.name) if out is None else Path(out).expanduser()
    if out.is_dir():
        raise QualityError(f"{out} is a folder. Pass out= with a file in it: {out / _beside(source, wanted.name).name}")
    if out.resolve() == source.resolve():
        raise QualityError(f"{source.name} cannot be written over itself. Pass out= with another name.")
    if out.exists() and not force:
        raise QualityError(f"{out} exists already. Pass force=True to write over it, or out= with another name.")
    header = _header(source)
    if _file_type(header) not in FULL:
        warnings.warn(_warning(source.name, header), Requantized, stacklevel=2)
    with _bar(progress, f"Quantizing to {wanted.name}") as tell:
        _quantize(source, header, wanted, out, _threads(n_threads), tell)
    return out


def _warning(name, header):
    return (
        f"{name} is itself quantized ({_file_type(header)}, {_bits(header):.2f} bits a weight). Quantizing it again is "
        "a lesson, not a practice: both losses add up. For a file to use, start from F16 or BF16."
    )


def _quantization(name):
    try:
        return formats.quantization(name)
    except ValueError as error:
        raise QualityError(str(error)) from None


def _existing(path):
    path = Path(path).expanduser()
    if not path.is_file():
        raise QualityError(f"There is no file {path}. download.installed_models() lists the models that are here.")
    return path


def _header(path):
    from . import gguf

    try:
        header = gguf.read_header(path, progress=False)
    except gguf.GGUFError as error:
        raise QualityError(str(error)) from None
    n_parts = header.metadata.get("split.count", 1)
    if n_parts != 1:
        raise QualityError(
            f"{path.name} is one of {n_parts} parts of a split model; its bytes say nothing of the whole. Join them "
            f"with llama.cpp's own program (llama-gguf-split --merge {path.name} whole.gguf), and give that file."
        )
    if not header.n_params:
        raise QualityError(f"{path.name} holds no weights. Give the file of a whole model.")
    return header


def _beside(source, quantization):
    known = "|".join(sorted(formats.QUANTIZATIONS, key=len, reverse=True))
    stem = re.sub(rf"[-._]({known})$", "", source.stem, flags=re.IGNORECASE)
    return source.with_name(f"{stem}-{quantization}.gguf")


def _quantize(source, header, wanted, out, n_threads, tell):
    request = {"path": str(source), "file_type": wanted.file_type, "n_threads": n_threads}
    with _llama(source.name) as ask:
        types = ask({"do": "plan", **request})
        _check_imatrix(types, wanted.name)
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(out, _planned_bytes(header, types), f"a {wanted.name} file of {source.name}")
        with atomically(out) as part:
            ask({"do": "quantize", **request, "out": str(part)}, tell)


def _check_imatrix(types, name):
    forbidden = {*NEEDS_IMATRIX, *(["Q2_K"] if name == "Q2_K_S" else [])}
    ends = ("token_embd.weight", "output.weight")
    found = [tensor for tensor, kind in types.items() if kind in forbidden and tensor not in ends]
    if found:
        raise QualityError(
            f"{name} needs an importance matrix (a run over text that says which weights matter), and this kit makes "
            f"none: {found[0]} would get {types[found[0]]}. Without one, the smallest are IQ4_XS, IQ3_S and Q2_K."
        )


def _planned_bytes(header, types):
    tensors = sum(formats.tensor_bytes(types.get(t.name, t.type), t.shape) for t in header.tensors)
    return tensors + header.data_offset


def _check_disk(out, n_bytes, what):
    free = shutil.disk_usage(out.parent).free
    if free < n_bytes + download.SPARE_BYTES:
        raise QualityError(
            f"Not enough disk space for {what}: it needs {units.show(n_bytes)}, {units.show(download.SPARE_BYTES)} "
            f"must stay free, and {out.parent} has {units.show(free)}. Free some space, or choose another disk "
            "(out= for one file, folder= for the cache)."
        )


@contextlib.contextmanager
def atomically(path):
    """A name beside `path` to write to; moved to `path` at the end, deleted after any failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    part.chmod(READABLE)  # others in a class may read it; mkstemp lets the owner only
    try:
        yield part
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _file_type(header):
    """The name of the quantization that the file says it has; for a file that says nothing, its commonest type."""
    number = header.metadata.get("general.file_type")
    for known in formats.QUANTIZATIONS.values():
        if known.file_type == number:
            return known.name
    n_bytes = {}
    for tensor in header.tensors:
        n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_bytes
    return max(n_bytes, key=n_bytes.get)


def _bits(header):
    return units.bits_per_weight(header.tensor_bytes, header.n_params)


def _fallback_share(header):
    """Share of the matrices with another type than wanted, because their rows do not fill its blocks."""
    name = _file_type(header)
    base = formats.QUANTIZATIONS[name].base if name in formats.QUANTIZATIONS else name
    matrices = [t for t in header.tensors if len(t.shape) > 1 and t.type != "F32"]
    if base in (*FULL, "MXFP4") or not matrices:  # MXFP4 is for experts; its other matrices are Q8_0 by intention
        return 0.0
    longest = formats.block_type("Q4_K").block_length
    return sum(t.shape[0] % longest != 0 and t.type != base for t in matrices) / len(matrices)


# --- the cache --------------------------------------------------------------------------------------------------


def cache_folder(folder=None):
    """Where quantized files, a reference's scores and finished rows are kept.

    The argument, else the environment variable HELPERS_CACHE, else the system's folder for caches. A cluster's
    workers must see the same folder.
    """
    chosen = folder or os.environ.get("HELPERS_CACHE", "").strip()
    if chosen:
        return Path(chosen).expanduser().resolve() / "quality"
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "local-llm-lessons" / "quality"


def kept_bytes(folder=None):
    """Bytes that the cache holds on disk now."""
    n_bytes = 0
    for parent, _, names in os.walk(cache_folder(folder)):
        for name in names:
            with contextlib.suppress(OSError):  # another process may have moved it meanwhile
                n_bytes += os.path.getsize(os.path.join(parent, name))
    return n_bytes


def forget(folder=None):
    """Delete everything the cache holds; the bytes that became free."""
    before = kept_bytes(folder)
    shutil.rmtree(cache_folder(folder), ignore_errors=True)
    return before - kept_bytes(folder)


def engine_release():
    """The release of llama-cpp-python here, or "none"; results of one say little about another."""
    from importlib import metadata

    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return "none"


def digest(*parts):
    """A short name for a cache's file, the same for the same parts; whatever JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _saved(path):
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return Row(**found)
    except (OSError, ValueError, TypeError):  # not there, half a file of another program, or of another version
        return None


def _save(row, path):
    with atomically(Path(path)) as part:
        part.write_text(json.dumps(asdict(row)), encoding="utf-8")


# --- compare ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One file to be measured, in plain words, so that it can travel to another process.

    `source` and `quantization`: what `path` is made from if it is not there; `base`: the reference's scores;
    `row`: where the finished row is kept.
    """

    name: str
    path: str
    row: str
    base: str
    text: str
    n_ctx: int
    max_chunks: int
    n_threads: int
    is_reference: bool = False
    source: str = ""
    quantization: str = ""


def work(job, tell=None):
    """Do one `Job`, in whatever process this runs: quantize if need be, measure, keep the row; the `Row`.

    Raises `QualityError`.
    """
    ready = _saved(job.row)
    if ready and (not job.is_reference or Path(job.base).is_file()):
        return replace(ready, name=job.name)
    path, tell = Path(job.path), tell or (lambda *_: None)
    if job.source and not path.is_file():
        source, wanted = _existing(job.source), _quantization(job.quantization)
        quantizing = lambda fraction, _="": tell(fraction / 2, "quantizing")  # noqa: E731
        _quantize(source, _header(source), wanted, path, job.n_threads, quantizing)
    header = _header(_existing(path))
    _check_memory(job, header)
    request = {"do": "measure", "id": 1, "path": str(path), "n_ctx": job.n_ctx, "n_threads": job.n_threads}
    measuring = lambda fraction, _="": tell(0.5 + fraction / 2 if job.source else fraction, "measuring")  # noqa: E731
    with _llama(job.name) as ask:
        if job.is_reference:
            found = _measure_reference(job, header, ask, request, measuring)
        else:
            found = ask({**request, "base": job.base}, measuring)
    row = Row(
        name=job.name,
        quantization=_file_type(header),
        file_bytes=header.file_bytes,
        bits_per_weight=_bits(header),
        fallback_share=_fallback_share(header),
        **found,
    )
    _save(row, job.row)
    return row


def _measure_reference(job, header, ask, request, tell):
    base = Path(job.base)
    base.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(base, _scores_bytes(job, header), f"the scores of {job.name}")
    with atomically(base) as part:
        return ask({**request, "text": job.text, "max_chunks": job.max_chunks, "write": str(part)}, tell)


def _scores_bytes(job, header):
    """At most so many bytes: 16 bits for each token of the vocabulary at each scored place."""
    n_chunks = len(job.text.encode()) // job.n_ctx  # no text has more tokens than bytes
    n_scored = min(n_chunks, job.max_chunks or n_chunks) * (job.n_ctx - job.n_ctx // 2 - 1)
    with contextlib.suppress(ValueError):
        return n_scored * header.spec.n_vocab * formats.block_type("F16").block_bytes
    return 0  # a file that describes no model that is known here


def _check_memory(job, header):
    """A sentence instead of a machine that stands still; a family without a formula is tried as it is."""
    n_rows = job.n_ctx - job.n_ctx // 2
    with contextlib.suppress(ValueError, KeyError):
        needs = memory.estimate(header.spec, header.tensor_types, n_ctx=job.n_ctx, n_outputs_max=n_rows).total_bytes
        needs += (n_rows + ROWS_IN_NUMPY) * formats.row_bytes("F32", header.spec.n_vocab)
        free = hardware.detect().ram_available_bytes
        if needs > free:
            raise QualityError(
                f"{job.name} was not loaded: measuring it needs about {units.show(needs)} of memory, and "
                f"{units.show(free)} are free. Close other programs, or choose a smaller model."
            )


def compare(
    paths,
    text=None,
    reference=None,
    n_ctx=N_CTX,
    executor=None,
    progress=True,
    max_chunks=MAX_CHUNKS,
    n_threads=None,
    folder=None,
):
    """How far files are from a reference on a text: perplexity, KL divergence, agreement; a `Comparison`.

    Parameters
    ----------
    paths : paths of GGUF files of one model, or a mapping from names to paths
    text : str, optional
        What is to be predicted; default: the kit's own texts. `text=quality.text("french")` takes one of them.
    reference : path, optional
        Default: the file with the most bits per weight.
    n_ctx : int
        Tokens of a chunk. Its first half gives the model something to go on, its second half is scored.
    executor : concurrent.futures.Executor, optional
        Each file becomes a job, for instance on a class's cluster: `dask.distributed.Client().get_executor()`. The
        workers need this package, and the same files and cache folder under the same paths.
    max_chunks : int or None
        At most so many chunks of the text; None: all.
    n_threads : int, optional
        Default: what this process may use; with an executor 1, for several jobs may share a machine.
    folder : path, optional
        See `cache_folder`.
    progress : bool or callable
        A bar when it takes over 2 s; or a function called with (fraction, text).

    Raises
    ------
    QualityError
        A file, the text or the settings cannot be used, or llama.cpp refuses or dies.
    Unfinished
        Jobs were lost, even when tried again. The finished rows are in the error and in the cache: call again to go on.
    """
    named = _named(paths)
    headers = {name: _header(path) for name, path in named.items()}
    if reference is None:
        chosen = max(named, key=lambda name: _bits(headers[name]))
    else:
        reference = _existing(reference)
        chosen = next((name for name, path in named.items() if path.resolve() == reference.resolve()), None)
        if chosen is None:
            chosen = _unused(reference.stem, named)
            named[chosen], headers[chosen] = reference, _header(reference)
    setting = _Setting(text, n_ctx, max_chunks, _threads_for(executor, n_threads), cache_folder(folder))
    keys = {name: download.sha256_of(path) for name, path in named.items()}
    first = setting.reference_job(chosen, named[chosen], keys[chosen])
    jobs = [setting.job(name, path, keys[name], first) for name, path in named.items() if name != chosen]
    notes = _reference_notes(chosen, headers[chosen])
    return _run(first, jobs, executor, progress, notes, setting)


def ladder(
    path=None,
    quantizations=LADDER,
    text=None,
    executor=None,
    progress=True,
    n_ctx=N_CTX,
    max_chunks=MAX_CHUNKS,
    n_threads=None,
    folder=None,
):
    """Quantize one file in several ways and compare each with the file itself; a `Comparison`.

    Everything is kept (`cache_folder`, `kept_bytes`): the second call takes no time, and one that was interrupted goes
    on where it was. `forget()` deletes it. Parameters as in `compare`; `path`: default, the packaged model.

    *When it misleads*: the packaged model is quantized already (Q4_1), so larger files cannot be better than it, and
    the loss of Q4_1 itself is nowhere in the table. `notes` says so.
    """
    source = _existing(download.default_model() if path is None else path)
    wanted = [_quantization(name).name for name in quantizations]
    header = _header(source)
    if _file_type(header) not in FULL:
        warnings.warn(_warning(source.name, header), Requantized, stacklevel=2)
    setting = _Setting(text, n_ctx, max_chunks, _threads_for(executor, n_threads), cache_folder(folder))
    key = download.sha256_of(source)
    first = setting.reference_job(source.stem, source, key)
    jobs = [setting.ladder_job(name, source, key, first) for name in wanted]
    found = _run(first, jobs, executor, progress, _reference_notes(source.name, header), setting)
    kept = units.show(kept_bytes(folder))
    return replace(found, notes=(*found.notes, f"Kept for the next time: {kept}; quality.forget() deletes it."))


def _threads_for(executor, n_threads):
    return _threads(n_threads if n_threads or executor is None else 1)


def _named(paths):
    if isinstance(paths, (str, Path)):
        paths = [paths]
    pairs = list(paths.items()) if hasattr(paths, "items") else [(Path(path).stem, path) for path in paths]
    if not pairs:
        raise QualityError("There is nothing to compare: give at least one path of a GGUF file.")
    named = {}
    for name, path in pairs:
        path = _existing(path)
        named[_unused(str(name), named)] = path
    return named


def _unused(name, names):
    """`name`, or the first of "name (2)", "name (3)", ... that is free."""
    numbered = itertools.chain([name], (f"{name} ({n})" for n in itertools.count(2)))
    return next(one for one in numbered if one not in names)


def _reference_notes(name, header):
    kind = _file_type(header)
    if kind in FULL:
        return ()
    return (
        f"The reference, {name}, is itself quantized ({kind}, {_bits(header):.2f} bits a weight). The figures say how "
        "far each file is from that file, not from the model as it was trained.",
    )


class _Setting:
    """What all jobs of a comparison share, and how their results are named in the cache."""

    def __init__(self, given, n_ctx, max_chunks, n_threads, folder):
        if not isinstance(n_ctx, int) or n_ctx < 8:
            raise QualityError(f"n_ctx={n_ctx!r} must be a whole number of tokens, at least 8; 512 is usual.")
        if max_chunks is not None and (not isinstance(max_chunks, int) or max_chunks < 1):
            raise QualityError(f"max_chunks={max_chunks!r} must be a whole number of chunks, or None for all.")
        if given is not None and (not isinstance(given, str) or not given.strip()):
            raise QualityError(f"text={given!r} must be the text itself, such as quality.text('french').")
        self.text = text() if given is None else given.encode(errors="replace").decode()
        self.text_name = "the kit's texts" if given is None else "your text"
        self.folder, self.n_ctx = folder, n_ctx
        self.shared = {"text": "", "n_ctx": n_ctx, "max_chunks": max_chunks or 0, "n_threads": n_threads}
        self._key = (DEFINITIONS, engine_release(), hashlib.sha256(self.text.encode()).hexdigest(), n_ctx, max_chunks)

    def _row(self, *parts):
        return str(self.folder / "rows" / f"{digest(*self._key, *parts)}.json")

    def reference_job(self, name, path, key):
        base = self.folder / "scores" / f"{digest(*self._key, key)}.bin"
        shared = {**self.shared, "text": self.text}
        return Job(name, str(path.resolve()), self._row(key), str(base), is_reference=True, **shared)

    def job(self, name, path, key, first):
        return Job(name, str(path.resolve()), self._row(first.base, key), first.base, **self.shared)

    def ladder_job(self, name, source, key, first):
        made = self.folder / "models" / f"{source.stem}-{name}-{digest(key, engine_release())[:8]}.gguf"
        row = self._row(first.base, key, name)
        return Job(name, str(made), row, first.base, source=str(source.resolve()), quantization=name, **self.shared)


def _run(first, jobs, executor, progress, notes, setting):
    with _bar(progress, "Measuring") as tell:
        total = len(jobs) + 1
        if executor is None:
            steps = enumerate([first, *jobs])
            reference, *rows = [work(job, _part_of(tell, i, total, job.name)) for i, job in steps]
            return Comparison(tuple(rows), reference, setting.text_name, setting.n_ctx, tuple(notes))
        tell(0, first.name)
        finished, failed = _spread(executor, [first], lambda n, name: tell(n / total, name))
        if failed:
            raise Unfinished(f"The reference could not be measured: {failed[first.name]}", failed=failed)
        reference = finished[first.name]
        finished, failed = _spread(executor, jobs, lambda n, name: tell((n + 1) / total, name))
    rows = tuple(finished[job.name] for job in jobs if job.name in finished)
    result = Comparison(rows, reference, setting.text_name, setting.n_ctx, tuple(notes))
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise Unfinished(
            f"{len(rows)} of {len(jobs)} files were measured and are kept; these were not: {reasons}. Call again to go "
            "on with them.",
            result,
            failed,
        )
    return result


def _spread(executor, jobs, tell):
    """({name: Row}, {name: reason}) of jobs given to an executor; what was lost on the way is tried once more."""
    finished, failed, waiting = {}, {}, {}
    tries = {job.name: 0 for job in jobs}

    def submit(job):
        tries[job.name] += 1
        try:
            waiting[executor.submit(work, job)] = job
        except Exception as error:  # a pool that is broken or closed takes nothing more
            failed.setdefault(job.name, _reason(error))

    try:
        for job in jobs:
            submit(job)
        while waiting:
            done = wait(list(waiting), timeout=POLL_S, return_when=FIRST_COMPLETED).done
            for future in done:
                job = waiting.pop(future)
                try:
                    row = future.result()
                except Exception as error:
                    row = None if job.is_reference else _saved(job.row)  # perhaps it was lost on its way back only
                    if row is None:
                        failed[job.name] = _reason(error)
                        if not isinstance(error, (QualityError, MissingPackage)) and tries[job.name] <= RETRIES:
                            submit(job)
                        continue
                finished[job.name] = replace(row, name=job.name)
                failed.pop(job.name, None)
                tell(len(finished), job.name)
    finally:
        for future in waiting:  # after Ctrl-C
            future.cancel()
    return finished, failed


def _reason(error):
    if isinstance(error, QualityError):
        return str(error)
    if isinstance(error, CancelledError):
        return "the job was cancelled, or its worker was lost"
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


# --- weights ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorError:
    """What a quantization did to one tensor. `rms`: root mean square of the differences; `relative_rms`: divided by
    the root mean square of the reference's weights. `layer` is None outside the layers."""

    name: str
    layer: int | None
    role: str
    type: str
    rms: float
    relative_rms: float


def weights(path, tensor_name):
    """The weights of one tensor as the model sees them: a float32 array, shape (rows, row length).

    Raises `QualityError` for an unknown tensor or a type that nobody here can unpack.
    """
    import numpy

    path = _existing(path)
    header = _header(path)
    known = {tensor.name: tensor for tensor in header.tensors}
    if tensor_name not in known:
        import difflib

        near = difflib.get_close_matches(str(tensor_name), known, n=3, cutoff=0.3)
        raise QualityError(f"{path.name} has no tensor {tensor_name!r}. Similar: {', '.join(near) or 'none'}.")
    return numpy.concatenate(list(_blocks(path, header, known[tensor_name])))


def tensor_errors(reference_path, path, progress=True):
    """The loss of every matrix, from first to last in the file: a tuple of `TensorError`.

    Formula: rms = sqrt(mean((w - w_ref)^2)), relative_rms = rms / sqrt(mean(w_ref^2)). Vectors (norms, biases) are not
    quantized and left out. Raises `QualityError` when the files are not of one model.

    *When it misleads*: a large error in a tensor that hardly matters costs less than a small one in another; only a run
    over text (`compare`) says what the model lost.
    """
    reference_path, path = _existing(reference_path), _existing(path)
    reference, header = _header(reference_path), _header(path)
    known = {tensor.name: tensor for tensor in reference.tensors}
    matrices = [tensor for tensor in header.tensors if len(tensor.shape) > 1]
    found = []
    with _bar(progress, "Comparing weights") as tell:
        for i, tensor in enumerate(matrices):
            tell(i / len(matrices), tensor.name)
            one = known.get(tensor.name)
            if one is None or one.shape != tensor.shape:
                said = "does not have it" if one is None else f"has it with shape {one.shape} instead of {tensor.shape}"
                raise QualityError(
                    f"{path.name} has a tensor {tensor.name}, and {reference_path.name} {said}. Compare files of one "
                    "model."
                )
            rms, of_reference = _difference(_blocks(reference_path, reference, one), _blocks(path, header, tensor))
            relative = rms / of_reference if of_reference else 0.0
            found.append(TensorError(tensor.name, *_place(tensor.name), tensor.type, rms, relative))
    return tuple(found)


def _difference(reference, other):
    """Root mean square of the differences of two tensors in equal blocks, and of the first tensor."""
    import numpy

    squares = total = n = 0
    for there, here in zip(reference, other, strict=True):
        squares += float(numpy.square(here - there, dtype=numpy.float64).sum())
        total += float(numpy.square(there, dtype=numpy.float64).sum())
        n += there.size
    return math.sqrt(squares / n), math.sqrt(total / n)


def _place(name):
    """(layer or None, role) of a tensor's name.

    >>> _place("blk.3.ffn_down.weight"), _place("token_embd.weight")
    ((3, 'ffn_down'), (None, 'token_embd'))
    """
    found = re.fullmatch(r"blk\.(\d+)\.(.+?)(\.weight)?", name)
    return (int(found[1]), found[2]) if found else (None, name.removesuffix(".weight"))


def _blocks(path, header, tensor):
    """Some rows of a tensor after the other, unpacked to float32."""
    import numpy
    from gguf import GGMLQuantizationType, quants

    n_rows, row_bytes = math.prod(tensor.shape[1:]), formats.row_bytes(tensor.type, tensor.shape[0])
    packed = numpy.memmap(path, numpy.uint8, "r", header.data_offset + tensor.offset, (n_rows, row_bytes))
    step = max(1, ROWS_AT_ONCE_BYTES // (4 * tensor.shape[0]))
    for start in range(0, n_rows, step):
        try:
            block = quants.dequantize(numpy.array(packed[start : start + step]), GGMLQuantizationType[tensor.type])
        except NotImplementedError as error:
            raise QualityError(
                f"{tensor.name} of {path.name} is {tensor.type}, which cannot be unpacked here. Compare another tensor."
            ) from error
        yield block.astype(numpy.float32, copy=False)


# --- published --------------------------------------------------------------------------------------------------


@cache
def _published():
    numbers = {f.name for f in fields(Published) if "float" in str(f.type)}
    with (DATA / "quality_published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(**{k: (float(v) if v else None) if k in numbers else v for k, v in line.items()})
            for line in csv.DictReader(file)
        )


def published(model=None):
    """Rows of published tables, each with its model, text, table and link; a tuple of `Published`.

    >>> published("Llama-3-8B")[0].source
    'published'
    """
    rows = _published()
    names = list(dict.fromkeys(row.model for row in rows))
    if model is None:
        return rows
    if model not in names:
        raise ValueError(f"No published table here is about {model!r}. There are: {', '.join(names)}.")
    return tuple(row for row in rows if row.model == model)
