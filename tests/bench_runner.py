"""What does talking to a child process cost? `python tests/bench_runner.py [--rounds 20] [--tokens 128]`

Three ways to the same greedy answer take turns, in random order within every round, each in a process of its own:
a bare loop over llama.cpp's C interface that shows its words to nobody; the package's own streaming completion; and
`helpers.runner`, streaming to this process. Compared are tokens per second after the first token; for the runner also
as they arrive here. All use the same threads and settings; rounds in which other programs took the cores are left out.
"""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quoted import quote, spread

from helpers import download, hardware, runner

PROMPT = (
    "A river rises in the mountains and runs to the sea. On its way it passes a village, a mill and an old stone "
    "bridge. Every spring the miller counts the boats that pass under the bridge and writes the number in a book. One "
    "day a boat came that nobody in the village had seen before. It was"
)
N_CTX = 512


def bare(path, tokens, threads):
    """The least Python that can produce tokens: decode, sample, next."""
    import llama_cpp as lib

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    model_params = lib.llama_model_default_params()
    model_params.use_extra_bufts, model_params.n_gpu_layers = False, 0
    model = lib.llama_model_load_from_file(path.encode(), model_params)
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch, params.flash_attn_type = N_CTX, threads, threads, 1
    context = lib.llama_init_from_model(model, params)
    vocab = lib.llama_model_get_vocab(model)
    sampler = lib.llama_sampler_init_greedy()
    ids = (ctypes.c_int32 * 512)()
    n = lib.llama_tokenize(vocab, PROMPT.encode(), len(PROMPT.encode()), ids, 512, True, True)
    token = (ctypes.c_int32 * 1)()
    batch = lib.llama_batch_get_one(token, 1)
    for _ in sys.stdin:
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        lib.llama_decode(context, lib.llama_batch_get_one(ids, n))
        token[0] = lib.llama_sampler_sample(sampler, context, -1)
        start, made = time.perf_counter(), 1
        while made < tokens and not lib.llama_vocab_is_eog(vocab, token[0]):
            lib.llama_decode(context, batch)
            token[0] = lib.llama_sampler_sample(sampler, context, -1)
            made += 1
        print(json.dumps([(made - 1) / (time.perf_counter() - start), ""]), flush=True)


def package(path, tokens, threads):
    """llama-cpp-python's `create_completion(stream=True)`."""
    import llama_cpp

    default = llama_cpp.llama_cpp.llama_model_default_params

    def plain():
        params = default()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = plain
    llama = llama_cpp.Llama(
        path, n_ctx=N_CTX, n_threads=threads, n_threads_batch=threads, flash_attn=True, n_gpu_layers=0, verbose=False
    )
    for _ in sys.stdin:
        llama.reset()
        times, text = [], ""
        for chunk in llama.create_completion(PROMPT, max_tokens=tokens, temperature=0, repeat_penalty=1.0, stream=True):
            times.append(time.perf_counter())
            text += chunk["choices"][0]["text"]
        times = times[:tokens]  # the last chunk only says why it ended
        print(json.dumps([(len(times) - 1) / (times[-1] - times[0]), text]), flush=True)


class Worker:
    """One of the functions above in a process of its own."""

    def __init__(self, kind, tokens, threads):
        command = [sys.executable, __file__, "--worker", kind, "--tokens", str(tokens), "--threads", str(threads)]
        env = {**os.environ, "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", runner.SPIN_COUNT)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def __call__(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


class Disturbance:
    """The share of all cores that other programs took since the last call; 0 where it cannot be told."""

    def __init__(self, pids):
        self.pids = pids
        self()

    def __call__(self):
        before, self.last = getattr(self, "last", None), self._read()
        if not before:
            return 0.0
        total, busy, own = (now - then for now, then in zip(self.last, before, strict=True))
        return max(0.0, (busy - own) / max(total, 1))

    def _read(self):
        """(ticks of all cores, busy ticks, our own), as Linux counts them."""
        try:
            ticks = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
            own = 0
            for pid in self.pids:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
                own += int(fields[11]) + int(fields[12])
        except OSError:
            return 0, 0, 0
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4], own


def row(name, values, unit=""):
    quote(name, *spread(values), unit=f"{unit}; min {min(values):.3g}".removeprefix("; "))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=int(hardware.detect().cpu_threads))
    parser.add_argument("--disturbed", type=float, default=0.03, help="leave a round out above this share")
    parser.add_argument("--worker", choices=["bare", "package"])
    chosen = parser.parse_args()
    path = str(download.default_model())
    if chosen.worker:
        return {"bare": bare, "package": package}[chosen.worker](path, chosen.tokens, chosen.threads)
    workers = {kind: Worker(kind, chosen.tokens, chosen.threads) for kind in ("bare", "package")}
    model = runner.load(path, n_ctx=N_CTX, n_threads=chosen.threads, progress=False)

    def ours():
        times = []
        answer = model.complete(
            PROMPT, temperature=0, max_tokens=chosen.tokens, stream=lambda piece: times.append(time.perf_counter())
        )
        return answer.tokens_per_second, (len(times) - 1) / (times[-1] - times[0]), answer

    speed = {"bare": [], "package": [], "runner": [], "arriving": []}
    disturbed = 0
    try:
        answer, same = ours()[2], workers["package"]()[1]  # a warm-up, which also shows that both say the same
        workers["bare"]()
        print(f"{answer.prompt_tokens} + {answer.answer_tokens} tokens, {chosen.threads} threads, {Path(path).name}")
        print("same words as the package's own loop:", same == answer.text)
        others = Disturbance([os.getpid(), model._child.pid, *(worker.process.pid for worker in workers.values())])
        while len(speed["bare"]) < chosen.rounds and disturbed < 10 * chosen.rounds:
            kinds = ["bare", "package", "runner"]
            random.shuffle(kinds)
            others()
            found = {kind: ours() if kind == "runner" else workers[kind]() for kind in kinds}
            if others() > chosen.disturbed:
                disturbed += 1
                time.sleep(1)
                continue
            speed["bare"].append(found["bare"][0])
            speed["package"].append(found["package"][0])
            speed["runner"].append(found["runner"][0])
            speed["arriving"].append(found["runner"][1])
    finally:
        for worker in workers.values():
            worker.close()
        model.close()
    print(f"rounds left out, because other programs took over {chosen.disturbed:.0%} of the cores: {disturbed}\n")
    row("bare C loop", speed["bare"], "tokens/s")
    row("package's streaming completion", speed["package"], "tokens/s")
    row("helpers.runner, in the child", speed["runner"], "tokens/s")
    row("helpers.runner, arriving here", speed["arriving"], "tokens/s")
    for name, kind, base in (
        ("ratio runner / bare, paired", "runner", "bare"),
        ("ratio runner arriving / bare, paired", "arriving", "bare"),
        ("ratio runner arriving / package, paired", "arriving", "package"),
    ):
        row(name, [a / b for a, b in zip(speed[kind], speed[base], strict=True)])


if __name__ == "__main__":
    main()
