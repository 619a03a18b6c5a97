"""A learner's work outlives what can happen in a course: kernels and servers killed, a full disk, an update.

With real kernels, a real server and a real full disk; `test_check.py` and `test_start.py` have the single cases.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import lab
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_SIGKILL = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
start = lab.start_module()


def load_build():
    pytest.importorskip("jupytext")
    spec = importlib.util.spec_from_file_location("build_for_work", ROOT / "lessons" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(folder):
    """The learner's record, which is whole or this fails."""
    return json.loads((folder / ".progress.json").read_text(encoding="utf-8"))


# --- kernels ----------------------------------------------------------------


@contextlib.contextmanager
def kernel(folder):
    """A real Jupyter kernel in `folder`: (its manager, a client)."""
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager = manager_module.KernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / ".ipython")}
    environ.pop("HELPERS_PROGRESS", None)
    manager.start_kernel(cwd=str(folder), env=environ)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def printed(client, code, timeout=60):
    """What a cell prints or shows, as text, as soon as it has come."""
    asked = client.execute(code)
    texts = []
    while True:
        message = client.get_iopub_msg(timeout=timeout)
        if message["parent_header"].get("msg_id") != asked:
            continue
        content = message["content"]
        texts.append(content.get("text", "") or content.get("data", {}).get("text/plain", ""))
        if message["msg_type"] == "error":
            raise AssertionError("\n".join(content["traceback"]))
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return "".join(texts)


ANSWER = """
from helpers import check
check.predict("07-guess", 8)
check.number("07-kv", {answer}, 5, hints=("one", "two"))
"""
ENDLESS = """
import itertools
for n in itertools.count(1):
    check.predict(f"07-{n}", n)
    print(n, flush=True)
"""


@pytest.mark.slow
@NO_SIGKILL
def test_answers_outlive_a_kernel_killed_right_after_a_check_and_during_one(tmp_path):
    with kernel(tmp_path) as (manager, client):
        assert "correct" in printed(client, ANSWER.format(answer=5))
        os.kill(manager.provisioner.pid, signal.SIGKILL)
    assert record(tmp_path)["exercises"]["07-kv"]["status"] == "correct"
    with kernel(tmp_path) as (manager, client):
        printed(client, "from helpers import check")
        client.execute(ENDLESS)
        said = 0
        while said < 15:
            message = client.get_iopub_msg(timeout=60)
            if message["msg_type"] == "stream":
                said = int(message["content"]["text"].split()[-1])
        os.kill(manager.provisioner.pid, signal.SIGKILL)
    kept = record(tmp_path)
    assert {f"07-{n}" for n in range(1, said + 1)} <= set(kept["predictions"]), "an answer that was shown is not kept"
    assert kept["exercises"]["07-kv"]["status"] == "correct"
    with kernel(tmp_path) as (_, client):
        assert "07-kv: ✓ correct" in printed(client, "from helpers import check\nprint(check.summary())")
        assert "It was correct before" in printed(client, ANSWER.format(answer="check.____"))
    assert not list(tmp_path.glob("*damaged*"))


@pytest.mark.slow
def test_two_kernels_of_one_lesson_at_once_lose_no_answer(tmp_path):
    """The same lesson open twice, all its cells run in both, and each kernel with answers of its own as well."""
    path = next((ROOT / "notebooks" / "solved").glob("01_*.ipynb"))
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    cells = [cell.source for cell in cells if not set(cell.metadata.get("tags", ())) & {"raises-exception", "network"}]
    with kernel(tmp_path) as (_, one), kernel(tmp_path) as (_, two):
        both = {"a": one, "b": two}
        for n, source in enumerate(cells):
            for who, client in both.items():  # all is asked for before any answer is waited for: both work at once
                client.execute(source)
                client.execute(f'from helpers import check\ncheck.predict("01-{who}-{n}", {n})')
        for client in both.values():
            assert printed(client, "print('done')", timeout=120).strip() == "done"
    kept = record(tmp_path)
    assert {f"01-{who}-{n}" for who in both for n in range(len(cells))} <= set(kept["predictions"])
    assert kept["exercises"] and {row["status"] for row in kept["exercises"].values()} == {"correct"}


# --- the server ----------------------------------------------------------------


def ask(server, path, body=None, method="GET"):
    headers = {"Authorization": f"token {server.token}"}
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode() if body is not None else None, headers, method=method
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def notebook_of(words):
    cell = nbformat.v4.new_code_cell(f"answer = {words!r}", id="answer")
    return nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell("my words " * 20_000, id="words")])


