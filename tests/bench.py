"""Every figure that README quotes, in one table, with the command that prints it: runs the `bench_*.py` programs.

    python -m tests.bench [--list] [--only NAME ...] [--all]

A program with a function `rows()` gives its rows itself: (what, n, median, p95, max, unit). Of the others the lines
that README quotes are picked from what they print; where none is named, or none is found, their last lines are shown.
Programs run one after the other, each in a process of its own: leave the computer alone meanwhile.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAST_LINES = 6
OPTIONS = {"bench_panel": ["--no-plain"]}
PICKED = {  # program: (how its line begins, which of the lines that begin so; what the table calls it)
    "bench_memory": [
        ("file x 1.2", 0, "reserved memory by file x 1.2: error"),
        ("file + 2.5 GB", 0, "reserved memory by file + 2.5 GB: error"),
        ("this formula", 0, "reserved memory by this formula: error"),
    ],
    "bench_engine": [
        ("warm engine.reserve", 0, "asking llama.cpp's dry run, a new context each time"),
        ("memory.estimate, every case new", 0, "the formula, every case new"),
    ],
    "bench_gguf": [
        ("helpers.gguf", 0, "reading a header, vocabulary of 49 thousand"),
        ("helpers.gguf", 1, "reading a header, vocabulary of 262 thousand"),
    ],
    "bench_panel": [("server as start.py sets it up, new choices", 0, "key press to repainted page, ms")],
    "bench_runner": [
        ("ratio runner / bare, paired", 0, "streaming through the child / bare loop"),
        ("ratio runner arriving / package, paired", 0, "streaming through the child / package's own"),
    ],
}
NUMBER = r"[-+]?[\d,]+(?:\.\d+)?"
NAMED = re.compile(rf"\bn\s+({NUMBER})\s+median\s+({NUMBER}) (\S+)\s+p95\s+({NUMBER}) \S+\s+max\s+({NUMBER})")


def programs():
    """Name -> path of every bench program."""
    return {path.stem: path for path in sorted(HERE.glob("bench_*.py"))}


def has_rows(path):
    """Whether the program has a function `rows` at its top, without running it."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "rows" for node in body)


def command(name):
    return " ".join(["python", f"tests/{name}.py", *OPTIONS.get(name, [])])


def pick(text, name):
    """The rows that README quotes, from what a program printed; a line that is not there is left out."""
    found, titles = [], []
    lines = text.splitlines()
    for start, number, what in PICKED.get(name, []):
        hits = [i for i, line in enumerate(lines) if line.strip().startswith(start)]
        if len(hits) <= number:
            continue
        i = hits[number]
        named = NAMED.search(lines[i])
        if named:
            n, median, unit, p95, most = named.groups()
            found.append((what, *map(_number, (n, median, p95, most)), unit))
            continue
        titles = next((line.split() for line in reversed(lines[:i]) if "median" in line.split()), [])
        titles = titles[titles.index("n") :] if "n" in titles else []
        values = dict(zip(titles, map(_number, re.findall(NUMBER, lines[i].strip()[len(start) :])), strict=False))
        if {"n", "median"} <= set(values):
            found.append((what, *(values.get(title) for title in ("n", "median", "p95", "max")), ""))
    return found


def _number(text):
    return float(text.replace(",", ""))


def run(name, path):
    """(rows, what it printed, whether it ended well)."""
    if has_rows(path):
        code = (
            f"import sys, json; sys.path.insert(0, {str(HERE)!r}); sys.path.insert(0, {str(HERE.parent)!r})\n"
            f"import {name}\nfound = {name}.rows()\nprint('ROWS', json.dumps(found))"
        )
        asked = [sys.executable, "-c", code]
    else:
        asked = [sys.executable, str(path), *OPTIONS.get(name, [])]
    done = subprocess.run(asked, cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode:
        return [], (done.stderr or done.stdout), False
    *printed, last = done.stdout.splitlines() or [""]
    if last.startswith("ROWS "):
        return [tuple(row) for row in json.loads(last[5:])], "\n".join(printed), True
    return pick(done.stdout, name), done.stdout, True


def table_line(row, of):
    what, n, *values, unit = row
    shown = "".join(f"{'-' if value is None else f'{value:,.4g}':>10}" for value in values)
    return f"{what:<58}{'-' if n is None else f'{n:,.0f}':>7}{shown} {unit:<9} {of}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only say which programs there are")
    parser.add_argument("--only", nargs="+", choices=[name.removeprefix("bench_") for name in programs()])
    parser.add_argument("--all", action="store_true", help="also show everything that the programs print")
    chosen = parser.parse_args()
    wanted = {n: p for n, p in programs().items() if not chosen.only or n.removeprefix("bench_") in chosen.only}
    if chosen.list:
        for name, path in wanted.items():
            how = "rows()" if has_rows(path) else f"{len(PICKED[name])} lines" if name in PICKED else "its last lines"
            print(f"{name.removeprefix('bench_'):<12}{how:<16}{command(name)}")
        return 0
    failed = 0
    print(f"{'':<58}{'n':>7}{'median':>10}{'p95':>10}{'max':>10} {'unit':<9} command", flush=True)
    for name, path in wanted.items():
        found, printed, well = run(name, path)
        failed += not well
        for row in found:
            print(table_line(row, command(name)))
        if chosen.all or not found:
            print(f"--- {command(name)}{'' if well else ' FAILED'}")
            print("\n".join(printed.splitlines()[None if chosen.all else -LAST_LINES :]))
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
