# %% [markdown]
# # Three tools, one engine
#
# - **Promise:** You find the models and servers that this computer already has, and compare Ollama, LM Studio and
#   llama.cpp by what they really do.
# - **Needs:** 1 GB free
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Say what Ollama, LM Studio and llama.cpp share, and in which defaults they differ.
# 2. Find the model files that are on this disk, and open one of Ollama's as GGUF.
# 3. Put one question to several programs and compare what was measured.
#
# ## Do you remember?
#
# What are the three parts of a GGUF file? (Lesson 04: metadata, the list of tensors, their data.)
#
# This lesson works with whichever of the three tools are here, even with none. Some cells need llama-cpp-python and the
# model that comes with the kit; `python3 start.py` installs both. Where one is missing such a cell ends in red: go on
# with the next one. How to get the tools stands at the end.

# %%
import sys

import helpers
from helpers import check, fit, gguf, hardware, memory, models, servers, stores, units
from helpers.check import ____

machine = hardware.detect()
print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")
print(f"free memory: {units.show(machine.ram_available_bytes)}")

# %% [markdown]
# ## Predict
#
# How many different language models lie on this disk already, as GGUF files? One comes with this kit. Ollama, LM
# Studio, GPT4All, Jan and download scripts leave others behind, often the same file twice.

# %%
guess = ____
check.predict("12-files", guess, unit="files")

# %% [markdown]
# ## Run
#
# Nothing is started and nothing is changed: these are files in folders. The same content in two folders is one row.

# %%
on_disk = servers.local_models()
on_disk

# %% [markdown]
# ## See

# %%
check.outcome("12-files", len(on_disk), unit="files")
wasted_bytes = sum(model.wasted_bytes for model in on_disk)
print(f"taken by further copies of the same content: {units.show(wasted_bytes)}")
places = {place.tool for place in stores.places() if place.folder.is_dir()}
print("folders of these tools are here:", ", ".join(sorted(places)) or "none")

# %% [markdown]
# ## Why
#
# All of these programs have llama.cpp inside (some have a second engine beside it), so they keep the files that
# llama.cpp reads. Each has its own folder, and few look into the folder of another: whoever tries three tools downloads
# a model three times. The SHA-256 of a file, its fingerprint, tells that two are the same whatever they are called.

# %% [markdown]
# ## A file without a name
#
# Ollama's folder has no file called `.gguf`. A small text, the manifest, stands for a tag such as `smollm2:135m`; it
# lists layers, and the layer of kind `model` is a blob named after its SHA-256. This cell lays the kit's model out in
# that way, in a folder of its own that is deleted afterwards: so the layout can be seen where Ollama is missing too.

# %% tags=["model"]
import tempfile
from pathlib import Path

from helpers import download

folder = tempfile.TemporaryDirectory()
manifest = stores.lay_out(download.default_model(), folder.name, "smollm2:135m")
print(manifest.relative_to(folder.name))
print(manifest.read_text(encoding="utf-8"))
for blob in Path(folder.name, "blobs").iterdir():
    print(blob.name, units.show(blob.stat().st_size))

# %% tags=["model"]
theirs = [model for model in stores.ollama_models() if not model.note]
print("Ollama's own store" if theirs else "the layout made above; Ollama is not here")
tagged = (theirs or stores.ollama_models(folder.name))[0]
with tagged.path.open("rb") as blob:
    print(tagged, "\nfirst four bytes:", blob.read(4))
gguf.read_header(tagged.path)

# %% [markdown]
# The blob is an ordinary GGUF file: everything of lessons 04 and 07 works on it, and so does `runner.load`. Nothing has
# to be downloaded or converted to use it elsewhere.

# %% [markdown]
# ## Predict
#
# Llama 3.1 8B at Q4_K_M is loaded without any setting. Ollama gives it 4,096 tokens of context where there is less than
# 24 GiB of video memory ([its documentation](https://docs.ollama.com/context-length)). llama-server asks for all that
# the model was made for, 131,072. How many times as large is the KV cache of llama-server?

# %%
guess = ____
check.predict("12-default", guess, unit="times")

# %% [markdown]
# ## Run

# %%
llama = models.get("llama-3.1-8b")
slots = {"n_parallel": 4, "kv_unified": True}
defaults = {
    "Ollama": memory.Settings(n_ctx=4096),
    "LM Studio": memory.Settings(n_ctx=4096, **slots),
    "llama-server": memory.Settings(n_ctx=llama.n_ctx_train, **slots),
}
for tool, settings in defaults.items():
    needs = memory.estimate(llama, "Q4_K_M", **vars(settings))
    kv, whole = units.show(needs.kv_bytes), units.show(needs.total_bytes)
    print(f"{tool:13} cache {kv:>9}, in all {whole:>9}: {fit.judge(needs, machine).status}")

