"""The formula against figures that other people published: file sizes, and what llama.cpp printed when it loaded.

Run `python tests/bench_published.py`; `-v` lists every case, and every row that was left out with its reason. The rows
are in `tests/published/`, each with its source. Distinct cases count once, however many people published the same.

`file_sizes.csv`: `of` is a model of the catalogue, `change` what differs from it, `kind` whether the header counts.
`loads.jsonl`: `printed` figures in MiB, cut to whole ones where `rounding` is 1; `kv_prints` counts those that add up
to the cache; `left_out` maps a figure to the reason; `shape` is what a log tells of a model that the catalogue lacks.
"""

import argparse
import csv
import functools
import json
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from quoted import quote, spread

from helpers import memory, mixes, models, units
from helpers.architectures import ModelSpec
from helpers.memory import Settings

PUBLISHED = Path(__file__).with_name("published")
# The files that `memory.VOCABULARIES` took a vocabulary from: no test of the header.
GAVE_A_VOCABULARY = {
    ("gemma-2-2b-it", "Q2_K"), ("gpt-oss-20b", "MXFP4"), ("mistral-7b-instruct-v0.1", "Q4_0"), ("ollama yi:9b", "Q4_0"),
}  # fmt: skip
FORK = "ik_llama.cpp"
NOMINAL_BITS = {"F16": 16, "BF16": 16, "MXFP4": 4}  # as rules of thumb count; else the digit in the name
RULES = {
    "file x 1.2": lambda spec, name: 1.2 * memory.file_bytes(spec, name),
    "parameters x bytes x 1.2": lambda spec, name: 1.2 * units.bytes_from_bits(spec.n_params, bits(name)),
    "file + 2.5 GB": lambda spec, name: memory.file_bytes(spec, name) + 2.5 * units.GB,
}


@dataclass(frozen=True)
class Case:
    """One published figure and ours, in bytes; `slack_bytes` is what rounding in print may hide, which is no error."""

    name: str
    ours: float
    theirs: float
    slack_bytes: float = 0

    @property
    def error(self):
        return max(0, abs(self.ours - self.theirs) - self.slack_bytes - 1) / self.theirs

    @property
    def exact(self):
        return self.error == 0


def bits(quantization):
    return NOMINAL_BITS.get(quantization) or int(next(letter for letter in quantization if letter.isdigit()))


# Rows -> models


