# %% [markdown]
# # Start here
#
# - **Promise:** You ask this computer what it has, let a real language model say hello, and see how checks answer.
# - **Needs:** nothing
# - **Minutes:** 20

# %% [markdown]
# ## Goals
#
# 1. Read what this computer has: memory in all, and memory that is free.
# 2. Use a panel and the table beside it.
# 3. Fill in a blank and read the three answers of a check.
#
# ## Do you remember?
#
# Nothing yet. Here is how a notebook works: click on a grey cell and press Shift and Enter. The cell runs, its result
# appears below, and the next cell is selected. Cells remember what earlier cells did, so run them from top to bottom.

# %%
import sys

import helpers
from helpers import check, download, fit, hardware, memory, models, panels, units
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")

# %% [markdown]
# ## Predict
#
# How many GiB of memory can a program have on this computer right now? (A GiB is about a billion bytes.) Write your
# guess in place of `____` and run the cell. A prediction is written down and never marked: it is there so that you
# notice what surprises you.

# %%
guess = ____
check.predict("00-free", guess, unit="GiB")

# %% [markdown]
# ## Run

# %%
machine = hardware.detect()
machine

# %% [markdown]
# ## See
#
# Each line says where its number comes from. The line that matters most is the free memory, not the total.

# %%
check.outcome("00-free", machine.ram_available_bytes / units.GIB, unit="GiB")

# %% [markdown]
# ## Why
#
# Memory (RAM) is where a model has to be while it answers. Part of it is taken by other programs: the system, the
# browser, this notebook. What is left is what a model can have. In a container or on a course server there may also be
# a limit that is lower than what the hardware has; then the lower number counts, and the table says so.

# %% [markdown]
# ## Predict
#
# The kit brings a small model, SmolLM2. It has 135 million **weights**, the numbers that it learned. They are stored in
# fewer bits than they had once, here in about 6 bits each (a **quantization** called Q4_1). How many MiB, millions of
# bytes, do they take?

# %%
guess = ____
check.predict("00-small", guess, unit="MiB")

# %% [markdown]
# ## Run
#
# `memory.estimate` adds up what a model needs. Its first argument is the model, its second the quantization; `n_ctx` is
# how many tokens (pieces of words) a conversation may have.

# %%
small = models.get("smollm2-135m")
needs = memory.estimate(small, "Q4_1", n_ctx=2048, n_outputs_max=1)
print(needs)

# %% [markdown]
# ## See

# %%
check.outcome("00-small", needs.weights_bytes / units.MIB, unit="MiB")

# %% [markdown]
# ## Why
#
# Weights are the largest part, but not the only one. The KV cache (kv) remembers the conversation, compute is scratch
# paper, output the scores for the next token, and overhead is the program around the model. Lesson 07 takes this apart.

# %% [markdown]
# ## Try
#
# A panel with a job. Choose a model that you have heard of, and find the largest quantization that fits. The coloured
# sentence is the verdict; the strip below it shows all quantizations at once. Everything can be done with the keyboard:
# Tab moves to a control, the arrow keys change it. "undo" takes the last change back.

# %%
panels.fit_panel(machine, model="qwen3-8b")

# %% [markdown]
# The same numbers without a panel, for those who see none:

# %%
choices = fit.ladder(models.get("qwen3-8b"), machine, n_ctx=8192)
for name, estimate, verdict in choices:
    print(f"{name:7} {units.show(estimate.total_bytes):>9}  {fit.SAYS[verdict.status]}")

# %% [markdown]
# ## How checks answer
#
# A check knows three answers: ○ not attempted, △ not yet, ✓ correct. The next cell shows the second, for a wrong answer
# to this question: one billion weights take 4 bits each; how many GB is that? The wrong answer is 4.

# %%
right = units.bytes_from_bits(1_000_000_000, 4) / units.GB
check.number("00-demo", 4, right, unit="GB", record=False)

# %% [markdown]
# ## Exercise 1
#
# Now you: one billion weights take 4 bits each. How many GB is that? Write the number in place of `____` and run the
# cell. Stuck? Type `check.hint("00-billion")` in a new cell.

# %%
# stub
answer = ____
# solution
answer = 1_000_000_000 * 4 / 8 / 1_000_000_000
# end solution
expected = units.bytes_from_bits(1_000_000_000, 4) / units.GB
ideas = {"one byte for each weight, which would be 8 bits": 2 * expected}
hints = ("A byte has 8 bits, so 4 bits are half a byte.", "A GB is one billion bytes.")
check.number("00-billion", answer, expected, unit="GB", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# About your own machine: the list above begins with the largest quantization of Qwen3 8B. Which is the first that fits
# here, tight or not? Write its name in quotes, or `"none"`.

# %%
fitting = [name for name, _, verdict in choices if verdict.status in ("fits", "tight")]
largest = (fitting or ["none"])[0]
# stub
answer = ____
# solution
answer = largest
# end solution
ideas = {name: f"{name} fits; its line says that it does not" for name, _, _ in choices}
ideas |= {name: f"{name} is the first; a line further up fits too" for name in fitting}
ideas |= {"none": "nothing fits; read the lines at the end of the list"}
ideas.pop(largest)
hints = ("Read the list from the top.", "Stop at the first line that says fits.")
check.choice("00-largest", answer, largest, ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# Now a real model. It runs in a process of its own, so whatever happens to it, this notebook lives. Without
# llama-cpp-python this cell says what is missing, and you can go on to the next lesson.

# %% tags=["model"]
from helpers import runner

with runner.load(download.default_model(), n_ctx=2048) as model:
    hello = model.ask("Say hello to a class that meets you.", max_tokens=48, stream=True)
print(hello.measured())

# %% tags=["model"]
predicted, measured = needs.total_bytes, hello.peak_bytes
print(f"predicted {units.show(predicted)}, measured {units.show(measured)}")
print(f"predicted / measured = {predicted / measured:.2f}")

# %% [markdown]
# The prediction is what is set aside; the measurement is what was really touched. Lesson 08 shows which part is which.

# %%
check.summary()

# %% [markdown]
# ## Recap
#
# - You read what this computer has: memory in all, and memory that is free.
# - You used a panel and the table beside it.
# - You filled in a blank and read the answers of a check.
#
# Words: RAM, weight, quantization, KV cache, GiB ([glossary](../lessons/glossary.md)).
#
# Next: [Bits and bytes](01_bits_and_bytes.ipynb)
