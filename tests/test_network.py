"""Nobody gets in, nothing goes out: servers listen on loopback with a token, nobody is asked unasked, keys stay ours.

That all lessons run without a network, watched, is proved where they are run: `test_notebooks.py`, with `alone.py`.
"""

import ast
import contextlib
import functools
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import alone
import lab
import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted((ROOT / "helpers").glob("*.py"))
start = lab.start_module()
FAR = "192.0.2.1"  # of TEST-NET-1: nobody's address

# --- the watch itself, seen red ----------------------------------------------------------------

CALLS = {
    "connect": f"s = socket.socket(); s.settimeout(0.2); s.connect(('{FAR}', 80))",
    "a child of a child": f"import subprocess; subprocess.run([sys.executable, '-c', \"import socket; "
    f"s = socket.socket(); s.settimeout(0.2); s.connect_ex(('{FAR}', 80))\"])",
    "a datagram": f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{FAR}', 53))",
    "a name": "socket.getaddrinfo('hub.invalid', 443)",
    "an open door": "socket.socket().bind(('', 0))",
    "the web": f"import urllib.request; urllib.request.urlopen('http://{FAR}/', timeout=0.2)",
}
STAYS = (
    "a, b = socket.socketpair(); s = socket.create_server(('127.0.0.1', 0)); "
    "socket.create_connection(s.getsockname()); socket.getaddrinfo('localhost', 80)"
)


def watched(code, folder):
    watch = alone.Watch(folder)
    program = f"import socket, sys, contextlib\nwith contextlib.suppress(OSError):\n    {code}"
    command = [*alone.apart(), sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, **watch.environment}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return watch


@pytest.mark.parametrize("call", CALLS)
def test_the_watch_sees_every_way_out(call, tmp_path):
    assert watched(CALLS[call], tmp_path).foreign()


def test_the_watch_lets_a_program_talk_to_itself(tmp_path):
    watch = watched(STAYS, tmp_path)
    assert watch.asked() and not watch.foreign()


