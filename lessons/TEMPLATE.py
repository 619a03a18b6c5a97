# %% [markdown]
# # The shape of a lesson
#
# - **Promise:** At the end of this lesson the learner can say what a lesson is made of.
# - **Needs:** nothing
# - **Minutes:** 20
#
# *To the author.* Copy this file to `lessons/NN_slug.py` and replace every 42 by your number. Then run
# `python lessons/build.py --only NN`. Paragraphs that begin with *To the author* are for you: remove them.
#
# *To the author.* The title cell is a first-level heading and the three lines above, in that form. The promise is one
# sentence. Needs is "nothing", "1 GB free" or "network once". Minutes is what a class takes, 20 to 40 for most lessons.
#
# *To the author.* Markdown is plain CommonMark: no HTML, no MyST, no tables, no emoji, no formulas between dollar
# signs. An image has alt text. Addresses begin with `../`, as seen from `notebooks/`
# ([the glossary](../lessons/glossary.md)); another lesson is `NN_slug.ipynb`. A figure is better drawn by code.

# %% [markdown]
# ## Goals
#
# 1. Count the bytes of a row of weights.
# 2. Tell a GB from a GiB.
#
# *To the author.* At most three goals, each begins with a verb. The recap says the same ones in the past tense.
#
# ## Do you remember?
#
# How many bits has a byte? One question about an earlier lesson, answered in the next paragraph.
#
# Eight.

# %% [markdown]
# *To the author.* One cell imports everything and prints the versions. Code cells have at most 12 lines of 96
# characters, a lesson at most 25 of them; both copies are counted as their readers see them. Lines with `%` or `!`
# are not used: a lesson is ordinary Python. `____` (four underscores) is a blank: it survives arithmetic, comparing
# and printing, so that the learner copy runs to its end before anything is filled in. Do not hand a blank to a panel
# or to a room.

# %%
import sys

import helpers
from helpers import check, units
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")

# %% [markdown]
# ## Predict
#
# A model has 7 billion weights, each stored in 16 bits. How many GB is that? Write a number in place of `____`: it is
# written down, never marked.
#
# *To the author.* Two or three rounds of Predict, Run, See, Why. Names are `"NN-words"`, NN being the lesson's number.

# %%
guess = ____
check.predict("42-weights", guess, unit="GB")

# %% [markdown]
# ## Run

# %%
weights_bytes = units.bytes_from_bits(7_000_000_000, 16)
print(units.show_decimal(weights_bytes), "or", units.show(weights_bytes))

# %% [markdown]
# ## See
#
# The same bytes have two names, and the two numbers differ. `outcome` puts the prediction beside what came out; the
# last lesson shows all of them again.

# %%
check.outcome("42-weights", weights_bytes / units.GB, unit="GB")

# %% [markdown]
# ## Why
#
# A GB is 1000 × 1000 × 1000 bytes, a GiB is 1024 × 1024 × 1024.
#
# *To the author.* No number in prose that a cell doesn't compute or a source doesn't back.

# %% [markdown]
# ## Try
#
# Which number of bits brings the weights below 4 GB?
#
# *To the author.* Here stands a panel (`panels.<thing>_panel()`) with a job to do, and always, for those who see no
# widget, a loop that prints the same numbers.

# %%
for bits in (16, 8, 5, 4, 3):
    print(f"{bits:2} bits: {units.show_decimal(units.bytes_from_bits(7_000_000_000, bits))}")

# %% [markdown]
# ## Exercise 1
#
# How many GiB do 3 billion weights take, at 8 bits each? Write the number in place of `____` and run the cell.
# Stuck? Type `check.hint("42-gib")` in a new cell.
#
# *To the author.* `# stub`, `# solution` and `# end solution` stand on lines of their own. The learner copy keeps what
# is between the first two, the solved copy what is between the last two; the markers are in neither. Both may be
# several lines, indented or not, and a cell may have more than one such region. The expected value is always
# calculated by the kit, never typed, and by calling a room rather than by spelling the arithmetic out: learners read
# it. The check is the last line of its cell, so that it shows. With `record=False` it is a demonstration and leaves no
# trace in the learner's record.

# %%
# stub
answer = ____
# solution
answer = 3_000_000_000 * 8 / 8 / 1024**3
# end solution
expected = units.bytes_from_bits(3_000_000_000, 8) / units.GIB
ideas = {"16 bits instead of 8": 2 * expected}
hints = ("8 bits are one byte.", "Divide 3 billion bytes by 1024 three times.")
check.number("42-gib", answer, expected, unit="GiB", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# A shop sells a disk of "500 GB". Your computer says "466". Who is right: `"shop"`, `"computer"` or `"both"`?
#
# *To the author.* Two or three exercises, the last one about the learner's own machine. Each knows at least two wrong
# ideas; a number knows the usual ones by itself (bits, GiB, prefixes, factor 2). `check.true` judges an answer by a
# function, when many answers are right; its `samples` are wrong answers that tests try. Tests run the learner copy with
# its blanks (all must be "not attempted"), the solved copy (all "correct"), and every wrong idea: `check.rehearse()`
# shows the same in a notebook.

# %%
# stub
answer = ____
# solution
answer = "both"
# end solution
ideas = {
    "shop": "the number of GiB is an error",
    "computer": "the number of GB is an advertising trick",
}
check.choice("42-disk", answer, "both", ideas=ideas, hints=("What does 500 GB give in GiB?",))

# %% [markdown]
# *To the author.* The tags, after `# %%` or `# %% [markdown]`, as `tags=["fails"]`; there are no others:
#
# - `solution`: the cell is in the solved copy only.
# - `fails`: the cell is meant to raise; say so in the text above it.
# - `model`: the cell needs the engine and the default model. Where these are missing tests skip it, so every later
#   cell that uses its names has the tag too. Say in the text what one sees without.
# - `network`: the same, for the network; no lesson may depend on it.

# %% tags=["solution"]
print(f"500 GB are {500 * units.GB / units.GIB:.0f} GiB: both count the same bytes.")

# %% [markdown]
# The next cell is meant to fail: where there are no weights, there are no bits per weight.

# %% tags=["fails"]
units.bits_per_weight(18, 0)

# %% [markdown]
# ## Measure
#
# *To the author.* The estimate beside something real on this machine, and the ratio.

# %%
row = bytearray(units.bytes_from_bits(1_000_000, 16))
real_bytes = sys.getsizeof(row)
print(f"estimate 2,000,000 bytes, measured {real_bytes:,} bytes")
print(f"measured / estimate = {real_bytes / 2_000_000:.5f}")

# %% [markdown]
# ## Recap
#
# - You counted the bytes of a row of weights.
# - You told a GB from a GiB.
#
# Words: parameter, weight, GB, GiB ([glossary](../lessons/glossary.md)).
#
# Next: the lesson that builds on this one, as a link.
