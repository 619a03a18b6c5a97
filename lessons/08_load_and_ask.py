# %% [markdown]
# # Load a model and ask it
#
# - **Promise:** You load a real model, see what it is really given, change how it answers, and measure what it takes.
# - **Needs:** 1 GB free
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Load a model and let it answer word by word.
# 2. Read the text that the model is really given.
# 3. Compare what was predicted, set aside and really used.
#
# ## Do you remember?
#
# Which five parts does a model need memory for? (Lesson 07: weights, KV cache, compute, output and the process.)
#
# Almost every cell of this lesson needs llama-cpp-python and the model that comes with the kit; `python3 start.py`
# installs both. Where one is missing such a cell ends in red, and the last line of the first red one says what is
# missing. "Run All" stops there: run the cells below it one by one. Predictions and exercises work all the same.

# %%
import sys

import helpers
from helpers import check, download, engine, figures, hardware, memory, models, panels, runner
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")
print(f"engine installed: {engine.available()}")

# %% [markdown]
# ## Predict
#
# The model is SmolLM2 with 135 million weights, quantized. How many tokens a second will it write on this computer? A
# token is about three quarters of an English word.

# %%
guess = ____
check.predict("08-speed", guess, unit="tokens/s")

# %% [markdown]
# ## Run
#
# The model lives in a process of its own. If it crashes or the memory runs out, that process ends and this notebook
# lives on. Before loading, `runner.load` asks whether it fits, and refuses with the reason when it cannot.
#
# The strip below waits for that process and shows what it holds in memory, live. Come back to it after each question.

# %% tags=["model"]
from helpers import panels_live

panels_live.live_memory()

# %% tags=["model"]
path = download.default_model()
model = runner.load(path, n_ctx=2048, seed=1)
print(model.verdict)
print(panels_live.live_text(model))

# %% tags=["model"]
first = model.ask("What is a computer? Answer in two sentences.", max_tokens=96, stream=True)

# %% [markdown]
# ## See

# %% tags=["model"]
print(first.measured())
check.outcome("08-speed", first.tokens_per_second, unit="tokens/s")

# %% [markdown]
# ## Why
#
# Reading the prompt is faster than writing the answer: many tokens are read in one go, but each new token has to wait
# for the one before it. Read the answer again: it sounds sure. A small model is often wrong and never says so.

# %% [markdown]
# ## Predict
#
# You type "Hello", one word. How many tokens does the model get?

# %%
guess = ____
check.predict("08-template", guess, unit="tokens")

# %% [markdown]
# ## Run

# %% tags=["model"]
text = model.chat_prompt("Hello")
print(text)

# %% [markdown]
# ## See

# %% tags=["model"]
tokens = model.tokenize(text)
print(tokens)
check.outcome("08-template", len(tokens), unit="tokens")

# %% [markdown]
# ## Why
#
# A model continues text; it knows nothing of questions and answers. The chat template turns a conversation into one
# text, with marks for who speaks, and this model was trained on exactly these marks. The template comes inside the GGUF
# file. With a wrong one the same model seems much more stupid.
#
# The first part is a system prompt: standing instructions that nobody typed here. This model's template adds them by
# itself.

# %% [markdown]
# ## Predict
#
# **Temperature** is a setting between 0 and about 2: how much chance there is in the choice of the next word. The same
# question is asked three times at temperature 0, then three times at 1.5. How many *different* answers will the first
# three be?

# %%
guess = ____
check.predict("08-zero", guess, unit="answers")

# %% [markdown]
# ## Run

# %% tags=["model"]
same = {}
for temperature in (0, 1.5):
    same[temperature] = []
    for seed in (1, 2, 3):
        answer = model.ask("Name an animal.", max_tokens=12, temperature=temperature, seed=seed)
        same[temperature].append(answer.text.strip())
        print(temperature, repr(same[temperature][-1]))

# %% [markdown]
# ## See

# %% tags=["model"]
check.outcome("08-zero", len(set(same[0])), unit="answers")

# %% [markdown]
# ## Why
#
# For each next token the model has a list of candidates with a score. Temperature 0 always takes the first. A higher
# temperature makes the scores more alike, so that others get their turn; top-p cuts the tail of the list off.

