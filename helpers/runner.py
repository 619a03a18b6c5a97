"""The only room that loads real weights: guard, load, ask, stream, measure. The model lives in a child process.

llama.cpp may crash or run out of memory; then the child ends and the learner's notebook gets a `ModelDied`.
"""

import contextlib
import errno
import html
import itertools
import json
import math
import mmap
import numbers
import os
import re
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import units
from .child import Child, ChildDied
from .need import MissingPackage, need

CHILD = "helpers.runner_child"
# How long an OpenMP thread (GCC's) waits in a loop before it sleeps. The default, 300,000, makes llama.cpp nine times
# slower than this as soon as another program wants a core; on an idle machine both are equally fast.
SPIN_COUNT = "1000"
SAMPLE_EVERY_S = 0.02
SHOW_BAR_AFTER_S = 2.0
BUSY_AFTER_S = 1.0
STOP_WITHIN_S = 10.0
# A load may be silent for so long (a GPU's first start compiles for minutes), and for the time its bytes take from the
# slowest place that anybody waits for: llama.cpp says nothing while a file is mapped.
SILENT_S, SLOWEST_BYTES_PER_S = 300.0, units.MB
MOST_EXTENTS = 10_000
SCHEMA_CHARACTERS = 20_000  # longer schemas, and counts above the next line, make grammars that take minutes to build
SCHEMA_COUNT = 500
SCHEMA_DEPTH = 32
BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
PARTS = {
    "model": "weights_bytes",
    "KV": "kv_bytes",
    "RS": "kv_bytes",
    "compute": "compute_bytes",
    "output": "output_bytes",
}
ADVICE = {
    "SIGKILL": "Try a smaller n_ctx or a smaller quantization, and close other programs.",
    "SIGSEGV": "Try repack=False and n_gpu_layers=0; if it comes back, the file may be damaged.",
    "SIGABRT": "Read the log (.log): its last lines name the failed check.",
    "SIGILL": "Reinstall llama-cpp-python on this very machine.",
}
AGAIN = "The notebook is unharmed; model.reload() loads it again."
CLAIM = re.compile(r"--holds=(\d{1,18})\+(\d{1,18})@(\S+)")
AMX = (
    "This processor has AMX, where llama.cpp's second, rearranged copy of the weights crashes: here models are loaded "
    "without it (repack=False). This is said once."
)
_models, _started = weakref.WeakSet(), weakref.WeakSet()
_said = set()


class LoadError(RuntimeError):
    """A model file that could not be loaded; `.log` holds the last lines that llama.cpp printed."""

    def __init__(self, text, log=""):
        super().__init__(units.printable(text))
        self.log = log


class WontFit(MemoryError):
    """A load refused beforehand, because the memory is not there; `.verdict` has the numbers."""

    def __init__(self, text, verdict=None):
        super().__init__(units.printable(text))
        self.verdict = verdict


class ModelDied(RuntimeError):
    """The model's process ended by itself; `.partial_text` is what it had answered, `.log` its last lines."""

    def __init__(self, text, partial_text="", log=""):
        super().__init__(units.printable(text))
        self.partial_text, self.log = partial_text, log


class ModelClosed(RuntimeError):
    """A question to a model that was closed."""


class ModelBusy(RuntimeError):
    """A question to a model that is still answering another one."""


@dataclass(frozen=True)
class Memory:
    """What a process holds in RAM, in bytes.

    `file_bytes` are pages of files (mapped weights, libraries), which the system may drop and read again;
    `anonymous_bytes` are the rest; `peak_bytes` is the most since the process began. Where the system does not tell
    them apart, all is counted as anonymous and `source` says so.
    """

    file_bytes: int
    anonymous_bytes: int
    peak_bytes: int
    source: str

    @property
    def resident_bytes(self):
        return self.file_bytes + self.anonymous_bytes

    def __str__(self):
        parts = f"{units.show(self.file_bytes)} file pages + {units.show(self.anonymous_bytes)} anonymous"
        return f"{units.show(self.resident_bytes)} resident ({parts}; peak {units.show(self.peak_bytes)})"


@dataclass(frozen=True)
class Reserved:
    """What llama.cpp printed that it reserves, in bytes; `by_buffer` maps (device, kind) to bytes.

    *When it misleads*: it prints two decimals of a MiB, and reserved memory becomes resident only when it is used.
    """

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    by_buffer: dict = field(default_factory=dict)

    @property
    def total_bytes(self):
        return sum(self.parts().values())

    def parts(self):
        """Part name -> bytes, named as in `memory.Estimate.parts`."""
        return {part: getattr(self, f"{part}_bytes") for part in ("weights", "kv", "compute", "output")}


