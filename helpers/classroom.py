"""How many learners a computer holds, and the limits that a hub should give to each of them.

    python -m helpers.classroom --ram 64GiB --cpus 16 --model smollm2-135m

The model's share is the formula's; what JupyterHub takes around it was measured (`tests/bench_classroom.py`).
"""

import argparse
import functools
import math
import re
import sys
from dataclasses import dataclass

from . import download, hardware, memory, models, units

# Measured on Linux with JupyterHub 6.1, JupyterLab 4.6 and ipykernel 7.4, while lesson 08 runs.
SERVER_BYTES = 135 * units.MB  # a learner's own pages of the notebook server
KERNEL_BYTES = 109 * units.MB  # and of the kernel, with the lesson's panels
TEMPLATE_BYTES = 12 * units.MB  # the process beside each model that writes its chat template
HUB_BYTES = 175 * units.MB  # the hub and its proxy
PYTHON_FILE_BYTES = 30 * units.MB  # libraries of servers and kernels: all processes share their pages
SYSTEM_BYTES = units.GIB  # rule: what the rest of the system wants
SPARE = 1.25  # rule: a limit is that much above what is expected, for the learner who tries more
STEP_BYTES = 64 * units.MIB  # limits are rounded up to this
CPU_GUARANTEE = 0.25  # rule: of four learners one waits for an answer while the others read
CPU_LIMIT = 2  # rule: two threads answer quickly enough, and leave the neighbours theirs
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(Ki|Mi|Gi|Ti|[KMGT])?B?", re.IGNORECASE)
FACTORS = {
    "ki": units.KIB, "mi": units.MIB, "gi": units.GIB, "ti": units.TIB, "": units.GIB,
    "k": units.KB, "m": units.MB, "g": units.GB, "t": units.TB,
}  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """Bytes that a class needs: `each` once per learner, `once` however many they are. Part name -> bytes.

    `once` has the file pages (weights, libraries): processes that map the same file share its pages. `file` is the part
    of `once` that a learner's processes map: where each learner has a container, it is counted for the one who touched
    it first.
    """

    each: dict
    once: dict
    file: dict
    title: str = ""

    @property
    def each_bytes(self):
        return sum(self.each.values())

    @property
    def once_bytes(self):
        return sum(self.once.values())

    @property
    def file_bytes(self):
        return sum(self.file.values())

    def total_bytes(self, n_learners):
        """What so many learners need together."""
        return self.once_bytes + n_learners * self.each_bytes


def needs(spec, quantization="Q4_1", n_ctx=2048, n_prompt=None, n_answer=0, slots=0, **settings):
    """Bytes of RAM that a class needs, once for all and once per learner: a `Needs`.

    Parameters
    ----------
    spec : ModelSpec
    quantization, n_ctx, **settings
        As in `memory.estimate`; `n_ctx` is what one learner gets.
    n_prompt, n_answer : int, optional
        Tokens of the longest question and its answer; without them the context is full.
    slots : int
        0: every learner loads the model. Else one server of the class answers, so many at once.

    Raises
    ------
    ValueError
        As `memory.estimate` and `memory.resident`.

    Notes
    -----
    each = server + kernel + what the model's processes hold for themselves (cache, compute, vocabulary, Python).
    once = hub + libraries + weights. *When it misleads*: the measured parts are those of lesson 08 on one Linux
    system; a learner who opens five notebooks has five kernels, and each that loads a model loads it anew.

    Source: `memory.resident`, and `tests/bench_classroom.py`.

    Examples
    --------
    >>> from helpers import models
    >>> own = needs(models.get("smollm2-135m"))
    >>> own.total_bytes(10) == own.once_bytes + 10 * own.each_bytes
    True
    >>> needs(models.get("smollm2-135m"), slots=4).each == {"server": SERVER_BYTES, "kernel": KERNEL_BYTES}
    True
    """
    n_prompt = n_ctx - n_answer if n_prompt is None else n_prompt
    estimate = memory.estimate(spec, quantization, n_ctx=n_ctx * max(1, slots), n_parallel=max(1, slots),
                               n_outputs_max=max(1, slots), **settings)  # fmt: skip
    held = memory.resident(estimate, n_prompt, n_answer)
    each = {"server": SERVER_BYTES, "kernel": KERNEL_BYTES}
    libraries = {"libraries": PYTHON_FILE_BYTES}
    model_files = {"weights": held.file["weights"], "llama.cpp": held.file["libraries"]}
    if slots:
        once = {"hub": HUB_BYTES, **libraries, **model_files, "model": held.anonymous_bytes}
        return Needs(each, once, libraries, f"{estimate.name}, one server with {slots} slots for all")
    file = {**libraries, **model_files}
    each |= {"model": held.anonymous_bytes, "template": TEMPLATE_BYTES}
    return Needs(each, {"hub": HUB_BYTES, **file}, file, f"{estimate.name}, one model per learner")


