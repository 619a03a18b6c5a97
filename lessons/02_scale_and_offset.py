# %% [markdown]
# # Scale and offset
#
# - **Promise:** You squeeze a row of fractions into 8 and 4 bits by hand, and say what is lost and why.
# - **Needs:** nothing
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Squeeze floats into small integers with a scale, and with a scale and an offset.
# 2. Tell rounding error from clipping error.
# 3. Show how a single outlier ruins a scale.
#
# ## Do you remember?
#
# How many numbers can 4 bits tell apart? (Lesson 01: 2 × 2 × 2 × 2 = 16.)

# %%
import sys

import numpy as np
from IPython.display import HTML

import helpers
from helpers import check, figures_numbers, hardware, panels_numbers, quant, units
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}, numpy {np.__version__}")

# %% [markdown]
# ## Predict
#
# Eight weights, and 4 bits for each. Of the 16 integers that 4 bits can tell apart we take 15, from -7 to 7, so that 0
# is in the middle. The largest weight, 0.70, is to become 7. Which integer does 0.31 become?

# %%
row = np.array([0.31, -0.12, 0.07, -0.44, 0.25, 0.02, -0.29, 0.70])
guess = ____
check.predict("02-integer", guess)

# %% [markdown]
# ## Run
#
# By hand: one scale for the row, divide, round. To get the weights back, multiply.

# %%
scale = np.abs(row).max() / 7
integers = quant.round_half_away(row / scale).astype(int)
back = integers * scale
print("scale   ", round(scale, 4))
print("integers", integers)
print("back    ", back.round(2))
print("error   ", (back - row).round(2))

# %%
check.outcome("02-integer", integers[0])

# %% [markdown]
# ## See
#
# Above the weights, below the 15 levels that the integers can give back. Each weight goes to the nearest level.

# %%
by_hand = quant.symmetric(row, bits=4)
HTML(figures_numbers.levels_html(row, by_hand))

# %% [markdown]
# ## Why
#
# What is stored is 4 bits for each weight, and the scale once. What is lost is at most half a step, because no weight
# is further from its nearest level. This is **quantization**; multiplying back is **dequantization**.
#
# Move the grid yourself. Set "Bits" to 2, and go up to 8. From which number on does 0.02 come back as something other
# than 0? ("Limit" has its turn below.)

# %%
panels_numbers.clip_panel(row, bits=4)

# %% [markdown]
# The same without a panel:

# %%
for bits in (2, 3, 4, 5, 6, 8):
    squeezed = quant.symmetric(row, bits)
    largest, sixth = np.abs(squeezed.weights() - row).max(), squeezed.weights()[5]
    grid = f"{len(squeezed.levels):3} levels, half a step {squeezed.scale / 2:.4f}"
    print(f"{bits} bits: {grid}, largest error {largest:.4f}; 0.02 becomes {sixth:.4f}")

# %% [markdown]
# ## Predict
#
# Now 8 bits instead of 4, for a thousand weights. By what factor does the error become smaller?

# %%
guess = ____
check.predict("02-eight", guess, unit="x")

# %% [markdown]
# ## Run
#
# Two ways to say how large the errors are: rmse is their usual size (the root of the mean square), SNR says how strong
# the weights are beside them, in decibels (dB): higher is better.

# %%
weights = np.random.default_rng(0).normal(0, 0.02, 1024)
lost = {}
for bits in (2, 3, 4, 5, 6, 8):
    lost[bits] = quant.error(weights, quant.symmetric(weights, bits).weights())
    print(f"{bits} bits: {lost[bits]}")
check.outcome("02-eight", lost[4].rmse / lost[8].rmse, unit="x")

# %% [markdown]
# ## Why
#
# 4 bits have levels up to 7, 8 bits up to 127. The steps are 127 / 7 times as fine, and so is the error. Each further
# bit about halves the step, which is worth 6 dB, or a little more where there are few levels.
#
# ## When the weights are not around zero
#
# Here every weight lies between 5 and 6. With a scale alone, most levels lie where no weight is. With a scale and an
# **offset**, the levels begin at the smallest weight and end at the largest:

# %%
high = np.array([5.02, 5.31, 5.44, 5.58, 5.73, 5.81, 5.90, 6.00])
for name, squeezed in (
    ("symmetric", quant.symmetric(high, bits=4)),
    ("asymmetric", quant.asymmetric(high, bits=4)),
):
    print(f"{name}: scale {squeezed.scale:.3f}, offset {squeezed.offset:.2f}")
    print("  integers", squeezed.integers)
    print("  largest error", round(quant.error(high, squeezed.weights()).largest, 3))

# %% [markdown]
# Above with a scale alone, below with scale and offset:

# %%
straight, shifted = quant.symmetric(high, bits=4), quant.asymmetric(high, bits=4)
above = figures_numbers.levels_svg(high, straight, names=("weights", "15 levels"))
HTML(above + figures_numbers.levels_html(high, shifted, names=("weights", "16 levels")))

# %% [markdown]
# The price is one more number to keep, the offset, and that zero is no longer a level of its own. Most weights of a
# model lie around zero, so there the gain is small; lesson 03 measures it on a real model.
#
# ## Predict
#
# One of the thousand weights becomes an **outlier**: 1.0, where the others are around 0.02. At 4 bits, how many per
# cent of the *other* weights come back as 0?

# %%
guess = ____
check.predict("02-outlier", guess, unit="%")

