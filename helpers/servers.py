"""Ask whatever runs models, and measure alike: Ollama, LM Studio, llama-server, any other server, our own runner.

An answer may take as long as it likes while pieces come; a server that is off, wrong or broken is one clear sentence.
"""

import contextlib
import difflib
import queue
import threading
import time
from dataclasses import dataclass, field

from . import ports, runner, stores, units
from .need import need
from .ports import Server, ServerError

FIRST_TOKEN_WITHIN_S = 300.0  # a long prompt on a slow computer, or a model that is first loaded from disk
PIECE_WITHIN_S = 60.0
SAY_WAITING_AFTER_S = 2.0
MOST_ANSWER_CHARACTERS = 2_000_000
NANOSECOND = 1e-9  # Ollama counts in them
LLAMA_TIMINGS = (("prompt", "prompt_"), ("predicted", ""))
find, connect, local_models = ports.find, ports.connect, stores.local_models


@dataclass(frozen=True)
class Reply:
    """An answer and what it took, the same for every server and for the kit's own runner.

    `first_token_seconds`, `tokens_per_second` and `seconds` are by our own clock: one ruler for all, the network and
    the waiting included; the speed counts the tokens after the first. `server_says` has the server's own figures where
    it tells them (`prompt_tokens_per_second`, `tokens_per_second`, `load_seconds`). `counted_by`: who counted the
    tokens, the "server" or we, by "pieces". `finish_reason`: "stop", "length" or "cancelled", else the server's word.

    *When it misleads*: a server that sends several tokens in one piece, or a prompt that it still had in its cache,
    looks faster than it is; the `notes` say so where it can be known.
    """

    text: str
    where: str
    model: str
    prompt_tokens: int
    answer_tokens: int
    first_token_seconds: float
    tokens_per_second: float
    seconds: float
    finish_reason: str
    server_says: dict = field(default_factory=dict)
    counted_by: str = "server"
    thoughts: str = ""
    history: tuple = ()
    notes: tuple[str, ...] = ()

    def measured(self):
        """The numbers in one line."""
        says = self.server_says.get("tokens_per_second")
        return (
            f"{self.where}: {self.prompt_tokens or '?'} + {self.answer_tokens} tokens, first after "
            f"{self.first_token_seconds:.2f} s, then {self.tokens_per_second:.1f} tokens/s by our clock"
            f"{f' ({says:.1f} by its own)' if says else ''}, ended by {self.finish_reason}"
        )

    # Shown as the runner's own answers are: both have a text, what it took, and notes.
    __str__, _repr_html_ = runner.Answer.__str__, runner.Answer._repr_html_


def ask(
    where,
    prompt,
    model=None,
    system=None,
    max_tokens=256,
    temperature=0.7,
    top_p=0.95,
    seed=None,
    stream=None,
    history=None,
    n_ctx=None,
    first_token_within_s=FIRST_TOKEN_WITHIN_S,
    piece_within_s=PIECE_WITHIN_S,
    progress=True,
):
    """Put a question to whatever runs models, and measure the answer; the same call for all.

    Parameters
    ----------
    where : str, Server or runner.Model
        "ollama:llama3.2", "lmstudio:NAME", "llama-server", "class", an address, a `Server`, or a loaded model.
    model : str, optional
        Its name on that server; not needed when it offers or has loaded one only.
    stream : bool or callable
        True prints the pieces as they come; a function is called with each piece.
    n_ctx : int, optional
        Tokens of context, for Ollama only; it loads the model again when it had another number.
    first_token_within_s, piece_within_s : float
        The patience: until the first piece (the prompt is read, perhaps the model loaded), and between pieces.
    progress : bool
        Say so when the first word takes more than 2 s.

    Returns
    -------
    Reply
        Ctrl-C ends the answer early (`finish_reason` "cancelled").

    Raises
    ------
    ServerError
        Within 5 s for a server that is off or wrong, a name it does not have or a failure; after the patience for one
        that says nothing. `.partial_text` is what had come of half an answer.
    """
    emit = _print_piece if stream is True else stream or _ignore
    if not callable(emit):
        raise TypeError(f"stream={stream!r} must be True, False or a function that takes one piece of text.")
    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    if isinstance(where, runner.Model):
        reply = _ask_runner(where, prompt, system, history, emit, settings)
    else:
        server, model = _whom(where, model)
        messages = _messages(prompt, system, history)
        ollama = server.kind == ports.OLLAMA
        produce = _ollama_events if ollama else _openai_events
        need("ollama" if ollama else "openai", f"ask {server.kind}")  # importing takes a second: not on the clock
        patience = (first_token_within_s, piece_within_s)
        events = _Events(server, lambda: produce(server, model.name, messages, settings, n_ctx, max(patience) + 5))
        taken = _Taken()
        _take(events, taken, emit, patience, progress)
        reply = _reply(server, model, messages, taken)
    if stream is True:
        print(flush=True)
    return reply


