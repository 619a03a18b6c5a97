"""Exercises: *not attempted*, *not yet* (with the likely wrong idea), or *correct*; hints come in rungs.

The expected value is always handed in by the lesson, which gets it from the room that knows: nothing is calculated here
but the wrong answers of well-known wrong ideas.
"""

import contextlib
import html
import math
import numbers
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from helpers import progress, units

NOT_ATTEMPTED, NOT_YET, CORRECT, NOTED = "not attempted", "not yet", "correct", "noted"
SIGNS = {NOT_ATTEMPTED: "○", NOT_YET: "△", CORRECT: "✓", NOTED: "✎"}
PLAIN = str.maketrans("○△✓✎→", "-~+*>")  # for terminals that cannot show the signs
BORDERS = {NOT_ATTEMPTED: "dotted", NOT_YET: "dashed"}  # a line, no colour: it needs neither a light nor a dark page
NAME = re.compile(r"\d\d-[a-z0-9]+(-[a-z0-9]+)*")
EXACT = 1e-9  # relative; what floating point may add to an exact answer
LONGEST_SHOWN = 200

_exercises = {}  # name -> Exercise, of this kernel


class Blank:
    """`____`: a blank nobody filled in yet. Whatever is done with it gives a blank again, never an error.

    *When it misleads*: comparisons are all false, and where Python insists on a number (`int`, `range`) it counts as 0,
    where it insists on a fraction (`math.sqrt`) as nan.

    >>> ____ * 8 + 1
    ____ (not filled in yet)
    >>> ____ > 3, f"{____:.1f} GB"
    (False, '____ (not filled in yet) GB')
    """

    __hash__ = object.__hash__

    def __repr__(self):
        return "____ (not filled in yet)"

    def __format__(self, spec):
        return repr(self)

    def _blank(self, *_, **__):
        return self

    def _false(self, *_):
        return False

    def _zero(self):
        return 0

    def __float__(self):
        return math.nan

    def __complex__(self):
        return complex(math.nan)

    def __iter__(self):
        return iter(())

    def __array__(self, dtype=None, copy=None):
        import numpy as np

        return np.asarray(0 if np.issubdtype(dtype or float, np.integer) else math.nan, dtype=dtype)

    def __getattr__(self, name):
        if name.startswith("_"):  # IPython and pickle ask for special methods: a blank has none
            raise AttributeError(name)
        return self

    def __reduce__(self):
        return "____"

    __call__ = __getitem__ = __array_ufunc__ = __divmod__ = __rdivmod__ = _blank
    __round__ = __floor__ = __ceil__ = __trunc__ = __neg__ = __pos__ = __abs__ = __invert__ = _blank
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _blank
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _blank
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _blank
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _blank
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = _false
    __len__ = __int__ = __index__ = _zero


____ = Blank()


def is_blank(value):
    """Whether an answer was left open: a blank, nothing, or a list or table that still holds a blank.

    >>> is_blank(____), is_blank({"n_ctx": ____}), is_blank(0), is_blank(False)
    (True, True, False, False)
    """
    return _is_blank(value, depth=3)


def _is_blank(value, depth):
    if isinstance(value, Blank) or value is None or value is Ellipsis:
        return True
    if isinstance(value, str):
        return not value.strip("_ \t\n")
    if depth and isinstance(value, Mapping):
        value = list(value.values())
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return any(_is_blank(part, depth - 1) for part in value)
    return False


@dataclass(frozen=True, repr=False)
class Result:
    """What a check says: a sign, a word and a sentence, as text and as HTML."""

    name: str
    status: str
    message: str = ""
    idea: str = ""  # the wrong idea that was recognised

    @property
    def correct(self):
        return self.status == CORRECT

    @property
    def sign(self):
        return SIGNS.get(self.status, "→")

    def __str__(self):
        return _printable(f"{self.sign} {self.status}" + (f": {self.message}" if self.message else ""))

    __repr__ = __str__

    def _repr_html_(self):
        border = BORDERS.get(self.status, "solid")
        text = f": {html.escape(self.message)}" if self.message else ""
        return (
            f'<div role="status" style="border-left:4px {border};padding:2px 10px">'
            f'<span aria-hidden="true">{self.sign}</span> <strong>{html.escape(self.status)}</strong>{text}</div>'
        )


