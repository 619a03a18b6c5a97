# %% [markdown]
# # Put it to work
#
# - **Promise:** You let a model fill in forms, call functions, answer from given texts and work through a table, and
#   you say what of it may be trusted.
# - **Needs:** 1 GB free
# - **Minutes:** 40

# %% [markdown]
# ## Goals
#
# 1. Get answers as data, and find what the model made up.
# 2. Let a model call functions, and answer from texts with their sources.
# 3. Let a model work through a table, so that an interruption costs nothing.
#
# ## Do you remember?
#
# The same question, three times, at temperature 0: how many different answers? (Lesson 08: one.) Work needs that: all
# of this lesson runs at temperature 0.
#
# Most cells need llama-cpp-python and the model that comes with the kit. Where one is missing such a cell ends in red:
# read on, the results are described, and run the cells without the model one by one ("Run All" stops at a red one).

# %%
import csv
import sys
from pathlib import Path

import helpers
from helpers import check, download, engine, rag, runner, work
from helpers.check import ____

print(f"helpers {helpers.__version__}, Python {sys.version.split()[0]}")
print(f"engine installed: {engine.available()}")

# %% [markdown]
# ## Predict
#
# A text about a library, and a form with five fields. Two of them cannot be filled in from the text: nobody says when
# the library was founded or what its phone number is. How many of the five will the model fill in rightly? (An empty
# field would be right for those two.)

# %%
text = """The town library opens at 9 and closes at 18 on weekdays. It holds 42,000 books.
Ms. Weber has led it since 2011. Members pay 15 euros a year; children pay nothing."""
truth = {"books": 42_000, "leader": "Ms. Weber", "fee": 15, "founded": None, "phone": None}
guess = ____
check.predict("13-form", guess, unit="fields")

# %% [markdown]
# ## Run
#
# `fields` writes the form as a **JSON schema**. llama.cpp turns it into a **grammar**: at each step it crosses out all
# tokens that would break the form, and the model chooses among the rest. `int | None` allows a whole number or nothing.

# %% tags=["model"]
model = runner.load(download.default_model(), n_ctx=1024, seed=1)
form = work.fields(books=int, leader=str, fee=int, founded=int | None, phone=str | None)
found = work.extract(model, text, form)
print(found)

# %% [markdown]
# ## See

# %% tags=["model"]
for name, value in found.data.items():
    print(f"{name:8} {value!r:16} {'right' if value == truth[name] else 'wrong'}")
n_right = sum(found.data[name] == truth[name] for name in truth)
check.outcome("13-form", n_right, unit="fields")

# %% [markdown]
# ## Why
#
# The grammar holds the form, and the form only: a whole number stands where a whole number was asked for. It may be any
# number. An empty field was allowed, but this small model prefers to write something.
#
# `invented` names values that do not stand in the text. That catches a phone number from nowhere. It does not catch a
# year that stands in the text and means something else. Where this was written the model gave 2011, the year in which
# Ms. Weber came, as the year of the foundation. Only a reader finds that.

# %% [markdown]
# ## Predict
#
# Now the model may call two functions of Python, one that adds and one that looks up the weather. It writes a name and
# arguments; our own program does the calling. Three questions: a sum, the weather, and "Who wrote Hamlet?". For how
# many will the function and its arguments be the right ones?

# %%
guess = ____
check.predict("13-calls", guess, unit="questions")


# %%
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def weather(city: str) -> str:
    """The weather in a city today."""
    return {"Paris": "rain, 12 degrees", "Rome": "sun, 21 degrees"}[city]


# %% [markdown]
# ## Run

# %% tags=["model"]
right = 0
asked = {"What is 17 plus 25?": "add", "How is the weather in Paris today?": "weather"}
for question, wanted in {**asked, "Who wrote Hamlet?": "none"}.items():
    done = work.call(model, question, [add, weather])
    right += [made.name for made in done.calls if not made.invented] == [wanted]
    print(question, done, sep="\n", end="\n\n")

# %% [markdown]
# ## See

# %% tags=["model"]
check.outcome("13-calls", right, unit="questions")

