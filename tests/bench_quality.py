"""What does each quantization of the packaged model cost? `python tests/bench_quality.py [--folder F] [--chunks 8]`

Prints the ladder's table, the time of the first run and of a run from the cache, and how far the order of the rows
agrees with published tables of larger models. With `--program llama-perplexity` (llama.cpp's own, not part of the
kit) it also measures some of the files with that and prints both figures side by side.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quoted import quote, spread

from helpers import hardware, quality, units

PRINTED = {  # our name: how llama-perplexity prints it, and what its figure is to be multiplied with
    "perplexity": (r"Mean PPL\(Q\)\s+: +([-\d.]+)", 1),
    "perplexity_error": (r"Mean PPL\(Q\)\s+:.*± +([-\d.]+)", 1),
    "ln_ratio": (r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s+: +([-\d.]+)", 1),
    "ln_ratio_error": (r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s+:.*± +([-\d.]+)", 1),
    "kld_mean": (r"Mean +KLD: +([-\d.]+)", 1),
    "kld_mean_error": (r"Mean +KLD:.*± +([-\d.]+)", 1),
    "kld_median": (r"Median +KLD: +([-\d.]+)", 1),
    "kld_q99": (r"99.0% +KLD: +([-\d.]+)", 1),
    "top1_agreement": (r"Same top p: +([-\d.]+)", 0.01),
    "rms_dp": (r"RMS Δp +: +([-\d.]+)", 0.01),
    "mean_dp": (r"Mean +Δp: +([-\d.]+)", 0.01),
}


def order(rows, published, key):
    """(pairs in the same order, pairs, the pairs that are not) of two tables, by the divergence they give."""
    theirs = {row.quantization: getattr(row, key) for row in published if getattr(row, key) is not None}
    both = [row for row in rows if row.quantization in theirs]
    pairs = list(itertools.combinations(both, 2))
    differ = [
        (a.quantization, b.quantization)
        for a, b in pairs
        if (a.kld_mean < b.kld_mean) != (theirs[a.quantization] < theirs[b.quantization])
    ]
    return len(pairs) - len(differ), len(pairs), differ


def print_order(rows):
    llama = [row for row in quality.published("Llama-3-8B") if not row.imatrix or row.quantization[0] == "I"]
    tables = (
        ("Llama-3-8B", "kld_mean", llama),
        ("Mistral-7B", "kld_median", quality.published("Mistral-7B")),
    )
    for model, key, published in tables:
        same, n, differ = order(rows, published, key)
        shown = ", ".join(f"{a}/{b}" for a, b in differ) or "none"
        quote(f"pairs in the order published for {model}", n, same, unit=f"pairs; not: {shown}")


def by_program(program, row, folder):
    """What llama-perplexity finds for a file of the ladder, from the same reference scores."""
    (path,) = (quality.cache_folder(folder) / "models").glob(f"*-{row.quantization}-*.gguf")
    (base,) = (quality.cache_folder(folder) / "scores").glob("*.bin")
    threads = str(int(hardware.detect().cpu_threads))
    command = [program, "--no-repack", "-ngl", "0", "-t", threads, "-m", path, "-c", str(quality.N_CTX)]
    command += ["--kl-divergence", "--kl-divergence-base", base]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    return {name: float(re.search(pattern, said)[1]) * factor for name, (pattern, factor) in PRINTED.items()}


def print_programs(program, rows, folder):
    ratios = []
    for row in rows:
        theirs = by_program(program, row, folder)
        print(f"\n{row.quantization}: here, llama-perplexity, ratio")
        for name, value in theirs.items():
            print(f"  {name:<17}{getattr(row, name):>12.6f}{value:>12.6f}{getattr(row, name) / value:>10.4f}")
            ratios.append(getattr(row, name) / value)
    quote("statistics against llama-perplexity: difference", *spread((abs(x - 1) for x in ratios), 100), unit="%")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", help="a cache folder to go on with; default: a new one")
    parser.add_argument("--chunks", type=int, default=quality.MAX_CHUNKS)
    parser.add_argument("--quantizations", nargs="*", default=quality.LADDER)
    parser.add_argument("--program", help="llama-perplexity, to compare with")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", quality.Requantized)
    with tempfile.TemporaryDirectory() as new:
        folder = arguments.folder or new
        again = {"quantizations": arguments.quantizations, "max_chunks": arguments.chunks, "folder": folder}
        start = time.perf_counter()
        found = quality.ladder(**again)
        first_seconds, start = time.perf_counter() - start, time.perf_counter()
        quality.ladder(**again)
        print(found, "\n")
        print(f"front of size against divergence: {', '.join(found.pareto())}")
        cached_seconds = time.perf_counter() - start
        print(f"of the first run, measuring {sum(row.seconds for row in found):.0f} s")
        quote("a ladder of quantizations judged, first run", len(found.rows), first_seconds, unit="s")
        kept = units.show(quality.kept_bytes(folder))
        quote("the same from the cache", len(found.rows), cached_seconds, unit=f"s; it holds {kept}")
        print_order(found.rows)
        if arguments.program:
            rows = [row for row in found if row.quantization in ("Q8_0", "Q4_K_M", "Q2_K")]
            print_programs(arguments.program, rows, folder)


if __name__ == "__main__":
    main()
