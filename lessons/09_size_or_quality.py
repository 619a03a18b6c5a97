# %% [markdown]
# # Size or quality
#
# - **Promise:** You measure what a smaller file costs, and choose a quantization with numbers instead of names.
# - **Needs:** 1 GB free
# - **Minutes:** 40

# %% [markdown]
# ## Goals
#
# 1. Calculate perplexity and KL divergence for a few words by hand.
# 2. Measure the loss of a quantized file, and say when two results cannot be told apart.
# 3. Choose a quantization that no other one beats.
#
# ## Do you remember?
#
# Q2_K stores a weight in 2.625 bits. How many bits does the "Q2_K" file of SmolLM2 take for a weight? (Lesson 03: more
# than 5, because most of its rows are too short for super-blocks, so that llama.cpp takes another type.)
#
# Cells that measure need llama-cpp-python and the packaged model. Where one is missing, such a cell ends in red, and
# its last line says what is missing; a run that was recorded on another machine takes its place. Run the cells below
# one by one ("Run All" stops at a red one).

# %%
import json
import sys
from pathlib import Path

import numpy as np
from IPython.display import HTML

import helpers
from helpers import check, download, figures_quality, fit, hardware, memory, models, quality
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")

# %% [markdown]
# ## Predict
#
# How good is a model? One answer that needs no opinion: give it a text, and look up how likely it found each word that
# really came. Here are four words, to which a model gave the probabilities 1/2, 1/4, 1/8 and 1/4.
#
# **Perplexity** puts that into one number: *as if it had chosen among so many equally likely words each time*. Four
# times 1/4 would be perplexity 4. And these four?

# %%
guess = ____
check.predict("09-perplexity", guess, unit="words")

# %% [markdown]
# ## Run
#
# A word with probability p is a *surprise* of -ln p: 0 for a word that was certain. Perplexity is the mean surprise,
# turned back by e.


# %%
def perplexity(probabilities):
    """As if choosing among so many equally likely words; given: the words that came."""
    surprises = -np.log(probabilities)
    return float(np.exp(surprises.mean()))


came = [1 / 2, 1 / 4, 1 / 8, 1 / 4]
print("surprises:", (-np.log(came)).round(3), "mean:", (-np.log(came)).mean().round(3))
check.outcome("09-perplexity", perplexity(came), unit="words")

# %% [markdown]
# ## See
#
# Perplexity looks at one probability in each step: that of the word that came. But a model says more; it gives one to
# every word. Here is one step of a model ("The cat sat on the ..."), and of the same model after its weights were
# rounded.


# %%
def kl_divergence(original, rounded):
    """How far the rounded probabilities are from the original ones; 0 where they agree."""
    return float((original * np.log(original / rounded)).sum())


words = ("mat", "sofa", "moon", "keyboard")
original = np.array([0.40, 0.30, 0.25, 0.05])
rounded = np.array([0.40, 0.45, 0.05, 0.10])
facts = {"perplexity": f"{1 / original[0]:.2f} and {1 / rounded[0]:.2f}"}
facts["KL divergence"] = f"{kl_divergence(original, rounded):.3f}"
both = {"original": original, "rounded": rounded}
HTML(figures_quality.tokens_html(words, both, facts, right="mat"))

# %% [markdown]
# ## Why
#
# The word that came, "mat", is as likely as before: perplexity notices nothing. Yet the rounded model would now say
# "sofa". **KL divergence** compares all words: each one's change, weighted with how likely the original found it.
#
# Which token comes first is a third measure: in how many steps of 100 do both models agree on it? That is **top-1
# agreement**. It is easy to understand, and blind to all that happens below the first place.
#
# ## Try
#
# The rounding below has a strength. Three jobs: find where the first choice changes. Find a strength where perplexity
# is *better* than the original's 2.50. Find one where KL divergence goes down when the strength goes up. (One of the
# three cannot be done.)


# %%
def view(noise):
    """One step, its scores moved in a fixed direction; without noise, the original."""
    moved = original * np.exp(noise * np.array([0.8, 1.1, -1.6, 1.5]))
    moved = moved / moved.sum()
    facts = {"perplexity": f"{1 / moved[0]:.2f}", "first choice": words[moved.argmax()]}
    facts["KL divergence"] = f"{kl_divergence(original, moved):.3f}"
    both = {"original": original, "rounded": moved}
    return facts, figures_quality.tokens_html(words, both, facts, right="mat")


# %%
import ipywidgets

