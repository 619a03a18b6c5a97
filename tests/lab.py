"""JupyterLab on loopback, driven in headless Chromium: what `test_browser.py` and `bench_panel.py` share.

    with lab.server(folder) as server, lab.chromium(server) as tab:
        tab.open("lesson.ipynb")
        assert tab.run_all()

The server gets the configuration that start.py gives learners. Everything has a time limit: playwright's own calls,
the run of a notebook, and the whole visit, after which server and browser are ended by force.
"""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ("127.0.0.1", "localhost")
SERVER_STARTS_WITHIN_S = 90
CALL_WITHIN_S = 30
RUN_WITHIN_S = 180
VISIT_WITHIN_S = 420
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "msedge")
# The rule refuses every host but this machine, whatever a page or Chromium itself asks for.
FLAGS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
# Playwright waits for ever for a promise that stays open, so the page notes the end of the run and is asked for it.
RUN_ALL = """() => {
  window.kitRun = null;
  const run = async () => {
    const app = window.jupyterapp;
    await app.restored;
    const widget = app.shell.currentWidget;
    await widget.context.ready;
    await widget.sessionContext.ready;
    if (widget.sessionContext.session) await widget.sessionContext.session.kernel.info;
    return await app.commands.execute('notebook:run-all-cells');
  };
  run().then(ok => { window.kitRun = {ok: !!ok}; }, error => { window.kitRun = {error: String(error)}; });
}"""

