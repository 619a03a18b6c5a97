"""Speed, measured here: memory bandwidth, tokens per second, what threads bring; and foreseen, by `speed_model`.

Bandwidth is measured with numpy's arrays, several threads on them at once; tokens with a real model in a child process.
Every figure says how it was found.
"""

import contextlib
import functools
import html
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from . import download, hardware, runner, speed_model, units
from .need import need
from .speed_model import Calibration

ARRAY_BYTES = 128 * units.MIB  # three of these are walked through in turn, so that caches hold little of the next one
LEAST_ARRAY_BYTES = units.MIB
SHARE_OF_FREE = 16  # an array takes at most one sixteenth of the free memory
CHUNK_ELEMENTS = 32_768  # of a triad: what two numpy calls hand to each other stays in a core's own cache
LEAST_PASSES = 2
KINDS = ("read", "copy", "triad")
SHOW_BAR_AFTER_S = 2.0
LEAST_STEPS = 4  # a speed from fewer tokens is noise
# What a prompt is made of: any text will do, as every token costs the same. The first after which the model keeps
# talking counts.
FILLERS = (" river", " one two three four five six seven eight nine ten", " the history of the old town and its people")
DATA = Path(__file__).with_name("data")


@dataclass(frozen=True, repr=False)
class Bandwidth:
    """How fast memory was read and written just now, in bytes per second, each a `Reading` with its source.

    `read`: one array is added up. `copy`: one is read, one written. `triad`: two are read, one written, with a
    multiplication and an addition between.

    *When it misleads*: other programs share the memory, so a second run differs. Processors read a line before they
    write it, which copy and triad do not count. A cache larger than the arrays makes memory look faster than it is.
    """

    read_bytes_per_s: hardware.Reading
    copy_bytes_per_s: hardware.Reading
    triad_bytes_per_s: hardware.Reading
    threads: int
    array_bytes: int

    def rows(self):
        """(kind, bytes per second) of each figure."""
        return [(kind, getattr(self, f"{kind}_bytes_per_s")) for kind in KINDS]

    @property
    def best_bytes_per_s(self):
        """The fastest of the three, with its source: the fairest figure for a ceiling.

        >>> slow, fast = hardware.Reading(8, "said"), hardware.Reading(9, "said")
        >>> Bandwidth(slow, fast, slow, threads=1, array_bytes=1).best_bytes_per_s
        9
        """
        return max((value for _, value in self.rows()), key=int)

    def __str__(self):
        return "\n".join(
            f"{kind:<6}{units.show_decimal(value, 1):>9}/s  {getattr(value, 'source', '')}".rstrip()
            for kind, value in self.rows()
        )

    __repr__ = __str__


