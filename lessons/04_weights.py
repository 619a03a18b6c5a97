# %% [markdown]
# # What is in a model file
#
# - **Promise:** You open a real model file, see what it is made of, and predict the size of others before downloading.
# - **Needs:** nothing
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Dissect a GGUF file: metadata, tensors, types.
# 2. Work out the bytes of a tensor from its shape and its type.
# 3. Predict the file of any model at any quantization.
#
# ## Do you remember?
#
# Why does Q4_0 take 4.5 bits a weight, not 4? (Lesson 03: each block of 32 weights has a scale of its own, 2 bytes. 18
# bytes for 32 weights are 4.5 bits each.)

# %%
import sys

import helpers
from helpers import check, formats, gguf, hardware, memory, mixes, models, panels, units
from helpers.check import ____

machine = hardware.detect()
print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")

# %% [markdown]
# ## Predict
#
# The kit brings a real model, SmolLM2 135M, as one file. Part of it is a table with one row of numbers for each word
# piece the model knows: the embedding. What share of the file does this table take, in per cent?

# %%
guess = ____
check.predict("04-embedding", guess, unit="%")

# %% [markdown]
# ## Run
#
# A GGUF file has three parts: metadata (name and value pairs), a list of tensors, and then the numbers of all tensors.
# The first two parts are the header. Reading it takes a moment, however large the model is. (Without the packaged
# model the next three cells are skipped. The shape of the model is enough to follow, as you will see.)

# %% tags=["model"]
from helpers import download

header = gguf.read_header(download.default_model())
print(header)

# %% [markdown]
# Metadata says who made the model, its shape, and how to talk to it. The vocabulary is there too: a list of 49,152
# pieces of words, which is not printed here.

# %% tags=["model"]
for key in (
    "general.architecture",
    "general.license",
    "llama.block_count",
    "llama.embedding_length",
    "llama.context_length",
    "general.file_type",
    "tokenizer.chat_template",
):
    print(f"{key:25} {str(header.metadata[key])[:60]}")

# %% [markdown]
# A tensor is a table of numbers with a name, a shape and a type. `blk.0` is the first layer; the other layers have
# tensors of the same names.

# %% tags=["model"]
for t in header.tensors[:10]:
    print(f"{t.name:26} {str(t.shape):14} {t.type:5} {units.show(t.n_bytes):>9}")

# %% [markdown]
# ## See
#
# Now the same without the file, from what the kit knows about this model: its shape gives the names and shapes of all
# tensors, and the recipe of Q4_1 says which type each of them gets. The bytes follow.

# %%
from helpers import architectures


def described(spec, quantization):
    types = mixes.tensor_types(spec, quantization)
    shapes = architectures.tensors(spec)
    return [(t.name, formats.tensor_bytes(types[t.name], t.shape)) for t in shapes]


small = models.get("smollm2-135m")
tensors = described(small, "Q4_1")
print(f"{len(tensors)} tensors, {units.show(sum(n for _, n in tensors))}")

# %%
from IPython.display import HTML

from helpers import figures_machine

parts = figures_machine.file_parts(tensors, memory.header_bytes(small))
HTML(figures_machine.file_html(parts, "SmolLM2 135M, Q4_1: each piece as long as its bytes"))

# %%
check.outcome("04-embedding", 100 * parts["embedding"] / sum(parts.values()), unit="%")

# %%
llama = models.get("llama-3.1-8b")
large = figures_machine.file_parts(described(llama, "Q4_K_M"), memory.header_bytes(llama))
HTML(figures_machine.file_html(large, "Llama 3.1 8B, Q4_K_M: each piece as long as its bytes"))

# %% [markdown]
# ## Why
#
# The length of a vocabulary is a matter of languages, not of the model's size, so its table weighs most in a small
# model. SmolLM2 uses this table twice, at the beginning and at the end; the recipe gives it a better type than the
# rest. That is why a file called Q4_1 can have more bits a weight than its name says: the name is a recipe, not a type.
#
# Most of a large model is feed-forward: two or three large tables in each layer.

# %%
for spec, quantization in ((small, "Q4_1"), (llama, "Q4_K_M")):
    bits = units.bits_per_weight(memory.weights_bytes(spec, quantization), spec.n_params)
    kinds = sorted(set(mixes.tensor_types(spec, quantization).values()))
    print(f"{spec.title:13} {quantization:7} {bits:.2f} bits a weight, from {', '.join(kinds)}")