# On the page an error looks like any text on stderr, so the notebook itself is asked.
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
  .filter(cell => !(cell.metadata.tags || []).includes('raises-exception'))
  .flatMap(cell => (cell.outputs || []).filter(output => output.output_type === 'error'))
  .map(output => `${output.ename}: ${output.evalue}`)"""


def why_not():
    """Why nothing can be driven here, as a sentence for `pytest.skip`; "" when it can."""
    if not importlib.util.find_spec("playwright"):
        return "playwright is not installed (pip install playwright)"
    if not importlib.util.find_spec("jupyterlab"):
        return "jupyterlab is not installed (pip install jupyterlab)"
    return "" if browser_path() else "no Chromium was found (Debian: apt install chromium)"


def browser_path():
    """The Chromium to drive: `KIT_CHROMIUM`, or the first that the system knows by name; "" when there is none."""
    named = os.environ.get("KIT_CHROMIUM", "")
    return next(filter(None, map(shutil.which, filter(None, (named, *BROWSERS)))), "")


def start_module():
    """start.py as a module, so that the server here is configured as the learners' is."""
    spec = importlib.util.spec_from_file_location("kit_start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_notebook(path, *cells):
    """A notebook of code cells. Without the kernel's name JupyterLab asks for one in a dialog, and waits."""
    import nbformat
    from nbformat import v4

    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


# --- the server ----------------------------------------------------------------------------------------------------


class Server:
    """A running JupyterLab: `url`, `token`, `folder` (its root), `process`."""

    def __init__(self, folder, port, process):
        self.folder, self.port, self.process = folder, port, process
        self.url = f"http://127.0.0.1:{port}"
        self.token = ""

    def log_tail(self, lines=15):
        text = (self.folder / ".jupyter" / "server.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def end(self, patience_s=15):
        """Stop it, kindly first; its kernels end with it."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        self.kill()

    def kill(self):
        with contextlib.suppress(OSError):
            if os.name == "nt":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


@contextlib.contextmanager
def server(folder, as_learners=True, environment=None):
    """JupyterLab for the notebooks in `folder`, on a free port of 127.0.0.1.

    `as_learners=False` leaves out the server configuration of start.py (small messages without delay), to see what it
    is worth.
    """
    running = _start(Path(folder), as_learners, environment or {})
    try:
        yield running
    finally:
        running.end()


def _start(folder, as_learners, environment):
    start = start_module()
    start.configure_lab(folder)
    if not as_learners:
        (folder / ".jupyter" / "config" / "jupyter_server_config.py").unlink()
    python, port, token = Path(sys.executable), _free_port(), secrets.token_hex(16)
    command = start.lab_command(folder, python, types.SimpleNamespace(port=port, browser=False))
    command += [
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
    ]
    environ = start.inside(folder, python, os.environ)
    environ |= {"PYTHONPATH": str(ROOT), **environment}
    for name in ("runtime", "data"):
        (folder / ".jupyter" / name).mkdir(parents=True, exist_ok=True)
    with (folder / ".jupyter" / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    running = Server(folder, port, process)
    running.token = token
    try:
        _wait_for(running)
    except BaseException:
        running.kill()
        raise
    return running


def _wait_for(running):
    until = time.monotonic() + SERVER_STARTS_WITHIN_S
    request = urllib.request.Request(f"{running.url}/api/status", headers={"Authorization": f"token {running.token}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until:
        if running.process.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with code {running.process.returncode}:\n{running.log_tail()}")
        with contextlib.suppress(urllib.error.URLError, OSError), direct.open(request, timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(f"JupyterLab did not answer within {SERVER_STARTS_WITHIN_S} s:\n{running.log_tail()}")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- the browser ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def chromium(running, size=(1280, 720), within_s=VISIT_WITHIN_S):
    """A tab of a fresh headless Chromium, as a `Tab`. After `within_s` browser and server are killed: TimeoutError."""
    from playwright.sync_api import Error, sync_playwright

    flags = [*FLAGS, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory(prefix="kit-chromium-", ignore_cleanup_errors=True) as profile:
        over = threading.Event()
        watchdog = threading.Timer(within_s, _end_visit, (over, running, profile))
        watchdog.daemon = True
        watchdog.start()
        try:
            with sync_playwright() as playwright:
                context = playwright.chromium.launch_persistent_context(
                    profile, executable_path=browser_path(), headless=True, args=flags, timeout=1000 * CALL_WITHIN_S,
                    viewport={"width": size[0], "height": size[1]},
                )  # fmt: skip
                try:
                    yield Tab(context, running)
                finally:
                    with contextlib.suppress(Error):
                        context.close()
        except Error as error:
            if over.is_set():
                raise TimeoutError(f"The visit took longer than {within_s} s and was ended.") from error
            raise
        finally:
            watchdog.cancel()
            _kill_browser(profile)


def _end_visit(over, running, profile):
    over.set()
    _kill_browser(profile)
    running.kill()


def _kill_browser(profile):
    """End the browser that uses this profile, which only we can have started, and nothing else."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(profile in word for word in process.cmdline()):
                process.kill()


class Tab:
    """One page of the browser. `outside`: addresses it asked for elsewhere; `console`: the errors it printed."""

    def __init__(self, context, running):
        self.server = running
        self.outside, self.console = [], []
        context.set_default_timeout(1000 * CALL_WITHIN_S)
        context.on("request", lambda request: self._note(request.url))
        self.page = context.pages[0] if context.pages else context.new_page()
        self.page.on("websocket", lambda websocket: self._note(websocket.url))
        self.page.on("console", lambda line: self.console.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))

    def _note(self, address):
        parts = urllib.parse.urlsplit(address)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in HERE:
            self.outside.append(address)

    def open(self, notebook, view="lab/tree"):
        """Open a notebook of the server's folder; `view="doc/tree"` shows it without the side bar."""
        path = urllib.parse.quote(str(notebook))
        self.page.goto(f"{self.server.url}/{view}/{path}?token={self.server.token}&reset")
        self.page.wait_for_function("() => window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')")

    def run_all(self, within_s=RUN_WITHIN_S):
        """Run all cells; whether every one of them ended well (a cell that may raise by its tag counts as well)."""
        self.page.evaluate(RUN_ALL)
        try:
            self.page.wait_for_function("() => window.kitRun", timeout=1000 * within_s)
        except Exception as error:
            said = self.page.locator(".jp-Dialog").all_text_contents()
            waits = f" A dialog is open: {' '.join(said)}" if said else ""
            raise TimeoutError(f"The notebook did not run to its end within {within_s} s.{waits}") from error
        result = self.page.evaluate("() => window.kitRun")
        if "error" in result:
            raise RuntimeError(f"JupyterLab could not run the notebook: {result['error']}")
        return result["ok"]

    def errors(self):
        """The errors among the notebook's outputs, as "name: message", but for cells whose tag allows them."""
        return self.page.evaluate(ERRORS)

    def wait(self, expression, argument=None, within_s=CALL_WITHIN_S):
        """Wait until a JavaScript function returns something true; what it returned."""
        handle = self.page.wait_for_function(expression, arg=argument, timeout=1000 * within_s)
        return handle.json_value()

    def text(self, selector, nth=0):
        """The text inside an element, also inside SVG."""
        return self.page.locator(selector).nth(nth).text_content()

    def wait_for_change(self, selector, before, within_s=CALL_WITHIN_S):
        """Wait until the text inside an element is no longer `before`; the new text."""
        changed = "([s, old]) => { const e = document.querySelector(s); return e && e.textContent !== old; }"
        self.wait(changed, [selector, before], within_s)
        return self.text(selector)

    def switch(self, name):
        """Press a button of a row of which one is pressed; again where the page moved away under the mouse."""
        button = self.page.get_by_role("button", name=name).first
        for _ in range(5):
            button.click()
            self.page.wait_for_timeout(200)
            if "mod-active" in button.get_attribute("class"):
                return
        raise TimeoutError(f"The button {name!r} does not stay pressed: {button.get_attribute('class')}")

    def slider(self, description, panel=".kit-app"):
        """The handle of the slider with this description: focus it, press arrows, drag it."""
        return self.page.locator(f"{panel} .widget-slider").filter(has_text=description).locator(".noUi-handle").first

    def screenshot(self, path, selector=None):
        """A picture of the window, or of one element."""
        (self.page.locator(selector).first if selector else self.page).screenshot(path=str(path))
