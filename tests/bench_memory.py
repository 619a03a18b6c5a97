"""How far the closed form is from llama.cpp's own dry run, and how far rules of thumb are on the same cases.

Run: python tests/bench_memory.py [--random 60]
"""

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a clone that is not installed

from quoted import quote, spread
from shapes import CONTEXTS, grid, random_cases

from helpers import engine, formats, memory, models, units
from helpers.architectures import FAMILIES

QUANTIZATION = "Q4_K_M"
PRINTED = 0.005 * units.MIB  # llama.cpp prints MiB with two digits
PARTS = ("kv_bytes", "compute_bytes", "reserved_bytes")
RULES = {
    "file x 1.2": lambda spec, weights: 1.2 * weights,
    "params x bits / 8 x 1.2": lambda spec, weights: 1.2 * units.bytes_from_bits(spec.n_params, nominal_bits()),
    "file + 2.5 GB": lambda spec, weights: weights + 2.5 * units.GB,
}


def nominal_bits():
    """The digit in the name, as the rule has it: 4 for Q4_K_M."""
    return int(formats.quantization(QUANTIZATION).base[1])


def catalogue():
    """The catalogue at all settings."""
    return [(spec, settings) for spec in map(models.get, models.names()) for settings in grid(spec)]


def other_settings():
    """One output only, and four slots with one cache or with four, for the same models."""
    changes = (
        {"n_outputs_max": 1},
        {"n_parallel": 4},
        {"n_parallel": 4, "n_outputs_max": 4},
        {"n_parallel": 4, "n_outputs_max": 4, "kv_unified": True},
    )
    for name, n_ctx, flash_attn, change in itertools.product(models.names(), CONTEXTS, (True, False), changes):
        yield models.get(name), {"n_ctx": n_ctx, "flash_attn": flash_attn, **change}


def held_out(n):
    """Shapes of no published model at settings of all kinds; the form was not derived from them."""
    return [case for family in FAMILIES for case in random_cases(n, seed=2026, family=family)]


def ask(cases):
    """[(spec, formula, engine)] for every case."""
    return [
        (spec, memory.estimate(spec, QUANTIZATION, **settings), engine.reserve(spec, QUANTIZATION, **settings))
        for spec, settings in cases
    ]


def errors(answers, part):
    return [abs(getattr(ours, part) / getattr(theirs, part) - 1) for _, ours, theirs in answers]


def line(who, found):
    n, *shown = spread(found, 100)
    print(f"    {who:<26} n {n:4}  median {shown[0]:9.4f} %  p95 {shown[1]:9.4f} %  max {shown[2]:9.4f} %")


def family_of(spec):
    return f"{spec.architecture}, experts" if spec.n_expert else spec.architecture


def table(title, answers):
    print(f"\n{title}: error of the formula against the engine")
    for part in PARTS:
        print(f"  {'total (reserved)' if part == 'reserved_bytes' else part.removesuffix('_bytes')}")
        for family in sorted({family_of(spec) for spec, _, _ in answers}):
            line(family, errors([answer for answer in answers if family_of(answer[0]) == family], part))
        quote(f"{title.lower()}, {part.removesuffix('_bytes')}: error", *spread(errors(answers, part), 100), unit="%")
    for part, prints in (
        ("kv_bytes", 4),
        ("compute_bytes", 1),
    ):  # K and V, each for two caches when layers are windowed
        worst = max(abs(getattr(ours, part) - getattr(theirs, part)) for _, ours, theirs in answers)
        most = int(prints * PRINTED)
        name = part.removesuffix("_bytes")
        print(f"  largest difference of {name}: {worst:,} B (llama.cpp's rounding when it prints: up to {most:,} B)")


def rules(answers):
    print("\nRules of thumb on the same cases: error against the engine's total")
    for name, rule in RULES.items():
        said = [(rule(spec, ours.weights_bytes), theirs.reserved_bytes) for spec, ours, theirs in answers]
        found = [abs(rule_bytes / n_bytes - 1) for rule_bytes, n_bytes in said]
        quote(f"catalogue, reserved by {name}: error", *spread(found, 100), unit="%")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=60, help="held-out shapes per family")
    n_random = parser.parse_args().random
    print(f"{len(models.names())} models at {QUANTIZATION}")
    answers = ask(catalogue())
    table("Catalogue", answers)
    rules(answers)
    table("Catalogue, one output or four slots", ask(other_settings()))
    table("Held-out random shapes and settings", ask(held_out(n_random)))


if __name__ == "__main__":
    main()
