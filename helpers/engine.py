"""llama.cpp itself, asked without any weights: what would it reserve, and how would it quantize?

A worker process holds llama.cpp, because its checks may stop the process; a worker that dies is replaced at the next
call. Answers are cached: the same question costs microseconds the second time.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from . import architectures, formats, memory, mixes, units
from .child import Child, ChildDied
from .need import MissingPackage

TIMEOUT_S = 60
MAX_ANSWERS = 4096


class EngineError(RuntimeError):
    """llama.cpp refused or died; the message holds its own last words."""


class _Worker:
    """One worker process at a time, started when first needed and again after a death."""

    def __init__(self):
        self._lock = threading.Lock()
        self._child = None
        self._answers = OrderedDict()

    def ask(self, key, request):
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
            answer = self._answer(request())
            self._answers[key] = answer
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
            return answer

    def _answer(self, request):
        try:
            message = self._send(request)
        except ChildDied:
            message = None  # somebody may have killed the worker; a dry run can be asked again without harm
        try:
            message = message or self._send(request)
        except ChildDied as death:
            raise EngineError(f"llama.cpp stopped during its dry run: {death.how}.{_last_words(death.log)}") from death
        if "ok" in message:
            return message["ok"]
        if message.get("import"):
            raise MissingPackage(
                "To ask the engine, the package llama-cpp-python is needed. Install it with: python start.py "
                f"(or conda: environment.yml). {message['error']}"
            )
        raise EngineError(f"llama.cpp refused this model or these settings.{_last_words(message['error'])}")

    def _send(self, request):
        if self._child is None or not self._child.alive:
            self._close()
            # Without this, a failed check starts a debugger, whose backtrace buries llama.cpp's own words.
            self._child = Child("helpers.engine_worker", env={"GGML_NO_BACKTRACE": "1"})
        try:
            self._child.send(request)
            return self._child.receive(timeout=TIMEOUT_S)
        except TimeoutError as error:
            self._close()
            raise EngineError(f"llama.cpp gave no answer within {TIMEOUT_S} s; the next call starts afresh.") from error
        except BaseException:  # also Ctrl-C: a late answer must not be taken for the next one's
            self._close()
            raise

    def _close(self):
        if self._child is not None:
            self._child.close()
            self._child = None

    def forget(self):
        with self._lock:
            self._answers.clear()

    @property
    def pid(self):
        return self._child.pid if self._child is not None and self._child.alive else None

    def close(self):
        with self._lock:
            self._close()


_worker = _Worker()
forget = _worker.forget
close = _worker.close


def worker_pid():
    """Process number of the running worker, or None; for tests and the curious."""
    return _worker.pid


def available():
    """True when llama-cpp-python is installed here (it is not imported into this process)."""
    import importlib.util

    return importlib.util.find_spec("llama_cpp") is not None


def reserve(spec_or_path, quantization="Q4_K_M", **settings):
    """Memory that llama.cpp itself would reserve, in bytes, asked without weights.

    Parameters are those of `memory.estimate`; instead of a `ModelSpec`, a path to a GGUF file is taken as it is (its
    own types, `quantization` ignored).

    Returns
    -------
    Estimate
        With `source == "engine"`. KV, compute and output are llama.cpp's own printed figures (rounded to 0.01 MiB);
        the weights are the sum over the tensors it was given; the process around it is the formula's.

    Raises
    ------
    ValueError
        For a shape or settings that cannot be.
    EngineError
        When llama.cpp refuses or dies.

    Notes
    -----
    *When it misleads*: reserved is not resident. Pages count when they are first written, so a short conversation uses
    less than it reserves. The dry run covers the CPU; repacked copies come from the formula.

    >>> from helpers import models
    >>> reserve(models.get("llama-3.1-8b"), n_ctx=8192).kv_bytes == 8192 * 32 * 2 * 1024 * 2  # doctest: +SKIP
    True
    """
    chosen = memory.Settings(**settings)
    if not isinstance(spec_or_path, architectures.ModelSpec):
        return _reserve_file(Path(spec_or_path), chosen)
    spec = spec_or_path
    architectures.check(spec)
    chosen.resolve(spec)
    types = tensor_types(spec, quantization)
    closed = memory.estimate(spec, types, **settings)  # before the engine: what cannot be is a ValueError
    key = ("reserve", spec, _types_key(quantization), chosen)
    sizes = _worker.ask(key, lambda: {**_request(spec, types, chosen), "do": "reserve"})
    name = f"{spec.title or spec.name}, {memory.quantization_name(quantization)}"
    return _estimate(sizes, closed.weights_bytes, closed, name)


def _reserve_file(path, chosen):
    from . import gguf

    header = gguf.read_header(path)
    stat = path.stat()
    key = ("file", str(path.resolve()), stat.st_size, stat.st_mtime_ns, chosen)
    request = {"do": "reserve", "path": str(path.resolve()), "settings": _engine_settings(chosen)}
    try:
        closed = memory.estimate(header.spec, header.tensor_types, **asdict(chosen))
    except ValueError:  # a family or a layout without a table here; llama.cpp will say whether it can be
        closed = memory.estimate(header.spec, header.tensor_bytes, **asdict(chosen))
    return _estimate(_worker.ask(key, lambda: request), header.tensor_bytes, closed, path.name)


def _estimate(sizes, weights, closed, name):
    notes = ["Figures of llama.cpp's own dry run on the CPU."]
    if closed.settings["n_gpu_layers"]:
        notes.append("No GPU was asked: the dry run shows everything on the CPU.")
    return memory.Estimate(
        weights_bytes=weights,
        kv_bytes=sizes.get("k_bytes", 0) + sizes.get("v_bytes", 0) + sizes.get("recurrent_bytes", 0),
        compute_bytes=sizes.get("compute_bytes", 0),
        output_bytes=sizes.get("output_bytes", 0),
        overhead_bytes=closed.by_device["cpu"]["overhead"] if closed.by_device else closed.overhead_bytes,
        repacked_bytes=closed.repacked_bytes,
        vision_bytes=closed.vision_bytes,
        source="engine",
        assumptions=tuple(notes),
        settings=closed.settings,
        name=name,
        spec=closed.spec,
        quantization=closed.quantization,
    )


def tensor_types(spec, quantization):
    """Tensor name -> ggml type, chosen by llama.cpp's own quantizer in a dry run.

    A mapping is given back as it is. Raises `ValueError` for unknown quantizations and impossible shapes.
    """
    if isinstance(quantization, Mapping):
        return dict(quantization)
    if not isinstance(quantization, str):
        raise ValueError(
            f"The engine needs the name of a quantization or a type for each tensor, not {quantization!r}."
        )
    wanted = formats.quantization(quantization)
    architectures.check(spec)
    return dict(_worker.ask(("types", spec, wanted.name), lambda: _types_request(spec, wanted)))


def _types_request(spec, wanted):
    # The ghost to be quantized holds 16-bit matrices and 32-bit vectors, as a converter writes them.
    types = {t.name: mixes.tensor_type(t.name, t.shape, spec, "F16") for t in architectures.tensors(spec)}
    return {"do": "tensor_types", "spec": asdict(spec), "types": types, "file_type": wanted.file_type}


def weights_bytes(spec, quantization):
    """Bytes of all tensors at a quantization, types chosen by llama.cpp's quantizer.

    *When it misleads*: as `memory.weights_bytes`; the file adds its header.
    """
    types = tensor_types(spec, quantization)
    return sum(formats.tensor_bytes(types[t.name], t.shape) for t in architectures.tensors(spec))


def _types_key(quantization):
    return quantization.upper() if isinstance(quantization, str) else tuple(sorted(quantization.items()))


def _request(spec, types, chosen):
    return {"spec": asdict(spec), "types": types, "settings": _engine_settings(chosen)}


def _engine_settings(chosen):
    return {
        **asdict(chosen),
        "type_k": formats.block_type(chosen.cache_type_k).type_id,
        "type_v": formats.block_type(chosen.cache_type_v).type_id,
    }


def _last_words(log):
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return units.printable(" It said: " + " / ".join(lines[-3:]), 2000) if lines else ""
