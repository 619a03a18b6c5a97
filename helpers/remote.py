"""Read parts of a file on the web: range requests, with limits on bytes, time and redirects.

The client is `huggingface_hub`'s own session, so a learner's proxy, certificates and offline mode count here too. What
this room adds: it takes no more bytes than are asked for, every wait has an end, the token goes to the hub only, and
each failure is one clear text.
"""

import contextlib
import re
import threading
import time
from collections import namedtuple
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from . import download, units

SCHEMES = ("http://", "https://", "hf://")
HUB_NAME = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")
HUB_PAGE = re.compile(r"^(?P<repo>/[^/]+/[^/]+)/(?:blob|raw)/")  # the page people see, or a pointer to the file
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)
HOST = re.compile(r"\S{1,253}")
LENGTH = re.compile(r"\d{1,18}")
TICK_SECONDS = 0.1
NO_HTTP = "the answer is cut short, or is no proper HTTP. Try again; if it stays, choose another file."
Answer = namedtuple("Answer", "total_bytes etag")


class RemoteError(Exception):
    """A file on the web that could not be read; the message names its address and says what to do next."""


@dataclass(frozen=True)
class Limits:
    """How much one file may cost. Requests start small and grow while answers come quickly."""

    request_seconds: float = 10
    total_seconds: float = 60
    budget_bytes: int = 48 * units.MIB
    first_bytes: int = 256 * units.KIB
    most_bytes: int = 4 * units.MIB  # of one request
    max_requests: int = 200
    max_redirects: int = 5
    bar_after_seconds: float = 2


def is_address(value):
    """True for a text that names a file on the web: http://, https:// or hf://owner/repo/file.

    >>> is_address("hf://owner/repo/model.gguf"), is_address("model.gguf")
    (True, False)
    """
    return isinstance(value, str) and value.strip().lower().startswith(SCHEMES)


