"""A model put to work: facts out of a text, calls of functions, summaries, translations, a table row by row.

Each is a few lines over `runner.Model.ask`. A grammar forces the form of an answer, never its truth: results therefore
name what the model wrote that does not stand in its source.
"""

import contextlib
import csv
import inspect
import io
import json
import math
import os
import re
import string
import time
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import units
from .need import need
from .progress import try_lock
from .runner import LoadError, ModelDied, WontFit

SMALL_WEIGHTS = units.GB  # models below a billion weights get a warning beside their summaries and translations
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
TEXT_LENGTH = 200  # characters: a small model may go on for ever inside a string
LIST_LENGTH = 20
NONE = "none"
MOST_CALLS = 10


class WorkError(ValueError):
    """An answer that cannot be used, or a job that cannot be done; `.answer` is the model's `Answer`, if any."""

    def __init__(self, text, answer=None):
        super().__init__(text)
        self.answer = answer


@dataclass(frozen=True)
class Extracted:
    """What was read out of a text. `invented` names the fields whose value does not stand in the text as it is."""

    data: object
    invented: tuple[str, ...]
    answer: object

    def __str__(self):
        lines = [json.dumps(self.data, ensure_ascii=False, indent=1)]
        if self.invented:
            lines.append(f"Not in the text as it stands, so check: {', '.join(self.invented)}")
        return "\n".join(map(units.printable, lines))


@dataclass(frozen=True)
class Call:
    """One function that the model chose, with what it returned or the error it raised."""

    name: str
    arguments: dict
    result: object = None
    error: str = ""
    invented: tuple[str, ...] = ()

    def __str__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        came = f"failed: {self.error}" if self.error else repr(self.result)
        warning = f" (not in the question: {', '.join(self.invented)})" if self.invented else ""
        return units.printable(f"{self.name}({arguments}) -> {came}{warning}")


@dataclass(frozen=True)
class Called:
    """The functions that were called for a question, in order, and the model's last words about them."""

    text: str
    calls: tuple[Call, ...]
    notes: tuple[str, ...] = ()

    def __str__(self):
        calls = [str(call) for call in self.calls] or ["no function was called"]
        words = [f"In the model's words: {self.text}"] if self.text else []
        return "\n".join(map(units.printable, [*calls, *words, *(f"Note: {note}" for note in self.notes)]))


@dataclass(frozen=True)
class Batch:
    """How far a table has come: rows in all, done before, done now (those tried again are), how many have an error."""

    path: Path
    n_rows: int
    n_before: int
    n_now: int
    n_errors: int
    seconds: float

    @property
    def finished(self):
        return self.n_before + self.n_now == self.n_rows

    def __str__(self):
        text = f"{self.n_before + self.n_now} of {self.n_rows} rows are in {units.printable(self.path.name, 200)}"
        text += (
            f" ({self.n_before} from before, {self.n_now} now in {self.seconds:.1f} s, {self.n_errors} with an error)"
        )
        if not self.finished:
            return f"{text}. Stopped: run the same line again to go on."
        return f"{text}; retry=True asks those again." if self.n_errors else f"{text}."


