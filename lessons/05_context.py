# %% [markdown]
# # The context has a price
#
# - **Promise:** You work out what a conversation costs in memory, and which tricks make it cheaper.
# - **Needs:** nothing
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Work out the KV cache of a model from its shape.
# 2. Compare the ways to make it smaller: shared heads, a sliding window, one short vector, a smaller cache type.
# 3. Find the context at which the cache costs more than the model.
#
# ## Do you remember?
#
# How do you get the bytes of a model's weights? (Number of weights times bits per weight, divided by 8. The weights do
# not change while you chat. This lesson is about the part that does.)

# %%
import sys
from dataclasses import replace

import helpers
from helpers import check, engine, figures_machine, fit, hardware, memory, models, panels, units
from helpers.check import ____

machine = hardware.detect()
print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")

# %% [markdown]
# ## Predict
#
# A model writes one token (a piece of a word) at a time, and for each one it looks back at all tokens before. To save
# computing them again, it keeps two rows of numbers for each token in each layer: a key (what is this token about?)
# and a value (what does it have to say?). That is the KV cache. A layer looks back in several ways at once, by several
# **heads**; those that keep a key and a value are the KV heads.
#
# Llama 3.1 8B: how many KiB does one single token add to it?

# %%
guess = ____
check.predict("05-token", guess, unit="KiB")

# %% [markdown]
# ## Run
#
# Four numbers of the model's shape, and 2 bytes for each stored number (a type called f16).

# %%
llama = models.get("llama-3.1-8b")
numbers = llama.n_head_kv * (llama.n_embd_head_k + llama.n_embd_head_v)
per_token = llama.n_layer * numbers * 2
print(f"{llama.n_head_kv} KV heads x ({llama.n_embd_head_k} + {llama.n_embd_head_v}) numbers")
print(f"x {llama.n_layer} layers x 2 bytes = {per_token:,} bytes = {units.show(per_token)}")

# %% [markdown]
# ## See

# %%
check.outcome("05-token", per_token / units.KIB, unit="KiB")

# %%
for n_tokens in (1, 100, 1_000, 8_000, 32_000, 128_000):
    print(f"{n_tokens:8,} tokens in the context: {units.show(n_tokens * per_token):>9}")

# %% [markdown]
# ## Why
#
# The weights are the same for everybody. The cache is yours: your text, in the model's own notes. It grows with each
# token that you type *and* with each one that the model answers. When it is full, the conversation is over, or its
# beginning is dropped.
#
# llama.cpp does not wait for that. It sets aside room for the whole context (`n_ctx`) when it loads the model, in steps
# of 256 tokens. The memory is gone before you type the first word.

# %% [markdown]
# ## Predict
#
# Four models, each with another trick. At 32,768 tokens, by what factor is the largest cache of the four larger than
# the smallest? (Phi-3 mini has half the weights of Llama 3.1 8B, DeepSeek Coder V2 Lite twice as many.)

# %%
guess = ____
check.predict("05-tricks", guess, unit="x")

# %% [markdown]
# ## Run

# %%
tricks = {
    "phi-3-mini": "own heads",
    "llama-3.1-8b": "GQA",
    "gemma-3-4b": "window",
    "deepseek-coder-v2-lite": "MLA",
}
shown = [models.get(name) for name in tricks]
long = [memory.kv_cache_bytes(spec, memory.Settings(n_ctx=32768)) for spec in shown]
check.outcome("05-tricks", max(long) / min(long), unit="x")

# %% [markdown]
# ## See
#
# Each line starts at nothing and grows with the tokens. The table has the same numbers; its last column is the cache
# divided by the tokens, at the end of the line. (This Phi-3 mini was trained for 4,096 tokens only; its line shows what
# longer ones would cost.)

# %%
from IPython.display import HTML

names = [f"{models.get(name).title}, {trick}" for name, trick in tricks.items()]
HTML(figures_machine.kv_growth_html(shown, n_ctx=32768, names=names))

# %% [markdown]
# The two at the bottom again, larger. Three of the four lines are straight; that of Gemma bends early, and from there
# on it grows more slowly.

