"""How long from a key press on a panel's slider to the repainted page, in Chromium; for one, a drag of five seconds.

    python tests/bench_panel.py [--panel all] [--steps 60] [--drag-seconds 5] [--no-plain]

Figures only, no verdict: they say something about this machine at this moment. "new choices" are asked of llama.cpp
for the first time, "known choices" come from the engine's memory.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import lab
from quoted import quote, spread

sys.path.insert(0, str(lab.ROOT))

from helpers import fit, hardware, memory, models, panels, units

MODEL = "llama-3.1-8b"
MACHINE = ("bench laptop", 12 * units.GIB, 16 * units.GIB)
QUANTIZATIONS = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q8_0", "Q4_0")
SETUP = "from helpers import hardware, panels\nmachine = hardware.Machine.pretend('{}', {}, {})".format(*MACHINE)
PANELS = {  # name: (the cell that shows it, a slider of its, what to press before)
    "fit": (f"panels.fit_panel(machine, {MODEL!r})", "Context", None),
    "compare": (f"panels.compare_panel(machine, {MODEL!r})", "Context", None),
    "context": ("panels.context_panel(machine)", "Free RAM", "another one"),
    "design": (f"panels.design_panel({MODEL!r})", "layers", None),
    "offload": (f"panels.offload_panel(machine, {MODEL!r})", "GPU layers", None),
}
# Each step: the key's own time stamp; the moment the sentence was replaced; the next frame, and once it was painted.
WATCH = """() => {
  const panel = document.querySelector('.kit-app');
  const kit = window.kit = {key: 0, steps: [], changes: 0, last: 0};
  document.addEventListener('keydown', event => { kit.key = event.timeStamp; }, true);
  let seen = panel.querySelector('.sentence');
  new MutationObserver(() => {
    const now = panel.querySelector('.sentence');
    if (!now || now === seen) return;
    seen = now;
    kit.changes += 1;
    const key = kit.key, changed = performance.now();
    kit.key = 0;
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = () => {
        kit.last = performance.now();
        if (key) kit.steps.push({dom: changed - key, paint: kit.last - key});
      };
      channel.port2.postMessage(0);
    });
  }).observe(panel, {subtree: true, childList: true});
}"""
# What is wider than its own box, by how many pixels, and what sticks out of the notebook's output.
OVERFLOW = """() => {
  const panel = document.querySelector('.kit-app'), found = [];
  const edge = panel.closest('.jp-OutputArea-output').getBoundingClientRect().right;
  for (const e of [panel, ...panel.querySelectorAll('*')]) {
    const style = getComputedStyle(e), inner = e.scrollWidth - e.clientWidth;
    const past = e.getBoundingClientRect().right - edge;
    if (style.display === 'none' || style.visibility === 'hidden') continue;
    if (inner > 0 && e.clientWidth > 0 && ['auto', 'scroll'].includes(style.overflowX)) found.push([e, inner]);
    if (past > 0.5) found.push([e, past]);
  }
  return found.map(([e, pixels]) => `${e.tagName} ${e.getAttribute('class') || ''}: ${pixels.toFixed(1)} px`);
}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panel", choices=[*PANELS, "all"], default="fit")
    parser.add_argument("--steps", type=int, default=60, help="key presses per line of the table")
    parser.add_argument("--drag-seconds", type=float, default=5.0)
    parser.add_argument("--no-plain", action="store_true", help="leave out the server without start.py's configuration")
    options = parser.parse_args()
    reason = lab.why_not()
    if reason:
        sys.exit(f"Nothing to measure: {reason}.")
    print(machine_line())
    for panel in PANELS if options.panel == "all" else [options.panel]:
        if panel != "fit":
            measure_panel(panel, options)
            continue
        for name, as_learners in (("as start.py sets it up", True), ("without configuration", False)):
            if as_learners or not options.no_plain:
                measure(name, as_learners, options)


def measure(name, as_learners, options):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        lab.write_notebook(Path(folder) / "bench.ipynb", SETUP, PANELS["fit"][0])
        with lab.server(folder, as_learners=as_learners) as server, lab.chromium(server) as tab:
            open_panel(tab)
            line(f"{name}, new choices", new_choices(tab, options.steps))
            line(f"{name}, known choices", known_choices(tab, options.steps))
            if as_learners:
                report_drag(tab, options.drag_seconds)
                report_page(tab)


