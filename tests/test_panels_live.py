"""`helpers.panels_live`: the strip says what the process held, follows the right model, and ends with it."""

import re
import time
import types
import xml.etree.ElementTree as xml

import pytest

from helpers import download, memory, models, panels_live, runner, units
from helpers.hardware import Machine

MB = units.MB
MACHINE = Machine.pretend("test", 8 * units.GIB)
EXPECTED = memory.Resident({"weights": 97 * MB}, {"cache": 47 * MB, "python": 23 * MB})


class Pretended:
    """A model whose process holds what the test says."""

    def __init__(self, name="tiny.gguf", held=(0, 0)):
        self.path, self.alive, self.pid, self.held = types.SimpleNamespace(name=name), True, 1, held
        self.estimate = memory.estimate(models.get("smollm2-135m"), "Q4_1", n_ctx=2048)

    def expects(self, n_prompt=0, n_answer=0):
        return memory.resident(self.estimate, n_prompt, n_answer)


@pytest.fixture
def world(monkeypatch):
    """The models that run; those in `ready` have been loaded."""
    world = types.SimpleNamespace(running=[], ready=[])
    monkeypatch.setattr(runner, "running", lambda: list(world.running))
    monkeypatch.setattr(runner, "loaded", lambda: list(world.ready))
    by_pid = {}

    def memory_of(pid):
        held = by_pid.get(pid, world.running[-1].held if world.running else (0, 0))
        return runner.Memory(*held, sum(held), "/proc/1/statm, status")

    monkeypatch.setattr(runner, "memory_of", memory_of)
    return world


def scene(samples=((100 * MB, 50 * MB), (100 * MB, 70 * MB)), free=8 * units.GIB, expected=EXPECTED, **more):
    return panels_live.Scene("a.gguf", more.pop("state", "loaded"), tuple(samples), free, expected, **more)


def drawing(text):
    return xml.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def heights(svg):
    """{name: how high each area is at its right end, in pixels}."""
    found = {}
    for area in svg.iter("polygon"):
        points = [tuple(map(float, p.split(","))) for p in area.get("points").split()]
        right = [y for x, y in points if x == max(x for x, _ in points)]
        found[area.find("title").text] = max(right) - min(right)
    return found


def test_the_sentence_says_all_numbers():
    said = panels_live.sentence(scene([(100 * units.MIB, 60 * units.MIB), (100 * units.MIB, 50 * units.MIB)]))
    assert "a.gguf: loaded, holds 150.0 MiB (100.0 MiB file pages + 50.0 MiB anonymous)" in said
    assert "at most 160.0 MiB" in said and "free before loading 8.0 GiB" in said
    assert f"predicted with a full context {units.show(EXPECTED.total_bytes)}" in said
    assert "Waiting" in panels_live.sentence(scene((), state="waiting"))
    assert "has ended and gave back 150.0 MiB" in panels_live.sentence(
        scene([(100 * units.MIB, 50 * units.MIB)], state="ended")
    )


def test_areas_are_as_high_as_their_bytes():
    found = heights(drawing(panels_live.strip_html(scene([(10 * MB, 10 * MB), (120 * MB, 40 * MB)]))))
    assert found["file pages"] / found["anonymous"] == pytest.approx(3, rel=0.02)
    text = panels_live.strip_html(scene([(10 * MB, 10 * MB), (120 * MB, 40 * MB)]))
    assert units.show(120 * MB) in text and units.show(160 * MB) in text


def test_the_limit_is_a_line_where_it_is_near_and_words_where_it_is_far():
    near, far = (panels_live.strip_html(scene(free=n)) for n in (200 * MB, 80 * units.GIB))
    assert "limit, free before loading: 190.7 MiB" in near
    assert "limit: 80.0 GiB were free" in far and "limit, free" not in far
    lines = [line for line in drawing(near).iter("line") if line.get("stroke-dasharray")]
    assert len(lines) == 2  # the limit and the prediction
    limit, predicted = sorted(float(line.get("y1")) for line in lines)
    assert limit < predicted  # higher up is more


def test_a_name_from_a_file_is_escaped():
    text = panels_live.strip_html(panels_live.Scene('<script>&"', "loaded", ((1, 1),), 10))
    assert "<script>" not in text
    drawing(text)


