"""The quality room's child process: llama.cpp's quantizer, and what a model expects of a text. Run by `quality`.

The scores of a reference are written in the file format of llama.cpp's own perplexity program, 16 bits for each token
of the vocabulary, so either program can read what the other has written.
"""

import ctypes
import os
import re
import struct
import sys
import time
import traceback
from pathlib import Path

from .child import ERROR, Log, Parent, Refused

MAGIC = b"_logits_"
RANGE = 16.0  # natural-log units below the largest score that are kept; what is less likely than e^-16 counts as never
STEPS = 65535
ROWS_AT_ONCE = 32  # keeps numpy's copies of the scores small: 32 rows of 262,144 tokens are 34 MB
TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+)")
TYPES = re.compile(r"\] +(\S+) +- \[([ \d,]+)\], type = +(\w+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?")


class Llama:
    """llama.cpp by its C interface."""

    def __init__(self, parent):
        try:
            import llama_cpp
        except Exception as error:  # missing, or its library does not load: either way it must be installed anew
            raise Refused("import", str(error)) from error
        self.lib, self.parent = llama_cpp, parent
        self.log = Log(llama_cpp, shown=ERROR)  # the quantizer has a line for every tensor
        llama_cpp.llama_backend_init()

    def quantize(self, request, dry_run=False):
        """Write a quantized copy, or only say which type every tensor would get."""
        params = self.lib.llama_model_quantize_default_params()
        params.ftype, params.nthread = request["file_type"], request["n_threads"]
        params.allow_requantize, params.dry_run = True, dry_run
        self.log.listener = None if dry_run else self._tell_tensor(request["id"])
        out = os.devnull if dry_run else request["out"]
        try:
            failed = self.lib.llama_model_quantize(request["path"].encode(), out.encode(), ctypes.byref(params))
        finally:
            self.log.listener = None
        text, errors = self.log.take()
        if failed:
            raise Refused("quantize", errors or text[-2000:] or "no reason given")
        return {name: (new or old).upper() for name, _, old, new in TYPES.findall(text)}

    def _tell_tensor(self, request_id):
        def tell(text):
            found = TENSOR.search(text)
            if found:
                done, total, name = found.groups()
                self.parent.send({"id": request_id, "progress": (int(done) - 1) / int(total), "tensor": name})

        return tell

    def measure(self, request):
        """The statistics of one model on one text; writes or reads the reference's scores."""
        model = _Loaded(self, request)
        try:
            return model.measure(request)
        finally:
            model.close()


