"""Estimate x Machine -> Verdict: does it fit, what binds, and which levers would help how much.

The machine is passed in, so one can ask for a neighbour's laptop as well as for this one.
"""

import functools
import html
import math
from dataclasses import dataclass, field

from . import formats, memory, models, units

STATUSES = ("fits", "tight", "swaps", "no")
SIGNS = {"fits": "✓", "tight": "!", "swaps": "~", "no": "✕"}
SAYS = {
    "fits": "fits",
    "tight": "fits, but tight",
    "swaps": "would run from disk, very slowly",
    "no": "does not fit",
}
# With less than this to spare, a browser tab more or less decides: 512 MiB, or an eighth of what is free where that is
# less than 4 GiB, or 5 % where it is a lot. The three meet, so that more free memory never makes a verdict worse.
TIGHT_BYTES, TIGHT_SHARE_OF_LITTLE, TIGHT_SHARE = 512 * units.MIB, 1 / 8, 0.05
LADDER = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XS", "Q2_K")
CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class Lever:
    """One change that saves memory: `change` are new settings (or "quantization", "model"); `cost` is its price."""

    name: str
    change: dict
    saved_bytes: int
    cost: str
    status: str  # the verdict after pulling this lever alone

    def __str__(self):
        return f"{self.name}: saves {units.show(self.saved_bytes)} ({self.cost}) -> {SAYS[self.status]}"


@dataclass(frozen=True)
class Verdict:
    """Whether an estimate fits a machine: "fits", "tight", "swaps" or "no"; bytes are those of the binding limit."""

    status: str
    sentence: str
    limit: str
    needed_bytes: int
    free_bytes: int
    total_bytes: int
    reasons: tuple[str, ...] = ()
    levers: tuple[Lever, ...] = field(default=(), repr=False)

    @property
    def spare_bytes(self):
        """Free minus needed, in bytes; negative when it does not fit."""
        return self.free_bytes - self.needed_bytes

    def __str__(self):
        lines = [f"{SIGNS[self.status]} {self.sentence}", *(f"  {reason}" for reason in self.reasons)]
        return "\n".join([*lines, *(f"  lever: {lever}" for lever in self.levers[:3])])

    def _repr_html_(self):
        return f"<pre>{html.escape(str(self))}</pre>"


def verdict(estimate, machine):
    """Whether `estimate` fits `machine`, the limit that binds, and the levers ranked by the bytes they save here.

    Parameters
    ----------
    estimate : memory.Estimate
    machine : hardware.Machine
        Only its fields are read; free memory decides, not total memory.

    Returns
    -------
    Verdict

    Notes
    -----
    "fits": needed <= free; "tight": it fits, but less than 512 MiB stay free (an eighth of the free memory where that
    is below 4 GiB, 5 % where it is above 10 GiB; of video memory 5 %); "swaps": other programs must be pushed out to
    disk, or weights read from disk again for every token; "no": the parts that cannot be dropped exceed what is free
    and the free swap, or everything exceeds what the machine has and the free swap. *When it misleads*: free memory
    changes by the minute, and a memory-mapped model that is a little too large runs, slowly.

    >>> from helpers import hardware, models
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=5 * units.GIB, ram_total_bytes=8 * units.GIB)
    >>> verdict(memory.estimate(models.get("smollm2-135m"), "Q4_1"), laptop).status
    'fits'
    >>> verdict(memory.estimate(models.get("llama-3.1-8b"), "F16"), laptop).status
    'no'
    """
    judged = judge(estimate, machine)
    return Verdict(**{**vars(judged), "levers": tuple(levers(estimate, machine))})


def judge(estimate, machine):
    """The verdict without levers (cheap: this is what grids and strips call)."""
    limits = [_ram(estimate, machine)]
    if estimate.by_device:
        limits.append(_vram(estimate, machine))
    worst = max(limits, key=lambda limit: (STATUSES.index(limit.status), -limit.spare_bytes))
    reasons = tuple(reason for limit in limits for reason in limit.reasons)
    return Verdict(**{**vars(worst), "reasons": reasons})


