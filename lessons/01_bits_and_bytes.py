# %% [markdown]
# # Bits and bytes
#
# - **Promise:** You count how many bytes a model's numbers take, and see what those bytes can and cannot hold.
# - **Needs:** nothing
# - **Minutes:** 30

# %% [markdown]
# ## Goals
#
# 1. Count the bytes of a row of weights.
# 2. Tell a GB from a GiB.
# 3. Say what FP32, FP16, BF16 and INT8 can hold, by looking at their bits.
#
# ## Do you remember?
#
# Where does a model have to be while it answers? (Lesson 00: in memory. So the first question is how many bytes it
# takes.)

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
# A bit is a choice between two: 0 or 1. How many different numbers can 8 bits, one byte, tell apart?

# %%
guess = ____
check.predict("01-byte", guess, unit="numbers")

# %% [markdown]
# ## Run

# %%
for bits in (1, 2, 3, 4, 8, 16, 32):
    print(f"{bits:2} bits tell {2**bits:,} numbers apart")

# %% [markdown]
# ## See

# %%
check.outcome("01-byte", 2**units.BITS_PER_BYTE, unit="numbers")

# %% [markdown]
# ## Why
#
# Each further bit doubles the choices. Taking away half of the bits takes far more than half of the choices: 16 bits
# have 65,536 of them, 8 bits 256, and 4 bits only 16. Lesson 02 lives with those 16.

# %% [markdown]
# ## Predict
#
# A model has 7 billion weights of 16 bits each. The download page calls that 14 GB. How many GiB is it, the unit in
# which many programs report memory?

# %%
guess = ____
check.predict("01-gib", guess, unit="GiB")

# %% [markdown]
# ## Run

# %%
weights_bytes = units.bytes_from_bits(7_000_000_000, 16)
print(f"7,000,000,000 x 16 / 8 = {weights_bytes:,} bytes")
print(units.show_decimal(weights_bytes), "or", units.show(weights_bytes, 2))
check.outcome("01-gib", weights_bytes / units.GIB, unit="GiB")

# %% [markdown]
# ## Why
#
# The bytes are the same. A GB is 1000 × 1000 × 1000 of them, a GiB is 1024 × 1024 × 1024, so there are fewer GiB. The
# gap grows with each step of the prefix:

# %%
steps = ("KiB and KB", units.KIB, units.KB), ("MiB and MB", units.MIB, units.MB)
steps += ("GiB and GB", units.GIB, units.GB), ("TiB and TB", units.TIB, units.TB)
for names, binary, decimal in steps:
    print(f"{names}: {binary / decimal - 1:.1%} apart")

# %% [markdown]
# Not every program is so careful: some count in GiB and write "GB". When two numbers for one file differ by about 7 %,
# look at the unit before you look for a mistake.

# %% [markdown]
# ## Predict
#
# Weights are fractions such as 0.1. A common way to store one is FP16: 16 bits. What is the largest number that FP16
# can hold?

# %%
guess = ____
check.predict("01-largest", guess)

# %% [markdown]
# ## Run
#
# FP32, FP16 and BF16 hold fractions, INT8 whole numbers. The last number of each line is the next one above 1: it says
# how fine the steps are there.

# %%
for kind in quant.FORMATS.values():
    limits = f"largest {kind.largest:.7g}, next to 1: {1 + kind.step:.9g}"
    print(f"{kind.name}: {kind.bits:2} bits, {limits}")
check.outcome("01-largest", quant.FORMATS["FP16"].largest)

# %% [markdown]
# ## See
#
# Here is 0.1 in the three float formats. A float has a sign (s), an exponent (e: which power of two) and a fraction (f:
# where between that power and the next). The table below the picture says the same bits.

# %%
tenths = [quant.store(0.1, name) for name in ("FP32", "FP16", "BF16")]
HTML(figures_numbers.bits_html(tenths))

# %% [markdown]
# ## Why
#
# The value is (1 + fraction) × a power of two. The next cell takes the FP16 bits apart and puts them together again.
# No float format holds 0.1 exactly: each gives the nearest number that it has.

# %%
half = quant.FORMATS["FP16"]
bits = dict(quant.store(0.1, "FP16").fields)
fraction = int(bits["fraction"], 2) / 2**half.fraction_bits
power = int(bits["exponent"], 2) - half.bias
print(f"(1 + {fraction}) x 2**{power} = {(1 + fraction) * 2**power}")
print("stored:", quant.store(0.1, "FP16").value)

# %% [markdown]
# FP16 and BF16 have 16 bits each and spend them differently.
#
# - **FP16** spends more on the fraction: finer steps, small range. Beyond its range everything is "inf".
# - **BF16** spends as much on the exponent as FP32 does: the range of FP32, coarse steps.
#
# Each tick is a number that the format can hold. Above just after 1, below from 1,000 on: where the numbers are larger,
# the steps are larger too, in both formats.

