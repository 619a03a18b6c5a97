"""A class on a real JupyterHub: who fails, how long the first word takes, what each learner holds in memory.

python tests/bench_classroom.py [-n 10]                  each learner loads lesson 08's model
python tests/bench_classroom.py --browser                the same, and one of them sits at a real Chromium
python tests/bench_classroom.py --server llama-server    one server with four slots answers for all

The hub has the configuration of lessons/classroom. Learners log in by its form, open the lesson and run all its cells
over the protocol that JupyterLab speaks; they wait for each other, so that all load, and all ask, in the same moment.
Memory is counted while all models are loaded. configurable-http-proxy is needed, from npm or pip; the program after
--server is llama.cpp's own. A picture of the browser goes to the system's folder for temporary files, as
classroom.png.
"""

import argparse
import contextlib
import http.cookiejar
import importlib.util
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import lab
import real_server
from quoted import quote, spread

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a clone that is not installed

from helpers import classroom, download, models, units

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "lessons" / "classroom" / "jupyterhub_config.py"
LESSON = "my-lessons/08_load_and_ask.ipynb"
LOAD, ASK, CLOSE = "runner.load(", "first = model.ask(", "model.close()"
QUESTION = '"What is a computer? Answer in two sentences.", max_tokens={}, stream=True'
PROMPT_TOKENS, ANSWER_TOKENS = 40, 96  # of the lesson's question, with the chat template
STARTS_WITHIN_S, WAITS_WITHIN_S = 120, 240
ALONE = 3
N_SLOTS, N_CTX = 4, 2048
ROLES = {
    "jupyterhub.singleuser": "server",
    "ipykernel": "kernel",
    "helpers.runner_child": "model",
    "helpers.template_child": "template",
}
STAGES = (
    *("server ready", "lesson opened", "model loaded", "alone", "first token", "answer whole", "lesson run"),
    *("browser opened", "browser run"),
)
PARTS = ("Pss", "Rss", "Pss_Anon", "Pss_File")


def why_not(program=""):
    """Why there can be no class here, in a sentence; "" when there can."""
    if sys.platform != "linux":
        return "This counts shared memory, which only Linux's /proc tells."
    for module in ("jupyterhub", "websocket", "llama_cpp"):
        if importlib.util.find_spec(module) is None:
            return f"The package {module} is missing. With pip: jupyterhub, websocket-client, llama-cpp-python."
    proxy = Path(sys.executable).with_name("configurable-http-proxy")
    if not (shutil.which(proxy.name) or proxy.exists()):
        return "configurable-http-proxy is missing. With pip or, the original, npm install -g: configurable-http-proxy."
    if program and not shutil.which(program):
        return f"The program {program} was not found. It is llama.cpp's own server; name its path."
    return ""


# --- the hub ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub(folder, environment=None):
    """A running hub on loopback: `url`, `password`, `process`, `api` (how its processes are told from others).

    At its end `outlived` counts the learners' processes that it left behind; they are killed.
    """
    port = free_ports(3)
    password = secrets.token_urlsafe(12)
    (folder / "password").write_text(password, encoding="utf-8")
    more = ["--LabApp.expose_app_in_browser=True", *(["--allow-root"] if os.geteuid() == 0 else [])]
    wrapped = folder / "config.py"
    wrapped.write_text(f"load_subconfig({str(CONFIG)!r})\nc.Spawner.args = [*c.Spawner.args, *{more!r}]\n")
    environ = {**os.environ, "CLASSROOM_FOLDER": str(folder), "CLASSROOM_PORT": str(port), **(environment or {})}
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(wrapped)], cwd=folder, env=environ,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    running = types.SimpleNamespace(
        url=f"http://127.0.0.1:{port}", password=password, process=process, api=f"127.0.0.1:{port + 1}/", folder=folder
    )
    try:
        real_server.wait_for(f"{running.url}/hub/health", process, folder / "hub.log", STARTS_WITHIN_S)
        yield running
    finally:
        end(process)
        until = time.monotonic() + 5
        while (left := [pid for pid, _ in learners_processes(running)]) and time.monotonic() < until:
            time.sleep(0.1)
        running.outlived = len(left)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, 9)


