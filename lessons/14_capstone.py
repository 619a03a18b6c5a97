# %% [markdown]
# # Hand in a decision
#
# - **Promise:** You decide on a model for your own computer and need, and hand the decision in as one file.
# - **Needs:** nothing
# - **Minutes:** 40

# %% [markdown]
# ## Goals
#
# 1. Compare what you guessed in this course with what came out.
# 2. Decide on a model, a quantization and a context, and defend the choice with arithmetic.
# 3. Export a report that somebody else can check.
#
# ## Do you remember?
#
# Which printed numbers about models are mostly right, and which are a rule? (Lesson 11: files; needs.) What says more
# about a quantized file, its perplexity or its KL divergence? (Lesson 09: KL divergence, its error bar is smaller.)

# %%
import sys
import textwrap

import helpers
from helpers import check, figures, fit, hardware, memory, models, panels, report, speed, units
from helpers.check import ____

machine = hardware.detect()
print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")
print(f"predictions written down so far: {len(check.predictions())}")

# %% [markdown]
# ## Predict
#
# All your predictions were kept. How many per cent of them came within a factor of 2 of what came out?

# %%
guess = ____
check.predict("14-near", guess, unit="%")

# %% [markdown]
# ## Run
#
# If you did the other lessons in another folder, or not at all, this list is empty. Go on: nothing below needs it.

# %%
for one in check.predictions():
    print(one, f"(ratio {report.guess_ratio(one)})" if report.guess_ratio(one) else "")

# %% [markdown]
# ## See

# %%
near, compared = report.near(check.predictions())
print(f"{near} of {compared} within a factor of 2")
if compared:
    print(check.outcome("14-near", 100 * near / compared, unit="%"))

# %% [markdown]
# ## Why
#
# Look at the worst one. Was it a unit, a factor that you did not know of, or something that you had never met? A guess
# that was far off shows where the course taught you something.

# %% [markdown]
# ## Predict
#
# Think of a task that you want a model for. Without looking anything up: how many GiB of memory will the model need
# that you choose in the end?

# %%
guess = ____
check.predict("14-need", guess, unit="GiB")

# %% [markdown]
# ## Exercise 1
#
# First, how much text? A report of 6,000 words comes in, a summary of 500 words goes out. How many tokens must the
# context hold at least, if a token is three quarters of a word?

# %%
# stub
answer = ____
# solution
answer = (6000 + 500) / 0.75
# end solution
words_in, words_out, words_a_token = 6000, 500, 0.75
expected = (words_in + words_out) / words_a_token
ideas = {
    "words taken for tokens": words_in + words_out,
    "the answer forgotten": words_in / words_a_token,
    "multiplied instead of divided": (words_in + words_out) * words_a_token,
}
hints = ("Prompt and answer share the context.", "A word is more than one token.")
check.number("14-tokens", answer, expected, "tokens", ideas=ideas, hints=hints)

# %% [markdown]
# ## Your need
#
# Run the cell once: it prints the words for `use`. Then fill in your own, such as `use = "code"`; `n_ctx` is your
# context in tokens. What stays open is taken as chat with 8,192 tokens.

# %%
use = ____
n_ctx = ____
use = "chat" if check.is_blank(use) else use
n_ctx = 8192 if check.is_blank(n_ctx) else n_ctx
print(f"uses: {', '.join(fit.USES)}. Chosen: {use}, {n_ctx:,} tokens")

# %% [markdown]
# ## Run
#
# What the kit would propose. The order is a rule, the memory is a formula, the choice is yours.

# %%
proposed = fit.recommend(machine, use, n_ctx=n_ctx)
if not proposed:
    print("Nothing fits that. Here is what fits for a short chat:")
    proposed = fit.recommend(machine, "chat", n_ctx=2048)
n_ctx = proposed[0].estimate.settings["n_ctx"]
for choice in proposed:
    print(textwrap.fill(str(choice), 100, subsequent_indent="    "))

# %% [markdown]
# ## Try
#
# The panel has a job: find the largest model that leaves 2 GiB free for your other programs. Then try the levers: is
# there one whose price you would pay?

# %%
panels.fit_panel(machine, model="qwen3-4b", n_ctx=8192)

# %% [markdown]
# The same without a panel, for three sizes of one family:

