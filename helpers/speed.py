"""Memory bandwidth, measured here, and the ceiling that it sets on the speed of a model.

The arrays are numpy's, several threads work on them at once, and every figure says how it was found.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import hardware, units
from .need import need

ARRAY_BYTES = 128 * units.MIB  # three of these are walked through in turn, so that caches hold little of the next one
LEAST_ARRAY_BYTES = units.MIB
SHARE_OF_FREE = 16  # an array takes at most one sixteenth of the free memory
CHUNK_ELEMENTS = 32_768  # of a triad: what two numpy calls hand to each other stays in a core's own cache
LEAST_PASSES = 2
KINDS = ("read", "copy", "triad")


@dataclass(frozen=True, repr=False)
class Bandwidth:
    """How fast memory was read and written just now, in bytes per second, each a `Reading` with its source.

    `read`: one array is added up. `copy`: one is read, one written. `triad`: two are read, one written, with a
    multiplication and an addition between..

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
