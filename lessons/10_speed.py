# %% [markdown]
# # Speed
#
# - **Promise:** You predict how fast a model answers on a computer, and say what holds it back.
# - **Needs:** 1 GB free
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Work out tokens per second on paper, from bytes and from what the cores add.
# 2. Say what holds a model back: memory, cores, waiting, its context, or too many threads.
# 3. Predict the speed of a model on this computer, measure it, and judge the prediction.
#
# ## Do you remember?
#
# A computer reads 50 GB a second, a model has 5 GB of weights. How many tokens a second is its roof? (Lesson 06: 10,
# because each new token reads every weight once.)
#
# Cells that measure a model need llama-cpp-python and the model that comes with the kit. Without these they are
# skipped, and this lesson predicts for a computer that nobody has measured.

# %%
import sys

from IPython.display import HTML

import helpers
from helpers import check, download, figures_speed, hardware, models, panels, speed
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")

# %% [markdown]
# ## Predict
#
# The kit's model, SmolLM2 135M, is small. You know its roof: bandwidth / bytes. What share of that roof will it reach
# on this computer, in per cent?

# %%
guess = ____
check.predict("10-share", guess, unit="%")

# %% [markdown]
# ## Run
#
# First the roof. Then the model itself: it reads 128 tokens and writes 64, three times over. The middle one of the
# three (the **median**) counts; the slowest and the fastest say how far to trust it.

# %%
machine, small = hardware.detect(), models.get("smollm2-135m")
here, measured = speed.assumed(machine), {}
pipe = speed.bandwidth()
small_bytes = speed.predict(small, "Q4_1", where=here).read_bytes
roof = speed.roofline_tokens_per_second(small_bytes, pipe)
print(f"{pipe.best_bytes_per_s:,} bytes/s / {small_bytes:,} bytes = {roof:.0f} tokens/s")

# %% tags=["model"]
path = download.default_model()
seen = speed.measure(path, n_prompt=128, n_answer=64, repeats=3)
print(seen)
measured[small.title] = seen.answer.median
check.outcome("10-share", round(100 * seen.answer.median / roof), unit="%")

# %% [markdown]
# ## See
#
# A token costs more time than its bytes. What the bandwidth leaves unexplained must be work of the cores, and now we
# know how much that is on this computer. This is called **calibrating**: one short run of one model. From here on the
# speed of any other model is arithmetic. (Without the engine: a computer that nobody has measured, and wide bands.)

# %% tags=["model"]
here = speed.calibration_from(seen, small, "Q4_1", pipe)
for what, value, _ in here.rows():
    print(f"{what:17} {value}")

# %% [markdown]
# Five terms, in seconds a token, and they add up:
#
# - **read weights**: bytes / bandwidth. That is the roof.
# - **unpack weights**: stored numbers become real ones and are multiplied, each weight in a time that depends on its
#   type.
# - **threads wait**: after every operation all threads wait for the slowest one, in each layer again.
# - **choose a token**: look at the score of each entry of the vocabulary.
# - **look back**: at keys and values of all tokens so far.
#
# Each bar below is one token of one model; its pieces are the shares of the five. Which piece is the longest for the
# small models, which for the large ones?

# %%
names = ("smollm2-135m", "gemma-3-1b", "qwen3-30b-a3b", "llama-3.1-8b", "llama-3.1-70b")
specs = [models.get(name) for name in names]
many = {spec.title: speed.predict(spec, "Q4_K_M", where=here) for spec in specs}
HTML(figures_speed.terms_html(many, shares=True))

# %% [markdown]
# ## Why
#
# Each thing that is limited sets a ceiling. **Memory**: as if reading were all. **Cores**: as if the weights came at
# once and had only to be unpacked. Both fall: twice the weights, half the speed. **Waiting** is different: it counts
# operations, not bytes, so it is nearly level. A model lives below the lowest ceiling, and near it where the others are
# far away.

# %%
HTML(figures_speed.ceilings_html(many, measured))

# %% [markdown]
# Now the same models on a graphics card: an RTX 4090, by the bandwidth of its data sheet (published; nobody measured it
# for this lesson, and the share of it that is reached is an assumption, so the bands are wide). The memory's ceiling
# moved up; the waiting, here for each layer to be started, did not follow. Where the two lines cross, the rule changes:
# to the left of it a faster card brings next to nothing.


# %%
def card(name):
    """What `speed.predict` takes for a graphics card of the table that holds all layers."""
    _, bytes_per_s, source = speed.known_bandwidth(name)
    return {"where": here, "n_gpu_layers": -1, "gpu_bytes_per_s": bytes_per_s}


