"""A site that needs no install: lessons that run in the browser itself (JupyterLite), as static files.

python lessons/site.py                build it in .site/, from packages of the registries (pip and npm)
python lessons/site.py --with-numpy   and add numpy from Pyodide's own site: lessons 01 to 03 then run as well
python lessons/site.py --serve        build it unless it is there, and show it at http://127.0.0.1:8000

The notebooks are the very ones in notebooks/. Python runs in the page (Pyodide), so nothing of the learner's leaves
the computer; there is no engine in it, and the formula stands alone.
"""

import argparse
import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / ".site"
# Pyodide's release is the one that the kernel was made for (its PYODIDE_VERSION), not the newest.
TOOLS = (
    "jupyterlite-core==0.8.6",
    "jupyterlite-pyodide-kernel==0.8.6",
    "jupyter-server>=2.21,<3",
    "jupyterlab-server>=2.28,<3",
)
PYODIDE, PYTHON = "314.0.6", "3.14"
RUNTIME = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
KERNEL_NEEDS = ("ipython", "micropip", "jedi")  # what the kernel asks Pyodide for, by the lock file's names
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
    "packaging",
)
WITHOUT_NUMPY = ("05_context", "07_will_it_fit", "90_lab_memory")
WITH_NUMPY = ("01_bits_and_bytes", "02_scale_and_offset", "03_blocks")
TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".whl": "application/zip"}
NOTE = (
    "**You are in the browser.** Python runs in this page, and what you type stays on this computer. llama.cpp cannot "
    "run here: the cells that ask it are there to be read, and everything else works. The panels begin with "
    "what a browser tells a page (8 GiB at most); say what your own computer has."
)
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)]+)\)")
EXTENSION = "@jupyterlite/pyodide-kernel-extension:kernel"


class Trouble(Exception):
    """What went wrong and what to do next, in a sentence."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with-numpy", action="store_true", help="fetch numpy from Pyodide's own site")
    parser.add_argument("--serve", action="store_true", help="show the site on this computer")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=SITE / "dist")
    options = parser.parse_args(arguments)
    try:
        if not (options.serve and (options.out / "index.html").exists()):
            build(options.out.resolve(), options.with_numpy)
        if options.serve:
            serve(options.out, options.port)
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build(out, with_numpy=False):
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
    say("[3/4] Packages")
    fill_pyodide(pyodide, with_numpy)
    lessons = (*WITH_NUMPY * with_numpy, *WITHOUT_NUMPY)
    contents = copy_lessons(work / "contents", sorted(lessons))
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
        f"{out}: {len(files)} files, {total / 1e6:.0f} MB, {len(lessons)} lessons. Any web server can offer it; here: "
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


def fill_pyodide(folder, with_numpy):
    """Lay the packages beside Pyodide, and rewrite its list: it names only what is there, with its own checksums."""
    lock = json.loads((folder / "pyodide-lock.json").read_text(encoding="utf-8"))
    known = {plain(name): row for name, row in lock["packages"].items()}
    rows = {}
    for name in closure(known, KERNEL_NEEDS):
        rows[name] = {**known[name], **wheel(folder, f"{name}=={known[name]['version']}")}
    for requirement in locked(KIT_NEEDS):
        name = requirement.partition("==")[0]
        rows[name] = entry(name, wheel(folder, requirement))
    rows["gguf"] = entry("gguf", block_table(folder))
    if with_numpy:
        rows["numpy"] = fetch_numpy(folder, known["numpy"])
    rows["helpers"] = entry("helpers", own_wheel(folder), depends=[name for name in rows if name not in KERNEL_NEEDS])
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


def wheel(folder, requirement):
    """Download a wheel of pure Python; {"file_name", "sha256"}."""
    before = set(folder.glob("*.whl"))
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            "--only-binary",
            ":all:",
            f"--python-version={PYTHON}",
            "--platform=any",
            "--implementation=py",
            "--abi=none",
            requirement,
        ]
    )
    (new,) = set(folder.glob("*.whl")) - before
    return file_row(new)


def file_row(path):
    return {"file_name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def block_table(folder):
    """The gguf package cut down to its tables: the rest of it imports numpy, which the registries do not have here."""
    whole = folder / wheel(folder, *locked(["gguf"]))["file_name"]
    keep = re.compile(r"gguf/constants\.py|[^/]+\.dist-info/(METADATA|WHEEL|licenses/.*|LICENSE.*)")
    cut = whole.with_suffix(".cut")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(cut, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            if keep.fullmatch(name):
                target.writestr(name, source.read(name))
        target.writestr("gguf/__init__.py", "")
    cut.replace(whole)
    return file_row(whole)


def fetch_numpy(folder, row):
    """numpy as Pyodide's authors built it, from the address that Pyodide would ask; its list has the checksum."""
    kernel = next((SITE / "venv").rglob("kernel.v0.schema.json"), None)
    base = json.loads(kernel.read_text(encoding="utf-8"))["properties"]["pyodideUrl"]["default"] if kernel else ""
    address = base.rpartition("/")[0] + "/" + row["file_name"]
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        raise Trouble(
            f"numpy for the browser could not be fetched from {address} ({error}); "
            "leave out --with-numpy: the other lessons need none."
        ) from error
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise Trouble(f"{address} is not the file that Pyodide's list names (its checksum differs); nothing was kept.")
    (folder / row["file_name"]).write_bytes(data)
    return row


def own_wheel(folder):
    """The kit's own package as a wheel, from a copy: setuptools would leave its `build` folder beside the lessons."""
    with tempfile.TemporaryDirectory() as copy:
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy2(ROOT / name, copy)
        shutil.copytree(ROOT / "helpers", Path(copy) / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy])
    return file_row(next(folder.glob("helpers-*.whl")))


def copy_lessons(folder, names):
    """The learner copies, in which cells that ask llama.cpp can only be read. None are solved."""
    folder.mkdir(parents=True)
    for name in names:
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        cells = [readable(cell) if "model" in cell["metadata"].get("tags", ()) else cell for cell in notebook["cells"]]
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


def readable(cell):
    """A code cell as text to read."""
    code = "".join(cell["source"])
    text = f"*In the kit on a computer, this cell asks llama.cpp:*\n\n```python\n{code}\n```"
    return {"cell_type": "markdown", "id": cell["id"], "metadata": {}, "source": text}


def settings(folder, pyodide):
    """No address but the site's own: Pyodide from static/, and no package index to fall back to."""
    packages = ["helpers", "comm", "ipywidgets"]
    kernel = {"disablePyPIFallback": True, "loadPyodideOptions": {"packages": packages}}
    config = {"appName": "Local language models, understood", "exposeAppInBrowser": True}
    config["litePluginSettings"] = {EXTENSION: kernel}
    text = {"jupyter-lite-schema-version": 0, "jupyter-config-data": config}
    (folder / "jupyter-lite.json").write_text(json.dumps(text, indent=2), encoding="utf-8")


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
    say(f"http://127.0.0.1:{server.server_port}/lab/index.html?path={WITHOUT_NUMPY[1]}.ipynb  (Ctrl-C ends it)")
    with server:
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
