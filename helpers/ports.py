"""Which server of models runs where, and what it offers: Ollama, LM Studio, llama-server, any OpenAI-compatible one.

Only this computer and servers that somebody named (in an argument, `OLLAMA_HOST` or `HELPERS_SERVER`) are contacted;
this computer never through a proxy, and nobody is followed elsewhere. Looking takes at most 5 s. Ollama and LM Studio
were not run by the authors: their formats are those of their documentation.
"""

import contextlib
import ipaddress
import json
import os
import queue
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field, replace

from . import units

OLLAMA, LM_STUDIO, LLAMA_SERVER, OTHER = "Ollama", "LM Studio", "llama-server", "OpenAI-compatible"
SERVER_VARIABLE, KEY_VARIABLE = "HELPERS_SERVER", "HELPERS_SERVER_KEY"
LOOK_WITHIN_S = 4.0
CONNECT_WITHIN_S = 3.0
MOST_LISTING_BYTES = 16 * units.MIB
PORTS = {OLLAMA: 11434, LM_STUDIO: 1234, LLAMA_SERVER: 8080}
OTHER_PORTS = (8000, 1337, 4891)  # vLLM and llama-cpp-python's server; Jan; GPT4All
START = {
    OLLAMA: "Start it with `ollama serve` (or open the Ollama app)",
    LM_STUDIO: "Start it with `lms server start` (or in LM Studio's Developer tab)",
    LLAMA_SERVER: "Start it with `llama-server --model FILE.gguf`",
}
NAMES = {"ollama": OLLAMA, "lmstudio": LM_STUDIO, "lm-studio": LM_STUDIO, "llama-server": LLAMA_SERVER, "class": OTHER}
FOR_EMBEDDINGS = "for embeddings only"
OLLAMA_DEFAULT = "context: Ollama's own choice, 4,096 tokens below 24 GiB of video memory"


class ServerError(RuntimeError):
    """A server that is off, wrong, slow or broken; `.partial_text` is what it had answered until then."""

    def __init__(self, text, partial_text=""):
        super().__init__(text)
        self.partial_text = partial_text


@dataclass(frozen=True)
class ServedModel:
    """A model as its server describes it; 0, "" and None stand for what it does not tell.

    `n_ctx`: tokens of context it has, or gets when it is loaded; `n_ctx_train`: the most it was made for. `loaded`:
    whether it is in memory now.
    """

    name: str
    quantization: str = ""
    n_ctx: int = 0
    n_ctx_train: int = 0
    size_bytes: int = 0
    loaded: bool | None = None
    note: str = ""

    @property
    def title(self):
        """The name as people say it: some servers call a model by the path of its file."""
        return re.split(r"[/\\]", self.name)[-1] if self.name.lower().endswith(".gguf") else self.name

    def __str__(self):
        context = f"{self.n_ctx:,} tokens" if self.n_ctx else "context not told"
        context += f" of {self.n_ctx_train:,}" if self.n_ctx_train else ""
        state = {True: "loaded", False: "not loaded", None: ""}[self.loaded]
        size = units.show(self.size_bytes) if self.size_bytes else ""
        words = [self.title, self.quantization or "quantization not told", context, size, state, self.note]
        return units.printable(", ".join(filter(None, words)), 1000)


@dataclass(frozen=True)
class Server:
    """A running server: what it is and where. Made by `connect` and `find`; the key is never shown."""

    kind: str
    url: str
    version: str = ""
    n_slots: int = 0
    key: str = field(default="", repr=False)

    @property
    def api_url(self):
        """The address that other OpenAI clients want."""
        return f"{self.url}/v1"

    def models(self):
        """The models it offers: a tuple of `ServedModel`. Raises `ServerError` within 5 s when it does not tell."""
        return _look(lambda deadline: tuple(LISTS[self.kind](self, deadline)), self.url, self.kind, self.key)

    def __str__(self):
        slots = f", {self.n_slots} slot{'s' if self.n_slots > 1 else ''}" if self.n_slots else ""
        return units.printable(f"{self.kind}{' ' + self.version if self.version else ''} at {self.url}{slots}", 1000)


# --- finding servers -----------------------------------------------------------------------------------------------


