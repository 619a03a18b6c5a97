"""A panel for the model hub: search, see what fits before downloading, download with bytes, speed and time left.

Wiring only. The hub is asked in threads, so a slow line blocks neither the notebook nor the Stop button.
"""

import functools
import html
import threading

from . import download, figures, hub, units
from .need import need

STEPS = 1000  # of the progress bar
# Long names and notes are broken into lines: what stands to the right of the panel's edge is seldom found.
WRAPPED = (
    "<style>.kit .hub td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:220px}"
    ".kit .hub td:nth-child(4),.kit .hub td:nth-child(7){white-space:normal;min-width:80px}</style>"
)


def hub_panel(text="", machine=None, n_ctx=8192, dest=None):
    """A search box for the hub's GGUF repositories, the files of one with verdicts, and a download button.

    Parameters
    ----------
    text : str
        What to search for at first; "" asks nothing until you press Search.
    machine : hardware.Machine, optional
        Another computer to judge by.
    n_ctx : int
        Tokens of context that the verdicts count with.
    dest : path, optional
        Where downloads go; without it the hub's cache, where `download.installed_models()` finds them.

    Returns an `ipywidgets.VBox`; its `panel.path` is the last file that was downloaded.
    """
    return _HubPanel(text, machine, n_ctx, dest).box


def in_thread(method):
    """A callback that works in a thread of its own; an error is shown, because nobody would see it otherwise."""

    @functools.wraps(method)
    def start(self, _=None):
        def work():
            try:
                method(self)
            except download.Stopped:
                self.state.value = figures.page(
                    "<p>Stopped. What has arrived is kept: Download goes on from there.</p>"
                )
            except Exception as error:
                self.state.value = figures.page(figures.error_html(error))
            finally:
                self._free()

        if self.busy.acquire(blocking=False):
            self._taken()
            self.worker = threading.Thread(target=work, daemon=True)
            self.worker.start()

    return start


class _HubPanel:
    def __init__(self, text, machine, n_ctx, dest):
        w = need("ipywidgets", "show the panel")
        self.machine, self.n_ctx, self.dest = machine, n_ctx, dest
        self.busy, self.stopped, self.worker = threading.Lock(), threading.Event(), None
        self.repos, self.files = [], []
        wide, label = {"width": "420px"}, {"description_width": "80px"}
        self.text = w.Text(value=text, description="Search", placeholder="llama 3.2", style=label, layout=wide)
        self.search = w.Button(description="Search", tooltip="Ask the hub", layout={"width": "90px"})
        self.repo = w.Dropdown(options=[("", None)], description="Repository", style=label, layout={"width": "520px"})
        self.file = w.Dropdown(options=[("", None)], description="File", style=label, layout={"width": "520px"})
        self.get = w.Button(description="Download", disabled=True, layout={"width": "100px"})
        self.stop = w.Button(description="Stop", disabled=True, layout={"width": "70px"})
        self.bar = w.IntProgress(max=STEPS, description="Progress", style=label, layout={"width": "420px"})
        self.state = w.HTML(layout={"min_height": "62px"})
        self.table = w.HTML(layout={"height": "300px", "overflow": "auto"})
        row = {"flex_flow": "row wrap", "align_items": "center"}
        self.box = w.VBox(
            [
                w.HBox([self.text, self.search], layout=row),
                w.HBox([self.repo], layout=row),
                w.HBox([self.file, self.get, self.stop], layout=row),
                w.HBox([self.bar], layout=row),
                self.state,
                self.table,
            ],
            layout={"width": "100%"},
        )
        self.box.add_class("kit-app")
        self.box.panel, self.path = self, None
        self.search.on_click(self._search)
        self.repo.observe(self._open, "value")
        self.get.on_click(self._download)
        self.stop.on_click(lambda _: self.stopped.set())
        if text:
            self._search()

    def _taken(self):
        self.stopped.clear()
        self.search.disabled = self.get.disabled = self.repo.disabled = True

    def _free(self):
        self.search.disabled = self.repo.disabled = False
        self.stop.disabled, self.get.disabled = True, not self.files
        self.busy.release()

    @in_thread
    def _search(self):
        self._say("Asking the hub ...")
        self.repos = hub.search(self.text.value)
        self.files = []
        self._choices(self.repo, [(row.id, row.id) for row in self.repos], "choose a repository")
        self._choices(self.file, [], "")
        self._show(self.repos)
        self._say(f"{len(self.repos)} repositories. Choose one to see its files." if self.repos else "")

    def _open(self, _):
        if self.repo.value is not None:
            self._list()

    @in_thread
    def _list(self):
        self._say("Reading sizes and one header ...")
        self.files, self.bar.value = [], 0
        self._choices(self.file, [], "")
        found = hub.files(self.repo.value, machine=self.machine, n_ctx=self.n_ctx, progress=False)
        self.files = [row for row in found if row.kind in ("model", "vision")]
        self._choices(self.file, [(_label(row), row.name) for row in self.files], "choose a file")
        if found.best:
            self.file.value = found.best.name
        self._show(found)
        self._say(f"Needs and verdicts are for {self.n_ctx:,} tokens.")

    @in_thread
    def _download(self):
        row = next((row for row in self.files if row.name == self.file.value), None)
        if row is None:
            return self._say("Choose a file first.")
        self.stop.disabled, self.path = False, None
        self._say("Looking where to put it ...")
        self.path = hub.fetch(row, dest=self.dest, progress=self._progress)
        self.bar.value = STEPS
        self._say(f"Here: {self.path}. Load it: runner.load({str(self.path)!r})")

    def _progress(self, progress):
        if self.stopped.is_set():
            raise download.Stopped(f"{progress.name} was stopped.")
        value = round(progress.share * STEPS)
        if value != self.bar.value or progress.done_bytes in (0, progress.total_bytes):
            self.bar.value = value
            self._say(str(progress))

    def _choices(self, dropdown, options, prompt):
        dropdown.options = [(prompt if options else "", None), *options]
        dropdown.value = None

    def _show(self, rows):
        self.table.value = figures.page(WRAPPED, '<div class="hub">', rows._repr_html_(), "</div>")

    def _say(self, text):
        self.state.value = figures.page(f'<p role="status" aria-live="polite">{html.escape(text)}</p>')


def _label(row):
    verdict = f", {row.verdict.status}" if row.verdict else ""
    return f"{row.quantization or row.kind}: {units.show_decimal(row.size_bytes)}{verdict} ({row.name})"
