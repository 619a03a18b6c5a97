"""The same choice elsewhere: the cell of Python, the llama-server command, the Ollama Modelfile. Text only."""

import shlex

from . import memory

OLLAMA_SERVES = (
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
DEFAULTS = memory.Settings()
SHAPE = (
    *("n_layer", "n_embd", "n_head", "n_head_kv", "n_embd_head_k", "n_embd_head_v", "n_ff", "n_vocab", "tied"),
    *("n_swa", "swa_pattern", "n_expert", "n_expert_used", "n_ff_exp"),
)


def python_cell(spec, quantization, settings):
    """A cell that computes this choice again; settings at their default are left out.

    >>> from helpers import models
    >>> print(python_cell(models.get("qwen3-8b"), "Q4_K_M", memory.Settings(n_ctx=8192)))
    from helpers import engine, fit, hardware, memory, models
    spec = models.get("qwen3-8b")
    needs = memory.estimate(spec, "Q4_K_M", n_ctx=8192)
    print(fit.verdict(needs, hardware.detect()))
    print(engine.reserve(spec, "Q4_K_M", n_ctx=8192))
    """
    changed = {name: value for name, value in vars(settings).items() if value != getattr(DEFAULTS, name)}
    arguments = ", ".join([f'"{quantization}"', *(f"{name}={value!r}" for name, value in changed.items())])
    arguments = arguments.replace("'", '"')
    return "\n".join(
        (
            "from helpers import engine, fit, hardware, memory, models",
            f'spec = models.get("{spec.name}")',
            f"needs = memory.estimate(spec, {arguments})",
            "print(fit.verdict(needs, hardware.detect()))",
            f"print(engine.reserve(spec, {arguments}))",
        )
    )


def llama_server(spec, quantization, settings, path=None):
    """The `llama-server` command that runs this choice; `path` is your file, else a made-up name stands for it.

    Left alone it keeps a second, repacked copy of many weights, so a choice without one says so. The number of outputs
    is no option of its: it sets that by itself.

    >>> from helpers import models
    >>> print(llama_server(models.get("qwen3-8b"), "Q4_K_M", memory.Settings(n_ctx=8192)))
    llama-server --model qwen3-8b-Q4_K_M.gguf --ctx-size 8192 --parallel 1 --flash-attn on --no-repack
    """
    options = [
        ("--model", shlex.quote(str(path or f"{spec.name}-{quantization}.gguf"))),
        ("--ctx-size", settings.n_ctx),
        ("--parallel", settings.n_parallel),
        ("--flash-attn", "on" if settings.flash_attn else "off"),
    ]
    for option, name in (
        ("--cache-type-k", "cache_type_k"),
        ("--cache-type-v", "cache_type_v"),
        ("--batch-size", "n_batch"),
        ("--ubatch-size", "n_ubatch"),
    ):
        if getattr(settings, name) != getattr(DEFAULTS, name):
            options.append((option, getattr(settings, name)))
    if settings.n_gpu_layers:
        options.append(("--n-gpu-layers", 999 if settings.n_gpu_layers < 0 else settings.n_gpu_layers))
    if settings.tensor_split:
        options.append(("--tensor-split", ",".join(map(str, settings.tensor_split))))
    switches = (("--kv-unified", settings.kv_unified), ("--swa-full", settings.swa_full))
    switches += (("--no-repack", not settings.repack),)
    words = [*(f"{option} {value}" for option, value in options), *(name for name, on in switches if on)]
    return " ".join(["llama-server", *words])


def ollama_tag(spec, quantization):
    """The exact Ollama tag of a model at a quantization, or None when Ollama serves none.

    >>> from helpers import models
    >>> ollama_tag(models.get("llama-3.1-8b"), "Q4_K_M")
    'llama3.1:8b-instruct-q4_K_M'
    >>> ollama_tag(models.get("llama-3.1-8b"), "IQ3_XS") is None
    True
    """
    if not spec.ollama_tag or quantization not in (spec.ollama_serves or OLLAMA_SERVES):
        return None
    suffix = "fp16" if quantization == "F16" else "q" + quantization[1:]
    return f"{spec.ollama_tag}-{suffix}"


def modelfile(spec, quantization, settings, path=None):
    """The Ollama Modelfile of this choice; what is a setting of Ollama's server stands in a comment.

    With `path` it takes that GGUF file, else Ollama's own tag or a made-up name. Ollama counts the context per slot,
    llama.cpp for all slots together.

    >>> from helpers import models
    >>> print(modelfile(models.get("qwen3-8b"), "Q4_K_M", memory.Settings(n_ctx=8192)))
    FROM qwen3:8b-q4_K_M
    PARAMETER num_ctx 8192
    """
    source = path or ollama_tag(spec, quantization) or f"./{spec.name}-{quantization}.gguf"
    n_ctx = (settings.n_ctx or spec.n_ctx_train) // settings.n_parallel
    lines = [f"FROM {source}", f"PARAMETER num_ctx {n_ctx}"]
    if settings.n_gpu_layers:
        lines.append(f"PARAMETER num_gpu {999 if settings.n_gpu_layers < 0 else settings.n_gpu_layers}")
    if settings.n_ubatch != DEFAULTS.n_ubatch:
        lines.append(f"PARAMETER num_batch {settings.n_ubatch}")
    server = []
    if not settings.flash_attn:
        server.append("OLLAMA_FLASH_ATTENTION=0")
    elif settings.cache_type_k != "f16":
        server.append(f"OLLAMA_KV_CACHE_TYPE={settings.cache_type_k} OLLAMA_FLASH_ATTENTION=1")
    if settings.n_parallel > 1:
        server.append(f"OLLAMA_NUM_PARALLEL={settings.n_parallel}")
    if server:
        lines.append(f"# start the server with: {' '.join(server)} ollama serve")
    return "\n".join(lines)


def ollama_run(spec, quantization, path=None):
    """What to type for Ollama: its own tag where it serves this choice, else the Modelfile's model under a new name.

    `ollama run` downloads the tag when it is not there; it keeps its own default context unless the model comes from
    a Modelfile with `num_ctx`.

    >>> from helpers import models
    >>> print(ollama_run(models.get("llama-3.1-8b"), "Q4_K_M"))
    ollama run llama3.1:8b-instruct-q4_K_M
    >>> print(ollama_run(models.get("llama-3.1-8b"), "IQ3_XS"))
    ollama create my-llama-3.1-8b -f Modelfile
    ollama run my-llama-3.1-8b
    """
    tag = None if path else ollama_tag(spec, quantization)
    mine = f"my-{spec.name}"
    return f"ollama run {tag}" if tag else f"ollama create {mine} -f Modelfile\nollama run {mine}"


def lm_studio(spec, quantization, settings, path=None):
    """The `lms` commands that put a GGUF file into LM Studio, load it and serve it; from its documentation, not run.

    `--symbolic-link` leaves the file where it is; without it `lms import` would move it. The type of the cache and the
    number of slots are set in LM Studio's own window.

    >>> from helpers import models
    >>> print(lm_studio(models.get("qwen3-8b"), "Q4_K_M", memory.Settings(n_ctx=8192)))
    lms import qwen3-8b-Q4_K_M.gguf --symbolic-link --user-repo local/qwen3-8b
    lms load local/qwen3-8b --identifier qwen3-8b --context-length 8192 --gpu off
    lms server start
    """
    file = shlex.quote(str(path or f"{spec.name}-{quantization}.gguf"))
    gpu = "off" if not settings.n_gpu_layers else "max"
    if 0 < settings.n_gpu_layers <= spec.n_layer:
        gpu = f"{settings.n_gpu_layers / (spec.n_layer + 1):.2f}"
    n_ctx = settings.n_ctx or spec.n_ctx_train
    return "\n".join(
        (
            f"lms import {file} --symbolic-link --user-repo local/{spec.name}",
            f"lms load local/{spec.name} --identifier {spec.name} --context-length {n_ctx} --gpu {gpu}",
            "lms server start",
        )
    )


def everywhere(spec, quantization, settings):
    """The same choice as named pieces of text: a tuple of (title, text)."""
    return (
        ("In Python", python_cell(spec, quantization, settings)),
        ("llama.cpp", llama_server(spec, quantization, settings)),
        ("Ollama Modelfile", modelfile(spec, quantization, settings)),
    )


def design_cell(start, spec, quantization, settings):
    """A cell that makes a designed model again, from the catalogue's `start`, and asks formula and engine about it.

    >>> from helpers import architectures, models
    >>> start = models.get("tinyllama-1.1b")
    >>> print(design_cell(start, architectures.redesign(start, n_layer=44), "Q4_K_M", memory.Settings(n_ctx=8192)))
    from helpers import architectures, engine, memory, models
    start = models.get("tinyllama-1.1b")
    spec = architectures.redesign(start, n_layer=44)
    print(memory.estimate(spec, "Q4_K_M", n_ctx=8192))
    print(engine.reserve(spec, "Q4_K_M", n_ctx=8192))
    """
    shape = [f'architecture="{spec.architecture}"'] if spec.architecture != start.architecture else []
    shape += [f"{name}={getattr(spec, name)!r}" for name in SHAPE if getattr(spec, name) != getattr(start, name)]
    changed = {name: value for name, value in vars(settings).items() if value != getattr(DEFAULTS, name)}
    asked = ", ".join(["spec", f'"{quantization}"', *(f"{name}={value!r}" for name, value in changed.items())])
    asked = asked.replace("'", '"')
    return "\n".join(
        (
            "from helpers import architectures, engine, memory, models",
            f'start = models.get("{start.name}")',
            f"spec = architectures.redesign({', '.join(['start', *shape])})",
            f"print(memory.estimate({asked}))",
            f"print(engine.reserve({asked}))",
        )
    )