# %% [markdown]
# ## Run

# %%
spoilt = weights.copy()
spoilt[0] = 1.0
zeros = {}
for name, thousand in (("without", weights), ("with", spoilt)):
    others = quant.symmetric(thousand, bits=4).weights()[1:]
    zeros[name] = 100 * (others == 0).mean()
    print(f"{name} the outlier: {zeros[name]:.1f} % come back as 0")
check.outcome("02-outlier", zeros["with"], unit="%")

# %% [markdown]
# ## See
#
# The outlier and seven of the others. There is a level for the outlier at the right end, and one for all the rest.

# %%
HTML(figures_numbers.levels_html(spoilt[:8], quant.symmetric(spoilt[:8], bits=4)))

# %% [markdown]
# ## Why
#
# The scale follows the largest weight. One weight of 1.0 makes a step as wide as 1 / 7, and all that is smaller than
# half of that becomes 0. There are two ways out: **clip** the outlier, or give small groups of weights a scale of their
# own. The second is lesson 03.

# %% [markdown]
# ## Try
#
# Clip. The limit is the largest size that is kept, in per cent of the largest weight; what is beyond is cut off. These
# 200 weights have some large ones among them. Jobs, at 4 bits:
#
# 1. Move the limit down from 100 %. Which error falls, and which one rises?
# 2. Find the limit at which both together are smallest. Is it the same with 8 bits?

# %%
few = np.random.default_rng(8).standard_t(5, 200)
panels_numbers.clip_panel(few, bits=4)

# %% [markdown]
# The same numbers without a panel:

# %%
for bits in (4, 8):
    for limit in (100, 85, 70, 55, 40):
        squeezed = quant.clipped_at(few, bits, limit)
        rounding, clipping = quant.rounding_and_clipping(few, squeezed)
        both = quant.error(few, squeezed.weights()).rmse
        parts = f"rounding {rounding:.4f}, clipping {clipping:.4f}"
        print(f"{bits} bits, limit {limit:3} %: {parts}, together {both:.4f}")

# %% [markdown]
# ## Exercise 1
#
# A row of weights goes from -2.1 to 3.5. You squeeze it symmetrically into 4 bits, with the integers from -7 to 7. What
# is the scale?

# %%
# stub
answer = ____
# solution
answer = 3.5 / 7
# end solution
expected = quant.symmetric([-2.1, 3.5], bits=4).scale
ideas = {
    "16 levels from 0 to 3.5; but there are 7 steps above zero": 3.5 / 16,
    "8 steps above zero; here the integers end at 7": 3.5 / 8,
    "the asymmetric scale, the whole span over 15 steps": (3.5 + 2.1) / 15,
    "the smallest weight instead of the one of the largest size": 2.1 / 7,
    "the whole span, over 14 steps": (3.5 + 2.1) / 14,
    "upside down: how many steps make 1": 7 / 3.5,
}
hints = ("Which weight has the largest size?", "It becomes 7: what is one step worth?")
check.number("02-scale", answer, expected, "a step", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# All weights of a row lie between 0.40 and 0.46. Which way loses less at 4 bits: `"symmetric"`, `"asymmetric"` or
# `"same"`?

# %%
narrow = np.linspace(0.40, 0.46, 50)
ways = {"symmetric": quant.symmetric(narrow, 4), "asymmetric": quant.asymmetric(narrow, 4)}
best = min(ways, key=lambda name: quant.error(narrow, ways[name].weights()).rmse)
# stub
answer = ____
# solution
answer = best
# end solution
ideas = {"symmetric": "one number less to store makes it more exact"}
ideas["same"] = "both have 4 bits, so both have steps of the same width"
hints = ("How wide is a step in each case?", "print(ways['symmetric'].levels)")
check.choice("02-way", answer, best, ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: the weights of a model, 8 billion of them, are to fit into the memory that is free now. How
# many bits may each have at most? A fraction is fine.

# %%
free_bytes = hardware.detect().ram_available_bytes
print(f"free: {free_bytes:,} bytes")
# stub
answer = ____
# solution
answer = free_bytes * 8 / 8_000_000_000
# end solution
expected = units.bits_per_weight(free_bytes, 8_000_000_000)
ideas = {"one weight instead of 8 billion": free_bytes * 8}
hints = ("How many bits are free? A byte has 8.", "Share them among 8 billion weights.")
check.number("02-own", answer, expected, unit="bits", ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# An estimate for the error: if rounding errors are spread evenly over a step, their rmse is the step divided by the
# square root of 12. Measured beside it, for the thousand weights:

# %%
for bits in (8, 6, 4, 3, 2):
    estimate, measured = quant.symmetric(weights, bits).scale / np.sqrt(12), lost[bits].rmse
    ratio = measured / estimate
    print(f"{bits} bits: estimate {estimate:.6f}, measured {measured:.6f}, ratio {ratio:.3f}")

# %% [markdown]
# As long as there are many levels, the estimate holds. With very few of them the errors are no longer spread evenly,
# and it fails. Remember that when somebody extends a formula to 2 bits.

# %% [markdown]
# ## Recap
#
# - You squeezed floats into small integers with a scale, and with a scale and an offset.
# - You told rounding error from clipping error.
# - You showed how a single outlier ruins a scale.
#
# Words: quantization, dequantization, scale, offset, outlier ([glossary](../lessons/glossary.md)).
#
# Next: [Blocks](03_blocks.ipynb)