def _ram(estimate, machine):
    parts = estimate.by_device.get("cpu") or estimate.parts()
    needed = sum(parts.values())
    if estimate.by_device and machine.unified_memory:  # one memory for both: the GPU's share comes out of it too
        needed += sum(estimate.by_device["gpu"].values())
    free, total, swap = machine.ram_available_bytes, machine.ram_total_bytes, machine.swap_free_bytes
    fixed = needed - parts["weights"]  # file pages may be dropped and read again; the rest may only go to swap
    if needed <= free:
        least = max(min(TIGHT_BYTES, TIGHT_SHARE_OF_LITTLE * free), TIGHT_SHARE * free)
        status = "tight" if free - needed < least else "fits"
    elif fixed > free + swap or needed > total + swap:
        status = "no"
    else:
        status = "swaps"
    used = max(total - free, 0)
    whole = f"{units.show(total)} in all, {units.show(used)} used by other programs"
    reasons = [f"Memory: {whole}, {units.show(free)} free."]
    if status == "swaps":
        reasons.append(f"Close other programs to free {units.show(needed - free)}, or pull a lever.")
    return _limit("memory", status, needed, free, total, reasons)


def _vram(estimate, machine):
    needed = sum(estimate.by_device["gpu"].values()) if estimate.by_device else 0
    gpus = machine.gpus
    free = sum(gpu.vram_free_bytes for gpu in gpus)
    total = sum(gpu.vram_total_bytes for gpu in gpus)
    if machine.unified_memory:
        free = min(free, machine.ram_available_bytes)
    if not gpus:
        return _limit("video memory", "no", needed, 0, 0, ["No GPU was found; set n_gpu_layers to 0."])
    status = "no" if needed > free else "tight" if free - needed < TIGHT_SHARE * free else "fits"
    names = ", ".join(gpu.name for gpu in gpus)
    return _limit("video memory", status, needed, free, total, [f"Video memory of {names}: {units.show(free)} free."])


def _limit(name, status, needed, free, total, reasons):
    where = "" if name == "memory" else " of video memory"
    difference = units.show(abs(free - needed))
    if needed <= free:
        have, rest = f"of the {units.show(free)}{where} free", "spare"
    else:
        have, rest = f"but only {units.show(free)}{where} is free", "too much"
    sentence = f"Needs {units.show(needed)} {have}: {SAYS[status]}, {difference} {rest}."
    return Verdict(status, sentence, name, needed, free, total, tuple(reasons))


def levers(estimate, machine):
    """Changes that save memory where it binds, largest saving first; each is tried alone and judged on this machine.

    >>> from helpers import hardware, models
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=5 * units.GIB)
    >>> best = levers(memory.estimate(models.get("llama-3.1-8b"), "Q8_0", n_ctx=2048), laptop)[0]
    >>> best.saved_bytes > 0
    True
    """
    if estimate.spec is None:
        return []
    start = apply(estimate, {}) or estimate  # the engine's figures are not set against the formula's
    found = (_try(start, machine, *candidate) for candidate in _candidates(start, machine))
    useful = [lever for lever in found if lever and lever.saved_bytes > 0]
    return sorted(useful, key=lambda lever: -lever.saved_bytes)


def _candidates(estimate, machine):
    """(name, change, cost) of everything worth trying."""
    settings, spec = estimate.settings, estimate.spec
    if isinstance(estimate.quantization, str):
        yield from _smaller_quantizations(estimate, machine)
    n_ctx = settings["n_ctx"] or spec.n_ctx_train
    shorter = [n for n in CONTEXTS if n < n_ctx]
    if shorter:
        best = _first_fitting(estimate, machine, [{"n_ctx": n} for n in reversed(shorter)]) or {"n_ctx": shorter[-1]}
        yield f"context {best['n_ctx']:,} tokens", best, "forgets the start of a long text sooner"
    if settings["cache_type_k"] == "f16":
        change = {"cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attn": True}
        yield "cache q8_0", change, "hardly measurable in answers"  # `_try` drops it where heads are no whole blocks
    if not settings["flash_attn"]:
        yield "flash attention on", {"flash_attn": True}, "none: the same results, often faster"
    if settings["n_ubatch"] > 128:
        yield "n_ubatch 128", {"n_ubatch": 128}, "reads long prompts more slowly"
    if settings["n_outputs_max"] == 0:
        change = {"n_outputs_max": settings["n_parallel"]}
        yield f"n_outputs {settings['n_parallel']}", change, "none for chat: only the last token's scores are kept"
    if settings["n_parallel"] > 1:
        change = {"n_parallel": 1, **({"n_outputs_max": 1} if settings["n_outputs_max"] else {})}
        yield "one slot", change, "one conversation at a time"
    if settings["repack"]:
        yield "no repacking", {"repack": False}, "reads long prompts more slowly"
    if settings["n_gpu_layers"] and estimate.by_device:
        yield from _fewer_gpu_layers(estimate, machine)
    yield from _smaller_model(estimate, machine)


