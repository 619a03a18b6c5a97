# %% [markdown]
# # Will it fit?
#
# - **Promise:** You say whether a model fits a computer before you download it, and what to change when it does not.
# - **Needs:** nothing
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Add up what a model needs: weights, KV cache, compute and the rest.
# 2. Read a verdict: what binds, and which lever saves how much.
# 3. Test a rule of thumb against the arithmetic.
#
# ## Do you remember?
#
# What is the difference between memory in all and free memory? (Lesson 00: other programs hold the difference, so the
# free memory decides.)

# %%
import sys

import helpers
from helpers import check, engine, figures, fit, hardware, memory, models, panels, units
from helpers.check import ____

machine = hardware.detect()
print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")
print(f"engine installed: {engine.available()}")

# %% [markdown]
# ## Predict
#
# Llama 3.1 8B at Q4_K_M is a file of 4.6 GiB. You want to give it a text of 32,768 tokens. How many GiB does it need in
# all?

# %%
guess = ____
check.predict("07-long", guess, unit="GiB")

# %% [markdown]
# ## Run

# %%
llama = models.get("llama-3.1-8b")
needs = memory.estimate(llama, "Q4_K_M", n_ctx=32768)
print(needs)

# %% [markdown]
# ## See

# %%
check.outcome("07-long", needs.total_bytes / units.GIB, unit="GiB")

# %%
for part, text, n_bytes in memory.arithmetic(llama, "Q4_K_M", memory.Settings(n_ctx=32768)):
    print(f"{part:9} = {text}\n          = {n_bytes:,} bytes = {units.show(n_bytes, 2)}")

# %% [markdown]
# ## Why
#
# Five parts, each with its own law.
#
# - **Weights**: number of weights times bits per weight. They depend on the model and the quantization.
# - **KV cache**: one entry for each token of context, in each layer. It grows with the context, and llama.cpp sets it
#   aside whole when it loads the model.
# - **Compute**: scratch paper for one batch; its numbers are called activations. It depends on the vocabulary and on
#   how many tokens are read at once. Flash attention (see the panel) keeps it small when the context is long.
# - **Output**: the scores of the last token.
# - **Overhead**: the program around the model, with its vocabulary. The panel calls it "process".
#
# The next cell asks llama.cpp itself, without any weights: it plans its memory for a model that is not there. Where
# llama-cpp-python is missing, read on: the formula does not need it.

# %% tags=["model"]
asked = engine.reserve(llama, "Q4_K_M", n_ctx=32768)
print(asked)
print(f"formula / engine = {needs.reserved_bytes / asked.reserved_bytes:.5f}")

# %% [markdown]
# ## Predict
#
# The context doubles from 8,192 to 16,384 tokens. By what factor does the need of Llama 3.1 8B at Q4_K_M grow?

# %%
guess = ____
check.predict("07-double", guess, unit="x")

# %% [markdown]
# ## Run

# %%
eight = memory.estimate(llama, "Q4_K_M", n_ctx=8192).total_bytes
sixteen = memory.estimate(llama, "Q4_K_M", n_ctx=16384).total_bytes
check.outcome("07-double", sixteen / eight, unit="x")

# %% [markdown]
# ## See
#
# One line for each model, both axes in steps of equal factors. The dashed line is what is free on this computer: where
# a model's line crosses it, at the ring, the context has become too long. A line is thin beyond the context that its
# model was trained for. The table below has the same numbers.

# %%
from IPython.display import HTML

names = ("llama-3.1-8b", "phi-3-mini", "gemma-3-1b", "smollm2-135m")
shown = [models.get(name) for name in names]
curves = fit.curves(shown, "Q4_K_M", machine)
HTML(figures.page(figures.curves_svg(curves, machine.ram_available_bytes)))

# %%
HTML(figures.context_table_html(shown, "Q4_K_M"))

# %% [markdown]
# ## Why
#
# Short contexts cost almost nothing beside the weights, so the lines start flat. Later the cache takes over. How soon
# depends on the model: Phi-3 mini has fewer weights than Llama 3.1 8B, but keeps keys and values for all of its 32
# heads; Llama shares 8 among 32. Gemma 3 looks at the whole text in every sixth layer only, so its line stays low.

# %%
for spec in shown:
    per_token = memory.kv_cache_bytes(spec, memory.Settings(n_ctx=32768)) / 32768
    heads = f"{spec.n_head:2} heads, {spec.n_head_kv:2} KV heads"
    print(f"{spec.title:14} {heads}: {per_token / units.KIB:6.1f} KiB a token")

# %% [markdown]
# ## Predict
#
# A rule that one reads everywhere: take the size of the file times 1.2. Over four models and four contexts, by what
# factor does that rule miss at worst?

# %%
guess = ____
check.predict("07-rule", guess, unit="x")

# %% [markdown]
# ## Run

# %%
worst = 1
print("rule / formula at 2,048   8,192  32,768 131,072 tokens")
for spec in shown:
    print(f"{spec.title:17}", end="")
    for n_ctx in (2048, 8192, 32768, 131072):
        real = memory.estimate(spec, "Q4_K_M", n_ctx=n_ctx)
        ratio = fit.rule_of_thumb_bytes(real) / real.total_bytes
        worst = max(worst, ratio, 1 / ratio)
        print(f"{ratio:8.2f}", end="")
    print()
