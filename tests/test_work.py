"""`helpers.work`: data out of texts, calls of functions, long texts, and tables that survive a power cut."""

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest

from helpers import download, runner, work
from helpers.runner import Answer, ModelDied
from helpers.work import WorkError

ROOT = Path(__file__).resolve().parent.parent
REVIEWS = 'review,stars\n"Cold, and late.",1\n"She said ""never again"".",1\n"Two\nlines",4\nÜberraschend gut,5\n'


class Stand:
    """Stands in for a model: answers with what it is told to, and keeps what it was asked."""

    n_params = 2_000_000_000
    path = Path("stand.gguf")

    def __init__(self, *answers, n_ctx=400, finish="stop"):
        self.answers, self.asked, self.finish = list(answers), [], finish
        self.settings = {"n_ctx": n_ctx}
        self.reloads = 0

    def ask(self, prompt, **options):
        self.asked.append((prompt, options))
        text = self.answers.pop(0) if self.answers else prompt.upper()
        if isinstance(text, BaseException):
            raise text
        finish = self.finish
        if isinstance(text, tuple):
            text, finish = text
        text = text if isinstance(text, str) else json.dumps(text)
        return Answer(text, 1, 5, 1, 1, 0, 0, 0, 0, finish, prompt, 0.1)

    def count_tokens(self, texts):
        return len(texts.split()) if isinstance(texts, str) else [len(text.split()) for text in texts]

    def chat_prompt(self, messages):
        return " ".join(message["content"] for message in messages)

    def reload(self):
        self.reloads += 1


def add(a: int, b: int = 1) -> int:
    """The sum of two numbers."""
    return a + b


def open_door(name: typing.Literal["front", "back"]):
    """Opens a door."""
    raise PermissionError(f"{name} is locked")


# ------------------------------------------------------------------------------------------------ extract


def test_data_is_parsed_and_what_is_not_in_the_text_is_named():
    model = Stand({"who": "Anna  schmidt", "age": 42, "price": 1250.5, "city": "Rome", "kind": "tool", "new": True})
    kinds = {"who": str, "age": int, "price": float, "city": str, "kind": ["tool", "fruit"], "new": bool}
    found = work.extract(model, "Anna Schmidt, 42, paid 1,250.5 euros.", work.fields(**kinds))
    assert found.data["age"] == 42 and found.invented == ("city",)
    assert "so check: city" in str(found)
    assert model.asked[0][1]["temperature"] == 0 and model.asked[0][1]["schema"]["required"] == list(kinds)


def test_nested_values_are_named_by_their_path():
    schema = {"type": "object", "properties": {"people": {"type": "array", "items": {"type": "object"}}}}
    found = work.extract(Stand({"people": [{"name": "Ann"}, {"name": "Bob"}]}), "Ann sings.", schema)
    assert found.invented == ("people.1.name",)


def test_an_answer_that_was_cut_off_says_so_and_keeps_it():
    with pytest.raises(WorkError, match=r"cut off after 5 tokens.*Raise max_tokens \(now 7\)") as caught:
        work.extract(Stand(('{"who": "An', "length")), "Anna", work.fields(who=str), max_tokens=7)
    assert caught.value.answer.text == '{"who": "An'


@pytest.mark.parametrize(
    ("answer", "schema", "why"),
    [
        ("not JSON", {"type": "string"}, "no JSON"),
        ("1e999", {"type": "number"}, "too large"),
        ("[" * 100_000, {"type": "array"}, "no JSON"),
        ('{"n": 3}', {"type": "object", "properties": {"n": {"type": "integer", "maximum": 2}}}, "n: 3 is greater"),
    ],
)
def test_an_answer_that_cannot_be_used_is_an_error(answer, schema, why):
    with pytest.raises(WorkError, match=why):
        work.extract(Stand(answer), "text", schema)


def test_a_pattern_is_left_to_the_grammar():
    """Python would be busy with this one for longer than anybody waits."""
    schema = {"type": "string", "pattern": "^((a|a)*)*$"}
    assert work.extract(Stand(json.dumps("a" * 40 + "b")), "text", schema).data.endswith("b")