@functools.cache
def file_rows():
    with (PUBLISHED / "file_sizes.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def load_rows():
    text = (PUBLISHED / "loads.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def spec_of(row):
    """The catalogue's model with the row's changes; or a bare shape, good for the cache only."""
    if row.get("of"):
        change = row.get("change") or {}
        if isinstance(change, str):
            change = {name: int(value) for name, value in (word.split("=") for word in change.split())}
            change |= {"tied": bool(change["tied"])} if "tied" in change else {}
        return replace(models.get(row["of"]), **change)
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in row["shape"].items()}
    heads = shape["n_head_kv"]
    unused = {"n_embd": 4096, "n_ff": 4096, "n_vocab": 32_000, "n_ctx_train": 4096}
    return ModelSpec(name=row["model"], n_head=max(heads) if isinstance(heads, tuple) else heads, **unused, **shape)


def settings_of(row):
    return Settings(**row["settings"])


def loads(fork=False):
    """Distinct loads as (row, times it was published); those of a fork, or all others."""
    found = {}
    for row in load_rows():
        if (row["program"] == FORK) == fork:
            parts = ("of", "change", "shape", "quantization", "settings", "printed") if row["printed"] else ("model",)
            key = json.dumps([row.get(part) for part in parts])
            found.setdefault(key, [row, 0])[1] += 1
    return [(row, times) for row, times in found.values()]


def why_left_out(row, what):
    """The reason why a load's figure is not compared, "" when it is, None when it printed none."""
    printed = row["printed"].get({"kv": "kv_total", "kv_devices": "kv"}.get(what, what))
    return row["left_out"].get(what, None if printed is None else "")


def compared(what, fork=False):
    return [(row, times) for row, times in loads(fork) if why_left_out(row, what) == ""]


def bytes_printed(row, mib):
    """A printed figure in bytes; whole MiB were cut, so half a one is missing on average."""
    return (mib + (0.5 if row["rounding"] == 1 else 0)) * units.MIB


def slack(row, prints=1):
    return prints * row["rounding"] / 2 * units.MIB


# Comparisons


def file_cases(catalogue=None, header=True):
    """Published files of the catalogue's models, of other shapes, or (None) of both; tensors alone, or with header."""
    found = []
    for row in file_rows():
        if row["left_out"] or catalogue is not None and (row["change"] == "") != catalogue:
            continue
        if header and (row["kind"] == "tensors" or (row["model"], row["quantization"]) in GAVE_A_VOCABULARY):
            continue
        spec, quantization = spec_of(row), row["quantization"]
        if row["imatrix"]:
            quantization = mixes.tensor_types(spec, quantization, imatrix=True)
        ours = (memory.file_bytes if header else memory.weights_bytes)(spec, quantization)
        found.append(Case(f"{row['model']} {row['quantization']}", ours, int(row["bytes"])))
    return found


def kv_cases(fork=False):
    found = []
    for row, _ in compared("kv", fork):
        ours = memory.kv_cache_bytes(spec_of(row), settings_of(row))
        theirs = bytes_printed(row, row["printed"]["kv_total"])
        found.append(Case(name_of(row), ours, theirs, slack(row, row["kv_prints"])))
    return found


def kv_device_cases(fork=False, alike=True):
    """The cache on each GPU; of a card alone or cards alike, or of cards that share by their size (free is not known).

    A fork's buffers are padded a little for each layer of a quantized cache.
    """
    found = []
    for row, _ in compared("kv_devices", fork):
        if settings_of(row).n_gpu_layers == 0 or alike != ("tensor_split" not in row["settings"]):
            continue
        ours = memory.kv_by_device(spec_of(row), settings_of(row))
        for device, mib in row["printed"]["kv"].items():
            room = slack(row, row["kv_prints"]) + (0.05 * units.MIB if fork else 0)
            found.append(Case(f"{name_of(row)} {device}", ours.get(device, 0), bytes_printed(row, mib), room))
    return found


@functools.cache
def _estimate(key):
    row = json.loads(key)
    quantization = row["quantization"]
    return memory.estimate(spec_of(row), quantization or units.GB, **row["settings"])  # without a name: not compared


def estimate_of(row):
    return _estimate(json.dumps({name: row.get(name) for name in ("of", "change", "quantization", "settings")}))


def device_cases(part, gpu=None, recent=None):
    """Weights or compute buffer of each device: of GPUs only (`gpu` is True), of hosts beside one (False), of machines
    without one (None). `recent`: only builds like the one this kit pins, or only older ones. A fork's weights are those
    of any other program, its calculation is its own."""
    found = []
    for row, _ in compared(part) + (compared(part, fork=True) if part == "weights" else []):
        if recent is not None and recent != row.get("recent", False):
            continue
        needs = estimate_of(row)
        ours = needs.by_device or {"cpu": needs.parts()}
        for device, mib in row["printed"][part].items():
            side = None if not needs.by_device else device != "cpu"
            if side == gpu:
                theirs = bytes_printed(row, mib)
                found.append(Case(f"{name_of(row)} {device}", ours[device][part], theirs, slack(row)))
    return found


def totals():
    """(row, our bytes, printed bytes): weights, cache, compute and output buffers together, those that were printed."""
    for row, _ in compared("weights"):
        if why_left_out(row, "compute") == "" and why_left_out(row, "kv") == "":
            needs = estimate_of(row)
            devices = needs.by_device or {"cpu": needs.parts()}
            both = [
                (devices[device][part], bytes_printed(row, mib))
                for part in ("weights", "kv", "compute", "output", "repacked")
                for device, mib in row["printed"].get(part, {}).items()
            ]
            yield row, sum(ours for ours, _ in both), sum(theirs for _, theirs in both)
    for row, _ in compared("video_memory"):
        yield row, sum(estimate_of(row).gpu_parts().values()), row["printed"]["video_memory"] * units.MIB


def total_cases(rule=None):
    found = []
    for row, ours, theirs in totals():
        said = RULES[rule](spec_of(row), row["quantization"]) if rule else ours
        found.append(Case(name_of(row), said, theirs))
    return found


def driver_band():
    """(least, most) MiB of a card that its driver took, over the cards that have memory of their own."""
    with (PUBLISHED / "driver_overhead.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["backend"] != "Metal"]
    return min(int(row["least_mib"]) for row in rows), max(int(row["most_mib"]) for row in rows)


# Words


def name_of(row):
    settings = row["settings"]
    words = [row["model"], row.get("quantization", ""), f"{settings.get('n_ctx', 0):,} tokens", row.get("backend", "")]
    if settings.get("n_gpus", 1) > 1:
        words.append(f"x{settings['n_gpus']}")
    return " ".join(filter(None, words))


def line(title, cases, verbose, count_exact=False, in_bytes=False):
    unit = "%"
    if count_exact:
        unit += f"  exact {sum(case.exact for case in cases)} of {len(cases)}"
    if in_bytes:
        unit += f"  median {statistics.median(abs(case.ours - case.theirs) for case in cases):,.0f} B"
    quote(title, *spread((case.error for case in cases), 100), unit=unit)
    if verbose:
        for case in sorted(cases, key=lambda case: -case.error):
            sign = "=" if case.exact else " "
            print(f"    {sign} {100 * case.error:9.4f} %  {case.ours:18,.0f}  {case.theirs:18,.0f}  {case.name}")


def left_out(pairs, verbose):
    """Rows that are not compared: how many for each reason, and with `-v` which."""
    reasons = Counter(reason for _, reason in pairs)
    if reasons:
        print(f"  left out: {len(pairs)} rows")
    for reason, n in reasons.most_common():
        print(f"    {n:3}  {reason}")
        for name, why in pairs:
            if verbose and why == reason:
                print(f"           {name}")


def left_out_files():
    return [(f"{row['model']} {row['quantization']}", row["left_out"]) for row in file_rows() if row["left_out"]]


def left_out_loads(what, fork=False):
    rows = ((name_of(row), why_left_out(row, what)) for row, _ in loads(fork))
    return [(name, reason) for name, reason in rows if reason]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-v", "--verbose", action="store_true", help="list every case and every row left out")
    verbose = parser.parse_args().verbose

    print("Weights against the exact bytes of published files")
    groups = ((True, "models of the catalogue"), (False, "other models, by their shape"), (None, "any model"))
    for catalogue, whose in groups:
        line(f"files of {whose}: tensors alone", file_cases(catalogue, header=False), verbose)
        line(f"files of {whose}: with the header", file_cases(catalogue, header=True), verbose, in_bytes=True)
    left_out(left_out_files(), verbose)

    print("\nKey-value cache against llama.cpp's prints")
    line("KV cache, llama.cpp and programs built on it", kv_cases(), verbose, count_exact=True)
    left_out(left_out_loads("kv"), verbose)
    line(f"KV cache, a fork ({FORK})", kv_cases(fork=True), verbose, count_exact=True)
    left_out(left_out_loads("kv", fork=True), verbose)

    print("\nEach device (no GPU was present here: these are other people's)")
    for where, gpu in (("without a GPU", None), ("on each GPU", True), ("on the host beside GPUs", False)):
        line(f"weights {where}", device_cases("weights", gpu), verbose, count_exact=True)
    for whose, fork in (("", False), (", the fork", True)):
        line(f"cache on each GPU{whose}", kv_device_cases(fork), verbose, count_exact=True)
        unlike = kv_device_cases(fork, alike=False)
        line(f"cache on each GPU, cards of unlike size{whose}", unlike, verbose, count_exact=True)
    line("compute buffer without a GPU, older builds", device_cases("compute"), verbose)
    for where, gpu in (("on each GPU", True), ("on the host beside GPUs", False)):
        line(f"compute buffer {where}, newest", device_cases("compute", gpu, recent=True), verbose)
        line(f"compute buffer {where}, older", device_cases("compute", gpu, recent=False), verbose)
    for what in ("weights", "kv_devices", "compute"):
        print(f"  {what}:")
        left_out(left_out_loads(what), verbose)
    least, most = driver_band()
    taken = memory.GPU_DRIVER_BYTES // units.MIB
    print(f"  driver's share of a card: {least} to {most} MiB published; the formula takes {taken} MiB")

    print("\nTotal memory, the same loads")
    line("total memory, this formula", total_cases(), verbose)
    for rule in RULES:
        line(f"total memory, {rule}", total_cases(rule), verbose)


if __name__ == "__main__":
    main()
