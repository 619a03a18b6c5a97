"""The panels as a page without code: `python3 start.py app`, in headless Chromium that can reach nobody else."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
import types
import urllib.request
from pathlib import Path

import lab
import pytest

from helpers import hardware, panels


def test_every_panel_has_its_tab():
    made = panels.all_panels(hardware.Machine.pretend("laptop", 12 * 2**30, 16 * 2**30))
    assert len(made.titles) == len(made.children) == 5
    assert all("kit-app" in panel._dom_classes for panel in made.children)


def test_the_command_stays_on_this_computer_and_keeps_its_token(tmp_path):
    start = lab.start_module()
    options = types.SimpleNamespace(port=None, browser=False)
    command = start.app_command(tmp_path, Path(sys.executable), options)
    assert "--Voila.ip=127.0.0.1" in command and "--token" in command and "--no-browser" in command
    assert start.read_arguments(["app"])[0].app and not start.read_arguments([])[0].app
    assert "app" in start.steps(lab.ROOT, types.SimpleNamespace(engine=False, tests=False, app=True))


@contextlib.contextmanager
def voila(folder):
    """Voila as start.py runs it; yields its address, token included."""
    start = lab.start_module()
    start.configure_lab(folder)
    start.configure_app(folder)
    python = Path(sys.executable)
    port = lab._free_port()
    command = start.app_command(folder, python, types.SimpleNamespace(port=port, browser=False))
    environment = {**start.inside(folder, python, os.environ), "PYTHONPATH": str(lab.ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    timer = threading.Timer(90, process.kill)
    timer.start()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\w+", line):
                break
        else:
            raise AssertionError("Voila ended:\n" + "".join(said[-10:]))
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield found[0], process
    finally:
        timer.cancel()
        lab.Server(folder, port, process).end()


@pytest.mark.slow
@pytest.mark.browser
def test_the_app_answers_a_slider_shows_no_code_and_asks_no_other_host(tmp_path):
    reason = lab.why_not() or (
        "" if importlib.util.find_spec("voila") else "voila is not installed (pip install voila)"
    )
    if reason:
        pytest.skip(reason)
    with voila(tmp_path) as (address, process):
        stranger = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with stranger.open(address.partition("?")[0], timeout=30) as page:
            assert "/login" in page.url, page.read(2000)
        server = types.SimpleNamespace(url=address.partition("/?")[0], token="", kill=process.kill)
        with lab.chromium(server) as tab:
            tab.page.goto(address)
            tab.wait("() => document.querySelector('.kit-app .sentence')", within_s=90)
            before = tab.text(".kit-app .sentence")
            tab.slider("Context").press("End")
            assert tab.wait_for_change(".kit-app .sentence", before)
            tab.page.get_by_role("tab", name="Every model").click()
            tab.wait("() => document.querySelectorAll('.kit-app')[1].offsetHeight > 100")
            assert "all_panels" not in tab.page.locator("body").inner_text()
            assert tab.outside == []