def compare(wheres, prompt, **settings):
    """Ask several, one after the other: a list of `Reply`, or the `ServerError` in its place.

    Each of `wheres` is what `ask` takes, or a pair (where, name of the model).
    """
    replies = []
    for where in wheres:
        where, model = where if isinstance(where, tuple) else (where, None)
        try:
            replies.append(ask(where, prompt, model=model, **settings))
        except ServerError as error:
            replies.append(error)
    return replies


def _whom(where, model):
    """(server, its model); a name that the server does not have is an error before it is asked."""
    if not isinstance(where, Server):
        name, colon, rest = str(where).partition(":")
        if colon and name.strip().lower() in ports.NAMES:
            where, model = name, model or rest or None
    where, known = ports.meet(where)
    known = [row for row in known if row.note != ports.FOR_EMBEDDINGS]
    if not known:
        how = "`ollama pull llama3.2` fetches one" if where.kind == ports.OLLAMA else "Load one in it first"
        raise ServerError(f"{where.kind} at {where.url} has no model that could answer. {how}.")
    if model is None:
        loaded = [row for row in known if row.loaded]
        chosen = loaded if len(loaded) == 1 else known
        if len(chosen) > 1:
            titles = _some([row.title for row in known])
            raise ServerError(f"{where.kind} at {where.url} has several models: pass model= with one of {titles}.")
        return where, chosen[0]
    wanted = {model, f"{model}:latest"} if where.kind == ports.OLLAMA else {model}
    for row in known:
        if wanted & {row.name, row.title}:
            return where, row
    raise ServerError(_unknown(where, model, [row.title for row in known]))


def _unknown(server, model, titles):
    near = difflib.get_close_matches(model, titles, n=3, cutoff=0.4)
    get = f" `ollama pull {ports.clean(model)}` would fetch it." if server.kind == ports.OLLAMA else ""
    has = f"It has {_some(near or titles)}."
    return f"{server.kind} at {server.url} has no model called {ports.clean(model)!r}. {has}{get}"


def _some(names):
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _messages(prompt, system, history):
    before = [message for message in history or () if system is None or message["role"] != "system"]
    before = [{"role": "system", "content": system}, *before] if system is not None else before
    return [*before, {"role": "user", "content": prompt}]


def _openai_events(server, model, messages, settings, _, patience):
    """(kind, value) pairs from a server that speaks OpenAI's protocol."""
    openai = need("openai", f"ask {server.kind}")
    # This computer is never asked through a proxy, and a server that sends us to another address is not followed.
    http = openai.DefaultHttpxClient(trust_env=not ports.is_here(server.url), follow_redirects=False)
    timeout = openai.Timeout(patience, connect=ports.CONNECT_WITHIN_S)
    with openai.OpenAI(
        base_url=server.api_url, api_key=server.key or "none", max_retries=0, timeout=timeout, http_client=http
    ) as client:
        yield "start", None
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **{name: value for name, value in settings.items() if value is not None},
        )
        for chunk in stream:
            yield from _chunk_events(chunk)


