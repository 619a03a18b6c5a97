"""This machine, as a language model would find it: memory, processor, graphics cards, and the limits around them.

Every value carries its `.source`, because in containers and on shared servers the obvious number is the wrong one.
`detect` never raises. What it could not find is a sentence in `Machine.notes`, and everything can be overridden.

Run `python -m helpers.hardware` to print the table.
"""

from __future__ import annotations

import difflib
import functools
import html
import operator
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers import units
from helpers.need import MissingPackage, need

YOU = "you said so"
UNLIMITED_BYTES = 2**60  # cgroup v1 writes "no limit" as 2^63 less one page, and pages differ in size
READ_AT_MOST_BYTES = 4 * units.MIB
COUNTS = ("cpu_threads", "cpu_physical_cores")
NUMBERS = ("ram_total_bytes", "ram_available_bytes", "ram_physical_bytes", "swap_free_bytes", *COUNTS, "vram_bytes")
FLAGS_TO_SHOW = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8"),
    *("neon", "asimddp", "i8mm", "sve"),
)


class _Sourced:
    def __new__(cls, value, source=""):
        self = super().__new__(cls, value)
        self.source = source
        return self


class Reading(_Sourced, int):
    """A whole number that says how it was found.

    >>> free = Reading(4096, "counted by hand")
    >>> free + 1, free.source
    (4097, 'counted by hand')
    """


class Word(_Sourced, str):
    """Text that says how it was found.

    >>> Word("linux", "asked Python").source
    'asked Python'
    """


class Flags(_Sourced, frozenset):
    """A set of words that says how it was found.

    >>> "avx2" in Flags(["avx2"], "/proc/cpuinfo")
    True
    """


@dataclass(frozen=True)
class Gpu:
    """One graphics card, or one slice of it. `unified` means its memory is the machine's own RAM, not extra memory."""

    name: str
    vram_total_bytes: Reading
    vram_free_bytes: Reading
    backend: str
    unified: bool = False
    source: str = ""