# %% [markdown]
# ## See

# %%
small = memory.kv_cache_bytes(llama, defaults["Ollama"])
large = memory.kv_cache_bytes(llama, defaults["llama-server"])
check.outcome("12-default", large / small, unit="times")

# %% [markdown]
# ## Why
#
# The engine is the same, the defaults are not. "It runs in Ollama but not in llama-server", or "Ollama forgets the
# beginning of my text", is nearly always one of these lines:
#
# - *Context.* Ollama: 4,096 tokens (32,768 from 24 GiB of video memory on, 262,144 from 48 GiB on). LM Studio: 4,096 in
#   reports of its users; its window shows and changes it. llama-server: the model's own, or less where that does not
#   fit.
# - *Quantization.* Ollama's short tags mean one chosen for you, often Q4_K_M, older ones Q4_0, `smollm2:1.7b` Q8_0.
#   LM Studio and llama-server run the file that you pick.
# - *Questions at once.* Ollama: 1. LM Studio and llama-server: 4, in slots.
# - *Unloading.* Ollama gives the memory back after 5 minutes, LM Studio after 60 when a program asked for the model;
#   llama-server keeps it until it ends.
# - *Address.* Ollama 11434, LM Studio 1234, llama-server 8080; all three also speak OpenAI's protocol under `/v1`.
#
# Sources: the documentation of [Ollama](https://docs.ollama.com/faq), [LM Studio](https://lmstudio.ai/docs) and
# [llama-server](https://github.com/ggml-org/llama.cpp/tree/master/tools/server). Defaults change with versions: ask
# your own server, as below.

# %% [markdown]
# ## Which servers run here?
#
# This looks at the usual ports of this computer, and at two addresses that you may have named: `OLLAMA_HOST` and
# `HELPERS_SERVER` (the big machine of a class). Nobody else is asked. It takes at most 5 seconds.

# %%
running = servers.find()
for server in running:
    print(server)
    for offered in server.models():
        print("  ", offered)
if not running:
    print("No server of models runs here. The lesson goes on with the kit's own runner.")

# %% [markdown]
# When a server does not run, or does not do what it should, the kit says so in one sentence: the last line of the red
# text. The next cell is meant to fail: nothing listens at port 9.

# %% tags=["fails"]
servers.ask("http://127.0.0.1:9", "Are you there?")

# %% [markdown]
# ## Measure
#
# One question to everything that is here. The kit's runner and every server are timed by the same clock; a server's own
# figure stands beside it. From a server with several models the one is taken that is loaded, or else the smallest.

# %% tags=["model"]
from helpers import ports, runner

asked = [runner.load(download.default_model(), n_ctx=2048)]
for server in running:
    known = [model for model in server.models() if model.note != ports.FOR_EMBEDDINGS]
    known.sort(key=lambda model: (not model.loaded, model.size_bytes))
    asked.append((server, known[0].name if known else None))
question = "What is a computer? Answer in one sentence."
replies = servers.compare(asked, question, max_tokens=48, temperature=0)
for reply in replies:
    print(reply, end="\n\n")

# %% tags=["model"]
first = replies[0]
for reply in replies:
    if isinstance(reply, servers.Reply) and first.tokens_per_second:
        ratio = reply.tokens_per_second / first.tokens_per_second
        own = reply.server_says.get("tokens_per_second", 0)
        print(f"{reply.where}: {ratio:.2f} of the runner's speed; its own figure: {own:.1f}")
asked[0].close()
folder.cleanup()

# %% [markdown]
# With the same file, differences of some per cent are noise of this minute: run the cell twice. Larger ones have
# reasons: another model or quantization, a GPU, the number of threads, a prompt that was still in the cache (the note
# says so). Different models are compared here for their speed only.

# %% [markdown]
# ## Try
#
# Job: find a choice that fits this computer with 16,384 tokens of context, and read in the panel how llama.cpp and
# Ollama are told the same. What becomes of the tag when you choose IQ4_XS?

# %%
from helpers import commands, panels

panels.fit_panel(machine, "qwen3-4b", n_ctx=16384)

# %% [markdown]
# The same without a panel, for all three tools, as text to copy. These commands follow the documentation; the kit does
# not run them.