# %%
HTML(figures_machine.kv_growth_html(shown[2:], n_ctx=16384, names=names[2:], among=shown))

# %% [markdown]
# ## Why
#
# - **Own head each.** Phi-3 mini has 32 heads that look back in 32 ways, and keeps keys and values for each of them.
# - **Shared heads (GQA).** In Llama 3.1 four heads that look share one key and one value. Four times less to keep.
# - **Sliding window.** In Gemma 3 five layers of six look back at most 1,024 tokens. Older entries are thrown away, so
#   these layers stop growing. Only the sixth keeps all.
# - **One vector (MLA).** DeepSeek stores one short vector for each token and layer, and works keys and values of all
#   heads out of it when they are needed. It pays with arithmetic.
#
# These are four different models. To see what a trick alone does, change one number of one model. Such models do not
# exist; the arithmetic does not mind.

# %%
changes = {
    "as published (GQA)": {},
    "own head each": {"n_head_kv": llama.n_head},
    "one head for all": {"n_head_kv": 1},
    "window in 5 of 6 layers": {"n_swa": 1024, "swa_pattern": 6},
}
for name, change in changes.items():
    imagined = replace(llama, **change)
    n_bytes = memory.kv_cache_bytes(imagined, memory.Settings(n_ctx=32768))
    print(f"Llama 3.1 8B, {name:24} {units.show(n_bytes):>9}")

# %% [markdown]
# ## Predict
#
# Llama 3.1 8B at Q4_K_M. At how many tokens of context does the cache cost as much as all the weights?

# %%
guess = ____
check.predict("05-costs-more", guess, unit="tokens")

# %% [markdown]
# ## Run

# %%
weights = memory.weights_bytes(llama, "Q4_K_M")
check.outcome("05-costs-more", round(weights / per_token), unit="tokens")

# %% [markdown]
# ## See
#
# The numbers in the cache can be rounded too, just like weights. llama.cpp offers q8_0 and q4_0 for it, among others.
# For each type: its bits, the cache at the longest context the model was trained for, and where it overtakes the
# weights.

# %%
for kind in ("f16", "q8_0", "q4_0"):
    settings = memory.Settings(llama.n_ctx_train, cache_type_k=kind, cache_type_v=kind)
    n_bytes = memory.kv_cache_bytes(llama, settings)
    bits = units.bits_per_weight(n_bytes, numbers * llama.n_layer * llama.n_ctx_train)
    even = round(weights * llama.n_ctx_train / n_bytes)
    print(f"{kind:4} {bits:4.1f} bits: {units.show(n_bytes):>8}, even at {even:,} tokens")
print(f"weights: {units.show(weights)}, longest context: {llama.n_ctx_train:,} tokens")

# %% [markdown]
# ## Why
#
# A quantized model has small weights, but its cache is as large as ever: quantizing the file does nothing for it. So
# the smaller the weights, the sooner the context costs more than the model. The cache type is a setting of its own. It
# is a trade as well: rounded notes are less exact notes, and arithmetic alone cannot tell how much that hurts.

# %% [markdown]
# ## Try
#
# Two jobs.
#
# 1. Press "another computer" and give it 8 GiB. Leave the model and its quantization alone: how far does the context
#    go with the cache at f16, at q8_0, at q4_0?
# 2. Now choose gemma-3-4b and go to the longest context. Which part of the bar hardly moves, and why?

# %%
panels.fit_panel(machine, model="llama-3.1-8b", n_ctx=8192)

# %% [markdown]
# The first job without a panel:

# %%
laptop = hardware.Machine.pretend("a laptop", ram_available_bytes=8 * units.GIB)
for n_ctx in (8192, 16384, 32768, 65536):
    said = []
    for kind in ("f16", "q8_0", "q4_0"):
        needs = memory.estimate(llama, "Q4_K_M", n_ctx, cache_type_k=kind, cache_type_v=kind)
        word = fit.judge(needs, laptop).status
        said.append(f"{kind} {units.show(needs.total_bytes)} {word}")
    print(f"{n_ctx:6,} tokens: {', '.join(said)}")

# %% [markdown]
# ## Exercise 1
#
# Qwen3 8B has 36 layers and 8 KV heads; each key and each value has 128 numbers, 2 bytes a number. How many KiB does
# one token take in its cache?

