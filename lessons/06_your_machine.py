# %% [markdown]
# # Your machine
#
# - **Promise:** You say what memory is really free here, how fast it is, and how fast a model can be at most.
# - **Needs:** nothing
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Tell memory that is free from memory that only looks full.
# 2. Measure the bandwidth of this computer's memory.
# 3. Draw the roofline and read a model's highest speed from it.
#
# ## Do you remember?
#
# When does llama.cpp take the memory for the KV cache: while you type, or when it loads the model? (Lesson 05: all of
# it at once, when it loads the model. So it must be free at that moment.)

# %%
import sys
import tempfile
from pathlib import Path

from IPython.display import HTML

import helpers
from helpers import check, figures_machine, fit, hardware, memory, models, speed, units
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")

# %% [markdown]
# ## Predict
#
# How much of this computer's memory is in use right now, in per cent?

# %%
guess = ____
check.predict("06-used", guess, unit="%")

# %% [markdown]
# ## Run

# %%
machine = hardware.detect()
machine

# %% [markdown]
# ## See
#
# The strip is as long as the memory that a program may use here. The hatched part holds copies of files. It is a split
# that Linux shows; elsewhere the kit cannot see it, and the whole free part is drawn as empty.


# %%
def memory_now():
    """Bytes of free memory, and how much of it is empty (the rest: copies of files)."""
    available = hardware.detect().ram_available_bytes
    path = Path("/proc/meminfo")
    if not path.exists():
        return available, available
    rows = dict(line.split(":") for line in path.read_text(encoding="utf-8").splitlines())
    return available, min(int(rows["MemFree"].split()[0]) * units.KIB, available)


available, empty = memory_now()
HTML(figures_machine.machine_html(machine, file_cache_bytes=available - empty))

# %%
used = machine.ram_total_bytes - machine.ram_available_bytes
check.outcome("06-used", 100 * used / machine.ram_total_bytes, unit="%")

# %% [markdown]
# ## Why
#
# A system does not like empty memory. When a program reads or writes a file, the system keeps a copy in memory, in case
# somebody wants it again: the **file cache**. It looks full, but it is free: when a program needs the room, the copies
# are dropped. Watch it: the next cell writes a file of 256 MiB.

# %%
with tempfile.TemporaryDirectory() as folder:
    before = memory_now()
    path = Path(folder, "big.bin")
    path.write_bytes(bytes(256 * units.MIB))
    after = memory_now()
for name, old, new in zip(("free ", "empty"), before, after, strict=True):
    print(f"{name}: {units.show(old, 2)} before, {units.show(new, 2)} after")

# %% [markdown]
# On Linux the empty memory goes down by about the size of the file, while the free memory hardly moves (other programs
# move it a little). So there are two wrong ways to read a task manager: to count the file cache as used, and to count
# all memory as free.
#
# A model file is a file. llama.cpp maps it (**mmap**): its weights *are* file cache, and the rest of the process is
# ordinary memory that cannot be dropped. (Skipped without llama-cpp-python.)

# %% tags=["model"]
from helpers import download, runner

with runner.load(download.default_model(), n_ctx=2048, progress=False) as model:
    held = model.memory()
    answer_here = model.ask("Tell me about the sea.", max_tokens=64, stream=False)
print(held)

# %% [markdown]
# If the weights have to be dropped while the model answers, they are read from the disk again, for every token. Then a
# model does not fail; it crawls.
#
# Other memories, other rules:
#
# - **VRAM** is the memory of a graphics card: faster, and usually smaller. It does not add to the RAM; a layer is in
#   one or in the other.
# - **Unified memory**, as in Macs with Apple's own chips, is one memory for processor and graphics. It counts once.
# - **Containers** and course servers set a limit below the hardware. Then the limit counts, and a program that goes
#   above it is ended without a warning.
#
# Two machines that are not here: a laptop with a card, beside what a model would take; and this computer, if a server
# allowed only 2 GiB.

# %%
gib = units.GIB
laptop = hardware.Machine.pretend("laptop", 6 * gib, 16 * gib, vram_bytes=4 * gib)
llama = models.get("llama-3.1-8b")
needs = memory.estimate(llama, "Q4_K_M", n_ctx=4096)
title = "The memory of the laptop that is not here"
HTML(figures_machine.machine_html(laptop, needs_bytes=needs.total_bytes, title=title))