@pytest.mark.slow
@NO_SIGKILL
def test_answers_and_saved_notebooks_outlive_a_killed_server(tmp_path):
    """SIGKILL for the server, its kernel and all, while it saves: the file is an older or a newer one, and whole."""
    pytest.importorskip("jupyterlab")
    from jupyter_client import BlockingKernelClient

    path = tmp_path / "lesson.ipynb"
    nbformat.write(notebook_of("none yet"), path)
    with lab.server(tmp_path) as server:
        made = ask(server, "/api/kernels", {"name": "python3"}, "POST")
        connection = tmp_path / ".jupyter" / "runtime" / f"kernel-{made['id']}.json"
        client = BlockingKernelClient(connection_file=str(connection))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        assert "correct" in printed(client, ANSWER.format(answer=5))
        saved = 0
        until = time.monotonic() + 1
        while time.monotonic() < until:
            saved += 1
            ask(server, "/api/contents/lesson.ipynb", {"type": "notebook", "content": notebook_of(saved)}, "PUT")
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVING, server.url, server.token, str(saved)], stderr=subprocess.DEVNULL
        )
        time.sleep(0.6)
        server.kill()
        writer.wait(30)
        client.stop_channels()
        found = nbformat.read(path, as_version=4)
        nbformat.validate(found)
        assert int(found.cells[0].source.rsplit(" ", 1)[1]) >= saved, "a save that was answered is not there"
    assert record(tmp_path)["exercises"]["07-kv"]["status"] == "correct"
    with lab.server(tmp_path) as server:
        assert ask(server, "/api/contents/lesson.ipynb")["content"]["cells"][0]["source"] == found.cells[0].source


SAVING = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT)!r}]
import types
import test_work_is_kept as here
server = types.SimpleNamespace(url=sys.argv[1], token=sys.argv[2])
for n in range(int(sys.argv[3]) + 1, 10**6):
    here.ask(server, "/api/contents/lesson.ipynb", dict(type="notebook", content=here.notebook_of(n)), "PUT")
"""

# --- a disk that is really full ----------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB of its own, and a function that fills it to the last byte."""
    place = tmp_path / "disk"
    place.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a small disk, on Linux")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "kit", str(place)], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")

    def fill():
        with contextlib.suppress(OSError), (place / "filler").open("ab", buffering=0) as file:
            while file.write(b"x" * 512):
                pass

    try:
        yield place, fill
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


ON_A_FULL_DISK = """
import sys
from helpers import check
check.number("07-kv", 5, 5)
check.predict("07-first", "x" * 5000)
sys.stdin.readline()  # the disk is filled now
check.predict("07-second", "y" * 5000)
check.number("07-other", 3, 5)
print("ANSWERED", check.summary(), flush=True)
sys.stdin.readline()  # there is room again
check.predict("07-third", 3)
"""


def test_a_full_disk_costs_no_answer(small_disk):
    place, fill = small_disk
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen([sys.executable, "-c", ON_A_FULL_DISK], cwd=place, env=environ, **pipes) as process:
        end = time.monotonic() + 30
        while not ((place / ".progress.json").exists() and "07-first" in record(place)["predictions"]):
            assert time.monotonic() < end
            time.sleep(0.02)
        fill()
        before = (place / ".progress.json").read_bytes()
        process.stdin.write("\n")
        process.stdin.flush()
        told = process.stdout.readline()
        assert "No space left" in told and "until the kernel stops" in told
        assert process.stdout.readline().startswith("ANSWERED")
        assert (place / ".progress.json").read_bytes() == before, "the old record is whole while the disk is full"
        assert not list(place.glob("*.draft"))
        (place / "filler").unlink()
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdin.close()
        assert process.wait(30) == 0
    assert {"07-first", "07-second", "07-third"} <= set(record(place)["predictions"])
    assert set(record(place)["exercises"]) == {"07-kv", "07-other"}


def test_a_new_version_on_a_full_disk_harms_nothing(small_disk, tmp_path):
    place, fill = small_disk
    kit = tmp_path / "notebooks"
    kit.mkdir()
    for name in ("00_a.ipynb", "01_b.ipynb"):
        (kit / name).write_text("first " * 1000)
    start.hand_out(kit, place)
    (place / "01_b.ipynb").write_text("my work " * 1000)
    for name in ("00_a.ipynb", "01_b.ipynb", "02_c.ipynb"):
        (kit / name).write_text("second " * 1000)
    fill()
    before = contents(place)
    with pytest.raises(OSError) as caught:
        start.hand_out(kit, place)
    assert start.disk_sentence(caught.value, place).startswith("The disk is full")
    assert contents(place) == before
    (place / "filler").unlink()
    start.hand_out(kit, place)
    assert (place / "01_b.ipynb").read_text().startswith("my work")
    assert (place / "01_b.new.ipynb").read_text() == (place / "02_c.ipynb").read_text() == "second " * 1000


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- a new version of the lessons, in a folder that was worked in -----------------------------------