cards = {spec.title: speed.predict(spec, "Q4_K_M", **card("RTX 4090")) for spec in specs}
HTML(figures_speed.ceilings_html(cards))

# %% [markdown]
# Fewer bits help as far as memory rules. The cores have as many weights to unpack as before:

# %%
for spec in (small, models.get("llama-3.1-8b")):
    for quantization in ("F16", "Q8_0", "Q4_K_M", "Q2_K"):
        found = speed.predict(spec, quantization, where=here)
        said = f"{found.read_bytes / 1e9:6.2f} GB a token: {found.answer}"
        print(f"{spec.title:13} {quantization:7}{said}, most of it: {found.rules}")

# %% [markdown]
# ## Predict
#
# llama.cpp shares each operation out among threads, as many as it is told. If it takes four times as many as this
# computer gives you, how many times as fast is the answer? (1: just as fast. Below 1: slower.)

# %%
guess = ____
check.predict("10-threads", guess, unit="x")

# %% [markdown]
# ## Run
#
# The same short answer with one thread, with more, and with more than one may use here. (Without the engine: skipped.)

# %% tags=["model"]
found = speed.sweep_threads(n_prompt=16, n_answer=16, repeats=2, seconds=3)
sweep = {one.n_threads: one.answer for one in found}
HTML(figures_speed.threads_html(sweep, machine.cpu_threads))

# %% [markdown]
# ## See

# %% tags=["model"]
allowed = max(n for n in sweep if n <= machine.cpu_threads)
check.outcome("10-threads", sweep[max(sweep)].median / sweep[allowed].median, unit="x")

# %% [markdown]
# ## Why
#
# A thread without a core waits for its turn, and at the end of the operation all others wait for it, operation after
# operation, layer after layer. So the answer does not become a little slower, it falls. (While other programs
# work hard, even the allowed threads have no core of their own, and all bars look alike: try again later.)
#
# It happens without anybody's mistake. In containers and on course servers a program sees all cores of the computer and
# may use a few of them. The kit asks what it may use (lesson 06). Some programs count what they see; then set the
# number of threads yourself.

# %% [markdown]
# ## Predict
#
# Before it answers, a model reads your prompt: the same weights, the same layers. How many times as many tokens a
# second does it read as it writes?

# %%
guess = ____
check.predict("10-prompt", guess, unit="x")

# %% [markdown]
# ## Run

# %% tags=["model"]
print(f"prompt {seen.prompt}")
print(f"answer {seen.answer}")
check.outcome("10-prompt", round(seen.prompt.median / seen.answer.median, 1), unit="x")

# %% [markdown]
# ## Why
#
# All tokens of a prompt are known. So they go through a layer together, up to 512 at a time, and a weight that was
# fetched and unpacked once serves them all. What is left is arithmetic. **The prompt is bound by arithmetic, the answer
# by getting at the weights.** An answer cannot do the same: each of its tokens must be known before the next begins.
#
# Hence the two waits of every chat: a pause before the first word (prompt), then words in a steady stream (answer). A
# graphics card shortens both, but not by the same factor.

# %% [markdown]
# ## Try
#
# Three jobs. (Whether it fits is lesson 07's question; this panel asks only how fast.)
#
# 1. Llama 3.1 8B: from which context on does a token take twice as long as in an empty one?
# 2. Choose the graphics card. What has become of "unpack", and what of that context?
# 3. Still the card: find a model whose threads wait longer than they read.

# %%
computers = {"this computer": {"where": here}, "RTX 4090": card("RTX 4090")}
panels.speed_panel(computers)

# %% [markdown]
# The same without a panel, and with more cards and chips. The figures of these are formulas over published bandwidths.

# %%
llama = models.get("llama-3.1-8b")
for so_far in (1, 2048, 8192, 32768):
    there = speed.predict(llama, "Q4_K_M", 0, n_prompt=so_far, **card("RTX 4090"))
    found = speed.predict(llama, "Q4_K_M", 0, here, n_prompt=so_far)
    both = [figures_speed.band_text(each.answer) for each in (found, there)]
    print(f"{so_far:6,} tokens so far: here {both[0]}, RTX 4090 {both[1]} tokens/s")

# %%
chips = ("RTX 3060", "RTX 4060", "RTX 4090", "RX 7900 XTX", "Apple M2", "Apple M4 Pro")
rows = {chip: speed.predict(llama, "Q4_K_M", **card(chip)) for chip in chips}
HTML(figures_speed.bands_html(rows, title="Llama 3.1 8B Q4_K_M, all layers there (formula)"))