def bandwidth(threads=None, seconds=1.5):
    """The memory bandwidth of this machine: a `Bandwidth`, in bytes per second, measured in about `seconds`.

    Parameters
    ----------
    threads : int, optional
        Threads that work at once; without it, as many as this process may use.
    seconds : float
        For all three kinds together, preparing included as far as it can be foreseen. Each kind has two passes at
        least, and the best pass counts.

    Raises
    ------
    ValueError
        For threads below 1 or seconds that are not above 0.

    Notes
    -----
    Formula: bytes that the program read and wrote, divided by the time of the fastest pass (as the STREAM benchmark
    counts). *When it misleads*: see `Bandwidth`; an engine in C may reach a little more than numpy.

    >>> found = bandwidth(threads=1, seconds=0.05)
    >>> found.read_bytes_per_s > 0, found.read_bytes_per_s.source.startswith("measured: best of")
    (True, True)
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads is {threads!r}; it must be a whole number from 1, or None for all one may use.")
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}; it must be above 0.")
    started = time.perf_counter()
    machine = hardware.detect()
    threads = int(threads or machine.cpu_threads)
    a, b, c = _arrays(machine.ram_available_bytes)
    work = {
        "read": ([(a,), (b,), (c,)], _read, 1),
        "copy": ([(a, b), (b, c), (c, a)], _copy, 2),
        "triad": ([(a, b, c), (b, c, a), (c, a, b)], _triad, 3),
    }
    found = {}
    with ThreadPoolExecutor(threads) as pool:
        for left, (kind, (turns, act, n_arrays)) in zip((3, 2, 1), work.items(), strict=True):
            share = (seconds - (time.perf_counter() - started)) / left
            best, passes = _best_pass(pool, threads, turns, act, share)
            source = f"measured: best of {passes} passes over arrays of {units.show(a.nbytes, 0)}, threads: {threads}"
            found[f"{kind}_bytes_per_s"] = hardware.Reading(n_arrays * a.nbytes / best, source)
    return Bandwidth(**found, threads=threads, array_bytes=a.nbytes)


def _arrays(free_bytes):
    np = need("numpy", "measure the bandwidth of memory")
    n_bytes = max(min(ARRAY_BYTES, free_bytes // SHARE_OF_FREE), LEAST_ARRAY_BYTES)
    element = np.dtype("float64").itemsize
    return [np.full(n_bytes // element, value) for value in (1.0, 2.0, 0.5)]  # written: untouched pages are not there


def _best_pass(pool, threads, turns, act, seconds):
    """(seconds of the fastest pass, number of passes)."""
    parts = [_split(arrays, threads) for arrays in turns]
    ends = time.perf_counter() + seconds
    times = []
    while len(times) < LEAST_PASSES or time.perf_counter() < ends:
        pieces = parts[len(times) % len(parts)]
        begins = time.perf_counter()
        list(pool.map(act, pieces))
        times.append(time.perf_counter() - begins)
    return min(times), len(times)


def _split(arrays, threads):
    """One tuple of slices per thread; together they are the arrays."""
    n = len(arrays[0])
    edges = [n * i // threads for i in range(threads + 1)]
    return [tuple(array[i:j] for array in arrays) for i, j in zip(edges, edges[1:], strict=False)]


def _read(arrays):
    return float(arrays[0].sum())


def _copy(arrays):
    source, target = arrays
    target[:] = source


def _triad(arrays):
    """target = left + 0.5 * right; 0.5 keeps the values small however often it runs."""
    np = need("numpy", "measure the bandwidth of memory")
    left, right, target = arrays
    for i in range(0, len(target), CHUNK_ELEMENTS):
        here = slice(i, i + CHUNK_ELEMENTS)
        np.multiply(right[here], 0.5, out=target[here])
        np.add(target[here], left[here], out=target[here])


def roofline_tokens_per_second(weights_bytes, bandwidth):
    """Tokens per second that a model cannot exceed while it answers one conversation: a ceiling, no prediction.

    Formula: bandwidth / bytes of weights, because each new token reads every active weight once.

    Parameters
    ----------
    weights_bytes : int
        Bytes that one token reads: all weights, or with experts the active share (`fit.active_bytes`).
    bandwidth : Bandwidth or number
        Measured (its best figure counts), or bytes per second from a data sheet.

    Raises
    ------
    ValueError
        For bytes or a bandwidth that are not above 0.

    Notes
    -----
    *When it misleads*: it is a roof, and the floor is lower. Work per layer and threads that wait for each other hold
    small models far below it; a long context reads its KV cache as well; a model that fits the processor's cache may
    rise above it. Several conversations at once share one reading of the weights, so their sum may rise above it too.
    The prompt is read many tokens at a time: this says nothing about it.

    >>> roofline_tokens_per_second(5_000_000_000, 50_000_000_000)
    10.0
    """
    per_second = bandwidth.best_bytes_per_s if isinstance(bandwidth, Bandwidth) else bandwidth
    for name, value in (("weights_bytes", weights_bytes), ("bandwidth", per_second)):
        if not value > 0:
            raise ValueError(f"{name} is {value!r}; it must be above 0.")
    return per_second / weights_bytes


@dataclass(frozen=True)
class Spread:
    """Tokens per second of several runs, in their order.

    >>> Spread((90.0, 100.0, 80.0)).median
    90.0
    """

    runs: tuple[float, ...]

    @property
    def median(self):
        """The middle run: one disturbed run does not move it."""
        return statistics.median(self.runs)

    @property
    def lowest(self):
        return min(self.runs)

    @property
    def highest(self):
        return max(self.runs)

    def __str__(self):
        return (
            f"{self.median:.1f} tokens/s (lowest {self.lowest:.1f}, highest {self.highest:.1f}, n = {len(self.runs)})"
        )


@dataclass(frozen=True)
class Measured:
    """Speed of one model on this machine just now, prompt and answer apart, each a `Spread` in tokens per second.

    `n_prompt` and `n_answer`: the tokens that were really read and written in every run (the least, where runs differ).
    *When it misleads*: other programs take cores and memory; a longer context makes every token slower.
    """

    name: str
    prompt: Spread
    answer: Spread
    n_prompt: int
    n_answer: int
    n_threads: int
    n_ctx: int
    notes: tuple[str, ...] = ()
    source: str = "measured"

    def __str__(self):
        lines = [
            f"{self.name}, {self.n_threads} threads  [{self.source}]",
            f"  answer  {self.answer}, {self.n_answer} tokens after {self.n_prompt}",
            f"  prompt  {self.prompt}, {self.n_prompt} tokens",
        ]
        return units.printable("\n".join([*lines, *(f"  note: {note}" for note in self.notes)]))

    def _repr_html_(self):
        return f"<pre>{html.escape(str(self))}</pre>"


def measure(
    model_or_path=None,
    n_prompt=128,
    n_answer=64,
    repeats=5,
    n_threads=None,
    n_ctx=None,
    seconds=None,
    longest=None,
):
    """Tokens per second of a model here, prompt and answer apart: a `Measured`.

    Parameters
    ----------
    model_or_path : runner.Model or path, optional
        A loaded model stays loaded; a file is loaded for this and closed. Default: the packaged model.
    n_prompt, n_answer : int
        Tokens read, and tokens written after them.
    repeats : int
        Runs that count; one before them warms up and does not.
    n_threads, n_ctx : int, optional
        For a file; a loaded model has its own.
    seconds : float, optional
        No further run is begun after so many.
    longest : float, optional
        Seconds after which a single run is ended; it counts as far as it came.

    Raises
    ------
    ValueError
        For impossible numbers, or a model that ends its answer at once whatever it is given.

    Notes
    -----
    Prompt: tokens / time to the first token of the answer. Answer: tokens after the first / their time. The likeliest
    token is taken each time. A model may end its answer early; then another prompt is tried, and `n_answer` says what
    really ran.
    """
    for name, value in (("n_prompt", n_prompt), ("n_answer", n_answer), ("repeats", repeats)):
        _check_count(name, value)
    if isinstance(model_or_path, runner.Model):
        if n_threads is not None or n_ctx is not None:
            raise ValueError("n_threads and n_ctx are set when a model is loaded; give its path instead of the model.")
        return _measure(model_or_path, n_prompt, n_answer, repeats, seconds, longest)
    if n_threads is not None:
        _check_count("n_threads", n_threads)
    n_ctx = n_ctx or n_prompt + n_answer
    path = Path(model_or_path) if model_or_path is not None else download.default_model()
    with runner.load(path, n_ctx=n_ctx, n_threads=n_threads, progress=False) as model:
        return _measure(model, n_prompt, n_answer, repeats, seconds, longest)


def _check_count(name, value, least=1):
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {least}.")


def _measure(model, n_prompt, n_answer, repeats, seconds, longest):
    n_ctx = model.settings["n_ctx"]
    if n_prompt + n_answer > n_ctx:
        raise ValueError(
            f"{n_prompt} tokens of prompt and {n_answer} of answer do not fit into this model's context of {n_ctx}. "
            f"Load it with n_ctx={n_prompt + n_answer}, or measure fewer."
        )
    begun = time.perf_counter()
    with _bar(repeats + 1, f"Measuring {model.path.name}") as advance:
        text = _talkative(model, n_prompt, n_answer, longest)
        advance()
        answers = []
        while len(answers) < repeats and not (answers and seconds and time.perf_counter() - begun > seconds):
            answers.append(_run(model, text, n_answer, longest))
            advance()
    return _measured(model, answers, n_answer)


def _measured(model, answers, n_answer):
    real = min(answer.answer_tokens for answer in answers)
    notes = []
    if real < n_answer:
        why = "ended by the clock" if answers[0].finish_reason == "cancelled" else "ended by the model"
        notes.append(f"{real} tokens were written instead of {n_answer}: {why}.")
    if not all(answer.tokens_per_second and answer.prompt_tokens_per_second for answer in answers):
        notes.append(
            "A run was ended before its second token: it counts as one token in all its time, which is too fast."
        )
    return Measured(
        name=model.path.name,
        prompt=Spread(tuple(a.prompt_tokens_per_second or a.prompt_tokens / a.seconds for a in answers)),
        answer=Spread(tuple(a.tokens_per_second or 1 / a.seconds for a in answers)),
        n_prompt=answers[0].prompt_tokens,
        n_answer=real,
        n_threads=model.settings["n_threads"],
        n_ctx=model.settings["n_ctx"],
        notes=tuple(notes),
    )


def _run(model, text, n_answer, longest):
    """One answer, ended after `longest` seconds."""
    if longest is None:
        return model.complete(text, max_tokens=n_answer, temperature=0)
    timer = threading.Timer(longest, model.cancel)
    timer.start()
    try:
        return model.complete(text, max_tokens=n_answer, temperature=0)
    finally:
        timer.cancel()


def _talkative(model, n_prompt, n_answer, longest):
    """A prompt of `n_prompt` tokens after which the model writes `n_answer`, or as many as any prompt here brings.

    Trying it is the warm-up.
    """
    most, best = -1, None
    for filler in FILLERS:
        text = _prompt_of(model, filler, n_prompt)
        answer = _run(model, text, n_answer, longest)
        if answer.finish_reason != "stop":
            return text
        if answer.answer_tokens > most:
            most, best = answer.answer_tokens, text
    if most < min(LEAST_STEPS, n_answer):
        raise ValueError(
            f"{model.path.name} ended its answer after {most} tokens, whatever it was given: too few to measure. "
            "Try another n_prompt, or a model that was trained to chat."
        )
    return best


def _prompt_of(model, filler, n_tokens):
    """A text of so many tokens, or of a few less where words have more than one."""
    words = filler.split(" ")[1:]
    low, high = 0, n_tokens  # words; a word has a token at least, and a start token may come on top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(model.tokenize(_text(words, middle))) <= n_tokens else (low, middle - 1)
    return _text(words, max(low, 1))


def _text(words, n):
    return " ".join(words[i % len(words)] for i in range(n))


@contextlib.contextmanager
def _bar(total, says):
    """A function that moves a bar on by one; the bar shows itself when it all takes longer than a moment."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda: None
        return
    with tqdm(total=total, desc=says, delay=SHOW_BAR_AFTER_S, leave=False) as bar:
        yield bar.update
        bar.total = bar.n  # ended by the clock: a notebook shows what is not full in red, as if it had failed


