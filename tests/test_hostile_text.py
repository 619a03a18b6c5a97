"""Texts of others (files, servers, models) are shown as text: nothing runs, nothing moves a cursor, nothing is endless.

Every class with a printed or HTML form and every function that makes HTML or SVG is found by itself, and is fed strings
that try all three. A new one that no table here knows how to build fails `test_nothing_is_forgotten`.
"""

import dataclasses
import html.parser
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from pathlib import Path

import pytest

import helpers
from helpers import check, claims, fit, gguf, hardware, hub, memory, models, quality, stores, units

WORDS = "A model\x1b[2J\x1b]0;title\x07\u202egpj.exe\x9b31m\r\b\x00"
TAGS = "</pre></td></textarea><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>\"' onfocus=\"pwned()"
BAD = TAGS + WORDS + "{{7*7}}${7*7}`"
HARM = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SAFE_TAGS = {
    *(
        "a",
        "b",
        "body",
        "br",
        "caption",
        "circle",
        "defs",
        "div",
        "g",
        "h1",
        "h2",
        "h3",
        "h4",
        "head",
        "html",
        "i",
        "li",
        "line",
    ),
    *("meta", "ol", "p", "path", "pattern", "polygon", "polyline", "pre", "rect", "small", "span", "strong", "style"),
    *("details", "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "u", "ul"),
}
SKIP = {"child", "engine_worker", "runner_child", "quality_child", "template_child"}  # processes, not rooms


class Seen(html.parser.HTMLParser):
    """The tags and attributes that a browser would see."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.addresses, self.text = set(), set(), set(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.addresses |= {value or "" for name, value in attributes if name in ("href", "src", "xlink:href")}

    def handle_data(self, data):
        self.text.append(data)


def harmless(page):
    seen = Seen(page)
    assert seen.tags <= SAFE_TAGS, seen.tags - SAFE_TAGS
    assert not {name for name in seen.attributes if name.startswith("on") or name in ("srcdoc", "formaction")}
    assert not {address for address in seen.addresses if re.match(r"\s*(javascript|data|vbscript):", address, re.I)}
    assert not HARM.search(page), repr(HARM.search(page))
    return seen


def plain(text):
    assert not HARM.search(text), repr(text[:300])


# --- the helper itself ---------------------------------------------------------------------------------------------


def test_printable_leaves_what_people_write():
    told = "Grüße, 你好, שלום, مرحبا, नमस्ते 👩‍👩‍👧 e\u0301\tand\nlines <b>&amp;</b>"
    assert units.printable(told) == told


def test_printable_marks_what_steers_a_terminal_or_turns_the_writing():
    assert HARM.sub("\N{REPLACEMENT CHARACTER}", BAD) == units.printable(BAD)
    for code in (*range(9), *range(11, 32), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xD800):
        assert units.printable(f"a{chr(code)}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_printable_cuts_ten_megabytes():
    shown = units.printable("x" * 10_000_000)
    assert len(shown) < 110_000 and shown.endswith("(9,900,000 more characters)")


# --- every class that prints itself --------------------------------------------------------------------------------


def rooms():
    for found in pkgutil.iter_modules(helpers.__path__):
        if found.name not in SKIP:
            yield importlib.import_module(f"helpers.{found.name}")


def own(room, wanted):
    mine = [thing for thing in vars(room).values() if getattr(thing, "__module__", "") == room.__name__]
    return list(filter(wanted, mine))


def shown_classes():
    for room in rooms():
        for thing in own(room, inspect.isclass):
            if {"_repr_html_", "__str__"} & set(vars(thing)) and not issubclass(thing, BaseException):
                yield f"{room.__name__.split('.')[1]}.{thing.__name__}"


SPEC = models.get("smollm2-135m")
MACHINE = hardware.Machine.pretend("a laptop", units.from_gib(8))
NEEDS = memory.estimate(SPEC, "Q4_K_M")


def filled(kind, text=BAD, **given):
    """An object whose every text is `text`, by the types of its fields."""
    hints, values = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in given:
            values[field.name] = given[field.name]
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            or (hints[field.name] in (str, tuple[str, ...]))
        ):
            values[field.name] = a_value(hints[field.name], text)
    return kind(**values)


def a_value(hint, text):
    simple = {str: text, int: 3, float: 2.0, bool: True, Path: Path(text.replace("/", "_").replace("\0", "")), dict: {}}
    if hint in simple:
        return simple[hint]
    if typing.get_origin(hint) is tuple:
        return tuple(a_value(each, text) for each in typing.get_args(hint) if each is not Ellipsis)
    if dataclasses.is_dataclass(hint):
        return filled(hint, text)
    options = [each for each in typing.get_args(hint) if each is not type(None)]
    return a_value(options[0], text) if options else text


def the_header(text=BAD):
    """A header as `read_header` gives it, with everything it names made hostile."""
    metadata = {
        "general.architecture": "llama", "general.name": text, "general.license": text, "general.languages": (text,),
        "llama.block_count": 2, "llama.embedding_length": 64, "llama.attention.head_count": 2,
        "llama.context_length": 64, "llama.feed_forward_length": 64, "llama.vocab_size": 9, text: text,
    }  # fmt: skip
    tensors = (gguf.TensorInfo(text, (32, 2), "F16", 0, 128),)
    return gguf.Header(text, 3, metadata, tensors, 64, 200, (text,))


def hostile_spec():
    return the_header().spec  # specs of files come from headers; the catalogue's are the kit's own words


def with_text(kind, **given):
    return lambda: filled(kind, **given)


def local_models():
    given = {"size_bytes": 3, "n_copies": 2, "known_as": ((BAD, BAD),), "verdict": None}
    found = stores.LocalModels([filled(stores.LocalModel, **given)])
    found.notes = (BAD,)
    return found


def comparison():
    values = dict.fromkeys((field.name for field in dataclasses.fields(quality.Row)), 3.0)
    row = quality.Row(**{**values, "name": BAD, "quantization": BAD, **dict.fromkeys(("n_tokens", "n_chunks"), 3)})
    return quality.Comparison((row,), row, BAD, 512, (BAD,))


BUILD = {  # how to make one whose texts are hostile, where filling in its fields by their types is not enough
    "architectures.ModelSpec": hostile_spec,
    "check.Result": lambda: check.Result(TAGS, check.CORRECT, TAGS, TAGS),
    "check.Summary": lambda: check.Summary(((TAGS, {"status": TAGS}),)),
    "claims.Findings": lambda: claims.Findings((finding(), finding())),
    "claims.Finding": lambda: finding(),
    "gguf.Header": lambda: the_header(),
    "memory.Estimate": lambda: memory.estimate(hostile_spec(), 1000),
    "fit.Choice": lambda: filled(fit.Choice, spec=hostile_spec(), estimate=NEEDS, verdict=fit.verdict(NEEDS, MACHINE)),
    "fit.Verdict": lambda: filled(fit.Verdict, status="no", levers=()),
    "fit.Lever": lambda: filled(fit.Lever, status="no", name="cache q8_0", cost="a little"),
    "hardware.Machine": lambda: dataclasses.replace(MACHINE, notes=(TAGS,), cpu_name=TAGS),
    "hub.File": lambda: filled(hub.File, TAGS + WORDS, verdict=None, estimate=None),
    "hub.Table": lambda: hub.Table([BUILD["hub.File"](), BUILD["hub.File"]()], BAD),
    "quality.Comparison": comparison,
    "stores.LocalModels": local_models,
}
OURS = {  # texts that the kit or the learner wrote, or that were cleaned when they were read: only tags are tried
    "check": "the learner's own answers",
    "claims": "the kit's own table",
    "doctor": "the kit's own sentences",
    "hardware": "names are cleaned when they are read (hardware._clean)",
    "quant": "numbers, and a tensor's name as the learner typed it",
    "rag.Retrieval": "the kit's own words",
    "report.Cost": "the learner's own numbers",
    "runner.Claim": "for other processes, not for people",
    "speed.Bandwidth": "measured here",
}


def finding():
    claim = dataclasses.replace(claims.listed()[0], says=TAGS, source=TAGS)
    return claims.Finding(claim, next(iter(claims.VERDICTS)), TAGS, TAGS, 1.0)


def build(name):
    room, kind = name.split(".")
    thing = getattr(importlib.import_module(f"helpers.{room}"), kind)
    return BUILD[name]() if name in BUILD else filled(thing, TAGS if is_ours(name) else BAD)


def is_ours(name):
    return name in OURS or name.split(".")[0] in OURS


def has_html(name):
    room, kind = name.split(".")
    return hasattr(getattr(importlib.import_module(f"helpers.{room}"), kind), "_repr_html_")


CLASSES = sorted(name for name in shown_classes() if has_html(name) or not is_ours(name))


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_shows_hostile_text_as_text(name):
    thing = build(name)
    if not is_ours(name):
        plain(str(thing))
        plain(repr(thing) if type(thing).__repr__ is type(thing).__str__ else "")
    if hasattr(thing, "_repr_html_"):
        seen = harmless(thing._repr_html_())
        assert not seen.addresses


# --- every function that makes HTML or a drawing -------------------------------------------------------------------


def makers():
    for room in rooms():
        for thing in own(room, inspect.isfunction):
            if re.search(r"^(?!_).*(_html|_svg)$", thing.__name__):
                yield f"{room.__name__.split('.')[1]}.{thing.__name__}"


def figure(name, *arguments, **more):
    room, maker = name.split(".")
    return getattr(importlib.import_module(f"helpers.{room}"), maker)(*arguments, **more)


def verdict():
    return dataclasses.replace(fit.verdict(NEEDS, MACHINE), sentence=BAD, reasons=(BAD,), limit=BAD)


def estimate():
    return dataclasses.replace(NEEDS, name=BAD, assumptions=(BAD,), spec=dataclasses.replace(SPEC, title=BAD, name=BAD))


def prediction():
    from helpers import speed_model

    band = speed_model.Band(80.0, 100.0, 120.0)
    return speed_model.Prediction(BAD, band, band, 0.003, 0.002, 0.003, 0.001, 0.001, 10**8, 128, BAD, (BAD,))


def an_error():
    return quality.TensorError(BAD, 0, BAD, BAD, 0.01, 0.1)


def a_row():
    return dataclasses.replace(quality_rows()[0], name=BAD, quantization=BAD)


def quality_rows():
    import json

    kept = Path(quality.__file__).parent / "data" / "quality_recorded.json"
    return [quality.Row(**row) for row in json.loads(kept.read_text(encoding="utf-8"))["rows"]]


def published():
    row = next(row for row in quality.published("Llama-3-8B") if row.kld_mean and row.bits_per_weight)
    return dataclasses.replace(row, model=BAD, text=BAD, table=BAD, quantization=BAD)


def scene():
    from helpers import panels_live

    return panels_live.Scene(BAD, "loaded", ((1, 1),), 10)


MAKE = {
    "figures.sentence_html": lambda name: figure(name, verdict()),
    "figures.memory_bar_svg": lambda name: figure(name, estimate(), verdict()),
    "figures.parts_table_html": lambda name: figure(name, estimate(), engine_note=BAD),
    "figures.arithmetic_html": lambda name: figure(name, estimate().spec, "Q4_K_M", memory.Settings()),
    "figures.code_html": lambda name: figure(name, [(BAD, BAD)]),
    "figures.reasons_html": lambda name: figure(name, verdict(), estimate()),
    "figures.answer_html": lambda name: figure(name, BAD, BAD),
    "figures.error_html": lambda name: figure(name, ValueError(BAD)) + figure(name, KeyError(BAD)),
    "figures.table_html": lambda name: figure(name, (BAD,), [(BAD,)]),
    "figures.compare_table_html": lambda name: figure(name, {BAD: {BAD: 1}}),
    "figures.context_table_html": lambda name: figure(name, [estimate().spec], "Q4_K_M", (512,)),
    "figures.says_html": lambda name: figure(name, BAD),
    "figures.note_html": lambda name: figure(name, BAD),
    "figures_machine.file_html": lambda name: figure(name, {"header": 1, "embedding": 9}, BAD),
    "figures_machine.kv_growth_html": lambda name: figure(name, [SPEC], names=[BAD]),
    "figures_machine.machine_html": lambda name: figure(name, MACHINE, title=BAD),
    "figures_machine.roofline_html": lambda name: figure(name, [(BAD, 5), ("b", 50)], 100, {BAD: 3}),
    "figures_numbers.facts_html": lambda name: figure(name, {BAD: BAD}),
    "figures_numbers.number_line_html": lambda name: figure(name, {BAD: [1.0, 1.5]}, 1, 2),
    "figures_numbers.table_html": lambda name: figure(name, (BAD,), [(BAD,)]),
    "figures_quality.loss_html": lambda name: figure(
        name, [a_row(), *quality_rows()], [published()], front=[BAD], title=BAD
    ),
    "figures_quality.table_html": lambda name: figure(name, [a_row()]),
    "figures_quality.published_html": lambda name: figure(name, [published()], BAD),
    "figures_quality.errors_html": lambda name: figure(name, [an_error()], BAD),
    "figures_quality.steps_html": lambda name: figure(name, {BAD: range(64)}, title=BAD),
    "figures_quality.tokens_html": lambda name: figure(name, [BAD], {BAD: [0.5]}, {BAD: BAD}, right=BAD, title=BAD),
    "figures_speed.terms_html": lambda name: figure(name, {BAD: prediction()}),
    "figures_speed.prediction_html": lambda name: figure(name, prediction()),
    "figures_speed.ceilings_html": lambda name: figure(name, {BAD: prediction()}, {BAD: 90}),
    "figures_speed.bands_html": lambda name: figure(name, {BAD: prediction()}, {BAD: 90}, title=BAD),
    "panels_live.strip_html": lambda name: figure(name, scene()),
}
INSIDE = {  # part of a page that is made by another: `page` takes the controls out, so only the tags count
    "figures.sentence_html", "figures.memory_bar_svg", "figures.code_html", "figures.reasons_html",
    "figures.arithmetic_html", "figures.says_html", "figures.note_html", "figures_numbers.facts_html",
    "figures_numbers.table_html", "figures.parts_table_html", "figures.compare_table_html",
    "figures_quality.table_html", "figures.table_html",
}  # fmt: skip
NUMBERS = {  # they draw numbers and names of the kit's own tables: nothing in them comes from others
    "figures.ladder_html", "figures.curves_svg", "figures.curves_table_html", "figures.devices_svg",
    "figures.devices_table_html", "figures.grid_html", "figures.params_bar_svg", "figures.params_table_html",
    "figures_numbers.bits_html", "figures_numbers.bits_svg", "figures_numbers.bits_table_html",
    "figures_numbers.layout_html", "figures_numbers.layout_svg", "figures_numbers.layout_table_html",
    "figures_numbers.levels_html", "figures_numbers.levels_svg", "figures_numbers.levels_table_html",
    "figures_speed.threads_html",
}  # fmt: skip


def test_nothing_is_forgotten():
    found = set(makers())
    assert found - set(MAKE) - NUMBERS == set(), "a new figure: say in MAKE how to feed it hostile text"
    assert (set(MAKE) | NUMBERS) - found == set(), "a figure that is gone"


@pytest.mark.parametrize("name", MAKE)
def test_every_figure_shows_hostile_text_as_text(name):
    page = MAKE[name](name)
    if name in INSIDE:
        from helpers import figures

        page = figures.page(page)
    harmless(page)


def test_the_report_shows_hostile_text_as_text(tmp_path):
    page = report_page()
    seen = harmless(page)
    assert "meta" in seen.tags and "window.pwned=1" in "".join(seen.text)


def report_page():
    from helpers import report

    spec = dataclasses.replace(SPEC, title=BAD, license=BAD, languages=BAD)
    needs = memory.estimate(spec, "Q4_K_M")
    words = {"title": BAD, "author": BAD, "use": BAD, "why": BAD}
    said = {"measurements": {BAD: BAD}, "estimates": {BAD: BAD}}
    tried = {"predictions": [check.Prediction(BAD, BAD, BAD, BAD, BAD, BAD)], "exercises": BUILD["check.Summary"]()}
    return report.document(needs, MACHINE, **words, **said, **tried)


# --- ten megabytes, and what goes to a terminal --------------------------------------------------------------------


def long_ones():
    from helpers import figures, runner, servers

    text = (BAD + "\n") * (10_000_000 // len(BAD))
    yield "answer", filled(runner.Answer, text)
    yield "reply", filled(servers.Reply, text)
    yield "local model", filled(stores.LocalModel, text, verdict=None, known_as=((text, text),), paths=(Path("a"),))
    yield "header", the_header(text)
    yield "hub", hub.Table([filled(hub.File, text, verdict=None, estimate=None)], text)
    yield "answer in a panel", figures.answer_html(text, text[:1000])
    yield "error in a panel", figures.error_html(ValueError(text))
    yield "prompt in a panel", figures.code_html([("prompt", text)])


def long_answer():
    from helpers import runner

    return filled(runner.Answer, (BAD + "\n") * (10_000_000 // len(BAD)))


@pytest.mark.slow
def test_ten_megabytes_are_cut_for_display():
    for what, thing in long_ones():
        for shown in (str(thing), thing._repr_html_() if hasattr(thing, "_repr_html_") else ""):
            assert len(shown) < 2_000_000, (what, len(shown))


def test_streamed_pieces_cannot_steer_the_terminal(capsys):
    from helpers import runner, servers

    for print_piece in (runner._print_piece, servers._print_piece):
        print_piece(WORDS + "\n")
        plain(capsys.readouterr().out)


def test_errors_that_quote_a_file_are_plain():
    from helpers import engine, runner

    for error in (runner.LoadError(BAD, BAD), runner.ModelDied(BAD), runner.WontFit(BAD)):
        plain(str(error))
    plain(engine._last_words(BAD))


def test_a_file_name_is_shown_as_text(tmp_path):
    path = tmp_path / "a\x1b[2J\u202e<img src=x onerror=pwned()>.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(gguf.GGUFError) as error:
        gguf.read_header(path)
    plain(str(error.value))


# --- chat templates: programs in a model's file --------------------------------------------------------------------

CALM = "{% for m in messages %}{{ m.content }}{% endfor %}"
HARMS = {  # what a template tries -> what the learner is told
    "a long loop": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "loops in loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "within"),
    "a long text": ("{{ 'a' * 10**10 }}", "enormous size"),
    "a wide text": ("{{ 'a'.center(10**9) }}", "more memory"),
    "a text that doubles": (
        "{% set n=namespace(x='ab') %}{% for i in range(60) %}{% set n.x=n.x~n.x %}{% endfor %}",
        "more memory|come to an end",
    ),
    "a number that squares itself": (
        "{% set n=namespace(x=10) %}{% for i in range(60) %}{% set n.x=n.x*n.x %}{% endfor %}",
        "enormous size",
    ),
    "much output": ("{% for a in range(99999) %}0123456789012345678901234567890{% endfor %}", "2,000,000 characters"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    "Python's classes": ("{{ messages.__class__.__base__.__subclasses__() }}", "unsafe"),
    "a program": ("{{ cycler.__init__.__globals__.os.system('id') }}", "unsafe"),
    "a format": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "unsafe"),
    "a change of the messages": ("{{ messages.append(1) }}", "unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "a terminal": ("{{ raise_exception('\x1b[2J\u202e') }}", "\N{REPLACEMENT CHARACTER}.2J"),
}
NEEDS_MEMORY_LIMIT = {"a wide text", "a text that doubles"}


@pytest.fixture
def template(monkeypatch):
    """Makes templates as the runner's child does, and ends their processes."""
    pytest.importorskip("jinja2")
    from helpers import runner_child

    monkeypatch.setattr(runner_child, "TEMPLATE_WITHIN_S", 1.5)
    made = []

    def make(source):
        made.append(runner_child.Template(source, "<s>", "</s>"))
        return made[-1]

    yield make
    for each in made:
        each._child.close()


MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_a_template_that_does_harm_is_stopped_and_the_next_call_works(harm, template):
    from helpers.runner_child import Refused

    if harm in NEEDS_MEMORY_LIMIT and sys.platform == "win32":
        pytest.skip("Windows has no limit on a process's memory that Python can set")
    source, says = HARMS[harm]
    program = template("{% if messages|length > 1 %}" + source + "{% else %}" + CALM + "{% endif %}")
    assert program.fill_in(MESSAGES) == "hello"
    with pytest.raises(Refused) as error:
        program.fill_in(MESSAGES * 2)
    assert error.value.kind == "template" and re.search(says, str(error.value))
    plain(str(error.value))
    assert program.fill_in(MESSAGES) == "hello"


@pytest.mark.slow
def test_a_template_that_cannot_be_compiled_is_refused(template):
    from helpers.runner_child import Refused

    deep = "{{ " + "(" * 5000 + "1" + ")" * 5000
    for source, says in ((deep, "nested"), ("x" * 1_000_001, "longer"), ("{%", "expected")):
        with pytest.raises(Refused, match=says):
            template(source)


@pytest.mark.slow
def test_templates_say_the_same_as_llama_cpp_python(template):
    formatter = pytest.importorskip("llama_cpp.llama_chat_format").Jinja2ChatFormatter
    sources = (
        CALM,
        "{{ bos_token }}{%- for m in messages %}\n  {% if tools is none %}<|{{ m['role'] }}|>{% endif %}\n"
        "{{ m | tojson }}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}{{ eos_token }}",
        "{% generation %}<&{{ messages[0].content | upper }}{% endgeneration %}"
        "{% if add_generation_prompt %}go{% endif %}",
    )
    for source in sources:
        theirs = formatter(source, eos_token="</s>", bos_token="<s>")(messages=MESSAGES * 3).prompt
        assert template(source).fill_in(MESSAGES * 3) == theirs


@pytest.mark.slow
@pytest.mark.model
def test_a_hostile_template_in_a_model_leaves_kernel_and_model_alive(tmp_path):
    from test_runner import write_tiny

    from helpers import runner

    with runner.load(write_tiny(tmp_path / "hostile.gguf", template=HARMS["loops in loops"][0])) as model:
        pid = model.pid
        with pytest.raises(ValueError, match="did not come to an end within 5 s and was stopped"):
            model.ask("hello", max_tokens=2)
        assert model.complete("hello", max_tokens=2).answer_tokens and model.pid == pid
