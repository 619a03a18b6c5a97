"""Hostile text in a real browser: JupyterLab and Voila show all of it, and none of it runs."""

import contextlib
import socket
import subprocess
import sys
import time

import lab
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELLS = (
    f"import sys; sys.path[:0] = [{str(lab.ROOT)!r}, {str(lab.ROOT / 'tests')!r}]\n"
    "import ipywidgets as w\n"
    "from IPython.display import HTML, display\n"
    "from helpers import figures, hub\n"
    "import test_hostile_text as hostile",
    "for name in hostile.CLASSES:\n    display(hostile.build(name))\n    print(hostile.build(name))",
    "for name in hostile.MAKE:\n    display(HTML(figures.page(hostile.MAKE[name](name))))",
    "boxes = [w.HTML(figures.page(hostile.MAKE[name](name))) for name in hostile.MAKE]\n"
    "bad = hostile.BAD\n"
    "display(w.VBox([*boxes, w.Label(bad), w.Dropdown(options=[bad], description=bad), w.Text(bad), w.Textarea(bad)]))",
    "display(hostile.long_answer())\nfrom pathlib import Path\n"
    "Path('report.html').write_text(hostile.report_page(), encoding='utf-8')\nprint('shown' + ' to the end')",
)
PWNED = "() => window.pwned"
SCRIPTS = "() => [...document.querySelectorAll('.jp-OutputArea img, .jp-OutputArea script')].map(e => e.outerHTML)"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    lab.write_notebook(folder / "hostile.ipynb", *CELLS)
    with lab.server(folder) as running:
        yield running


def test_nothing_runs_in_jupyterlab_nor_in_the_report(server):
    with lab.chromium(server) as tab:
        dialogs = []
        tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        tab.open("hostile.ipynb")
        assert tab.run_all()
        assert tab.errors() == []
        tab.wait("() => document.body.textContent.includes('shown to the end')")
        assert "window.pwned=1" in tab.text("body")  # it stands there, as text
        assert tab.page.evaluate(PWNED) is None and dialogs == []
        assert tab.page.evaluate(SCRIPTS) == []
        report = tab.page.context.new_page()
        report.goto((server.folder / "report.html").as_uri())
        assert "window.pwned=1" in report.locator("body").text_content()
        assert report.evaluate(PWNED) is None and report.locator("img, script").count() == 0
        assert tab.outside == []


def test_the_page_would_notice(server):
    """The same look at a page where the text does run: a guard that cannot fail guards nothing."""
    bad = "from IPython.display import HTML\nHTML(\"<img src=x onerror='window.pwned=1'>\")"
    lab.write_notebook(server.folder / "open.ipynb", bad)
    with lab.chromium(server) as tab:
        tab.open("open.ipynb")
        assert tab.run_all()
        assert tab.wait("() => window.pwned") == 1
        assert len(tab.page.evaluate(SCRIPTS)) == 1


@contextlib.contextmanager
def voila(notebook):
    """Voila with one notebook, on loopback; yields what `lab.chromium` wants to know of a server."""
    port = lab._free_port()
    options = (f"--port={port}", "--no-browser", "--Voila.ip=127.0.0.1", "--Voila.log_level=INFO")
    process = subprocess.Popen(
        [sys.executable, "-m", "voila", str(notebook), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    running = lab.Server(notebook.parent, port, process)
    try:
        until = time.monotonic() + lab.SERVER_STARTS_WITHIN_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield running
    finally:
        running.end()


# The last widget does run something: what would notice the others notices this one.
OPEN = "display(w.HTML(\"<img src=x onerror='window.noticed=1'>\"))\nprint('shown' + ' to the end')"
WIDGETS = """() => [...document.querySelectorAll('.jupyter-widgets')].map(e => e.textContent
    + [...e.querySelectorAll('input, textarea')].map(field => field.value))"""


def test_nothing_runs_in_voila(tmp_path):
    """Outputs and widgets; the long answer is left out, since the page is busy with it for half a minute."""
    pytest.importorskip("voila")
    notebook = lab.write_notebook(tmp_path / "hostile.ipynb", *CELLS[:4], OPEN)
    with voila(notebook) as running, lab.chromium(running) as tab:
        dialogs = []
        tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        tab.page.goto(running.url, timeout=120_000)
        tab.wait("() => document.body.textContent.includes('shown to the end')", within_s=120)
        assert tab.wait("() => window.noticed", within_s=60) == 1
        assert "window.pwned=1" in tab.text("body")
        assert sum("window.pwned=1" in text for text in tab.page.evaluate(WIDGETS)) > 30
        assert tab.page.evaluate(PWNED) is None and dialogs == []
        assert len(tab.page.evaluate(SCRIPTS)) == 1