def sweep_threads(path=None, threads=None, n_prompt=32, n_answer=32, repeats=3, seconds=6.0):
    """Tokens per second against threads: one `Measured` for each number, beyond what one may use included.

    Parameters
    ----------
    path : path, optional
        Default: the packaged model.
    threads : sequence of int, optional
        Default: from 1 to what this process may use (four of them at most), then twice and four times as many.
    seconds : float
        For each number of threads: a run beyond it is ended and counts as far as it came, so that a collapse does not
        last longer than the rest.

    Notes
    -----
    *When it misleads*: beyond the allowed number threads wait for each other while the system has taken their core
    away; how bad that is depends on how long they wait awake (`runner.SPIN_COUNT` keeps it mild) and on what else
    runs.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}; it must be above 0.")
    allowed = int(hardware.detect().cpu_threads)
    threads = default_threads(allowed) if threads is None else tuple(threads)
    if not threads:
        raise ValueError("threads is empty; name at least one number of threads, such as (1, 2).")
    for n_threads in threads:
        _check_count("threads", n_threads)
    with _bar(len(threads), "Threads") as advance:
        found = []
        for n_threads in threads:
            found.append(
                measure(path, n_prompt, n_answer, repeats, n_threads=n_threads, seconds=seconds, longest=seconds)
            )
            advance()
    return tuple(found)


def default_threads(allowed):
    """1 to the allowed number, in four steps at most, then twice and four times as many.

    >>> default_threads(2), default_threads(16)
    ((1, 2, 4, 8), (1, 4, 8, 16, 32, 64))
    """
    up_to = sorted({max(1, allowed * i // 4) for i in (1, 2, 4)} | {1, allowed})
    return (*up_to, 2 * allowed, 4 * allowed)


def calibrate(path=None, seconds=10.0, n_threads=None):
    """How fast this machine is, in the terms of the formula: a `Calibration`, from a short run of the packaged model.

    Formula: bandwidth from the probe; what it leaves unexplained of the measured time of a token is the cores'. Then
    `predict` foresees other models and quantizations.

    Parameters
    ----------
    path : path, optional
        Another model to calibrate with; the packaged one by default, which is small.
    seconds : float
        For everything, loading included as far as it can be foreseen.

    Notes
    -----
    *When it misleads*: a photograph of a machine whose speed moves (here by a quarter within minutes, as others use it
    too). Calibrate again when it matters.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}; it must be above 0.")
    machine = hardware.detect()
    path = Path(path) if path is not None else download.default_model()
    from . import gguf  # with it comes numpy, which the panels do without

    header = gguf.read_header(path)
    pipe = bandwidth(threads=n_threads, seconds=min(1.5, seconds / 4))
    n_prompt, n_answer = CALIBRATE_WITH
    seen = measure(path, n_prompt, n_answer, MOST_RUNS, n_threads=n_threads, seconds=seconds * 0.7)
    return calibration_from(seen, header.spec, header.tensor_types, pipe, machine)