def test_an_update_touches_nothing_but_copies_that_nobody_changed(tmp_path):
    """Whatever a learner has in the folder: worked-in lessons, notes, the record, reports, links, folders."""
    kit, mine = tmp_path / "notebooks", tmp_path / "my-lessons"
    kit.mkdir()
    names = [f"{n:02d}_x.ipynb" for n in range(5)]
    for name in names:
        (kit / name).write_text(f"first {name}")
    start.hand_out(kit, mine)
    (mine / names[0]).write_text("my work")
    (mine / ".progress.json").write_text('{"exercises": {}}')
    (mine / "report.html").write_text("my report")
    (mine / "notes").mkdir()
    (mine / "notes" / names[1]).write_text("a copy with my notes")
    (mine / f"{names[0][:-6]}.new.ipynb").write_text("a name that the kit would like to take")
    (mine / names[2]).unlink()
    (mine / names[2]).mkdir()
    if os.name != "nt":
        (mine / names[3]).unlink()
        (tmp_path / "elsewhere.ipynb").write_text("work that lies elsewhere")
        (mine / names[3]).symlink_to(tmp_path / "elsewhere.ipynb")
    before = contents(mine)
    for name in names:
        (kit / name).write_text(f"second {name}")
    said = "\n".join(start.hand_out(kit, mine))
    after = contents(mine)
    changed = {path.name for path in before if after.get(path) != before[path]}
    assert changed == {names[4], names[1], ".handed-out.json"} - ({names[3]} if os.name != "nt" else set())
    assert before[Path("notes") / names[1]] == after[Path("notes") / names[1]]
    assert (mine / "00_x.new2.ipynb").read_text() == f"second {names[0]}"
    assert f"{names[0]} has changed since you got yours. Yours stays" in said and "left alone" in said
    if os.name != "nt":
        assert (tmp_path / "elsewhere.ipynb").read_text() == "work that lies elsewhere"
        assert (mine / names[3]).is_symlink() and (mine / "03_x.new.ipynb").exists()
    (line,) = start.hand_out(kit, mine)
    assert line.startswith(f"{mine / names[2]} is not a file: it was left alone")


# --- building over work ----------------------------------------------------------------

TITLE = "# %% [markdown]\n# # A lesson\n#\n# - **Promise:** It works.\n# - **Needs:** nothing\n# - **Minutes:** 20\n"


def worked(path, how):
    """The notebook as Jupyter leaves it after somebody worked in it."""
    notebook = nbformat.read(path, as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if how == "an output":
        code.outputs = [nbformat.v4.new_output("stream", text="4 GiB")]
    elif how == "run without output":
        code.execution_count = 3
    elif how == "saved by Jupyter":
        code.source = "answer = 4"
        notebook.metadata.language_info = {"name": "python", "codemirror_mode": {"name": "ipython", "version": 3}}
    elif how == "a panel":
        notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, path)
    if how == "cut off":
        code.execution_count = 3
        path.write_text(nbformat.writes(notebook)[:-40], encoding="utf-8")
    return path.read_bytes()


@pytest.mark.parametrize("how", ["an output", "run without output", "saved by Jupyter", "a panel", "cut off"])
def test_building_refuses_to_overwrite_or_remove_work_and_says_so(tmp_path, capsys, how):
    build = load_build()
    for name in ("lessons", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "lessons" / "glossary.md").write_text("words")
    lessons = [tmp_path / "lessons" / name for name in ("07_a.py", "08_b.py")]
    for lesson in lessons:
        lesson.write_text(TITLE + "\n# %%\nanswer = 1\n", encoding="utf-8")
    assert build.main([], tmp_path) == 0
    work = [worked(tmp_path / "notebooks" / name, how) for name in ("07_a.ipynb", "08_b.ipynb")]
    lessons[0].write_text(TITLE + "\n# %%\nanswer = 2\n", encoding="utf-8")
    lessons[1].unlink()
    capsys.readouterr()
    for arguments in ([], ["--only", "07"], ["--prune"]):
        assert build.main(arguments, tmp_path) == 1
        said = capsys.readouterr().err
        assert "notebooks/07_a.ipynb was left alone: somebody worked in it" in said and "my-lessons/" in said
        assert [(tmp_path / "notebooks" / name).read_bytes() for name in ("07_a.ipynb", "08_b.ipynb")] == work
    assert "notebooks/08_b.ipynb was left alone" in said
    solved = nbformat.read(tmp_path / "notebooks" / "solved" / "07_a.ipynb", as_version=4)
    assert solved.cells[1].source == "answer = 2", "the others are built"
    for name in ("07_a.ipynb", "08_b.ipynb"):
        (tmp_path / "notebooks" / name).unlink()
    assert build.main(["--prune"], tmp_path) == 0


def test_a_lesson_that_speaks_of_outputs_is_not_taken_for_work(tmp_path):
    build = load_build()
    for name in ("lessons", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "lessons" / "glossary.md").write_text("words")
    lesson = tmp_path / "lessons" / "07_a.py"
    for n in (1, 2):
        lesson.write_text(f'{TITLE}\n# %%\nrow = {{"output_type": {n}, "execution_count": 3}}\n', encoding="utf-8")
        assert build.main([], tmp_path) == 0
