# %% [markdown]
# # Blocks
#
# - **Promise:** You rebuild the bytes of a real quantized model, and say why "4 bits" are 4.5 or more.
# - **Needs:** nothing
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Say why Q4_0 has 4.5 bits a weight and not 4.
# 2. Rebuild Q8_0, Q4_0 and Q4_1 byte for byte on real weights.
# 3. Read a super-block, and explain why the "Q2_K" of a small model has more than 5 bits.
#
# ## Do you remember?
#
# What does one outlier do to the others, when all weights share a scale? (Lesson 02: the scale follows the outlier, and
# the others become 0.)

# %%
import sys
from collections import Counter

import numpy as np
from IPython.display import HTML

import helpers
from helpers import check, figures_numbers, formats, hardware, panels_numbers, quant, units
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}, numpy {np.__version__}")

# %% [markdown]
# ## Predict
#
# The cure: cut the row into **blocks** of 32 weights, and give each block a scale of its own, stored in FP16. The
# weights have 4 bits. How many bits does a weight take in all?

# %%
guess = ____
check.predict("03-bits", guess, unit="bits")

# %% [markdown]
# ## Run

# %%
q4_0 = formats.block_type("Q4_0")
print(f"32 weights x 4 bits + 16 bits of scale = {32 * 4 + 16} bits for 32 weights")
n_bytes, length = q4_0.block_bytes, q4_0.block_length
print(f"{n_bytes} bytes x 8 / {length} weights = {q4_0.bits_per_weight} bits a weight")
check.outcome("03-bits", q4_0.bits_per_weight, unit="bits")

# %% [markdown]
# ## See
#
# Three types of ggml, the library in llama.cpp that computes. The bars are as long as the bits of one weight. Q8_0 and
# Q4_0 keep a scale (s) for each block, Q4_1 a scale and an offset (o).

# %%
names = ("Q8_0", "Q4_1", "Q4_0")
HTML(figures_numbers.layout_html({name: quant.layout(name) for name in names}))

# %% [markdown]
# ## Why
#
# The number in a name is the bits of the weights alone. The scale costs 16 bits, shared by 32 weights: half a bit each.
# That buys safety: an outlier now spoils the 31 weights beside it, and no others.

# %%
row = np.random.default_rng(0).normal(0, 0.02, 1024)
row[0] = 1.0
one_scale, blocks = quant.symmetric(row, 4).weights(), quant.in_blocks(row, 32, 4)
for name, back in (("one scale for 1,024 weights", one_scale), ("blocks of 32", blocks)):
    zeros = (back == 0).mean()
    print(f"{name:27}: {zeros:6.1%} come back as 0; {quant.error(row, back)}")

# %% [markdown]
# See it happen to the second block, which has no outlier. Above it uses the scale of the whole row, below a scale of
# its own. The weights and the axis are the same, only the levels differ: above, all but one lie far outside.

# %%
block = row[32:64]
whole, own = quant.symmetric(block, 4, limit=np.abs(row).max()), quant.symmetric(block, 4)
for name, squeezed in (("whole row", whole), ("its own", own)):
    print(f"scale of {name:9}: {quant.error(block, squeezed.weights())}")
ends = own.levels[0], own.levels[-1]
above = figures_numbers.levels_svg(block, whole, names=("weights", "whole row"), ends=ends)
HTML(above + figures_numbers.levels_svg(block, own, names=("weights", "its own"), ends=ends))

# %% [markdown]
# ## Try
#
# How long should a block be? The bars show what a block costs, the picture below them what it does: eight weights that
# lie near the largest one of the row. Three jobs, at 4 bits:
#
# 1. Go from 8 to 16, 32 and 64 weights, and watch the levels. Where does the outlier come in, and what becomes of the
#    eight?
# 2. Find the shortest block that needs no more than 4.25 bits a weight. How many dB does it cost against 32?
# 3. Which do you prefer: 4 bits in blocks of 8, or 5 bits in blocks of 32? Look at the bits *and* at the SNR.

# %%
heavy = 0.02 * np.random.default_rng(3).standard_t(4, 4096)
panels_numbers.block_panel(heavy, bits=4)

# %% [markdown]
# The same numbers without a panel:

# %%
for bits, length in ((4, 8), (4, 16), (4, 32), (4, 64), (4, 128), (4, 256), (5, 32)):
    cost = quant.bits_per_weight(length, bits)
    snr = quant.error(heavy, quant.in_blocks(heavy, length, bits)).snr_db
    print(f"{bits} bits, blocks of {length:3}: {cost:.4f} bits a weight, SNR {snr:.1f} dB")

# %% [markdown]
# ## A block, byte by byte
#
# Q4_0 has a trick: its integers go from -8 to 7. The weight of the largest size becomes -8, whatever its sign: the
# scale takes the sign over. So all 16 levels are used. Two weights share a byte.

# %%
weights = np.linspace(-0.31, 0.29, 32)
raw = quant.quantize("Q4_0", weights)
scales, integers, _ = quant.unpack("Q4_0", raw)
print("18 bytes:", raw.tobytes().hex(" "))
print(f"scale, from the first two bytes: {scales[0, 0]:.6f}")
print("integers:", *integers[0])
print("the first weight:", weights[0], "comes back as", scales[0, 0] * integers[0, 0])

# %% [markdown]
# ## Predict
#
# Now a real model: the one that the kit brings. We read some of its weights, quantize them with the few lines of
# `helpers/quant.py`, and again with the `gguf` package of llama.cpp's own authors. How many per cent of the bytes will
# differ?

# %%
guess = ____
check.predict("03-differ", guess, unit="%")

# %% [markdown]
# ## Run
#
# This part needs the model file (not the engine). Where it is missing, read on with "K-quants".

# %% tags=["model"]
from helpers import download, gguf

path = download.default_model()
rows = quant.read_rows(path, "token_embd.weight", n_rows=256)
print(rows)
real = rows.weights()
print("the first six weights:", *real[0, :6].round(4))

# %% tags=["model"]
from gguf import GGMLQuantizationType, quants

differ = total = 0
for name in ("Q8_0", "Q4_1", "Q4_0"):
    ours = quant.quantize(name, real)
    wrong = (ours != quants.quantize(real, GGMLQuantizationType[name])).sum()
    differ, total = differ + wrong, total + ours.size
    snr = quant.error(real, quant.dequantize(name, ours)).snr_db
    print(f"{name}: {ours.size:,} bytes, {wrong} of them differ, SNR {snr:.1f} dB")
check.outcome("03-differ", 100 * differ / total, unit="%")

# %% [markdown]
# ## See
#
# And the other way: a tensor that the makers of the file quantized to Q4_1. Take its bytes apart, and put them
# together again.

# %% tags=["model"]
stored = quant.read_rows(path, "blk.0.ffn_down.weight", n_rows=256)
back = stored.weights()
theirs = quants.dequantize(stored.raw, GGMLQuantizationType.Q4_1)
print("weights that differ from theirs:", (back != theirs).sum(), "of", back.size)
again = quant.quantize("Q4_1", back)
print("bytes that differ when packed again:", (again != stored.raw).sum(), "of", again.size)

# %% [markdown]
# ## Why
#
# There is no secret in the file: a scale, sometimes an offset, and small integers. Q8_0 loses nothing above because the
# file holds these weights in Q8_0 already: what was rounded once is on a level. What the first rounding lost cannot be
# seen here; lesson 09 measures what it does to the answers.
#
# ## K-quants
#
# Q4_K puts 8 blocks of 32 together into a **super-block** of 256 weights. Each block has a scale *and* an offset, but
# of 6 bits only: they are integers themselves, and the super-block has one FP16 scale for the scales (S), and one for
# the offsets (O). Lesson 02, used twice.

# %%
names = ("Q4_0", "Q4_K", "Q2_K")
HTML(figures_numbers.layout_html({name: quant.layout(name) for name in names}))

# %% [markdown]
# So Q4_K has scale and offset for the 4.5 bits that Q4_0 takes with a scale alone. The price: a row must be a whole
# number of super-blocks. (I-quants such as IQ4_NL have blocks as well, and look their levels up in a table, where these
# are not evenly spaced.)
#
# ## Predict
#
# Q2_K takes 2.625 bits. SmolLM2 has 135 million weights. How many bits a weight has its "Q2_K" file on average?

# %%
guess = ____
check.predict("03-q2k", guess, unit="bits")

# %% [markdown]
# ## Run

# %%
from helpers import memory, mixes, models