def find(hosts=()):
    """The servers that run on this computer, and those that were named; takes at most 5 s.

    Looks at `OLLAMA_HOST`, `HELPERS_SERVER` and `hosts`, and on this computer at the usual ports of Ollama, LM Studio,
    llama-server, vLLM, Jan and GPT4All. Whatever does not answer as a server of models is left out; `connect` says why.

    Returns
    -------
    tuple of Server

    Raises
    ------
    ServerError
        At once, for something in `hosts` or `HELPERS_SERVER` that is no address.
    """
    named = [_ollama_url(), *hosts]
    named += [os.environ[SERVER_VARIABLE]] if os.environ.get(SERVER_VARIABLE) else []
    named += [f"http://127.0.0.1:{port}" for port in (*PORTS.values(), *OTHER_PORTS)]
    urls = list(dict.fromkeys(_base(url) for url in named))
    found = queue.SimpleQueue()
    for url in urls:
        threading.Thread(target=lambda url=url: found.put(_connect_or_none(url)), daemon=True).start()
    servers = {server.url: server for server in (found.get() for _ in urls) if server}
    return tuple(servers[url] for url in urls if url in servers)


def _connect_or_none(url):
    with contextlib.suppress(Exception):
        return connect(url)


def connect(where, key=None):
    """The `Server` at an address, or one of this computer by name.

    Parameters
    ----------
    where : str
        "ollama", "lmstudio", "llama-server", "class" (the address in `HELPERS_SERVER`), or an address such as
        "http://127.0.0.1:8080"; a `/v1` at its end is ignored.
    key : str, optional
        Default: `HELPERS_SERVER_KEY` for the server in `HELPERS_SERVER`, and `OPENAI_API_KEY` for that one if its
        address begins with https. Other servers get no key.

    Raises
    ------
    ServerError
        Within 5 s: nothing listens there, it is no server of models, it fails, or it wants a key.
    """
    kind, url = _address(where)
    key = _key(url) if key is None else key.strip()
    return _look(lambda deadline: _identify(url, key, deadline), url, kind, key)


def meet(where):
    """(the server at `where`, its models), both within 5 s; `where` as for `connect`, or a `Server`."""
    if isinstance(where, Server):
        return where, where.models()
    kind, url = _address(where)
    key = _key(url)

    def work(deadline):
        server = _identify(url, key, deadline)
        return server, tuple(LISTS[server.kind](server, deadline))

    return _look(work, url, kind, key)


def _address(where):
    """(kind expected or "", base address)."""
    kind = NAMES.get(str(where).strip().lower(), "")
    if kind == OTHER:
        if not os.environ.get(SERVER_VARIABLE):
            raise ServerError(
                f"No server of the class is named. Set {SERVER_VARIABLE} to its address, for instance "
                "http://192.168.0.10:8000/v1, before JupyterLab starts."
            )
        return "", _base(os.environ[SERVER_VARIABLE])
    if kind:
        return kind, _ollama_url() if kind == OLLAMA else f"http://127.0.0.1:{PORTS[kind]}"
    return "", _base(where)


def _ollama_url():
    """Ollama's address by its own rules for `OLLAMA_HOST`: parts may be missing; 0.0.0.0 means "listen everywhere"."""
    said = os.environ.get("OLLAMA_HOST", "").strip("\"' ").rstrip("/")
    scheme, has_scheme, rest = said.rpartition("://")
    port = {"http": 80, "https": 443}.get(scheme, PORTS[OLLAMA]) if has_scheme else PORTS[OLLAMA]
    rest = f"[{rest}]" if rest.count(":") > 1 and not rest.startswith("[") else rest
    try:
        parts = urllib.parse.urlsplit(f"//{rest}")
        host, port = parts.hostname or "127.0.0.1", parts.port if parts.port is not None else port
    except ValueError:
        host, port = "127.0.0.1", PORTS[OLLAMA]
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"{scheme or 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _base(where):
    text = str(where).strip()
    try:
        parts = urllib.parse.urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        known = ", ".join(NAMES)
        raise ServerError(
            f"{clean(text)!r} is no server. Write an address such as http://127.0.0.1:8080, or one of: {known}."
        )
    if parts.username or parts.password:
        raise ServerError(
            f"The address of {parts.hostname} contains a user name or password. Take it out; a key belongs into the "
            f"variable {KEY_VARIABLE}."
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _key(url):
    named = os.environ.get(SERVER_VARIABLE)
    if not named or _base(named) != url:
        return ""
    others = os.environ.get("OPENAI_API_KEY", "") if url.startswith("https://") else ""
    return (os.environ.get(KEY_VARIABLE) or others).strip()  # a file that was read into it ends with a new line


def is_here(url):
    """Whether an address is this computer (loopback).

    >>> is_here("http://localhost:8080"), is_here("http://192.168.0.10:8080")
    (True, False)
    """
    host = urllib.parse.urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- looking: small requests with an end ---------------------------------------------------------------------------


class _Status(Exception):
    """An answer other than 200."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status_code = status


class _Strange(Exception):
    """An answer that is no JSON, or none of the expected form."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def _look(work, url, kind, key):
    """`work(deadline)` in a thread: names that do not resolve and servers that drip have no limit of their own."""
    results = queue.SimpleQueue()
    deadline = time.monotonic() + LOOK_WITHIN_S

    def run():
        try:
            results.put((work(deadline), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=LOOK_WITHIN_S + 0.5)
    except queue.Empty:
        result, error = None, TimeoutError()
    if error is not None:
        raise ServerError(explain(error, url, kind, key)) from None
    return result


def _get(url, path, key, deadline, body=None):
    """The JSON object that `path` answers with, before `deadline`."""
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    handlers = [_Stay, *([urllib.request.ProxyHandler({})] if is_here(url) else [])]
    request = urllib.request.Request(url + path, data, headers)
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=_left(deadline)) as response:
            return _object(_read(response, deadline))
    except urllib.error.HTTPError as error:
        with error:
            raise _Status(error.code, _message(_read(error, deadline, 4096))) from None


def _left(deadline):
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, CONNECT_WITHIN_S)


