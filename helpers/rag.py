"""Answers from texts of your own: cut them up, find the pieces that fit a question, let the model answer from those.

Retrieval-augmented generation, without a server. By default the texts are this kit's lessons. How well the right piece
is found can be measured (`measure`), and should be: it decides more than the model that answers.
"""

import collections
import contextlib
import csv
import itertools
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

from . import download, quality, runner, units, work
from .need import need

LESSONS = Path(__file__).resolve().parent.parent / "lessons"
QUESTIONS = Path(__file__).resolve().parent / "data" / "lesson_questions.csv"
CHUNK_TOKENS = 160  # below the longest text that can be embedded, with room for its heading
WAYS = ("vectors", "words", "both")
# BM25's usual constants: how fast repeated words stop counting, and how much long pieces are held back.
BM25_K1, BM25_B = 1.2, 0.75
FUSION = 60  # reciprocal rank fusion's usual constant: rank 1 counts hardly more than rank 2
COMMON = """a an and are as at be but by can do does for from has have how i if in is it its much many no not of on one
or so than that the their them then there these they this to was what when where which who why will with you your"""
COMMON = frozenset(COMMON.split())


@dataclass(frozen=True)
class Chunk:
    """A piece of a text: `source` is its file's name without ending, `heading` the last heading above it."""

    source: str
    heading: str
    text: str

    def __str__(self):
        return units.printable(f"{self.source}, {self.heading}", 1000)


@dataclass(frozen=True)
class Found:
    """A chunk with its place in the ranking and its score; scores of two ways of searching cannot be compared."""

    rank: int
    score: float
    chunk: Chunk

    def __str__(self):
        return f"[{self.rank}] {self.chunk} ({self.score:.3f})"


@dataclass(frozen=True)
class Cited:
    """An answer and the chunks that the model was given for it, in that order.

    `supported`: the share of the answer's words (common words apart) that stand in those chunks, 0 to 1. *When it
    misleads*: right words can be put together wrongly.
    """

    text: str
    sources: tuple[Found, ...]
    supported: float
    answer: runner.Answer
    notes: tuple[str, ...] = ()

    def __str__(self):
        share = f"{self.supported:.0%} of the answer's words stand in these sources:"
        lines = [self.text, share, *map(str, self.sources), *(f"Note: {note}" for note in self.notes)]
        return "\n".join(map(units.printable, lines))


@dataclass(frozen=True)
class Retrieval:
    """How often the right source was found, over `n` questions; each figure from 0 to 1.

    `hit_at_1`, `hit_at_3`: the right source is the first, or among the first three. `mrr`: the mean of 1 / rank of the
    first right chunk (mean reciprocal rank).
    """

    how: str
    n: int
    hit_at_1: float
    hit_at_3: float
    mrr: float

    def __str__(self):
        return f"{self.how:8} hit@1 {self.hit_at_1:.0%}, hit@3 {self.hit_at_3:.0%}, MRR {self.mrr:.2f} (n = {self.n})"


class Index:
    """Chunks that can be searched by words, and by vectors if a model embedded them; made by `index`."""

    def __init__(self, chunks, model=None, progress=True):
        self.chunks = tuple(chunks)
        self._model, self._vectors, self._centre = model, None, None
        self._words = [collections.Counter(_words(f"{chunk.heading} {chunk.text}")) for chunk in self.chunks]
        self._in_chunks = collections.Counter(word for words in self._words for word in words)
        self._mean_length = sum(words.total() for words in self._words) / max(len(self._words), 1)
        if model is not None:
            self._embed(progress)

    def __len__(self):
        return len(self.chunks)

    def __repr__(self):
        ways = "words and vectors" if self._vectors is not None else "words only"
        return f"<Index of {len(self)} chunks from {len({c.source for c in self.chunks})} texts, by {ways}>"

    def search(self, question, k=3, how=None):
        """The `k` chunks that fit a question best, as a list of `Found`.

        Parameters
        ----------
        question : str
        k : int
        how : {"vectors", "words", "both"}, optional
            By the angle between vectors, by BM25 (rare words in common), or by the ranks of both. Default: "words",
            which needs no model and with small chat models finds more; `measure` says how much.

        Notes
        -----
        *When it misleads*: something is always found, also for a question that no text answers.
        """
        how = how or "words"
        if how not in WAYS:
            raise ValueError(f"how is {how!r}; it must be one of {', '.join(WAYS)}.")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}; it must be a whole number of at least 1.")
        if how != "words" and self._vectors is None:
            raise ValueError(
                f"This index has no vectors, so how={how!r} cannot be used. Make it with rag.index(model)."
            )
        scores = {"words": self._by_words, "vectors": self._by_vectors, "both": self._by_both}[how](question)
        best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        return [Found(rank, score, self.chunks[i]) for rank, (i, score) in enumerate(best, 1)]

    def _embed(self, progress):
        """Vectors, less their mean: a chat model's vectors all point nearly the same way, and what is common hides
        what differs."""
        faiss = need("faiss", "search by vectors")
        vectors = _embedded(self._model, self.chunks, progress)
        self._centre = vectors.mean(axis=0, keepdims=True)
        self._vectors = faiss.IndexFlatIP(vectors.shape[1])  # exact: every vector is compared
        self._vectors.add(_unit(vectors - self._centre))

    def _by_vectors(self, question):
        asked = _unit(self._model.embed([question]) - self._centre)
        scores, ids = self._vectors.search(asked, len(self))
        return {int(i): float(score) for i, score in zip(ids[0], scores[0], strict=True)}

    def _by_words(self, question):
        """BM25: each word of the question counts by its rarity, times how much of the chunk it is."""
        scores = dict.fromkeys(range(len(self)), 0.0)
        for word in set(_words(question)):
            there = self._in_chunks[word]
            rarity = math.log(1 + (len(self) - there + 0.5) / (there + 0.5))
            for i, words in enumerate(self._words):
                if count := words[word]:
                    held_back = BM25_K1 * (1 - BM25_B + BM25_B * words.total() / self._mean_length)
                    scores[i] += rarity * count * (BM25_K1 + 1) / (count + held_back)
        return scores

    def _by_both(self, question):
        scores = dict.fromkeys(range(len(self)), 0.0)
        for one in (self._by_words(question), self._by_vectors(question)):
            for rank, i in enumerate(sorted(one, key=lambda i: (-one[i], i)), 1):
                scores[i] += 1 / (FUSION + rank)
        return scores