def choose(model, quantization=None):
    """(shape, quantization) of a name of the catalogue or a GGUF file: what `needs` begins with.

    The packaged model has the quantization of its file; other names get Q4_K_M. Raises `KeyError` for a name that is
    not known, `gguf.GGUFError` or `OSError` for a file that cannot be read.

    >>> choose("llama-3.1-8b")[1], choose("smollm2-135m")[1]
    ('Q4_K_M', 'Q4_1')
    """
    if model.lower().endswith(".gguf"):
        from . import gguf

        header = gguf.read_header(model)
        return header.spec, quantization or header.tensor_types
    spec = models.get(model)
    packaged = download.DEFAULT_FILE.upper().startswith(f"{spec.name.upper()}-")
    return spec, quantization or (download.DEFAULT_FILE.split(".")[-2] if packaged else "Q4_K_M")


def by_memory(ram_bytes, needed):
    """How many learners the memory holds: (memory - system - once) / each, rounded down.

    *When it misleads*: `ram_bytes` must be what the class may have; other programs' memory is not in it.

    >>> few = Needs({"kernel": 300}, {"weights": 400}, {})
    >>> by_memory(SYSTEM_BYTES + 3500, few)        # (3500 - 400) / 300 = 10.33
    10
    """
    return max(0, int(ram_bytes - SYSTEM_BYTES - needed.once_bytes) // needed.each_bytes)


def by_cpu(cpus):
    """How many learners the processor serves, when one in four waits for an answer and that one wants a core.

    Rule: cpus / 0.25. More learners than this still work; they wait longer.

    >>> by_cpu(16)
    64
    """
    return int(cpus / CPU_GUARANTEE)


def first_token_s(alone_s, n_asking):
    """Seconds to the first token when `n_asking` learners ask in the same moment, from what one alone waits.

    Formula: alone x asking; the work is the same for each, and all share the processor, so that all end late together.
    *When it misleads*: only calculating is shared out, waiting is not, so ten need not take ten times as long: measured
    were 0.4 to 1.1 of this in three classes of ten, and 2.0 with a server of four slots, where some wait in a queue.

    >>> first_token_s(0.2, 10)
    2.0
    """
    return alone_s * n_asking


def guarantee_bytes(needed):
    """What a learner surely needs, rounded up to 64 MiB: the scheduler sets aside this much.

    >>> guarantee_bytes(Needs({"kernel": 65 * units.MIB}, {}, {})) == 128 * units.MIB
    True
    """
    return units.pad(needed.each_bytes, STEP_BYTES)


def limit_bytes(needed):
    """Where a learner is stopped: 1.25 x (own + file pages), rounded up to 64 MiB.

    The file pages are in it although they are shared: the system counts a page for whoever touched it first.

    >>> learner = Needs({"kernel": 40 * units.MIB}, {}, {"weights": 60 * units.MIB})
    >>> limit_bytes(learner) == 128 * units.MIB                                           # 1.25 x 100 = 125
    True
    """
    return units.pad(math.ceil(SPARE * (needed.each_bytes + needed.file_bytes)), STEP_BYTES)


def hub_size(n_bytes):
    """Bytes as JupyterHub writes them; its M is 1,024 x 1,024.

    >>> hub_size(448 * units.MIB)
    '448M'
    """
    return f"{math.ceil(n_bytes / units.MIB)}M"


def size(text):
    """Bytes of a size as people type it; a bare number is GiB.

    >>> size("64GiB") == size("64") == 64 * units.GIB
    True
    >>> size("16 GB")
    16000000000
    """
    found = SIZE.fullmatch(str(text).strip())
    if not found:
        raise ValueError(f"{text!r} is no size of memory. Write for instance 64GiB or 64GB.")
    return int(float(found[1]) * FACTORS[(found[2] or "").lower()])


def spawner(needed):
    """The limits of one learner, by the names that JupyterHub's spawners have for them.

    >>> sorted(spawner(Needs({"kernel": 1}, {}, {})))
    ['cpu_guarantee', 'cpu_limit', 'mem_guarantee', 'mem_limit']
    """
    return {
        "mem_guarantee": hub_size(guarantee_bytes(needed)),
        "mem_limit": hub_size(limit_bytes(needed)),
        "cpu_guarantee": CPU_GUARANTEE,
        "cpu_limit": CPU_LIMIT,
    }


def report(needed, ram_bytes, cpus):
    """The table and the values for the hubs, as text."""
    memory_holds, cpu_serves = by_memory(ram_bytes, needed), by_cpu(cpus)
    limits = spawner(needed)
    lines = [needed.title, ""]
    for title, parts in (("each learner", needed.each), ("once for all", {**needed.once, "system": SYSTEM_BYTES})):
        lines += [f"{title:<16}{units.show(sum(parts.values())):>11}"]
        lines += [f"  {name:<14}{units.show(n):>11}  {HOW[name]}" for name, n in parts.items()]
    lines += [
        "",
        f"{units.show(ram_bytes)} hold {memory_holds} learners.",
        f"{cpus:g} CPUs serve {cpu_serves}, of whom one in four asks at the same time.",
        f"Learners: {min(memory_holds, cpu_serves)}, limited by {'memory' if memory_holds <= cpu_serves else 'CPU'}.",
        "",
        "jupyterhub_config.py, with a spawner that enforces limits (SimpleLocalProcessSpawner does not)",
        *(f"  c.Spawner.{name} = {value!r}" for name, value in limits.items()),
        "The Littlest JupyterHub",
        f"  sudo tljh-config set limits.memory {limits['mem_limit']}",
        f"  sudo tljh-config set limits.cpu {limits['cpu_limit']}",
        "values.yaml (Zero to JupyterHub)",
        "  singleuser:",
        f"    memory: {{guarantee: {limits['mem_guarantee']}, limit: {limits['mem_limit']}}}",
        f"    cpu: {{guarantee: {limits['cpu_guarantee']}, limit: {limits['cpu_limit']}}}",
    ]
    return "\n".join(lines)


HOW = {
    "server": "measured: JupyterLab's server",
    "kernel": "measured: Python with the lesson's panels",
    "model": "formula: cache, compute, vocabulary, Python",
    "template": "measured: the process for the chat template",
    "hub": "measured: JupyterHub and its proxy",
    "libraries": "measured: file pages of Python's libraries",
    "weights": "formula: file pages, mapped and shared",
    "llama.cpp": "measured: file pages of the engine",
    "system": "rule",
}


def main(arguments=None):
    machine = functools.cache(hardware.detect)
    parser = argparse.ArgumentParser(prog="python -m helpers.classroom", description=__doc__.splitlines()[0])
    parser.add_argument("--ram", metavar="SIZE", help="memory for the class, such as 64GiB; default: free here")
    parser.add_argument("--cpus", type=float, help="processor threads; default: this computer's")
    parser.add_argument("--model", default="smollm2-135m", help="a name of the catalogue, or a GGUF file")
    parser.add_argument("--quantization", help="default: Q4_1 for the packaged model, else Q4_K_M")
    parser.add_argument("--n-ctx", type=int, default=2048, help="tokens of context of one learner")
    parser.add_argument("--slots", type=int, default=0, help="one server with so many slots answers for all")
    options = parser.parse_args(arguments)
    try:
        ram_bytes = size(options.ram) if options.ram else machine().ram_available_bytes
        cpus = options.cpus or machine().cpu_threads
        needed = needs(*choose(options.model, options.quantization), options.n_ctx, slots=options.slots)
    except (ValueError, KeyError, OSError) as error:
        print(error.args[0] if isinstance(error, KeyError) else error, file=sys.stderr)
        return 1
    print(report(needed, ram_bytes, cpus))
    return 0


if __name__ == "__main__":
    sys.exit(main())