class Source:
    """A file behind a web address: `read(offset, n)` fetches what is asked and little more.

    `hf://owner/repo/file` or `hf://owner/repo@revision/file` is a file of the hub. `name` and `total_bytes` are known
    at once; `requests` and `received_bytes` count what was needed so far. Use it in a `with` block.
    """

    def __init__(self, address, limits=None, progress=True):
        self._hub = download.client("read a file on the web")
        self.limits, self.progress = limits or Limits(), progress
        self._url = self._asked_url = _resolve(address)
        self.shown = show_address(self._asked_url)
        self.name = unquote(urlsplit(self._asked_url).path.rpartition("/")[2]) or "file"
        self.requests = self.received_bytes = 0
        self._start, self._bytes = 0, bytearray()  # one run of bytes, and where it starts in the file
        self._piece_bytes = self.limits.first_bytes
        self._first = None  # the first answer; the others must be about the same file
        self._response = self._body = None  # an answer without ranges stays open: it is read as far as needed
        self._spare = b""
        self._bar = None
        self._stopped = False
        if download.is_offline(None):
            raise RemoteError(
                f"{self.shown} was not asked for: HF_HUB_OFFLINE switches the network off. Unset it, or give the path "
                "of a file on this computer."
            )
        try:
            self._hub_headers = _hub_headers(self._url)  # outside the limits: Colab asks its user for the token
        except Exception as error:
            self._fail(f"your token for the hub could not be read ({type(error).__name__}). Log in: `hf auth login`.")
        self._began = time.monotonic()
        with self._closing_on_error():
            self._more(1)

    @property
    def total_bytes(self):
        return self._first.total_bytes

    def read(self, offset, n):
        """`n` bytes from `offset`; fewer at the end of the file."""
        end = min(offset + n, self.total_bytes)
        if self._body is None and not self._start <= offset <= self._end:
            self._start, self._bytes = offset, bytearray()  # a jump: what lies between is never fetched
        with self._closing_on_error():
            while self._end < end:
                self._more(end - self._end)
        return bytes(self._bytes[offset - self._start : max(end, offset) - self._start])

    def close(self):
        if self._bar is not None:
            self._bar.close()
        if self._response is not None and not self._stopped:
            self._response.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    @contextlib.contextmanager
    def _closing_on_error(self):
        try:
            yield
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    @property
    def _end(self):
        return self._start + len(self._bytes)

    def _more(self, n_needed):
        """Append the next piece to the run: what is needed, and more while pieces come quickly."""
        left = self.limits.budget_bytes - self.received_bytes
        if n_needed > left or self.requests >= self.limits.max_requests:
            self._fail(
                f"its header needs more than {units.show(self.limits.budget_bytes)} or {self.limits.max_requests} "
                "requests, which no model does. Choose another file or another server."
            )
        n = min(left, max(n_needed, self.limits.first_bytes if self._body else self._piece_bytes))
        if self._first:
            n = min(n, self.total_bytes - self._end)
        asked_at = time.monotonic()
        self._bytes += self._in_time(lambda: self._piece(self._end, n))
        if time.monotonic() - asked_at < self.limits.request_seconds / 4:
            self._piece_bytes = min(2 * self._piece_bytes, self.limits.most_bytes)

    # --- time: whatever the network does, the one who asked waits no longer than agreed ---

    def _in_time(self, act):
        """What `act()` returns. It works in a thread, because looking up a name or a slow trickle knows no time-out."""
        now = time.monotonic()
        until = min(now + self.limits.request_seconds, self._began + self.limits.total_seconds)
        if now >= until:
            self._fail(self._too_slow(0, 0))
        had, outcome = self.received_bytes, []
        worker = threading.Thread(target=self._work, args=(act, outcome), daemon=True)
        worker.start()
        try:
            while worker.is_alive() and time.monotonic() < until:
                worker.join(min(TICK_SECONDS, max(until - time.monotonic(), 0)))
                self._show_progress()
        finally:
            self._stopped = not outcome  # given up, or Ctrl-C: the worker closes the line when it notices
        if self._stopped:
            self._fail(self._too_slow(max(until - now, 0), self.received_bytes - had))
        value, error = outcome[0]
        if isinstance(error, RemoteError):
            raise error
        if error is not None:
            self._fail(_explain(error))
        return value

    def _work(self, act, outcome):
        try:
            outcome.append((act(), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            if self._stopped and self._response is not None:
                self._response.close()

    def _too_slow(self, seconds, n_bytes):
        if time.monotonic() - self._began >= self.limits.total_seconds:
            return (
                f"its header was not complete after {self.limits.total_seconds:g} s ({units.show(self.received_bytes)} "
                "came). The line or the server is slow: try again later, or allow more with "
                f"limits=remote.Limits(total_seconds={6 * self.limits.total_seconds:g})."
            )
        came = f"only {units.show(n_bytes)} came" if n_bytes else "nothing came"
        return f"{came} in {seconds:.2g} s. Check the network, or try again later: the server may be busy."

    def _show_progress(self):
        if not self.progress or time.monotonic() - self._began < self.limits.bar_after_seconds:
            return
        if self._bar is None:
            from huggingface_hub.utils import tqdm  # tqdm.auto, and quiet where a learner switched bars off

            self._bar = tqdm(desc=f"Header of {_clean(self.name, 40)}", unit="B", unit_scale=True, leave=False)
        self._bar.update(self.received_bytes - self._bar.n)

    # --- one piece; all of this runs in the worker thread ---

    def _piece(self, start, n):
        if self._body is not None:
            return self._next(n)
        self._spare = b""
        self._response = self._ask(start, n)
        status = self._response.status_code
        n_sent = self._check(self._response, start, n)
        self._body = self._response.iter_raw()
        if status == 200:  # no ranges here: read on from the beginning, as far as needed
            return self._next(min(n, self.total_bytes))
        piece = self._next(n_sent)
        if self._spare or next(self._body, None):
            self._fail("the server sent more bytes than it announced. Try again, or choose another file.")
        self._response.close()
        self._response = self._body = None
        return piece

    def _next(self, n):
        """The next `n` bytes of the body."""
        parts, have = [self._spare], len(self._spare)
        while have < n and not self._stopped and (part := next(self._body, None)) is not None:
            self.received_bytes += len(part)
            have += len(part)
            parts.append(part)
        raw = b"".join(parts)
        self._spare = raw[n:]
        if len(raw) < n:
            self._fail("the answer ended too early. Try again: the line was cut, or the file on the server is damaged.")
        return raw[:n]

    def _ask(self, start, n):
        """The response to a range request, after redirects; its body is not read yet."""
        session, seconds = self._hub.get_session(), self.limits.request_seconds
        for _ in range(self.limits.max_redirects + 1):
            headers = {**self._headers(), "Range": f"bytes={start}-{start + n - 1}", "Accept-Encoding": "identity"}
            request = session.build_request("GET", self._url, headers=headers, timeout=seconds)
            if "authorization" not in headers:
                request.headers.pop("authorization", None)  # of a session that someone prepared for the hub
            self.requests += 1
            response = session.send(request, stream=True, follow_redirects=False, auth=None)
            if not response.has_redirect_location or self._stopped:
                return response
            response.close()
            self._url = self._next_url(response)  # the next range is asked there at once
        self._fail(
            f"the address leads from one to the next more than {self.limits.max_redirects} times. Open it in a browser "
            "and copy the address of the download itself."
        )

    def _headers(self):
        """The learner's token is among them for the hub itself, if it was asked, and for no other server."""
        return self._hub_headers if _origin(self._url) == _origin(self._asked_url) else {}

    def _next_url(self, response):
        if response.next_request is None:
            self._fail(NO_HTTP)  # some versions of the client raise instead
        new = str(response.next_request.url)
        allowed = ("https",) if self._url.lower().startswith("https:") else ("http", "https")
        scheme = urlsplit(new).scheme
        if scheme not in allowed:
            self._fail(f"the server leads to {_clean(scheme, 20)}://, which is not safe. Choose another file.")
        return new

    def _check(self, response, start, n):
        """How many bytes this answer will bring; an error unless it is a part of the right file."""
        status, headers = response.status_code, response.headers
        if status not in (200, 206):
            self._fail(self._refusal(status, headers, start))
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            self._fail(
                f"the server sends the file compressed ({encoding[:20]!r}) though it was asked not to, so places in it "
                "cannot be found. Download the file and give its path."
            )
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            self._fail(
                "this is a web page, not a GGUF file. Copy the address of the download itself (on a hub it has "
                "/resolve/ where the page has /blob/), and log in if the site asks for it."
            )
        announced = headers.get("Content-Length", "").strip()
        if status == 206:
            n_sent, total = self._range_sent(headers, announced, start, n)
        elif self._first is not None:
            self._fail("the server first sent parts of the file and now all of it. Try again later.")
        elif not LENGTH.fullmatch(announced):
            self._fail("the server does not say how long the file is. Download it and give its path.")
        else:
            n_sent = total = int(announced)
        if not total:
            self._fail("the file is empty. Choose another file.")
        self._check_same(Answer(total, headers.get("ETag")))
        return n_sent

    def _range_sent(self, headers, announced, start, n):
        found = CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if not found:
            self._fail(
                "the server does not say which part of the file it sends, or how long the file is. Download it and "
                "give its path."
            )
        first, last, total = map(int, found.groups())
        contradiction = announced and announced != str(last + 1 - first)
        if first != start or not first <= last < min(start + n, total) or contradiction:
            body = f" in a body of {_clean(announced, 20)} bytes" if announced else ""
            self._fail(
                f"the server was asked for {n:,} bytes from {start:,} and announces bytes {first:,} to {last:,} of "
                f"{total:,}{body}, which cannot be right. Try again later, or download the file and give its path."
            )
        return last + 1 - first, total

    def _check_same(self, answer):
        first = self._first or answer
        same_mark = first.etag == answer.etag or None in (first.etag, answer.etag)
        if answer.total_bytes != first.total_bytes or not same_mark:
            self._fail("the file on the server changed while it was read. Try again.")
        self._first = first

    def _refusal(self, status, headers, start):
        code = headers.get("X-Error-Code", "")
        page = self._page()
        if code == "GatedRepo":
            return (
                f"the model is gated: its owner wants you to accept a licence first. Open {page}, accept, then log in "
                "with `hf auth login` (or set HF_TOKEN) and try again."
            )
        if status in (401, 403):
            return (
                f"you may not read it (status {status}): it is gated, private, or does not exist. Check the spelling; "
                f"open {page}, accept the licence if it asks for one, then log in with `hf auth login` (or set "
                "HF_TOKEN) and try again."
            )
        if code == "RevisionNotFound":
            return f"the model has no such revision (status {status}). Look for it on {page}."
        if status in (404, 410):
            return f"there is no such file (status {status}). Check the spelling on {page}."
        if status == 416 and start == 0:
            return "the file is empty, or the server cannot send parts of it (status 416). Download it, give its path."
        if status == 416:
            return f"the server says that nothing follows byte {start:,} (status 416): it became shorter. Try again."
        if status == 429:
            return "the server says 'too many requests' (status 429). Wait some minutes, or log in: `hf auth login`."
        if status == 407:
            return "a proxy wants a password (status 407). Ask your network's people what to set as HTTPS_PROXY."
        return f"the server answered with status {status}. Try again later; nothing here is broken."

    def _page(self):
        """Where a person can look: the model's page when this is a hub's address, or else the server."""
        parts = urlsplit(self.shown)
        repo = parts.path.split("/resolve/")[0] if "/resolve/" in parts.path else ""
        return f"{parts.scheme}://{parts.netloc}{repo}"

    def _fail(self, problem):
        asked, host = urlsplit(self._asked_url).hostname, urlsplit(self._url).hostname
        via = "" if asked == host else f" (which leads to {_clean(host or '?')})"
        raise RemoteError(f"{self.shown}{via}: {problem}") from None


def show_address(url):
    """An address as it may be shown: without name, password, query (signatures live there) and fragment.

    >>> show_address("https://me:secret@example.org/a.gguf?sig=secret#here")
    'https://example.org/a.gguf'
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return _clean(url.partition("?")[0].rpartition("@")[2])
    return _clean(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _clean(text, most=200):
    shown = quote(text, safe=":/[]%~!$&'()*+,;=@")
    return shown[: most - 1] + "…" if len(shown) > most else shown


def _resolve(address):
    """The http(s) address that `address` stands for."""
    url = _of_hub(address.strip())
    try:
        parts = urlsplit(url)
        if HOST.fullmatch(parts.hostname or "") and parts.port != 0:  # no number at all is a ValueError
            return url
    except ValueError:
        pass
    raise RemoteError(f"{show_address(url)} is no web address. Check the spelling.")


def _of_hub(address):
    hub = download.hub_address()
    if not address.lower().startswith("hf://"):
        on_hub = address.startswith(hub + "/")
        return hub + HUB_PAGE.sub(r"\g<repo>/resolve/", address[len(hub) :], count=1) if on_hub else address
    found = HUB_NAME.fullmatch(address[len("hf://") :])
    if not found:
        raise RemoteError(f"{_clean(address)} is no file of the hub. Write hf://owner/repo/file.gguf.")
    from huggingface_hub import hf_hub_url

    try:
        revision = unquote(found["revision"] or "main")
        return hf_hub_url(found["repo"], found["file"], revision=revision, endpoint=hub)
    except ValueError:  # HFValidationError
        raise RemoteError(f"{_clean(address)} names no repository that can exist. Check the spelling.") from None


def _hub_headers(url):
    """The hub's own headers when `url` is on the hub, with the learner's token; none for another server."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers() if _origin(url) == _origin(download.hub_address()) else {}


def _origin(url):
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        return scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(scheme)
    except ValueError:  # of an odd HF_ENDPOINT: nothing is there
        return None


def _explain(error):
    """What went wrong below us. Never the error's own text: it may hold a signed address."""
    names = {type(e).__name__ for e in download.causes(error)}
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE switches the network off. Unset it, or give the path of a file on this computer."
    if "gaierror" in names:
        return "no server of this name was found. Check the spelling and the network."
    if names & {"SSLError", "SSLCertVerificationError"}:
        return "the server could not prove who it is (TLS). Check this computer's clock, or the network's proxy."
    if "ProxyError" in names:
        return "the proxy refused. Check HTTPS_PROXY and HTTP_PROXY, or ask your network's people."
    if names & {"ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"}:
        return "the server did not answer in time. Check the network, or try again later."
    if "ConnectError" in names:
        return "the server cannot be reached. Check the address, the network and the proxy settings."
    if names & {"RemoteProtocolError", "LocalProtocolError"}:
        return NO_HTTP
    if names & {"ReadError", "WriteError", "CloseError"}:
        return "the line was cut. Try again."
    if names & {"InvalidURL", "UnsupportedProtocol", "UnicodeError", "ValueError"}:
        return "this is no address that can be asked. Check the spelling."
    return f"reading it failed ({type(error).__name__}). Try again, or download the file and give its path."