def chunks(paths=None, max_words=110):
    """Texts cut at their headings into pieces of at most `max_words` words.

    Parameters
    ----------
    paths : path or list of paths, optional
        Files (.md, .txt, or lessons as .py, of which the Markdown cells count) or folders of such. Default: the lessons
        of this kit.
    max_words : int

    Returns
    -------
    list of Chunk

    Raises
    ------
    ValueError
        Nothing is there, or a file is not UTF-8 text.
    """
    found = []
    for file in _files(paths):
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} could not be read as UTF-8 text: {error}. Save it as plain text.") from None
        text = _markdown_cells(text) if file.suffix == ".py" else text
        found += _cut(file.stem, text, max_words)
    if not found:
        raise ValueError(f"No text was found in {paths}. Give files or folders of .md, .txt or lesson files.")
    return found


def index(model=None, paths=None, progress=True):
    """An index over texts, by default the kit's own lessons.

    Parameters
    ----------
    model : runner.Model, optional
        Embeds every chunk, which takes about as long as reading them as a prompt; the vectors are kept in a folder of
        `quality.cache_folder`, so that the next time only texts that changed are embedded. Without it the index
        searches by words only, and is made at once. An embedding model (`runner.load(path, embeds_only=True)`) finds
        more than a chat model.
    paths : path or list of paths, optional
        See `chunks`.
    progress : bool
        A bar when it takes over 2 s.

    Returns
    -------
    Index
    """
    return Index(chunks(paths), model, progress)


def ask(model, index, question, k=3, how=None, max_tokens=96):
    """An answer from the texts of an index, with the chunks it was given.

    Parameters
    ----------
    model : runner.Model
    index : Index
    question : str
    k : int
        At most so many chunks; fewer when they and the answer would not fit the context.
    how : str, optional
        See `Index.search`.

    Returns
    -------
    Cited

    Raises
    ------
    ValueError
        Not even one chunk fits the context.

    Notes
    -----
    *When it misleads*: the sources are what the model was *given*, not what it used. Open them.
    """
    found = index.search(question, k, how)
    n_found = len(found)
    while found and _tokens(model, found, question) + max_tokens > model.settings["n_ctx"]:
        found.pop()
    if not found:
        raise ValueError(
            f"The question, one source and an answer of {max_tokens} tokens do not fit the context of "
            f"{model.settings['n_ctx']} tokens. Lower max_tokens, or load the model with a larger n_ctx."
        )
    answer = model.ask(_prompt(found, question), system="", max_tokens=max_tokens, temperature=0, seed=0)
    text = answer.text.strip()
    said, given = set(_words(text)), {word for one in found for word in _words(f"{one.chunk.heading} {one.chunk.text}")}
    notes = [f"Only {len(found)} of {n_found} chunks fitted the context."] if len(found) < n_found else []
    if how in (None, "words") and not found[0].score:
        notes.append("No word of the question stands in these texts: the sources are arbitrary, and so is the answer.")
    notes += ["The answer was cut off: raise max_tokens."] if answer.finish_reason == "length" else []
    supported = len(said & given) / len(said) if said else 0.0
    return Cited(text, tuple(found), supported, answer, (*notes, *work.size_notes(model)))