def _smaller_quantizations(estimate, machine):
    size = memory.weights_bytes(estimate.spec, estimate.quantization)
    smaller = [name for name in LADDER if memory.weights_bytes(estimate.spec, name) < 0.98 * size]
    if smaller:
        changes = [{"quantization": name} for name in smaller]
        best = _first_fitting(estimate, machine, changes) or changes[0]
        name = best["quantization"]
        yield f"quantization {name}", best, formats.quantization(name).says.split(": ")[-1]


def _smaller_model(estimate, machine):
    spec = estimate.spec
    try:
        n_params = spec.n_params
    except ValueError:  # a family whose tensors are not known here
        return
    quantization = estimate.quantization if isinstance(estimate.quantization, str) else "Q4_K_M"
    long_enough = min(estimate.settings["n_ctx"] or spec.n_ctx_train, spec.n_ctx_train)
    smaller = [name for name, count, n_ctx in _catalogue() if count < 0.8 * n_params and n_ctx >= long_enough]
    if smaller:
        changes = [{"model": name, "quantization": quantization} for name in smaller]
        best = _first_fitting(estimate, machine, changes) or changes[-1]
        yield f"model {models.get(best['model']).title}", best, "knows and reasons less"


@functools.cache  # adding up the tensors of every model takes longer than all the rest of a verdict
def _catalogue():
    """(name, parameters, context in tokens) of every model, largest first."""
    specs = ((name, models.get(name)) for name in reversed(models.names()))
    return tuple((name, spec.n_params, spec.n_ctx_train) for name, spec in specs)


def _fewer_gpu_layers(estimate, machine):
    most = estimate.spec.n_layer + 1 if estimate.settings["n_gpu_layers"] < 0 else estimate.settings["n_gpu_layers"]
    changes = [{"n_gpu_layers": n} for n in range(most - 1, -1, -1)]
    best = _first_fitting(estimate, machine, changes)
    if best:
        yield f"{best['n_gpu_layers']} layers on the GPU", best, "the other layers run on the processor, more slowly"


def _first_fitting(estimate, machine, changes):
    for change in changes:
        changed = apply(estimate, change)
        if changed is not None and judge(changed, machine).status in ("fits", "tight"):
            return change
    return None


def _try(estimate, machine, name, change, cost):
    changed = apply(estimate, change)
    if changed is None:
        return None
    binding = _vram if judge(estimate, machine).limit == "video memory" else _ram
    saved = binding(estimate, machine).needed_bytes - binding(changed, machine).needed_bytes
    return Lever(name, change, saved, cost, judge(changed, machine).status)


def apply(estimate, change):
    """A new `Estimate` with a lever's change, or None where the change is impossible for this model."""
    change = dict(change)
    spec = models.get(change.pop("model")) if "model" in change else estimate.spec
    quantization = change.pop("quantization", estimate.quantization)
    try:
        return memory.estimate(spec, quantization, **{**estimate.settings, **change})
    except ValueError:
        return None


def ladder(spec, machine, quantizations=LADDER, **settings):
    """One `(quantization, Estimate, Verdict)` per quantization of a model: the strip of choices.

    >>> from helpers import hardware, models
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> [row[2].status for row in ladder(models.get("qwen3-1.7b"), laptop, ("F16", "Q4_K_M"))]
    ['fits', 'fits']
    """
    rows = ((name, memory.estimate(spec, name, **settings)) for name in quantizations)
    return [(name, needs, judge(needs, machine)) for name, needs in rows]


