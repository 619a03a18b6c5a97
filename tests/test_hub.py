"""`helpers.hub` against a hub that this file plays itself, on 127.0.0.1: its search, its lists, its headers."""

import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from test_gguf import small_model

from helpers import download, ghost, hardware, hub, memory, mixes, models, units
from helpers.hub import HubError

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_secretsecretsecret"
EVIL = '<img src=x onerror="alert(1)">\x1b[2J\u202egguf'
LAPTOP = hardware.Machine.pretend("laptop", 4 * units.GIB, 8 * units.GIB)
PLENTY = hardware.Machine.pretend("server", 64 * units.GIB)
SMALL = small_model()


def model(id, **more):
    return {"id": id, "downloads": 1234, "likes": 5, "gated": False, "lastModified": "2026-01-02T03:04:05.000Z", **more}


def listed(name, size, sha256="a" * 64):
    return {"rfilename": name, "size": size, "lfs": {"size": size, "sha256": sha256, "pointerSize": 1}}


class Playing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        address = urllib.parse.urlsplit(self.path)
        self.server.seen.append((address.path, urllib.parse.parse_qs(address.query), dict(self.headers)))
        for start, act in sorted(self.server.plays.items(), key=lambda play: -len(play[0])):
            if address.path.startswith(start):
                return act(self, address.path)
        self.reply(404, {"error": "nothing"}, {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self):
        self.do_GET()

    def reply(self, status, value, headers=None):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, word in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, word)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def answer(value, status=200, headers=None):
    return lambda it, path: it.reply(status, value, headers)


def ranged(contents):
    """Plays the files themselves: `contents` maps a name to (first bytes, announced length)."""

    def act(it, path):
        raw, total = contents[urllib.parse.unquote(path).split(f"/{COMMIT}/")[1]]
        first, last = it.headers["Range"].removeprefix("bytes=").split("-")
        last = min(int(last), total - 1)
        piece = raw[int(first) : last + 1].ljust(last + 1 - int(first), b"\0")
        it.reply(206, piece, {"Content-Range": f"bytes {first}-{last}/{total}", "ETag": '"v1"'})

    return act


@pytest.fixture(scope="module")
def session():
    import huggingface_hub

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield
        huggingface_hub.close_session()


@pytest.fixture
def server(session, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Playing)
    server.daemon_threads = True
    server.seen, server.plays, server.over = [], {}, threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def repository(server, siblings, contents=None, **more):
    server.plays["/api/models/me/model"] = answer(model("me/model", sha=COMMIT, siblings=siblings, **more))
    if contents is not None:
        server.plays["/me/model/resolve"] = ranged(contents)


# --- search ---


def test_search_asks_for_gguf_and_says_what_the_hub_says(server):
    found = model(
        "me/Llama-3.2-1B-GGUF",
        gguf={"total": 1_235_814_432, "architecture": "llama", "context_length": 131072},
        siblings=[{"rfilename": "a-Q4_K_M.gguf"}, {"rfilename": "a-Q8_0.gguf"}, {"rfilename": "mmproj-F16.gguf"}],
    )
    server.plays["/api/models"] = answer([found, model("you/gated-GGUF", gated="manual"), model("no name at all")])
    rows = hub.search("llama 3.2 gguf", limit=7)
    _, asked, _ = server.seen[-1]
    assert asked["search"] == ["llama 3.2"] and asked["filter"] == ["gguf"] and asked["limit"] == ["7"]
    assert [row.id for row in rows] == ["me/Llama-3.2-1B-GGUF", "you/gated-GGUF"]
    assert rows[0].quantizations == ("Q4_K_M", "Q8_0") and rows[0].n_params == 1_235_814_432
    assert "1.236 billion" in str(rows) and "131,072" in str(rows) and "you/gated-GGUF (gated)" in str(rows)
    assert "<td" in rows._repr_html_() and "hub.files(" in str(rows)


def test_nothing_found_is_said(server):
    server.plays["/api/models"] = answer([])
    assert "No GGUF repository has 'nobody'" in str(hub.search("nobody")) and len(hub.search("nobody")) == 0


@pytest.mark.parametrize("limit", [0, 101, -1])
def test_a_limit_that_is_none(server, limit):
    with pytest.raises(HubError, match=f"limit={limit}.*1 to 100"):
        hub.search("x", limit=limit)


