# %% [markdown]
# # The memory lab
#
# - **Promise:** You move every slider of this kit and see what memory does. No exercises, nothing is recorded.
# - **Needs:** nothing
# - **Minutes:** 20

# %% [markdown]
# For a projector, or for questions that begin with "and what if". Run all cells once (menu Run, Run All Cells), then
# move. Every number says how we know it: *formula* is arithmetic, *engine* is llama.cpp's own answer without weights.

# %%
import sys

import helpers
from helpers import figures, fit, hardware, memory, models, panels, units

machine = hardware.detect()
print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")
print(f"{units.show(machine.ram_available_bytes)} free here")

# %% [markdown]
# ## Will it fit?
#
# Questions for a class: which lever saves most? Which costs nothing? Which computer is the smallest on which this runs?

# %%
panels.fit_panel(machine)

# %% [markdown]
# The same as text, for the choice that the panel starts with:

# %%
for name, needs, verdict in fit.ladder(models.get("llama-3.1-8b"), machine, n_ctx=8192):
    print(f"{name:7} {units.show(needs.total_bytes):>9}  {verdict.sentence}")

# %% [markdown]
# ## Every model at once
#
# What is the largest model of this table that fits here? And the largest that fits at 6 bits? Click a cell to see it in
# full.

# %%
panels.compare_panel(machine)

# %% [markdown]
# The same for a few models, as text: the largest quantization that fits with room to spare.

# %%
for name in ("gemma-3-1b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "llama-3.1-70b"):
    ladder = fit.ladder(models.get(name), machine, n_ctx=8192)
    best = [quantization for quantization, _, verdict in ladder if verdict.status == "fits"]
    print(f"{name:14} {best[0] if best else 'nothing fits'}")

# %% [markdown]
# ## How long may the text be?
#
# One line for each model. Where a line crosses the one of this computer, the text has become too long. Which model has
# the flattest line?

# %%
panels.context_panel(machine)

# %% [markdown]
# The same kind of numbers as a table, for five models at Q4_K_M. Change the names and run the cell again.

# %%
from IPython.display import HTML

names = ("llama-3.1-8b", "llama-2-7b", "gemma-3-4b", "qwen3-8b", "smollm2-135m")
shown = [models.get(name) for name in names]
HTML(figures.context_table_html(shown, "Q4_K_M"))

# %% [markdown]
# ## What a number of bits does
#
# The same model at five quantizations, part by part.

# %%
model = models.get("qwen3-8b")
columns = {}
for quantization in ("F16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K"):
    columns[quantization] = memory.estimate(model, quantization, n_ctx=8192).parts()
figures.compare_figure(columns, title=f"{model.title}, 8,192 tokens")

# %%
HTML(figures.compare_table_html(columns))

# %% [markdown]
# ## What the cache costs
#
# Fewer bits for the cache make it smaller. The other parts hardly change.

# %%
for cache in ("f16", "q8_0", "q4_0"):
    settings = {"cache_type_k": cache, "cache_type_v": cache}
    needs = memory.estimate(model, "Q4_K_M", n_ctx=32768, **settings)
    total = units.show(needs.total_bytes)
    print(f"{cache:5} cache {units.show(needs.kv_bytes):>8}, in all {total}")

# %% [markdown]
# ## A model of your own
#
# Change one number of the shape and watch. What does a second set of KV heads cost? What happens to the file when the
# vocabulary doubles?

# %%
panels.design_panel()

# %% [markdown]
# As text: the same shape with more and more KV heads.

# %%
from dataclasses import replace

for n_head_kv in (1, 2, 4, 8, 16, 32):
    spec = replace(models.get("llama-3.1-8b"), n_head_kv=n_head_kv)
    needs = memory.estimate(spec, "Q4_K_M", n_ctx=8192)
    parts = f"weights {units.show(needs.weights_bytes)}, cache {units.show(needs.kv_bytes)}"
    print(f"{n_head_kv:2} KV heads: {spec.n_params / 1e9:.2f} billion weights, {parts}")

# %% [markdown]
# ## Two memories
#
# Layers move to the GPU, one by one. What moves with them, and what stays? Where no GPU is found, one is pretended.

# %%
panels.offload_panel(machine)

# %% [markdown]
# As text, for Llama 3.1 8B, which has 32 layers and its output matrix:

# %%
for n_gpu_layers in (0, 8, 16, 24, 33):
    settings = {"n_ctx": 8192, "n_gpu_layers": n_gpu_layers}
    needs = memory.estimate(models.get("llama-3.1-8b"), "Q4_K_M", **settings)
    gpu = sum(needs.gpu_parts().values())
    rest = units.show(sum(needs.by_device["cpu"].values()) if gpu else needs.total_bytes)
    print(f"{n_gpu_layers:2} on the GPU: {units.show(gpu):>8} there, {rest} in the RAM")

# %% [markdown]
# Words: quantization, KV cache, context length, compute buffer ([glossary](../lessons/glossary.md)).
#
# Back to the start: [Start here](00_start_here.ipynb)