noise = ipywidgets.FloatSlider(value=0, max=3, step=0.1, description="strength", readout=False)
field = ipywidgets.BoundedFloatText(value=0, max=3, step=0.1, description="in numbers")
picture = ipywidgets.HTML(view(0)[1])
ipywidgets.link((noise, "value"), (field, "value"))
noise.observe(lambda now: setattr(picture, "value", view(now["new"])[1]), "value")
ipywidgets.VBox([ipywidgets.HBox([noise, field]), picture])

# %% [markdown]
# The same without a panel:

# %%
for strength in (0, 0.3, 0.6, 0.9, 1.0, 1.5, 2, 3):
    print(strength, ", ".join(f"{name} {text}" for name, text in view(strength)[0].items()))

# %% [markdown]
# So a better perplexity after rounding is no better model, it is luck with this text. KL divergence has no luck: it can
# only tell how far the file is from its original.
#
# ## Predict
#
# Now a real model: SmolLM2, as packaged, against its own "Q2_K" file (5.1 bits a weight). In how many of 100 steps do
# both find the same token likeliest?

# %%
guess = ____
check.predict("09-top", guess, unit="of 100")

# %% [markdown]
# ## Run
#
# First the recorded run. If you can measure, the cell after it replaces it, in about a minute; it quantizes the
# packaged model in five ways and reads a text with each. Next time it takes seconds: results are kept on disk.

# %%
kept = Path(helpers.__file__).with_name("data") / "quality_recorded.json"
kept = json.loads(kept.read_text(encoding="utf-8"))
rows = [quality.Row(**row) for row in kept["rows"]]
found = quality.Comparison(tuple(rows[1:]), rows[0], kept["text"], kept["n_ctx"])
ways = [row.quantization for row in found]
print(kept["says"])

# %% tags=["model"]
found = quality.ladder(quantizations=ways, max_chunks=3)

# %% [markdown]
# The warning is meant seriously. The packaged model is quantized already, and what was lost then is in no number below.
# To quantize it again is good for a lesson; a file to use is made from F16.
#
# ## See

# %%
check.outcome("09-top", round(100 * found["Q2_K"].top1_agreement, 1), unit="of 100")

# %%
llama = [r for r in quality.published("Llama-3-8B") if r.kld_mean and r.bits_per_weight]
shown = ("Q8_0", "Q3_K_M", *ways)
beside = [row for row in llama if row.quantization in shown and not row.imatrix]
beside += [row for row in llama if row.quantization == "IQ3_XS"]
front = found.pareto()
HTML(figures_quality.loss_html(found, beside, front=front, reference=found.reference))

# %% [markdown]
# Read it from the right: a large file, hardly any loss; then smaller files, and the loss grows by equal *factors*. The
# dashed line is the **Pareto front**: for each file on it, whoever wants less loss must take a larger file. A file off
# the line is beaten: another one is no larger, and better.
#
# ## Why
#
# Look at IQ3_XS. Here it is as large as Q2_K and by far the worse. Among the published points (Llama 3 8B) it is a
# little larger than Q2_K and by far the better. Three things differ, and which one does it cannot be told from these
# numbers:
#
# - On this model neither is what its name says: both have 5.1 bits, because llama.cpp took other types for most of the
#   tensors.
# - The published IQ3_XS was made with an **importance matrix**, which tells the quantizer what weights matter. Ours was
#   made without one, and I-quants count on it.
# - What is quantized here was quantized before.
#
# So a name is no measurement, and another model's table is none of yours.
#
# ## Error bars
#
# A text is a sample. With another text every number would be another one; the bars say by about how much. Here is the
# same run by perplexity.

# %%
settings = {"measure": "perplexity", "against": "file_bytes"}
HTML(figures_quality.loss_html(found, **settings, reference=found.reference))

# %%
row = found["Q6_K"]
alone = np.hypot(row.perplexity_error, found.reference.perplexity_error)
difference = row.perplexity - found.reference.perplexity
print(f"perplexity, Q6_K - reference: {difference:.2f} ± {alone:.2f}: cannot be told from 0")
print(f"KL divergence of Q6_K: {row.kld_mean:.4f} ± {row.kld_mean_error:.4f}: far from 0")
print(f"ln of the ratio, word by word: {row.ln_ratio:.4f} ± {row.ln_ratio_error:.4f}")

# %% [markdown]
# Apart from IQ3_XS, each bar overlaps its neighbour's: whoever puts files in an order by such bars trusts to luck. Why
# is KL divergence so much sharper, on the same few words? Because both models read the *same* words: a hard word is
# hard for both, and drops out. That is also true of the last line, which compares the surprise word by word.
#
# ## Predict
#
# Published: Q2_K raises the perplexity of Llama 2 70B by 8.8 %. By how many per cent that of Llama 3 8B?