def fields(**kinds):
    """A JSON schema for an object with these fields, all of them required.

    Parameters
    ----------
    **kinds
        str, int, float or bool; a list of choices; or a JSON schema of your own.

    >>> fields(age=int)["properties"], fields(mood=["good", "bad"])["properties"]
    ({'age': {'type': 'integer'}}, {'mood': {'enum': ['good', 'bad']}})
    """
    properties = {name: _schema_of(kind, name) for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def extract(model, text, schema, max_tokens=256):
    """Read facts out of a text, as JSON of a given form.

    Parameters
    ----------
    model : runner.Model
    text : str
    schema : dict
        A JSON schema; `fields(name=str, age=int)` writes a simple one.
    max_tokens : int

    Returns
    -------
    Extracted
        The same text gives the same data: the likeliest token is taken every time.

    Raises
    ------
    ValueError
        The schema is none, or llama.cpp can make no grammar of it; the text does not fit the context.
    WorkError
        The answer was cut off, or breaks a rule that a grammar cannot hold (minimum, maximum, uniqueItems).

    Notes
    -----
    *When it misleads*: the form is right, the content is the model's. `invented` compares letters and digits: it
    finds a year that nobody wrote, and it also names "42" where the text says "forty-two". Choices (enum) and
    true/false are not compared, since they are rarely written out.
    """
    _check_schema(schema)
    names = ", ".join(schema.get("properties", {})) or "what it says"
    answer = _ask(model, f"{text}\n\nWrite as JSON: {names}.", "", max_tokens, schema=schema)
    data = _parsed(answer, schema, max_tokens)
    return Extracted(data, _invented(data, text, _choices(schema)), answer)


def call(model, question, tools, max_calls=1, may_refuse=False, max_tokens=96):
    """Let the model answer a question with Python functions: it chooses one and its arguments, we call it.

    Parameters
    ----------
    model : runner.Model
    question : str
    tools : list of functions
        With annotated parameters (str, int, float, bool, `typing.Literal`, or a list of these) and a docstring, whose
        first line the model is shown. They run in your own process: give it only what may run on any argument.
    max_calls : int
        From 1 to 10. With more than one the model sees the results and may call again, or stop.
    may_refuse : bool
        Also offer "none of these". Without it the model has to choose a function for every question, fit or not.

    Returns
    -------
    Called

    Raises
    ------
    WorkError
        The model's choice was cut off.
    ValueError
        A tool that cannot be described, or too many calls.

    Notes
    -----
    The model's text is parsed as JSON and never evaluated. Arguments that do not bind to the function's signature end
    in an error of that call, and so does an exception in the function.

    *When it misleads*: a grammar makes every choice look deliberate. `Call.invented` names arguments that do not stand
    in the question.
    """
    offered = _described(tools)
    if isinstance(max_calls, bool) or not isinstance(max_calls, int) or not 1 <= max_calls <= MOST_CALLS:
        raise ValueError(f"max_calls is {max_calls!r}; it must be a whole number from 1 to {MOST_CALLS}.")
    lines = [f"{name}{inspect.signature(tool)}: {_first_line(tool)}" for name, (tool, _) in offered.items()]
    calls, notes, told = [], [], question
    while len(calls) < max_calls:
        refusal = may_refuse or bool(calls)
        schema = _choice_schema(offered, refusal)
        listed = [*lines, f"{NONE}(): if no other function helps"] if refusal else lines
        system = "\n".join(["You choose a function for each question.", *listed])
        chosen = _parsed(_ask(model, told, system, max_tokens, schema=schema), schema, max_tokens)
        name, arguments = chosen["function"], chosen.get("arguments", {})
        if name == NONE and refusal:
            break
        if any((name, arguments) == (before.name, before.arguments) for before in calls):
            notes.append(f"It wanted the same call of {name} again, so it was stopped.")
            break
        calls.append(_carry_out(offered[name], name, arguments, question))
        told = _with_results(question, calls)
    if len(calls) == max_calls > 1:
        notes.append(f"It was stopped after {max_calls} calls (max_calls).")
    text = _last_words(model, question, calls, max_tokens)
    if text and not all(_plain(str(made.result)) in _plain(text) for made in calls):
        notes.append("These words do not hold what the functions returned: trust the calls, not the words.")
    return Called(text, tuple(calls), tuple(notes))


def summarize(model, text, sentences=2, max_tokens=160):
    """A summary of a text of any length: what does not fit the context is summarized piece by piece, then together.

    Returns
    -------
    Answer
        The last one; `notes` says how many pieces there were, and warns of a model below a billion weights.

    *When it misleads*: a summary of summaries keeps what each piece found important. Small models copy the first
    sentences or add what was never said.
    """
    ask = f"Summarize this text in {sentences} sentences."
    return _in_pieces(model, text, ask, max_tokens, together=True)


def translate(model, text, to, max_tokens=320):
    """A translation of a text, piece by piece where it is long; `to` is a language in English, such as "German".

    Returns
    -------
    Answer
        `text` holds all pieces; `notes` warns of a model below a billion weights.

    *When it misleads*: models of this size know little but the languages they were trained on; SmolLM2's is English
    alone, and what it writes for others is often no sentence of any language.
    """
    return _in_pieces(model, text, f"Translate this text to {to}.", max_tokens, together=False)


def batch(
    model,
    csv_in,
    csv_out,
    prompt_template,
    column="answer",
    system="",
    schema=None,
    max_tokens=128,
    temperature=0,
    seed=0,
    progress=True,
    retry=False,
):
    """Ask one question for every row of a CSV file, and write each answer to another CSV file as it comes.

    Parameters
    ----------
    model : runner.Model
    csv_in, csv_out : path
        UTF-8, with a line of column names; commas or semicolons. `csv_in` is never written to.
    prompt_template : str
        The question, with columns in braces: "Is this review friendly? {review}".
    column : str
        The name of the new column; errors of single rows go to `<column>_error`.
    system, max_tokens, temperature, seed
        As for `ask`.
    schema : dict, optional
        A JSON schema for every answer, as for `extract`. The value of a single field is written as it is, more as JSON.
    retry : bool
        First ask rows again that have an error from an earlier run. It helps when memory was short or the context too
        small (load with a larger n_ctx); at temperature 0 most other errors come back.

    Returns
    -------
    Batch
        Ctrl-C ends it after the last whole row.

    Raises
    ------
    WorkError
        A column is missing, the output was begun with other settings or another input, is the input itself, or another
        run is writing it at this moment.

    Notes
    -----
    Each row is forced to the disk before the next one is asked. The same call again goes on after the last whole row,
    also when the computer was switched off in between; rows with an error count as done. A row of the output belongs to
    the row of the input at the same place, with the same values: rows may be added at the end of the input, and any
    other change is refused. Beside the output a file `<csv_out>.job` holds the settings. An answer that a spreadsheet
    would run as a formula gets a ' in front.

    *When it misleads*: a column full of answers looks like data. Read a sample of rows before you count anything.
    """
    csv_in, csv_out = Path(csv_in).expanduser(), Path(csv_out).expanduser()
    if csv_out.exists() and csv_out.samefile(csv_in):
        raise WorkError(f"{csv_out.name} is the input itself. Choose another name for the output.")
    if schema is not None:
        _check_schema(schema)
    table = _Table(csv_in)
    added = [column, f"{column}_error"]
    _check_template(prompt_template, table, added)
    settings = {
        "model": model.path.name,
        "prompt_template": prompt_template,
        "column": column,
        "system": system,
        "schema": schema,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    options = {"system": system, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with _alone(csv_out) as job:
        done = _begun(csv_out, job, table, added, settings)
        again = [i for i, row in enumerate(done) if row[-1]] if retry else []
        start, n_done, n_now = time.monotonic(), len(done), 0
        with bar(len(table.rows), n_done - len(again), progress) as shown:
            for i in [*again, *range(n_done, len(table.rows))]:
                row = table.rows[i]
                text, error, stopped = _row_answer(model, prompt_template, table.named(row), options, schema)
                if stopped:
                    break
                done[i : i + 1] = [[*row, _harmless(text), error]]
                if i < n_done:
                    _rewrite(csv_out, table, [[*table.header, *added], *done])
                else:
                    with csv_out.open("ab") as file:
                        _append(file, table.line(done[i]))
                n_now += 1
                shown.update()
    n_errors = sum(bool(row[-1]) for row in done)
    return Batch(csv_out, len(table.rows), len(done) - n_now, n_now, n_errors, time.monotonic() - start)


def batch_seconds(n_rows, prompt_tokens, answer_tokens, prompt_tokens_per_second, tokens_per_second):
    """Time for a table, in seconds: each row is read, then answered.

    Parameters
    ----------
    n_rows, prompt_tokens, answer_tokens : float
        The tokens are those of one row.
    prompt_tokens_per_second, tokens_per_second : float
        As in `runner.Answer`.

    Notes
    -----
    *When it misleads*: an answer may be longer than you thought, up to `max_tokens`; other programs use the processor.

    >>> batch_seconds(10, 100, 20, 200, 40)
    10.0
    """
    return n_rows * (prompt_tokens / prompt_tokens_per_second + answer_tokens / tokens_per_second)


def pieces(model, text, n_tokens):
    """A text cut into pieces of at most `n_tokens` tokens, at the ends of sentences where possible."""
    if n_tokens < 1:
        raise WorkError("There is no room for a text beside the answer. Lower max_tokens, or load with a larger n_ctx.")
    parts = [part for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if part.strip()]
    counts = model.count_tokens(parts)
    made, size = [], 0
    while parts:
        part, count = parts.pop(0), counts.pop(0) + 1
        if count > n_tokens and len(part) > 1:
            half = _near_the_middle(part)
            parts[:0] = [part[:half], part[half:]]
            counts[:0] = model.count_tokens(parts[:2])
        elif made and size + count <= n_tokens:
            made[-1], size = f"{made[-1]} {part.strip()}", size + count
        else:
            made.append(part.strip())
            size = count
    return made


def size_notes(model):
    """A warning that goes beside the answers of a model of less than a billion weights; () for others."""
    if model.n_params >= SMALL_WEIGHTS:
        return ()
    return (f"a model of {units.show_count(model.n_params)} weights: compare every sentence with the source.",)


def _ask(model, prompt, system, max_tokens, **more):
    answer = model.ask(prompt, system=system, max_tokens=max_tokens, temperature=0, seed=0, **more)
    if answer.finish_reason == "cancelled":
        raise KeyboardInterrupt
    return answer


def _check_schema(schema):
    """Whether this is a JSON schema at all; what llama.cpp makes of it is the runner's business."""
    if not isinstance(schema, dict):
        raise TypeError(f"schema is {schema!r}; it must be a JSON schema, for instance work.fields(name=str, age=int).")
    jsonschema = need("jsonschema", "check JSON against a schema")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "its top"
        raise ValueError(f"This is no JSON schema: at {where}, {error.message}.") from None
    except RecursionError:
        raise ValueError("The schema is nested too deeply, or contains itself. Ask for something flatter.") from None


def _parsed(answer, schema, max_tokens):
    """The answer as Python data, or `WorkError`."""
    if answer.finish_reason in ("length", "context"):
        raise WorkError(
            f"The answer was cut off after {answer.answer_tokens} tokens, in the middle of its JSON: "
            f"{answer.text[-60:]!r}. Raise max_tokens (now {max_tokens}), or limit the schema (maxLength, maxItems).",
            answer,
        )
    try:
        data = json.loads(answer.text, strict=False, parse_float=_finite)  # the grammar lets bare newlines pass
    except (ValueError, RecursionError) as error:
        raise WorkError(
            f"The answer is no JSON ({error}): {answer.text[:200]!r}. Simplify the schema.", answer
        ) from None
    if problem := _problem(data, schema):
        raise WorkError(f"The answer breaks a rule of the schema that a grammar cannot hold: {problem}", answer)
    return data


def _problem(data, schema):
    """What is wrong with `data`, or ""; patterns are left to the grammar, because some keep Python busy for years."""
    jsonschema = need("jsonschema", "check JSON against a schema")
    validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": lambda *_: ()})
    error = next(validator(schema).iter_errors(data), None)
    if error is None:
        return ""
    where = "/".join(map(str, error.absolute_path)) or "the whole"
    return f"{where}: {error.message[:200]}."


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return value


def _choices(schema):
    """All texts that the schema offers as choices."""
    if isinstance(schema, dict):
        own = {str(value) for value in [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]}
        return own.union(*map(_choices, schema.values()))
    return set().union(*map(_choices, schema)) if isinstance(schema, list) else set()


def _invented(data, text, choices=frozenset(), where=""):
    """Paths of the values in `data` that do not stand in `text`, apart from choices, true, false and null."""
    if isinstance(data, (dict, list)):
        inside = data.items() if isinstance(data, dict) else enumerate(data)
        found = (_invented(value, text, choices, f"{where}.{name}".strip(".")) for name, value in inside)
        return tuple(path for paths in found for path in paths)
    if data is None or isinstance(data, bool) or str(data) in choices:
        return ()
    if isinstance(data, (int, float)):
        there = data in {
            float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text))
        }
        return () if there else (where or "the value",)
    return () if _plain(data) in _plain(text) else (where or "the value",)


def _plain(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


def _schema_of(kind, name):
    """The JSON schema of a Python annotation."""
    if isinstance(kind, dict):
        return kind
    if isinstance(kind, (list, tuple)) and kind:
        return {"enum": list(kind)}
    if isinstance(kind, type) and kind in JSON_TYPES:
        return {"type": JSON_TYPES[kind], **({"maxLength": TEXT_LENGTH} if kind is str else {})}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin is list and len(inner) == 1:
        return {"type": "array", "items": _schema_of(inner[0], name), "maxItems": LIST_LENGTH}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if part is type(None) else _schema_of(part, name) for part in inner]}
    raise ValueError(
        f"{name} is of the kind {kind!r}, which cannot be asked of a model. Use str, int, float, bool, a list of "
        "choices, or list[str] and the like."
    )