# --- one repository ---


def test_files_are_grouped_named_and_judged_before_any_download(server, tmp_path):
    spec = models.get("smollm2-135m")
    sizes = {name: memory.file_bytes(spec, name) for name in ("Q8_0", "F16")}
    path = tmp_path / "ghost.gguf"
    ghost.write(spec, mixes.tensor_types(spec, "Q4_K_M"), path)
    header = path.read_bytes()[:300_000]
    total = path.stat().st_size
    siblings = [
        listed("README.md", 10),
        listed("m-F16.gguf", sizes["F16"]),
        listed("m-Q4_K_M.gguf", total),
        listed("m-Q8_0.gguf", sizes["Q8_0"]),
        listed("big/m-UD-Q6_K_XL-00001-of-00002.gguf", 10**9, "b" * 64),
        listed("big/m-UD-Q6_K_XL-00002-of-00002.gguf", 10**9, "c" * 64),
        listed("cut-Q2_K-00001-of-00003.gguf", 5),
        listed("mmproj-m-F16.gguf", 1000),
        listed("m.imatrix", 50),
        listed("m-Q2_K.gguf.part1of2", 50),
        listed("my-lora-F16.gguf", 50),
    ]
    other = (b"GGUF" + bytes([3, 0, 0, 0]) + bytes(16), 10**9)
    repository(server, siblings, {"m-Q4_K_M.gguf": (header, total), "big/m-UD-Q6_K_XL-00001-of-00002.gguf": other})
    rows = hub.files("me/model", machine=LAPTOP, n_ctx=2048, progress=False)
    assert [row.name for row in rows.models] == [
        "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F16.gguf", "big/m-UD-Q6_K_XL-00001-of-00002.gguf"
    ]  # fmt: skip
    small, eight, sixteen, split = rows.models
    assert (small.source, eight.source, sixteen.source) == ("header", "size", "size")
    exact = memory.estimate(spec, "Q4_K_M", n_ctx=2048)
    assert small.estimate.weights_bytes == exact.weights_bytes and small.estimate.kv_bytes == exact.kv_bytes
    assert abs(eight.estimate.total_bytes / memory.estimate(spec, "Q8_0", n_ctx=2048).total_bytes - 1) < 0.02
    assert small.verdict.status == "fits" and rows.best is sixteen and rows.find("q8_0") is eight
    assert split.size_bytes == 2 * 10**9 and split.names[1].endswith("00002-of-00002.gguf") and not split.verdict
    assert "in 2 files" in split.note and split.quantization == "UD-Q6_K_XL"
    kinds = {row.name: row.kind for row in rows if row.kind != "model"}
    assert kinds == {
        "mmproj-m-F16.gguf": "vision",
        "m.imatrix": "imatrix",
        "m-Q2_K.gguf.part1of2": "piece",
        "my-lora-F16.gguf": "adapter",
        "cut-Q2_K-00001-of-00003.gguf": "piece",
    }
    assert "only 1 of its 3 files" in str(rows) and "vision part (mmproj)" in str(rows) and "Not shown: 1" in str(rows)
    assert {row.revision for row in rows} == {COMMIT}, "what was judged is what will be fetched"
    with pytest.raises(HubError, match="no Q5_K_M. It has Q4_K_M, Q8_0, F16"):
        rows.find("Q5_K_M")


def test_a_file_of_another_model_in_the_same_repository_gets_its_own_header(server):
    siblings = [listed("a-Q8_0.gguf", len(SMALL)), listed("b-Q8_0.gguf", 40 * len(SMALL))]
    repository(server, siblings, {"a-Q8_0.gguf": (SMALL, len(SMALL)), "b-Q8_0.gguf": (SMALL, 40 * len(SMALL))})
    rows = hub.files("me/model", machine=PLENTY, n_ctx=128, progress=False)
    assert [row.source for row in rows] == ["header", "header"]
    asked = [path for path, _, _ in server.seen if "resolve" in path]
    assert len(set(asked)) == 2


def test_headers_none_asks_for_no_header(server):
    repository(server, [listed("a-Q8_0.gguf", 9 * units.GIB), listed("b-Q4_0.gguf", units.GIB)])
    rows = hub.files("me/model", machine=LAPTOP, headers="none")
    assert len(server.seen) == 1
    assert rows.find("Q4_0").verdict is None and rows.best is None
    assert rows.find("Q8_0").verdict.status == "no", "more than the whole memory needs no shape"
    with pytest.raises(HubError, match="headers='some'"):
        hub.files("me/model", headers="some")