# %%
guess = ____
check.predict("09-large", guess, unit="%")

# %% [markdown]
# ## Run
#
# Every number is published by somebody else, but the last (yours, or recorded). The 70B is in an older table of
# llama.cpp's page on perplexity: 3.4313 at F16, 3.7339 at Q2_K.

# %%
share = {"Llama 2 70B": 3.7339 / 3.4313 - 1}
for name in ("LLaMA-1-13B", "LLaMA-1-7B", "Llama-3-8B"):
    known = [row for row in quality.published(name) if row.perplexity and not row.imatrix]
    known = {row.quantization: row.perplexity for row in known}
    share[name] = known["Q2_K"] / known["F16"] - 1
share[f"SmolLM2 135M ({found.reference.source})"] = float(np.exp(found["Q2_K"].ln_ratio)) - 1
for name, more in share.items():
    print(f"{name:24} perplexity at Q2_K: {100 * more:+5.1f} %  {'#' * round(100 * more)}")
check.outcome("09-large", round(100 * share["Llama-3-8B"], 1), unit="%")

# %% [markdown]
# ## Why
#
# Within a family a large model suffers less: it has more weights for the same thing, and errors cancel. Of two models
# of one size the newer one suffers more: Llama 3 read far more text, so more is packed into each weight. (That is the
# usual explanation; the table shows only that it is so.) And the smallest: its "Q2_K" has 5.1 bits a weight where the
# others have about 3, and it still loses more than a model of 7 billion.
#
# So "Q4_K_M loses nothing" is a rule that belongs to a model. Look at the first picture again: what does Q4_K_M cost
# here, and what does it cost Llama 3 8B?
#
# ## Where is the loss?
#
# How far did each tensor's weights move in the "Q2_K" file? Rows are roles, columns are layers. (Without the model:
# `ffn_down` moves most, by 15 % in every layer. It alone has rows long enough for a K-quant, here Q3_K. All others
# became Q4_0 and moved by 9 %.)

# %% tags=["model"]
import tempfile

path, folder = download.default_model(), tempfile.TemporaryDirectory()
q2_k = quality.requantize(path, "Q2_K", out=Path(folder.name, "Q2_K.gguf"))
HTML(figures_quality.errors_html(quality.tensor_errors(path, q2_k)))

# %% [markdown]
# Did you expect that the worst file moved its weights furthest? In IQ3_XS they move by 17 % in `ffn_down` and by 8 %
# elsewhere, hardly different from Q2_K; yet it predicts far worse. An error in a weight says how far it moved, not
# whether that matters. Only a run over text does.
#
# What quantizing twice does, seen from near: where the weights of a block of 32 lie between its smallest and its
# largest one. At 8 bits they lie nearly everywhere; at 4 bits on 16 steps; and a second rounding moves these to other
# steps, and blurs them.

# %% tags=["model"]
name = "blk.0.attn_q.weight"
steps = {"8 bits, as packaged (Q8_0)": quality.weights(path, "token_embd.weight")[:1000]}
steps["4 bits, as packaged (Q4_1)"] = quality.weights(path, name)
steps["the same, quantized again (Q4_0)"] = quality.weights(q2_k, name)
HTML(figures_quality.steps_html(steps))

# %% [markdown]
# ## Exercise 1
#
# A text of two words. To the first one that came, a model gave the probability 1/2, to the second 1/32. What is its
# perplexity?