def _read(response, deadline, most=MOST_LISTING_BYTES):
    chunks, length = [], 0
    while length < most and (chunk := response.read1(65_536)):
        _left(deadline)
        chunks.append(chunk)
        length += len(chunk)
    return b"".join(chunks)


def _object(raw):
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise _Strange from None
    if not isinstance(found, dict):
        raise _Strange
    return found


def _message(raw):
    """The words in a server's error, whatever form they have."""
    try:
        found = json.loads(raw)
        found = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
        found = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, RecursionError):
        found = raw.decode(errors="replace")
        found = "" if "<" in found else found  # a page for browsers
    return clean(found)


def clean(text, most=200):
    """Text of others without control characters, cut to a reasonable length."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= most else text[:most] + " ..."


def _identify(url, key, deadline):
    """What runs at `url`, told apart by an address that only this kind answers."""
    problem = None
    for path, kind in (("/api/version", OLLAMA), ("/api/v0/models", LM_STUDIO), ("/props", LLAMA_SERVER)):
        try:
            found = _get(url, path, key, deadline)
        except (_Status, _Strange) as error:
            problem = error if getattr(error, "status_code", 404) not in (404, 405) else problem
            continue
        if kind == OLLAMA and isinstance(found.get("version"), str):
            return Server(OLLAMA, url, clean(found["version"], 30), key=key)
        if kind == LM_STUDIO and any("state" in row for row in _rows(found, "data")):
            return Server(LM_STUDIO, url, key=key)
        if kind == LLAMA_SERVER and "default_generation_settings" in found:
            build = clean(found.get("build_info", ""), 40)
            return Server(LLAMA_SERVER, url, "" if "unknown" in build else build, whole(found, "total_slots"), key)
    try:
        if isinstance(_get(url, "/v1/models", key, deadline).get("data"), list):
            return Server(OTHER, url, key=key)
    except (_Status, _Strange) as error:
        status = getattr(error, "status_code", 404)
        problem = error if problem is None or status not in (404, 405) else problem
    raise problem or _Strange()


def _rows(found, name):
    rows = found.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def whole(row, name):
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _part(row, name):
    return row[name] if isinstance(row.get(name), dict) else {}


def _list_ollama(server, deadline):
    loaded = {row.get("name"): row for row in _rows(_get(server.url, "/api/ps", server.key, deadline), "models")}
    for row in _rows(_get(server.url, "/api/tags", server.key, deadline), "models"):
        name = str(row.get("name", ""))
        model = ServedModel(
            clean(name),
            clean(_part(row, "details").get("quantization_level", ""), 30),
            size_bytes=whole(row, "size"),
            loaded=name in loaded,
            note="its answers come from Ollama's computers, not from here" if row.get("remote_host") else "",
        )
        with contextlib.suppress(_Status, _Strange, TimeoutError, OSError):
            model = _shown(server, model, name, deadline)
        if name in loaded:
            model = replace(model, n_ctx=whole(loaded[name], "context_length"))
        elif not model.n_ctx:
            model = replace(model, note=model.note or OLLAMA_DEFAULT)
        yield model


def _shown(server, model, name, deadline):
    """What `/api/show` adds: the longest context, and the one that its Modelfile asks for."""
    found = _get(server.url, "/api/show", server.key, deadline, {"model": name})
    info = _part(found, "model_info")
    lengths = [whole(info, key) for key in info if key.endswith(".context_length")]
    words = str(found.get("parameters", "")).split()
    asked = words[words.index("num_ctx") + 1 : words.index("num_ctx") + 2] if "num_ctx" in words else []
    n_ctx = int(asked[0]) if asked and asked[0].isdigit() else 0
    quantization = clean(_part(found, "details").get("quantization_level", ""), 30) or model.quantization
    return replace(model, quantization=quantization, n_ctx=n_ctx, n_ctx_train=max(lengths, default=0))


def _list_lm_studio(server, deadline):
    for row in _rows(_get(server.url, "/api/v0/models", server.key, deadline), "data"):
        loaded = row.get("state") == "loaded"
        yield ServedModel(
            clean(row.get("id", "")),
            clean(row.get("quantization", ""), 30),
            whole(row, "loaded_context_length"),
            whole(row, "max_context_length"),
            loaded=loaded,
            note=FOR_EMBEDDINGS if row.get("type") == "embeddings" else "",
        )


def _list_llama_server(server, deadline):
    props = _get(server.url, "/props", server.key, deadline)
    n_ctx = whole(_part(props, "default_generation_settings"), "n_ctx")
    for row in _rows(_get(server.url, "/v1/models", server.key, deadline), "data"):
        meta = _part(row, "meta")
        quantization = clean(meta.get("ftype") or props.get("model_ftype") or "", 30)
        yield ServedModel(
            clean(row.get("id", "")),
            re.sub(r" - ([SML])(mall|edium|arge)$", r"_\1", quantization.removeprefix("(guessed) ")),
            n_ctx,
            whole(meta, "n_ctx_train"),
            whole(meta, "size"),
            loaded=bool(meta) or None,
        )


def _list_other(server, deadline):
    for row in _rows(_get(server.url, "/v1/models", server.key, deadline), "data"):
        yield ServedModel(clean(row.get("id", "")), n_ctx=whole(row, "max_model_len"))


LISTS = {OLLAMA: _list_ollama, LM_STUDIO: _list_lm_studio, LLAMA_SERVER: _list_llama_server, OTHER: _list_other}


# --- what went wrong, in a sentence --------------------------------------------------------------------------------


def explain(error, url, kind="", key=""):
    text = _sentence(error, url, kind)
    for shape in filter(None, (key, repr(key)[1:-1])):  # Python's own errors quote what they refuse
        text = text.replace(shape, "***")
    return text


def _sentence(error, url, kind):
    errors = list(_chain(error))
    names = {type(e).__name__ for e in errors}
    who = f"{kind} at {url}" if kind else url
    status = next((e.status_code for e in errors if isinstance(getattr(e, "status_code", None), int)), 0)
    if status > 0:
        return _status_sentence(status, _said(error), who)
    if any(isinstance(e, ConnectionRefusedError) for e in errors) or "refused" in _said(error).lower():
        start = START.get(kind, "Start the server")
        return f"Nothing answers at {url}: the server is off, or it has another port. {start}, or check the port."
    if any(isinstance(e, socket.gaierror) for e in errors):
        host = urllib.parse.urlsplit(url).hostname
        return f"Nobody on this network knows the name {host} in {url}. Check its spelling, or write the number (IP)."
    if any(isinstance(e, TimeoutError) for e in errors) or any("Timeout" in name for name in names):
        return (
            f"{who} did not answer in time: it is busy, hangs, or a firewall swallows the question. Try again, or "
            "start it anew."
        )
    if names & {"_Strange", "BadStatusLine", "JSONDecodeError", "LineTooLong", "UnicodeDecodeError"}:
        return f"Something answers at {url}, but it is no server of models. Check the port."
    if names & {"RemoteDisconnected", "IncompleteRead", "RemoteProtocolError", "ReadError", "ConnectionResetError"}:
        return f"{who} closed the connection without an answer. Look at its own window or log for the reason."
    return f"{who} could not be asked: {_said(error) or type(error).__name__}. Look at its own window or log."


def _status_sentence(status, said, who):
    if status in (401, 403):
        return f"{who} wants a key, or another one ({status}). Put it into the variable {KEY_VARIABLE}."
    if status == 503 and "loading" in said.lower():
        return f"{who} is still loading its model. Try again in a moment."
    if status in (301, 302, 303, 307, 308):
        return f"{who} wants to send us to another address, which is not followed. Name the right address yourself."
    if status == 404:
        return f"{who} does not know what it was asked for ({said or 'not found'}). Check the address and the name."
    says = f": {said}" if said else " without a reason"
    kind = "failed" if status >= 500 else "refuses the question"
    return f"{who} {kind} with error {status}{says}. Look at its own window or log, then ask again."


def _said(error):
    """The words of an error, whether the clients keep them in a body or in the text."""
    body = getattr(error, "body", None)
    body = body.get("message", body) if isinstance(body, dict) else body
    return _message(str(body or getattr(error, "error", None) or error).encode())


def _chain(error):
    seen = 0
    while error is not None and seen < 10:
        yield error
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
        seen += 1