# %%
# stub
answer = ____
# solution
answer = 36 * 8 * (128 + 128) * 2 / 1024
# end solution
qwen = models.get("qwen3-8b")
expected = memory.kv_cache_bytes(qwen, memory.Settings(n_ctx=256)) / 256 / units.KIB
ideas = {
    "only the keys, without the values": expected / 2,
    "all 32 heads instead of the 8 that are stored": expected * qwen.n_head / qwen.n_head_kv,
    "one layer instead of 36": expected / qwen.n_layer,
}
hints = ("layers x KV heads x (128 + 128) x 2 bytes", "Divide by 1024 to get KiB.")
check.number("05-qwen", answer, expected, unit="KiB", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# Gemma 3 1B has 26 layers. In 22 of them a sliding window stops the cache at 1,024 cells (512 of the window, 512 for
# the tokens being read); the other 4 keep everything. By what factor does its cache grow from 8,192 to 32,768 tokens?

# %%
gemma = models.get("gemma-3-1b")
# stub
answer = ____
# solution
answer = (4 * 32768 + 22 * 1024) / (4 * 8192 + 22 * 1024)
# end solution
before, after = (memory.kv_cache_bytes(gemma, memory.Settings(n)) for n in (8192, 32768))
expected = after / before
ideas = {
    "all 26 layers grow with the text": 32768 / 8192,
    "a window means that nothing grows": 1,
}
hints = ("Count cells: 4 layers x tokens + 22 layers x 1,024.", "Do it twice and divide.")
check.number("05-window", answer, expected, unit="x", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: if the cache of Llama 3.1 8B (f16) were alone in the memory that is free here, how many tokens
# would it hold? The cell prints what is free.

# %%
free = machine.ram_available_bytes
print(f"free here: {free:,} bytes = {units.show(free)}")
# stub
answer = ____
# solution
answer = free / (32 * 8 * (128 + 128) * 2)
# end solution
expected = free / per_token
ideas = {
    "the memory in all, not what is free": machine.ram_total_bytes / per_token,
    "all 32 heads store something": expected * llama.n_head_kv / llama.n_head,
    "one layer instead of 32": expected * llama.n_layer,
    "one byte for each token": free,
}
hints = ("What does one token cost? See the first Run.", "Free bytes divided by bytes a token.")
check.number("05-own", answer, expected, unit="tokens", ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# First the engine: llama.cpp is asked what it would set aside for the cache, without any weights. (Skipped without
# llama-cpp-python.)

# %% tags=["model"]
for spec in shown:
    ours = memory.estimate(spec, "Q4_K_M", n_ctx=32768)
    theirs = engine.reserve(spec, "Q4_K_M", n_ctx=32768)
    ratio = ours.kv_bytes / theirs.kv_bytes
    print(f"{spec.title:24} {units.show(theirs.kv_bytes):>9}, formula / engine = {ratio:.5f}")

# %% [markdown]
# Then a real model: the packaged one, loaded for a short and for a long context. What more does its process hold in
# memory, before anybody has typed a word?

# %% tags=["model"]
from helpers import download, runner

held = {}
for n_ctx in (1024, 8192):
    with runner.load(download.default_model(), n_ctx=n_ctx, progress=False) as model:
        held[n_ctx] = model.memory().anonymous_bytes
small = models.get("smollm2-135m")
more = [memory.estimate(small, "Q4_1", n_ctx=n).kv_bytes for n in held]
predicted, measured = more[1] - more[0], held[8192] - held[1024]
print(f"predicted {units.show(predicted)} more, measured {units.show(measured)} more")
print(f"predicted / measured = {predicted / measured:.2f}")

# %% [markdown]
# ## Recap
#
# - You worked out the KV cache of a model from its shape.
# - You compared the ways to make it smaller: shared heads, a sliding window, one short vector, a smaller cache type.
# - You found the context at which the cache costs more than the model.
#
# Words: KV cache, context length, `n_ctx`, GQA, sliding window ([glossary](../lessons/glossary.md)).
#
# Next: [Your machine](06_your_machine.ipynb)