@dataclass(frozen=True)
class Exercise:
    """One exercise of this kernel: how to judge an answer, its hints, and the wrong answers that it knows."""

    name: str
    judge: Callable[[Any], Result]
    hints: tuple[str, ...] = ()
    wrong: Mapping[str, Any] = field(default_factory=dict)  # wrong idea -> the answer it leads to


# Predictions: written down, never marked


def predict(name, guess, unit="", record=True):
    """Write a prediction down and say it back; it is never marked.

    The first guess and the latest one are kept, for `outcome` and `predictions`.

    >>> predict("07-weights", 8, unit="GB", record=False)
    ✎ noted: 8 GB. A prediction is never marked.
    >>> predict("07-weights", ____, unit="GB", record=False)
    ○ not attempted: write a guess in place of ____; any guess will do, it is never marked.
    """
    _check_name(name)
    if is_blank(guess):
        return Result(name, NOT_ATTEMPTED, "write a guess in place of ____; any guess will do, it is never marked.")
    if record:
        progress.update(lambda kept: _keep_prediction(kept, name, guess, unit))
    return Result(name, NOTED, f"{show(guess, unit)}. A prediction is never marked.")


def _keep_prediction(kept, name, guess, unit):
    row = kept["predictions"].setdefault(name, {})
    row.setdefault("first", plain(guess))
    row.update(guess=plain(guess), unit=unit, when=_now())


def outcome(name, value, unit="", record=True):
    """Put what came out beside the prediction of the same name, and keep both.

    >>> outcome("07-weights", 4.92, unit="GB", record=False)
    ✎ noted: it is 4.92 GB; no prediction was written down.
    """
    _check_name(name)
    if is_blank(value):
        return Result(name, NOT_ATTEMPTED, "this builds on a blank further up that is still open.")
    if record:
        progress.update(lambda kept: _keep_outcome(kept, name, value, unit))
    row = progress.read()["predictions"].get(name, {}) if record else {}
    if "guess" not in row:
        return Result(name, NOTED, f"it is {show(value, unit)}; no prediction was written down.")
    said = f"predicted {show(row['guess'], row.get('unit', ''))}; it is {show(value, unit)}"
    ratio = _ratio(row["guess"], value) if row.get("unit", "") == unit else None
    return Result(name, NOTED, said + (f". The prediction is {ratio:.2f} times what came out." if ratio else "."))


def _keep_outcome(kept, name, value, unit):
    kept["predictions"].setdefault(name, {}).update(outcome=plain(value), outcome_unit=unit)


def _ratio(guess, value):
    guess, value = _number(guess), _number(value)
    return guess / value if guess and value and guess / value > 0 else None


@dataclass(frozen=True, repr=False)
class Prediction:
    """A prediction of the learner and, once the lesson came to it, what came out."""

    name: str
    guess: Any
    unit: str = ""
    first: Any = None  # the first guess, when it was changed later
    outcome: Any = None
    outcome_unit: str = ""

    def __str__(self):
        first = f" (at first {show(self.first, self.unit)})" if self.first != self.guess else ""
        result = "not seen yet" if self.outcome is None else f"it was {show(self.outcome, self.outcome_unit)}"
        return _printable(f"{self.name}: predicted {show(self.guess, self.unit)}{first}; {result}")

    __repr__ = __str__


def predictions():
    """All predictions in the learner's record, in the order of their names."""
    rows = progress.read()["predictions"]
    keys = ("guess", "unit", "first", "outcome", "outcome_unit")
    return tuple(
        Prediction(name, **{key: rows[name][key] for key in keys if key in rows[name]})
        for name in sorted(rows)
        if "guess" in rows[name]
    )


# Exercises