@dataclass(frozen=True, repr=False)
class Machine:
    """What one process may use here, each value with its `.source`.

    *When it misleads*: "free" is a photograph. Another program may take the memory a second later, and a limit set by
    a server that hides it from its guests cannot be seen from inside.

    >>> laptop = Machine.pretend("laptop", ram_available_bytes=4_000_000_000, ram_total_bytes=8_000_000_000)
    >>> laptop.ram_available_bytes, laptop.ram_available_bytes.source
    (4000000000, 'you said so')
    """

    ram_total_bytes: Reading
    ram_available_bytes: Reading
    ram_physical_bytes: Reading
    swap_free_bytes: Reading
    cpu_threads: Reading
    cpu_physical_cores: Reading
    cpu_name: Word
    cpu_flags: frozenset[str]
    gpus: tuple[Gpu, ...] = ()
    unified_memory: bool = False
    environments: tuple[str, ...] = ()
    system: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def pretend(cls, name, ram_available_bytes, ram_total_bytes=None, vram_bytes=0, cpu_threads=4):
        """An imagined machine, to ask "and on my neighbour's laptop?".

        >>> Machine.pretend("old PC", 2_000_000_000, vram_bytes=1_000_000_000).gpus[0].backend
        'pretend'
        """
        total = ram_available_bytes if ram_total_bytes is None else ram_total_bytes
        if not 0 <= ram_available_bytes <= total:
            raise ValueError(
                f"A machine cannot have {ram_available_bytes} bytes of RAM free out of {total}. "
                f"Give ram_available_bytes from 0 to ram_total_bytes."
            )
        if vram_bytes < 0 or cpu_threads < 1:
            raise ValueError(
                f"vram_bytes={vram_bytes} and cpu_threads={cpu_threads} describe no machine. "
                f"Give vram_bytes of 0 or more and cpu_threads of 1 or more."
            )
        return cls(
            ram_total_bytes=Reading(total, YOU),
            ram_available_bytes=Reading(ram_available_bytes, YOU),
            ram_physical_bytes=Reading(total, YOU),
            swap_free_bytes=Reading(0, YOU),
            cpu_threads=Reading(cpu_threads, YOU),
            cpu_physical_cores=Reading(cpu_threads, YOU),
            cpu_name=Word(name, YOU),
            cpu_flags=Flags((), YOU),
            gpus=_said_gpu(Reading(vram_bytes, YOU), ()),
            system=Word("imagined", YOU),
        )

    @property
    def repack(self):
        """Which second copy of weights llama.cpp's stock CPU build would make here: "", "avx2", "avx512", "amx", "arm".

        >>> Machine.pretend("laptop", 4_000_000_000).repack
        ''
        """
        if "amx_int8" in self.cpu_flags:
            return "amx"
        if "avx512f" in self.cpu_flags:
            return "avx512"
        if "avx2" in self.cpu_flags:
            return "avx2"
        return "arm" if self.cpu_flags & {"asimddp", "dotprod", "i8mm"} else ""

    def rows(self):
        """The table behind `print(machine)`: (what, value, how we know), all text."""
        shown_flags = " ".join(flag for flag in FLAGS_TO_SHOW if flag in self.cpu_flags)
        rows = [
            ("RAM this process may use", units.show(self.ram_total_bytes), _source(self.ram_total_bytes)),
            ("RAM free right now", units.show(self.ram_available_bytes), _source(self.ram_available_bytes)),
            ("RAM in the machine", units.show(self.ram_physical_bytes), _source(self.ram_physical_bytes)),
            ("Swap free", units.show(self.swap_free_bytes), _source(self.swap_free_bytes)),
            ("CPU threads to use", str(int(self.cpu_threads)), _source(self.cpu_threads)),
            ("CPU cores", str(int(self.cpu_physical_cores)), _source(self.cpu_physical_cores)),
            ("CPU", self.cpu_name or "unknown", _source(self.cpu_name)),
            ("CPU features", shown_flags or "none of interest", _source(self.cpu_flags)),
            ("CPU repacking", self.repack or "none", "follows from the CPU features"),
        ]
        for gpu in self.gpus:
            memory = f"{units.show(gpu.vram_free_bytes)} free of {units.show(gpu.vram_total_bytes)}"
            shared = ", shared with RAM" if gpu.unified else ""
            rows.append((f"GPU ({gpu.backend})", f"{gpu.name}: {memory}{shared}", gpu.source))
        if not self.gpus:
            rows.append(("GPU", "none found", "no driver named one"))
        rows += [("Environment", name, _source(name)) for name in self.environments]
        return [*rows, ("System", str(self.system), _source(self.system))]

    def __str__(self):
        rows = [("What", "Value", "How we know"), *self.rows()]
        left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{what:<{left}}  {value:<{middle}}  {source}".rstrip() for what, value, source in rows]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    __repr__ = __str__  # beside the HTML, a notebook stores repr() as the plain text

    def _repr_html_(self):
        head = "".join(f"<th scope='col' style='text-align:left'>{t}</th>" for t in ("What", "Value", "How we know"))
        cell = "<td style='text-align:left'>{}</td>"
        body = "".join(
            f"<tr><th scope='row' style='text-align:left'>{html.escape(what)}</th>"
            f"{cell.format(html.escape(value))}{cell.format(html.escape(source))}</tr>"
            for what, value, source in self.rows()
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = f"<table><caption>This machine</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return table + (f"<ul>{notes}</ul>" if notes else "")


def _source(value):
    return getattr(value, "source", "")


# ---------------------------------------------------------------- the world, passed in


@dataclass(frozen=True)
class World:
    """Every way this room can look outside, so that a test can hand in another machine."""

    root: Path
    env: Mapping[str, str]
    run: Callable[[list[str]], str]
    nvml: Callable[[], object]
    psutil: Callable[[], object]
    system: str
    machine: str
    affinity: Callable[[], Reading | None]
    windows: object
    notes: list[str] = field(default_factory=list)

    def read(self, path):
        """The text of a file under `root`, or "" for any reason it cannot be read."""
        try:
            place = self.root / path.lstrip("/")
            if not place.is_file():
                return ""
            with place.open("rb") as file:
                return file.read(READ_AT_MOST_BYTES).decode(errors="replace")
        except (OSError, ValueError):
            return ""

    def number(self, path):
        return _whole(self.read(path))

    def exists(self, path):
        return os.path.exists(self.root / path.lstrip("/"))  # unlike Path.exists, it never raises

    def folder(self, path):
        try:
            return sorted(entry.name for entry in (self.root / path.lstrip("/")).iterdir())
        except (OSError, ValueError):
            return []

    def note(self, sentence):
        sentence = _clean(sentence, 500)
        if sentence not in self.notes:
            self.notes.append(sentence)

    def attempt(self, what, default, ask, *arguments):
        """What `ask` returns, or `default` and a note: drivers and odd systems fail in ways nobody can list."""
        try:
            return ask(*arguments)
        except Exception as error:
            self.note(
                f"Looking for {what} failed ({type(error).__name__}: {error}); "
                "if it matters, say it yourself, as help(hardware.detect) shows."
            )
            return default


def _run(command):
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=10,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    return done.stdout.decode(errors="replace")  # also after a failure: nvidia-smi explains itself on stdout


def _import(module, purpose):
    try:
        return need(module, purpose)
    except MissingPackage:
        return None


def _affinity():
    if hasattr(os, "sched_getaffinity"):
        return Reading(len(os.sched_getaffinity(0)), "affinity: the CPUs this process may run on")
    return Reading(os.cpu_count() or 0, "os.cpu_count()")


def _remember(run):
    """`run`, asking each question once and turning any failure into no answer."""
    answers = {}

    def ask(command):
        key = tuple(command)
        if key not in answers:
            try:
                answers[key] = run(command) or ""
            except Exception:
                answers[key] = ""
        return answers[key]

    return ask


def _module(given, real, name, purpose):
    if given is not _ASK:
        return lambda: given
    return functools.cache(lambda: _import(name, purpose) if real else None)


class _Windows:
    """The three questions only Windows can answer."""

    def memory(self):
        """(RAM, free RAM, memory that may still be promised) in bytes."""
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
                (name, ctypes.c_uint64)
                for name in ("total", "free", "commit_total", "commit_free", "virtual", "virtual_free", "extended")
            ]

        status = Status(length=ctypes.sizeof(Status))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise OSError("GlobalMemoryStatusEx gave no answer")
        return status.total, status.free, status.commit_free

    def feature(self, number):
        import ctypes

        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(number))

    def registry(self, key, value):
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
                return winreg.QueryValueEx(opened, value)[0]
        except OSError:
            return None


_ASK = object()


def _world(root, env, run=None, nvml=_ASK, psutil=_ASK, system=None, machine=None, affinity=None, windows=None):
    root = Path(root)
    real = root == Path("/")  # under another root, nothing of this machine may leak in
    system = system or (platform.system() if real else "Linux")
    if windows is None and real and system == "Windows":
        windows = _Windows()
    return World(
        root=root,
        env=os.environ if env is None else env,
        run=_remember(run or (_run if real else lambda command: "")),
        nvml=_module(nvml, real, "pynvml", "ask the NVIDIA driver"),
        psutil=_module(psutil, real, "psutil", "read memory and cores"),
        system=system,
        machine=(machine or (platform.machine() if real else "x86_64")).lower(),
        affinity=affinity or (_affinity if real else lambda: None),
        windows=windows,
    )