# %%
lines = ""
for low, high in ((1, 1 + 1 / 16), (1000, 1016)):
    points = np.linspace(low, high, 1025)  # more than either format can tell apart
    held = {f: sorted({quant.store(x, f).value for x in points}) for f in ("FP16", "BF16")}
    lines += figures_numbers.number_line_html(held, low, high)
HTML(lines)

# %% [markdown]
# What the formats make of a middling number, a large one and a tiny one:

# %%
for number in (3.14159265, 70000.0, 1e-30):
    for name in ("FP32", "FP16", "BF16"):
        print(quant.store(number, name))
    print()

# %% [markdown]
# INT8 has no exponent: it counts in steps of 1, from -128 to 127. It cannot hold 0.1 at all. The next cell is meant to
# fail, and the message says what lesson 02 is about.

# %% tags=["fails"]
quant.store(0.1, "INT8")

# %% [markdown]
# ## Try
#
# Flip a bit: move the slider and watch the lower row. Place 0 is the leftmost bit; the field takes the number too.
# Three jobs with the number 1 in BF16:
#
# 1. Find the bit that turns 1 into something endless. Which part does it belong to?
# 2. Find the bit whose flip changes 1 least. Which end is it at?
# 3. Choose FP16 and do job 2 again. Is the smallest change finer or coarser, and why?

# %%
panels_numbers.flip_panel(1.0, "BF16")

# %% [markdown]
# The same without a panel:

# %%
one = quant.store(1, "BF16")
for place in range(len(one.bits)):
    part, after = one.part(place), one.flip(place)
    print(f"place {place:2} ({part:8}): {one.value:g} becomes {after.value:.9g}")

# %% [markdown]
# ## Exercise 1
#
# How many GiB do 3 billion weights take at 16 bits each? Write the number in place of `____` and run the cell. Stuck?
# Type `check.hint("01-three")` in a new cell.

# %%
# stub
answer = ____
# solution
answer = 3_000_000_000 * 16 / 8 / 1024**3
# end solution
expected = units.bytes_from_bits(3_000_000_000, 16) / units.GIB
ideas = {"one byte for each weight, which would be 8 bits": expected / 2}
ideas |= {"billions of bits, neither bytes nor GiB": 48}
hints = ("16 bits are two bytes.", "Divide the bytes by 1024 three times.")
check.number("01-three", answer, expected, unit="GiB", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# While a model is trained, a number of 100,000 appears. It has to fit into 16 bits without becoming infinite. Which
# format do you take: `"FP32"`, `"FP16"`, `"BF16"` or `"INT8"`?

# %%
best = next(k.name for k in quant.FORMATS.values() if k.bits == 16 and k.largest >= 100_000)
# stub
answer = ____
# solution
answer = best
# end solution
ideas = {"FP32": "only the range counts; but it takes 32 bits"}
ideas |= {"FP16": "16 bits are 16 bits, whatever they are spent on"}
ideas |= {"INT8": "100,000 is a whole number, so an integer format will do"}
hints = ("Which formats have 16 bits?", "Which part of a float decides its range?")
check.choice("01-range", answer, best, ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: how many billion weights of 16 bits fit into the memory that is free on it now?

# %%
free_bytes = hardware.detect().ram_available_bytes
print(f"free: {free_bytes:,} bytes, {units.show(free_bytes)}")
# stub
answer = ____
# solution
answer = free_bytes / 2 / 1_000_000_000
# end solution
expected = free_bytes / units.bytes_from_bits(units.GB, 16)
ideas = {"one byte for each weight": 2 * expected, "16 bytes for each weight": expected / 8}
ideas |= {"GiB taken for billions of bytes": expected * units.GB / units.GIB}
ideas |= {"the number of weights, not of billions": expected * units.GB}
hints = ("Divide the free bytes by the bytes of one weight.", "A billion is 1,000,000,000.")
check.number("01-own", answer, expected, unit="billion", ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# The estimate beside the real thing: a million numbers in FP16, in this computer's memory.

# %%
row = np.full(1_000_000, 0.1, dtype=np.float16)
estimate = units.bytes_from_bits(1_000_000, 16)
measured = sys.getsizeof(row)
print(f"estimate {estimate:,} bytes, measured {measured:,}: {measured / estimate:.5f}")
print("the first number in memory:", f"{int(row.view(np.uint16)[0]):016b}")
print("the same by this lesson:   ", quant.store(0.1, "FP16").bits)

# %% [markdown]
# The few bytes too many are Python's: it notes the type and the length of the row.

# %% [markdown]
# ## Recap
#
# - You counted the bytes of a row of weights.
# - You told a GB from a GiB.
# - You said what FP32, FP16, BF16 and INT8 can hold, by looking at their bits.
#
# Words: weight, GB, GiB ([glossary](../lessons/glossary.md)).
#
# Next: [Scale and offset](02_scale_and_offset.ipynb)