# %% [markdown]
# ## Predict
#
# An article says (a **rule**): "A model with 7 billion parameters takes about 14 GB at FP16, and 4 to 5 GB after 4-bit
# quantization." Llama 2 7B at Q4_K_M: how many GB will its *file* have?

# %%
guess = ____
check.predict("04-seven", guess, unit="GB")

# %% [markdown]
# ## Run
#
# Weights times bits, divided by 8, is the bulk of it; the header comes on top. And then somebody wants to use the
# model: the last column adds what it takes to run it with 2,048 tokens of context.

# %%
seven = models.get("llama-2-7b")
print(f"{seven.n_params:,} weights")
for quantization in ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"):
    file_bytes = memory.file_bytes(seven, quantization)
    bits = units.bits_per_weight(memory.weights_bytes(seven, quantization), seven.n_params)
    running = memory.estimate(seven, quantization, n_ctx=2048).total_bytes
    in_file, in_use = units.show_decimal(file_bytes), units.show_decimal(running)
    print(f"{quantization:7} {bits:5.2f} bits: file {in_file:>8}, running {in_use:>8}")

# %% [markdown]
# ## See

# %%
check.outcome("04-seven", memory.file_bytes(seven, "Q4_K_M") / units.GB, unit="GB")

# %%
exact = units.bytes_from_bits(7_000_000_000, 16), units.bytes_from_bits(7_000_000_000, 4)
print(f"exactly 7 billion weights: {units.show_decimal(exact[0])} at 16 bits")
print(f"and {units.show_decimal(exact[1])} at exactly 4 bits, which no Q4 file has")

# %% [markdown]
# ## Why
#
# The article's 14 GB are 7 billion times 2 bytes, and its 4 to 5 GB are right for the file. Running it takes more than
# the file: context and scratch paper, and the program itself. With 2,048 tokens this model is already above 5 GB.

# %% [markdown]
# ## Predict
#
# Gemma 7B has "7B" in its name. How many billion weights are in its file?

# %%
guess = ____
check.predict("04-name", guess, unit="billion")

# %% [markdown]
# ## Run

# %%
for name in ("llama-2-7b", "mistral-7b-v0.1", "qwen2.5-7b", "gemma-7b"):
    spec = models.get(name)
    size = units.show_decimal(memory.file_bytes(spec, "Q4_K_M"))
    print(f"{spec.title:16} {spec.n_params / 1e9:.2f} billion weights, Q4_K_M file {size}")
check.outcome("04-name", models.get("gemma-7b").n_params / 1e9, unit="billion")

# %% [markdown]
# ## Why
#
# A name is a name. Publishers round, and some leave the embedding out. Count the weights, not the letters: the list of
# tensors knows.

# %% [markdown]
# ## Try
#
# You have 6 GiB free and want the best file of a "7B" model. In the panel press "another computer", set 6 GiB, choose
# qwen2.5-7b and 2k tokens. Which is the largest quantization that fits? Then choose mistral-7b-v0.1: one step more?

# %%
panels.fit_panel(machine, model="qwen2.5-7b", n_ctx=2048)

# %% [markdown]
# The sizes without a panel, in GiB, as memory is counted:

# %%
for quantization in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"):
    row = []
    for name in ("qwen2.5-7b", "mistral-7b-v0.1"):
        needs = memory.estimate(models.get(name), quantization, n_ctx=2048)
        row.append(f"{name} needs {units.show(needs.total_bytes)}")
    print(f"{quantization:7} {', '.join(row)}")

# %% [markdown]
# ## Exercise 1
#
# One tensor of Llama 3.1 8B, `blk.0.attn_q.weight`, has 4,096 rows of 4,096 weights and the type Q4_K: blocks of 256
# weights in 144 bytes. How many MiB is it?

