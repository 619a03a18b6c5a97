"""The engine's child process: the only place that calls llama.cpp's dry runs. Run by `engine`, not by people."""

import ctypes
import os
import re
import sys

from . import ghost, units
from .architectures import ModelSpec
from .child import Parent

DEBUG = 1  # GGML_LOG_LEVEL_DEBUG
SIZES = {  # what llama.cpp prints -> our name; every match is added up
    "compute_bytes": re.compile(r"(\S+)\s+compute buffer size = +([\d.]+) MiB"),
    "output_bytes": re.compile(r"(\S+)\s+output buffer size = +([\d.]+) MiB"),
    "recurrent_bytes": re.compile(r"(memory_recurrent): size = +([\d.]+) MiB"),
}
KV = re.compile(
    r"(llama_kv_cache): size = +[\d.]+ MiB \( *(\d+) cells.*K \(\w+\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB"
)
TENSOR = re.compile(r"\] +(\S+) +- \[([ \d,]+)\], type = +(\w+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?")


class Llama:
    """llama.cpp by ctypes, its log kept as text."""

    def __init__(self):
        import llama_cpp

        self.lib = llama_cpp
        self.log = []
        self._callback = llama_cpp.llama_log_callback(self._keep)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    def _keep(self, level, text, _):
        if level != DEBUG or b"size" in text:  # a thousand debug lines per dry run cost more than the run itself
            self.log.append(text.decode(errors="replace"))

    def take_log(self):
        text, self.log = "".join(self.log), []
        return text

    def reserve(self, path, settings):
        """Sizes in bytes that llama.cpp reserves for this file and these settings, weights not loaded."""
        lib = self.lib
        model_params = lib.llama_model_default_params()
        model_params.no_alloc = True
        model_params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # the mmap path asserts in a dry run
        model_params.use_extra_bufts = False  # repacking aborts a dry run of some families
        model_params.n_gpu_layers = settings["n_gpu_layers"]
        model = lib.llama_model_load_from_file(str(path).encode(), model_params)
        if not model:
            raise RuntimeError(self.take_log())
        try:
            context = lib.llama_init_from_model(model, self._context_params(settings))
            if not context:
                raise RuntimeError(self.take_log())
            lib.llama_free(context)
        finally:
            lib.llama_model_free(model)
        return parse_sizes(self.take_log())

    def _context_params(self, settings):
        params = self.lib.llama_context_default_params()
        for name in ("n_ctx", "n_batch", "n_ubatch", "n_outputs_max", "kv_unified", "swa_full"):
            setattr(params, name, settings[name])
        params.n_seq_max = settings["n_parallel"]
        params.flash_attn_type = 1 if settings["flash_attn"] else 0
        params.type_k, params.type_v = settings["type_k"], settings["type_v"]
        params.n_threads = params.n_threads_batch = 1
        return params

    def tensor_types(self, path, file_type):
        """Tensor name -> type that llama.cpp's quantizer would choose, without quantizing anything."""
        params = self.lib.llama_model_quantize_default_params()
        params.ftype, params.dry_run, params.allow_requantize, params.nthread = file_type, True, True, 1
        if self.lib.llama_model_quantize(str(path).encode(), os.devnull.encode(), ctypes.byref(params)):
            raise RuntimeError(self.take_log())
        return parse_types(self.take_log())


def parse_sizes(log):
    """llama.cpp's printed buffer sizes in bytes; what it does not print is absent.

    >>> parse_sizes("sched_reserve:        CPU compute buffer size =     2.50 MiB")["compute_bytes"]
    2621440
    """
    sizes = {}
    for name, pattern in SIZES.items():
        for _, mib in pattern.findall(log):
            sizes[name] = sizes.get(name, 0) + round(float(mib) * units.MIB)
    caches = KV.findall(log)
    if caches:
        sizes["k_bytes"] = sum(round(float(k) * units.MIB) for _, _, k, _ in caches)
        sizes["v_bytes"] = sum(round(float(v) * units.MIB) for _, _, _, v in caches)
        sizes["cells"] = [int(cells) for _, cells, _, _ in caches]
    return sizes


def parse_types(log):
    """Tensor name -> ggml type, from the quantizer's log.

    >>> parse_types("[ 1/ 2] output.weight - [ 64, 32,  1,  1], type =    f16, size = 0.004 MiB -> 0.001 MiB (q6_K)")
    {'output.weight': 'Q6_K'}
    """
    return {name: (new or old).upper() for name, _, old, new in TENSOR.findall(log)}


def serve():
    parent = Parent()
    sys.stdout = sys.stderr
    llama = None
    for request in parent.requests():
        try:
            llama = llama or Llama()
            parent.send({"ok": answer(llama, request)})
        except Exception as error:  # every failure must reach the parent as an answer
            parent.send({"error": f"{type(error).__name__}: {error}", "import": isinstance(error, ImportError)})


def answer(llama, request):
    if "path" in request:
        return llama.reserve(request["path"], request["settings"])
    spec = ModelSpec(**{key: tuple(v) if isinstance(v, list) else v for key, v in request["spec"].items()})
    with ghost.place() as path:
        ghost.write(spec, request["types"], path)
        if request["do"] == "tensor_types":
            return llama.tensor_types(path, request["file_type"])
        return llama.reserve(path, request["settings"])


if __name__ == "__main__":
    serve()