# %% [markdown]
# ## Why
#
# The grammar offered two names, so the model had to write one of them, for Hamlet too. Every choice looks deliberate.
# `may_refuse=True` also offers "none". Try it: where this was written the model then refused Hamlet, but also "Is it
# raining in Paris?", which it could have answered.
#
# Look at the words after the sum. The function returned 42; what the model says about it may be another number. The
# call was computed, the words were guessed: **take the result of the call, not the words.**
#
# Nothing here runs what the model wrote. Its text is read as JSON, the name must be one of the given functions, the
# arguments must fit its parameters, and after `max_calls` calls it ends.

# %% [markdown]
# ## Predict
#
# A model knows nothing of your texts. So find the paragraphs that fit a question and put them into the prompt: that is
# **RAG**, retrieval-augmented generation. The texts are three lessons of this course. Which way of finding is better:
# by *words* that question and paragraph share, or by *vectors*, rows of numbers in which the model sums a text up?
#
# The first is an index as search engines had them before there were language models. For how many percent of the
# questions will vectors bring the right lesson to the first place?

# %%
guess = ____
check.predict("13-vectors", guess, unit="percent")

# %% [markdown]
# ## Run
#
# The model reads every paragraph once (20 seconds or so; then its vectors are kept). Then questions whose right lesson
# is known are asked in three ways, by words, by vectors and by both together; "random" is what luck would find.

# %% tags=["model"]
names = ("05_context", "06_your_machine", "08_load_and_ask")
index = rag.index(model, [rag.LESSONS / f"{name}.py" for name in names])
results = {how: rag.measure(index, how=how) for how in ("random", "words", "vectors", "both")}
print(index, *results.values(), sep="\n")

# %% [markdown]
# ## See

# %% tags=["model"]
check.outcome("13-vectors", 100 * results["vectors"].hit_at_1, unit="percent")

# %% [markdown]
# ## Why
#
# hit@1: the right lesson came first. hit@3: it was among the first three. MRR is the mean of 1 / rank: 1 when it always
# comes first, 1/2 when it always comes second.
#
# The vectors are better than luck and worse than plain words. This model was trained to continue texts, not to put
# texts of like meaning side by side. Models trained for that, **embedding models**, do much better; load one with
# `runner.load(path, embeds_only=True)`. So measure before you believe that the newer way is the better one. (The same
# questions over all lessons: `python tests/bench_rag.py`.)
#
# Now two answers: to a question that the texts answer, and to one that they do not. The sources are what the model was
# *given*; whether it used and understood them is for you to find out.

# %% tags=["model"]
for question in ("Is the memory of the graphics card added to the RAM?", "Who wrote Hamlet?"):
    print(rag.ask(model, index, question, k=2, how="words"), end="\n\n")

# %% [markdown]
# Something is always found, and something is always answered. Set `k` to 1, then to 5: more sources do not always help.

# %% [markdown]
# ## Try
#
# More sources, more chances that the right one is there, and fewer tokens left for the answer. Two jobs. Move the
# number of sources: from which number on is the right lesson (04) among them? And at which number do the sources alone
# fill half of the 1,024 tokens of this model's context?

# %%
import ipywidgets as widgets

words = rag.index()  # all lessons, by words: no model needed
question = "Why is the vocabulary so heavy in a tiny model?"


def look(k):
    sources = words.search(question, k)
    n_words = sum(len(one.chunk.text.split()) for one in sources)
    return "\n".join([*map(str, sources), f"about {n_words * 4 / 3:.0f} tokens in all"])


# %%
slider = widgets.IntSlider(3, 1, 12, description="Sources")
number = widgets.BoundedIntText(3, 1, 12, description="the same")
shown = widgets.HTML(f"<pre>{look(3)}</pre>", layout={"height": "260px"})
widgets.link((slider, "value"), (number, "value"))


def redraw(change):
    shown.value = f"<pre>{look(change['new'])}</pre>"


slider.observe(redraw, "value")
widgets.VBox([widgets.HBox([slider, number]), shown])

# %% [markdown]
# The same without a panel:

# %%
for k in (1, 3, 12):
    print(f"{k} sources:", look(k), sep="\n", end="\n\n")

# %% [markdown]
# ## Measure
#
# The commonest job of all: one question for every row of a table. Here are eight reviews, each with what a person says
# about it; the model's opinion comes beside it. Two small files, `13_reviews.csv` and `13_moods.csv`, are written
# beside this notebook.