def _chunk_events(chunk):
    for choice in chunk.choices or ():
        delta = choice.delta
        if thought := getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None):
            yield "thought", thought
        if delta and delta.content:
            yield "piece", delta.content
        if choice.finish_reason:
            yield "finish", choice.finish_reason
    if chunk.usage:
        yield "tokens", (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    more = chunk.model_extra or {}
    if isinstance(more.get("timings"), dict):  # llama-server
        timings = more["timings"]
        yield "cached", ports.whole(timings, "cache_n")
        yield "says", {f"{to}tokens_per_second": timings.get(f"{of}_per_second") for of, to in LLAMA_TIMINGS}
    if isinstance(more.get("stats"), dict):  # LM Studio
        yield "says", {"tokens_per_second": more["stats"].get("tokens_per_second")}


def _ollama_events(server, model, messages, settings, n_ctx, patience):
    """(kind, value) pairs from Ollama's own protocol, through its official client."""
    ollama = need("ollama", "ask Ollama")
    options = {
        "num_predict": settings["max_tokens"], "temperature": settings["temperature"], "top_p": settings["top_p"],
        "seed": settings["seed"], "num_ctx": n_ctx,
    }  # fmt: skip
    client = ollama.Client(
        server.url,
        timeout=patience,
        trust_env=not ports.is_here(server.url),
        follow_redirects=False,
        headers={"authorization": f"Bearer {server.key or 'none'}"},  # or it sends the key of Ollama's own site
    )
    with client:
        options = {name: value for name, value in options.items() if value is not None}
        yield "start", None
        for part in client.chat(model=model, messages=messages, stream=True, options=options):
            if part.message.thinking:
                yield "thought", part.message.thinking
            if part.message.content:
                yield "piece", part.message.content
            if part.done:
                yield "tokens", (part.prompt_eval_count or 0, part.eval_count or 0)
                yield "says", _ollama_figures(part)
                yield "finish", part.done_reason or "stop"


def _ollama_figures(part):
    """Ollama's own measures; its durations are nanoseconds."""
    return {
        "prompt_tokens_per_second": _per_second(part.prompt_eval_count, part.prompt_eval_duration),
        "tokens_per_second": _per_second(part.eval_count, part.eval_duration),
        "load_seconds": (part.load_duration or 0) * NANOSECOND,
    }


def _per_second(count, nanoseconds):
    return count / (nanoseconds * NANOSECOND) if count and nanoseconds else None


class _Events:
    """The events of a server, each with its time, produced by a thread of their own and taken by ours.

    So a silent server cannot hold us, and Ctrl-C works on every system.
    """

    def __init__(self, server, produce):
        self.server, self._produce = server, produce
        self.queue, self._unwanted = queue.SimpleQueue(), threading.Event()
        self.start = time.perf_counter()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        end = ("end", None)
        try:
            with contextlib.closing(self._produce()) as events:
                for kind, value in events:
                    self.queue.put((kind, value, time.perf_counter()))
                    if self._unwanted.is_set():
                        break
        except Exception as error:  # whatever the clients raise must arrive over there
            end = ("error", error)
        self.queue.put((*end, time.perf_counter()))

    def drop(self):
        """Nobody listens any more: the connection is closed at the next piece."""
        self._unwanted.set()


@dataclass
class _Taken:
    """What has come so far."""

    pieces: list = field(default_factory=list)
    thoughts: list = field(default_factory=list)
    n_characters: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached: int = 0
    says: dict = field(default_factory=dict)
    finish: str = ""
    first: float = 0.0  # seconds after the start
    last: float = 0.0

    @property
    def text(self):
        return "".join(self.pieces)


def _take(events, taken, emit, patience, progress):
    """Fill `taken` until the answer ends; every way in which it can go wrong is a `ServerError`."""
    waiting = _Waiting(events.server, progress)
    try:
        while not _one(events, taken, emit, patience, waiting):
            pass
    except KeyboardInterrupt:
        events.drop()
        taken.finish = "cancelled"
    except BaseException:
        events.drop()
        raise
    finally:
        waiting.close()


def _one(events, taken, emit, patience, waiting):
    """Take one event; True when it was the last."""
    server, heard = events.server, time.perf_counter()
    limit = patience[1] if taken.last else patience[0]
    while True:
        try:
            kind, value, when = events.queue.get(timeout=0.1)
            break
        except queue.Empty:
            silent = time.perf_counter() - heard
            waiting.say(time.perf_counter() - events.start, taken)
            if silent > limit:
                raise ServerError(_silence(server, taken, limit), taken.text) from None
    if kind in ("piece", "thought"):
        waiting.close()
        taken.last = when - events.start
        taken.first = taken.first or taken.last
        taken.n_characters += len(value)
        (taken.pieces if kind == "piece" else taken.thoughts).append(value)
        if kind == "piece":
            emit(value)
        if taken.n_characters > MOST_ANSWER_CHARACTERS:
            says = "does not stop talking and was cut off. Ask another model; max_tokens= says how much is asked for."
            raise ServerError(f"{server.kind} at {server.url} {says}", taken.text)
    elif kind == "start":  # the clock starts when the client is made and the question leaves
        events.start = when
    elif kind == "tokens":
        taken.prompt_tokens, taken.answer_tokens = value
    elif kind == "says":
        taken.says |= {name: figure for name, figure in value.items() if isinstance(figure, (int, float)) and figure}
    elif kind == "cached":
        taken.cached = value
    elif kind == "finish":
        taken.finish = value
    return _ended(kind, value, server, taken)


def _ended(kind, value, server, taken):
    if kind == "error" and not taken.finish:
        if taken.pieces:
            raise ServerError(
                _half(server, taken, ports.explain(value, server.url, server.kind, server.key)), taken.text
            )
        raise (
            value
            if isinstance(value, ImportError)
            else ServerError(ports.explain(value, server.url, server.kind, server.key))
        ) from None
    if kind == "end" and not taken.finish:
        raise ServerError(_half(server, taken, "").strip(), taken.text)
    return kind in ("end", "error")


def _half(server, taken, why):
    who = f"{server.kind} at {server.url}"
    if not taken.last:
        return (
            f"{who} ended without an answer. Perhaps the question is longer than its context: its log says why. {why}"
        )
    return (
        f"{who} stopped in the middle of its answer, after {len(taken.pieces)} pieces. Ask again; what came is in the "
        f"error's .partial_text. {why}"
    )


def _silence(server, taken, limit):
    if taken.last:
        return (
            f"{server.kind} at {server.url} fell silent for {limit:g} s in the middle of its answer. What came is in "
            "the error's .partial_text; piece_within_s= sets the patience."
        )
    return (
        f"{server.kind} at {server.url} said nothing for {limit:g} s. It may still read the prompt or load the "
        "model: ask something shorter, or pass a larger first_token_within_s."
    )


class _Waiting:
    """One line that says what is waited for, from the third second on."""

    def __init__(self, server, wanted):
        self._server, self._wanted, self._said = server, wanted, 0

    def say(self, seconds, taken):
        if self._wanted and not taken.last and seconds > SAY_WAITING_AFTER_S and int(seconds) > self._said:
            self._said = int(seconds)
            print(f"\r{self._server.kind} reads the prompt or loads the model: {self._said} s", end="", flush=True)

    def close(self):
        if self._said and self._wanted:
            print("\r" + " " * 70 + "\r", end="", flush=True)
            self._wanted = False


def _reply(server, model, messages, taken):
    n_tokens = taken.answer_tokens or len(taken.pieces) + len(taken.thoughts)
    notes = []
    if taken.cached:
        notes.append(f"{taken.cached} tokens of the prompt were still in the server's cache.")
    if not taken.answer_tokens and n_tokens:
        notes.append("The server did not count tokens: its pieces were counted.")
    if taken.answer_tokens > 2 * (len(taken.pieces) + len(taken.thoughts)):
        notes.append("Many tokens came in one piece, so the speed by our clock is too high: take the server's own.")
    if taken.thoughts:
        notes.append(
            f"It thought first ({len(''.join(taken.thoughts))} characters, in .thoughts); that counts as well."
        )
    return Reply(
        text=taken.text,
        where=f"{server.kind}, {model.title}",
        model=model.name,
        prompt_tokens=taken.prompt_tokens,
        answer_tokens=n_tokens,
        first_token_seconds=taken.first,
        tokens_per_second=_rate(n_tokens, taken.first, taken.last),
        seconds=taken.last,
        finish_reason=taken.finish,
        server_says=taken.says,
        counted_by="server" if taken.answer_tokens else "pieces",
        thoughts="".join(taken.thoughts),
        history=(*messages, {"role": "assistant", "content": taken.text}),
        notes=tuple(notes),
    )


def _rate(n_tokens, first, last):
    return (n_tokens - 1) / (last - first) if n_tokens > 1 and last > first else 0.0


def _ask_runner(model, prompt, system, history, emit, settings):
    """The kit's own runner, with the same ruler."""
    start, times = time.perf_counter(), []

    def take(piece):
        times.append(time.perf_counter() - start)
        emit(piece)

    answer = model.ask(prompt, system=system, history=history, stream=take, **settings)
    first, last = (times[0], times[-1]) if times else (0.0, 0.0)
    return Reply(
        text=answer.text,
        where=f"this kit's runner, {model.path.stem}",
        model=model.path.stem,
        prompt_tokens=answer.prompt_tokens,
        answer_tokens=answer.answer_tokens,
        first_token_seconds=first,
        tokens_per_second=_rate(answer.answer_tokens, first, last),
        seconds=last,
        finish_reason=answer.finish_reason,
        server_says={
            "prompt_tokens_per_second": answer.prompt_tokens_per_second,
            "tokens_per_second": answer.tokens_per_second,
            "load_seconds": answer.load_seconds,
        },
        history=answer.history,
        notes=answer.notes,
    )


def _print_piece(piece):
    print(units.printable(piece), end="", flush=True)


def _ignore(piece):
    pass
