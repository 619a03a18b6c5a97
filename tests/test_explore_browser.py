"""The four panels to explore with, in JupyterLab and headless Chromium: clicks, keys, and nothing that sticks out."""

import lab
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SETUP = "from helpers import hardware, panels\nmachine = hardware.Machine.pretend('laptop', 12 * 2**30, 16 * 2**30)"
PANELS = {
    "compare": "panels.compare_panel(machine)",
    "context": "panels.context_panel(machine)",
    "design": "panels.design_panel(ask_engine=False)",
    "offload": "panels.offload_panel(machine)",
}
FOCUSED = """() => { const cell = document.activeElement;
  return [cell.closest('tr')?.dataset.model, cell.dataset.quantization]; }"""
PICKED = """() => { const cell = document.querySelector('.kit-app [aria-selected=true]');
  return cell && [cell.closest('tr').dataset.model, cell.dataset.quantization]; }"""
WIDER = """() => { const out = document.querySelector('.kit-app').closest('.jp-OutputArea-output');
  const boxes = [...document.querySelectorAll('.kit-app .widget-html')];
  return out.scrollWidth - out.clientWidth + boxes.filter(e => e.scrollWidth > e.clientWidth + 1).length; }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    reason = lab.why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("panels")
    for name, cell in PANELS.items():
        lab.write_notebook(folder / f"{name}.ipynb", SETUP, cell)
    with lab.server(folder) as running:
        yield running


@pytest.fixture
def tab(server):
    with lab.chromium(server) as tab:
        yield tab
        assert tab.outside == []
        assert tab.console == []


def show(tab, name):
    tab.open(f"{name}.ipynb")
    assert tab.run_all() and tab.errors() == []
    tab.wait("() => document.querySelector('.kit-app .sentence')")
    return tab.text(".kit-app .sentence")


@pytest.mark.parametrize(
    "name, slider", [("compare", "Context"), ("design", "layers"), ("offload", "GPU layers"), ("context", "Free RAM")]
)
def test_a_slider_follows_the_keyboard_and_nothing_sticks_out(tab, name, slider):
    before = show(tab, name)
    if name == "context":
        tab.switch("another one")
        before = tab.wait_for_change(".kit-app .sentence", before)
    tab.slider(slider).press("Home")
    tab.slider(slider).press("ArrowRight")
    tab.wait_for_change(".kit-app .sentence", before)
    assert tab.page.evaluate(WIDER) == 0


def test_the_grid_by_keyboard_and_by_mouse(tab):
    before = show(tab, "compare")
    tab.wait("() => document.querySelector('.kit-app [aria-selected=true]')")
    tab.page.get_by_label("Sort by").focus()
    tab.page.keyboard.press("Tab")  # one cell of the grid takes part in the order of the Tab key
    assert tab.page.evaluate(FOCUSED) == ["llama-3.1-8b", "Q4_K_M"]
    for key in ("ArrowUp", "ArrowRight"):
        tab.page.keyboard.press(key)
    assert tab.page.evaluate(FOCUSED) == ["llama-3-8b", "IQ4_XS"]
    assert tab.page.evaluate(PICKED) == ["llama-3.1-8b", "Q4_K_M"]  # moving is not choosing
    tab.page.keyboard.press("Enter")
    after = tab.wait_for_change(".kit-app .sentence", before)
    assert tab.page.evaluate(PICKED) == tab.page.evaluate(FOCUSED) == ["llama-3-8b", "IQ4_XS"]
    assert tab.page.get_by_label("Model", exact=True).input_value() == "llama-3-8b"
    tab.page.keyboard.press("Home")
    assert tab.page.evaluate(FOCUSED) == ["llama-3-8b", "F16"]
    tab.page.locator("tr[data-model='qwen1.5-7b'] [data-quantization='Q2_K']").click()
    after = tab.wait_for_change(".kit-app .sentence", after)
    assert tab.page.evaluate(PICKED) == ["qwen1.5-7b", "Q2_K"]
    tab.page.get_by_label("Quantization", exact=True).select_option("Q8_0")
    tab.wait_for_change(".kit-app .sentence", after)
    assert tab.page.evaluate(PICKED) == ["qwen1.5-7b", "Q8_0"]


def test_the_grid_keeps_its_place_and_its_focus_when_numbers_change(tab):
    before = show(tab, "compare")
    tab.page.locator("tr[data-model='llama-3-8b'] [data-quantization='Q2_K']").click()
    tab.wait_for_change(".kit-app .sentence", before)
    place = "() => document.querySelector('.kit-app table.g').closest('[data-lm-suppress-shortcuts]').scrollTop"
    top = tab.page.evaluate(place)
    assert top > 0
    before = tab.text(".kit-app tr[data-model='llama-3-8b']")
    tab.page.get_by_label("tokens").fill("30000")
    tab.page.keyboard.press("Enter")
    tab.wait_for_change(".kit-app tr[data-model='llama-3-8b']", before)
    assert tab.page.evaluate(place) == top
    tab.page.get_by_label("Sort by").select_option("most parameters")
    tab.wait("() => document.querySelector('.kit-app tr[data-model]').dataset.model === 'gpt-3-175b'")
    assert tab.page.evaluate(place) == 0  # another order is read from its top


def test_an_impossible_shape_is_a_sentence_on_the_page(tab):
    before = show(tab, "design")
    tab.page.get_by_label("n_head_kv").fill("7")
    tab.page.keyboard.press("Enter")
    assert "n_head_kv is 7" in tab.wait_for_change(".kit-app .sentence", before)