def measure_panel(panel, options):
    """One of the other panels: its slider to and fro, along choices that are new and then known."""
    cell, slider, button = PANELS[panel]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        lab.write_notebook(Path(folder) / "bench.ipynb", SETUP, cell)
        with lab.server(folder) as server, lab.chromium(server) as tab:
            open_panel(tab)
            if button:
                tab.switch(button)
            tab.slider(slider).press("Home")
            settle(tab)
            way = min(options.steps // 2, 15)  # there and back, as often as there are steps left
            keys = [*["ArrowRight"] * way, *["ArrowLeft"] * way] * -(-options.steps // (2 * way))
            line(f"{panel}_panel, slider {slider!r}", press(tab, keys[: options.steps], slider))
            report_page(tab)


def report_page(tab):
    overflow = tab.page.evaluate(OVERFLOW)
    print(f"wider than its place at 1280x720: {'; '.join(overflow) or 'nothing'}")
    print(f"requests to other hosts: {len(tab.outside)}; errors in the browser's log: {len(tab.console)}")


def open_panel(tab):
    tab.open("bench.ipynb")
    if not tab.run_all():
        raise RuntimeError(f"The bench's notebook failed: {tab.errors()}")
    tab.wait("() => document.querySelector('.kit-app .sentence')")
    with contextlib.suppress(Exception):  # without llama-cpp-python the engine never answers
        tab.wait("() => !document.querySelector('.kit-app').textContent.match(/Starting the engine|Asking the engine/)")
    tab.page.evaluate(WATCH)


def new_choices(tab, n):
    """Steps to contexts that nobody asked for before: along the slider, for one quantization after the other."""
    steps = []
    for quantization in QUANTIZATIONS:
        if len(steps) >= n:
            break
        select(tab, "Quantization", quantization)
        tab.slider("Context").press("Home")
        settle(tab)
        steps += press(tab, ["ArrowRight"] * min(len(panels.CONTEXTS) - 1, n - len(steps)))
    return steps


def known_choices(tab, n):
    """Steps to and fro between two contexts."""
    tab.slider("Context").press("Home")
    settle(tab)
    press(tab, ["ArrowRight"])
    return press(tab, ["ArrowLeft", "ArrowRight"] * (n // 2))


def press(tab, keys, slider="Context"):
    """What each key press took, one at a time."""
    tab.page.evaluate("() => { window.kit.steps = []; }")
    for done, key in enumerate(keys):
        tab.slider(slider).press(key)
        tab.wait("n => window.kit.steps.length > n", done)
        tab.page.wait_for_timeout(80)  # the details below the sentence arrive a little later
    return tab.page.evaluate("() => window.kit.steps")


def settle(tab, quiet_ms=400):
    """Wait until the panel has not changed for a while."""
    last = None
    for _ in range(100):
        now = tab.page.evaluate("() => window.kit.last")
        if now == last:
            return
        last = now
        tab.page.wait_for_timeout(quiet_ms)


def select(tab, description, value):
    tab.page.locator(".kit-app .widget-dropdown").filter(has_text=description).locator("select").select_option(value)
    settle(tab)


def report_drag(tab, seconds):
    """Drag the handle to and fro, let go somewhere, and see when and where the panel comes to rest."""
    select(tab, "Quantization", "Q4_K_M")
    box = tab.page.locator(".kit-app .widget-slider").filter(has_text="Context").locator(".noUi-base").bounding_box()
    handle = tab.slider("Context").bounding_box()
    y = handle["y"] + handle["height"] / 2
    before = tab.page.evaluate("() => window.kit.changes")
    tab.page.mouse.move(handle["x"] + handle["width"] / 2, y)
    tab.page.mouse.down()
    begun, moves = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        phase = (time.monotonic() - begun) / 1.3 % 2
        tab.page.mouse.move(box["x"] + box["width"] * (phase if phase < 1 else 2 - phase), y)
        moves += 1
    tab.page.mouse.move(box["x"] + box["width"] * 0.62, y)
    tab.page.evaluate("() => { window.kit.released = performance.now(); }")
    tab.page.mouse.up()
    settle(tab, quiet_ms=1000)
    rest = max(tab.page.evaluate("() => window.kit.last - window.kit.released"), 0)
    changes = tab.page.evaluate("() => window.kit.changes") - before
    shown, n_ctx = tab.text(".kit-app .sentence"), tokens(tab)
    agrees = "agrees" if expected(n_ctx) in shown else f"should be: {expected(n_ctx)}; it is"
    print(f"drag of {seconds:.0f} s: {moves} mouse moves, {changes} repaints; last repaint {rest:.0f} ms after release")
    print(f"slider at {n_ctx:,} tokens, the sentence {agrees}: {shown}")


def tokens(tab):
    """The slider's own value, not the field's beside it."""
    return panels.CONTEXTS[round(float(tab.slider("Context").get_attribute("aria-valuenow")))]


def expected(n_ctx):
    """What the panel must say for the slider's value, worked out here."""
    needs = memory.estimate(models.get(MODEL), "Q4_K_M", n_ctx=n_ctx)
    return fit.judge(needs, hardware.Machine.pretend(*MACHINE)).sentence


def line(name, steps):
    quote(f"key to repainted page, {name}", *spread([step["paint"] for step in steps]), unit="ms")


def machine_line():
    machine = hardware.detect()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"machine: {int(machine.cpu_threads)} cores, {machine.cpu_name or 'unknown CPU'}{load}"


if __name__ == "__main__":
    main()
