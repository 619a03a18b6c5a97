"""Estimate x Machine -> Verdict: does it fit, what binds, and which levers would help how much.

The machine is passed in, so one can ask for a neighbour's laptop as well as for this one.
"""

import functools
import html
import math
from dataclasses import dataclass, field, replace

from . import architectures, formats, memory, mixes, models, units

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
        return units.printable("\n".join([*lines, *(f"  lever: {lever}" for lever in self.levers[:3])]))

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
    found = limits(estimate, machine)
    on_gpu = not machine.unified_memory and _all_on_gpu(estimate)

    def binding(limit):  # where all layers lie on the GPU, free memory is no answer unless it is the worse of the two
        return STATUSES.index(limit.status), on_gpu and limit.limit == "video memory", -limit.spare_bytes

    worst = max(found, key=binding)
    reasons = tuple(reason for limit in found for reason in limit.reasons)
    return Verdict(**{**vars(worst), "reasons": reasons})


def _all_on_gpu(estimate):
    n_gpu_layers = estimate.settings.get("n_gpu_layers", 0) if estimate.by_device else 0
    return n_gpu_layers < 0 or (estimate.spec is not None and n_gpu_layers > estimate.spec.n_layer)


def limits(estimate, machine, idle_gpu=False):
    """One verdict for the memory and, with layers on a GPU, one for the video memory; `judge` takes the worse.

    `idle_gpu`: the video memory also when no layer is there.
    """
    found = [_ram(estimate, machine)]
    if estimate.by_device or (idle_gpu and machine.gpus):
        found.append(_vram(estimate, machine))
    return found


def _ram(estimate, machine):
    parts = estimate.by_device.get("cpu") or estimate.parts()
    needed = sum(parts.values())
    if estimate.by_device and machine.unified_memory:  # one memory for both: the GPU's share comes out of it too
        needed += sum(estimate.gpu_parts().values())
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
    """Of several cards each is judged by its own share; the worst decides."""
    shares = [sum(parts.values()) for device, parts in estimate.by_device.items() if device != "cpu"]
    if len(shares) < 2 or machine.unified_memory or not machine.gpus:
        return _cards(sum(shares), machine.gpus, machine)
    if len(shares) > len(machine.gpus):
        reason = f"Counted for {len(shares)} GPUs, but this machine has {len(machine.gpus)}; set n_gpus to that."
        return _limit("video memory", "no", sum(shares), 0, 0, [reason])
    limits = [_cards(needed, (gpu,), machine) for needed, gpu in zip(shares, machine.gpus, strict=False)]
    worst = max(limits, key=lambda limit: (STATUSES.index(limit.status), -limit.spare_bytes))
    return Verdict(**{**vars(worst), "reasons": tuple(reason for limit in limits for reason in limit.reasons)})


def _cards(needed, gpus, machine):
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
    names = quantizations_of(estimate.spec)
    smaller = [name for name in names if memory.weights_bytes(estimate.spec, name) < 0.98 * size]
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
        changes = [{"model": name, "quantization": suited(models.get(name), quantization)} for name in smaller]
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


def quantizations_of(spec, usual=LADDER):
    """The quantizations that a model's files come in: `usual`, but for models that are published as MXFP4 only.

    >>> from helpers import models
    >>> quantizations_of(models.get("gpt-oss-20b"))
    ('MXFP4',)
    """
    return ("MXFP4",) if spec.ollama_quantization == "MXFP4" else tuple(usual)


def suited(spec, quantization):
    """`quantization` where a model's files may have it, else the nearest that they have.

    >>> from helpers import models
    >>> suited(models.get("gpt-oss-20b"), "Q4_K_M"), suited(models.get("qwen3-8b"), "MXFP4")
    ('MXFP4', 'Q4_K_M')
    """
    only = quantizations_of(spec, ())
    return only[0] if only else "Q4_K_M" if quantization == "MXFP4" else quantization


def ladder(spec, machine, quantizations=LADDER, **settings):
    """One `(quantization, Estimate, Verdict)` per quantization of a model: the strip of choices.

    >>> from helpers import hardware, models
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> [row[2].status for row in ladder(models.get("qwen3-1.7b"), laptop, ("F16", "Q4_K_M"))]
    ['fits', 'fits']
    """
    rows = ((name, memory.estimate(spec, name, **settings)) for name in quantizations_of(spec, quantizations))
    return [(name, needs, judge(needs, machine)) for name, needs in rows]


