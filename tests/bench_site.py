"""The size of the site without an install, and how long until its first slider moves: python tests/bench_site.py [-n 3]

Each round opens lesson 07 in a fresh Chromium with an empty cache, runs all cells, and waits for the panel.
"""

import argparse
import subprocess
import sys
import time
import types
from pathlib import Path

import lab
from quoted import quote, spread

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=3)
    rounds = parser.parse_args().n
    command = [sys.executable, str(ROOT / "lessons" / "site.py"), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = next(line.split()[0] for line in process.stdout if line.startswith("http://"))
            found = [first_slider(address, process) for _ in range(rounds)]
        finally:
            process.kill()
    files = [path for path in (ROOT / ".site" / "dist").rglob("*") if path.is_file()]
    quote("site without an install, its files", len(files), sum(path.stat().st_size for path in files) / 1e6, unit="MB")
    for name, times in zip(("page ready", "panel shown", "slider answered"), zip(*found, strict=True), strict=True):
        quote(f"site without an install: {name}", *spread(times), unit="s")


def first_slider(address, process):
    """Seconds from the address to the notebook, to the panel, and to the panel's answer to a key."""
    server = types.SimpleNamespace(url=address.partition("/lab")[0], token="", kill=process.kill)
    with lab.chromium(server) as tab:
        start = time.perf_counter()
        tab.page.goto(address)
        tab.wait("() => window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')", within_s=60)
        ready = time.perf_counter() - start
        tab.page.evaluate(lab.RUN_ALL)
        tab.wait("() => document.querySelector('.kit-app .sentence')", within_s=120)
        shown = time.perf_counter() - start
        before = tab.text(".kit-app .sentence")
        tab.slider("Context").press("End")
        tab.wait_for_change(".kit-app .sentence", before)
        return ready, shown, time.perf_counter() - start


if __name__ == "__main__":
    main()