CALIBRATE_WITH = (128, 32)  # tokens of prompt and answer
MOST_RUNS = 12


def calibration_from(measured, spec, quantization, pipe, machine=None):
    """A `Calibration` from a measurement that was made already, and a bandwidth."""
    machine = machine or hardware.detect()
    start = Calibration(
        bandwidth_bytes_per_s=pipe.best_bytes_per_s if isinstance(pipe, Bandwidth) else pipe,
        core_factor=1.0,
        prompt_factor=1.0,
        n_threads=measured.n_threads,
        source=f"measured: {measured.name}, {measured.n_prompt} + {measured.n_answer} tokens",
        narrow_is_slow=_narrow_is_slow(machine),
        answer=measured.answer,
        prompt=measured.prompt,
        **_card(machine),
    )
    seconds = 1 / measured.answer.median, 1 / measured.prompt.median
    return speed_model.calibrated(spec, quantization, *seconds, measured.n_prompt, measured.n_answer, start)


def _narrow_is_slow(machine):
    return "avx512_fp16" in machine.cpu_flags


def predict(
    spec,
    quantization="Q4_K_M",
    n_ctx=4096,
    where=None,
    n_prompt=128,
    n_answer=64,
    repack=False,
    n_gpu_layers=0,
    gpu_bytes_per_s=None,
):
    """Foreseen tokens per second of a model, prompt and answer apart, each with a band: a `Prediction`.

    Parameters
    ----------
    spec : ModelSpec
    quantization : str or mapping of tensor names to types
        A name, or `gguf.read_header(path).tensor_types` of a file.
    n_ctx : int
        Tokens of context, the room for prompt and answer (0: enough). What is empty costs no time.
    n_prompt, n_answer : int
        As in `measure`: the answer looks at `n_prompt` tokens and, on average, at half of `n_answer`.
    where : Calibration or Machine, optional
        From `calibrate()`, best; or a machine, then the bandwidth comes from a table and the band is wide. Default:
        this machine.
    n_gpu_layers : int
        Layers on a graphics card, -1 for all; by the bandwidth of its data sheet, never measured by the authors.
    gpu_bytes_per_s : number, optional
        That bandwidth, where the table does not know the card.

    Notes
    -----
    Seconds of one token of an answer = bytes / bandwidth + weights x the time to unpack one of their type + operations
    x the wait after each + entries of the vocabulary x the time to look at one + the cache, read and compared.
    Of one token of a prompt = weights x the time of one (by its type, and less in long rows) + the same for the cache
    and for what each layer adds + its share of what up to 512 tokens read together: every weight of the layers once,
    of the experts those that any of these tokens chooses.
    *When it misleads*: other programs, a hot laptop, weights that do not fit into memory (`fit.verdict` says so first),
    processors whose kernels differ in kind from the reference's (`speed_model.KERNELS`), prompts for experts in Q8_0 or
    Q4_0 (here foreseen 15 to 59 % too fast).

    >>> from helpers import models
    >>> laptop = hardware.Machine.pretend("laptop", 16_000_000_000)
    >>> found = predict(models.get("llama-3.1-8b"), "Q4_K_M", where=laptop)
    >>> found.answer.low < found.answer.likely < found.answer.high, found.source
    (True, 'formula')
    """
    where = hardware.detect() if where is None else where
    calibration = where if isinstance(where, Calibration) else assumed(where)
    if gpu_bytes_per_s is not None:
        if not gpu_bytes_per_s > 0:
            raise ValueError(f"gpu_bytes_per_s is {gpu_bytes_per_s!r}; it must be above 0.")
        name = calibration.gpu_name or "graphics card"
        calibration = replace(calibration, gpu_bytes_per_s=int(gpu_bytes_per_s), gpu_name=name)
    return speed_model.predict(spec, quantization, calibration, n_ctx, n_prompt, n_answer, repack, n_gpu_layers)