def detect(overrides=None, root=Path("/"), env=None, **world):
    """This machine, each value with its source; never raises.

    Parameters
    ----------
    overrides : dict, optional
        Values to believe instead of looking, by the name of the `Machine` field, or `vram_bytes`. The environment
        variables HELPERS_RAM_TOTAL_BYTES, HELPERS_RAM_AVAILABLE_BYTES, HELPERS_CPU_THREADS, HELPERS_VRAM_BYTES
        (and the other numbers, named alike) do the same; the argument wins.
    root, env, run, nvml, psutil, system, machine, affinity, windows
        The world: where `/proc` and `/sys` are, the environment, a function that runs a program and returns its
        output, the modules pynvml and psutil (None: missing), `platform.system()` and `platform.machine()`, a function
        that counts the CPUs this process may run on, and the Windows calls. Tests pass other machines here.

    *When it misleads*: `ram_total_bytes` is a limit, not a promise; read `ram_available_bytes` before loading.

    >>> detect({"ram_available_bytes": 1_000_000_000}).ram_available_bytes.source
    'you said so'
    """
    world = _world(root, env, **world)
    said = _overrides(world, overrides)
    environments = world.attempt("the environment", (), _environments, world)
    physical = world.attempt("RAM", None, _ram_physical, world) or Reading(0, "not found")
    physical = said.get("ram_physical_bytes", physical)
    total, available = world.attempt("RAM limits", (physical, physical), _ram, world, said, physical)
    if not total:
        world.note("How much RAM there is could not be found: set HELPERS_RAM_TOTAL_BYTES to the number of bytes.")
    swap = world.attempt("swap", None, _swap, world)
    flags = world.attempt("CPU features", None, _cpu_flags, world) or Flags((), "not found")
    gpus = world.attempt("GPUs", (), _gpus, world, total, available, "docker" in environments)
    name = world.attempt("the CPU's name", None, _cpu_name, world) or Word("", "not found")
    if "vram_bytes" in said:
        gpus = _said_gpu(said["vram_bytes"], gpus)
    gpus = said.get("gpus", gpus)
    machine = Machine(
        ram_total_bytes=total,
        ram_available_bytes=available,
        ram_physical_bytes=physical,
        swap_free_bytes=said.get("swap_free_bytes", Reading(0, "not found") if swap is None else swap),
        cpu_threads=said.get("cpu_threads") or world.attempt("CPU threads", Reading(1, "not found"), _threads, world),
        cpu_physical_cores=said.get("cpu_physical_cores")
        or world.attempt("CPU cores", Reading(1, "not found"), _physical_cores, world),
        cpu_name=Word(_clean(name), name.source),
        cpu_flags=flags,
        gpus=gpus,
        unified_memory=any(gpu.unified for gpu in gpus),
        environments=environments,
        system=Word(world.system, "platform.system()"),
    )
    words = {name: value for name, value in said.items() if name in WORDS}
    world.attempt("remarks", None, _remarks, world, machine)
    return replace(machine, **words, notes=tuple(world.notes))


# ---------------------------------------------------------------- what you said


def _overrides(world, overrides):
    """{field: value with source} from the environment and the argument; nonsense becomes a note."""
    said = {}
    for name in NUMBERS:
        variable = f"HELPERS_{name.upper()}"
        if variable in world.env:
            _believe(world, said, name, world.env[variable], variable)
    for name, value in world.attempt("overrides", {}, dict, overrides or {}).items():
        world.attempt(f"the override {name!r}", None, _take_override, world, said, name, value)
    return said


WORDS = {  # what can be said besides the numbers, and what it becomes
    "cpu_flags": lambda flags: Flags((str(flag).lower() for flag in flags), YOU),
    "cpu_name": lambda name: Word(name, YOU),
    "system": lambda name: Word(name, YOU),
    "gpus": tuple,
    "environments": tuple,
    "unified_memory": bool,
}


