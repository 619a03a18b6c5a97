"""How well the pieces of the lessons are found, by words, by vectors of the packaged model, by both, and by luck.

Run: python tests/bench_rag.py [embedding-model.gguf]
"""

import sys
import time

from helpers import download, rag, runner


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else download.default_model()
    with runner.load(path, n_ctx=512, embeds_only=True) as model:
        start = time.perf_counter()
        index = rag.index(model)
        print(f"{path.name if hasattr(path, 'name') else path}: {index}, {time.perf_counter() - start:.1f} s")
        for how in ("random", "words", "vectors", "both"):
            print(rag.measure(index, how=how))


if __name__ == "__main__":
    main()
