"""Make the picture of the README: `python tests/picture.py` writes .github/panel.png from a real browser."""

import tempfile
from pathlib import Path

import lab

CELL = """from helpers import hardware, panels, units
laptop = hardware.Machine.pretend("laptop", units.from_gib(5.5), ram_total_bytes=units.from_gib(8))
panels.fit_panel(laptop)"""
TARGET = lab.ROOT / ".github" / "panel.png"


def main():
    with tempfile.TemporaryDirectory() as folder:
        lab.write_notebook(Path(folder) / "panel.ipynb", CELL)
        with lab.server(folder) as server, lab.chromium(server, size=(1280, 900)) as tab:
            tab.open("panel.ipynb", view="doc/tree")
            tab.run_all()
            tab.wait("() => document.querySelector('.kit-app')?.textContent.includes('dry run')")
            tab.screenshot(TARGET, ".kit-app")
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
