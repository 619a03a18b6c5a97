"""Load a model with all its weights and print what llama.cpp says: `python real_load.py model.gguf '{"n_ctx": 2048}'`.

A program for the tests, run in a process of its own because llama.cpp may stop the process. It loads, reserves and
leaves; it never calculates.
"""

import ctypes
import json
import re
import subprocess
import sys

REPACKED = re.compile(r"(AMX|CPU_REPACK) model buffer size = +([\d.]+) MiB")


def log_of_a_real_load(path, **settings):
    """What llama.cpp printed while a fresh process loaded `path` and made a context."""
    done = subprocess.run(
        [sys.executable, __file__, str(path), json.dumps(settings)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def main(path, settings):
    import llama_cpp

    log = []

    def keep(_, text, __):
        log.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = settings.pop("use_extra_bufts", False)
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.swa_full = False
    for name, value in settings.items():
        setattr(params, name, value)
    context = llama_cpp.llama_init_from_model(model, params)
    assert model and context, "".join(log)[-2000:]
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    print("".join(log))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