@pytest.mark.parametrize(
    ("schema", "error", "why"),
    [
        ("string", TypeError, "must be a JSON schema"),
        ({"type": "strin"}, ValueError, "no JSON schema: at type"),
        ({"properties": {"a": {"enum": "x"}}}, ValueError, "properties/a/enum"),
    ],
)
def test_what_is_no_schema_is_refused_before_the_model_is_asked(schema, error, why):
    model = Stand()
    with pytest.raises(error, match=why):
        work.extract(model, "text", schema)
    assert model.asked == []


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def loop():
    schema = {"type": "array"}
    schema["items"] = schema
    return schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}, "maxItems is 1e"),
        ({"type": "string", "minLength": 10**7}, "minLength is 1e"),
        ({"type": "string", "pattern": "^a{3,99999999}$"}, "repeats 1e"),
        ({"$ref": "https://example.com/schema"}, "parts of itself only"),
        ({"properties": {f"p{i}": {"type": "string"} for i in range(2000)}}, "characters; at most"),
        (nested(50), "nested more than"),
        (loop(), "nested more than"),
        ({"const": float("nan")}, "cannot be written as JSON"),
    ],
)
def test_schemas_that_would_make_huge_grammars_never_reach_the_engine(schema, why):
    with pytest.raises(ValueError, match=why):
        runner._schema_text(schema)


# ------------------------------------------------------------------------------------------------ call


def test_a_function_is_called_and_its_result_told():
    model = Stand({"function": "add", "arguments": {"a": 2, "b": 30}}, "It is 32.")
    done = work.call(model, "What is 2 plus 30?", [add, open_door])
    assert [(c.name, c.result, c.invented) for c in done.calls] == [("add", 32, ())]
    assert done.text == "It is 32." and done.notes == ()
    assert "add(a: int, b: int = 1) -> int: The sum of two numbers." in model.asked[0][1]["system"]
    assert "add: 32" in model.asked[1][0]


def test_arguments_from_nowhere_and_words_against_the_result_are_named():
    done = work.call(Stand({"function": "add", "arguments": {"a": 7}}, "It is 9."), "Who wrote Hamlet?", [add])
    assert done.calls[0].invented == ("a",) and done.calls[0].result == 8
    assert "trust the calls" in done.notes[0] and "not in the question: a" in str(done)


def test_a_function_that_fails_is_an_error_of_its_call():
    done = work.call(
        Stand({"function": "open_door", "arguments": {"name": "front"}}), "Open the front door", [open_door]
    )
    assert done.calls[0].error == "PermissionError: front is locked" and done.text == ""


def test_arguments_that_do_not_bind_are_an_error_of_their_call():
    offered = work._described([add])["add"]
    assert "missing a required argument" in work._carry_out(offered, "add", {}, "").error
    assert "unexpected keyword" in work._carry_out(offered, "add", {"a": 1, "c": 2}, "").error


def test_the_answer_is_never_evaluated():
    with pytest.raises(WorkError, match="no JSON"):
        work.call(Stand("__import__('os').getcwd()"), "x", [add])
    with pytest.raises(WorkError, match="breaks a rule"):
        work.call(Stand({"function": "os.system", "arguments": {"a": "ls"}}), "x", [add])


@pytest.mark.parametrize("most", [1, 3, 10])
def test_the_loop_ends(most):
    wishes = [{"function": "add", "arguments": {"a": i}} for i in range(20)]
    done = work.call(Stand(*wishes), "x", [add], max_calls=most)
    assert len(done.calls) == most
    assert any("stopped after" in note for note in done.notes) == (most > 1)


def test_the_same_call_twice_ends_the_loop():
    same = {"function": "add", "arguments": {"a": 1}}
    done = work.call(Stand(same, same, "2"), "x", [add], max_calls=5)
    assert len(done.calls) == 1 and "same call" in done.notes[0]


def test_it_may_stop_or_refuse():
    once = {"function": "add", "arguments": {"a": 1}}
    assert len(work.call(Stand(once, {"function": "none"}, "2"), "x", [add], max_calls=5).calls) == 1
    refused = work.call(Stand({"function": "none"}), "x", [add], may_refuse=True)
    assert refused.calls == () and "no function was called" in str(refused)


def none(a: int):
    pass


def untold(a):
    pass


def many(*a: int):
    pass


def bytes_(a: bytes):
    pass


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ([], "tools is empty"),
        ([lambda a: a], "no function with a name"),
        ([add, add], "Two tools"),
        ([none], "name is taken"),
        ([untold], "does not say what a is"),
        ([many], "no single value"),
        ([bytes_], "cannot be asked of a model"),
    ],
)
def test_tools_that_cannot_be_described_are_refused(tools, why):
    with pytest.raises(ValueError, match=why):
        work.call(Stand(), "x", tools)