check.outcome("07-rule", worst, unit="x")

# %% [markdown]
# ## Why
#
# The rule knows neither the context nor the vocabulary. For the two larger models it is right at one context each:
# near 4,000 tokens for Llama 3.1 8B, near 1,000 for Phi-3 mini. For the two small ones it is too low everywhere: beside
# their few weights, compute and overhead are large.

# %% [markdown]
# ## Try
#
# Three jobs.
#
# 1. Press "another computer" and give it 8 GiB. At which longest context does Llama 3.1 8B at Q4_K_M still fit?
# 2. Go one step further and press a lever. What does it cost? Press "undo" and try the next one.
# 3. Open "Arithmetic" and find the number that changes when you change the cache type.

# %%
panels.fit_panel(machine)

# %% [markdown]
# The same in text, for a computer with 8 GiB free:

# %%
laptop = hardware.Machine.pretend("a laptop", ram_available_bytes=8 * units.GIB)
for n_ctx in (4096, 8192, 16384, 32768, 65536):
    print(n_ctx, fit.judge(memory.estimate(llama, "Q4_K_M", n_ctx=n_ctx), laptop).sentence)
print(fit.verdict(memory.estimate(llama, "Q4_K_M", n_ctx=32768), laptop))

# %% [markdown]
# ## Exercise 1
#
# TinyLlama has 22 layers and 4 KV heads of 64 numbers each, for keys and again for values, 2 bytes a number. How many
# MiB is its KV cache at 2,048 tokens?

# %%
# stub
answer = ____
# solution
answer = 2048 * 22 * 4 * (64 + 64) * 2 / 1024**2
# end solution
tiny = memory.estimate(models.get("tinyllama-1.1b"), n_ctx=2048)
expected = tiny.kv_bytes / units.MIB
ideas = {
    "only the keys, without the values": expected / 2,
    "all 32 heads instead of the 4 that are stored": 8 * expected,
    "one layer instead of 22": expected / 22,
}
hints = ("tokens x layers x KV heads x (64 + 64) x 2 bytes", "Divide by 1024 twice to get MiB.")
check.number("07-cache", answer, expected, unit="MiB", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# Llama 3.1 8B at Q4_K_M and 65,536 tokens does not fit the laptop above. Which lever saves most *without* changing the
# model: `"quantization"`, `"context"` or `"cache"`? Try them in the panel or read the levers.

# %%
long = fit.verdict(memory.estimate(llama, "Q4_K_M", n_ctx=65536), laptop)
levers = ("quantization", "context", "cache")
best = next(lever.name for lever in long.levers if lever.name.startswith(levers)).split()[0]
# stub
answer = ____
# solution
answer = best
# end solution
ideas = {"cache": "the largest part saves most; but q8_0 only halves it"}
ideas |= {"quantization": "the weights are the largest part; here the cache is larger"}
hints = ("print(long) shows the levers, largest first.",)
check.choice("07-lever", answer, best, ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: which is the longest context at which Qwen3 8B at Q4_K_M fits, tight or not: 2048, 4096, 8192,
# 16384 or 32768? Write 0 if none does.

# %%
qwen, fitting = models.get("qwen3-8b"), [0]
for n_ctx in (2048, 4096, 8192, 16384, 32768):
    verdict = fit.judge(memory.estimate(qwen, "Q4_K_M", n_ctx=n_ctx), machine)
    fitting += [n_ctx] if verdict.status in ("fits", "tight") else []
expected = max(fitting)
# stub
answer = ____
# solution
answer = expected
# end solution
ideas = {"one step too far": 2 * expected or 2048, "one step too careful": expected // 2 or 512}
hints = ("Choose qwen3-8b in the panel.", "print(fitting) shows all that fit.")
check.number("07-own", answer, expected, unit="tokens", tolerance=0, ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# How good is the formula? Ask llama.cpp the same question for every model of the catalogue, and show the five that are
# furthest off. (Skipped without llama-cpp-python.)

# %% tags=["model"]
ratios = {}
for name in models.names():
    spec = models.get(name)
    ours = memory.estimate(spec, "Q4_K_M", n_ctx=8192).reserved_bytes
    theirs = engine.reserve(spec, "Q4_K_M", n_ctx=8192).reserved_bytes
    ratios[spec.title] = ours / theirs
print(f"{len(ratios)} models; formula / engine, the five furthest from 1:")
for title in sorted(ratios, key=lambda title: -abs(ratios[title] - 1))[:5]:
    print(f"{title:24} {ratios[title]:.6f}")

# %% [markdown]
# ## Recap
#
# - You added up what a model needs: weights, KV cache, compute and the rest.
# - You read a verdict: what binds, and which lever saves how much.
# - You tested a rule of thumb against the arithmetic.
#
# Words: KV cache, compute buffer, batch, activation, flash attention ([glossary](../lessons/glossary.md)).
#
# Next: [Load a model and ask it](08_load_and_ask.ipynb)
