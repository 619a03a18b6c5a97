"""What does long use cost a kernel? `python tests/bench_long_use.py [--moves 500] [--questions 100] [--rounds 1]`

A real Jupyter kernel shows the first panel and the comparison of all models, moves their sliders, asks the packaged
model, and says after each round what it holds: anonymous and resident memory, open files, threads. The first round is
the warm-up.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harm
import test_long_use
from quoted import quote


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("moves", 500), ("questions", 100), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    print(f"{'':24}{'seconds':>8}{'anonymous MiB':>15}{'resident MiB':>14}{'files':>7}{'threads':>9}")
    held = []
    with tempfile.TemporaryDirectory() as folder, harm.notebook(Path(folder)) as kernel:
        kernel.run(test_long_use.SETUP + test_long_use.USE)
        cells = [("60 moves", "move(60)"), ("5 questions", "ask(5)")]
        cells += chosen.rounds * [
            (f"{chosen.moves} moves", f"move({chosen.moves})"),
            (f"{chosen.questions} questions", f"ask({chosen.questions})"),
        ]
        for name, cell in cells:
            start = time.monotonic()
            kernel.run(cell, within_s=1000)
            seconds = time.monotonic() - start
            anonymous, resident, files, threads = json.loads(kernel.run("print(held())"))
            memory = f"{anonymous / 2**20:15.1f}{resident / 2**20:14.1f}"
            print(f"{name:24}{seconds:8.1f}{memory}{files:7}{threads:9}", flush=True)
            held.append(anonymous)
    n = chosen.rounds * (chosen.moves + chosen.questions)
    quote("anonymous memory added by moves of sliders and questions", n, (held[-1] - held[1]) / 2**20, unit="MiB")


if __name__ == "__main__":
    main()