@pytest.mark.parametrize("most", [0, 11, True, 1.5, None])
def test_the_number_of_calls_has_bounds(most):
    with pytest.raises(ValueError, match="max_calls is"):
        work.call(Stand(), "x", [add], max_calls=most)


def test_annotations_become_schemas():
    def tool(a: list[str], b: typing.Literal["x", 3], c: int | None = None):
        "Text."

    properties = work._described([tool])["tool"][1]["properties"]
    assert properties["a"]["items"]["type"] == "string" and properties["b"] == {"enum": ["x", 3]}
    assert properties["c"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}


# ------------------------------------------------------------------------------------------------ long texts


def test_pieces_hold_every_word_and_fit():
    chance = random.Random(1)
    for n in (1, 7, 30, 200):
        text = " ".join(chance.choice(["word", "x" * 30, "end.", "\n\n"]) for _ in range(n))
        made = work.pieces(Stand(), text, 8)
        assert " ".join(made).split() == text.split()
        assert all(len(piece.split()) <= 8 for piece in made)
    assert work.pieces(Stand(), " ", 8) == []


def test_a_short_text_is_summarized_at_once_and_a_long_one_in_pieces():
    model = Stand("short")
    assert work.summarize(model, "One sentence.").text == "short" and len(model.asked) == 1
    model = Stand(*["A piece was read."] * 40, n_ctx=260)
    answer = work.summarize(model, "This is one sentence of seven words. " * 100)
    assert answer.text == "A piece was read." and "pieces, put together in" in answer.notes[0]
    assert all(len(prompt.split()) < 100 for prompt, _ in model.asked)


def test_a_translation_keeps_all_pieces_in_order():
    model = Stand(n_ctx=400)
    text = " ".join(f"Sentence {i} has a number." for i in range(80))
    whole = work.translate(model, text, "German", max_tokens=100).text
    assert [whole.find(f"SENTENCE {i} ") >= 0 for i in range(80)] == [True] * 80


def test_small_models_come_with_a_warning():
    model = Stand("x")
    assert work.translate(model, "Hello.", "German").notes == ()
    model.n_params = 134_515_008
    assert "134.5 million weights" in work.translate(model, "Hello.", "German").notes[-1]


def test_an_empty_text_and_no_room_are_errors():
    with pytest.raises(WorkError, match="is empty"):
        work.summarize(Stand(), "  ")
    with pytest.raises(WorkError, match="no room"):
        work.summarize(Stand(n_ctx=150), "Text.")


# ------------------------------------------------------------------------------------------------ batch


@pytest.fixture
def table(tmp_path):
    (tmp_path / "in.csv").write_bytes(REVIEWS.encode())
    return tmp_path / "in.csv"