def test_it_waits_for_the_next_model_and_not_for_one_that_was_there(world):
    old, new = Pretended("old.gguf", (5 * MB, 5 * MB)), Pretended("new.gguf", (9 * MB, 9 * MB))
    world.running = world.ready = [old]
    meter = panels_live.Meter(None, MACHINE, box=False)
    assert not meter.look() and meter.scene().state == "waiting"
    world.running = [old, new]
    assert meter.look() and (meter.scene().name, meter.scene().state) == ("new.gguf", "loading")
    world.ready = [old, new]
    assert meter.look() and meter.scene().state == "loaded"
    assert meter.scene().samples == ((9 * MB, 9 * MB),)
    assert not meter.look()  # nothing new: nothing is sent to the page
    new.held = (9 * MB, 20 * MB)
    assert meter.look() and meter.scene().most == (9 * MB, 20 * MB)
    new.held = (0, 0)  # a process that is dying
    assert not meter.look() and meter.scene().now == (9 * MB, 20 * MB)
    new.alive = False
    assert meter.look() and meter.scene().state == "ended" and not meter.look()


def test_the_prediction_is_the_formulas(world):
    model = Pretended(held=(1, 1))
    world.running = world.ready = [model]
    text = panels_live.live_text(model, MACHINE)
    assert f"predicted with a full context {units.show(model.expects(2048).total_bytes)}" in text
    model.estimate = None
    model.expects = None
    with pytest.raises(AttributeError):  # only what the formula itself refuses is left out
        panels_live.live_text(model, MACHINE)


def test_many_samples_are_thinned_and_the_fullest_stays(world):
    model = Pretended(held=(0, 0))
    world.running = world.ready = [model]
    meter = panels_live.Meter(model, MACHINE, box=False)
    for number in range(1000):
        model.held = (number % 7 * MB, 900 * MB if number == 333 else number * MB)
        meter.look()
    assert len(meter.samples) <= panels_live.MOST_SAMPLES
    assert meter.scene().most == (333 % 7 * MB, 900 * MB) or meter.scene().most[1] >= 900 * MB


def test_the_thread_ends_with_the_model(world):
    pytest.importorskip("ipywidgets")
    model = Pretended(held=(3 * MB, 2 * MB))
    world.running = world.ready = [model]
    meter = panels_live.Meter(model, MACHINE, every_s=0.01).start()
    model.alive = False
    meter.thread.join(10)
    assert not meter.thread.is_alive() and "ended" in meter.box.value


def test_it_gives_up_when_nothing_is_loaded(world):
    pytest.importorskip("ipywidgets")
    meter = panels_live.Meter(None, MACHINE, every_s=0.01, patience_s=0.02).start()
    meter.thread.join(10)
    assert not meter.thread.is_alive() and "run this cell again" in meter.box.value


def test_an_exception_in_the_thread_is_shown(world, monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(runner, "loaded", lambda: 1 / 0)
    world.running = [Pretended()]
    meter = panels_live.Meter(world.running[0], MACHINE, every_s=0.01).start()
    meter.thread.join(10)
    assert "division by zero" in meter.box.value


@pytest.mark.model
@pytest.mark.slow
def test_a_real_load_is_watched_from_its_start():
    pytest.importorskip("ipywidgets")
    meter = panels_live.Meter(None, MACHINE, every_s=0.02).start()
    with runner.load(download.default_model(), n_ctx=512, progress=False) as model:
        model.complete("one two three", max_tokens=4)
        held, deadline = model.memory(), time.monotonic() + 20
        while sum(meter.scene().now) < 0.98 * held.resident_bytes and time.monotonic() < deadline:
            time.sleep(0.02)
        predicted = model.expects(8, 4)
    meter.thread.join(10)
    assert meter.scene().state == "ended"
    assert sum(meter.samples[0]) < sum(meter.scene().most)  # it looked while the model was still loading
    assert sum(meter.scene().most) == pytest.approx(held.resident_bytes, rel=0.05)
    assert predicted.total_bytes == pytest.approx(held.resident_bytes, rel=0.1)
    assert re.search(r"ended and gave back \d+\.\d MiB", meter.box.value)