def _described(tools):
    """Function name -> (function, JSON schema of its arguments)."""
    described = {}
    for tool in tools:
        name = getattr(tool, "__name__", "")
        if not callable(tool) or not name.isidentifier():
            raise ValueError(f"{tool!r} is no function with a name. Write it with `def`.")
        if name in described or name == NONE:
            raise ValueError(f"Two tools are called {name!r}, or the name is taken. Give each its own name.")
        described[name] = (tool, _arguments_schema(tool, name))
    if not described:
        raise ValueError("tools is empty: give at least one function.")
    return described


def _arguments_schema(tool, name):
    hints, properties, required = typing.get_type_hints(tool), {}, []
    for parameter in inspect.signature(tool).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{name} has the parameter {parameter}, which has no single value. Name each parameter.")
        if parameter.name not in hints:
            raise ValueError(
                f"{name} does not say what {parameter.name} is. Write for instance `{parameter.name}: str`."
            )
        properties[parameter.name] = _schema_of(hints[parameter.name], f"{name}({parameter.name})")
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _choice_schema(offered, may_refuse):
    """One function by name with its arguments; `none` has none."""
    alternatives = [
        {
            "type": "object",
            "properties": {"function": {"const": name}, "arguments": schema},
            "required": ["function", "arguments"],
        }
        for name, (_, schema) in offered.items()
    ]
    if may_refuse:
        alternatives.append({"type": "object", "properties": {"function": {"const": NONE}}, "required": ["function"]})
    return {"anyOf": alternatives}


