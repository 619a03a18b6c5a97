"""The first hour as a person has it: JupyterLab in headless Chromium, lessons 00, 07 and 08 from top to bottom."""

import shutil

import lab
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.slow]
LESSONS = ("00_start_here", "07_will_it_fit", "08_load_and_ask")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class room")  # a space, as in "My Documents"
    for name in LESSONS:
        shutil.copy(lab.ROOT / "notebooks" / f"{name}.ipynb", folder)
    with lab.server(folder) as running:
        yield running


@pytest.fixture
def tab(server):
    with lab.chromium(server) as tab:
        yield tab
        assert tab.outside == []


def run(tab, lesson):
    tab.open(f"{lesson}.ipynb")
    assert tab.run_all()
    assert tab.errors() == []
    tab.wait("() => document.querySelector('.kit-app .sentence, .kit-app.kit-ask')")


def no_sideways_scrolling(tab):
    box = "const e = document.querySelector('.kit-app').closest('.jp-OutputArea-output');"
    return tab.page.evaluate(f"() => {{ {box} return e.scrollWidth <= e.clientWidth + 1; }}")


def sentence(tab):
    return tab.text(".kit-app .sentence")


def test_lesson_00_runs_and_its_panel_follows_the_keyboard(tab):
    run(tab, "00_start_here")
    before = sentence(tab)
    handle = tab.slider("Context")
    handle.focus()
    tab.page.keyboard.press("ArrowRight")
    after = tab.wait_for_change(".kit-app .sentence", before)
    assert "Needs" in after and before != after
    assert no_sideways_scrolling(tab)
    assert tab.page.get_by_text("tokens/s").count() > 0  # the model answered, and was measured


def test_lesson_07_levers_apply_and_can_be_undone(tab):
    run(tab, "07_will_it_fit")
    assert tab.wait("() => document.querySelectorAll('.jp-OutputArea-output svg polyline').length") >= 4
    tab.wait("() => !document.querySelector('.kit-app').textContent.includes('Starting the engine')")
    before = sentence(tab)
    lever = tab.page.locator(".kit-app button", has_text="cache q8_0").first
    lever.click()
    assert tab.wait_for_change(".kit-app .sentence", before)
    assert tab.page.get_by_label("Cache type").first.input_value() == "q8_0"
    with_lever = sentence(tab)
    tab.page.locator(".kit-app button", has_text="undo").first.click()
    assert tab.wait_for_change(".kit-app .sentence", with_lever) == before
    assert no_sideways_scrolling(tab)


def test_another_computer_and_an_unknown_model(tab):
    run(tab, "07_will_it_fit")
    before = sentence(tab)
    tab.switch("another computer")
    assert "8.0 GiB" in tab.wait_for_change(".kit-app .sentence", before)
    before = sentence(tab)
    model = tab.page.get_by_label("Model").first
    model.fill("llama")
    model.press("Enter")
    assert "Near matches" in tab.wait_for_change(".kit-app .sentence", before)
    model.fill("qwen3-0.6b")
    model.press("Enter")
    tab.wait("() => document.querySelector('.kit-app .sentence').textContent.includes('fits')")


def test_lesson_08_streams_an_answer(tab):
    run(tab, "08_load_and_ask")
    tab.page.get_by_label("Question").fill("Count from one to twenty.")
    tab.page.get_by_role("button", name="Ask").click()
    tab.wait("() => document.querySelector('.kit-ask [role=log]')?.textContent.length > 3")
    tab.wait("() => document.querySelector('.kit-ask').textContent.includes('tokens/s')", within_s=120)
    tab.wait("() => document.querySelector('.kit-ask').textContent.includes('<|im_start|>user')")
    assert tab.wait("() => document.querySelectorAll('.js-plotly-plot .barlayer .trace').length") >= 6