@dataclass(frozen=True)
class Answer:
    """What a model answered, and what that took, measured just now on this machine.

    Prompt speed counts the time to the first token; `tokens_per_second` counts the tokens after it. `prompt` is the
    exact text the model got, after its chat template. `history` goes into the next `ask(..., history=...)`.
    `finish_reason`: "stop" (the model ended), "length" (`max_tokens`), "context" (no room left), "cancelled".
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    prompt_tokens_per_second: float
    tokens_per_second: float
    load_seconds: float
    peak_bytes: int
    peak_file_bytes: int
    peak_anonymous_bytes: int
    finish_reason: str
    prompt: str
    seconds: float
    seed: int = 0
    history: tuple = ()
    notes: tuple[str, ...] = ()

    def measured(self):
        """The numbers in one line."""
        return (
            f"{self.prompt_tokens} + {self.answer_tokens} tokens, prompt {self.prompt_tokens_per_second:.0f} tokens/s, "
            f"answer {self.tokens_per_second:.1f} tokens/s, peak {units.show(self.peak_bytes)} "
            f"({units.show(self.peak_file_bytes)} file pages), ended by {self.finish_reason}"
        )

    def __str__(self):
        lines = [self.text, f"[{self.measured()}]", *(f"Note: {note}" for note in self.notes)]
        return "\n".join(map(units.printable, lines))

    def _repr_html_(self):
        said = self.text, self.measured(), *self.notes
        text, measured, *notes = (html.escape(units.printable(one)) for one in said)
        notes = "".join(f"<p>Note: {note}</p>" for note in notes)
        return f'<div style="white-space: pre-wrap">{text}</div><p><small>{measured}</small></p>{notes}'


def load(
    path,
    n_ctx=2048,
    n_threads=None,
    n_batch=2048,
    n_ubatch=512,
    cache_type_k="f16",
    cache_type_v="f16",
    flash_attn=True,
    n_gpu_layers=0,
    repack=False,
    use_mmap=True,
    seed=None,
    force=False,
    progress=True,
    machine=None,
    embeds_only=False,
):
    """Load a GGUF file into a child process, after asking whether it fits.

    Parameters
    ----------
    path : path of a GGUF file
    n_ctx, n_batch, n_ubatch : int
        Tokens: the context, and how many are read at once.
    n_threads : int, optional
        Default: what this process may use here. More than that is many times slower, not faster.
    cache_type_k, cache_type_v : str
        "f16", "q8_0", "q4_0", ...
    repack : bool
        llama.cpp's second, rearranged copy of the weights: prompts are read faster, for up to twice the memory.
        Refused on processors with AMX, where it crashes.
    use_mmap : bool
        Map the file (its pages can be dropped when memory is short), or copy it.
    seed : int, optional
        For every `ask` without a seed of its own; None draws a new one each time (`Answer.seed` says which).
    force : bool
        Load even if the verdict is "no".
    progress : bool or callable
        A bar when it takes over 2 s; or a function called with a number from 0 to 1.
    machine : Machine, optional
        The machine to judge by; default: this one, less what models that other notebooks (or this one) have loaded or
        are loading will still take.
    embeds_only : bool
        Also take an embedding model, which has `embed` and cannot answer.

    Returns
    -------
    Model

    Raises
    ------
    WontFit
        The verdict is "no"; it says why.
    LoadError
        The file is missing, is no GGUF file, is mostly holes (a download that only set its length), or llama.cpp
        refuses it, or says nothing for 5 minutes and a second for each MB.
    ModelDied
        The child process ended while loading.
    """
    settings = {
        "n_ctx": n_ctx,
        "n_threads": _threads(n_threads),
        "n_batch": n_batch,
        "n_ubatch": n_ubatch,
        "cache_type_k": cache_type_k,
        "cache_type_v": cache_type_v,
        "flash_attn": bool(flash_attn),
        "n_gpu_layers": n_gpu_layers,
        "repack": bool(repack),
        "use_mmap": bool(use_mmap),
    }
    options = {"force": force, "progress": progress, "machine": machine, "embeds_only": bool(embeds_only)}
    return Model(path, settings, seed=seed, **options)


def loaded():
    """The models that live in a child process of this notebook now."""
    return [model for model in _models if model.alive]


def running():
    """As `loaded`, with those that are still loading: what a meter of memory looks at."""
    return [model for model in _started.copy() if model.alive]


class Model:
    """A loaded model; made by `load`. Use it in a `with` block, or call `close()` to give its memory back.

    `reserved`: what llama.cpp printed while loading. `settings`: how it was loaded. `estimate`, `verdict`: what was
    predicted beforehand. `load_seconds`: time inside llama.cpp. `log`: its last lines.
    """

    def __init__(self, path, settings, seed=None, force=False, progress=True, machine=None, embeds_only=False):
        self.path = Path(path).expanduser()
        self._asked = dict(settings)
        self._seed = _whole("seed", seed, 0, 2**32 - 1) if seed is not None else None
        self._options = {"force": force, "progress": progress, "machine": machine, "embeds_only": embeds_only}
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._child, self._closed, self._death, self._latest = None, False, None, None
        _started.add(self)
        self._load()
        _models.add(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        state = "closed" if self._closed else "ready" if self.alive else "its process has ended"
        return f"<Model {units.printable(self.path.name, 200)}: {state}, {self.settings['n_ctx']} tokens of context>"

    @property
    def alive(self):
        """Whether the model's process runs."""
        return self._child is not None and self._child.alive

    @property
    def pid(self):
        """The number of the model's process; None before it was started."""
        return self._child.pid if self._child else None

    @property
    def log(self):
        """The last lines that llama.cpp printed."""
        return units.printable(self._child.log_tail()) if self._child else ""

    def ask(
        self,
        prompt,
        system=None,
        max_tokens=256,
        temperature=0.7,
        top_p=0.95,
        top_k=40,
        seed=None,
        stream=None,
        history=None,
        schema=None,
    ):
        """Put a question in the model's own chat format.

        Parameters
        ----------
        prompt, system : str
            The question, and standing instructions.
        max_tokens : int
            The answer is cut after so many tokens.
        temperature : float
            0 takes the likeliest token every time, so the same question gets the same answer.
        top_p, top_k : float, int
            Choose among the likeliest tokens only; 1 and 0 switch them off.
        stream : bool or callable
            True prints the pieces as they come; a function is called with each piece.
        history : sequence of {"role": ..., "content": ...}
            What was said before, for instance `answer.history`.
        schema : dict, optional
            A JSON schema. The model may then write only what goes on towards JSON of that form: the form is forced,
            the content is not. An answer cut off by `max_tokens` is no whole JSON; `work.extract` checks that.

        Returns
        -------
        Answer
            Ctrl-C ends the answer early (`finish_reason` "cancelled"); the model stays usable.
        """
        messages = _messages(prompt, system, history)
        request = {"messages": messages} if schema is None else {"messages": messages, "schema": _schema_text(schema)}
        answer = self._generate(request, max_tokens, temperature, top_p, top_k, seed, stream)
        return replace(answer, history=(*messages, {"role": "assistant", "content": answer.text}))

    def complete(self, text, max_tokens=256, temperature=0.7, top_p=0.95, top_k=40, seed=None, stream=None):
        """Let the model go on from `text` as it is, without a chat template; see `ask`."""
        answer = self._generate({"text": _text("text", text)}, max_tokens, temperature, top_p, top_k, seed, stream)
        return replace(answer, notes=())

    def chat_prompt(self, messages):
        """The exact text that the model gets for these messages (a question, or a list of role and content)."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._call({"do": "prompt", "messages": _checked_messages(messages)})["prompt"]

    def tokenize(self, text):
        """The tokens of `text` as (id, text) pairs, the start token included where the model wants one."""
        return [tuple(pair) for pair in self._call({"do": "tokenize", "text": _text("text", text)})["tokens"]]

    def count_tokens(self, texts):
        """How many tokens each of these texts has, as a list; for one text, a number."""
        if isinstance(texts, str):
            return self.count_tokens([texts])[0]
        return self._call({"do": "count", "texts": [_text("texts", text) for text in texts]})["counts"]

    def embed(self, texts, progress=None):
        """Vectors that stand for texts: one row per text, each of length 1 (an array of float32).

        Parameters
        ----------
        texts : sequence of str
            Each of at most 256 tokens.
        progress : callable, optional
            Called with the number of texts done so far.

        Notes
        -----
        The mean of the last layer over the text's tokens, or what an embedding model's file asks for. The first call
        sets aside memory for a second context.

        *When it misleads*: a chat model was not trained to put texts of like meaning side by side; `rag.measure` counts
        how often it does. Ctrl-C ends it with `KeyboardInterrupt`; the model stays usable.
        """
        import numpy as np

        texts = [_text("texts", text) for text in texts]
        request, rows = {"do": "embed", "texts": texts, "id": next(self._ids)}, []
        with self._one_at_a_time():
            try:
                for message in self._conversation(request):
                    if "vector" in message:
                        rows.append(message["vector"])
                        (progress or _ignore)(len(rows))
            except ChildDied as death:
                raise self._died(death) from None
            except BaseException:
                self.cancel()
                raise
        vectors = np.array(rows, dtype=np.float32).reshape(len(rows), -1)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def memory(self):
        """What the model's process holds in RAM now: a `Memory`."""
        self._must_live()
        return memory_of(self._child.pid)

    def expects(self, n_prompt=0, n_answer=0):
        """What its process should hold in RAM after so many tokens, by the formula: a `memory.Resident`.

        Raises `ValueError` where no formula knows that: layers on a GPU, an unknown family.
        """
        from . import memory

        return memory.resident(self.estimate, n_prompt, n_answer, use_mmap=self._asked["use_mmap"])

    def cancel(self):
        """End the running answer early, from another thread (a Stop button); nothing happens when none is running."""
        with contextlib.suppress(ChildDied, ValueError):
            self._child.send({"do": "cancel"})

    def close(self):
        """End the child process and give its memory back."""
        self._closed = True
        if self._child:
            self._child.close()

    def reload(self):
        """Load the same file with the same settings again, after `close()` or `ModelDied`; returns the model."""
        with self._one_at_a_time(needs_life=False):
            self.close()
            self._load()
        return self

    def _load(self):
        options = _only(self._options, "force", "machine")
        self.estimate = _needs(self.path, self._asked, progress=self._options["progress"], **options)
        held = _check_held(self.path, self._options["force"])
        claim = Claim.of(self.path, self.estimate, self._asked["use_mmap"])
        spin = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT)}
        spin["GGML_NO_BACKTRACE"] = "1"  # a failed check would start a debugger for seconds, and bury llama.cpp's words
        child = Child(CHILD, env=spin, arguments=[str(claim)])  # before the guard: of two at once, both see the elder
        try:
            self.verdict = _guard(self.path, self.estimate, claim, child.pid, **options)
        except BaseException:
            child.close()
            raise
        self._child, self._closed, self._death = child, False, None
        progress = _Progress(self.path.name, self._options["progress"])
        try:
            request = {"do": "load", "path": str(self.path), "embeds_only": self._options["embeds_only"]}
            facts = self._call({**request, **self._asked}, progress, SILENT_S + held / SLOWEST_BYTES_PER_S)
        except BaseException:
            self.close()
            raise
        finally:
            progress.close()
        self.load_seconds, self.n_vocab = facts["load_seconds"], facts["n_vocab"]
        self.n_ctx_train, self.n_params = facts["n_ctx_train"], facts["n_params"]
        self.notes, self.has_template = tuple(facts["notes"]), facts["has_template"]
        self.reserved = parse_reserved(facts["log"])
        self.settings = {**self._asked, "n_ctx": facts["n_ctx"], "n_outputs_max": 1, "swa_full": False}
        self.engine = facts["engine"]

    def _generate(self, request, max_tokens, temperature, top_p, top_k, seed, stream):
        request |= {
            "do": "generate",
            "max_tokens": _whole("max_tokens", max_tokens, 1, 2**31 - 1),
            "temperature": _number("temperature", temperature, 0, 100),
            "top_p": _number("top_p", top_p, 0, 1),
            "top_k": _whole("top_k", top_k, 0, 2**31 - 1),
            "seed": self._seed if seed is None else _whole("seed", seed, 0, 2**32 - 1),
        }
        emit = _print_piece if stream is True else stream or _ignore
        if not callable(emit):
            raise TypeError(f"stream={stream!r} must be True, False or a function that takes one piece of text.")
        with self._one_at_a_time():
            start = time.perf_counter()
            peak = _Peak(self._child.pid)
            done = self._stream(request, emit, peak)
            peak.sample()
        if stream is True:
            print(flush=True)
        return Answer(
            text=done["text"],
            prompt_tokens=done["prompt_tokens"],
            answer_tokens=done["answer_tokens"],
            prompt_tokens_per_second=_rate(done["prompt_tokens"], done["prompt_seconds"]),
            tokens_per_second=_rate(done["steps"], done["answer_seconds"]),
            load_seconds=self.load_seconds,
            peak_bytes=peak.resident_bytes,
            peak_file_bytes=peak.file_bytes,
            peak_anonymous_bytes=peak.anonymous_bytes,
            finish_reason=done["finish_reason"],
            prompt=done["prompt"],
            seconds=time.perf_counter() - start,
            seed=done["seed"],
            notes=tuple(done["notes"]),
        )

    def _stream(self, request, emit, peak):
        """The child's last message about `request`; the pieces before it go to `emit`."""
        pieces = []
        request["id"] = next(self._ids)
        try:
            for message in self._conversation(request, tick=peak.sample_if_due):
                if "piece" in message:
                    pieces.append(message["piece"])
                    emit(message["piece"])
            return message["done"]
        except KeyboardInterrupt:
            self.cancel()
            return self._wait_for_end(request["id"], pieces)
        except ChildDied as death:
            raise self._died(death, "".join(pieces)) from None
        except BaseException:  # the learner's own function failed: do not go on answering to nobody
            self.cancel()
            raise

    def _call(self, request, progress=None, silent_s=math.inf):
        """One request, one answer; `silent_s`: how long no word may come."""
        request["id"] = next(self._ids)
        with contextlib.nullcontext() if request["do"] == "load" else self._one_at_a_time():
            try:
                for message in self._conversation(request, silent_s=silent_s):
                    if progress and "progress" in message:
                        progress(message["progress"])
                return message["done"]
            except ChildDied as death:
                raise self._died(death, loading=request["do"] == "load") from None

    def _conversation(self, request, tick=None, silent_s=math.inf):
        """Send a request and yield the messages about it; a refusal is raised."""
        self._child.send(request)
        heard = time.monotonic()
        while True:
            message = self._receive(SAMPLE_EVERY_S if tick else 0.2)
            if tick:
                tick()
            if message is None and time.monotonic() - heard > silent_s:
                raise LoadError(
                    f"{self.path.name} was not loaded: llama.cpp made no progress for {silent_s:,.0f} s, so it was "
                    "ended. Copy the file to a faster disk, or fetch it again.",
                    self.log,
                )
            heard = heard if message is None else time.monotonic()
            if message is None or message["id"] != request["id"]:  # left over from a cancelled answer
                continue
            if "error" in message:
                raise self._refusal(message)
            yield message
            if "done" in message:
                return

    def _receive(self, timeout):
        """The next message, or None after `timeout` seconds: short, for on Windows Ctrl-C does not end a long wait."""
        try:
            self._latest = self._child.receive(timeout)
        except TimeoutError:
            return None
        return self._latest

    def _wait_for_end(self, request_id, pieces):
        """After Ctrl-C: the child's last message about this request, which may have arrived already."""
        until, message = time.monotonic() + STOP_WITHIN_S, self._latest
        while time.monotonic() < until:
            if message and message["id"] == request_id and "error" in message:
                raise self._refusal(message)
            if message and message["id"] == request_id and "done" in message:
                return message["done"]
            try:
                message = self._receive(0.2)
            except ChildDied as death:
                raise self._died(death, "".join(pieces)) from None
        self._child.close()
        self._death = f"It did not stop within {STOP_WITHIN_S:.0f} s, so it was ended."
        raise ModelDied(f"{self.path.name}: {self._death} {AGAIN}", "".join(pieces), self.log)

    def _refusal(self, message):
        name, text = units.printable(self.path.name, 200), units.printable(message["error"].strip(), 2000)
        if message["kind"] == "import":
            return MissingPackage(
                f"To load a model, the package llama-cpp-python is needed and could not be imported ({text}). Install "
                "it with: python -m pip install llama-cpp-python"
            )
        if message["kind"] == "load":
            return LoadError(_why_not_loaded(name, text), self.log)
        if message["kind"] == "schema":
            return ValueError(
                f"llama.cpp cannot make a grammar of this JSON schema ({text}). Use objects, arrays, enum, and the "
                "types string, integer, number, boolean; no double quotes or backslashes in names and choices."
            )
        if message["kind"] == "template":
            return ValueError(f"The chat template of {name} refuses these messages: {text}")
        if message["kind"] == "value":
            return ValueError(f"{name}: {text}.")
        return RuntimeError(f"{name}: llama.cpp failed: {text}. Read model.log.")

    def _died(self, death, partial_text="", loading=False):
        advice = next((text for name, text in ADVICE.items() if name in death.how), "Read the log (.log).")
        if loading:
            text = f"{self.path.name}: its process ended while loading: {death.how}. {advice} The notebook is unharmed."
            return ModelDied(text, log=death.log)
        if self._closed:
            return ModelClosed(f"{self.path.name} was closed while it was working. {AGAIN}")
        self._death = f"Its process ended: {death.how}. {advice}"
        return ModelDied(f"{self.path.name}: {self._death} {AGAIN}", partial_text, death.log)

    def _must_live(self):
        if self._closed:
            raise ModelClosed(f"{self.path.name} is closed. model.reload() loads it again.")
        if not self.alive:
            raise ModelDied(f"{self.path.name}: {self._death or 'Its process has ended.'} {AGAIN}", log=self.log)

    @contextlib.contextmanager
    def _one_at_a_time(self, needs_life=True):
        if not self._lock.acquire(timeout=BUSY_AFTER_S):
            raise ModelBusy(f"{self.path.name} is still answering. Wait for it, or end the answer with model.cancel().")
        try:
            if needs_life:
                self._must_live()
            yield
        finally:
            self._lock.release()