def _carry_out(offered, name, arguments, question):
    tool, schema = offered
    made = Call(name, arguments, invented=_invented(arguments, question, _choices(schema)))
    try:
        bound = inspect.signature(tool).bind(**arguments)
        return replace(made, result=tool(*bound.args, **bound.kwargs))
    except Exception as error:  # a tool may fail in any way; the model and the reader are told
        return replace(made, error=f"{type(error).__name__}: {error}")


def _with_results(question, calls):
    done = [f"{made.name} gave: {made.error or made.result}" for made in calls]
    return "\n".join([question, *done])


def _last_words(model, question, calls, max_tokens):
    if not calls or any(made.error for made in calls):
        return ""
    told = "\n".join([*(f"{made.name}: {made.result}" for made in calls), question])
    return _ask(model, told, "Answer in one short sentence with the given result.", max_tokens).text.strip()


def _first_line(tool):
    return (inspect.getdoc(tool) or "no description").splitlines()[0]


def _in_pieces(model, text, ask, max_tokens, together):
    """The answers to `ask` about each piece of a text; `together` asks about the answers until one is left."""
    room = model.settings["n_ctx"] - model.count_tokens(model.chat_prompt([_user(f"{ask}\n\n")])) - max_tokens - 32
    parts = pieces(model, text, room if together else min(room, max_tokens // 2))
    if not parts:
        raise WorkError("The text is empty: give at least one sentence.")
    n_parts, rounds, n_cut = len(parts), 0, 0
    while True:
        answers = []
        with bar(len(parts), 0, len(parts) > 1, unit="piece") as shown:
            for part in parts:
                answers.append(_ask(model, f"{ask}\n\n{part}", "", max_tokens))
                shown.update()
        n_cut += sum(answer.finish_reason != "stop" for answer in answers)
        rounds += 1
        if not together or len(answers) == 1 or rounds == 4:
            break
        parts = pieces(model, "\n\n".join(answer.text for answer in answers), room)
    notes = [f"{n_parts} pieces, put together in {rounds} rounds."] if n_parts > 1 else []
    notes += [f"{n_cut} answers were cut off: raise max_tokens (now {max_tokens})."] if n_cut else []
    whole = "\n\n".join(answer.text.strip() for answer in answers)
    return replace(answers[-1], text=whole, notes=(*notes, *size_notes(model)))


def _user(text):
    return {"role": "user", "content": text}


def _near_the_middle(text):
    """Where to cut a sentence that is too long: at the space nearest to its middle, or in the middle."""
    middle = len(text) // 2
    spaces = [match.start() for match in re.finditer(r"\s", text.rstrip()) if match.start()]
    return min(spaces, key=lambda at: abs(at - middle), default=middle) or middle


@dataclass
class _Table:
    """A CSV file, read whole; written lines keep its delimiter and its mark for spreadsheets (BOM)."""

    path: Path
    header: list = field(default_factory=list)
    rows: list = field(default_factory=list)

    def __post_init__(self):
        text = _read_text(self.path)
        self.bom = "\ufeff" if text.startswith("\ufeff") else ""
        first = text.split("\n", 1)[0]
        self.delimiter = ";" if first.count(";") > first.count(",") else ","
        self.header, *self.rows = _records(text[len(self.bom) :], self.delimiter, self.path) or [[]]
        if not any(name.strip() for name in self.header) or len(set(self.header)) < len(self.header):
            raise WorkError(f"{self.path.name} must begin with a line of column names, each another: {self.header}.")
        for i, row in enumerate(self.rows, 1):
            if len(row) != len(self.header):
                raise WorkError(f"{self.path.name}, row {i}: {len(row)} values for {len(self.header)} columns: {row}.")

    def named(self, row):
        return dict(zip(self.header, row, strict=True))

    def line(self, values):
        made = io.StringIO()
        csv.writer(made, delimiter=self.delimiter, lineterminator="\n").writerow(values)
        return made.getvalue()


def _read_text(path):
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise WorkError(f"{path} could not be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise WorkError(
            f"{path.name} is not UTF-8 (byte {error.start}). In a spreadsheet save it as 'CSV UTF-8'."
        ) from None


def _records(text, delimiter, path):
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    except csv.Error as error:
        raise WorkError(f"{path.name} is no proper CSV file: {error}.") from None


def _check_template(template, table, added):
    if taken := [name for name in added if name in table.header]:
        raise WorkError(f"{table.path.name} has a column {taken[0]!r} already. Choose another name with column=.")
    if not table.rows:
        raise WorkError(f"{table.path.name} has no rows below its column names {table.header}.")
    try:
        slots = [slot for slot in string.Formatter().parse(template) if slot[1] is not None]
    except ValueError as error:
        raise WorkError(
            f"The template {template!r} is not understood: {error}. Write {{{{ for a brace itself."
        ) from None
    names = {name + (f":{shape}" if shape else "") for _, name, shape, _ in slots}
    if unknown := sorted(names - set(table.header)):
        raise WorkError(f"The template names {unknown[0]!r}, but the columns are: {', '.join(table.header)}.")
    if not names:
        raise WorkError(
            f"The template names no column. Write for instance {{{table.header[0]}}} where its text shall go."
        )


@contextlib.contextmanager
def _alone(csv_out):
    """The output's settings file, open and locked: of two runs at once the second is refused."""
    path = csv_out.with_name(csv_out.name + ".job")
    begun = csv_out.exists() and csv_out.stat().st_size
    try:
        job = path.open("r+b" if begun else "a+b")
    except FileNotFoundError:
        raise _not_ours(csv_out, path) from None
    with job:
        try:
            try_lock(job)
        except (BlockingIOError, PermissionError):
            raise WorkError(
                f"{csv_out.name} is being written by another run at this moment. Wait for it or stop it, then run the "
                "same line again; or choose another csv_out."
            ) from None
        except (OSError, ImportError):  # some network drives, and Python in a browser, have no locks
            pass
        yield job


def _begun(csv_out, job, table, added, settings):
    """The whole rows that the output has already; makes the output and fills its settings file when there is none."""
    header = [*table.header, *added]
    if not csv_out.exists() or not csv_out.stat().st_size:
        job.seek(0)
        job.truncate()
        _append(job, json.dumps(settings, indent=1, ensure_ascii=False))
        with csv_out.open("ab") as file:
            _append(file, table.bom + table.line(header))
        return []
    _check_settings(csv_out, job, settings)
    content = csv_out.read_bytes()
    whole = _whole_records(content)
    if len(whole) < len(content):  # the computer went off in the middle of a row
        with csv_out.open("r+b") as file:
            file.truncate(len(whole))
    rows = _records(whole.decode("utf-8-sig"), table.delimiter, csv_out)
    if not rows:
        csv_out.unlink()
        return _begun(csv_out, job, table, added, settings)
    same = [row[: len(table.header)] for row in rows[1:]] == table.rows[: len(rows) - 1]
    if rows[0] != header or not same:
        raise WorkError(f"{csv_out.name} belongs to another table than {table.path.name}. Choose another csv_out.")
    return rows[1:]


def _not_ours(csv_out, path):
    return WorkError(
        f"{csv_out.name} exists, and no batch began it ({path.name} is missing or damaged). Choose another csv_out."
    )


def _check_settings(csv_out, job, settings):
    job.seek(0)
    try:
        old = json.loads(job.read())
    except ValueError:
        raise _not_ours(csv_out, Path(job.name)) from None
    now = json.loads(json.dumps(settings))
    if changed := [name for name in now if old.get(name) != now[name]]:
        name = changed[0]
        raise WorkError(
            f"{csv_out.name} was begun with {name}={old.get(name)!r}, and now it is {now[name]!r}: its rows would not "
            "compare. Choose another csv_out."
        )


def _whole_records(content):
    """The part of a CSV file that ends with a whole record: after a line end outside of quotes.

    >>> _whole_records(b'a,b\\n1,2\\n3,"x\\n')
    b'a,b\\n1,2\\n'
    """
    end = at = quotes = 0
    for line in content.splitlines(keepends=True):
        at += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = at
    return content[:end]


def _row_answer(model, template, row, options, schema):
    """(text, error, whether the learner stopped it) for one row; only a model that cannot be loaded again ends all."""
    try:
        prompt = template.format_map(row)
        if not prompt.strip():
            return "", "the prompt is empty", False
        answer = model.ask(prompt, schema=schema, **options)
        if answer.finish_reason == "cancelled":
            return "", "", True
        text = answer.text.strip()
        if schema is not None:
            text = _cell(_parsed(answer, schema, options["max_tokens"]))
        cut = f"cut off after {answer.answer_tokens} tokens" if answer.finish_reason != "stop" else ""
        return text, cut, False
    except KeyboardInterrupt:
        return "", "", True
    except ModelDied as death:
        try:
            model.reload()
        except (LoadError, WontFit, ModelDied) as error:
            raise WorkError(f"The model's process ended, and it could not be loaded again: {error}") from death
        return "", f"the model's process ended: {death}", False
    except ValueError as error:  # too long for the context, refused by the template, an unusable answer
        return getattr(getattr(error, "answer", None), "text", ""), str(error), False


def _cell(data):
    """One field's bare value, or JSON where there are more."""
    if isinstance(data, dict) and len(data) == 1:
        (data,) = data.values()
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)


def _rewrite(csv_out, table, rows):
    """The whole file at once, so that a power cut leaves the old one or the new one."""
    part = csv_out.with_name(csv_out.name + ".part")
    with part.open("wb") as file:
        _append(file, table.bom + "".join(map(table.line, rows)))
    os.replace(part, csv_out)


def _append(file, line):
    """One write, then to the disk: a power cut costs one row at most."""
    file.write(line.encode("utf-8"))
    file.flush()
    os.fsync(file.fileno())


def _harmless(text):
    """Text that a spreadsheet shows instead of running it.

    >>> _harmless("=1+2"), _harmless("-3.5"), _harmless("fine")
    ("'=1+2", '-3.5', 'fine')
    """
    is_number = re.fullmatch(r"[-+]?\d+([.,]\d+)?%?", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not is_number else text


def bar(total, initial, wanted, unit="row"):
    """A progress bar that appears after 2 s; `wanted` False hides it."""
    make = need("tqdm.auto", "show progress").tqdm
    return make(total=total, initial=initial, unit=unit, disable=not wanted, delay=2)
