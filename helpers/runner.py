"""The only room that loads real weights: guard, load, ask, stream, measure. The model lives in a child process.

llama.cpp may crash or run out of memory; then the child ends and the learner's notebook gets a `ModelDied`.
"""

import contextlib
import html
import itertools
import math
import mmap
import numbers
import os
import re
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
_models = weakref.WeakSet()


class LoadError(RuntimeError):
    """A model file that could not be loaded; `.log` holds the last lines that llama.cpp printed."""

    def __init__(self, text, log=""):
        super().__init__(text)
        self.log = log


class WontFit(MemoryError):
    """A load refused beforehand, because the memory is not there; `.verdict` has the numbers."""

    def __init__(self, text, verdict=None):
        super().__init__(text)
        self.verdict = verdict


class ModelDied(RuntimeError):
    """The model's process ended by itself; `.partial_text` is what it had answered, `.log` its last lines."""

    def __init__(self, text, partial_text="", log=""):
        super().__init__(text)
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
        return "\n".join([self.text, f"[{self.measured()}]", *(f"Note: {note}" for note in self.notes)])

    def _repr_html_(self):
        notes = "".join(f"<p>Note: {html.escape(note)}</p>" for note in self.notes)
        text = f'<div style="white-space: pre-wrap">{html.escape(self.text)}</div>'
        return f"{text}<p><small>{html.escape(self.measured())}</small></p>{notes}"


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
        The machine to judge by; default: this one.

    Returns
    -------
    Model

    Raises
    ------
    WontFit
        The verdict is "no"; it says why.
    LoadError
        The file is missing, is no GGUF file, or llama.cpp refuses it.
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
    return Model(path, settings, seed=seed, force=force, progress=progress, machine=machine)


def loaded():
    """The models that live in a child process of this notebook now."""
    return [model for model in _models if model.alive]


class Model:
    """A loaded model; made by `load`. Use it in a `with` block, or call `close()` to give its memory back.

    `reserved`: what llama.cpp printed while loading. `settings`: how it was loaded. `estimate`, `verdict`: what was
    predicted beforehand. `load_seconds`: time inside llama.cpp. `log`: its last lines.
    """

    def __init__(self, path, settings, seed=None, force=False, progress=True, machine=None):
        self.path = Path(path).expanduser()
        self._asked = dict(settings)
        self._seed = _whole("seed", seed, 0, 2**32 - 1) if seed is not None else None
        self._options = {"force": force, "progress": progress, "machine": machine}
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._child, self._closed, self._death, self._latest = None, False, None, None
        self._load()
        _models.add(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        state = "closed" if self._closed else "ready" if self.alive else "its process has ended"
        return f"<Model {self.path.name}: {state}, {self.settings['n_ctx']} tokens of context>"

    @property
    def alive(self):
        """Whether the model's process runs."""
        return self._child is not None and self._child.alive

    @property
    def log(self):
        """The last lines that llama.cpp printed."""
        return self._child.log_tail() if self._child else ""

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

        Returns
        -------
        Answer
            Ctrl-C ends the answer early (`finish_reason` "cancelled"); the model stays usable.
        """
        messages = _messages(prompt, system, history)
        answer = self._generate({"messages": messages}, max_tokens, temperature, top_p, top_k, seed, stream)
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

    def memory(self):
        """What the model's process holds in RAM now: a `Memory`."""
        self._must_live()
        return memory_of(self._child.pid)

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
        self.estimate, self.verdict = _guard(self.path, self._asked, **_only(self._options, "force", "machine"))
        spin = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT)}
        self._child, self._closed, self._death = Child(CHILD, env=spin), False, None
        progress = _Progress(self.path.name, self._options["progress"])
        try:
            facts = self._call({"do": "load", "path": str(self.path), **self._asked}, progress)
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

    def _call(self, request, progress=None):
        """One request, one answer."""
        request["id"] = next(self._ids)
        with contextlib.nullcontext() if request["do"] == "load" else self._one_at_a_time():
            try:
                for message in self._conversation(request):
                    if progress and "progress" in message:
                        progress(message["progress"])
                return message["done"]
            except ChildDied as death:
                raise self._died(death, loading=request["do"] == "load") from None

    def _conversation(self, request, tick=None):
        """Send a request and yield the messages about it; a refusal is raised."""
        self._child.send(request)
        while True:
            message = self._receive(SAMPLE_EVERY_S if tick else 0.2)
            if tick:
                tick()
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
        name, text = self.path.name, message["error"].strip()
        if message["kind"] == "import":
            return MissingPackage(
                f"To load a model, the package llama-cpp-python is needed and could not be imported ({text}). Install "
                "it with: python -m pip install llama-cpp-python"
            )
        if message["kind"] == "load":
            return LoadError(_why_not_loaded(name, text), self.log)
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


def _guard(path, settings, force, machine):
    """(the estimate, the verdict), or `WontFit`."""
    from . import fit, gguf, hardware, memory

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
    estimate = _predict(path, header, asked)
    try:
        verdict = fit.verdict(estimate, machine)
    except ValueError:  # the levers know fewer families than llama.cpp does
        verdict = fit.judge(estimate, machine)
    if verdict.status == "no" and not force:
        helps = "; ".join(f"{lever.name} saves {units.show(lever.saved_bytes)}" for lever in verdict.levers[:3])
        texts = [f"{path.name} was not loaded.", verdict.sentence, *verdict.reasons, helps and f"What helps: {helps}."]
        raise WontFit(" ".join([*filter(None, texts), "Pass force=True to try anyway."]), verdict)
    return estimate, verdict


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
    part = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", path.name)
    if not part:
        return header.tensor_bytes
    wanted = re.compile(re.escape(part[1]) + r"\d{5}" + re.escape(part[2]))
    return sum(file.stat().st_size for file in path.parent.iterdir() if wanted.fullmatch(file.name))


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
    print(piece, end="", flush=True)


def _ignore(piece):
    pass