def memory_of(pid):
    """What a process holds in RAM now: a `Memory`, from Linux's `/proc`, elsewhere from psutil."""
    try:
        file, anonymous = _resident(pid)
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        info = need("psutil", "read the memory of a process").Process(pid).memory_info()
        peak = max(getattr(info, "peak_wset", 0), info.rss)
        return Memory(0, info.rss, peak, "psutil: resident set, not split into file and anonymous pages here")
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    peak_bytes = int(peak[1]) * units.KIB if peak else 0
    return Memory(file, anonymous, max(peak_bytes, file + anonymous), f"/proc/{pid}/statm, status")


def _resident(pid):
    """(file pages, anonymous pages) in bytes: the cheapest look Linux offers, taken 50 times a second."""
    with open(f"/proc/{pid}/statm", "rb") as file:
        resident, shared = (int(pages) * mmap.PAGESIZE for pages in file.read().split()[1:3])
    return shared, resident - shared


def parse_reserved(log):
    """llama.cpp's printed buffer sizes.

    >>> parse_reserved("load_tensors:   CPU_Mapped model buffer size =    93.50 MiB").weights_bytes
    98041856
    """
    parts, by_buffer = dict.fromkeys(PARTS.values(), 0), {}
    for device, kind, mib in BUFFER.findall(log):
        n_bytes = round(float(mib) * units.MIB)
        parts[PARTS[kind]] += n_bytes
        by_buffer[device, kind] = by_buffer.get((device, kind), 0) + n_bytes
    return Reserved(**parts, by_buffer=by_buffer)