# %% [markdown]
# ## Exercise 1
#
# On paper: a model has 4 GB of weights, the memory brings 40 GB a second, and the cores add 25 milliseconds to each
# token. How many tokens a second?

# %%
# stub
answer = ____
# solution
answer = 1 / (4 / 40 + 0.025)
# end solution
top = speed.roofline_tokens_per_second(4e9, 40e9)
expected = 1 / (1 / top + 0.025)
ideas = {
    "memory alone: that is the roof": top,
    "the cores alone": 1 / 0.025,
    "speeds are added; it is the times that add up": top + 1 / 0.025,
    "seconds a token instead of tokens a second": 1 / expected,
}
hints = ("How long does one token take?", "4 / 40 s and 0.025 s, one after the other.")
check.number("10-paper", answer, expected, "tokens/s", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# In a small model a token takes 3 ms to read the weights, and 6 ms for all the rest. You buy memory of twice the
# bandwidth. How many times as fast does it answer?

# %%
# stub
answer = ____
# solution
answer = (3 + 6) / (3 / 2 + 6)
# end solution
expected = (3 + 6) / (3 / 2 + 6)
ideas = {
    "twice the bandwidth, twice the speed": 2,
    "bandwidth does nothing for small models": 1,
    "the rest became faster, not the reading": (3 + 6) / (3 + 6 / 2),
}
hints = ("Which of the two parts becomes shorter?", "Before: 9 ms. After: 1.5 ms + 6 ms.")
check.number("10-twice", answer, expected, "x", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: you give Qwen3 4B at Q4_K_M a text of 1,000 tokens, and it answers with 300. How many
# seconds until the last word? Take the likeliest speeds that the cell prints.

# %%
qwen = models.get("qwen3-4b")
own = speed.predict(qwen, "Q4_K_M", 2048, here, n_prompt=1000, n_answer=300)
reads, writes = own.prompt.likely, own.answer.likely
print(f"reads {reads:.2f} tokens/s, writes {writes:.2f} tokens/s")

# %%
# stub
answer = ____
# solution
answer = 1000 / reads + 300 / writes
# end solution
expected = 1000 / own.prompt.likely + 300 / own.answer.likely
ideas = {
    "the prompt is read in no time": 300 / writes,
    "the answer is written in no time": 1000 / reads,
    "a prompt is read as slowly as an answer is written": 1300 / writes,
    "speeds are added; it is the times that add up": 1300 / (reads + writes),
}
hints = ("Two waits, one after the other.", "1000 / reads, and 300 / writes.")
check.number("10-own", answer, expected, "s", ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# Predict, measure, divide. The same model, quantized in another way: llama.cpp makes the copies here (into a folder
# that is thrown away; a second quantization costs quality, which does not matter now). They were not used to calibrate.

# %% tags=["model"]
import tempfile
import warnings
from pathlib import Path

from helpers import gguf, quality

foreseen, reached = {}, {}

# %% tags=["model"]
with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a copy of a copy: see lesson 09
    for kind in ("Q8_0", "Q2_K"):
        copy = quality.requantize(path, kind, out=Path(folder, f"{kind}.gguf"), progress=False)
        types = gguf.read_header(copy).tensor_types
        foreseen[kind] = speed.predict(small, types, 0, here, n_answer=32)
        reached[kind] = speed.measure(copy, n_answer=32, repeats=3).answer
        ratio = foreseen[kind].answer.likely / reached[kind].median
        print(f"{kind}: predicted / measured = {ratio:.2f}")

# %% tags=["model"]
HTML(figures_speed.bands_html(foreseen, reached, title="SmolLM2 135M, quantized again"))

# %% [markdown]
# Was it inside the band? If not, run the measurement once more before you blame the formula: another program, a warm
# laptop or a neighbour on the same server moves a measured speed by a quarter within minutes. That is what the band is
# for, and why a single number of tokens per second says little.

# %% [markdown]
# ## Recap
#
# - You worked out tokens per second on paper, from bytes and from what the cores add.
# - You said what holds a model back: memory, cores, waiting, its context, or too many threads.
# - You predicted the speed of a model on this computer, measured it, and judged the prediction.
#
# Words: bandwidth, roofline, tokens per second, calibration, thread, median ([glossary](../lessons/glossary.md)).
#
# Next: [Choose a model](11_choose_a_model.ipynb)
