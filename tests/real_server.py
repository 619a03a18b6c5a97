"""A real server with a real model on a free port of this computer: what `test_servers.py` and the lessons' checks use.

python tests/real_server.py xllamacpp MODEL.gguf 8099        # llama.cpp's own server, inside a Python package
python tests/real_server.py llama_cpp MODEL.gguf 8099        # llama-cpp-python's server
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

STARTS_WITHIN_S = 60
N_CTX = 1024


def xllamacpp(path, port):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = ["127.0.0.1"]
    params.port, params.n_ctx, params.n_parallel = port, N_CTX, 1
    params.no_extra_bufts = True  # the repacked weights crash on processors with AMX
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    time.sleep(3600)


def llama_cpp(path, port):
    import llama_cpp
    from llama_cpp.server.__main__ import main

    defaults = llama_cpp.llama_model_default_params

    def without_repacking():
        params = defaults()
        params.use_extra_bufts = False  # the package has no argument for it
        return params

    llama_cpp.llama_model_default_params = llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    sys.argv[1:] = ["--model", path, "--port", str(port), "--n_ctx", str(N_CTX), "--n_threads", "2"]
    sys.exit(main())


@contextlib.contextmanager
def running(kind, path, folder):
    """(address, process) of a server that is ready; it ends with the block. Its words are in `folder/KIND.log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = Path(folder) / f"{kind}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, __file__, kind, str(path), str(port)],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, "GOMP_SPINCOUNT": "1000"},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/v1/models", process, log)
        yield url, process
    finally:
        process.kill()
        process.wait(10)


def wait_for(url, process, log, within_s=STARTS_WITHIN_S):
    """Wait until the address answers; RuntimeError with the log's end when it does not."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + within_s
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), direct.open(url, timeout=2):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not start:\n{log.read_text(errors='replace')[-3000:]}")


if __name__ == "__main__":
    {"xllamacpp": xllamacpp, "llama_cpp": llama_cpp}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