class _Loaded:
    """One model with room for one chunk of text."""

    def __init__(self, llama, request):
        lib = self.lib = llama.lib
        self.parent, self.n_ctx, self.context = llama.parent, request["n_ctx"], None
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = False  # a second copy of the weights; on CPUs with AMX it crashes
        self.model = lib.llama_model_load_from_file(request["path"].encode(), params)
        if not self.model:
            raise Refused("load", llama.log.take()[1] or "no reason given")
        self.context = lib.llama_init_from_model(self.model, self._context_params(request))
        if not self.context:
            raise Refused("load", llama.log.take()[1] or "it could not reserve the memory for the context")
        if lib.llama_model_has_encoder(self.model) or not lib.llama_get_memory(self.context):
            raise Refused("load", "it is not a model that continues text (an encoder, or an embedding model)")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self.batch = lib.llama_batch_init(self.n_ctx, 0, 1)

    def _context_params(self, request):
        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = self.n_ctx
        params.n_outputs_max = self.n_ctx - self.n_ctx // 2
        params.n_threads = params.n_threads_batch = request["n_threads"]
        return params

    def close(self):
        if self.context:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokens(self, text):
        """Token ids of a text, special words taken as plain text; the start token first where it is wanted."""
        data = text.encode(errors="replace")
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        n = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, True, False)
        if n < 0:
            raise Refused("decode", f"the text could not be split into tokens (llama.cpp answered {n})")
        return ids[:n]

    def measure(self, request):
        reference = Reference.open(request["base"]) if request.get("base") else None
        if reference:
            self._must_match(reference)
            tokens, n_chunks = reference.tokens, reference.n_chunks
        else:
            tokens = self.tokens(request["text"])
            n_chunks = min(request["max_chunks"] or len(tokens), len(tokens) // self.n_ctx)
            if n_chunks < 1:
                raise Refused(
                    "value", f"the text has {len(tokens)} tokens for this model, one chunk needs {self.n_ctx}"
                )
        scores = Scores(reference)
        start = time.perf_counter()
        writer = Writer(request["write"], self.n_ctx, self.n_vocab, n_chunks, tokens) if request.get("write") else None
        try:
            for chunk in range(n_chunks):
                ids = tokens[chunk * self.n_ctx : (chunk + 1) * self.n_ctx]
                logits = self._logits(ids)
                self._score(chunk, logits, ids, scores, writer)
                self.parent.send({"id": request["id"], "progress": (chunk + 1) / n_chunks})
        finally:
            if writer:
                writer.close()
        seconds = time.perf_counter() - start
        return {**scores.result(), "n_chunks": n_chunks, "seconds": seconds}

    def _must_match(self, reference):
        if (reference.n_vocab, reference.n_ctx) != (self.n_vocab, self.n_ctx):
            raise Refused(
                "vocabulary",
                f"its vocabulary has {self.n_vocab} tokens and the reference's has {reference.n_vocab} "
                f"(chunks of {self.n_ctx} and {reference.n_ctx} tokens)",
            )

    def _logits(self, ids):
        """Scores, shape (n_ctx - n_ctx // 2, n_vocab), of what follows each token of the second half of a chunk."""
        import numpy

        lib, first = self.lib, self.n_ctx // 2
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        if lib.llama_vocab_get_add_bos(self.vocab):  # every chunk begins as a text begins
            ids = [lib.llama_vocab_bos(self.vocab), *ids[1:]]
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
            batch.logits[i] = i >= first
        code = lib.llama_decode(self.context, batch)
        if code:
            raise Refused("decode", f"llama.cpp answered {code} to a chunk of {len(ids)} tokens")
        pointer = lib.llama_get_logits_ith(self.context, first)
        return numpy.ctypeslib.as_array(pointer, shape=(len(ids) - first, self.n_vocab))

    def _score(self, chunk, logits, ids, scores, writer):
        first = self.n_ctx // 2
        n_scored = self.n_ctx - first - 1  # the last token of a chunk has no next one to compare with
        for row in range(0, n_scored, ROWS_AT_ONCE):
            end = min(row + ROWS_AT_ONCE, n_scored)
            block = logits[row:end]
            if writer:
                writer.add(block)
            scores.add(block, ids[first + row + 1 : first + end + 1], chunk * n_scored + row)


class Writer:
    """Writes a reference's scores; the caller moves the finished file to its place."""

    def __init__(self, path, n_ctx, n_vocab, n_chunks, tokens):
        self.file, self.n_vocab = Path(path).open("wb"), n_vocab  # noqa: SIM115 (closed by `close`)
        self.file.write(MAGIC + struct.pack("<Iii", n_ctx, n_vocab, n_chunks))
        self.file.write(struct.pack(f"<{n_chunks * n_ctx}i", *tokens[: n_chunks * n_ctx]))

    def add(self, logits):
        """Rows of scores as log-probabilities in 16 bits: scale and least value first, then a step for each token."""
        import numpy

        largest = logits.max(axis=1, keepdims=True)
        least = numpy.maximum(logits.min(axis=1, keepdims=True), largest - numpy.float32(RANGE))
        scale = (largest - least) / numpy.float32(STEPS)
        log_sum = numpy.log(numpy.exp(logits - largest).sum(axis=1, keepdims=True, dtype=numpy.float64))
        steps = numpy.rint((numpy.maximum(logits, least) - least) / numpy.where(scale, scale, 1))
        rows = numpy.zeros((len(logits), _row_words(self.n_vocab)), numpy.uint16)
        rows[:, 0:2] = scale.astype("<f4").view("<u2")
        rows[:, 2:4] = (least - largest - log_sum).astype("<f4").view("<u2")
        rows[:, 4 : 4 + self.n_vocab] = numpy.minimum(steps, STEPS)
        self.file.write(rows.tobytes())

    def close(self):
        self.file.close()


class Reference:
    """The scores of a reference, read from its file row by row."""

    @classmethod
    def open(cls, path):
        try:
            return cls(Path(path))
        except (OSError, ValueError, struct.error) as error:
            raise Refused("base", str(error)) from error

    def __init__(self, path):
        import numpy

        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError(f"{path.name} does not begin as a file of a reference's scores begins")
            self.n_ctx, self.n_vocab, self.n_chunks = struct.unpack("<Iii", file.read(12))
            n = self.n_ctx * self.n_chunks
            self.tokens = list(struct.unpack(f"<{n}i", file.read(4 * n)))
            offset = file.tell()
        shape = (self.n_chunks * (self.n_ctx - self.n_ctx // 2 - 1), _row_words(self.n_vocab))
        self.rows = numpy.memmap(path, "<u2", "r", offset, shape)

    def log_probabilities(self, start, end):
        """Natural log-probabilities of rows `start` to `end`, shape (rows, n_vocab)."""
        import numpy

        rows = numpy.array(self.rows[start:end])
        scale, least = rows[:, 0:2].copy().view("<f4"), rows[:, 2:4].copy().view("<f4")
        return rows[:, 4 : 4 + self.n_vocab] * scale + least


def _row_words(n_vocab):
    """16-bit words of one row: two 32-bit numbers, and a step for each token, padded to an even count."""
    return 2 * ((n_vocab + 1) // 2) + 4


class Scores:
    """What was seen so far, one number per scored token; the definitions are llama.cpp's."""

    def __init__(self, reference):
        self.reference = reference
        self.nll, self.nll_base, self.kld, self.dp, self.same_top = [], [], [], [], []

    def add(self, logits, next_tokens, row):
        """`logits`: (rows, n_vocab); `next_tokens`: what the text goes on with; `row`: place of the first row."""
        import numpy

        everyone, target = numpy.arange(len(logits)), numpy.asarray(next_tokens)
        largest = logits.max(axis=1, keepdims=True)
        log_sum = numpy.log(numpy.exp(logits - largest).sum(axis=1, keepdims=True, dtype=numpy.float64))
        log_p = logits - (largest + log_sum).astype(numpy.float32)
        nll = -log_p[everyone, target].astype(numpy.float64)
        self.nll.extend(nll)
        if not self.reference:
            return
        base = self.reference.log_probabilities(row, row + len(logits))
        terms = numpy.where(base > -RANGE, numpy.exp(base) * (base - log_p), 0)
        nll_base = -base[everyone, target].astype(numpy.float64)
        self.nll_base.extend(nll_base)
        self.kld.extend(terms.sum(axis=1, dtype=numpy.float64))
        self.dp.extend(numpy.exp(-nll) - numpy.exp(-nll_base))
        self.same_top.extend(logits.argmax(axis=1) == base.argmax(axis=1))

    def result(self):
        """Everything in plain numbers. Error bars are standard errors of the mean, as if tokens were independent."""
        import numpy

        nll, error = mean_and_error(self.nll)
        if not numpy.isfinite(nll):
            raise Refused("decode", "its scores are not numbers. The file is damaged: fetch it or make it again")
        perplexity = float(numpy.exp(nll))
        found = {"perplexity": perplexity, "perplexity_error": perplexity * error, "n_tokens": len(self.nll)}
        if not self.reference:
            same = {"kld_mean": 0.0, "kld_mean_error": 0.0, "kld_median": 0.0, "kld_q99": 0.0, "top1_agreement": 1.0}
            return {**found, **same, "rms_dp": 0.0, "mean_dp": 0.0, "ln_ratio": 0.0, "ln_ratio_error": 0.0}
        kld, kld_error = mean_and_error(self.kld)
        ratio, ratio_error = mean_and_error(numpy.subtract(self.nll, self.nll_base))
        return {
            **found,
            "kld_mean": kld,
            "kld_mean_error": kld_error,
            "kld_median": float(numpy.median(self.kld)),
            "kld_q99": float(numpy.quantile(self.kld, 0.99)),
            "top1_agreement": float(numpy.mean(self.same_top)),
            "rms_dp": float(numpy.sqrt(numpy.mean(numpy.square(self.dp)))),
            "mean_dp": float(numpy.mean(self.dp)),
            "ln_ratio": ratio,
            "ln_ratio_error": ratio_error,
        }


def mean_and_error(values):
    """Mean and its standard error: the square root of (mean of squares - square of mean) / (n - 1).

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    import numpy

    values = numpy.asarray(values, numpy.float64)
    return float(values.mean()), float(values.std() / max(len(values) - 1, 1) ** 0.5)


def answer(llama, request):
    if request["do"] == "plan":
        return llama.quantize(request, dry_run=True)
    if request["do"] == "quantize":
        return llama.quantize(request)
    return llama.measure(request)


def serve():
    parent = Parent()
    sys.stdout = sys.stderr
    llama = None
    for request in parent.requests():
        try:
            llama = llama or Llama(parent)
            parent.unfinished = tuple(filter(None, (request.get("out"), request.get("write"))))
            parent.send({"id": request["id"], "done": answer(llama, request)})
        except Refused as error:
            parent.send({"id": request["id"], "error": str(error), "kind": error.kind})
        except Exception as error:  # every failure must reach the parent as an answer
            traceback.print_exc()
            parent.send({"id": request["id"], "error": f"{type(error).__name__}: {error}", "kind": "bug"})


if __name__ == "__main__":
    serve()