def test_a_gated_repository_is_explained_and_still_listed(server, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    repository(server, [listed("a-Q8_0.gguf", units.GIB)], gated="manual")
    server.plays["/me/model/resolve"] = answer(b"", 403, {"X-Error-Code": "GatedRepo"})
    rows = hub.files("me/model", machine=LAPTOP, progress=False)
    said = str(rows) + rows._repr_html_() + "".join(capsys.readouterr())
    assert f"Open {server.url}/me/model in a browser" in said and "hf auth login" in said
    assert "No verdict: a header could not be read" in said and rows.gated and rows[0].verdict is None
    assert SECRET not in said + repr(rows) + repr(rows[0])
    assert any(f"Bearer {SECRET}" in headers.values() for _, _, headers in server.seen)


def test_the_page_of_a_repository_is_a_name_too(server):
    repository(server, [listed("a-Q8_0.gguf", 5)])
    pages = (f"{server.url}/me/model", f"{server.url}/me/model/tree/main", "hf://me/model", " me/model ")
    for name in (*pages, "hf.co/me/model:Q8_0"):
        assert hub.files(name, machine=LAPTOP, headers="none").repo == "me/model"


def test_a_revision_is_asked_for(server):
    repository(server, [listed("a-Q8_0.gguf", 5)])
    hub.files("me/model", revision="v1", machine=LAPTOP, headers="none")
    assert server.seen[-1][0] == "/api/models/me/model/revision/v1"


def test_a_repository_without_gguf(server):
    repository(server, [listed("model.safetensors", 5)])
    said = str(hub.files("me/model", machine=LAPTOP))
    assert "has no GGUF file" in said and "hub.search" in said


@pytest.mark.parametrize("name", ["", "model", "a b/c", "../..", "me/<b>", EVIL])
def test_what_is_no_repository_asks_nobody(server, name):
    with pytest.raises(HubError, match="is not the name of a repository") as caught:
        hub.files(name)
    assert server.seen == [] and "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)


# --- hostile and broken hubs ---


def test_hostile_names_are_shown_as_text(server):
    evil = model("me/model", sha=COMMIT, siblings=[listed(EVIL + "-Q8_0.gguf", 5), listed(EVIL, 5)])
    server.plays["/api/models/me/model"] = answer(evil)
    rows = hub.files("me/model", machine=LAPTOP, progress=False)
    said, page = str(rows), rows._repr_html_()
    for bad in ("\x1b", "\u202e"):
        assert bad not in said + page
    assert "<img" not in page and "&lt;img" in page
    server.plays = {"/api/models": answer([model("me/ok", gguf={"architecture": EVIL, "total": EVIL}, siblings=[])])}
    assert "<img" not in hub.search("x")._repr_html_()


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (answer({"error": "x"}, 404, {"X-Error-Code": "RepoNotFound"}), "does not show me/model to you"),
        (answer({"error": "x"}, 401, {"X-Error-Code": "RepoNotFound"}), "does not show me/model to you"),
        (answer({"error": "x"}, 404, {"X-Error-Code": "RevisionNotFound"}), "has no revision 'old'"),
        (answer({"error": "x"}, 403, {"X-Error-Code": "GatedRepo"}), "me/model is gated"),
        (answer({}, 429), "too many requests"),
        (answer({}, 500), "status 500"),
        (answer(b"<html>please log in</html>"), "could not be understood"),
        (answer([1, 2]), "could not be understood"),
        (answer({"id": "me/model", "siblings": []}), "names no commit"),
        (answer({"id": "me/model", "sha": "../..", "siblings": []}), "names no commit"),
    ],
)
def test_every_refusal_is_one_clear_error(server, play, words):
    server.plays["/api/models/me/model"] = play
    with pytest.raises(HubError, match=words) as caught:
        hub.files("me/model", revision="old")
    assert "\n" not in str(caught.value)


def test_a_search_with_an_old_token(server):
    server.plays["/api/models"] = answer({"error": "Invalid credentials"}, 401)
    with pytest.raises(HubError, match="your token may be out of date"):
        hub.search("x")


