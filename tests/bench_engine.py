"""How long the engine takes to answer, and the closed form.

Run: python tests/bench_engine.py [--runs 200]
"""

import argparse
import dataclasses
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a clone that is not installed

from quoted import quote, spread

from helpers import engine, formats, memory, models


def timed(act, runs):
    """Seconds of each of `runs` calls; `act` gets the number of the run."""
    found = []
    for run in range(runs):
        began = time.perf_counter()
        act(run)
        found.append(time.perf_counter() - began)
    return found


def line(who, times):
    quote(who, *spread(times, 1000), unit="ms")


def first_reserve(_):
    engine.close()
    engine.forget()
    engine.reserve(models.get("llama-3.1-8b"), n_ctx=8192)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    spec = models.get("llama-3.1-8b")
    line("first engine.reserve: the worker starts", timed(first_reserve, 5))

    engine.forget()
    engine.reserve(spec, n_ctx=8192)  # the types of the tensors are asked once for a quantization
    contexts = [256 * (run + 1) for run in range(runs)]
    line(
        "warm engine.reserve, 8B, a new context each time",
        timed(lambda n: engine.reserve(spec, n_ctx=contexts[n]), runs),
    )
    line("the same again, cached", timed(lambda n: engine.reserve(spec, n_ctx=contexts[n]), runs))

    names = list(itertools.islice(itertools.cycle(formats.QUANTIZATIONS), runs))

    def weights(n):
        engine.forget()
        engine.weights_bytes(spec, names[n])

    line("warm engine.weights_bytes, 8B, all quantizations in turn", timed(weights, runs))
    line("engine.weights_bytes, cached", timed(lambda n: engine.weights_bytes(spec, names[-1]), runs))

    cases = list(itertools.product(map(models.get, models.names()), contexts))
    memory.estimate(spec)
    line(
        "memory.estimate, every case new", timed(lambda n: memory.estimate(cases[n][0], n_ctx=cases[n][1]), len(cases))
    )
    line(
        "memory.estimate, the same again", timed(lambda n: memory.estimate(cases[n][0], n_ctx=cases[n][1]), len(cases))
    )
    whole_catalogue()
    engine.close()


def whole_catalogue():
    """60 models x 30 quantizations x 20 contexts x 3 cache types; the catalogue's first models fill up to 60."""
    specs = list(itertools.islice(itertools.cycle(map(models.get, models.names())), 60))
    specs = [dataclasses.replace(spec, name=f"{spec.name} #{n}") for n, spec in enumerate(specs)]
    contexts = [step * 2**power for power in range(10) for step in (256, 384)]
    began = time.process_time()
    totals = memory.grid(specs, list(formats.QUANTIZATIONS)[:30], contexts, ("f16", "q8_0", "q4_0"))
    seconds = time.process_time() - began
    quote("memory.grid, nothing cached: all its estimates, on one core", len(totals), seconds, unit="s")


if __name__ == "__main__":
    main()
