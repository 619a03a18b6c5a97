# %% [markdown]
# # Choose a model
#
# - **Promise:** You check what an article says about models, by code, and choose a model with reasons of your own.
# - **Needs:** nothing
# - **Minutes:** 35

# %% [markdown]
# ## Goals
#
# 1. Check a printed claim about a model: its name, its file, its need.
# 2. Recompute a table of sizes and say where it is right.
# 3. Choose a model for a use and a computer, and say why.
#
# ## Do you remember?
#
# A rule says: file times 1.2. What does it not know? (Lesson 07: the context and the vocabulary.)

# %%
import sys
import textwrap

import helpers
from helpers import check, claims, figures, fit, hardware, memory, models, panels, units
from helpers.check import ____

machine = hardware.detect()
print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")
print(f"claims to check: {len(claims.listed())}")

# %% [markdown]
# ## Predict
#
# An article in Chinese about local models was read claim by claim, and claims that code or a source can check were put
# in a list. Here are the first six. How many per cent of the whole list are true as printed?

# %%
for claim in claims.listed()[:6]:
    print(f"section {claim.where}: {claim.says}")
guess = ____
check.predict("11-true", guess, unit="%")

# %% [markdown]
# ## Run
#
# Each check is a few lines in `helpers/claims.py`: it calculates the file or the need, or looks a name up, and
# compares. A printed number is "true" within 1 % of the calculated one, and "approximate" within 5 %; where the article
# says "about", within 5 % and 20 %. The article never says how long the text is: the kit takes 4,096 tokens.

# %%
found = claims.check_all()
for verdict, count in found.counts().items():
    print(f"{claims.SIGNS[verdict]} {verdict:12} {count:3} {'#' * count}")

# %% [markdown]
# ## See

# %%
check.outcome("11-true", 100 * found.counts()["true"] / len(found), unit="%")

# %% [markdown]
# Here are the claims with a rule of thumb behind them, then the false ones. "Ratio" is the article's number divided by
# the kit's. No need to read every row: find one that surprises you.

# %%
found.only("rule")

# %%
found.only("false")

# %% [markdown]
# ## Why
#
# One question explains it: *where did the author get this from?* So count by kind: files, needs, needs that are a file
# plus a constant, and names.

# %%
for kind in ("file", "need", "constant", "tag"):
    verdicts = [finding.verdict for finding in found if finding.claim.check == kind]
    print(f"{kind:9} {verdicts.count('true'):2} of {len(verdicts):2} true as printed")

# %% [markdown]
# - **Files** are mostly right. Somebody read them off a download page, or copied from one who did.
# - **Needs**: half of them ("constant") are the file plus 2.5 GB, a rule that a publisher of files printed in his
#   tables. It was copied as if somebody had measured it. It knows no context. For a model that keeps many keys and
#   values it is near the formula at 4,096 tokens (Orca-Mini), for others it is far too much (Mistral).
# - **Names** are wrong surprisingly often: a slip survives every copy when nobody types the command. (The list leaves
#   out some of the right ones. Of the article's 19 different names, 4 do not exist.) Most of the files that failed have
#   the right size under a wrong name (their ratio is 1.00).
#
# You can now check the next article.

# %% [markdown]
# ## Predict
#
# Seven names that people type after `ollama run`. How many of them do not exist?

# %%
typed = ("gemma2:4b", "mistral:7b", "deepseek-coder-v2:6.7b", "llama3:8b-instruct")
typed += ("qwen3:1.7b", "gemma2:7b", "phi3:3.8b")
guess = ____
check.predict("11-names", guess, unit="names")

# %% [markdown]
# ## Run

# %%
wrong = [name for name in typed if claims.meant(name)[1]]
for name in typed:
    spec, why = models.resolve(name)
    line = f"{'✕' if name in wrong else '✓'} {name}: {why}"
    print(textwrap.fill(line, 100, subsequent_indent="    "))
check.outcome("11-names", len(wrong), unit="names")

# %% [markdown]
# ## See
#
# The catalogue does not guess: a wrong name is an error, which says what was meant.

# %%
try:
    models.get("gemma2:4b")
except KeyError as error:
    print(textwrap.fill(error.args[0], 100))