@dataclass(frozen=True)
class Claim:
    """What a model's process will hold in RAM at most, in bytes, written on its command line for other notebooks.

    `own_bytes` nobody else can use; `file_bytes` are pages of `file` (device:inode), which models of one file share.
    The list of processes is the register: it needs no lock, and what a dead process claimed is gone with it.

    >>> Claim.read(str(Claim(1000, 98041856, "8:21")))
    Claim(own_bytes=1000, file_bytes=98041856, file='8:21')
    """

    own_bytes: int
    file_bytes: int
    file: str

    @classmethod
    def of(cls, path, estimate, use_mmap):
        parts = estimate.by_device.get("cpu") or estimate.parts()
        stat, mapped = path.stat(), parts["weights"] if use_mmap else 0
        return cls(sum(parts.values()) - mapped, mapped, f"{stat.st_dev}:{stat.st_ino}")

    @classmethod
    def read(cls, argument):
        found = CLAIM.fullmatch(argument)
        return cls(int(found[1]), int(found[2]), found[3]) if found else None

    def __str__(self):
        return f"--holds={self.own_bytes}+{self.file_bytes}@{self.file}"

    def still_to_come(self, held_bytes, beside=None):
        """Bytes that count as free and that this model will use; pages that a model `beside` it shares count once."""
        shared = beside and beside.file == self.file and min(beside.file_bytes, self.file_bytes)
        return max(self.own_bytes - held_bytes, 0) + self.file_bytes - (shared or 0)