# %% [markdown]
# ## Try
#
# Four jobs. Ask the same question with temperature 0, then with 2: at which temperature does it fall apart? Give it a
# system prompt, for instance "Answer like a pirate", and watch the text that the model is really given. Set max tokens
# to 10: how does the answer end? Start a long answer and press "Stop".

# %% tags=["model"]
panels.ask_panel(model)

# %% [markdown]
# The same without a panel:

# %% tags=["model"]
for temperature in (0, 1, 2):
    answer = model.ask("Why is the sky blue?", temperature=temperature, max_tokens=32, seed=1)
    print(f"temperature {temperature}: {answer.text!r}")
pirate = {"role": "system", "content": "Answer like a pirate."}
print(model.chat_prompt([pirate, {"role": "user", "content": "Hello"}]))

# %% [markdown]
# ## Measure
#
# Three numbers for one model. *Predicted* is the formula. *Reserved* is what llama.cpp said it set aside when it loaded
# the model. *Resident* is what the process really holds in memory now, as the system counts it, in two parts: pages of
# files (the model's, and a little of the program's), which the system may drop and read again, and everything else.

# %% tags=["model"]
held = model.memory()
columns = {
    "predicted": model.estimate.parts(),
    "reserved": model.reserved.parts(),
    "resident": {"file": held.file_bytes, "anonymous": held.anonymous_bytes},
}
figures.compare_figure(columns)

# %% tags=["model"]
from IPython.display import HTML

HTML(figures.compare_table_html(columns))

# %% [markdown]
# The bars differ for good reasons. What is reserved does not count the process around it. What is resident counts only
# pages that were touched: the whole cache, because llama.cpp fills it with zeros when it loads the model (lesson 05
# measures that), but of the scratch memory only what a short question needs.

# %% [markdown]
# ## Exercise 1
#
# A model writes 40 tokens a second. How many seconds does an answer of 300 tokens take?

# %%
# stub
answer = ____
# solution
answer = 300 / 40
# end solution
expected = 300 / 40
ideas = {"upside down: speed divided by length": 40 / 300, "tokens times speed": 300 * 40}
hints = ("How far does it come in one second?",)
check.number("08-seconds", answer, expected, unit="s", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# Memory gets short. Which part can the system take back without asking, because it can read it again from disk: the
# `"weights"`, the `"cache"` or the `"scratch"` (compute)?

# %%
# stub
answer = ____
# solution
answer = "weights"
# end solution
ideas = {"cache": "the cache is a copy of a file", "scratch": "scratch is never needed twice"}
hints = ("Which part is a file?", "Look at the bar called resident.")
why = "They are file pages."
check.choice("08-dropped", answer, "weights", ideas=ideas, hints=hints, why=why)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: a class shares this computer, and each learner loads this model into a process of their own.
# How many learners fit into the memory that is free, if each needs what was predicted? The cell prints both numbers
# when you run it; write a whole number.

# %%
machine, small = hardware.detect(), models.get("smollm2-135m")
one = memory.estimate(small, "Q4_1", n_ctx=2048, n_outputs_max=1)
print(f"free {machine.ram_available_bytes:,} bytes, one needs {one.total_bytes:,} bytes")
# stub
answer = ____
# solution
answer = machine.ram_available_bytes // one.total_bytes
# end solution
expected = machine.ram_available_bytes // one.total_bytes
ideas = {
    "memory in all instead of free memory": machine.ram_total_bytes // one.total_bytes,
    "weights only": machine.ram_available_bytes // one.weights_bytes,
}
words = {"ideas": ideas, "hints": ("free / needed",)}
check.number("08-class", answer, expected, unit="learners", tolerance=0.1, **words)

# %% [markdown]
# In truth more fit: processes that map the same file share its pages, so the weights count once.
#
# When you are done, give the memory back. (The panel above loads the model again when you press "Ask".)

# %% tags=["model"]
model.close()
model

# %% [markdown]
# ## Recap
#
# - You loaded a model and let it answer word by word.
# - You read the text that the model is really given.
# - You compared what was predicted, set aside and really used.
#
# Words: token, chat template, temperature, top-p, resident memory, mmap ([glossary](../lessons/glossary.md)).
#
# Next: [Size or quality](09_size_or_quality.ipynb)