def rule_of_thumb_bytes(estimate):
    """The folklore's answer in bytes: file x 1.2, blind to context, cache and vocabulary.

    >>> from helpers import models
    >>> needs = memory.estimate(models.get("smollm2-135m"), "Q4_1")
    >>> rule_of_thumb_bytes(needs) == round(1.2 * needs.weights_bytes)
    True
    """
    return round(1.2 * estimate.weights_bytes)


# Down to 4 bits, where measured losses are still small; "MXFP4" is the only form some models come in.
GOOD = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
LAST_RESORT = ("IQ4_XS", "Q3_K_M", "IQ3_XS", "Q2_K")
USES = ("chat", "code", "chinese", "languages", "images")


@dataclass(frozen=True)
class Choice:
    """One recommended model at one quantization, with the reasons for it."""

    spec: object
    quantization: str
    estimate: memory.Estimate
    verdict: Verdict
    score: float
    reasons: tuple[str, ...]

    def __str__(self):
        return f"{self.spec.title}, {self.quantization}: {'; '.join(self.reasons)}"

    def _repr_html_(self):
        return f"<p>{html.escape(str(self))}</p>"


def recommend(machine, use="chat", n_ctx=8192, most=5, **settings):
    """Models for a use on a machine, best first: a tuple of `Choice`.

    Parameters
    ----------
    machine : hardware.Machine
    use : str
        One of `USES`.
    n_ctx : int
        Tokens that must fit; models trained for fewer are left out.
    most : int
        How many.

    Raises
    ------
    ValueError
        For an unknown use.

    Notes
    -----
    Each model gets the largest quantization that fits with room to spare. Then a *rule* ranks them: log2 of the weights
    plus the year of publication, so twice the weights count as much as one year; of a mixture of experts the geometric
    mean of all and active weights counts; below 4 bits a model loses one and a half. *When it misleads*: always, as any
    one number for a model's worth; ask two of them your own questions (lesson 08).

    >>> from helpers import hardware
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> [choice.verdict.status for choice in recommend(laptop, "code", most=2)]
    ['fits', 'fits']
    """
    if use not in USES:
        raise ValueError(f"use is {use!r}; choose one of {', '.join(USES)}.")
    specs = (models.get(name) for name in models.names())
    fitting = (
        _choose(spec, machine, n_ctx, settings) for spec in specs if use in spec.uses and spec.n_ctx_train >= n_ctx
    )
    return tuple(sorted(filter(None, fitting), key=lambda choice: -choice.score)[:most])


def _choose(spec, machine, n_ctx, settings):
    ladder_of_model = ("MXFP4",) if spec.ollama_quantization == "MXFP4" else (*GOOD, *LAST_RESORT)
    for name in ladder_of_model:
        needs = memory.estimate(spec, name, n_ctx=n_ctx, **settings)
        verdict = judge(needs, machine)
        if verdict.status == "fits":
            return _choice(spec, name, needs, verdict)
    return None


def _choice(spec, quantization, needs, verdict):
    weight = math.sqrt(spec.n_params * spec.n_params_active)
    low = quantization in LAST_RESORT
    reasons = [
        f"needs {units.show(needs.total_bytes)}, {units.show(verdict.spare_bytes)} spare",
        f"{spec.n_params / 10**9:.1f} billion weights, published {spec.year}",
        f"reads {units.show(active_bytes(needs))} for each token",
        f"languages: {spec.languages}; licence: {spec.license}",
    ]
    if spec.n_params_active < spec.n_params:
        reasons.insert(2, f"{spec.n_params_active / 10**9:.1f} billion of them active")
    if low:
        reasons.insert(1, "only fits below 4 bits")
    return Choice(spec, quantization, needs, verdict, math.log2(weight) + spec.year - 1.5 * low, tuple(reasons))


def active_bytes(estimate):
    """Bytes of weights that one token reads: all of them, or with experts the share that is active.

    *When it misleads*: experts and the rest may have different bits; the embedding counts whole.

    >>> from helpers import models
    >>> needs = memory.estimate(models.get("smollm2-135m"), "Q8_0")
    >>> active_bytes(needs) == needs.weights_bytes
    True
    """
    return estimate.weights_bytes * estimate.spec.n_params_active // estimate.spec.n_params