def _elders(pid):
    """[(claim, bytes held, in the same control group?, of the same learner?)]: models that started before `pid`."""
    psutil = need("psutil", "see which models other notebooks have loaded")
    found, ours = [], psutil.Process(pid)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            arguments = process.cmdline()
            claim = Claim.read(arguments[-1]) if CHILD in arguments else None
            if claim and (process.create_time(), process.pid) < (ours.create_time(), pid):
                held, same_group = memory_of(process.pid).anonymous_bytes, _group(process.pid) == _group(pid)
                found.append((claim, held, same_group, _learner(process) == _learner(ours)))
    return found


def _group(pid):
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _learner(process):
    """Whose a process is: a user of the system and, where a hub runs all as one user, of the hub."""
    environment = {}
    with contextlib.suppress(Exception):  # a stranger's environment may not be read
        environment = process.environ()
    return process.username(), environment.get("JUPYTERHUB_USER")


def _machine_left(claim, pid):
    """(this machine with what other models leave of it, a sentence about them or "").

    What is free in truth, or under a limit that the system enforces, is shared by all models there. A hub's MEM_LIMIT
    is a promise to one learner: from that only the learner's own models are taken, with all that they hold. The smaller
    of the two is what is left.
    """
    from . import hardware

    try:  # before looking at what is free: a model that grows in between is counted twice rather than not at all
        elders = _elders(pid)
    except MissingPackage:
        elders = []
    machine = free = hardware.detect()
    if not elders:
        return machine, ""
    lefts, limit = [], machine.ram_total_bytes
    if limit.source.startswith("MEM_LIMIT"):
        free = hardware.detect(env={name: value for name, value in os.environ.items() if name != "MEM_LIMIT"})
        mine = hardware.Reading(limit - memory_of(os.getpid()).resident_bytes, limit.source)
        taken = [held + other.still_to_come(held, claim) for other, held, _, same_learner in elders if same_learner]
        lefts.append(_less(mine, taken, "your MEM_LIMIT is used or claimed"))
    free = free.ram_available_bytes
    there = [elder for elder in elders if elder[2] or not free.source.startswith("cgroup")]
    taken = [other.still_to_come(held, claim) for other, held, *_ in there]
    lefts.append(_less(free, taken, "what is free now will be used"))
    left, said = min(lefts, key=lambda pair: pair[0])
    return replace(machine, ram_available_bytes=left), said