def questions(path=QUESTIONS):
    """Questions about the lessons and the lessons that answer them: a list of (question, {source, ...})."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [(row["question"], set(row["lessons"].split())) for row in csv.DictReader(file)]


def measure(index, asked=None, how="words", seed=0):
    """How often the right text is found.

    Parameters
    ----------
    index : Index
    asked : list of (question, set of sources), optional
        Default: `questions()`. Those whose sources are not in the index are left out.
    how : {"vectors", "words", "both", "random"}
        "random" shuffles the chunks: what luck finds.

    Returns
    -------
    Retrieval

    Notes
    -----
    A hit is a chunk of the right *text*, whatever its paragraph. *When it misleads*: few questions, and whoever wrote
    them knew the texts, so their words are often those of the text; that favours "words".
    """
    there = {chunk.source for chunk in index.chunks}
    asked = [(question, right) for question, right in asked or questions() if right & there]
    if not asked:
        raise ValueError("No question has its answer in this index, so there is nothing to measure.")
    chance, ranks = random.Random(seed), []
    for question, right in asked:
        order = [one.chunk for one in index.search(question, len(index), "words" if how == "random" else how)]
        if how == "random":
            chance.shuffle(order)
        ranks.append(next(rank for rank, chunk in enumerate(order, 1) if chunk.source in right))
    n = len(ranks)
    hits = [sum(rank <= most for rank in ranks) / n for most in (1, 3)]
    return Retrieval(how, n, *hits, sum(1 / rank for rank in ranks) / n)


def _files(paths):
    chosen = [LESSONS] if paths is None else [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = []
    for path in map(Path, chosen):
        if path.is_dir():
            known = (file for file in sorted(path.iterdir()) if file.suffix in (".py", ".md", ".txt"))
            files += [file for file in known if file.suffix != ".py" or re.match(r"\d\d_", file.name)]
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path} is not there. Give files or folders of .md, .txt or lesson files.")
    if paths is None:
        files = [file for file in files if file.suffix == ".py"]
    return files


def _markdown_cells(text):
    """The Markdown cells of a lesson in the percent format, as one text."""
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    marked = [cell.partition("\n")[2] for cell in cells if cell.startswith(" [markdown]")]
    return "\n\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in marked)


def _cut(source, text, max_words):
    """The chunks of one text; links lose their addresses, and marks of chat templates their form."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("<|", "< |")
    title, made = source, []
    for part in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        match = re.match(r"(#+) (.*)", part)
        title = match[2].strip() if match and len(match[1]) == 1 else title
        heading = f"{title}: {match[2].strip()}" if match and len(match[1]) > 1 else title
        body = part.partition("\n")[2] if match else part
        made += [Chunk(source, heading, piece) for piece in _paragraphs(body, max_words)]
    return made


def _paragraphs(text, max_words):
    """Neighbouring paragraphs packed into pieces of at most `max_words` words; longer ones are cut."""
    packed, size = [], 0
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        for start in range(0, len(words), max_words):
            some = words[start : start + max_words]
            if packed and size + len(some) <= max_words:
                packed[-1] += " " + " ".join(some)
                size += len(some)
            else:
                packed.append(" ".join(some))
                size = len(some)
    return packed


def _words(text):
    """The words that can tell texts apart: lower case, common words left out, a plural's s cut off."""
    found = re.findall(r"[a-z0-9]+(?:[._][a-z0-9]+)*", text.lower())
    return [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in found if word not in COMMON]


def _embedded(model, chunks, progress):
    """The vectors of all chunks, one row each. Those of every text are kept on disk under what it says and who read it;
    so what was done before Ctrl-C is kept as well."""
    import numpy as np

    folder, made = quality.cache_folder() / "vectors", []
    reader = [download.sha256_of(model.path), quality.engine_release()]
    reader += [model.settings.get(name) for name in ("cache_type_k", "cache_type_v", "flash_attn")]
    with work.bar(len(chunks), 0, progress, unit="chunk") as bar:
        for _, group in itertools.groupby(chunks, key=lambda chunk: chunk.source):
            texts = [f"{chunk.heading}. {chunk.text}" for chunk in group]
            path, before = folder / f"{quality.digest(reader, texts)}.npy", bar.n
            rows = _kept(path, len(texts))
            if rows is None:
                rows = model.embed(texts, progress=lambda done, before=before: bar.update(before + done - bar.n))
                _keep(rows, path)
            made.append(rows)
            bar.update(before + len(texts) - bar.n)
    return np.concatenate(made)


def _kept(path, n_rows):
    import numpy as np

    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or half a file of another program
        return None
    return rows if rows.ndim == 2 and len(rows) == n_rows and np.isfinite(rows).all() else None


def _keep(rows, path):
    import numpy as np

    with contextlib.suppress(OSError), quality.atomically(path) as part, part.open("wb") as file:
        np.save(file, rows)  # a full disk costs only the time of the next start


def _unit(vectors):
    import numpy as np

    return np.ascontiguousarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _prompt(found, question):
    """Sources without numbers, then the question: small models go on counting, and forget what a long text follows."""
    return "\n\n".join([*(one.chunk.text for one in found), f"Answer in one sentence: {question}"])


def _tokens(model, found, question):
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": _prompt(found, question)}]
    return model.count_tokens(model.chat_prompt(messages))
