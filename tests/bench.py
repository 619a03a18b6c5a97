"""Every figure that README quotes, in one table, with the command that prints it: runs the `bench_*.py` programs.

    python -m tests.bench [--list] [--only NAME ...] [--all]

Each program marks the lines that README quotes (see quoted.py); this gathers them. Programs run one after the other,
each in a process of its own: leave the computer alone meanwhile, for about an hour.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.quoted import MARK, TITLES

HERE = Path(__file__).resolve().parent
OPTIONS = {"bench_panel": ["--no-plain"], "fuzz_gguf": ["-n", "20000"]}


def programs():
    """Name -> path of every program."""
    paths = [*sorted(HERE.glob("bench_*.py")), HERE / "fuzz_gguf.py"]
    return {path.stem.removeprefix("bench_"): path for path in paths}


def command(path):
    return " ".join(["python", f"tests/{path.name}", *OPTIONS.get(path.stem, [])])


def run(path, show_all):
    """Whether the program ended well; its quoted lines are printed as they come, the others with `show_all`."""
    asked = [sys.executable, "-u", str(path), *OPTIONS.get(path.stem, [])]
    last = []
    with subprocess.Popen(asked, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        for line in child.stdout:
            last = [*last[-5:], line]
            if line.startswith(MARK):
                print(line.removeprefix(MARK), end="", flush=True)
            elif show_all:
                print("    " + line, end="", flush=True)
    if child.returncode:
        print(f"  failed with exit code {child.returncode}:", *last, sep="\n  ", flush=True)
    return child.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only say which programs there are")
    parser.add_argument("--only", nargs="+", choices=[*programs()], metavar="NAME")
    parser.add_argument("--all", action="store_true", help="also show everything else that the programs print")
    chosen = parser.parse_args()
    wanted = {name: path for name, path in programs().items() if not chosen.only or name in chosen.only}
    if chosen.list:
        for name, path in wanted.items():
            print(f"{name:<12}{command(path)}")
        return 0
    print(TITLES)
    failed = []
    for name, path in wanted.items():
        began = time.monotonic()
        print(f"{command(path)}", flush=True)
        if not run(path, chosen.all):
            failed.append(name)
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    if failed:
        print(f"Not all went well: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