@pytest.mark.skipif(not alone.apart(), reason="network namespaces cannot be made here (Linux only, and not everywhere)")
def test_apart_there_is_no_way_out(tmp_path):
    """Also for native code, which the watch does not see."""
    code = "import ctypes, errno, socket\n"
    code += "libc = ctypes.CDLL(None, use_errno=True); s = libc.socket(2, 1, 0)\n"
    code += f"to = b'\\x02\\x00\\x00\\x50' + socket.inet_aton('{FAR}') + bytes(8)\n"
    code += "print(libc.connect(s, to, 16), errno.errorcode[ctypes.get_errno()])"
    done = subprocess.run([*alone.apart(), sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["-1", "ENETUNREACH"], done.stderr


# --- the servers that start.py starts ----------------------------------------------------------------


@contextlib.contextmanager
def running(tmp_path, app):
    """JupyterLab or Voila, started as `start.py` starts it from a shell full of other people's settings."""
    python, port = Path(sys.executable), lab._free_port()
    options = types.SimpleNamespace(port=port, browser=False)
    (tmp_path / "my-lessons").mkdir()
    (tmp_path / "my-lessons" / "mine.txt").write_text("a learner's own words")
    start.configure_lab(tmp_path)
    start.configure_app(tmp_path)
    command = (start.app_command if app else start.lab_command)(tmp_path, python, options)
    home = {"HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}
    foreign = {"JUPYTER_TOKEN": "easy", "JUPYTER_IP": "0.0.0.0", "JUPYTER_CONFIG_PATH": str(tmp_path / "foreign")}
    environ = start.inside(tmp_path, python, {**os.environ, **foreign, **home}) | {"PYTHONPATH": str(ROOT)}
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 90
        while status(port, "/")[0] is None:
            said = log.read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.1)
        yield process, port, log
    finally:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def status(port, path, method="GET", **headers):
    """(status, where it leads, body) of one request; (None, "", b"") when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): word for name, word in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Location", ""), answer.read()
    except OSError:
        return None, "", b""
    finally:
        connection.close()


def listening(process):
    """The addresses at which a process and its children listen."""
    import psutil

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return {
        (one.laddr.ip, one.laddr.port)
        for member in family
        for one in member.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }


REFUSED = {403, 401}


@pytest.mark.slow
def test_jupyterlab_and_its_kernels_listen_here_and_refuse_strangers(tmp_path):
    pytest.importorskip("jupyterlab")
    with running(tmp_path, app=False) as (process, port, log):
        (facts,) = [json.loads(p.read_text()) for p in (tmp_path / ".jupyter" / "runtime").glob("jpserver-*.json")]
        token = facts["token"]
        assert len(token) >= 32, "the shell's own JUPYTER_TOKEN counted"
        mine = {"Authorization": f"token {token}"}
        made, _, body = status(port, "/api/kernels", "POST", **mine)
        assert made == 201, body
        kernel = json.loads(body)["id"]
        end = time.monotonic() + 30
        while len(found := listening(process)) < 5 and time.monotonic() < end:
            time.sleep(0.1)
        assert ("127.0.0.1", port) in found and len(found) >= 5, "the kernel's own doors belong to it"
        assert all(alone.is_here(address, listens=True) for address, _ in found), found
        paths = [
            "/api/contents/my-lessons/mine.txt",
            "/api/kernels",
            f"/api/kernels/{kernel}/channels",
            "/api/terminals",
        ]
        for path in paths:
            for headers in ({}, {"Authorization": f"token {secrets.token_hex(24)}"}, {"Cookie": "username=me"}):
                assert status(port, path, **headers)[0] in REFUSED, path
        for method in ("POST", "DELETE", "PUT", "PATCH"):
            assert status(port, f"/api/kernels/{kernel}", method)[0] in REFUSED | {405}
        code, to, body = status(port, "/files/my-lessons/mine.txt")
        assert (code in REFUSED or "/login" in to) and b"own words" not in body
        assert status(port, "/api/contents/my-lessons/mine.txt", **mine)[0] == 200
        # A page on the web that points its own name at this machine (DNS rebinding), or that opens a socket to us.
        assert status(port, "/api/contents", **mine, Host="evil.example")[0] in REFUSED
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
        upgrade["Sec_WebSocket_Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
        assert status(port, paths[2], Origin="http://evil.example", **upgrade)[0] in REFUSED
        if os.name != "nt":
            for path in (tmp_path / ".jupyter" / "runtime").glob("*.json"):
                assert path.stat().st_mode & 0o077 == 0, f"{path.name} holds a key, and others may read it"
        assert status(port, f"/api/kernels/{kernel}", "DELETE", **mine)[0] == 204


@pytest.mark.slow
def test_voila_listens_here_and_refuses_strangers(tmp_path):
    pytest.importorskip("voila")
    with running(tmp_path, app=True) as (process, port, log):
        token = re.search(r"token=([0-9a-f]{16,})", log.read_text(encoding="utf-8", errors="replace"))
        found = listening(process)
        assert ("127.0.0.1", port) in found
        assert all(alone.is_here(address, listens=True) for address, _ in found), found
        for path in ("/", "/api/kernels", "/voila/files/panels.ipynb", f"/?token={secrets.token_hex(24)}"):
            code, to, body = status(port, path)
            assert code in REFUSED | {404} or "/login" in to, (path, code)
            assert b"Local language models, understood" not in body
        assert token and len(token[1]) >= 32


# --- rooms, without running them ----------------------------------------------------------------

WEB = {
    "socket",
    "ssl",
    "http",
    "urllib.request",
    "http.client",
    "requests",
    "httpx",
    "aiohttp",
    "urllib3",
    "websockets",
}
WEB |= {"ftplib", "smtplib", "socketserver", "xmlrpc", "huggingface_hub", "openai", "ollama"}
MAY = {  # who may speak to the network, and to whom
    "download": "the hub, when a file is asked for",
    "hub": "the hub, when it is searched",
    "remote": "the address that was given",
    "ports": "this computer, and the server that was named",
    "servers": "the same",
}


@functools.cache
def trees():
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in ROOMS}


def modules(tree):
    """Every module that a file imports anywhere, or names in `need(...)` or `import_module(...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("need", "import_module", "__import__") and node.args:
                yield from (c.value for c in ast.walk(node.args[0]) if isinstance(c, ast.Constant) and c.value)


def speaks(tree):
    """Those modules of the network that a file uses."""
    return {name for name in map(str, modules(tree)) if any(name == web or name.startswith(f"{web}.") for web in WEB)}


def test_only_these_rooms_can_speak_to_the_network():
    assert {room for room, tree in trees().items() if speaks(tree)} == set(MAY)


def hub_users(sources):
    """Rooms that use the hub's client without `download.client`, which switches its own request off."""
    for name, tree in sources.items():
        used = "huggingface_hub" in {module.split(".")[0] for module in map(str, modules(tree))}
        asked = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if used and not asked & ({"client"} if name == "download" else {"download.client"}):
            yield name


def test_whoever_uses_the_hubs_client_goes_through_the_quiet_one():
    assert list(hub_users(trees())) == []
    texts = {path.stem: path.read_text(encoding="utf-8") for path in ROOMS}
    asks = [name for name, text in texts.items() if re.search(r"need\(\s*[\"']huggingface_hub", text)]
    assert asks == ["download"], "only download.client makes the hub's client"
    for path in (ROOT / "lessons").glob("*.py"):
        assert "huggingface_hub" not in path.read_text(encoding="utf-8"), f"{path.name}: use helpers.download or hub"


@pytest.mark.parametrize(
    "line",
    ["import huggingface_hub as h; h.HfApi()", "from huggingface_hub import HfApi", 'need("huggingface_hub", "x")'],
)
def test_a_room_that_goes_around_it_is_seen(line):
    assert list(hub_users({"newcomer": ast.parse(line)})) == ["newcomer"]
    assert list(hub_users({"newcomer": ast.parse(f"from . import download\ndownload.client('x')\n{line}")})) == []


@pytest.mark.parametrize(
    "line", ["import urllib.request", "from http import client", "import socket", "need('httpx', 1)"]
)
def test_a_room_that_opens_a_way_out_is_seen(line):
    assert speaks(ast.parse(line)) and not speaks(ast.parse("import urllib.parse, json"))


# --- importing, looking, estimating: nobody is asked ----------------------------------------------------------------

QUIETLY = """
import contextlib, io, pkgutil, helpers
for room in pkgutil.iter_modules(helpers.__path__):
    if room.name not in ("engine_worker", "runner_child", "quality_child"):
        __import__("helpers." + room.name)
from helpers import doctor, download, fit, hardware, memory, models, report, stores
print(doctor.check()[-1], hardware.detect(), download.installed_models(), stores.local_models(progress=False))
needs = memory.estimate(models.get(models.names()[0]), "Q4_K_M", n_ctx=4096)
report.html(needs, hardware.Machine.pretend("laptop", 8_000_000_000))
download.client("look at its settings")
"""


@pytest.mark.slow
def test_the_doctor_the_report_and_all_imports_ask_nobody(tmp_path):
    watch = alone.Watch(tmp_path)
    environ = {**os.environ, **watch.environment, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    command = [*alone.apart(), sys.executable, "-c", QUIETLY]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert watch.foreign() == []


# --- keys stay secret ----------------------------------------------------------------

SECRETS = {name: f"canary-{name.lower().replace('_', '-')}-7d1f0c2b" for name in (
    "HF_TOKEN", "HELPERS_SERVER_KEY", "OPENAI_API_KEY", "HUGGING_FACE_HUB_TOKEN", "ANTHROPIC_API_KEY", "JUPYTER_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
)}  # fmt: skip
STORED = "hf_canaryInTheCacheFile0123456789abcdef"

TELLING = """
import contextlib, sys, traceback
from pathlib import Path
from helpers import bundle, doctor, download, fit, hardware, hub, memory, models, ports, remote, report, servers, stores
from helpers import gguf

dead = sys.argv[1]
COMMIT = "0" * 40
machine = hardware.detect()
print(machine, repr(machine), machine._repr_html_())
for line in doctor.check() if len(sys.argv) == 2 else ():
    print(line, repr(line))
needs = memory.estimate(models.get(models.names()[0]), "Q4_K_M", n_ctx=4096)
print(report.html(needs, machine))
tries = {
    "download": lambda: download.fetch("me/model", "a.gguf", COMMIT, dest="."),
    "hub search": lambda: hub.search("llama"),
    "hub files": lambda: hub.files("me/model"),
    "remote": lambda: gguf.read_header("hf://me/model/a.gguf"),
    "web": lambda: gguf.read_header(f"http://me:canary-password-7d1f0c2b@{dead}/a.gguf?sig=canary-signature-7d1f0c2b"),
    "servers": lambda: servers.ask("class", "hello"),
    "found": lambda: ports.find(),
    "stores": lambda: stores.local_models(progress=False),
    "installed": lambda: download.installed_models(),
}
for name, act in tries.items():
    try:
        print(name, repr(act()))
    except Exception as error:
        print(name, "FAILED", type(error).__name__, str(error)[:300])
        traceback.print_exc()
"""


IN_ADDRESS = {"a password": "canary-password", "a signature": "canary-signature"}


def leaks(texts, more=()):
    """(which secret, in which text) of every secret that is told."""
    wanted = {**SECRETS, "the cache's token": STORED, **dict(more)}
    return [(name, where) for where, text in texts.items() for name, secret in wanted.items() if secret in text]


@pytest.mark.slow
def test_no_message_report_or_file_tells_a_key(tmp_path):
    """Every key planted, every room asked, everything failing: the words printed, the tracebacks, the files written.

    Once with the hub client's log of all it does switched on, which names addresses whole, as was asked of it.
    """
    home, work = tmp_path / "home", tmp_path / "work"
    (home / "hf").mkdir(parents=True)
    work.mkdir()
    (home / "hf" / "token").write_text(STORED)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
    environ = {**os.environ, **SECRETS, "HOME": str(home), "HF_HOME": str(home / "hf"), "PYTHONPATH": str(ROOT)}
    environ |= {"HF_ENDPOINT": f"http://{dead}", "HELPERS_SERVER": f"http://{dead}/v1", "OLLAMA_HOST": dead}
    stored = {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "", "HF_HUB_VERBOSITY": "debug"}
    said = {}
    for name, more in {"variables": {}, "a file, with a log": stored}.items():
        command = [sys.executable, "-c", TELLING, dead, *(["short"] if more else [])]
        done = subprocess.run(command, env={**environ, **more}, cwd=work, capture_output=True, timeout=200)
        said[name] = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, said[name]
        assert said[name].count(" FAILED ") >= 5, "too little went wrong for this to prove anything:\n" + said[name]
    files = {p.name: p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file() and p.name != "token"}
    assert "report.html" in files
    assert leaks({**said, **files}) == []
    assert leaks({"variables": said["variables"], **files}, IN_ADDRESS) == []


def test_the_search_for_keys_can_fail():
    assert leaks({"a log": f"Authorization: Bearer {STORED}"}) == [("the cache's token", "a log")]


def test_no_environment_is_printed_or_written_whole():
    """`dict(os.environ)` in a message is how keys get into logs."""
    for name, tree in {**trees(), "start": ast.parse((ROOT / "start.py").read_text(encoding="utf-8"))}.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "say", "repr", "str"):
                told = {ast.unparse(part) for part in node.args}
                assert not told & {"os.environ", "dict(os.environ)", "environ"}, name