def rows(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def run(model, table, out="out.csv", template="{review}", **more):
    return work.batch(model, table, table.with_name(out), template, progress=False, **more)


def test_every_row_gets_its_answer_and_the_input_stays(table):
    before = table.read_bytes()
    done = run(Stand(), table, column="loud")
    assert done.finished and (done.n_rows, done.n_now, done.n_errors) == (4, 4, 0)
    assert [row["loud"] for row in rows(done.path)] == [row["review"].upper() for row in rows(table)]
    assert table.read_bytes() == before


def test_it_goes_on_wherever_the_power_went_off(table):
    """Whatever the last byte on the disk was, the finished file is the same, and no whole row is asked again."""
    whole = run(Stand(), table).path.read_bytes()
    out = table.with_name("out.csv")
    for length in range(len(whole)):
        out.write_bytes(whole[:length])
        kept = len(rows(out)) if whole[:length].endswith(b"\n") and whole[:length].count(b'"') % 2 == 0 else None
        model = Stand()
        done = run(model, table)
        assert out.read_bytes() == whole, f"cut at byte {length}"
        assert len(model.asked) == done.n_now == 4 - done.n_before
        assert kept is None or done.n_before == kept


KILLED = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from test_work import Stand, run
from pathlib import Path
class Slow(Stand):
    def ask(self, prompt, **options):
        time.sleep(0.02)
        return super().ask(prompt, **options)
run(Slow(), Path({table!r}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix has them")
def test_a_killed_job_goes_on(tmp_path):
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("review\n" + "".join(f"number {i}\n" for i in range(300)))
    program = KILLED.format(tests=str(ROOT / "tests"), root=str(ROOT), table=str(table))
    process = subprocess.Popen([sys.executable, "-c", program])
    until = time.monotonic() + 60
    while (not out.exists() or out.read_bytes().count(b"\n") < 5) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    model = Stand()
    done = run(model, table)
    assert 4 <= done.n_before < 300 and len(model.asked) == 300 - done.n_before
    assert [row["answer"] for row in rows(out)] == [f"NUMBER {i}" for i in range(300)]


def test_ctrl_c_keeps_whole_rows_and_says_how_to_go_on(table):
    done = run(Stand("a", "b", ("half", "cancelled")), table)
    assert not done.finished and "run the same line again" in str(done)
    assert [row["answer"] for row in rows(done.path)] == ["a", "b"]
    assert run(Stand("c", "d"), table).n_before == 2
    assert [row["answer"] for row in rows(done.path)] == ["a", "b", "c", "d"]


def test_a_row_that_fails_is_kept_with_its_error(table):
    model = Stand("a", ValueError("the prompt has 9,999 tokens"), ("too lo", "length"), ModelDied("it died"))
    done = run(model, table)
    assert done.finished and done.n_errors == 3 and model.reloads == 1
    errors = [row["answer_error"] for row in rows(done.path)]
    assert errors[0] == "" and "9,999" in errors[1] and "cut off after 5" in errors[2] and "it died" in errors[3]
    assert rows(done.path)[2]["answer"] == "too lo"


def test_rows_with_an_error_are_asked_again_when_that_is_wanted(table):
    """In their old places; what was right is not asked again, and Ctrl-C leaves the rest as it was."""
    fails = ValueError("no room")
    first = run(Stand("a", fails, "c", fails), table)
    assert "2 with an error); retry=True asks those again" in str(first)
    table.write_text(REVIEWS + "new,2\n", encoding="utf-8")
    stopped = run(Stand("b", ("half", "cancelled")), table, retry=True)
    assert (stopped.n_before, stopped.n_now, stopped.n_errors, stopped.finished) == (3, 1, 1, False)
    assert [row["answer"] for row in rows(stopped.path)] == ["a", "b", "c", ""]
    done = run(Stand("d", "e"), table, retry=True)
    assert (done.n_before, done.n_now, done.n_errors) == (3, 2, 0) and done.finished
    assert [row["answer"] for row in rows(done.path)] == ["a", "b", "c", "d", "e"]
    assert [row["review"] for row in rows(done.path)] == [row["review"] for row in rows(table)]
    assert sorted(path.name for path in table.parent.iterdir()) == ["in.csv", "out.csv", "out.csv.job"]


def test_of_two_runs_on_one_output_the_second_is_refused(table):
    class Meanwhile(Stand):
        def ask(self, prompt, **options):
            for again in (True, False):
                with pytest.raises(WorkError, match="out.csv is being written by another run at this moment"):
                    run(Stand(), table, retry=again)
            run(Stand(), table, out="other.csv")
            return super().ask(prompt, **options)

    assert run(Meanwhile(), table).finished and rows(table.with_name("out.csv")) == rows(table.with_name("other.csv"))
    assert run(Stand(), table).n_before == 4


def test_a_schema_gives_a_bare_value_and_keeps_what_it_cannot_read(table):
    answers = [{"mood": "bad"}, '{"mood": "wild"}', {"mood": "good"}, ('{"mo', "length")]
    done = run(Stand(*answers), table, schema=work.fields(mood=["good", "bad"]))
    assert [row["answer"] for row in rows(done.path)] == ["bad", '{"mood": "wild"}', "good", '{"mo']
    assert [bool(row["answer_error"]) for row in rows(done.path)] == [False, True, False, True]


def test_other_settings_or_another_table_do_not_mix(table):
    run(Stand(), table)
    with pytest.raises(WorkError, match="was begun with prompt_template='{review}'"):
        run(Stand(), table, template="Judge: {review}")
    with pytest.raises(WorkError, match="begun with temperature=0"):
        run(Stand(), table, temperature=1)
    table.write_text(REVIEWS.replace("Cold", "Warm"), encoding="utf-8")
    with pytest.raises(WorkError, match="belongs to another table"):
        run(Stand(), table)


def test_rows_added_to_the_input_are_answered(table):
    run(Stand(), table)
    table.write_text(REVIEWS + "new,2\n", encoding="utf-8")
    done = run(Stand(), table)
    assert (done.n_before, done.n_now) == (4, 1)


def test_nothing_is_overwritten(table):
    other = table.with_name("mine.csv")
    other.write_text("a,b\n")
    os.link(table, table.with_name("same.csv"))
    with pytest.raises(WorkError, match="is the input itself"):
        run(Stand(), table, out="same.csv")
    with pytest.raises(WorkError, match="is the input itself"):
        run(Stand(), table, out="in.csv")
    with pytest.raises(WorkError, match="no batch began it"):
        run(Stand(), table, out="mine.csv")
    assert not other.with_name("mine.csv.job").exists()
    assert other.read_text() == "a,b\n" and table.read_bytes() == REVIEWS.encode()


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("Judge it", "names no column"),
        ("{reviw}", "'reviw', but the columns are: review, stars"),
        ("{review.__class__}", "names 'review.__class__'"),
        ("{review:{stars}}", "names"),
        ("{}", "names ''"),
        ("{review", "is not understood"),
    ],
)
def test_templates_name_columns_and_nothing_else(table, template, why):
    with pytest.raises(WorkError, match=why):
        run(Stand(), table, template=template)
    assert not table.with_name("out.csv").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "must begin with a line of column names"),
        (b"review,review\na,b\n", "each another"),
        (b"review\n", "has no rows"),
        (b"review,stars\na\n", "row 1: 1 values for 2 columns"),
        (b'review\n"a\n', "no proper CSV"),
        ("review\nZ\xfcrich\n".encode("latin-1"), "not UTF-8"),
        (b"review,answer\na,b\n", "has a column 'answer' already"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(table, content, why):
    table.write_bytes(content)
    with pytest.raises(WorkError, match=why):
        run(Stand(), table)


def test_a_missing_input_is_a_sentence(tmp_path):
    with pytest.raises(WorkError, match="could not be read"):
        run(Stand(), tmp_path / "nowhere.csv")


def test_spreadsheets_semicolons_and_formulas(table):
    table.write_bytes("\ufeffreview;stars\r\nfine, really;5\r\n".encode())
    done = run(Stand("=HYPERLINK(1)"), table)
    assert done.path.read_bytes().startswith("\ufeffreview;stars;answer".encode())
    with done.path.open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file, delimiter=";"))[1] == ["fine, really", "5", "'=HYPERLINK(1)", ""]
    assert run(Stand(), table).n_before == 1


