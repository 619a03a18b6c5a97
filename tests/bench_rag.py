"""How well the pieces of the lessons are found, by words, by vectors of the packaged model, by both, and by luck.

Run: python tests/bench_rag.py [embedding-model.gguf]
"""

import os
import sys
import tempfile
import time

from quoted import quote

from helpers import download, rag, runner


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else download.default_model()
    with tempfile.TemporaryDirectory() as empty, runner.load(path, n_ctx=512, embeds_only=True) as model:
        os.environ["HELPERS_CACHE"] = empty  # vectors from before would take no time
        start = time.perf_counter()
        index = rag.index(model)
        quote("pieces of the lessons embedded, in all", len(index.chunks), time.perf_counter() - start, unit="s")
        for how in ("random", "words", "vectors", "both"):
            found = rag.measure(index, how=how)
            quote(f"right lesson found first, by {how}", found.n, 100 * found.hit_at_1, unit="% of questions")
            quote(f"right lesson among three, by {how}", found.n, 100 * found.hit_at_3, unit="% of questions")


if __name__ == "__main__":
    main()