def number(name, answer, expected, unit="", tolerance=0.02, ideas=None, hints=(), why="", record=True):
    """Judge a number; a wrong one is compared with what well-known wrong ideas lead to.

    Parameters
    ----------
    name : str
        "NN-slug", after the lesson.
    answer : number or ____
        What the learner wrote, in `unit`.
    expected : number
        From the room that knows, in `unit`.
    tolerance : float
        Allowed distance, relative to the expected value (to 1 when that is 0). 0 asks for the exact number.
    ideas : dict
        Words for a wrong idea -> the answer it leads to, or a function of `expected` that gives it. Tried in order,
        before the ideas every exercise knows (bits and bytes, GB and GiB, prefixes, factor 2, upside down, per cent,
        sign; see `usual_ideas`).
    hints : tuple of str
        Rungs for `hint`.
    why : str
        One sentence, shown with a correct answer.

    >>> number("05-kv", 0.5, expected=0.5, unit="GiB", record=False)
    ✓ correct: 0.5 GiB.
    >>> number("05-kv", 4, expected=0.5, unit="GiB", record=False)
    △ not yet: 4 GiB. The likely wrong idea: bits instead of bytes.
    >>> number("05-kv", ____, expected=0.5, unit="GiB", record=False)
    ○ not attempted: write the answer in place of ____ and run the cell again.
    """
    goal = _number(expected)
    own = _own_ideas(ideas or {}, expected)
    wrong = dict(own)
    for words, value in usual_ideas(expected, unit).items():
        if not any(_close(value, known, tolerance) for known in wrong.values()):
            wrong.setdefault(words, value)

    def judge(answer):
        found = _number(answer)
        if is_blank(answer) or is_blank(expected):
            return _not_attempted(name)
        if found is None:
            return Result(name, NOT_YET, _why_no_number(answer))
        if _close(found, goal, tolerance):
            return Result(name, CORRECT, _join(f"{show(answer, unit)}.", why))
        idea = _recognise(found, goal, own, wrong, tolerance)
        if idea:
            return _wrong_idea(name, show(answer, unit), idea)
        return Result(name, NOT_YET, f"{show(answer, unit)} is too {'large' if found > goal else 'small'}.")

    if goal is None and not is_blank(expected):
        raise ValueError(f"exercise {name!r}: expected is {expected!r}; it must be one finite number")
    return _done(Exercise(name, judge, _rungs(name, hints), wrong), answer, record)


def choice(name, answer, expected, ideas, hints=(), why="", record=True):
    """Judge one choice among several; each wrong choice says which idea leads to it.

    Parameters
    ----------
    name : str
        "NN-slug", after the lesson.
    answer : str or ____
        What the learner wrote; upper and lower case are the same.
    expected : str
        The right choice.
    ideas : dict
        Every wrong choice -> words for the likely idea behind it.
    hints, why
        As in `number`.

    >>> choice("07-lever", "b", expected="a", ideas={"b": "context costs nothing"}, record=False)
    △ not yet: b. The likely wrong idea: context costs nothing.
    """
    wrong = {idea: option for option, idea in ideas.items()}
    options = {_fold(option): option for option in (*ideas, expected)}
    if len(wrong) < len(ideas) or len(options) <= len(ideas):
        raise ValueError(f"exercise {name!r}: each wrong choice needs words of its own and differs from {expected!r}")

    def judge(answer):
        if is_blank(answer):
            return _not_attempted(name)
        chosen = options.get(_fold(answer))
        if chosen is None:
            listed = ", ".join(sorted(map(str, options.values())))
            return Result(name, NOT_YET, f"{show(answer)} is not a choice here; write one of: {listed}.")
        if chosen == expected:
            return Result(name, CORRECT, _join(f"{chosen}.", why))
        return _wrong_idea(name, chosen, ideas[chosen])

    return _done(Exercise(name, judge, _rungs(name, hints), wrong), answer, record)