# %%
for name in ("qwen3-1.7b", "qwen3-4b", "qwen3-8b"):
    for quantization, _, verdict in fit.ladder(models.get(name), machine, n_ctx=8192)[1:5]:
        print(f"{name:11} {quantization:7} {verdict.sentence}")

# %% [markdown]
# ## Exercise 2
#
# Does time allow it? A computer writes 10 tokens a second and shall write 100,000 tokens a day. How many hours does it
# work each day?

# %%
# stub
answer = ____
# solution
answer = 100_000 / 10 / 60 / 60
# end solution
day = report.Cost(price_per_million=0, tokens_per_day=100_000, tokens_per_second=10)
ideas = {"minutes, not hours": 60 * day.hours_per_day}
ideas["the speed forgotten: one token each second"] = 10 * day.hours_per_day
ideas["seconds, not hours"] = 60 * 60 * day.hours_per_day
hints = ("How many seconds is that?", "An hour has 3,600 seconds.")
check.number("14-hours", answer, day.hours_per_day, "hours", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# Decide, for your own machine: `("model", "quantization", n_ctx)`. The verdict must be "fits", with room to spare, and
# the model must have been made for a context that long.

# %%


def needed(answer):
    return memory.estimate(models.get(answer[0]), answer[1], n_ctx=answer[2])


def made_for(answer):
    return len(answer) == 3 and answer[2] <= models.get(answer[0]).n_ctx_train


def fits(answer):
    return fit.judge(needed(answer), machine).status == "fits"


# %%
# stub
answer = (____, ____, ____)
# solution
answer = (proposed[0].spec.name, proposed[0].quantization, n_ctx)
# end solution
ideas = {
    "a choice is complete without its context": lambda a: len(a) != 3,
    "any context will do, whatever the model was trained for": lambda a: not made_for(a),
    "what is a little too large or tight will do": lambda a: not fits(a),
}
tries = ("qwen3-4b", "Q4_K_M"), ("tinyllama-1.1b", "Q4_0", 32768), ("gpt-3-175b", "F32", 2048)
rest = dict(zip(ideas, tries, strict=True)), ("Take one that was proposed.",)
done = check.true("14-decision", answer, lambda a: made_for(a) and fits(a), ideas, *rest)
done

# %% [markdown]
# ## See
#
# Your decision (or, while it is open, the first proposal) as a picture, then as a table with its arithmetic.

# %%
from IPython.display import HTML

decided = answer if done.correct else (proposed[0].spec.name, proposed[0].quantization, n_ctx)
needs = needed(decided)
verdict = fit.verdict(needs, machine)
print(needs)
HTML(figures.page(figures.sentence_html(verdict), figures.memory_bar_svg(needs, verdict)))

# %%
settings = memory.Settings(**needs.settings)
for part, text, n_bytes in memory.arithmetic(needs.spec, needs.quantization, settings):
    print(f"{part:9} = {text}\n          = {n_bytes:,} bytes")
HTML(figures.page(figures.parts_table_html(needs, rule_bytes=fit.rule_of_thumb_bytes(needs))))

# %%
check.outcome("14-need", needs.total_bytes / units.GIB, unit="GiB")

# %% [markdown]
# ## Measure
#
# An estimate that nobody measured is an opinion. The kit's own small model, predicted and measured here. (Without
# llama-cpp-python skip the next cell; what lesson 08 measured is taken up if it is there.)

# %%
seen = {words: f"{rate:,.1f} tokens/s" for words, rate in report.measured().items()}
measured = max(report.measured().values(), default=0)
small = memory.estimate(models.get("smollm2-135m"), "Q4_1", n_ctx=2048, n_outputs_max=1)
print(seen or "nothing measured yet")

# %% tags=["model"]
from helpers import download, runner

with runner.load(download.default_model(), n_ctx=2048) as model:
    hello = model.ask("What makes a good decision?", max_tokens=64, stream=True)
measured = hello.tokens_per_second
seen["SmolLM2 135M, speed"] = f"{measured:,.1f} tokens/s"
ratio = small.total_bytes / hello.peak_bytes
print(f"\npredicted {units.show(small.total_bytes)}, measured {units.show(hello.peak_bytes)}")
print(f"predicted / measured = {ratio:.2f}")
seen["SmolLM2 135M, memory predicted / measured"] = f"{ratio:.2f}"

# %% [markdown]
# How fast would your model write? Three answers. The *ceiling* (lesson 06): each token reads all active weights, and
# memory is only so fast. The *formula* (lesson 10): the same and what the cores add, as a band. The *rule*: time grows
# with the bytes, from the small model that was measured. The next cell measures what the formula needs; without it, the
# formula takes its figures from a table, and its band is wider.

# %% tags=["model"]
here = speed.calibrate()

# %%
here = globals().get("here", machine)
reads = fit.active_bytes(needs)
ceiling = speed.roofline_tokens_per_second(reads, speed.bandwidth(seconds=1))
careful = report.scaled_speed(measured, fit.active_bytes(small), reads)
foreseen = speed.predict(needs.spec, needs.quantization, n_ctx=decided[2], where=here).answer
name = needs.spec.title
known = {f"{name}, speed (formula)": str(foreseen)}
known[f"{name}, speed at most (memory bandwidth, measured)"] = f"{ceiling:,.1f} tokens/s"
if measured:
    known[f"{name}, speed (rule, not measured)"] = f"{careful:,.1f} tokens/s"
print("\n".join(f"{words}: {value}" for words, value in known.items()))

# %% [markdown]
# Too slow for what you want? Then go back to Exercise 3, choose a smaller model or one with few *active* weights, and
# run the cells from there again. Memory says what can run, speed says what is of use.
#
# And what does your quantization cost (lesson 09)? Published for Llama 3 8B, where somebody did; and measured here, on
# SmolLM2 (without llama-cpp-python skip the second cell). Neither is your model: take them as an order among
# quantizations, not as its loss.

# %%
from helpers import quality

for row in quality.published("Llama-3-8B"):
    if row.quantization == decided[1] and row.bits_per_weight and not row.imatrix:
        loss = f"mean KL divergence {row.kld_mean:.4f}"
        known[f"loss at {decided[1]} (published, {row.model})"] = loss
        print(f"{loss}; {row.table}, {row.url}")

# %% tags=["model"]
if decided[1] in quality.LADDER:
    row = quality.ladder(quantizations=[decided[1]], max_chunks=3)[decided[1]]
    loss = f"mean KL divergence {row.kld_mean:.4f} ± {row.kld_mean_error:.4f}"
    seen[f"SmolLM2 135M, loss at {decided[1]}"] = f"{loss}, same token {row.top1_agreement:.0%}"
print("\n".join(f"{words}: {value}" for words, value in seen.items()))

# %% [markdown]
# ## The cost
#
# Look up what a provider asks for a million tokens, how many tokens you need a day, what your computer takes in watts
# while it works, and what a kilowatt hour costs. The kit invents no prices: what stays open stays out of the report.
# The hours come from the formula's likeliest speed.

# %%
price, tokens_per_day = ____, ____
watts, price_per_kwh = ____, ____
power = {"watts": watts, "price_per_kwh": price_per_kwh}
power = {} if check.is_blank(power) else power
power["tokens_per_second"] = foreseen.likely
cloud = report.cost(price, tokens_per_day, currency="EUR", **power)
print(cloud or "No price yet.")

# %% [markdown]
# ## Hand it in
#
# Write your reasons, then run the cell. Each run makes a new file beside this notebook; double-click it in the list on
# the left, or open it in any browser. It holds everything and loads nothing. Read it before you hand it in: it
# describes your computer and shows your guesses.

# %%
author = ____
why = ____
words = {"author": author, "use": use, "why": why}
facts = {"recommended": proposed, "measurements": seen, "estimates": known, "cloud": cloud}
path = report.html(needs, machine, **words, **facts)
print(f"wrote {path.name}, {units.show(path.stat().st_size)}")

# %% [markdown]
# ## Recap
#
# - You compared what you guessed in this course with what came out.
# - You decided on a model, a quantization and a context, and defended the choice with arithmetic.
# - You exported a report that somebody else can check.
#
# Words: context length, quantization, tokens per second, KL divergence ([glossary](../lessons/glossary.md)).
#
# Next: [The memory lab](90_lab_memory.ipynb), all sliders at once.