# %%
reviews = """The soup was cold and the waiter was rude.,bad
Friendly people and a wonderful cake!,good\nI waited an hour for a sandwich.,bad
Best coffee in town.,good\nClean and quiet. We will come back.,good
The fish smelled strange so I left.,bad\nNot bad at all!,good\nNever again.,bad"""
source, target = Path("13_reviews.csv"), Path("13_moods.csv")
source.write_text(f"review,person\n{reviews}\n", encoding="utf-8")
target.unlink(missing_ok=True)

# %% tags=["model"]
prompt = "{review}\n\nIs this review good or bad?"
job = {"column": "model", "schema": work.fields(mood=["good", "bad"])}
print(work.batch(model, source, target, prompt, **job))
with target.open(encoding="utf-8", newline="") as file:
    table = list(csv.DictReader(file))
for row in table:
    print(f"{row['person']:5} {row['model']:5} {row['review']}")
same = sum(row["person"] == row["model"] for row in table)
print(f"The person and the model agree in {same} of {len(table)}.")

# %% [markdown]
# The model writes "good" or "bad" in every row, and never "I am not sure". Without the column of a person nobody could
# say how often it is right: label fifty rows by hand before you let a model label five thousand.
#
# Each row is on the disk before the next one is asked. To see it, we cut the file in the middle of a row, as a power
# cut would, and run the same line again:

# %% tags=["model"]
whole = target.read_bytes()
target.write_bytes(whole[: len(whole) // 2])
print(work.batch(model, source, target, prompt, **job))
print("the same file as before:", target.read_bytes() == whole)

# %% [markdown]
# Summaries and translations are one line each. Read them against the source:

# %% tags=["model"]
print(work.summarize(model, text, sentences=1))
print(work.translate(model, "The library is closed on Sunday.", "French"))
model.close()

# %% [markdown]
# ## Exercise 1
#
# A form asks for `year: int`, and the text names no year. What does the grammar guarantee about the answer: that the
# year is `"true"`, that it is a `"number"`, or that it is `"empty"`?

# %%
# stub
answer = ____
# solution
answer = "number"
# end solution
ideas = {
    "true": "a grammar knows the facts",
    "empty": "the model leaves out what it does not know",
}
hints = ("What does llama.cpp cross out?",)
check.choice("13-grammar", answer, "number", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 2
#
# A table has 1,200 rows, and each takes 3 seconds. After 45 minutes the power goes off. You run the same line again.
# How many rows are asked in this second run?

# %%
# stub
answer = ____
# solution
answer = 1200 - 45 * 60 / 3
# end solution
before = 45 * 60 / 3
ideas = {"it begins anew": 1200, "the rows of the first run": before}
hints = ("How many rows were done in 45 minutes?", "What is done is not asked again.")
check.number("13-resume", answer, 1200 - before, unit="rows", ideas=ideas, hints=hints)

# %% [markdown]
# ## Exercise 3
#
# About your own use: think of a table that you would like to have worked through, and change the first three numbers.
# The last two are speeds in tokens a second: put in those that lesson 08 measured on your computer. How many minutes
# does it take, if a word is 4/3 tokens?

# %%
n_rows, words_in, words_out = 300, 200, 30
read_speed, write_speed = 250, 50
# stub
answer = ____
# solution
answer = n_rows * (words_in * 4 / 3 / read_speed + words_out * 4 / 3 / write_speed) / 60
# end solution
speeds = (read_speed, write_speed)
expected = work.batch_seconds(n_rows, words_in * 4 / 3, words_out * 4 / 3, *speeds) / 60
words_only = work.batch_seconds(n_rows, words_in, words_out, *speeds) / 60
ideas = {"words instead of tokens": words_only, "seconds instead of minutes": expected * 60}
no_reading = work.batch_seconds(n_rows, 0, words_out * 4 / 3, *speeds) / 60
ideas |= {"the reading forgotten": no_reading, "the writing forgotten": expected - no_reading}
hints = ("Each row is read, then answered.", "Tokens / speed, twice, times the rows, / 60.")
check.number("13-own", answer, expected, unit="min", tolerance=0.03, ideas=ideas, hints=hints)

# %% [markdown]
# ## Recap
#
# - You got answers as data, and found what the model made up.
# - You let a model call functions, and answer from texts with their sources.
# - You let a model work through a table, so that an interruption cost nothing.
#
# Words: token, temperature, chat template, context length ([glossary](../lessons/glossary.md)).
#
# Next: [Hand in a decision](14_capstone.ipynb)