# %%
# stub
answer = ____
# solution
answer = 4096 * 4096 / 256 * 144 / 1024**2
# end solution
expected = formats.tensor_bytes("Q4_K", (4096, 4096)) / units.MIB
n_weights = 4096 * 4096
ideas = {
    "exactly 4 bits a weight, no scales": units.bytes_from_bits(n_weights, 4) / units.MIB,
    "a byte for each weight": n_weights / units.MIB,
    "one row instead of 4,096": expected / 4096,
}
hints = ("How many blocks of 256 weights are there?", "Blocks x 144, divided by 1024 twice.")
check.number("04-tensor", answer, expected, unit="MiB", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# You are about to download Qwen3 8B at Q4_K_M: 8.19 billion weights, at about 4.9 bits each. How many GB will the file
# have? (3 % off is close enough: the bits differ a little from model to model.)

# %%
qwen = models.get("qwen3-8b")
# stub
answer = ____
# solution
answer = 8.19 * 4.9 / 8
# end solution
expected = memory.file_bytes(qwen, "Q4_K_M") / units.GB
ideas = {
    "exactly 4 bits, as the name says": units.bytes_from_bits(qwen.n_params, 4) / units.GB,
    "16 bits, as before quantizing": memory.file_bytes(qwen, "F16") / units.GB,
    "one byte for each weight": qwen.n_params / units.GB,
}
hints = ("Weights x bits / 8 gives bytes.", "8.19 x 4.9 / 8: billions of bytes are GB.")
check.number("04-qwen", answer, expected, "GB", tolerance=0.03, ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: which is the largest of these models whose Q4_K_M *weights* go into the memory that is free
# here? Write its name, in quotes.

# %%
names = ["smollm2-135m", "gemma-3-1b", "llama-2-7b", "llama-2-13b", "llama-3.1-70b"]
sizes = {name: memory.weights_bytes(models.get(name), "Q4_K_M") for name in names}
free = machine.ram_available_bytes
print(f"free here: {units.show(free)}; the choices:", *names)
largest = max([name for name in names if sizes[name] <= free] or names[:1], key=sizes.get)
# stub
answer = ____
# solution
answer = largest
# end solution
ideas = {name: f"nothing larger than {name} goes in" for name in names}
ideas |= {n: f"{units.show(sizes[n])} go into what is free" for n in names if sizes[n] > free}
del ideas[largest]
hints = ("print(sizes) shows the bytes.", "The output begins with what is free.")
check.choice("04-own", answer, largest, ideas=ideas, hints=hints)

# %% [markdown]
# ## Measure
#
# First the file that is here: predicted from the shape, against its bytes on this disk. (Skipped without the packaged
# model.)

# %% tags=["model"]
predicted, real = memory.file_bytes(small, "Q4_1"), download.default_model().stat().st_size
print(f"predicted {predicted:,} bytes, on disk {real:,} bytes")
print(f"predicted / real = {predicted / real:.5f}")
same = header.tensor_types == mixes.tensor_types(small, "Q4_1")
print(f"all {len(header.tensors)} tensor types as the recipe says: {same}")

# %% [markdown]
# Then files that nobody downloaded here: sizes that others **published**, beside the prediction. The sources are two
# lists of models on GitHub: `models2.json` of nomic-ai/gpt4all (at 38cc778a0c), and `default.json` of the model
# extension of menloresearch/jan (at 52bb54d2d5 and b0deeed937), which copies the sizes from the hub.

# %%
published = {
    ("mistral-7b-v0.1", "Q4_0", "gpt4all"): 4_108_916_384,
    ("llama-3.1-8b", "Q4_K_M", "jan"): 4_920_734_176,
    ("gemma-2-2b", "Q2_K", "jan"): 1_229_829_888,
    ("gemma-2-27b", "Q8_0", "jan"): 28_937_387_680,
}
for (name, quantization, source), real in published.items():
    predicted = memory.file_bytes(models.get(name), quantization)
    says = f"predicted {units.show_decimal(predicted)}, published {units.show_decimal(real)}"
    print(f"{name:15} {quantization:6} {says} ({source}): ratio {predicted / real:.5f}")

# %% [markdown]
# ## Recap
#
# - You dissected a GGUF file: metadata, tensors, types.
# - You worked out the bytes of a tensor from its shape and its type.
# - You predicted the file of any model at any quantization.
#
# Words: GGUF, tensor, parameter, layer, vocabulary, model file type ([glossary](../lessons/glossary.md)).
#
# Next: [The context has a price](05_context.ipynb)
