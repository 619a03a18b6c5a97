"""How long the kit takes to be there: its import, the first panel of lesson 07 on the screen, all solved lessons.

Run: python tests/bench_start.py [--import-runs 30] [--panel-runs 5] [--only import|panel|lessons]
"""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lab

sys.path.insert(0, str(lab.ROOT))

COMMAND = "python tests/bench_start.py"
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


def rows(only=None, import_runs=30, panel_runs=5):
    """What README quotes: (what, n, median, p95, max, unit)."""
    table = []
    if only in (None, "import"):
        table.append((NAMES["import"], *_spread([1000 * s for s in import_seconds(import_runs)]), "ms"))
    if only in (None, "panel") and (times := panel_seconds(panel_runs)):
        table.append((NAMES["panel"], *_spread(times), "s"))
    if only in (None, "lessons"):
        total = sum(lesson_seconds().values())
        table.append((NAMES["lessons"], 1, total, total, total, "s"))
    return table


def _spread(values):
    """(n, median, p95, max)."""
    ordered = sorted(values)
    return len(ordered), statistics.median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--import-runs", type=int, default=30)
    parser.add_argument("--panel-runs", type=int, default=5)
    parser.add_argument("--only", choices=list(NAMES))
    chosen = parser.parse_args()
    table = rows(chosen.only, chosen.import_runs, chosen.panel_runs)
    print(f"{'':<40}{'n':>4}{'median':>9}{'p95':>9}{'max':>9}")
    for what, n, *values, unit in table:
        print(f"{what:<40}{n:>4}" + "".join(f"{value:>9.2f}" for value in values) + f" {unit}")


if __name__ == "__main__":
    main()