def true(name, answer, test, ideas=None, samples=None, hints=(), why="", record=True):
    """Judge an open answer, such as settings that must fit the learner's own machine.

    Parameters
    ----------
    name : str
        "NN-slug", after the lesson.
    answer : anything
        What the learner made; not attempted while it is or holds a blank.
    test : function of the answer, or bool
        Whether it is right.
    ideas : dict
        Words for a wrong idea -> function of the answer that recognises it; tried in order.
    samples : dict
        Words of an idea -> an answer it leads to, so that `rehearse` can try it.
    hints, why
        As in `number`.

    >>> true("03-even", 7, test=lambda n: n % 2 == 0, ideas={"odd is even": lambda n: n % 2}, record=False)
    △ not yet: 7. The likely wrong idea: odd is even.
    """
    ideas = ideas or {}

    def judge(answer):
        if is_blank(answer):
            return _not_attempted(name)
        try:
            passed = test(answer) if callable(test) else test
            if is_blank(passed):
                return _not_attempted(name)
            if passed:
                return Result(name, CORRECT, why)
        except Exception as error:  # the answer may be anything at all; the cell must go on
            return Result(name, NOT_YET, f"this answer could not be tried out ({type(error).__name__}: {error}).")
        for words, recognises in ideas.items():
            with contextlib.suppress(Exception):
                if recognises(answer):
                    return _wrong_idea(name, show(answer), words)
        return Result(name, NOT_YET, f"{show(answer)} is not it.")

    return _done(Exercise(name, judge, _rungs(name, hints), dict(samples or {})), answer, record)


def hint(name):
    """The next hint of an exercise, rung by rung; after the last one, the last one again."""
    exercise = _exercises.get(name)
    if exercise is None:
        known = ", ".join(sorted(_exercises)) or "none yet"
        return Result(name, "no hint", f"run the cell that checks it first. Checked so far: {known}.")
    if not exercise.hints:
        return Result(name, "no hint", "this exercise has none; the section above it holds what is needed.")
    rung = progress.update(lambda kept: _climb(kept, name, len(exercise.hints)))
    return Result(name, f"hint {rung} of {len(exercise.hints)}", exercise.hints[rung - 1])


def _climb(kept, name, rungs):
    row = kept["exercises"].setdefault(name, {})
    row["hints"] = min(_count(row, "hints") + 1, rungs)
    return row["hints"]


def _count(row, key):
    return row[key] if isinstance(row.get(key), int) else 0  # people do edit such files


def summary():
    """Where every exercise in the learner's record stands, in the order of their names."""
    return Summary(tuple(sorted(progress.read()["exercises"].items())))


@dataclass(frozen=True, repr=False)
class Summary:
    """(name, record) of each exercise, shown as lines or as a table."""

    rows: tuple

    def cells(self):
        for name, row in self.rows:
            status = str(row.get("status", NOT_ATTEMPTED))
            yield name, f"{SIGNS.get(status, '')} {status}", str(_count(row, "attempts")), str(_count(row, "hints"))

    def __str__(self):
        lines = [f"{name}: {status}; attempts {tries}, hints {hints}" for name, status, tries, hints in self.cells()]
        return _printable("\n".join(lines) or "No exercise has been answered yet.")

    __repr__ = __str__

    def _repr_html_(self):
        if not self.rows:
            return f"<p>{self}</p>"
        head = "".join(f'<th scope="col">{word}</th>' for word in ("exercise", "status", "attempts", "hints"))
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in self.cells())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Rehearsal:
    """One wrong idea tried on an exercise: `named` when the check recognised it."""

    name: str
    idea: str
    answer: Any
    result: Result

    @property
    def named(self):
        return self.result.idea == self.idea


def rehearse():
    """Try every wrong idea that the exercises of this kernel know; for authors and tests. Nothing is recorded.

    An idea whose answer is right by chance on this machine is left out. The row with the idea "" is the blank.
    """
    rows = []
    for exercise in _exercises.values():
        rows.append(Rehearsal(exercise.name, "", ____, exercise.judge(____)))
        tried = [Rehearsal(exercise.name, idea, value, exercise.judge(value)) for idea, value in exercise.wrong.items()]
        rows += [row for row in tried if not row.result.correct]
    return tuple(rows)