# %%
limited = hardware.detect(env={"MEM_LIMIT": str(2 * units.GIB)})
for what, value, source in limited.rows()[:3]:
    print(f"{what:25} {value:>9}  ({source})")
print(fit.judge(needs, limited).sentence)

# %% [markdown]
# ## Predict
#
# Now the speed of the memory. For each new token the processor reads every weight once, so what counts is
# **bandwidth**: how many bytes arrive in a second. How many GB per second does this computer read?

# %%
guess = ____
check.predict("06-bandwidth", guess, unit="GB/s")

# %% [markdown]
# ## Run
#
# Three ways to keep the memory busy, half a second each: read (add up an array), copy (read one, write one), triad
# (read two, write one).

# %%
found = speed.bandwidth()
print(found)

# %% [markdown]
# ## See

# %%
check.outcome("06-bandwidth", round(found.best_bytes_per_s / units.GB, 1), unit="GB/s")

# %%
for threads in range(1, min(found.threads, 4) + 1):
    some = speed.bandwidth(threads=threads, seconds=0.5)
    print(f"threads: {threads}, read {units.show_decimal(some.read_bytes_per_s, 1)}/s")

# %% [markdown]
# ## Why
#
# All cores drink from one pipe. Once it is full, more threads bring nothing. Run the measurement again and you get
# another number: other programs, and on a server other people, use the same pipe. It is a photograph.

# %% [markdown]
# ## Predict
#
# Llama 3.1 8B at Q4_K_M has 4.9 GB of weights, and every token reads nearly all of them. How many tokens a second can
# it write on this computer at most?

# %%
guess = ____
check.predict("06-roof", guess, unit="tokens/s")

# %% [markdown]
# ## Run

# %%
top = speed.roofline_tokens_per_second(needs.weights_bytes, found)
pipe = units.show_decimal(found.best_bytes_per_s, 1)
each = units.show_decimal(needs.weights_bytes)
print(f"{pipe} a second / {each} a token = {top:.1f} tokens/s")
check.outcome("06-roof", round(top, 1), unit="tokens/s")

# %% [markdown]
# ## See
#
# The same division for other models, both axes in steps of equal factors. The line is the roof: no model comes above it
# while it answers one person. The table has the same numbers. ("Nearly all" is counted exactly here: of the table of
# word pieces at the beginning a token reads one row only. So Llama 3.1 8B stands at 4.62 GB and a little higher.)

# %%
names = {
    "smollm2-135m": "Q4_1",
    "gemma-3-1b": "Q4_K_M",
    "qwen3-30b-a3b": "Q4_K_M",
    "llama-3.1-8b": "Q4_K_M",
    "llama-3.1-70b": "Q4_K_M",
}
rows = []
for name, quantization in names.items():
    estimate = memory.estimate(models.get(name), quantization)
    rows.append((models.get(name).title, fit.active_bytes(estimate)))
HTML(figures_machine.roofline_html(rows, found))

# %% [markdown]
# ## Why
#
# Half the bytes, twice the speed: that is what quantization buys besides memory. And one model stands in a place that
# its name does not suggest: Qwen3 30B A3B has 30 billion weights, but it is a mixture of experts, and each token reads
# only some of them. It needs the memory of a large model and has the speed of a small one.

# %%
mixed = memory.estimate(models.get("qwen3-30b-a3b"), "Q4_K_M")
print(f"in memory {units.show_decimal(mixed.weights_bytes)}", end=", ")
print(f"read for each token {units.show_decimal(fit.active_bytes(mixed))}")

# %% [markdown]
# ## Try
#
# A job: find the slowest memory at which Llama 3.1 8B could write 10 tokens a second. Change `wanted` and the
# quantization and run the cell again. Which costs less: faster memory, or fewer bits?