def test_a_silent_hub_is_left(server, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_WITHIN_S", 0.3)
    server.plays["/api/models"] = lambda it, path: server.over.wait(30)
    with pytest.raises(HubError, match="did not answer"):
        hub.search("x")
    with pytest.raises(HubError, match="did not answer"):
        hub.files("me/model")


def test_no_hub_there(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(HubError, match="cannot be reached.*HF_ENDPOINT"):
        hub.search("x")


@pytest.mark.parametrize("call", [lambda: hub.search("x"), lambda: hub.files("me/model")])
def test_offline_says_so_at_once(server, monkeypatch, call):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE.*installed_models"):
        call()
    assert server.seen == []


# --- names, and the way to the download ---


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("gemma-2-2b-it-IQ3_XXS.gguf", "IQ3_XXS"),
        ("phi.Q4_0.gguf", "Q4_0"),
        ("a-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("a-UD-IQ1_M.gguf", "UD-IQ1_M"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("a-bf16.gguf", "BF16"),
        ("a-Q4_K_M_v2.gguf", "Q4_K_M"),
        ("Q8_0/a-00001-of-00003.gguf", "Q8_0"),
        ("model.gguf", ""),
    ],
)
def test_quantizations_in_names(name, quantization):
    assert hub.quantization_of(name) == quantization


def test_fetch_hands_over_all_parts_with_their_hashes(server, monkeypatch):
    siblings = [listed(f"a-Q8_0-0000{n}-of-00002.gguf", 5 + n, str(n) * 64) for n in (1, 2)]
    repository(server, siblings)
    (row,) = hub.files("me/model", machine=LAPTOP, headers="none")
    calls = []
    monkeypatch.setattr(download, "fetch", lambda *a, **k: calls.append((*a, k["sha256"], k["size_bytes"])) or a[1])
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    assert hub.fetch(row) == "a-Q8_0-00001-of-00002.gguf"
    assert calls == [("me/model", f"a-Q8_0-0000{n}-of-00002.gguf", COMMIT, str(n) * 64, 5 + n) for n in (1, 2)]


# --- the panel ---


def settled(panel):
    panel.worker.join(30)
    assert not panel.worker.is_alive()


def test_the_panel_searches_judges_downloads_and_stops(server, tmp_path):
    pytest.importorskip("ipywidgets")
    from helpers.panels_hub import hub_panel

    siblings = [listed("a-Q8_0.gguf", len(SMALL), hashlib.sha256(SMALL).hexdigest())]
    server.plays["/api/models"] = answer([model("me/model"), model(f"you/{EVIL}")])
    repository(server, siblings, {"a-Q8_0.gguf": (SMALL, len(SMALL))})
    panel = hub_panel(machine=PLENTY, n_ctx=128, dest=tmp_path).panel
    assert server.seen == [], "nothing is asked before somebody asks"
    panel.text.value = "model"
    panel.search.click()
    settled(panel)
    assert [value for _, value in panel.repo.options] == [None, "me/model"] and "1 repositories" in panel.state.value
    panel.repo.value = "me/model"
    settled(panel)
    assert panel.file.value == "a-Q8_0.gguf" and "fits" in panel.table.value and not panel.get.disabled
    ways = {"ETag": f'"{hashlib.sha256(SMALL).hexdigest()}"', "X-Repo-Commit": COMMIT}
    server.plays["/me/model/resolve"] = answer(SMALL, 200, ways)
    panel._progress_before, panel._progress = panel._progress, stopping(panel)
    panel.get.click()
    settled(panel)
    assert "Stopped. What has arrived is kept" in panel.state.value and panel.path is None
    panel._progress = panel._progress_before
    panel.get.click()
    settled(panel)
    assert panel.path == tmp_path / "a-Q8_0.gguf" and panel.path.read_bytes() == SMALL
    assert "runner.load" in panel.state.value and panel.bar.value == panel.bar.max and panel.stop.disabled


def stopping(panel):
    def act(progress):
        raise download.Stopped("by the test")

    return act


def test_the_panel_shows_what_went_wrong(server):
    pytest.importorskip("ipywidgets")
    from helpers.panels_hub import hub_panel

    panel = hub_panel("x").panel
    settled(panel)
    assert "status" in panel.state.value and not panel.search.disabled
    panel.file.options = [("", None)]
    panel._download()
    settled(panel)
    assert "Choose a file first" in panel.state.value