def rule_of_thumb_bytes(estimate):
    """The folklore's answer in bytes: file x 1.2, blind to context, cache and vocabulary.

    >>> from helpers import models
    >>> needs = memory.estimate(models.get("smollm2-135m"), "Q4_1")
    >>> rule_of_thumb_bytes(needs) == round(1.2 * needs.weights_bytes)
    True
    """
    return round(1.2 * estimate.weights_bytes)


# Down to 4 bits, where measured losses are still small.
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
        return units.printable(f"{self.spec.title}, {self.quantization}: {'; '.join(self.reasons)}", 2000)

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
    for name in quantizations_of(spec, (*GOOD, *LAST_RESORT)):
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
        f"{units.show_count(spec.n_params)} weights, published {spec.year}",
        f"reads {units.show(active_bytes(needs))} for each token",
        f"languages: {spec.languages}; licence: {spec.license}",
    ]
    if spec.n_params_active < spec.n_params:
        reasons.insert(2, f"{units.show_count(spec.n_params_active)} of them active")
    if low:
        reasons.insert(1, "only fits below 4 bits")
    return Choice(spec, quantization, needs, verdict, math.log2(weight) + spec.year - 1.5 * low, tuple(reasons))


def active_bytes(estimate):
    """Bytes of weights that one token reads: all but the embedding's other rows, and of experts the share that is used.

    *When it misleads*: as `read_bytes_by_device`, whose sum it is.

    >>> from helpers import models
    >>> needs = memory.estimate(models.get("smollm2-135m"), "Q8_0")
    >>> active_bytes(needs) == needs.weights_bytes
    True
    """
    return sum(read_bytes_by_device(estimate).values())