# %%
wanted, pipes = 10, (25, 50, 100, 400, 1000)
print("GB/s   ", *(f"{pipe:6}" for pipe in pipes))
for quantization in ("F16", "Q8_0", "Q4_K_M", "Q2_K"):
    n_bytes = memory.weights_bytes(llama, quantization)
    roofs = [speed.roofline_tokens_per_second(n_bytes, pipe * units.GB) for pipe in pipes]
    least = units.show_decimal(wanted * n_bytes, 0)
    shown = " ".join(f"{roof:6.1f}" for roof in roofs)
    print(f"{quantization:7} {shown} tokens/s; {wanted} of them need {least}/s")

# %% [markdown]
# ## Exercise 1
#
# A laptop reads 50 GB a second. A model has 5 GB of weights, and each token reads them all. How many tokens a second is
# the roof?

# %%
# stub
answer = ____
# solution
answer = 50 / 5
# end solution
expected = speed.roofline_tokens_per_second(5 * units.GB, 50 * units.GB)
ideas = {
    "bits where bytes are meant": units.BITS_PER_BYTE * expected,
    "seconds a token instead of tokens a second": 1 / expected,
    "one token reads the weights twice": expected / 2,
    "multiplied where one has to divide": 50 * 5,
}
hints = ("How long does it take to read 5 GB?", "bandwidth / bytes of weights")
check.number("06-laptop", answer, expected, "tokens/s", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# A computer has 8 GiB. Programs use 2 GiB, the file cache holds 5 GiB, and 1 GiB is empty. Does Llama 3.1 8B at Q4_K_M
# with 2,048 tokens fit: `"yes"`, `"no"`, or `"after emptying"` (somebody must empty the file cache by hand first)?

# %%
full = hardware.Machine.pretend("full of files", (5 + 1) * units.GIB, 8 * units.GIB)
verdict = fit.judge(memory.estimate(llama, "Q4_K_M", n_ctx=2048), full)
right = "yes" if verdict.status in ("fits", "tight") else "no"
# stub
answer = ____
# solution
answer = "yes"
# end solution
ideas = {
    "no": "only empty memory is free",
    "after emptying": "the file cache stays until somebody clears it",
}
hints = ("What does the system do with copies of files when a program needs room?",)
check.choice("06-full", answer, right, ideas=ideas, hints=hints, why=verdict.sentence)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: what is the roof of Qwen3 8B at Q4_K_M here, in tokens a second? The cell prints the two
# numbers that you need. (5 % off is close enough.)

# %%
qwen_bytes = memory.weights_bytes(models.get("qwen3-8b"), "Q4_K_M")
print(f"{qwen_bytes:,} bytes of weights, {found.best_bytes_per_s:,} bytes a second")
# stub
answer = ____
# solution
answer = found.best_bytes_per_s / qwen_bytes
# end solution
expected = speed.roofline_tokens_per_second(qwen_bytes, found)
ideas = {
    "seconds a token instead of tokens a second": 1 / expected,
    "one byte for each weight": found.best_bytes_per_s / models.get("qwen3-8b").n_params,
}
hints = ("bandwidth / bytes of weights", "Divide the second number by the first.")
check.number("06-own", answer, expected, "tokens/s", tolerance=0.05, ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# The packaged model has answered above. How close did it come to its roof? (Skipped without llama-cpp-python.)

# %% tags=["model"]
reached = answer_here.tokens_per_second
top = speed.roofline_tokens_per_second(rows[0][1], found)
print(f"roof {top:.0f} tokens/s, measured {reached:.0f} tokens/s")
print(f"measured / roof = {reached / top:.2f}")

# %% tags=["model"]
HTML(figures_machine.roofline_html(rows, found, {rows[0][0]: reached}))

# %% [markdown]
# A roof is no forecast. Where this was written the small model reached about a quarter of it (80 tokens a second of
# 316 by bandwidth), and less after a long text: reading the weights is only one of the things a token waits for. Their
# packed numbers have to be unpacked, the text so far is looked back at, and threads wait for each other. Lesson 10
# takes the gap apart and predicts it.

# %% [markdown]
# ## Recap
#
# - You told memory that is free from memory that only looks full.
# - You measured the bandwidth of this computer's memory.
# - You drew the roofline and read a model's highest speed from it.
#
# Words: RAM, VRAM, unified memory, mmap, resident memory, bandwidth, roofline ([glossary](../lessons/glossary.md)).
#
# Next: [Will it fit?](07_will_it_fit.ipynb)
