"""How long the kit takes to be there: its import, the first panel of lesson 07 on the screen, all solved lessons.

Run: python tests/bench_start.py [--import-runs 30] [--panel-runs 5] [--only import|panel|lessons]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lab
from quoted import quote, spread

sys.path.insert(0, str(lab.ROOT))

PANEL_LESSON = "07_will_it_fit"
NAMES = {"import": "import helpers", "panel": "lesson 07: run all -> first panel", "lessons": "solved lessons, in all"}
# From the command on, in the page's own clock: when the panel's sentence was there, and the frame after it was painted.
RUN_AND_WATCH = """() => {
  window.kitPanel = null;
  const app = window.jupyterapp;
  const run = async () => {
    const widget = app.shell.currentWidget;
    await widget.context.ready;
    await widget.sessionContext.ready;
    await widget.sessionContext.session.kernel.info;
    const began = performance.now();
    const watch = () => {
      if (document.querySelector('.kit-app .sentence')) {
        requestAnimationFrame(() => {
          const channel = new MessageChannel();
          channel.port1.onmessage = () => { window.kitPanel = performance.now() - began; };
          channel.port2.postMessage(0);
        });
      } else { setTimeout(watch, 5); }
    };
    watch();
    await app.commands.execute('notebook:run-all-cells');
  };
  run();
}"""


def import_seconds(runs):
    """Seconds that `import helpers` adds to a Python that does nothing: pairs, one run of each in turn."""
    found = []
    for _ in range(runs + 1):
        plain, ours = (_seconds([sys.executable, "-c", code]) for code in ("pass", "import helpers"))
        found.append(ours - plain)
    return found[1:]  # the first reads the files from disk


def _seconds(command):
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=lab.ROOT, env={**os.environ, "PYTHONPATH": str(lab.ROOT)})
    return time.perf_counter() - began


def panel_seconds(runs):
    """Seconds from "run all" to the painted panel; server, kernel and browser are new every time."""
    if why := lab.why_not():
        print(f"{NAMES['panel']}: not measured, {why}")
        return []
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="kit-start-", ignore_cleanup_errors=True) as folder:
            shutil.copy(lab.ROOT / "notebooks" / f"{PANEL_LESSON}.ipynb", folder)
            with lab.server(folder) as server, lab.chromium(server) as tab:
                tab.open(f"{PANEL_LESSON}.ipynb")
                tab.page.evaluate(RUN_AND_WATCH)
                found.append(tab.wait("() => window.kitPanel", within_s=120) / 1000)
                print(f"  run all -> panel: {found[-1]:.2f} s", flush=True)
    return found


def lesson_seconds():
    """{lesson: seconds} of every solved lesson with its kernel's start; cells that cannot run here are left out."""
    from test_notebooks import LESSONS, execute, notebook_path, runnable

    found = {}
    for lesson in LESSONS:
        with tempfile.TemporaryDirectory(prefix="kit-start-", ignore_cleanup_errors=True) as folder:
            began = time.perf_counter()
            execute(runnable(notebook_path(lesson, "solved")), Path(folder))
            found[lesson] = time.perf_counter() - began
        print(f"  {lesson:<24}{found[lesson]:>7.1f} s", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--import-runs", type=int, default=30)
    parser.add_argument("--panel-runs", type=int, default=5)
    parser.add_argument("--only", choices=list(NAMES))
    chosen = parser.parse_args()
    if chosen.only in (None, "import"):
        quote(NAMES["import"], *spread(import_seconds(chosen.import_runs), 1000), unit="ms")
    if chosen.only in (None, "panel") and (times := panel_seconds(chosen.panel_runs)):
        quote(NAMES["panel"], *spread(times), unit="s")
    if chosen.only in (None, "lessons"):
        quote(NAMES["lessons"], 1, sum(lesson_seconds().values()), unit="s")


if __name__ == "__main__":
    main()