def read_bytes_by_device(estimate):
    """Bytes of weights that one token reads from each memory: {"cpu": ...}, with a GPU also {"gpu": ...}.

    Formula: every matrix is read once; of experts the share n_expert_used / n_expert; of a table of embeddings one row,
    which is not counted, unless it is the output matrix as well (tied).
    *When it misleads*: the KV cache is read too, up to its whole size when the context is full; two tokens seldom use
    the same experts; memory that is read is not yet time, see `speed`.

    >>> from helpers import models
    >>> needs = memory.estimate(models.get("tinyllama-1.1b"), "F16", n_gpu_layers=1)      # the output matrix alone
    >>> read_bytes_by_device(needs)["gpu"] == 2 * 32_000 * 2_048 + 4 * 2_048
    True
    """
    spec, quantization = estimate.spec, estimate.quantization
    if isinstance(quantization, int):  # only the sum is known
        weights = {device: parts["weights"] for device, parts in estimate.by_device.items()}
        weights = weights or {"cpu": estimate.weights_bytes}
        return {device: n_bytes * spec.n_params_active // spec.n_params for device, n_bytes in weights.items()}
    if isinstance(quantization, str):
        places = _named_read_bytes(spec, formats.quantization(quantization).name)
    else:
        places = _read_bytes(spec, quantization)
    devices = memory.layer_devices(spec, memory.Settings(**estimate.settings))
    found = dict.fromkeys(estimate.by_device or ("cpu",), 0)
    for device, n_bytes in zip(devices, places, strict=True):
        found[device] += n_bytes
    return found


@functools.lru_cache(maxsize=4096)
def _named_read_bytes(spec, quantization):
    return _read_bytes(spec, mixes.tensor_types(spec, quantization))


def _read_bytes(spec, types):
    """Bytes that one token reads of each layer, and at the end of what follows them."""
    places = [0] * (spec.n_layer + 1)
    for tensor in architectures.tensors(spec):
        n_bytes = formats.tensor_bytes(types[tensor.name], tensor.shape)
        if "_exps." in tensor.name:
            n_bytes = n_bytes * spec.n_expert_used // spec.n_expert
        if tensor.name.startswith("blk."):
            places[int(tensor.name.split(".")[1])] += n_bytes
        elif tensor.name == "token_embd.weight":
            places[-1] += n_bytes if spec.tied else 0
        elif tensor.name != "position_embd.weight":
            places[-1] += n_bytes
    return tuple(places)


@dataclass(frozen=True)
class Row:
    """One model beside others: `cells` maps a quantization to its (Estimate, Verdict).

    Without cells `problem` says why this model cannot have these settings.
    """

    spec: object
    cells: dict
    problem: str = ""

    @property
    def status(self):
        """The best verdict among the cells ("no" without any)."""
        statuses = [verdict.status for _, verdict in self.cells.values()]
        return min(statuses, key=STATUSES.index, default="no")

    @property
    def best(self):
        """The first quantization with this row's status, when it fits or is tight; else ""."""
        if self.status not in ("fits", "tight"):
            return ""
        return next(name for name, (_, verdict) in self.cells.items() if verdict.status == self.status)


def compare(machine, quantizations=LADDER, names=None, **settings):
    """Every model at every quantization, judged by a machine: a tuple of `Row`, smallest model first.

    Parameters
    ----------
    machine : hardware.Machine
    quantizations : sequence of str
        Best first; a model that comes in one form only has a cell for that one (`quantizations_of`).
    names : sequence of str, optional
        Of models; the whole catalogue when left out.

    Raises
    ------
    ValueError
        For settings that no model can have. What only one model cannot have is its row's `problem`.

    >>> from helpers import hardware
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> [(row.spec.name, row.best) for row in compare(laptop, names=["qwen3-8b", "llama-3.1-70b"], n_ctx=4096)]
    [('qwen3-8b', 'IQ4_XS'), ('llama-3.1-70b', '')]
    """
    memory.Settings(**settings)
    return tuple(_compared(models.get(name), machine, quantizations, settings) for name in names or models.names())


def _compared(spec, machine, quantizations, settings):
    quantizations = quantizations_of(spec, quantizations)
    try:
        first = memory.estimate(spec, quantizations[0], **settings)
    except ValueError as error:
        return Row(spec, {}, str(error))
    estimates = (_requantized(first, name) for name in quantizations)
    return Row(spec, {estimate.quantization: (estimate, judge(estimate, machine)) for estimate in estimates})


def _requantized(estimate, quantization):
    """`estimate` at another quantization. Nothing but the weights differs, unless some are repacked or offloaded."""
    if estimate.by_device or estimate.settings["repack"]:
        return memory.estimate(estimate.spec, quantization, **estimate.settings)
    weights_bytes = memory.weights_bytes(estimate.spec, quantization)
    name = estimate.name.replace(f", {estimate.quantization}, ", f", {quantization}, ")
    return replace(estimate, weights_bytes=weights_bytes, quantization=quantization, name=name)


def choose_rows(rows, text="", status=""):
    """The rows whose name, title or family contains each word of `text`, and whose best verdict is `status` ("": any).

    >>> from helpers import hardware
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> [row.spec.name for row in choose_rows(compare(laptop), "mistral v0.3", "fits")]
    ['mistral-7b-v0.3']
    """
    words = text.lower().split()
    return tuple(row for row in rows if (not status or row.status == status) and _has_words(row.spec, words))


def _has_words(spec, words):
    said = f"{spec.name} {spec.title} {spec.architecture}".lower()
    return all(word in said for word in words)


ORDERS = ("fewest parameters", "most parameters", "least memory", "least quality loss", "least read per token")


def sort_rows(rows, by):
    """Rows in one of `ORDERS`. The last three look at each model's best quantization that fits; without one it is last.

    Quality loss is `models.published_loss`; among equals the larger model comes first.

    >>> from helpers import hardware
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> rows = compare(laptop, names=["qwen3-8b", "llama-3.1-70b", "qwen3-0.6b"])
    >>> [row.spec.name for row in sort_rows(rows, "least quality loss")]
    ['qwen3-0.6b', 'qwen3-8b', 'llama-3.1-70b']
    """
    if by not in ORDERS:
        raise ValueError(f"There is no order {by!r}; choose one of {', '.join(ORDERS)}.")
    return tuple(sorted(rows, key=functools.partial(_place, by)))


def _place(by, row):
    n_params = row.spec.n_params
    if by == "fewest parameters":
        return n_params
    if by == "most parameters":
        return -n_params
    if not row.best:
        return True, n_params, 0
    estimate = row.cells[row.best][0]
    if by == "least memory":
        return False, estimate.total_bytes, 0
    if by == "least quality loss":
        loss = 0.0 if row.best == "MXFP4" else models.published_loss(row.best)  # MXFP4 is how such a model was trained
        return False, math.inf if loss is None else loss, -n_params
    return False, active_bytes(estimate), 0


MOST_TOKENS = 2**27  # the largest context that `memory.Settings` takes


def longest_context(spec, quantization, machine, **settings):
    """The longest context in tokens (a multiple of 256) with which a model still fits a machine; 0 when none does.

    Found by bisection, because more tokens never need less. "Fits" includes "fits, but tight".
    *When it misleads*: it may be far beyond `spec.n_ctx_train`, where the model's answers get worse.

    >>> from helpers import hardware, models
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> n_ctx = longest_context(models.get("llama-3.1-8b"), "Q4_K_M", laptop)
    >>> [judge(memory.estimate(models.get("llama-3.1-8b"), n_ctx=n), laptop).status for n in (n_ctx, n_ctx + 256)]
    ['tight', 'no']
    """
    step = 256

    def fits(steps):
        estimate = memory.estimate(spec, quantization, n_ctx=steps * step, **settings)
        return judge(estimate, machine).status in ("fits", "tight")

    return step * _most(fits, MOST_TOKENS // step)


def most_gpu_layers(spec, quantization, machine, **settings):
    """The most layers whose share fits a machine's free video memory (a count, as `n_gpu_layers`); 0 when none does.

    The output matrix counts as one more layer. Whether the rest fits the memory is `judge`'s to say.

    >>> from helpers import hardware, models
    >>> spec, desktop = models.get("llama-3.1-8b"), hardware.Machine.pretend("desktop", 2**34, vram_bytes=4 * units.GIB)
    >>> n = most_gpu_layers(spec, "Q4_K_M", desktop, n_ctx=8192)
    >>> needs = [memory.estimate(spec, "Q4_K_M", n_ctx=8192, n_gpu_layers=layers) for layers in (n, n + 1)]
    >>> [sum(estimate.by_device["gpu"].values()) <= 4 * units.GIB for estimate in needs]
    [True, False]
    """

    def fits(n_gpu_layers):
        estimate = memory.estimate(spec, quantization, n_gpu_layers=n_gpu_layers, **settings)
        return _vram(estimate, machine).status != "no"

    return _most(fits, spec.n_layer + 1) if machine.gpus else 0


def _most(fits, most):
    """The largest number from 1 to `most` that fits, when all smaller ones do too; 0 when not even 1 fits."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle):
            least = middle
        else:
            most = middle - 1
    return least


@dataclass(frozen=True)
class Curve:
    """Memory of one model against context: `totals` maps tokens to bytes, `longest` is the longest context that fits.

    Without totals `problem` says why this model cannot have these settings.
    """

    spec: object
    totals: dict
    longest: int = 0
    problem: str = ""


def curves(specs, quantization, machine, contexts=CONTEXTS, **settings):
    """One `Curve` per model, with points at `contexts`, where its training ended and where it crosses the machine.

    >>> from helpers import hardware, models
    >>> laptop = hardware.Machine.pretend("laptop", ram_available_bytes=6 * units.GIB)
    >>> [curve] = curves([models.get("tinyllama-1.1b")], "Q4_K_M", laptop, contexts=(512, 4096))
    >>> sorted(curve.totals) == [512, 2048, 4096], curve.longest > 4096
    (True, True)
    """
    memory.Settings(**settings)
    return tuple(_curve(spec, quantization, machine, contexts, settings) for spec in specs)


def _curve(spec, quantization, machine, contexts, settings):
    try:
        longest = longest_context(spec, quantization, machine, **settings)
    except ValueError as error:
        return Curve(spec, {}, 0, str(error))
    more = {n for n in (spec.n_ctx_train, longest) if min(contexts) <= n <= max(contexts)}
    points = sorted({*contexts, *more})
    totals = {n: memory.estimate(spec, quantization, n_ctx=n, **settings).total_bytes for n in points}
    return Curve(spec, totals, longest)