def _less(free, taken, what):
    """(what these models leave of the free memory, a sentence about them or "")."""
    if not sum(taken):
        return free, ""
    who = "1 other loaded model" if len(taken) == 1 else f"{len(taken)} other loaded models"
    said = f"{units.show(sum(taken))} of {what} by {who}, here or in other notebooks: close() them."
    return type(free)(max(free - sum(taken), 0), f"{free.source}, less {units.show(sum(taken))} for {who}"), said


def _needs(path, settings, force, machine, progress):
    """What the file at these settings needs, by the formula; `LoadError` for what no memory would help."""
    from . import gguf, hardware, memory

    machine = machine or hardware.detect()
    asked = {name: value for name, value in settings.items() if name in memory.Settings.__dataclass_fields__}
    repack = (machine.repack or True) if settings["repack"] else False
    if repack == "amx" and not force:
        raise LoadError(
            f"{path.name} was not loaded with repack=True: on processors with AMX, as this one, llama.cpp's repacked "
            "path crashes at the first token (llama.cpp issue 20824). Leave repack at False; force=True tries anyway."
        )
    asked |= {"n_outputs_max": 1, "swa_full": False, "repack": repack}
    chosen = memory.Settings(**asked)  # complains about impossible values before the file is opened
    try:
        header = gguf.read_header(path)
        chosen.resolve(header.spec)
    except gguf.GGUFError as error:
        raise LoadError(str(error)) from None
    if machine.repack == "amx" and not settings["repack"] and progress is True and AMX not in _said:
        _said.add(AMX)
        print(AMX, file=sys.stderr)
    return _predict(path, header, asked)