def assumed(machine):
    """A `Calibration` without a measurement: bandwidth by the table, cores as the reference's, a wide band."""
    name, pipe, source = known_bandwidth(machine.cpu_name) or _usual_memory()
    threads = int(machine.cpu_threads)
    factor = speed_model.REFERENCE_THREADS / min(threads, MOST_USEFUL_THREADS)
    low, high = ASSUMED_BAND
    note = f"Not calibrated: memory is taken as {name}, {units.show_decimal(pipe, 1)}/s; speed.calibrate() measures it."
    return Calibration(
        hardware.Reading(pipe, source), factor, factor, threads, "assumed", low, high, _narrow_is_slow(machine),
        notes=(note,), **_card(machine),
    )  # fmt: skip


ASSUMED_BAND = (0.3, 2.5)
MOST_USEFUL_THREADS = 8


def known_bandwidth(name):
    """(name in the table, bytes per second, source) of a graphics card, an Apple chip or a kind of memory, or None.

    A row counts when its words stand in `name` and no qualifier follows: "RTX 3080 Laptop" is no "RTX 3080".

    >>> known_bandwidth("NVIDIA GeForce RTX 4090")[:2]
    ('RTX 4090', 1008000000000)
    """
    words = _words(name)
    for known, *found in sorted(_bandwidth_table(), key=lambda row: -len(_words(row[0]))):
        wanted = _words(known)
        for start in range(len(words) - len(wanted) + 1):
            after = start + len(wanted)
            if words[start:after] == wanted and not QUALIFIERS & set(words[after : after + 1]):
                return known, *found
    return None


QUALIFIERS = {"ti", "super", "laptop", "mobile", "max", "pro", "ultra", "xt", "xtx", "gre", "d", "se", "m", "s"}


def _words(name):
    return str(name).lower().replace("-", " ").split()


@functools.cache
def _bandwidth_table():
    """(name, bytes per second, source) of every row of data/bandwidth.toml."""
    toml = need("tomllib" if sys.version_info >= (3, 11) else "tomli", "read the table of bandwidths")
    tables = toml.loads((DATA / "bandwidth.toml").read_text(encoding="utf-8"))
    return [
        (name, round(figure * units.GB), table["source"])
        for table in tables.values()
        for name, figure in table["gb_per_s"].items()
    ]


def _usual_memory():
    return known_bandwidth(USUAL_MEMORY)


USUAL_MEMORY = "DDR4-3200 x2"


def _card(machine):
    """What the table knows about the machine's first graphics card."""
    for gpu in machine.gpus:
        found = known_bandwidth(gpu.name)
        if found:
            return {"gpu_name": gpu.name, "gpu_bytes_per_s": hardware.Reading(found[1], found[2])}
    return {"gpu_name": machine.gpus[0].name} if machine.gpus else {}