# %%
# stub
answer = ____
# solution
answer = (2 * 32) ** (1 / 2)
# end solution
expected = perplexity([1 / 2, 1 / 32])
ideas = {
    "the mean of the two probabilities, turned over": 1 / np.mean([1 / 2, 1 / 32]),
    "the mean of 2 and 32: surprises are averaged, not choices": np.mean([2, 32]),
    "the product of 2 and 32, its root forgotten": 2 * 32,
}
hints = ("It lies between 2 and 32.", "Multiply 2 by 32, and take the root for two words.")
check.number("09-two-words", answer, expected, unit="words", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# On one text, file A has perplexity 24.6 ± 2.2 and file B 24.9 ± 2.3. Nothing else is known. Which is the better
# file: `"A"`, `"B"` or `"cannot tell"`?

# %%
# stub
answer = ____
# solution
answer = "cannot tell"
# end solution
ideas = {
    "A": "the lower number wins, however large the error bars are",
    "B": "higher perplexity is better",
}
why = "Measure KL divergence, or the surprises word by word."
hints = ("How large is the difference? How large are the bars?",)
check.choice("09-bars", answer, "cannot tell", ideas=ideas, hints=hints, why=why)

# %% [markdown]
# ## Exercise 3
#
# About your own machine: you want Llama 3.1 8B with 8,192 tokens of context (or TinyLlama with 2,048, if the cell says
# so). Of the quantizations below, which one loses least among those that fit here? The losses are published for Llama 3
# 8B: mean KL divergence.

# %%
machine = hardware.detect()
wanted = ("llama-3.1-8b", 8192), ("tinyllama-1.1b", 2048)
losses = {row.quantization: row.kld_mean for row in llama if not row.imatrix}
for model, n_ctx in wanted:
    needs = {q: memory.estimate(models.get(model), q, n_ctx=n_ctx) for q in losses}
    fits = [q for q in losses if fit.judge(needs[q], machine).status == "fits"]
    if fits:
        break
fits = fits or ["Q2_K"]  # if none fits, the smallest comes nearest
for q in losses:
    print(f"{model} {q:7} loss {losses[q]:.4f}  {fit.judge(needs[q], machine).sentence}")

# %%
# stub
answer = ____
# solution
answer = min(fits, key=losses.get)
# end solution
best, smallest = min(fits, key=losses.get), min(fits, key=lambda q: needs[q].total_bytes)
ideas = {
    "one without a published loss can be compared": lambda a: a not in losses,
    "the least loss, whether it fits or not": lambda a: a not in fits,
    "any that fits will do, though another one loses less": lambda a: a in fits,
}
samples = dict(zip(ideas, ("F32", "F16", smallest), strict=True))
hints = ("Leave out what does not fit.", "Of the rest, which loss is the least?")
check.true("09-own", answer, lambda a: a == best, ideas, samples, hints)

# %% [markdown]
# The best number is not yet your choice. A smaller file leaves room for other programs and is faster (lesson 10 says by
# how much). Is there a step down that costs you little?
#
# ## Measure
#
# Estimate first: what will the "Q3_K_M" file of SmolLM2 take, and is it larger or smaller than the Q4_0 above?

# %%
small = models.get("smollm2-135m")
estimate = {name: memory.file_bytes(small, name) for name in ("Q4_0", "Q3_K_M")}
for name, n_bytes in estimate.items():
    print(f"estimate {name:7} {n_bytes:,} bytes")
real = found["Q4_0"].file_bytes
print(f"Q4_0, file / estimate = {real / estimate['Q4_0']:.5f} ({found['Q4_0'].source})")

# %% [markdown]
# On this model "three bits" take more room than "four": Q3_K_M gives some roles more bits, and where rows are too short
# for its types llama.cpp takes larger ones. Does the larger file lose less? (Where this was written: yes, 0.176, and
# Q4_0 0.331. Neither beats the other, so both are on the front.)

# %% tags=["model"]
new = quality.requantize(path, "Q3_K_M", out=Path(folder.name, "Q3_K_M.gguf"))
print(f"Q3_K_M, file / estimate = {new.stat().st_size / estimate['Q3_K_M']:.5f}")
more = quality.compare([new], reference=path, max_chunks=3)
found = quality.Comparison((*found, *more), found.reference, found.text_name, found.n_ctx)
print(f"mean KL divergence: {found['Q3_K_M'].kld_mean:.3f}, Q4_0 {found['Q4_0'].kld_mean:.3f}")

# %% [markdown]
# And the last comparison: the order of the losses, measured and published. They are two models and two texts, so the
# heights mean nothing side by side; but how many pairs stand in the same order?

# %%
theirs = {row.quantization: row.kld_mean for row in beside}
names = [row.quantization for row in found if row.quantization in theirs]
print("here:     ", ", ".join(sorted(names, key=lambda name: found[name].kld_mean)))
print("published:", ", ".join(sorted(names, key=theirs.get)))
pairs = [(a, b) for a in names for b in names if a < b]
loss = {name: found[name].kld_mean for name in names}
same = [(loss[a] < loss[b]) == (theirs[a] < theirs[b]) for a, b in pairs]
ratio = sum(same) / len(pairs)
print(f"{sum(same)} of {len(pairs)} pairs in the same order, ratio {ratio:.2f}")

# %% [markdown]
# ## Recap
#
# - You calculated perplexity and KL divergence for a few words by hand.
# - You measured the loss of a quantized file, and said when two results cannot be told apart.
# - You chose a quantization that no other one beats.
#
# Words: perplexity, KL divergence, top-1 agreement, standard error, Pareto front, importance matrix
# ([glossary](../lessons/glossary.md)).
#
# Next: [Speed](10_speed.ipynb)
