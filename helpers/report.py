"""The decision report: one HTML file that needs nothing else, with a choice, its arithmetic and what was measured.

Text from a learner or a file is escaped; a report that exists is never overwritten.
"""

import os
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

import helpers

from . import check, commands, figures, fit, memory, progress, units

DAYS_A_MONTH = 30
MILLION = 1_000_000
WATTS_A_KILOWATT = 1_000
SECONDS_AN_HOUR = 3_600
HOURS_A_DAY = 24
SPEEDS = {"08-speed": "SmolLM2 135M at Q4_1, writing an answer (lesson 08)"}
PRIVACY = (
    "A model that runs on this computer gets its questions here and answers here: neither leaves the machine. A model "
    "in a data centre gets every question over the network; what is kept there, and for how long, is a matter of its "
    "contract. Local is not the same as safe: the conversation may be kept in files of the program one uses, a server "
    "that listens on the network can be asked by others, and a model's licence still binds."
)
# The page may load nothing at all, whatever a text in it says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """<style>
body{max-width:1000px;margin:24px auto;padding:0 16px;font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;background:#fff}
h1{margin-bottom:0}h2{margin:28px 0 6px;border-bottom:2px solid #ddd}.said{white-space:pre-wrap}
body>table{border-collapse:collapse}body>table *{text-align:left}
body>table th,body>table td{padding:3px 10px;border-bottom:1px solid #ddd}
@media print{body{margin:0}h2{break-after:avoid}}
</style>"""


@dataclass(frozen=True)
class Cost:
    """A month of answers, in the cloud and here; every price is the reader's own.

    Parameters
    ----------
    price_per_million : float
        What a provider asks for a million tokens.
    tokens_per_day : float
    tokens_per_second : float
        How fast this computer writes; 0: not known.
    watts, price_per_kwh : float
        What the computer takes while it answers, and what electricity costs; 0: not known.
    currency : str

    Raises
    ------
    ValueError
        For a number below 0.

    Notes
    -----
    *When it misleads*: the computer itself is not counted, nor the time of the person who looks after it; providers
    ask different prices for what goes in and what comes out; a small local model does not do a large one's work.

    >>> cost = Cost(2, 100_000, tokens_per_second=10, watts=60, price_per_kwh=0.30)
    >>> cost.cloud_per_month                                 # 2 x 100,000 x 30 / 1,000,000
    6.0
    >>> round(cost.hours_per_day, 2), round(cost.electricity_per_month, 2)
    (2.78, 1.5)
    """

    price_per_million: float
    tokens_per_day: float
    tokens_per_second: float = 0
    watts: float = 0
    price_per_kwh: float = 0
    currency: str = ""

    def __post_init__(self):
        for name in ("price_per_million", "tokens_per_day", "tokens_per_second", "watts", "price_per_kwh"):
            value = getattr(self, name)
            if isinstance(value, (bool, str, type(None))) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; it must be a number, 0 or more.")

    @property
    def cloud_per_month(self):
        """Price x tokens of 30 days / a million."""
        return self.price_per_million * self.tokens_per_day * DAYS_A_MONTH / MILLION

    @property
    def hours_per_day(self):
        """Hours that this computer writes each day, or None when its speed is not known."""
        return self.tokens_per_day / self.tokens_per_second / SECONDS_AN_HOUR if self.tokens_per_second else None

    @property
    def electricity_per_month(self):
        """Hours x kilowatts x price, or None when one of them is not known."""
        if not (self.tokens_per_second and self.watts and self.price_per_kwh):
            return None
        return self.hours_per_day * DAYS_A_MONTH * self.watts / WATTS_A_KILOWATT * self.price_per_kwh

    def lines(self):
        """What it comes to, with the arithmetic, as sentences."""
        money = f" {self.currency}".rstrip()
        cloud = (
            f"{self.price_per_million:,g}{money} x {self.tokens_per_day:,g} tokens x {DAYS_A_MONTH} days / {MILLION:,}"
        )
        yield f"Cloud: {cloud} = {self.cloud_per_month:,.2f}{money} a month."
        if self.hours_per_day is None:
            yield "Here: how fast this computer writes is not known, so neither are the hours nor the electricity."
            return
        speed = f"{self.tokens_per_day:,g} tokens / {self.tokens_per_second:,.3g} tokens/s / {SECONDS_AN_HOUR:,} s"
        too_long = " That is more than a day has." if self.hours_per_day > HOURS_A_DAY else ""
        yield f"Here: {speed} = {self.hours_per_day:,.1f} hours a day.{too_long}"
        if self.electricity_per_month is not None:
            power = f"{self.hours_per_day:,.1f} hours x {DAYS_A_MONTH} days x {self.watts:,g} W / {WATTS_A_KILOWATT:,}"
            price = f"{self.price_per_kwh:,g}{money}"
            yield f"Electricity: {power} x {price} = {self.electricity_per_month:,.2f}{money} a month."

    def __str__(self):
        return "\n".join(self.lines())


def cost(price_per_million, tokens_per_day, **more):
    """A `Cost`, or None while one of the numbers is still a blank."""
    if check.is_blank([price_per_million, tokens_per_day, *more.values()]):
        return None
    return Cost(price_per_million, tokens_per_day, **more)


def measured():
    """What earlier lessons measured on this computer, from the learner's record: {words: tokens per second}."""
    rows = progress.read()["predictions"]
    found = {words: rows.get(name, {}).get("outcome") for name, words in SPEEDS.items()}
    return {words: value for words, value in found.items() if isinstance(value, (int, float)) and value > 0}


def scaled_speed(tokens_per_second, measured_bytes, chosen_bytes):
    """Tokens per second of another model, by a *rule*: time grows with the bytes that one token reads.

    *When it misleads*: a very small model is not limited by memory, so the rule is too careful; a long conversation
    adds the cache to the bytes.

    >>> scaled_speed(100, 100_000_000, 5_000_000_000)
    2.0
    """
    return tokens_per_second * measured_bytes / chosen_bytes


def html(needs, machine, folder=".", **more):
    """Write the report into a new file of `folder` and return its path: report.html, or report-2.html, ...

    Parameters
    ----------
    needs : memory.Estimate
        The choice: its model, quantization and settings.
    machine : hardware.Machine
    folder : path
    **more
        As in `document`.
    """
    return _write(Path(folder), document(needs, machine, **more))


def document(
    needs,
    machine,
    title="A local model for my computer",
    author="",
    use="",
    why="",
    recommended=(),
    measurements=None,
    estimates=None,
    cloud=None,
    predictions=None,
    exercises=None,
):
    """The report as one string of HTML.

    Parameters
    ----------
    needs, machine
        As in `html`.
    title, author, use, why : str
        The learner's own words.
    recommended : sequence of fit.Choice
        Alternatives.
    measurements : dict
        Words -> value, what was measured on this machine; None takes what the record has.
    estimates : dict
        Words -> value, what was predicted or published by others; the words say which.
    cloud : Cost
    predictions : sequence of check.Prediction
        None takes those of the record.
    exercises : check.Summary
        None takes the record's.
    """
    predictions = check.predictions() if predictions is None else predictions
    exercises = check.summary() if exercises is None else exercises
    if measurements is None:
        measurements = {words: f"{value:,.1f} tokens/s" for words, value in measured().items()}
    verdict = fit.verdict(needs, machine)
    parts = (
        ("The decision", _decision(needs, verdict, use, why)),
        ("The computer", _pre(machine)),
        ("The memory", _memory(needs, verdict)),
        ("The same model at other quantizations", _ladder(needs, machine)),
        ("What would help", _lines(verdict.levers, "No lever saves memory here.")),
        ("Alternatives", _lines(recommended, "None were asked for.")),
        ("Measured on this computer", _measured(measurements)),
        ("Predicted, or published by others", _lines(_pairs(estimates), "Nothing; lessons 09 and 10 show how.")),
        ("The cost", _cost(cloud)),
        ("Privacy", f"<p>{escape(PRIVACY)}</p>"),
        ("Predictions and what came out", predictions_table(predictions)),
        ("Exercises", exercises._repr_html_()),
        ("How to start it", figures.page(figures.code_html(_commands(needs)))),
    )
    body = "".join(f"<h2>{escape(name)}</h2>{content}" for name, content in parts)
    body = units.printable(body, len(body))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(_text(title))}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{STYLE}</head><body><h1>{escape(_text(title))}</h1>{_byline(author)}{body}</body></html>\n"
    )


def _text(words):
    """The learner's words; nothing where a blank is left."""
    return "" if check.is_blank(words) else units.printable(words)


def _byline(author):
    who = f"{_text(author)}, " if _text(author) else ""
    return f"<p>{escape(who)}{time.strftime('%Y-%m-%d')}, made with helpers {helpers.__version__}</p>"


def _said(words):
    return f'<p class="said">{escape(_text(words))}</p>' if _text(words) else ""


def _decision(needs, verdict, use, why):
    spec = needs.spec
    rows = {
        "model": f"{spec.title or spec.name} ({spec.n_params:,} weights)",
        "quantization": f"{memory.quantization_name(needs.quantization)}",
        "context": f"{needs.settings['n_ctx'] or spec.n_ctx_train:,} tokens",
        "for": _text(use),
        "languages its makers name": spec.languages,
        "licence": spec.license,
    }
    facts = "".join(
        f'<tr><th scope="row">{name}</th><td>{escape(text)}</td></tr>' for name, text in rows.items() if text
    )
    return f"{figures.page(figures.sentence_html(verdict))}<table>{facts}</table>{_said(why)}"


def _pre(thing):
    return figures.page(f"<pre>{escape(str(thing))}</pre>")


def _memory(needs, verdict):
    settings = memory.Settings(**needs.settings)
    return figures.page(
        figures.memory_bar_svg(needs, verdict),
        figures.parts_table_html(needs, rule_bytes=fit.rule_of_thumb_bytes(needs)),
        figures.arithmetic_html(needs.spec, needs.quantization, settings),
        figures.reasons_html(verdict, needs),
    )


def _ladder(needs, machine):
    rows = fit.ladder(needs.spec, machine, **needs.settings)
    return figures.page(figures.ladder_html(rows, memory.quantization_name(needs.quantization)))


def _lines(things, otherwise):
    items = "".join(f"<li>{escape(str(thing))}</li>" for thing in things)
    return f"<ul>{items}</ul>" if items else f"<p>{escape(otherwise)}</p>"


def _measured(measurements):
    return _lines(_pairs(measurements), "Nothing yet; lesson 08 measures.")


def _pairs(facts):
    return [f"{words}: {value}" for words, value in (facts or {}).items()]


def _cost(cloud):
    return _lines(cloud.lines() if cloud else (), "No price was entered.")


def predictions_table(predictions):
    """What was guessed beside what came out, as an HTML table."""
    if not predictions:
        return "<p>No prediction was written down.</p>"
    head = "".join(
        f'<th scope="col">{word}</th>' for word in ("prediction", "you guessed", "it was", "guess / outcome")
    )
    body = "".join(_prediction_row(one) for one in predictions)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _prediction_row(one):
    guess = check.show(one.guess, str(one.unit))
    if one.first is not None and one.first != one.guess:
        guess += f" (at first {check.show(one.first, str(one.unit))})"
    came = "not seen yet" if one.outcome is None else check.show(one.outcome, str(one.outcome_unit))
    cells = (one.name, guess, came, guess_ratio(one))
    return f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>"


def guess_ratio(one):
    """Guess / outcome of a prediction as text, "" where the two are no comparable numbers.

    >>> guess_ratio(check.Prediction("07-x", 8, "GB", 8, 5.2, "GB"))
    '1.54'
    """
    pair = (one.guess, one.outcome)
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in pair) or not one.outcome:
        return ""
    return f"{one.guess / one.outcome:.2f}" if one.unit == one.outcome_unit else ""


def near(predictions, factor=2):
    """(how many predictions came within a factor of what came out, how many can be compared).

    >>> near([check.Prediction("07-x", 8, "GB", 8, 5.2, "GB"), check.Prediction("07-y", 8, "GB", 8, 1, "GB")])
    (1, 2)
    """
    ratios = [float(text) for text in map(guess_ratio, predictions) if text]
    return sum(1 / factor <= ratio <= factor for ratio in ratios), len(ratios)


def _commands(needs):
    settings = memory.Settings(**needs.settings)
    choice = needs.spec, memory.quantization_name(needs.quantization), settings
    return (
        ("Python, in this kit", commands.python_cell(*choice)),
        ("llama.cpp", commands.llama_server(*choice)),
        ("Ollama, as a Modelfile", commands.modelfile(*choice)),
    )


def _write(folder, text):
    """Into the first free name; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = _reserve(folder)
    draft = folder / f".{target.name}.{os.getpid()}.draft"
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise
    return target


def _reserve(folder):
    """An empty file of a new name: from here on nobody else can take it."""
    number = 1
    while True:
        path = folder / ("report.html" if number == 1 else f"report-{number}.html")
        try:
            path.open("xb").close()
            return path
        except FileExistsError:
            number += 1