small, large = models.get("smollm2-135m"), models.get("llama-3.1-8b")
average = {}
for spec in (small, large):
    average[spec.name] = memory.weights_bytes(spec, "Q2_K") * 8 / spec.n_params
    types = Counter(mixes.tensor_types(spec, "Q2_K").values())
    print(f"{spec.title}: {average[spec.name]:.2f} bits a weight; tensors: {dict(types)}")
    print(f"  a row has {spec.n_embd} weights = {spec.n_embd / 256} super-blocks")
check.outcome("03-q2k", average[small.name], unit="bits")

# %% [markdown]
# ## Why
#
# Most rows of SmolLM2 have 576 weights: two and a quarter super-blocks. They cannot be stored in Q2_K, so llama.cpp
# falls back to Q4_0, with its blocks of 32; only tensors with longer rows stay K-quants. The tensor with the
# vocabulary stays at 8.5 bits, and in a small model it is a large part. In a large model both effects shrink. Nothing
# in the file's name says so.

# %%
embedding = formats.tensor_bytes("Q8_0", (small.n_embd, small.n_vocab))
share = embedding / memory.weights_bytes(small, "Q2_K")
print(f"SmolLM2 at 'Q2_K': the vocabulary tensor alone is {share:.0%} of the bytes")

# %% [markdown]
# ## Exercise 1
#
# How many bits a weight does Q8_0 take: 32 weights of 8 bits, one scale in FP16?

# %%
# stub
answer = ____
# solution
answer = (32 * 8 + 16) / 32
# end solution
expected = formats.block_type("Q8_0").bits_per_weight
ideas = {
    "the weights alone, without the scale": 8,
    "scale and offset; Q8_0 has only a scale": 9,
    "the bytes of a whole block": formats.block_type("Q8_0").block_bytes,
}
hints = ("How many bits has a whole block?", "Divide by 32.")
check.number("03-q80", answer, expected, unit="bits", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# Which of these rows can be stored in Q4_K without falling back: the one of 960, 1152 or 1536 weights?

# %%
fits = next(n for n in (960, 1152, 1536) if n % formats.block_type("Q4_K").block_length == 0)
# stub
answer = ____
# solution
answer = 1536
# end solution
ideas = {
    "a multiple of 32 is enough; Q4_K needs a multiple of 256": 960,
    "a multiple of 128 is enough; Q4_K needs a multiple of 256": 1152,
}
hints = ("A super-block has 256 weights.", "Divide each by 256.")
check.number("03-rows", answer, fits, "weights", tolerance=0, ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: how many billion weights fit into the memory that is free on it now, if all are stored in
# Q4_0?

# %%
free_bytes = hardware.detect().ram_available_bytes
print(f"free: {free_bytes:,} bytes")
# stub
answer = ____
# solution
answer = free_bytes * 8 / 4.5 / 1_000_000_000
# end solution
expected = free_bytes / q4_0.bytes_per_weight / units.GB
ideas = {
    "4 bits a weight, the scales forgotten": free_bytes * 8 / 4 / units.GB,
    "scale and offset, as in Q4_1": free_bytes * 8 / 5 / units.GB,
    "4.5 bytes a weight instead of bits": free_bytes / 4.5 / units.GB,
    "the number of weights, not of billions": expected * units.GB,
}
hints = ("How many bits are free?", "Each weight takes 4.5 of them.")
check.number("03-own", answer, expected, unit="billion", ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# The arithmetic of this lesson beside the file itself (this needs the model file again).

# %% tags=["model"]
estimate = memory.weights_bytes(small, "Q4_1")
header = gguf.read_header(path)
print(f"estimate {estimate:,} bytes, in the file {header.tensor_bytes:,} bytes of weights")
print(f"weights in the file / estimate = {header.tensor_bytes / estimate:.5f}")
print(f"whole file / estimate = {header.file_bytes / estimate:.5f}")

# %% [markdown]
# The weights agree to the byte. The file is a little larger: it also holds the vocabulary and what the model says about
# itself.

# %% [markdown]
# ## Recap
#
# - You said why Q4_0 has 4.5 bits a weight and not 4.
# - You rebuilt Q8_0, Q4_0 and Q4_1 byte for byte on real weights.
# - You read a super-block, and explained why the "Q2_K" of a small model has more than 5 bits.
#
# Words: block, bits per weight, K-quant, I-quant ([glossary](../lessons/glossary.md)).
#
# Next: [What is in a model file](04_weights.ipynb)
