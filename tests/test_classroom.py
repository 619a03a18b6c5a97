"""The classroom: the configurations say what the estimate says, stay on this computer, and a real hub teaches."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import bench_classroom
import pytest

from helpers import classroom, hardware, memory, models, units

ROOT = Path(__file__).resolve().parent.parent
CLASSROOM = ROOT / "lessons" / "classroom"
SMALL = models.get("smollm2-135m")
TWO = ("smollm2-135m", "llama-3.1-8b")


def hub_config(tmp_path, monkeypatch, **environment):
    """What jupyterhub_config.py sets, without JupyterHub."""
    from traitlets.config.loader import PyFileConfigLoader

    monkeypatch.setenv("CLASSROOM_FOLDER", str(tmp_path / "class"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return PyFileConfigLoader(str(CLASSROOM / "jupyterhub_config.py")).load_config()


def values():
    import yaml

    return yaml.safe_load((CLASSROOM / "values.yaml").read_text(encoding="utf-8"))


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_the_weights_are_counted_once_and_the_cache_for_each():
    estimate = memory.estimate(SMALL, "Q4_1", n_ctx=2048, n_outputs_max=1)
    held = memory.resident(estimate, 40, 96)
    needed = classroom.needs(SMALL, "Q4_1", n_ctx=2048, n_prompt=40, n_answer=96)
    assert needed.once["weights"] == estimate.weights_bytes
    assert needed.each["model"] == held.anonymous_bytes
    assert needed.total_bytes(10) - needed.total_bytes(9) == needed.each_bytes
    assert "weights" not in needed.each


def test_a_longer_context_costs_every_learner():
    short, long = (classroom.needs(SMALL, n_ctx=n_ctx) for n_ctx in (2048, 8192))
    kv = [memory.kv_cache_bytes(SMALL, memory.Settings(n_ctx=n_ctx)) for n_ctx in (2048, 8192)]
    assert long.each_bytes - short.each_bytes >= kv[1] - kv[0]
    assert long.once["weights"] == short.once["weights"]


def test_one_server_for_all_takes_the_model_from_each():
    own, shared = classroom.needs(SMALL), classroom.needs(SMALL, slots=4)
    assert "model" not in shared.each
    assert shared.once["model"] > own.each["model"] > 0  # four caches
    assert shared.total_bytes(20) < own.total_bytes(20)
    assert set(shared.file) == {"libraries"}  # a learner's container does not map the weights


def test_a_box_holds_what_the_sum_says():
    needed = classroom.needs(SMALL)
    n = classroom.by_memory(16 * units.GIB, needed)
    assert needed.total_bytes(n) + classroom.SYSTEM_BYTES <= 16 * units.GIB
    assert needed.total_bytes(n + 1) + classroom.SYSTEM_BYTES > 16 * units.GIB
    assert classroom.by_memory(units.GIB, needed) == 0


def test_the_limit_leaves_room_for_the_file_and_is_above_the_guarantee():
    for name in TWO:
        needed = classroom.needs(models.get(name), "Q4_K_M")
        own = classroom.guarantee_bytes(needed)
        assert own >= needed.each_bytes and own % classroom.STEP_BYTES == 0
        assert classroom.limit_bytes(needed) >= classroom.SPARE * (needed.each_bytes + needed.file_bytes) > own


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("64GiB", 64 * units.GIB),
        ("64", 64 * units.GIB),
        ("0.5 GB", 500_000_000),
        ("512M", 512_000_000),
        ("1Ti", units.TIB),
    ],
)
def test_sizes(text, n_bytes):
    assert classroom.size(text) == n_bytes


def test_the_command_prints_the_table_and_the_values(capsys):
    assert classroom.main(["--ram", "64GiB", "--cpus", "16", "--model", "smollm2-135m"]) == 0
    said = capsys.readouterr().out
    needed = classroom.needs(SMALL, "Q4_1")
    assert f"hold {classroom.by_memory(64 * units.GIB, needed)} learners" in said
    assert "16 CPUs serve 64" in said and "limited by CPU" in said
    for value in classroom.spawner(needed).values():
        assert str(value) in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ram", "much"], "'much' is no size"),
        (["--model", "smollm9"], "No model called"),
        (["--model", "missing.gguf"], "missing.gguf"),
        (["--n-ctx", "-1"], "-1"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(words, says, capsys):
    assert classroom.main(["--ram", "8GiB", "--cpus", "2", *words]) == 1
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1


# --- the configurations ----------------------------------------------------------------------------------------------


def test_the_hub_of_one_machine_listens_here_only_and_wants_a_password(tmp_path, monkeypatch):
    c = hub_config(tmp_path, monkeypatch)
    addresses = [c.JupyterHub.bind_url, c.JupyterHub.hub_bind_url, c.ConfigurableHTTPProxy.api_url]
    assert all(address.startswith("http://127.0.0.1:") for address in addresses) and len(set(addresses)) == 3
    assert c.Spawner.ip == "127.0.0.1"
    assert c.JupyterHub.authenticator_class == "shared-password"
    assert len(c.SharedPasswordAuthenticator.user_password) >= 16
    assert not [
        word for word in c.Spawner.args if re.search("token|password|disable_check_xsrf|allow.origin", word, re.I)
    ]


def test_the_password_is_made_once_and_is_for_its_owner_only(tmp_path, monkeypatch):
    passwords = {hub_config(tmp_path, monkeypatch).SharedPasswordAuthenticator.user_password for _ in range(2)}
    assert len(passwords) == 1
    if os.name == "posix":
        assert (tmp_path / "class" / "password").stat().st_mode & 0o077 == 0


def test_a_name_that_would_leave_its_folder_is_refused(tmp_path, monkeypatch):
    pattern = hub_config(tmp_path, monkeypatch).Authenticator.username_pattern
    assert all(re.match(pattern, name) for name in ("ada", "learner-7", "x_1"))
    assert not any(re.match(pattern, name) for name in ("..", "a/b", "../up", "a\n", "", ".ssh", "a" * 33, "-r"))


def test_the_hubs_have_the_limits_of_the_estimate(tmp_path, monkeypatch):
    limits = classroom.spawner(classroom.needs(SMALL, "Q4_1"))
    c, single = hub_config(tmp_path, monkeypatch), values()["singleuser"]
    assert c.Spawner.cpu_limit == limits["cpu_limit"]
    assert "mem_limit" not in c.Spawner  # nobody enforces it there, and the kit would believe it
    for short, long in (("mem", "memory"), ("cpu", "cpu")):
        assert single[long] == {word: limits[f"{short}_{word}"] for word in ("guarantee", "limit")}
    notes = (CLASSROOM / "littlest-jupyterhub.md").read_text(encoding="utf-8")
    assert f"limits.memory {limits['mem_limit']}\n" in notes and f"limits.cpu {limits['cpu_limit']}\n" in notes
    assert values()["hub"]["activeServerLimit"] == classroom.by_cpu(16)


def test_the_hub_of_one_machine_lets_in_as_many_as_its_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_RAM_AVAILABLE_BYTES", str(16 * units.GIB))
    limits = [hub_config(tmp_path, monkeypatch, CLASSROOM_MODEL=name).JupyterHub.active_server_limit for name in TWO]
    free = hardware.detect().ram_available_bytes
    assert limits == [max(1, classroom.by_memory(free, classroom.needs(*classroom.choose(name)))) for name in TWO]
    assert limits[0] > limits[1]


def test_the_server_of_the_class_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.delenv("HELPERS_SERVER", raising=False)
    assert "HELPERS_SERVER" not in hub_config(tmp_path, monkeypatch).Spawner.environment
    c = hub_config(tmp_path, monkeypatch, HELPERS_SERVER="http://127.0.0.1:8080/v1")
    assert c.Spawner.environment["HELPERS_SERVER"] == "http://127.0.0.1:8080/v1"


def test_kubernetes_shuts_the_door_until_somebody_is_named():
    found = values()
    assert found["proxy"]["service"]["type"] == "ClusterIP"
    assert found["hub"]["config"]["JupyterHub"]["authenticator_class"] == "null"
    assert found["hub"]["config"]["Authenticator"]["allow_all"] is False
    volumes = found["singleuser"]["storage"]
    assert volumes["extraVolumes"][0]["persistentVolumeClaim"]["readOnly"] is True
    assert volumes["extraVolumeMounts"][0]["readOnly"] is True


# --- Binder ----------------------------------------------------------------------------------------------------------


def test_binder_gets_the_packages_of_environment_yml():
    def packages(path):
        text = path.read_text(encoding="utf-8")
        return text[text.index("\nname:") :].partition("\n  - pip:\n")[0].strip()

    assert packages(ROOT / ".binder" / "environment.yml") == packages(ROOT / "environment.yml"), (
        "copy environment.yml from 'name:' up to its last '- pip' into .binder/environment.yml"
    )


def test_binder_installs_the_model_that_start_py_installs():
    script = (ROOT / ".binder" / "postBuild").read_text(encoding="utf-8")
    pin = re.search(r'^MODEL = \["(.*)"\]', (ROOT / "start.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert f"--no-deps --no-cache-dir {pin}\n" in script
    if os.name == "posix":
        assert (ROOT / ".binder" / "postBuild").stat().st_mode & 0o111
        subprocess.run(["bash", "-n", ROOT / ".binder" / "postBuild"], check=True)


@pytest.mark.model
@pytest.mark.slow
def test_what_binder_checks_holds_here():
    script = (ROOT / ".binder" / "postBuild").read_text(encoding="utf-8")
    code = script.partition("<<'CHECK'\n")[2].partition("\nCHECK")[0]
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and "formula / engine = 1.00" in done.stdout, done.stderr[-2000:]


# --- a class ---------------------------------------------------------------------------------------------------------


def test_memory_is_counted_from_a_real_process():
    if sys.platform != "linux":
        pytest.skip("only Linux counts shared pages")
    held = bench_classroom.memory_of(os.getpid())
    assert held["Rss"] >= held["Pss"] >= held["Pss_Anon"] > 5 * units.MB


@pytest.mark.model
@pytest.mark.slow
def test_two_learners_of_a_real_hub_run_lesson_08(tmp_path):
    if reason := bench_classroom.why_not():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    lesson = functools.partial(bench_classroom.lesson_08, skip=("temperature", "same["))  # the longest cells
    with bench_classroom.hub(tmp_path) as running:
        learners, rows = bench_classroom.teach(running, 2, lesson)
    assert [learner.errors for learner in learners] == [[], []]
    assert all("first token" in learner.seconds for learner in learners)
    assert {role for _, role, _ in rows} >= {"hub", "server", "kernel", "model"}
    homes = tmp_path / "homes"
    assert json.loads((homes / "learner-0" / bench_classroom.LESSON).read_text(encoding="utf-8"))["nbformat"] == 4
    assert running.outlived == 0