def free_ports(n):
    """The first of `n` ports in a row that are free."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for port in range(first, first + n):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def end(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


@contextlib.contextmanager
def llama_server(program, extra, folder):
    """llama.cpp's own server with slots, one context each; (address, pid)."""
    port = free_ports(1)
    command = [program, "--model", str(download.default_model()), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ctx-size", str(N_SLOTS * N_CTX), "--parallel", str(N_SLOTS), "--threads", str(os.cpu_count())]
    with (folder / "llama.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *extra], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "GOMP_SPINCOUNT": "1000"},
        )  # fmt: skip
    try:
        real_server.wait_for(f"http://127.0.0.1:{port}/health", process, folder / "llama.log", STARTS_WITHIN_S)
        yield f"http://127.0.0.1:{port}/v1", process.pid
    finally:
        end(process)


# --- a learner -------------------------------------------------------------------------------------------------------


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@dataclass
class Learner:
    """A login, a server, a kernel; `seconds` maps a stage to how long it took, `errors` are what went wrong."""

    hub: types.SimpleNamespace
    name: str
    seconds: dict = field(default_factory=dict)
    errors: list = field(default_factory=list)
    token: str = ""
    socket: object = None

    @contextlib.contextmanager
    def stage(self, name):
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def log_in(self):
        """By the form; then a token of one's own, as a program would take it."""
        jar = http.cookiejar.CookieJar()
        handlers = [Stay, urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar)]
        browser = urllib.request.build_opener(*handlers)
        login = f"{self.hub.url}/hub/login"
        browser.open(login, timeout=60).close()
        form = {"username": self.name, "password": self.hub.password, "_xsrf": xsrf(jar)}
        try:
            browser.open(login, urllib.parse.urlencode(form).encode(), timeout=60).close()
            raise RuntimeError("the login form was shown again: wrong password?")
        except urllib.error.HTTPError as answer:
            if answer.code != 302:
                raise
        headers = {"X-XSRFToken": xsrf(jar), "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.hub.url}/hub/api/users/{self.name}/tokens", b"{}", headers)
        with browser.open(request, timeout=60) as response:
            self.token = json.load(response)["token"]

    def call(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.hub.url + path, data, headers, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=120) as response:
            text = response.read()
        return json.loads(text) if text else None

    def start_server(self):
        self.call(f"/hub/api/users/{self.name}/server", {})
        until = time.monotonic() + STARTS_WITHIN_S
        while not self.call(f"/hub/api/users/{self.name}")["servers"].get("", {}).get("ready"):
            if time.monotonic() > until:
                raise TimeoutError("the notebook server did not start")
            time.sleep(0.2)

    def open_lesson(self):
        """The code cells of the lesson, and a kernel to run them."""
        import websocket

        notebook = self.call(f"/user/{self.name}/api/contents/{LESSON}")["content"]
        body = {"path": LESSON, "name": LESSON, "type": "notebook", "kernel": {"name": "python3"}}
        kernel = self.call(f"/user/{self.name}/api/sessions", body)["kernel"]["id"]
        self.socket = websocket.create_connection(
            f"{self.hub.url.replace('http', 'ws', 1)}/user/{self.name}/api/kernels/{kernel}/channels",
            timeout=WAITS_WITHIN_S, header=[f"Authorization: token {self.token}"], http_no_proxy=["127.0.0.1"],
        )  # fmt: skip
        return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]

    def run(self, code, may_raise=False):
        """Run a cell to its end; (seconds to its first word, all it printed)."""
        ident, start = uuid.uuid4().hex, time.perf_counter()
        header = {"msg_id": ident, "session": ident, "username": "", "msg_type": "execute_request", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": False}
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
        self.socket.send(json.dumps(message))
        first, printed, waiting = None, [], {"execute_reply", "idle"}
        while waiting:
            message = json.loads(self.socket.recv())
            if message["parent_header"].get("msg_id") != ident:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                first = first or time.perf_counter() - start
                printed.append(content["text"])
            elif kind == "error" and not may_raise:
                self.errors.append(f"{content['ename']}: {content['evalue']}")
            waiting -= {kind, content.get("execution_state")}
        return first, "".join(printed)


def xsrf(jar):
    """The newest path wins: the hub sets one cookie for strangers and one for who is logged in."""
    return max((c for c in jar if c.name == "_xsrf"), key=lambda c: len(c.path)).value


def attend(learner, gate, work):
    """A learner's day; a failure lets nobody wait for ever."""
    try:
        with learner.stage("server ready"):
            learner.log_in()
            learner.start_server()
        work(learner, gate)
    except threading.BrokenBarrierError:
        learner.errors.append("waited for the others in vain")
    except Exception as error:
        learner.errors.append(f"{type(error).__name__}: {error}")
        gate.abort()


def lesson_08(learner, gate, skip=()):
    """All code cells but those with a word of `skip` in them; all learners load, ask and stop in step."""
    with learner.stage("lesson opened"):
        cells = learner.open_lesson()
        learner.run("1")
    with learner.stage("lesson run"):
        for cell in cells:
            code = "".join(cell["source"])
            if any(word in code for word in skip):
                continue
            may_raise = "raises-exception" in cell["metadata"].get("tags", ())
            if LOAD in code:
                gate.wait()
            if CLOSE in code:
                gate.wait()  # the memory is counted
                gate.wait()
            if ASK in code:
                take_turns(learner, gate, f"model.ask({QUESTION.format(1)})")
            start = time.perf_counter()
            first, printed = learner.run(code, may_raise)
            if LOAD in code:
                learner.seconds["model loaded"] = time.perf_counter() - start
            if ASK in code:
                check_answer(learner, first, printed)


def ask_the_server(learner, gate):
    """The lesson's question to the server of the class."""
    with learner.stage("lesson opened"):
        learner.open_lesson()
        learner.run("from helpers import panels, servers; import openai\nprint(servers.connect('class'))")
    take_turns(learner, gate, f"servers.ask('class', {QUESTION.format(1)})")
    start = time.perf_counter()
    check_answer(learner, *learner.run(f"reply = servers.ask('class', {QUESTION.format(ANSWER_TOKENS)})"))
    learner.seconds["answer whole"] = time.perf_counter() - start
    gate.wait()
    gate.wait()


def take_turns(learner, gate, code):
    """One asks while the others are quiet, then all go on together."""
    gate.wait()
    if learner.name == "learner-0":
        learner.seconds["alone"] = statistics.median(learner.run(code)[0] or 0 for _ in range(ALONE))
    gate.wait()


def check_answer(learner, first, printed):
    if first is None or len(printed.split()) < 5:
        learner.errors.append(f"no real answer: {printed!r}")
    else:
        learner.seconds["first token"] = first


def sit_at_a_browser(learner):
    """Log in, open the lesson and run it in Chromium, as a person does."""
    server = types.SimpleNamespace(url=learner.hub.url, token="", kill=lambda: None)  # the others' hub stays
    lesson = f"/user/{learner.name}/lab/tree/{LESSON}"
    # Who follows a link to a server that does not run is asked to press a button; /hub/spawn starts it.
    start = urllib.parse.quote(f"/hub/spawn?next={urllib.parse.quote(lesson, safe='')}", safe="")
    try:
        with lab.chromium(server, within_s=WAITS_WITHIN_S) as tab, learner.stage("browser run"):
            page, began = tab.page, time.perf_counter()
            page.set_default_timeout(1000 * STARTS_WITHIN_S)
            page.goto(f"{learner.hub.url}/hub/login?next={start}")
            page.fill("input[name=username]", learner.name)
            page.fill("input[name=password]", learner.hub.password)
            page.click("#login_submit")
            page.wait_for_function("() => window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')")
            learner.seconds["browser opened"] = time.perf_counter() - began
            if not tab.run_all(STARTS_WITHIN_S) or tab.errors():
                learner.errors += tab.errors() or ["a cell failed"]
            learner.errors += [f"asked {address}" for address in tab.outside]
            tab.screenshot(learner.hub.folder / "browser.png")
    except Exception as error:
        learner.errors.append(f"{type(error).__name__}: {error}")


# --- memory ----------------------------------------------------------------------------------------------------------


def learners_processes(running):
    """(pid, learner's name) of every process of the hub's learners, by the environment they were started with."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "environ").read_bytes().decode(errors="replace").split("\0")
            known = dict(word.partition("=")[::2] for word in words)
            if running.api in known.get("JUPYTERHUB_API_URL", ""):
                yield int(place.name), known.get("JUPYTERHUB_USER", "")


def memory_of(pid):
    """{Pss, Rss, Pss_Anon, Pss_File} of a process, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return {part: kib[part] * units.KIB for part in PARTS}


def role_of(pid):
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return next((role for word, role in ROLES.items() if word in command), "other")


def count_memory(running):
    """Rows of (learner, role, memory); the hub and its proxy are learner ""."""
    rows = []
    for pid, name in learners_processes(running):
        with contextlib.suppress(OSError):
            rows.append((name, role_of(pid), memory_of(pid)))
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    own = {int(child) for child in children} - {pid for pid, _ in learners_processes(running)}
    for pid in (running.process.pid, *own):
        with contextlib.suppress(OSError):
            rows.append(("", "hub", memory_of(pid)))
    return rows


# --- the class -------------------------------------------------------------------------------------------------------


def teach(running, n, work, browser=False):
    """(learners, memory rows) of a class of `n`, of whom one sits at a browser."""
    learners = [Learner(running, f"learner-{i}") for i in range(n)]
    at_desk, others = (learners[-1:], learners[:-1]) if browser else ([], learners)
    gate = threading.Barrier(len(others) + 1, timeout=WAITS_WITHIN_S)
    threads = [threading.Thread(target=attend, args=(learner, gate, work)) for learner in others]
    threads += [threading.Thread(target=sit_at_a_browser, args=(learner,)) for learner in at_desk]
    for thread in threads:
        thread.start()
    rows = []
    with contextlib.suppress(threading.BrokenBarrierError):
        for _ in range(3 if work is ask_the_server else 4):  # load, alone, together, count
            gate.wait()
        rows = count_memory(running)
        gate.wait()
    for thread in threads:
        thread.join(WAITS_WITHIN_S)
    for learner in others:
        if learner.socket:
            learner.socket.close()
    return learners, rows


def show_times(learners):
    for stage in STAGES:
        times = [learner.seconds[stage] for learner in learners if stage in learner.seconds]
        if times:
            quote(f"class: {stage}", *spread(times), unit="s")
    alone = [learner.seconds["alone"] for learner in learners if "alone" in learner.seconds]
    firsts = [learner.seconds["first token"] for learner in learners if "first token" in learner.seconds]
    if alone and firsts:
        predicted = classroom.first_token_s(alone[0], len(firsts))
        print(f"first token, all at once: predicted {predicted:.2f} s, measured / predicted: median "
              f"{statistics.median(firsts) / predicted:.2f}, max {max(firsts) / predicted:.2f}")  # fmt: skip


def show_memory(rows, n, needed, extra=None):
    """Per learner and role, then the class against the prediction."""
    mb = units.MB
    names = sorted({name for name, _, _ in rows if name})
    per_learner = {part: [sum(m[part] for name, _, m in rows if name == who) / mb for who in names] for part in PARTS}
    print(f"{'MB':<16}" + "".join(f"{part:>22}" for part in PARTS) + "     (median, max)")
    for role in (*ROLES.values(), "other", "hub"):
        found = [memory for _, kind, memory in rows if kind == role]
        if found:
            print(f"{role:<12}n={len(found):<2}" + "".join(two([m[part] / mb for m in found]) for part in PARTS))
    for part in PARTS:
        quote(f"class: memory of a learner, {part}", *spread(per_learner[part]), unit="MB")
    for name, held in (extra or {}).items():
        print(f"{name:<16}" + "".join(two([held[part] / mb]) for part in PARTS))
    everything = [memory for _, _, memory in rows] + list((extra or {}).values())
    total = sum(memory["Pss"] for memory in everything)
    own = statistics.median(per_learner["Pss_Anon"]) * mb
    show_ratio("each learner's own pages", needed.each_bytes, own)
    show_ratio("the whole class (PSS)", needed.total_bytes(n), total)
    print(f"RSS, which counts shared pages again for each, would say {sum(m['Rss'] for m in everything) / mb:.0f} MB")
    files = [(m["Pss_File"], m["Rss"] - m["Pss_Anon"]) for _, role, m in rows if role == "model"]
    if files:
        print(f"file pages of {len(files)} models: {sum(p for p, _ in files) / mb:.0f} MB in all, where each counts "
              f"{statistics.median(r for _, r in files) / mb:.0f} MB")  # fmt: skip


def show_ratio(what, predicted, measured):
    shown = f"predicted {predicted / units.MB:.0f} MB, measured {measured / units.MB:.0f} MB"
    quote(f"class: {what}, predicted / measured", 1, predicted / measured, unit=f"; {shown}")


def two(values):
    return f"{statistics.median(values):>13.1f}{max(values):>9.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=10, help="learners")
    parser.add_argument("--browser", action="store_true", help="one of them uses Chromium")
    parser.add_argument("--server", metavar="PROGRAM", help="llama.cpp's server, asked by all")
    parser.add_argument(
        "--flag", action="append", default=[], help="one more word for that server, as --flag=--no-mmap"
    )
    chosen = parser.parse_args()
    reason = why_not(chosen.server) or (chosen.browser and lab.why_not())
    if reason:
        print(f"No class was held: {reason}")
        return 0
    tokens = {"n_ctx": N_CTX, "n_prompt": PROMPT_TOKENS, "n_answer": ANSWER_TOKENS}
    spec = models.get("smollm2-135m")
    with (
        tempfile.TemporaryDirectory(prefix="kit-class-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as stack,
    ):
        folder, environment, extra = Path(folder), {}, {}
        work, needed = lesson_08, classroom.needs(spec, "Q4_1", **tokens)
        if chosen.server:
            url, pid = stack.enter_context(llama_server(chosen.server, chosen.flag, folder))
            work, needed = ask_the_server, classroom.needs(spec, "Q4_1", slots=N_SLOTS, **tokens)
            environment = {"HELPERS_SERVER": url}
        running = stack.enter_context(hub(folder, environment))
        start = time.perf_counter()
        learners, rows = teach(running, chosen.n, work, chosen.browser)
        if chosen.server:
            extra = {"llama-server": memory_of(pid)}
        failed = [learner for learner in learners if learner.errors]
        print(f"{needed.title}: {time.perf_counter() - start:.0f} s")
        quote("class: learners who failed", len(learners), len(failed))
        for learner in failed:
            print(f"  {learner.name}: {'; '.join(learner.errors)[:500]}")
        show_times(learners)
        if rows:
            show_memory(rows, len(learners), needed, extra)
        if chosen.browser and (picture := folder / "browser.png").exists():
            shutil.copy(picture, Path(tempfile.gettempdir()) / "classroom.png")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