# %% [markdown]
# ## Why
#
# A model's name has three parts: family, version and size. Not every combination exists. And a name may hide a
# difference: DeepSeek R1 7B is a Qwen that was trained on the answers of R1.

# %% [markdown]
# ## Predict
#
# The article's table by parameters has a column "theoretical memory": half a byte for each weight, so 3.5 GB for a 7B.
# How many GB do the weights of Llama 2 7B take at Q4_K_M?

# %%
guess = ____
check.predict("11-theory", guess, unit="GB")

# %% [markdown]
# ## Run
#
# Left: the article's theory / our weights at Q4_K_M, in GB. Right: the article's "real RAM" / our need at 4,096 tokens
# (less for models that were made for less); its ratio is taken from the middle of the article's range. The two gpt-oss
# come in MXFP4 only, 4.25 bits a weight, so they are taken so.

# %%
rows = claims.sizes()
for row in rows:
    print(row, "(our choice)" if row.ours else "")
llama = next(row for row in rows if row.spec.name == "llama-2-7b")
check.outcome("11-theory", llama.weights_gb, unit="GB")

# %% [markdown]
# ## See
#
# Three bars for "a 7B in 4 bits": the theory (3.5 GB are 3.3 GiB) and two real models at the same quantization and
# context. The table below has the same numbers.

# %%
columns = {"theory": {"weights": units.bytes_from_bits(7 * units.GB, 4)}}
for name in ("llama-2-7b", "mistral-7b-v0.3"):
    columns[models.get(name).title] = memory.estimate(models.get(name), n_ctx=4096).parts()
figures.compare_figure(columns, title="A 7B in 4 bits: theory and two models, 4,096 tokens")

# %%
from IPython.display import HTML

HTML(figures.compare_table_html(columns))

# %% [markdown]
# ## Why
#
# The theory column is too low in every row: Q4_K_M stores more than 4 bits a weight, because scales take room and some
# tensors get more bits. And no "7B" has exactly 7 billion weights.
#
# The "real RAM" column is a better guess than it looks: in most rows our need lies in its range. It fails where the
# name hides the size (Phi-3 mini stands under 3B), in small models, where cache and vocabulary weigh more (Gemma 2B,
# Qwen3 4B), and where a model keeps keys and values for all of its heads: of the two bars on the right, the one with
# the large KV cache.

# %% [markdown]
# ## Try
#
# First the article's table by hardware. The next cell asks which is the largest model of the catalogue that fits at
# Q4_K_M and 4,096 tokens, if other programs take 3 GiB. Change `others` and run it again: which row changes first?

# %%
others = 3 * units.GIB
needs = memory.grid(map(models.get, models.names()), ["Q4_K_M"], [4096])
for ram, says, _ in claims.hardware_rows():
    free = ram * units.GIB - others
    fitting = [models.get(key[0]) for key, n_bytes in needs.items() if n_bytes <= free]
    largest = max(fitting, key=lambda spec: spec.n_params)
    print(f"{ram:3} GiB: the article says {says:10} largest here: {largest.title}")

# %% [markdown]
# Then by use. The article names Llama 3 8B and Mistral 7B as general assistants, Qwen2 7B for languages, Gemma 7B for
# writing. These are what the kit proposes for a computer of 16 GiB. Its ranking is a *rule*, not a measurement:
# `help(fit.recommend)` tells which, and when it misleads.

# %%
desk = hardware.Machine.pretend("16 GiB", 16 * units.GIB - others, 16 * units.GIB)
for use in fit.USES:
    for choice in fit.recommend(desk, use, most=3):
        name = f"{choice.spec.title}, {choice.quantization}"
        takes = f"{units.show(choice.estimate.total_bytes):>8}, {choice.spec.year}"
        print(f"{use:9} {name:34} {takes}, {choice.spec.license}")

# %% [markdown]
# Now the panel, with a job: the article gives Mistral 7B to every computer with 8 GB. Press "another computer" and give
# it 5 GiB, which is 8 GiB without the 3 that others take. How long may the text become before it no longer fits?

# %%
panels.fit_panel(machine, model="mistral-7b-v0.3", n_ctx=4096)

# %% [markdown]
# The same numbers without a panel:

# %%
small = hardware.Machine.pretend("8 GiB", 8 * units.GIB - others, 8 * units.GIB)
for n_ctx in (2048, 4096, 8192, 16384):
    one = memory.estimate(models.get("mistral-7b-v0.3"), "Q4_K_M", n_ctx=n_ctx)
    print(f"{n_ctx:6,} tokens: {fit.judge(one, small).sentence}")

# %% [markdown]
# ## Exercise 1
#
# A publisher's table says: file 4.08 GB, "max RAM" 6.58 GB. A second line of the same table has a file of 7.16 GB.
# Which "max RAM" stands in it, in GB?

# %%
# stub
answer = ____
# solution
answer = 7.16 + (6.58 - 4.08)
# end solution
orca = models.get("orca-mini-7b")
file_gb = memory.file_bytes(orca, "Q8_0") / units.GB
ideas = {"times a factor instead of plus a constant": file_gb * 6.58 / 4.08}
ideas["file times 1.2, the other rule"] = 1.2 * file_gb
hints = ("Subtract: what was added to the first file?", "The constant is the same everywhere.")
expected = file_gb + claims.CONSTANT_GB
check.number("11-constant", answer, expected, "GB", 0.005, ideas, hints)

# %% [markdown]
# ## Exercise 2
#
# A friend says: "I run DeepSeek R1 7B on my laptop." Whose shape does the model on that laptop have: `"r1"`, `"llama"`
# or `"qwen"`?

# %%
# stub
answer = ____
# solution
answer = "qwen"
# end solution
spec, why = models.resolve("deepseek-r1:7b")
shape = "qwen" if spec.architecture.startswith("qwen") else "llama"
ideas = {
    "r1": "R1 itself was made smaller",
    "llama": "the 7B has the same parent as the 8B, which is a Llama",
}
hints = ("print(models.resolve('deepseek-r1-7b')) says where it comes from.",)
check.choice("11-parent", answer, shape, ideas, hints)

# %% [markdown]
# ## Exercise 3
#
# About your own machine. You want to sell what you build, so the licence must be Apache 2.0 or MIT. Name a model and a
# quantization that fit here at 8,192 tokens, as `("model", "quantization")`. The model must have been made for texts
# that long. `models.names()` lists the models.


# %%
def fits_here(answer):
    needed = memory.estimate(models.get(answer[0]), answer[1], n_ctx=8192)
    return fit.judge(needed, machine).status in ("fits", "tight")


def may_sell(answer):
    return models.get(answer[0]).license.lower() in ("apache-2.0", "mit")


def long_enough(answer):
    return models.get(answer[0]).n_ctx_train >= 8192


# %%
# stub
answer = (____, ____)
# solution
mine = [(c.spec.name, c.quantization) for c in fit.recommend(machine, most=50)]
answer = next(filter(may_sell, mine))
# end solution
ideas = {
    "it fits, so it may be sold": lambda answer: not may_sell(answer),
    "any model can take 8,192 tokens": lambda answer: not long_enough(answer),
    "it is known to be good, so it fits": lambda answer: not fits_here(answer),
}
wrong = ("gemma-3-270m", "Q4_K_M"), ("phi-2", "Q4_0"), ("gpt-oss-120b", "F32")
hints = ("fit.recommend(machine) proposes some.", "models.get('phi-2').license is a licence.")
more = dict(zip(ideas, wrong, strict=True)), hints
tests = (fits_here, may_sell, long_enough)
check.true("11-own", answer, lambda a: all(t(a) for t in tests), ideas, *more)

# %% [markdown]
# ## Measure
#
# The kit's own claim, checked like the article's: the file of SmolLM2 135M at Q4_1, calculated and on this disk.
# (Skip the cell where the packaged model is missing.)

# %% tags=["model"]
from helpers import download

claimed = memory.file_bytes(models.get("smollm2-135m"), "Q4_1")
on_disk = download.default_model().stat().st_size
print(f"calculated {claimed:,} bytes, on disk {on_disk:,} bytes")
print(f"calculated / on disk = {claimed / on_disk:.5f}")

# %% [markdown]
# ## Recap
#
# - You checked printed claims: names, files and needs.
# - You recomputed a table of sizes and said where it is right.
# - You chose a model for a use and a computer, and said why.
#
# Words: parameter, bits per weight, model file type, quantization ([glossary](../lessons/glossary.md)).
#
# Next: [Three tools](12_three_tools.ipynb)