# ------------------------------------------------------------------------------------------------ the real engine


@pytest.fixture(scope="module")
def model():
    with runner.load(download.default_model(), n_ctx=512, progress=False) as loaded:
        yield loaded


@pytest.mark.model
@pytest.mark.slow
def test_the_grammar_forces_the_form(model):
    text = "Anna Schmidt is 42 years old and teaches maths at a school in Bonn."
    found = work.extract(model, text, work.fields(name=str, age=int, job=["baker", "teacher", "nurse"]), max_tokens=60)
    assert found.data == {"name": "Anna Schmidt", "age": 42, "job": "teacher"} and found.invented == ()
    with pytest.raises(WorkError, match="cut off after 4 tokens"):
        work.extract(model, text, work.fields(name=str, age=int), max_tokens=4)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("schema", [{"enum": []}, {"enum": ['a"b']}, {"anyOf": []}, {"properties": {"a": True}}])
def test_schemas_that_make_no_grammar_leave_the_model_usable(model, schema):
    with pytest.raises(ValueError, match="cannot make a grammar"):
        model.ask("Hello", schema=schema, max_tokens=4)
    assert model.alive and model.ask("Hello", max_tokens=1).answer_tokens == 1


@pytest.mark.model
@pytest.mark.slow
def test_the_packaged_model_calls_a_function(model):
    def weather(city: str):
        """The weather in a city today."""
        return f"rain in {city}"

    done = work.call(model, "What is 17 plus 25?", [add, weather], max_tokens=48)
    assert [(c.name, c.arguments, c.result) for c in done.calls] == [("add", {"a": 17, "b": 25}, 42)]
    assert dataclasses.replace(done.calls[0], result=None).invented == ()