def _guard(path, estimate, claim, pid, force, machine):
    """The verdict, or `WontFit`."""
    from . import fit

    machine, others = (machine, "") if machine else _machine_left(claim, pid)
    try:
        verdict = fit.verdict(estimate, machine)
    except ValueError:  # the levers know fewer families than llama.cpp does
        verdict = fit.judge(estimate, machine)
    verdict = replace(verdict, reasons=tuple(filter(None, (*verdict.reasons, others))))
    if verdict.status == "no" and not force:
        sum_of = " + ".join(f"{part} {units.show(n)}" for part, n in estimate.parts().items() if n)
        helps = "; ".join(f"{lever.name} saves {units.show(lever.saved_bytes)}" for lever in verdict.levers[:3])
        texts = [f"{path.name} was not loaded.", verdict.sentence, f"({sum_of}.)", *verdict.reasons]
        texts += [helps and f"What helps: {helps}."]
        raise WontFit(" ".join([*filter(None, texts), "Pass force=True to try anyway."]), verdict)
    return verdict


def _check_held(path, force):
    """How many bytes of the model's files the disk holds; `LoadError` for a file that is mostly holes."""
    held = 0
    for file in _parts(path):
        n_bytes, size = _held_bytes(file), file.stat().st_size
        if n_bytes < size / 2 and not force:
            raise LoadError(
                f"{file.name} was not loaded: only {units.show(n_bytes)} of its {units.show(size)} are on the disk, "
                "the rest are holes. Its download did not finish: fetch it again; force=True tries anyway."
            )
        held += n_bytes
    return held


def _held_bytes(path):
    """Bytes of a file outside of holes, as far as the system tells: where it does not, all of them.

    `st_blocks` would count a compressed file, or one that is not yet written out, as missing.
    """
    size = path.stat().st_size
    if not hasattr(os, "SEEK_HOLE"):
        return size
    held = at = 0
    with path.open("rb") as file:
        for _ in range(MOST_EXTENTS):
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            except OSError as error:  # ENXIO: nothing but a hole from here on; others: it cannot tell
                return held if error.errno == errno.ENXIO else size
            held += at - data
    return size


def _predict(path, header, asked):
    """The closed form; for a family it does not know, at least every byte of the weights."""
    from . import memory

    weights = _weights_in_files(path, header)
    for known in (header.tensor_types, weights):
        with contextlib.suppress(ValueError, KeyError):
            return memory.estimate(header.spec, known, **asked)
    note = f"No formula here knows the family {header.spec.architecture}: only its weights are counted, it needs more."
    return memory.Estimate(weights, 0, 0, 0, memory.PROCESS_BYTES, "formula", assumptions=(note,), name=path.name)


def _weights_in_files(path, header):
    files = _parts(path)
    return sum(file.stat().st_size for file in files) if len(files) > 1 else header.tensor_bytes


def _parts(path):
    """The files of a model: one, or all parts beside it."""
    part = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", path.name)
    if not part:
        return [path]
    wanted = re.compile(re.escape(part[1]) + r"\d{5}" + re.escape(part[2]))
    return [file for file in path.parent.iterdir() if wanted.fullmatch(file.name)]


def _threads(n_threads):
    if n_threads is not None:
        return _whole("n_threads", n_threads, 1, 512)
    from . import hardware

    return int(hardware.detect().cpu_threads)