# Wrong ideas

PREFIXES = {"K": (units.KIB, units.KB), "M": (units.MIB, units.MB), "G": (units.GIB, units.GB)}
PREFIXES["T"] = (units.TIB, units.TB)
BIT_UNITS = ("bit", "bits", "bpw", "bits per weight")
RATIO_UNITS = ("", "%", "x", "times", "ratio", "fraction")
SIZE_UNIT = re.compile(r"(bytes?|([KMGT]i?)?B)(/.+)?")


def usual_ideas(expected, unit=""):
    """Wrong answers that well-known wrong ideas lead to, as {words: answer}; which ones apply depends on the unit.

    >>> usual_ideas(4.0, "GiB")["bits instead of bytes"]
    32.0
    >>> list(usual_ideas(10, "tokens"))
    ['half of it: K without V, or another factor of 2', 'twice as much', 'the sign turned around']
    """
    goal = _number(expected)
    if not goal:
        return {}
    factors = {}
    if SIZE_UNIT.fullmatch(unit) or unit in BIT_UNITS:
        factors["bits instead of bytes"] = units.BITS_PER_BYTE
        factors["bytes instead of bits"] = 1 / units.BITS_PER_BYTE
    if SIZE_UNIT.fullmatch(unit):
        factors |= _prefix_factors(unit)
    factors["half of it: K without V, or another factor of 2"] = 1 / 2
    factors["twice as much"] = 2
    if unit in RATIO_UNITS:
        factors["per cent instead of a fraction"] = 100
        factors["a fraction instead of per cent"] = 1 / 100
    factors["the sign turned around"] = -1
    wrong = {words: goal * factor for words, factor in factors.items()}
    if unit in RATIO_UNITS:
        wrong["the ratio upside down"] = 1 / goal
    return wrong


def _prefix_factors(unit):
    letter = unit[:1] if unit[:1] in PREFIXES else "G"
    binary, decimal = PREFIXES[letter]
    factors = {
        f"{letter}B instead of {letter}iB": binary / decimal,
        f"{letter}iB instead of {letter}B": decimal / binary,
    }
    for sizes in PREFIXES.values():
        for size in sizes:
            factors[f"a prefix (K, M, G) was skipped, {size:,} times too large"] = size
            factors[f"a prefix (K, M, G) too many, {size:,} times too small"] = 1 / size
    return factors


def _own_ideas(ideas, expected):
    """The lesson's ideas as numbers; one that gives no number here (as 1/0 would) is left out."""
    own = {}
    for words, idea in ideas.items():
        with contextlib.suppress(ArithmeticError):
            value = _number(idea(expected) if callable(idea) else idea)
            if value is not None:
                own[words] = value
    return own


def _recognise(found, goal, own, wrong, tolerance):
    """The wrong idea behind a number: the lesson's own ones in their order, then the nearest of the usual ones."""
    near = [
        words
        for words, value in wrong.items()
        if _close(found, value, tolerance) and not _close(value, goal, tolerance)
    ]
    for words in near:
        if words in own:
            return words
    return min(near, key=lambda words: abs(found - wrong[words]) / (abs(wrong[words]) or 1), default="")


def _close(found, goal, tolerance):
    return abs(found - goal) <= max(tolerance, EXACT) * (abs(goal) or 1)


# Answers as numbers, as words, and as JSON


def _number(value):
    """A finite float, or None for whatever is not one number."""
    if isinstance(value, (bool, str, bytes, complex)) or not hasattr(value, "__float__"):
        return None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        converted = float(value)
        return converted if math.isfinite(converted) else None
    return None


def _why_no_number(answer):
    if isinstance(answer, str):
        return f"{show(answer)} is text; write a bare number, without quotes and without the unit."
    if isinstance(answer, numbers.Real) and not isinstance(answer, bool):
        return f"{show(answer)} is no finite number; perhaps a blank further up is still open."
    return f"{show(answer)} is a {type(answer).__name__}; one number is asked for."


