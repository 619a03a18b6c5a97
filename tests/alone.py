"""Programs without a network, watched: every address that a Python process or its children ask for is written down.

    watch = alone.Watch(folder)
    subprocess.run([*alone.apart(), sys.executable, ...], env={**os.environ, **watch.environment})
    assert watch.foreign() == []

`apart()` puts a program into a network namespace that has a loopback device and nothing else, where the system allows
that; native code, which no Python hook sees, then has no way out either.
"""

import functools
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Python imports `sitecustomize` before anything else. `KIT_LOOPBACK` is for the first process in a new namespace,
# whose loopback device is still off.
HOOK = """
import json, os, sys

ASKED = ("connect", "connect_ex", "bind", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr")
FILE = os.environ["KIT_WATCH"]


def note(event, arguments):
    if not event.startswith("socket.") or event[7:] not in ASKED:
        return
    asked = arguments[1] if hasattr(arguments[0], "fileno") else arguments[0]
    if isinstance(asked, tuple):
        asked = asked[0]
    if isinstance(asked, bytes):
        asked = asked.decode(errors="replace")
    here = hasattr(arguments[0], "family") and arguments[0].family.name in ("AF_UNIX", "AF_NETLINK")
    line = json.dumps([event[7:], asked if asked is None else str(asked), here, " ".join(sys.argv)[:200]])
    handle = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, line.encode() + b"\\n")
    os.close(handle)


def loopback_up():
    import fcntl, socket, struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running


os.close(os.open(FILE, os.O_WRONLY | os.O_CREAT, 0o644))  # the watch is on
if os.environ.pop("KIT_LOOPBACK", ""):
    loopback_up()
sys.addaudithook(note)
"""


class Watch:
    """Where the hook lies, what to add to a program's environment, and what it wrote down."""

    def __init__(self, folder):
        self.folder = Path(folder) / "kit-watch"
        self.folder.mkdir()
        self.file = self.folder / "asked.jsonl"
        (self.folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        paths = [str(self.folder), str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
        self.environment = {"KIT_WATCH": str(self.file), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if apart():
            self.environment["KIT_LOOPBACK"] = "1"

    def asked(self):
        """[what, host or address or None, whether it cannot leave the machine, program] of each call, in order."""
        assert self.file.exists(), "the program was not watched: it did not import the hook"
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def foreign(self):
        """Those calls that go, or listen, beyond this machine, as sentences."""
        return [
            f"{what} {whom!r} by {program}"
            for what, whom, here, program in self.asked()
            if not (here or is_here(whom, listens=what == "bind"))
        ]


def is_here(host, listens=False):
    """Whether a host is this machine; to listen on every address is not."""
    if host in (None, "", "localhost"):
        return not (listens and host == "")
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@functools.cache
def apart():
    """The words before a command that take the network away from it; none where the system does not allow that."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        return ()
    for command in (("unshare", "--net"), ("unshare", "--map-root-user", "--net")):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return ()


def kernel_manager(python):
    """A Jupyter kernel that is apart and watched: spoken to through files, which need no network."""
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = python
    if apart():
        manager.kernel_spec.argv[:0] = apart()
        manager.transport = "ipc"
        manager.kit_folder = tempfile.TemporaryDirectory(prefix="kit-")  # removed with the manager
        manager.ip = str(Path(manager.kit_folder.name) / "k")  # a socket's path has at most 107 letters
    return manager
