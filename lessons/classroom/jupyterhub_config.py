"""JupyterHub for a class on one machine; `classroom.md` beside this file says how to start it and what it is not.

Everything listens on this computer only (127.0.0.1), and nobody comes in without the password of the class.
"""

import importlib.util
import os
import secrets
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers import classroom, hardware

c = get_config()  # noqa: F821

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("CLASSROOM_FOLDER") or Path.home() / "classroom").resolve()
PORT = int(os.environ.get("CLASSROOM_PORT") or 8000)
MODEL = os.environ.get("CLASSROOM_MODEL") or "smollm2-135m"

spec = importlib.util.spec_from_file_location("kit_start", ROOT / "start.py")
start = importlib.util.module_from_spec(spec)
spec.loader.exec_module(start)


def class_password():
    """The password of the class, made at the first start; only the owner of the file can read it."""
    path = FOLDER / "password"
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(12))
    return path.read_text(encoding="utf-8").strip()


def prepare(spawner):
    """Hand the lessons out, never over a learner's work, and keep Jupyter's files in the learner's own folder."""
    home = FOLDER / "homes" / spawner.user.name
    (home / "lessons").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "lessons" / "glossary.md", home / "lessons" / "glossary.md")
    for line in start.hand_out(ROOT / "notebooks", home / "my-lessons"):
        spawner.log.info("%s: %s", spawner.user.name, line)
    start.configure_lab(home)
    own = {"JUPYTER_CONFIG_DIR": home / ".jupyter" / "config", "IPYTHONDIR": home / ".jupyter" / "ipython"}
    spawner.environment = {**spawner.environment, **{name: str(path) for name, path in own.items()}}


FOLDER.mkdir(parents=True, exist_ok=True)
needed = classroom.needs(*classroom.choose(MODEL))
free_bytes = hardware.detect().ram_available_bytes

# --- who may come in, and where the door is ---
c.JupyterHub.bind_url = f"http://127.0.0.1:{PORT}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{PORT + 1}"
# The proxy of Node.js, or its port to Python, which pip puts beside this Python.
c.ConfigurableHTTPProxy.command = shutil.which("configurable-http-proxy") or str(
    Path(sys.executable).with_name("configurable-http-proxy")
)
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{PORT + 2}"
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = class_password()
c.Authenticator.allow_all = True  # any name, with the password of the class
c.Authenticator.username_pattern = r"[a-z0-9][a-z0-9_-]{0,31}\Z"  # a name becomes a folder

# --- what is kept, and where ---
c.JupyterHub.db_url = f"sqlite:///{FOLDER / 'hub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(FOLDER / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(FOLDER / "proxy.pid")

# --- one learner ---
# "simple" runs every learner as the user who started the hub: no wall between them, and no limit is enforced.
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = str(FOLDER / "homes" / "{username}")
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.ip = "127.0.0.1"
c.Spawner.default_url = "/lab/tree/my-lessons/00_start_here.ipynb"
c.Spawner.args = [
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--MappingKernelManager.cull_idle_timeout=7200",  # a kernel left alone for two hours gives its memory back
]
c.Spawner.environment = {
    "PYTHONPATH": str(ROOT),
    **{name: os.environ[name] for name in ("HELPERS_SERVER", "HELPERS_SERVER_KEY") if name in os.environ},
}
# Not enforced here, but the kit reads it: else every model takes all threads, and ten of them fight for the same ones.
c.Spawner.cpu_limit = classroom.CPU_LIMIT
# No mem_limit: the kit would believe it, and count the models of all learners against the limit of one.
c.Spawner.pre_spawn_hook = prepare

# --- all learners ---
# What keeps the memory from running out: so many may have a server at the same time.
c.JupyterHub.active_server_limit = max(1, classroom.by_memory(free_bytes, needed))
c.JupyterHub.concurrent_spawn_limit = 30
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