def show(value, unit=""):
    """An answer in words, short, with its unit.

    >>> show(1073741824, "bytes")
    '1,073,741,824 bytes (1.0 GiB)'
    >>> show(4.0, "GiB"), show(1 / 3, "%"), show("Q4_K_M")
    ('4 GiB', '0.3333 %', 'Q4_K_M')
    """
    text = _text(value)
    if unit in ("B", "byte", "bytes") and abs(_number(value) or 0) >= units.KIB:
        return f"{text} {unit} ({units.show(_number(value))})"
    return f"{text} {unit}".strip()


def _text(value):
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, Blank)):
        converted = _number(value)
        if converted is None:
            return "nan" if isinstance(value, float) and math.isnan(value) else "a number too large to show"
        if converted == int(converted) and abs(converted) < 1e15:
            return f"{int(converted):,}"
        return f"{converted:,.0f}" if 1e5 <= abs(converted) < 1e15 else f"{converted:.4g}"
    try:
        text = str(value)
    except Exception:  # an answer may be any object, even one that cannot be shown
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _printable(text):
    """The text with what this terminal can show: `print` must not fail for want of a sign or a letter."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
    except LookupError:
        return text.translate(PLAIN).encode("ascii", "replace").decode()


def plain(value):
    """An answer as JSON can keep it: numbers and short text stay, all else becomes text.

    >>> plain(3), plain(0.5), plain((1, "a")), plain(1 + 2j)
    (3, 0.5, [1, 'a'], '(1+2j)')
    """
    if isinstance(value, (bool, str)) or value is None:
        return value if not isinstance(value, str) else _text(value)
    if isinstance(value, numbers.Real) and _number(value) is not None:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, (list, tuple)) and len(value) <= 20:
        return [part if isinstance(part, (bool, int, str)) else plain(part) for part in value]
    return _text(value)


def _not_attempted(name):
    return Result(name, NOT_ATTEMPTED, "write the answer in place of ____ and run the cell again.")


def _wrong_idea(name, answer, idea):
    return Result(name, NOT_YET, f"{answer}. The likely wrong idea: {idea}.", idea)


def _join(*sentences):
    return " ".join(sentence for sentence in sentences if sentence)


def _fold(value):
    return _text(value).strip().casefold()


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _check_name(name):
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"an exercise is named like '07-kv-cache' (lesson, dash, lower-case words), not {name!r}")


def _rungs(name, hints):
    if isinstance(hints, str) or not all(isinstance(rung, str) for rung in hints):
        raise ValueError(f"exercise {name!r}: hints is a tuple of sentences, not {hints!r}")
    return tuple(hints)


# From a judgement to the record


def _done(exercise, answer, record):
    _check_name(exercise.name)
    result = exercise.judge(answer)
    if not record:
        return result
    _exercises[exercise.name] = exercise
    row = progress.update(lambda kept: _keep_answer(kept, result, answer))
    return _with_history(result, row, exercise)


def _keep_answer(kept, result, answer):
    """Keep an answer; an empty cell never undoes what was answered before, nor a wrong one what was right."""
    row = kept["exercises"].setdefault(result.name, {})
    if result.status != NOT_ATTEMPTED:
        if row.get("answer") != plain(answer) or "attempts" not in row:
            row["attempts"] = _count(row, "attempts") + 1
        row.update(answer=plain(answer), last=result.status, when=_now())
    if row.get("status") != CORRECT and (result.status != NOT_ATTEMPTED or "status" not in row):
        row["status"] = result.status
    return dict(row)


def _with_history(result, row, exercise):
    extra = ""
    if result.status == NOT_YET and exercise.hints:
        extra = f'For a hint: check.hint("{result.name}")'
    if result.status == NOT_ATTEMPTED and row.get("status") == CORRECT:
        extra = f"It was correct before, with {show(row.get('answer'))}."
    return Result(result.name, result.status, _join(result.message, extra), result.idea)