# %%
qwen, settings = models.get("qwen3-4b"), memory.Settings(n_ctx=16384)
for quantization in ("Q4_K_M", "IQ4_XS"):
    print(f"--- {quantization}: llama.cpp; Ollama's Modelfile and command; LM Studio")
    print(commands.llama_server(qwen, quantization, settings))
    print(commands.modelfile(qwen, quantization, settings))
    print(commands.ollama_run(qwen, quantization))
    print(commands.lm_studio(qwen, quantization, settings))

# %% [markdown]
# ## Exercise 1
#
# Somebody starts Ollama with `OLLAMA_NUM_PARALLEL=4`, and Llama 3.1 8B with `num_ctx 8192`. Ollama counts the context
# per slot. A token of this model takes 128 KiB of KV cache (lesson 05). How many GiB does the whole cache take?

# %%
# stub
answer = ____
# solution
answer = 4 * 8192 * 128 / 1024**2
# end solution
four_slots = memory.Settings(n_ctx=4 * 8192, n_parallel=4)
expected = memory.kv_cache_bytes(llama, four_slots) / units.GIB
one_slot = memory.kv_cache_bytes(llama, memory.Settings(n_ctx=8192)) / units.GIB
ideas = {"8,192 tokens for all four together": one_slot, "a quarter of a slot": one_slot / 4}
hints = ("How many tokens are that in all?", "KiB divided by 1024 twice are GiB.")
check.number("12-slots", answer, expected, unit="GiB", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# A friend has `llama3.1:8b` in Ollama and wants the same model in llama-server. What must be downloaded or converted:
# `"everything"` (the model again), `"converted"` (the blob into GGUF), or `"nothing"`?

# %%
# stub
answer = ____
# solution
answer = "nothing"
# end solution
ideas = {
    "everything": "Ollama has models of a kind of its own",
    "converted": "a blob is another format",
}
hints = ("With which four letters does the blob begin?",)
why = "llama-server --model takes the path of the blob."
check.choice("12-blob", answer, "nothing", ideas=ideas, hints=hints, why=why)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: it is the server of a class. One process serves SmolLM2 at Q4_1, each learner has a slot of
# 4,096 tokens, and the weights are there once. How many slots fit into the memory that is free?

# %%
smollm, free = models.get("smollm2-135m"), machine.ram_available_bytes
one = memory.estimate(smollm, "Q4_1", n_ctx=4096).total_bytes
two = memory.estimate(smollm, "Q4_1", n_ctx=8192, n_parallel=2).total_bytes
print(f"free {free:,}, with one slot {one:,}, with two {two:,} bytes")
# stub
answer = ____
# solution
answer = 1 + (free - one) // (two - one)
# end solution

# %%
expected = 1 + (free - one) // (two - one)
ideas = {
    "a whole model for everybody": free // one,
    "all slots as dear as the first two": 2 * free // two,
}
hints = ("What does the second slot cost?", "The first one pays for the weights.")
check.number("12-class", answer, expected, unit="slots", ideas=ideas, hints=hints)

# %% [markdown]
# To let a class share one big machine, start `llama-server --host 0.0.0.0 --parallel N` on it, and set the variable
# `HELPERS_SERVER` to its address on the others; `servers.ask("class", "...")` then asks it. Do so only in a network
# that you trust: whoever reaches that port can use it.
#
# ## How to get the tools
#
# - *Ollama*: [ollama.com/download](https://ollama.com/download), then `ollama pull smollm2:135m` (271 MB, F16).
# - *LM Studio*: [lmstudio.ai](https://lmstudio.ai), then `lms get` or its search; its server is off until you start it.
# - *llama.cpp*: `brew install llama.cpp`, `winget install llama.cpp`, or a download from
#   [its releases](https://github.com/ggml-org/llama.cpp/releases); then the commands printed above.
#
# Run this lesson again afterwards: more rows, more replies. The authors had llama.cpp's server here; Ollama and LM
# Studio are handled by their documentation and were never run.

# %% [markdown]
# ## Recap
#
# - You said what Ollama, LM Studio and llama.cpp share, and in which defaults they differ.
# - You found the model files that are on this disk, and opened one of Ollama's as GGUF.
# - You put one question to several programs and compared what was measured.
#
# Words: llama.cpp, Ollama, LM Studio, GGUF, context length, KV cache ([glossary](../lessons/glossary.md)).
#
# Back: [Choose a model](11_choose_a_model.ipynb). Next: [Put it to work](13_put_it_to_work.ipynb)