def _take_override(world, said, name, value):
    if name in NUMBERS:
        _believe(world, said, name, value, YOU)
    elif name in WORDS:
        said[name] = WORDS[name](value)
    else:
        near = difflib.get_close_matches(str(name), [*NUMBERS, *WORDS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join([*NUMBERS, *WORDS])}."
        world.note(f"The override {name!r} is not a field of Machine and was ignored; {hint}")


def _believe(world, said, name, value, source):
    least = 1 if name in COUNTS else 0
    number = _whole(value)
    if number is None or number < least:
        unit = "count" if name in COUNTS else "number of bytes"
        world.note(f"{source}: {name} = {value!r} is not a {unit} of {least} or more, so it was ignored.")
    else:
        said[name] = Reading(number, source)


def _whole(value):
    """The whole number in `value`, or None.

    >>> _whole(" 42\\n"), _whole("max"), _whole("4.5"), _whole(None)
    (42, None, None, None)
    """
    try:
        number = int(value.strip()) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 2**64 else None  # no machine says that; nonsense must not reach the arithmetic


def _said_gpu(vram, found):
    """The GPUs after someone said how much video memory there is: none for 0, else the first one found, corrected."""
    if not vram:
        return ()
    card = found[0] if found else Gpu("a GPU you described", vram, vram, "pretend")
    return (replace(card, vram_total_bytes=vram, vram_free_bytes=vram, source=vram.source),)


# ---------------------------------------------------------------- memory


def _meminfo(world):
    """{name: bytes} of /proc/meminfo."""
    lines = re.findall(r"^(\w+):\s+(\d{1,15})\s*kB", world.read("/proc/meminfo"), re.M)
    return {name: int(kib) * units.KIB for name, kib in lines}


def _ram_physical(world):
    kernel = _meminfo(world).get("MemTotal")
    if kernel:
        return Reading(kernel, "/proc/meminfo MemTotal")
    if world.psutil():
        return Reading(world.psutil().virtual_memory().total, "psutil")
    if world.system == "Darwin":
        memory = _whole(_sysctl(world).get("hw.memsize"))
        return memory and Reading(memory, "sysctl hw.memsize")
    if world.windows:
        return Reading(world.windows.memory()[0], "GlobalMemoryStatusEx")
    return _browser_ram(world) if world.system == "Emscripten" else None


def _browser_ram(world):
    """What a page may know of the computer: rounded and capped by the browser, in some nothing."""
    world.note("Python runs in a browser page, which cannot see this computer's RAM: say what you have.")
    js = _import("js", "ask the browser")
    told = getattr(getattr(js, "navigator", None), "deviceMemory", None)
    if told:
        return Reading(told * units.GIB, "navigator.deviceMemory, which browsers round and cap")
    return Reading(8 * units.GIB, "assumed: this browser does not tell")


def _ram_free(world):
    """Free RAM of the whole machine, before any limit."""
    memory = _meminfo(world)
    if "MemAvailable" in memory:
        return Reading(memory["MemAvailable"], "/proc/meminfo MemAvailable")
    if "MemFree" in memory:  # kernels before 3.14 do not estimate it themselves
        free = sum(memory.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
        return Reading(free, "/proc/meminfo MemFree + Buffers + Cached")
    if world.psutil():
        return Reading(world.psutil().virtual_memory().available, "psutil")
    if world.system == "Darwin":
        return _vm_stat_free(world)
    if world.windows:
        return Reading(world.windows.memory()[1], "GlobalMemoryStatusEx")
    return None


def _ram(world, said, physical):
    """(limit, free under that limit): the tightest of the machine, every control group above us, and MEM_LIMIT."""
    free_here = world.attempt("free RAM", None, _ram_free, world)
    totals, frees = [physical] if physical else [], [] if free_here is None else [free_here]
    for limit, free in world.attempt("cgroup memory limits", [], _memory_limits, world):
        totals.append(limit)
        frees.append(free)
    hub = _whole(world.env.get("MEM_LIMIT"))
    if hub and hub > 0:
        totals.append(Reading(hub, "MEM_LIMIT (set by JupyterHub; advisory)"))
        left = max(hub - _own_resident_bytes(world), 0)
        frees.append(Reading(left, "MEM_LIMIT (advisory) less this process; its neighbours are not counted"))
    total = min(totals, default=physical)
    free = min(frees, default=Reading(total, f"not found; taken as all of it ({total.source})"))
    if "ram_total_bytes" in said:
        total = said["ram_total_bytes"]
    if "ram_available_bytes" in said:
        free = said["ram_available_bytes"]
        if free > total and "ram_total_bytes" not in said:
            total = Reading(free, f"at least the free RAM ({free.source})")
    if free > total:
        free = Reading(total, f"no more than the limit ({total.source})")
    return total, free


def _own_resident_bytes(world):
    found = re.search(r"^VmRSS:\s+(\d{1,15}) kB", world.read("/proc/self/status"), re.M)
    return int(found[1]) * units.KIB if found else 0


def _swap(world):
    memory = _meminfo(world)
    if "SwapFree" in memory:
        in_ram = _compressed_swap_free(world)
        source = "/proc/meminfo SwapFree" + (" less zram, which is RAM" if in_ram else "")
        free = Reading(max(memory["SwapFree"] - in_ram, 0), source)
        return min([free, *world.attempt("cgroup swap limits", [], _swap_limits, world)])
    if world.psutil():
        return Reading(world.psutil().swap_memory().free, "psutil")
    if world.system == "Darwin":
        found = re.search(r"free = (\d{1,12})[.,](\d\d)M", _sysctl(world).get("vm.swapusage", ""))  # "," in German
        free = found and int(found[1] + found[2]) * units.MIB // 100
        return found and Reading(free, "sysctl vm.swapusage (macOS adds more when needed)")
    if world.windows:
        _, free, commit = world.windows.memory()
        return Reading(max(commit - free, 0), "GlobalMemoryStatusEx (commit limit less free RAM)")
    return None


def _compressed_swap_free(world):
    """Bytes of free swap that lie compressed in the RAM itself, as Fedora and Chromebooks set it up."""
    rows = re.findall(r"^/dev/zram\d+\s+\w+\s+(\d{1,15})\s+(\d{1,15})\s", world.read("/proc/swaps"), re.M)
    return sum(int(size) - int(used) for size, used in rows) * units.KIB


# ---------------------------------------------------------------- control groups (containers, hubs, clusters)


def _cgroup_folders(world, controller):
    """[(version, folder)] from this process's own control group up to the root of what is visible.

    The limit that kills may sit on any ancestor: a pod, a user's slice, a whole hub.
    """
    lines = [line.split(":", 2) for line in world.read("/proc/self/cgroup").splitlines()]
    lines = [line for line in lines if len(line) == 3] or [["0", "", "/"], ["1", controller, "/"]]
    folders = []
    for _, controllers, path in lines:
        version = 1 if controllers else 2
        if version == 1 and controller not in controllers.split(","):
            continue
        for mounted_at, mounted_from in _cgroup_mounts(world, version, controller):
            parts, hidden = _parts(path), _parts(mounted_from)
            if parts[: len(hidden)] == hidden:  # only a part of the tree is mounted: `docker --cgroupns host`, v1
                parts = parts[len(hidden) :]
            for depth in range(len(parts), -1, -1):
                folder = "/".join([mounted_at.rstrip("/"), *parts[:depth]])
                if (version, folder) not in folders:
                    folders.append((version, folder))
    return folders


def _parts(path):
    """Folder names of a cgroup path; "/.." means "outside of what this container sees", so it is left out.

    >>> _parts("/../system.slice/job")
    ['system.slice', 'job']
    """
    return [part for part in path.split("/") if part not in ("", ".", "..")]


def _cgroup_mounts(world, version, controller):
    """[(where it is mounted, which part of the tree)] for one version and controller."""
    mounts = []
    for line in world.read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        before, after = before.split(), after.split()
        if len(before) < 5 or len(after) < 3:
            continue
        options = after[2].split(",")
        if after[0] == "cgroup2" and version == 2 or after[0] == "cgroup" and version == 1 and controller in options:
            mounts.append((_plain(before[4]), _plain(before[3])))
    if mounts:
        return mounts
    usual = ("unified", "") if version == 2 else (controller, "cpu,cpuacct" if controller == "cpu" else controller)
    return [(f"/sys/fs/cgroup/{name}", "/") for name in dict.fromkeys(usual)]


def _plain(text):
    r"""A path of mountinfo, where a space is written \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _memory_limits(world):
    """[(limit, free under it)] for every control group above us that has a limit."""
    found = []
    for version, folder in _cgroup_folders(world, "memory"):
        used, stat = _cgroup_used(world, version, folder)
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        limits = [(name, world.number(f"{folder}/{name}")) for name in names]
        if version == 1:  # the kernel sums up ancestors here, even those outside of what is mounted
            limits.append(("memory.stat hierarchical_memory_limit", stat.get("hierarchical_memory_limit")))
        for name, limit in limits:
            if limit is None or not 0 < limit < UNLIMITED_BYTES:
                continue
            place = f"cgroup v{version} {_short(folder)}/{name}"
            free = Reading(max(limit - used, 0), f"{place} less use, file cache not counted")
            found.append((Reading(limit, place), free))
    return found


def _cgroup_used(world, version, folder):
    """(bytes in use that cannot simply be dropped, memory.stat): cached files leave when memory is needed."""
    stat = dict(re.findall(r"^(\w+) (\d{1,20})$", world.read(f"{folder}/memory.stat"), re.M))
    stat = {name: int(value) for name, value in stat.items()}
    usage = world.number(f"{folder}/memory.{'current' if version == 2 else 'usage_in_bytes'}") or 0
    cache = 0
    for name in ("inactive_file", "active_file"):  # in v1 only the total_ lines include the children, as usage does
        cache += stat.get(f"total_{name}", stat.get(name, 0)) if version == 1 else stat.get(name, 0)
    return max(usage - cache, 0), stat


def _swap_limits(world):
    found = []
    for version, folder in _cgroup_folders(world, "memory"):
        if version == 2:
            limit, used = (world.number(f"{folder}/memory.swap.{name}") for name in ("max", "current"))
            name = "memory.swap.max"
        else:  # v1 limits memory and swap together
            both, memory = (world.number(f"{folder}/memory.{n}limit_in_bytes") for n in ("memsw.", ""))
            limit = both - memory if both and memory and both < UNLIMITED_BYTES else None
            used = _cgroup_used(world, version, folder)[1].get("total_swap", 0)
            name = "memory.memsw.limit_in_bytes less memory.limit_in_bytes"
        if limit is not None and 0 <= limit < UNLIMITED_BYTES:
            found.append(Reading(max(limit - (used or 0), 0), f"cgroup v{version} {_short(folder)}/{name}"))
    return found


def _short(folder):
    """A cgroup folder with its long identifiers cut.

    >>> _short("/sys/fs/cgroup/docker/0123456789abcdef0123456789abcdef")
    '/sys/fs/cgroup/docker/0123456789ab...'
    """
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{12,}", r"\1...", folder)


# ---------------------------------------------------------------- processor


def _threads(world):
    """How many threads are worth starting: more than the quota allows only take turns."""
    found = [world.attempt("CPU affinity", None, _allowed_cpus, world)]
    found.append(_listed_cpus(world))
    found += world.attempt("CPU quotas", [], _quotas, world)
    hub = _decimal(world.env.get("CPU_LIMIT"))
    if hub and hub > 0:
        found.append(_rounded_down(hub, "CPU_LIMIT (set by JupyterHub; advisory)"))
    if world.system == "Darwin":
        cpus = _whole(_sysctl(world).get("hw.logicalcpu"))
        found.append(cpus and Reading(cpus, "sysctl hw.logicalcpu"))
    if world.system == "Windows" and world.psutil():
        cpus = world.attempt("CPU affinity", (), lambda: world.psutil().Process().cpu_affinity())
        found.append(Reading(len(cpus), "psutil cpu_affinity()"))
    found = [reading for reading in found if reading and reading > 0]
    if not found:
        world.note("How many CPU threads there are could not be found: set HELPERS_CPU_THREADS.")
    return min(found, default=Reading(1, "not found; one is always there"))


def _allowed_cpus(world):
    count = world.affinity()
    if count:
        return count
    listed = re.search(r"^Cpus_allowed_list:\s*([\d,-]{1,4000})$", world.read("/proc/self/status"), re.M)
    return listed and Reading(_count_list(listed[1]), "/proc/self/status Cpus_allowed_list")


def _count_list(text):
    """How many CPUs a kernel list names.

    >>> _count_list("0-3,8")
    5
    """
    ends = [part.split("-") for part in text.split(",") if part]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


def _listed_cpus(world):
    count = len(re.findall(r"^processor\s*\d*\s*:", world.read("/proc/cpuinfo"), re.M))
    return count and Reading(count, "/proc/cpuinfo")


def _quotas(world):
    found = []
    for version, folder in _cgroup_folders(world, "cpu"):
        if version == 2:
            name, words = "cpu.max", world.read(f"{folder}/cpu.max").split()
        else:
            name = "cpu.cfs_quota_us"
            words = [world.read(f"{folder}/cpu.cfs_{part}_us").strip() for part in ("quota", "period")]
        quota, period = (_whole(word) for word in (words if len(words) == 2 else ("", "")))
        if quota and period and quota > 0 and period > 0:
            found.append(_rounded_down(quota / period, f"cgroup v{version} {_short(folder)}/{name}"))
    return found


def _rounded_down(cpus, place):
    """A quota of 1.5 CPUs keeps one thread busy, and makes a second one wait half of the time."""
    return Reading(max(int(cpus), 1), f"{place}: {cpus:g} CPUs, rounded down, at least 1")


def _decimal(text):
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1e6 else None


def _physical_cores(world):
    text = world.read("/proc/cpuinfo")
    sockets, cores = (re.findall(rf"^{name}\s*:\s*(\d+)$", text, re.M) for name in ("physical id", "core id"))
    if cores and len(cores) == len(sockets):
        return Reading(len(set(zip(sockets, cores, strict=True))), "/proc/cpuinfo core id")
    cpus = [name for name in world.folder("/sys/devices/system/cpu") if re.fullmatch(r"cpu\d+", name)]
    siblings = {world.read(f"/sys/devices/system/cpu/{cpu}/topology/thread_siblings_list") for cpu in cpus} - {""}
    if siblings:
        return Reading(len(siblings), "/sys/devices/system/cpu thread_siblings_list")
    if world.system == "Darwin":
        cores = _whole(_sysctl(world).get("hw.physicalcpu"))
        if cores:
            return Reading(cores, "sysctl hw.physicalcpu")
    counted = world.psutil() and world.psutil().cpu_count(logical=False)  # None on some machines
    if counted:
        return Reading(counted, "psutil")
    threads = _listed_cpus(world) or world.attempt("CPU affinity", None, _allowed_cpus, world) or Reading(1)
    return Reading(threads, "as many as CPUs: cores could not be told from threads")


def _cpu_name(world):
    text = world.read("/proc/cpuinfo")
    for name in ("model name", "Model", "Hardware", "uarch", "cpu model", "cpu"):
        found = re.search(rf"^{name}\s*:[ \t]*(\S.*)$", text, re.M)
        if found:
            return Word(found[1], f"/proc/cpuinfo {name}")
    board = world.read("/proc/device-tree/model")
    if board:
        return Word(board, "/proc/device-tree/model")
    maker, part = (re.search(rf"^CPU {name}\s*:\s*(0x\w+)$", text, re.M) for name in ("implementer", "part"))
    if maker and part:
        return Word(f"ARM processor, maker {maker[1]}, part {part[1]}", "/proc/cpuinfo")
    if world.system == "Darwin":
        brand = _sysctl(world).get("machdep.cpu.brand_string")
        return brand and Word(brand, "sysctl machdep.cpu.brand_string")
    if world.windows:
        key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        brand = world.attempt("the CPU's name", None, world.windows.registry, key, "ProcessorNameString")
        if brand:
            return Word(brand, "registry ProcessorNameString")
    identifier = world.env.get("PROCESSOR_IDENTIFIER", "")
    return identifier and Word(identifier, "PROCESSOR_IDENTIFIER")


def _clean(text, at_most=80):
    """One line of printable characters: names come from files and drivers, and are shown.

    >>> _clean("GeForce\\x1b[31m RTX\\x00\\n")
    'GeForce[31m RTX'
    """
    return "".join(letter for letter in text if letter.isprintable()).strip()[:at_most]


def _cpu_flags(world):
    found = re.search(r"^(flags|Features|features|isa)\s*:(.*)$", world.read("/proc/cpuinfo"), re.M)
    if found:
        flags = set(found[2].lower().split())
        if "asimd" in flags:  # the 64-bit name of what everybody calls neon
            flags.add("neon")
        return Flags(flags, f"/proc/cpuinfo {found[1]}")
    if world.system == "Darwin":
        return _mac_flags(world)
    if world.windows:  # numbers from winnt.h, PF_*; there is none for AMX
        numbers = {"avx": 39, "avx2": 40, "avx512f": 41, "neon": 19, "asimddp": 43}
        return Flags((n for n, k in numbers.items() if world.windows.feature(k)), "IsProcessorFeaturePresent")
    return None


# ---------------------------------------------------------------- macOS

_SYSCTL = [
    *("hw.memsize", "hw.physicalcpu", "hw.logicalcpu", "vm.swapusage", "iogpu.wired_limit_mb"),
    *("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features", "sysctl.proc_translated"),
    *("hw.optional.arm64", "hw.optional.arm.FEAT_I8MM"),
]


def _sysctl(world):
    """{name: value}; names this macOS does not know are missing."""
    text = world.run(["sysctl", *_SYSCTL]) or world.run(["/usr/sbin/sysctl", *_SYSCTL]) or ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs if value}


def _vm_stat_free(world):
    text = world.run(["vm_stat"]) or ""
    page = re.search(r"page size of (\d{1,9}) bytes", text)
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d{1,15})", text, re.M)
    if page and pages:
        return Reading(sum(map(int, pages)) * int(page[1]), "vm_stat free + inactive + speculative")
    return None


def _mac_flags(world):
    answers = _sysctl(world)
    names = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
    flags = set(" ".join(answers.get(name, "") for name in names).lower().split())
    if world.machine == "arm64":  # a translated Python runs code for Intel only
        flags |= {"neon", "asimddp"}  # since the first of them, the M1
        if answers.get("hw.optional.arm.FEAT_I8MM") == "1":
            flags.add("i8mm")
    return Flags(flags, "sysctl machdep.cpu, hw.optional.arm")


def _apple_silicon(world):
    return world.machine == "arm64" or _sysctl(world).get("hw.optional.arm64") == "1"


def _apple_gpus(world, total, available):
    if not _apple_silicon(world):
        return []
    set_by_hand = _whole(_sysctl(world).get("iogpu.wired_limit_mb")) or 0
    if set_by_hand > 0:
        cap, source = set_by_hand * units.MIB, "sysctl iogpu.wired_limit_mb"
    else:  # Metal was seen to allow 65 to 75 %, by model and macOS version
        small = total <= 36 * units.GIB
        cap = total * 2 // 3 if small else total * 3 // 4
        source = f"macOS default, about {'two thirds' if small else 'three quarters'} of RAM (assumed, not asked)"
    cap = min(cap, total)
    free = Reading(min(cap, available), f"{source}; and no more than the free RAM")
    name = _sysctl(world).get("machdep.cpu.brand_string", "Apple Silicon")
    return [Gpu(f"{name} GPU", Reading(cap, source), free, "metal", unified=True, source=source)]


# ---------------------------------------------------------------- graphics cards

SLICE = "MIG slice"
SAY_VRAM = "only llama.cpp itself could ask for its memory: if that is not the RAM, set HELPERS_VRAM_BYTES."
WINDOWS_CARDS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"  # display adapters


def _gpus(world, total, available, in_container):
    if world.system == "Darwin":
        return tuple(world.attempt("the Apple GPU", [], _apple_gpus, world, total, available))
    found = world.attempt("NVIDIA GPUs", [], _nvidia_gpus, world, total, available)
    found += world.attempt("AMD GPUs", [], _amd_gpus, world, available, in_container)
    if world.windows:
        world.attempt("other GPUs", None, _name_other_windows_gpus, world)
    cards = [gpu for gpu in found if not gpu.unified]
    if cards and len(cards) < len(found):  # else the card's share would be taken from the RAM as well
        world.note("The graphics inside the processor are not counted: beside a card, llama.cpp leaves them alone.")
    return tuple(cards or found)


def _nvidia_gpus(world, total, available):
    nvml = world.nvml()
    found = _ask_nvml(world, nvml, total, available) if nvml else None
    if found is None:
        found = _ask_nvidia_smi(world, total, available)
    if not found and world.exists("/etc/nv_tegra_release"):
        board = _clean(world.read("/proc/device-tree/model")) or "NVIDIA Jetson"
        return [_shared_gpu(board, "cuda", total, available, "/etc/nv_tegra_release: a Jetson shares RAM")]
    if not found and world.folder("/proc/driver/nvidia/gpus"):
        world.note("An NVIDIA card is there but gave no answer: install nvidia-ml-py, or run nvidia-smi to see why.")
    visible = [gpu for _, _, gpu in _visible(world, "CUDA_VISIBLE_DEVICES", found or [])]
    slices = [gpu for gpu in visible if SLICE in gpu.name]
    return slices[:1] or visible  # a process gets the first slice, and then no other card


def _shared_gpu(name, backend, total, available, source):
    return Gpu(name, Reading(total, source), Reading(available, source), backend, unified=True, source=source)


def _ask_nvml(world, nvml, total, available):
    """[(index, uuid, Gpu)], or None when NVML would not start."""
    try:
        nvml.nvmlInit()
    except Exception as error:
        said = str(error)
        if not re.search("library not found|driver not loaded", said, re.I):  # those two: simply no NVIDIA card
            world.note(f"The NVIDIA driver did not answer ({said}): restart the machine, or reinstall the driver.")
        return None
    try:
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            question = (_nvml_card, world, nvml, index, total, available)
            found += world.attempt(f"NVIDIA GPU {index}", [], *question)
        return found
    finally:
        world.attempt("the end of NVML", None, nvml.nvmlShutdown)


def _nvml_card(world, nvml, index, total, available):
    card = nvml.nvmlDeviceGetHandleByIndex(index)
    # Slices count even when the card's mode is not told: a container that was handed one may not ask about the card.
    places = range(_told(nvml, "nvmlDeviceGetMaxMigDeviceCount", card) or 0)
    slices = {number: _told(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", card, number) for number in places}
    found = [
        (index, *_nvml_memory(nvml, one, index, f" ({SLICE} {number})", total, available))
        for number, one in slices.items()
        if one is not None
    ]
    if not found and (_told(nvml, "nvmlDeviceGetMigMode", card) or [0])[0] != 1:
        return [(index, *_nvml_memory(nvml, card, index, "", total, available))]
    world.note(
        f"NVIDIA GPU {index} is cut into slices (MIG), {len(found)} can be seen: CUDA uses one per process, "
        "the first unless CUDA_VISIBLE_DEVICES names another."
    )
    return found


def _told(nvml, question, *arguments):
    """The answer, or None: most cards cannot be cut, the numbers of slices have gaps, and some things are forbidden."""
    try:
        return getattr(nvml, question)(*arguments)
    except Exception:
        return None


def _nvml_memory(nvml, handle, index, suffix, total, available):
    name, uuid = (_nvml_text(_told(nvml, f"nvmlDeviceGet{what}", handle)) for what in ("Name", "UUID"))
    name = name or f"NVIDIA GPU {index}"
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        sizes = _whole(memory.total), _whole(memory.free)
    except Exception as error:
        if "not supported" not in str(error).lower():
            raise
        sizes = None, None
    if not sizes[0]:
        source = "NVML names no memory of its own for this GPU: it shares RAM"
        return uuid, _shared_gpu(name + suffix, "cuda", total, available, source)
    vram, free = (Reading(size or 0, f"NVML {kind}") for size, kind in zip(sizes, ("total", "free"), strict=True))
    return uuid, Gpu(name + suffix, vram, free, "cuda", source="NVML (nvidia-ml-py)")


def _nvml_text(told):
    return _clean(told.decode(errors="replace") if isinstance(told, bytes) else str(told or ""))


_SMI = ["--query-gpu=index,uuid,memory.total,memory.free,mig.mode.current,name", "--format=csv,noheader,nounits"]


def _ask_nvidia_smi(world, total, available):
    text = world.run(["nvidia-smi", *_SMI]) or world.run(["/usr/lib/wsl/lib/nvidia-smi", *_SMI]) or ""
    found, complaint = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",", 5)]
        if len(cells) < 6 or _whole(cells[0]) is None:
            complaint = complaint or line.strip()
            continue
        index, uuid, vram, free, mig, name = map(_clean, cells)
        if mig == "Enabled":
            world.note(f"NVIDIA GPU {index} is cut into slices (MIG): install nvidia-ml-py to see how large they are.")
            continue
        if _whole(vram) is None:
            gpu = _shared_gpu(name, "cuda", total, available, "nvidia-smi names no memory of its own: it shares RAM")
        else:
            sizes = (Reading((_whole(n) or 0) * units.MIB, "nvidia-smi, in MiB") for n in (vram, free))
            gpu = Gpu(name, *sizes, "cuda", source="nvidia-smi")
        found.append((_whole(index), uuid, gpu))
    if complaint and not found and "no devices were found" not in complaint.lower():
        world.note(f"nvidia-smi did not answer: {_clean(complaint).rstrip('.')}.")
    return found


def _visible(world, variable, found):
    """The (place, uuid, Gpu) that this variable leaves: drivers stop reading it at the first name they do not know."""
    chosen = world.env.get(variable)
    if chosen is None or not found:
        return found
    kept = []
    for name in (part.strip() for part in chosen.split(",")):
        match = [one for one in found if name == str(one[0]) or (len(name) > 4 and one[1].startswith(name))]
        if not match or match[0] in kept:
            break
        kept += match
    if len(kept) < len(found):
        world.note(f"{variable}={chosen!r} hides {len(found) - len(kept)} of {len(found)} GPUs.")
    by_number = variable == "CUDA_VISIBLE_DEVICES" and chosen.strip()[:1].isdigit()
    alike = len({gpu.vram_total_bytes for _, _, gpu in found}) == 1
    if by_number and not alike and world.env.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        world.note(
            "CUDA counts the fastest card first, nvidia-smi and this table count by slot: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, so that a number means the same card everywhere."
        )
    return [(place, uuid, gpu) for place, (_, uuid, gpu) in enumerate(kept)]


def _amd_gpus(world, available, in_container):
    found, intel = [], False
    for card in world.folder("/sys/class/drm"):
        place = f"/sys/class/drm/{card}/device"
        if not re.fullmatch(r"card\d+", card):
            continue
        intel = intel or world.read(f"{place}/vendor").strip() == "0x8086"
        if world.number(f"{place}/mem_info_vram_total"):
            uuid = f"GPU-{world.read(f'{place}/unique_id').strip()}"
            found.append((len(found), uuid, _amd_card(world, place, available)))
    if intel:
        world.note(f"An Intel GPU is there; {SAY_VRAM}")
    if found and in_container and not (world.exists("/dev/kfd") or world.exists("/dev/dri")):
        world.note(f"{len(found)} AMD GPU can be seen but was not handed to this container (no /dev/kfd, no /dev/dri).")
        return []
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):  # the second counts what the first leaves
        found = _visible(world, variable, found)
    return [gpu for _, _, gpu in found]


def _name_other_windows_gpus(world):
    """A note about the cards that only llama.cpp's own Vulkan or ROCm could ask."""
    for number in range(8):
        name = world.windows.registry(rf"{WINDOWS_CARDS}\{number:04}", "DriverDesc")
        if re.search("AMD|Radeon|Intel", str(name)):
            world.note(f"Windows names the GPU {name}; {SAY_VRAM}")


def _amd_card(world, place, available):
    vram, vram_used, gtt, gtt_used = (
        world.number(f"{place}/mem_info_{name}") or 0 for name in ("vram_total", "vram_used", "gtt_total", "gtt_used")
    )
    ids = ":".join(world.read(f"{place}/{name}").strip().removeprefix("0x") for name in ("vendor", "device"))
    name = _clean(world.read(f"{place}/product_name")) or f"AMD GPU {ids}".rstrip(": ")
    # A processor's own graphics: little video memory set aside, and much RAM (GTT) it may borrow.
    if vram <= 4 * units.GIB and gtt >= 8 * units.GIB and gtt >= 4 * vram:
        borrowed = min(max(gtt - gtt_used, 0), available)
        source = "sysfs mem_info: small VRAM + large GTT, so graphics inside the processor sharing RAM"
        free = Reading(max(vram - vram_used, 0) + borrowed, f"{source}; the GTT part is no more than the free RAM")
        return Gpu(name, Reading(vram + gtt, source), free, "rocm", unified=True, source=source)
    source = "sysfs mem_info_vram"
    return Gpu(name, Reading(vram, source), Reading(max(vram - vram_used, 0), source), "rocm", source=source)


# ---------------------------------------------------------------- where we are


def _environments(world):
    """Names of the surroundings that change what a number means, each with the sign that gave it away."""
    found = []
    signs = (
        ("colab", ("COLAB_RELEASE_TAG", "COLAB_GPU", "COLAB_BACKEND_VERSION")),
        ("kaggle", ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE")),  # KAGGLE_KEY alone is anybody's login
        ("binder", ("BINDER_SERVICE_HOST", "BINDER_LAUNCH_HOST", "BINDER_REPO_URL")),
        ("jupyterhub", ("JUPYTERHUB_API_URL", "JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_USER")),
        ("codespaces", ("CODESPACES", "CODESPACE_NAME")),
        ("wsl", ("WSL_DISTRO_NAME", "WSL_INTEROP")),
    )
    for name, variables in signs:
        seen = [variable for variable in variables if world.env.get(variable)]
        if seen:
            found.append(Word(name, seen[0]))
    if "kaggle" in found:  # its images are built on Colab's and keep their variables
        found = [word for word in found if word != "colab"]
    if "wsl" not in found and "microsoft" in world.read("/proc/version").lower():
        found.append(Word("wsl", "/proc/version"))
    if world.system == "Emscripten":
        found.append(Word("browser", "platform.system()"))
    files = [name for name in ("/.dockerenv", "/run/.containerenv") if world.exists(name)]
    if files:
        found.append(Word("docker", files[0]))
    elif re.search("docker|kubepods|containerd|libpod", world.read("/proc/self/cgroup")):
        found.append(Word("docker", "/proc/self/cgroup"))
    return tuple(sorted(found))


def _remarks(world, machine):
    """Notes about surroundings where the numbers deserve less trust."""
    unlimited = machine.ram_total_bytes.source == machine.ram_physical_bytes.source != "not found"
    if unlimited and set(machine.environments) & {"docker", "jupyterhub", "binder"}:
        world.note(
            "No memory limit can be seen from inside this container or hub; if you know of one, "
            "set HELPERS_RAM_TOTAL_BYTES to its number of bytes."
        )
    if "wsl" in machine.environments:
        world.note("WSL has half of the computer's RAM unless .wslconfig says otherwise.")
        if machine.gpus:
            world.note("Under WSL some 0.5 GB less video memory is usable; asking for more gets slow, not refused.")
    if world.system == "Darwin" and _sysctl(world).get("sysctl.proc_translated") == "1":
        world.note(
            "This Python was built for Intel and is translated (Rosetta): install an arm64 Python, it is faster."
        )


if __name__ == "__main__":
    print(detect())