def _why_not_loaded(name, text):
    unknown = re.search(r"unknown model architecture: '?([^'\n]+)'?", text)
    if unknown:
        return (
            f"{name} could not be loaded: this llama.cpp does not know the architecture {unknown[1]!r}. Choose another "
            "model, or a newer llama-cpp-python."
        )
    last = [line.strip() for line in text.splitlines() if line.strip()][:2]
    return f"{name} could not be loaded. llama.cpp says: {'; '.join(last)}. The file may be incomplete: fetch it again."


class _Progress:
    """A bar that appears only when loading takes a while, or the learner's own function."""

    def __init__(self, name, wanted):
        self._name, self._wanted, self._bar, self._start = name, wanted, None, time.monotonic()

    def __call__(self, fraction):
        if callable(self._wanted):
            self._wanted(fraction)
        elif self._wanted and time.monotonic() - self._start > SHOW_BAR_AFTER_S:
            self._bar = self._bar or self._make()
            if self._bar:
                self._bar.update(round(fraction * 100) - self._bar.n)

    def _make(self):
        try:
            from tqdm.auto import tqdm
        except ImportError:
            self._wanted = False
            return None
        return tqdm(total=100, desc=f"Loading {self._name}", unit="%")

    def close(self):
        if self._bar:
            self._bar.close()


class _Peak:
    """The largest memory seen while a model worked, its parts taken at that same moment."""

    def __init__(self, pid):
        self._pid, self._next = pid, 0.0
        self.file_bytes = self.anonymous_bytes = 0
        self.sample()

    @property
    def resident_bytes(self):
        return self.file_bytes + self.anonymous_bytes

    def sample_if_due(self):
        if time.monotonic() >= self._next:
            self.sample()

    def sample(self):
        self._next = time.monotonic() + SAMPLE_EVERY_S
        try:
            file, anonymous = _resident(self._pid)
        except OSError:
            file, anonymous = self._elsewhere()
        if file + anonymous > self.resident_bytes:
            self.file_bytes, self.anonymous_bytes = file, anonymous

    def _elsewhere(self):
        try:
            memory = memory_of(self._pid)
        except Exception:  # the process is gone, or nothing can read it: the answer matters more
            return 0, 0
        return memory.file_bytes, memory.anonymous_bytes


def _messages(prompt, system, history):
    before = list(_checked_messages(history or []))
    if system is not None:
        before = [{"role": "system", "content": _text("system", system)}, *(m for m in before if m["role"] != "system")]
    return [*before, {"role": "user", "content": _text("prompt", prompt)}]


def _checked_messages(messages):
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f'{message!r} is not a message: write {{"role": "user", "content": "your words"}}.')
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _schema_text(schema):
    """The schema as JSON text, without what makes llama.cpp build a grammar of millions of rules."""
    if not isinstance(schema, dict):
        raise TypeError(f'schema is {schema!r}; it must be a JSON schema, for instance {{"type": "string"}}.')
    _check_counts(schema)
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The schema cannot be written as JSON: {error}.") from None
    if len(text) > SCHEMA_CHARACTERS:
        raise ValueError(f"The schema has {len(text):,} characters; at most {SCHEMA_CHARACTERS:,} can be used.")
    return text


def _check_counts(part, depth=0):
    if depth > SCHEMA_DEPTH:
        raise ValueError(f"The schema is nested more than {SCHEMA_DEPTH} levels deep. Ask for something flatter.")
    if isinstance(part, dict):
        for name in ("minItems", "maxItems", "minLength", "maxLength"):
            if isinstance(part.get(name, 0), numbers.Number):
                _check_count(f"{name} is", part.get(name, 0))
        if isinstance(part.get("pattern"), str):
            for count in re.findall(r"\d+", " ".join(re.findall(r"\{([^}]*)\}", part["pattern"]))):
                _check_count(f"the pattern {part['pattern']!r} repeats", float(count))
        ref = part.get("$ref")
        if isinstance(ref, str) and not ref.startswith("#/"):
            raise ValueError(f'The schema refers to {ref!r}; it may refer to parts of itself only ("#/$defs/...").')
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ():
        _check_counts(inner, depth + 1)


def _check_count(where, count):
    if not 0 <= count <= SCHEMA_COUNT:
        raise ValueError(f"In the schema {where} {count:g}; it must be from 0 to {SCHEMA_COUNT}.")


def _text(name, value):
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; it must be text.")
    return value


def _whole(name, value, least, most):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {least} to {most}.")
    return int(value)


def _number(name, value, least, most):
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be a number from {least} to {most}.")
    return float(value)


def _rate(n, seconds):
    return n / seconds if seconds > 0 else 0.0


def _only(options, *names):
    return {name: options[name] for name in names}


def _print_piece(piece):
    print(units.printable(piece), end="", flush=True)


def _ignore(piece):
    pass
