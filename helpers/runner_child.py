"""The runner's child process: one loaded model and the loop that produces tokens. Run by `runner`, not by people.

Every request carries an id, and so does every message about it; the last one has a field `done` or `error`.
"""

import codecs
import ctypes
import random
import signal
import sys
import time
import traceback

from .child import Child, ChildDied, Log, Parent, Refused

PROGRESS_EVERY_S = 0.1
TEMPLATE_WITHIN_S = 5.0  # for filling in a chat template, which takes well under a millisecond
STARTS_WITHIN_S = 60.0  # the process for that, on a machine where thirty learners start at once
EMBED_TOKENS = 256  # the longest text that becomes one vector; the scratch memory grows with it


class Template:
    """A chat template in a process of its own: it is a program from the model's file, so it may try anything.

    A process that took too long, or died, is replaced at the next call.
    """

    def __init__(self, source, bos, eos):
        self.source, self.special, self._child = source, {"bos": bos, "eos": eos}, None
        self._start()

    def fill_in(self, messages):
        """The text that the model really gets."""
        if self._child is None or not self._child.alive:
            self._start()
        return self._ask({"messages": messages, **self.special}, TEMPLATE_WITHIN_S)["prompt"]

    def _start(self):
        self._child = Child("helpers.template_child")
        self._ask({"hello": True}, STARTS_WITHIN_S)
        self._ask({"template": self.source}, TEMPLATE_WITHIN_S)

    def _ask(self, request, within_s):
        try:
            self._child.send(request)
            answer = self._child.receive(within_s)
        except TimeoutError:
            self._child.close()
            text = f"it did not come to an end within {within_s:.0f} s and was stopped; complete() does without it"
            raise Refused("template", text) from None
        except ChildDied as death:
            raise Refused("template", f"its process ended: {death.how}; complete() does without it") from None
        if "error" in answer:
            raise Refused("template", answer["error"])
        return answer


class Model:
    """One model in llama.cpp, by its C interface: the loop below costs less than the package's own."""

    def __init__(self, parent, request):
        try:
            import llama_cpp
        except Exception as error:  # missing, or its library does not load: either way it must be installed anew
            raise Refused("import", str(error)) from error
        self.lib, self.parent, self.request = llama_cpp, parent, request
        self._buffer = ctypes.create_string_buffer(256)
        self.log = Log(llama_cpp)
        llama_cpp.llama_backend_init()
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(request["path"].encode(), self._model_params(request))
        if not self.model:
            raise Refused("load", self.log.take()[1] or "no reason given")
        self.context = llama_cpp.llama_init_from_model(self.model, self._context_params(request))
        if not self.context:
            raise Refused("load", self.log.take()[1] or "it could not reserve the memory for the context")
        self.load_seconds = time.perf_counter() - start
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.n_ctx = llama_cpp.llama_n_ctx(self.context)
        self.n_batch = min(request["n_batch"], self.n_ctx)
        self.notes = []
        self.template = self._template()
        self.embedder = None
        self.writes = bool(self.memory) and not llama_cpp.llama_model_has_encoder(self.model)
        if not self.writes and not request["embeds_only"]:
            raise Refused("load", "it is not a model that continues text (an encoder, or an embedding model)")

    def _model_params(self, request):
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = request["n_gpu_layers"]
        # A second, rearranged copy of the weights: faster prompts for twice the memory; on CPUs with AMX it crashes.
        params.use_extra_bufts = request["repack"]
        params.load_mode = self.lib.LLAMA_LOAD_MODE_MMAP if request["use_mmap"] else self.lib.LLAMA_LOAD_MODE_NONE
        self._progress = self.lib.llama_progress_callback(self._tell_progress)
        self._told = time.perf_counter()
        params.progress_callback = self._progress
        return params

    def _tell_progress(self, fraction, _):
        now = time.perf_counter()
        if now - self._told > PROGRESS_EVERY_S:
            self._told = now
            self.parent.send({"id": self.request["id"], "progress": fraction})
        return True

    def _context_params(self, request):
        params = self.lib.llama_context_default_params()
        for name in ("n_ctx", "n_batch", "n_ubatch"):
            setattr(params, name, request[name])
        params.n_outputs_max = 1  # one row of scores, not one per token of the prompt: the loop needs the last only
        params.swa_full = False
        params.n_threads = params.n_threads_batch = request["n_threads"]
        params.flash_attn_type = int(request["flash_attn"])
        params.type_k = getattr(self.lib, f"GGML_TYPE_{request['cache_type_k'].upper()}")
        params.type_v = getattr(self.lib, f"GGML_TYPE_{request['cache_type_v'].upper()}")
        return params

    def _template(self):
        """The model's chat template, ready to be filled in; None when it has none that can be read."""
        source = self.lib.llama_model_chat_template(self.model, None)
        if not source:
            self.notes.append("This model has no chat template: it gets your words as they are, and continues them.")
            return None
        try:
            return Template(source.decode(errors="replace"), self._special("bos"), self._special("eos"))
        except Refused as error:
            self.notes.append(
                f"This model's chat template could not be read ({error}): it gets your words as they are."
            )
            return None

    def _special(self, name):
        token = getattr(self.lib, f"llama_vocab_{name}")(self.vocab)
        return "" if token < 0 else self.lib.llama_vocab_get_text(self.vocab, token).decode(errors="replace")

    def facts(self):
        lib = self.lib
        return {
            "log": self.log.take()[0],
            "load_seconds": self.load_seconds,
            "n_vocab": lib.llama_vocab_n_tokens(self.vocab),
            "n_ctx": self.n_ctx,
            "n_ctx_train": lib.llama_model_n_ctx_train(self.model),
            "n_params": lib.llama_model_n_params(self.model),
            "weights_bytes": lib.llama_model_size(self.model),
            "has_template": self.template is not None,
            "notes": self.notes,
            "engine": lib.llama_print_system_info().decode(errors="replace").strip(),
        }

    def render(self, messages):
        """The text that the model really gets."""
        if self.template is None:
            return "\n\n".join(message["content"] for message in messages)
        return self.template.fill_in(messages)

    def tokens(self, text):
        """Token ids; the model's start token is added unless the text begins with it already."""
        start = self._special("bos")
        add_special = not (start and text.startswith(start))
        data = text.encode(errors="replace")
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        n = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, True)
        if n < 0:
            raise Refused("value", f"the text could not be split into tokens (llama.cpp answered {n})")
        return ids[:n]

    def piece(self, token, special=False):
        """The bytes of a token; without `special`, nothing for tokens such as the end of a turn."""
        n = self.lib.llama_token_to_piece(self.vocab, token, self._buffer, len(self._buffer), 0, special)
        if n < 0:
            self._buffer = ctypes.create_string_buffer(-n)
            return self.piece(token, special)
        return self._buffer.raw[:n]

    def tokenize(self, text):
        return [(token, self.piece(token, special=True).decode(errors="replace")) for token in self.tokens(text)]

    def embed(self, text, request_id):
        """The numbers that stand for a text: the mean over its tokens, or what an embedding model asks for."""
        lib = self.lib
        self.embedder = self.embedder or self._embedding_context()
        tokens = self.tokens(text)
        room = lib.llama_n_ctx(self.embedder)
        if not 0 < len(tokens) <= room:
            raise Refused("value", f"a text to embed has {len(tokens)} tokens; it must have 1 to {room}")
        lib.llama_memory_clear(lib.llama_get_memory(self.embedder), False)
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
        batch.n_tokens = len(tokens)
        status = lib.llama_decode(self.embedder, batch)
        lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode answered {status} while embedding")
        vector = lib.llama_get_embeddings_seq(self.embedder, 0)
        if not vector:
            raise Refused("value", "this model gave no vector for the text")
        self.parent.send({"id": request_id, "vector": vector[: lib.llama_model_n_embd_out(self.model)]})

    def _embedding_context(self):
        """A second context over the same weights, made when it is first wanted."""
        lib = self.lib
        for pooling in (lib.LLAMA_POOLING_TYPE_UNSPECIFIED, lib.LLAMA_POOLING_TYPE_MEAN):
            params = self._context_params(self.request)
            params.embeddings, params.pooling_type = True, pooling
            # One piece, or the mean would be taken over the last piece only.
            params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = EMBED_TOKENS
            context = lib.llama_init_from_model(self.model, params)
            if not context:
                raise Refused("value", "there is not enough memory for a second context, which embedding needs")
            if lib.llama_pooling_type(context) not in (lib.LLAMA_POOLING_TYPE_NONE, lib.LLAMA_POOLING_TYPE_RANK):
                return context
            lib.llama_free(context)
        raise Refused("value", "this model makes no vectors (it only ranks)")

    def answer(self, request):
        if not self.writes:
            raise Refused("value", "it is an embedding model: it makes vectors and cannot answer")
        text = request["text"] if "text" in request else self.render(request["messages"])
        tokens = self.tokens(text)
        if not tokens:
            raise Refused("value", "the prompt is empty: give the model at least one word to go on from")
        if len(tokens) >= self.n_ctx:
            raise Refused(
                "value",
                f"the prompt has {len(tokens)} tokens, and the context holds {self.n_ctx}, the answer included. "
                "Shorten it, or load the model with a larger n_ctx",
            )
        sampler = self._sampler(request)
        try:
            counts = self._generate(request, tokens, sampler)
        finally:
            self.lib.llama_sampler_free(sampler)
        return {"prompt": text, "prompt_tokens": len(tokens), "notes": self.notes, **counts}

    def _sampler(self, request):
        lib = self.lib
        steps = [self._grammar(request["schema"])] if request.get("schema") else []
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if request["temperature"] == 0:
            steps += [lib.llama_sampler_init_greedy()]
        else:
            steps += [
                lib.llama_sampler_init_top_k(request["top_k"]),
                lib.llama_sampler_init_top_p(request["top_p"], 1),
                lib.llama_sampler_init_temp(request["temperature"]),
                lib.llama_sampler_init_dist(request["seed"]),
            ]
        for step in steps:
            lib.llama_sampler_chain_add(chain, step)
        return chain

    def _grammar(self, schema):
        """A sampler that lets only such tokens pass as go on towards JSON of this schema."""
        from llama_cpp.llama_grammar import json_schema_to_gbnf

        try:
            rules = json_schema_to_gbnf(schema)
        except Exception as error:  # the converter fails in many ways on schemas that it does not know
            raise Refused("schema", f"{type(error).__name__}: {error}") from error
        sampler = self.lib.llama_sampler_init_grammar(self.vocab, rules.encode(errors="replace"), b"root")
        if not sampler:
            raise Refused("schema", "its grammar is empty, or has a character that the grammar cannot hold")
        return sampler

    def _generate(self, request, tokens, sampler):
        """Read the prompt, then one token after the other; text goes to the parent as it comes."""
        lib, context, parent = self.lib, self.context, self.parent
        decode, sample, is_end = lib.llama_decode, lib.llama_sampler_sample, lib.llama_vocab_is_eog
        request_id, most = request["id"], min(request["max_tokens"], self.n_ctx - len(tokens))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may span two tokens
        pieces, n, why = [], 0, "cancelled"
        start = time.perf_counter()
        first = last = None
        if self._read_prompt(tokens):
            token = (ctypes.c_int32 * 1)()
            batch = lib.llama_batch_get_one(token, 1)
            while True:
                token[0] = sample(sampler, context, -1)
                last = time.perf_counter()
                first = first or last
                if is_end(self.vocab, token[0]):
                    why = "stop"
                    break
                n += 1
                text = decoder.decode(self.piece(token[0]))
                if text:
                    pieces.append(text)
                    parent.send({"id": request_id, "piece": text})
                if n == most:
                    why = "length" if n == request["max_tokens"] else "context"
                    break
                if parent.cancelled.is_set():
                    break
                if status := decode(context, batch):
                    raise RuntimeError(f"llama_decode answered {status}")
        if rest := decoder.decode(b"", final=True):
            pieces.append(rest)
            parent.send({"id": request_id, "piece": rest})
        return {
            "text": "".join(pieces),
            "answer_tokens": n,
            "prompt_seconds": first - start if first else 0.0,
            "answer_seconds": last - first if first else 0.0,
            "steps": n - (why != "stop"),  # the step that found the end took its time as well
            "finish_reason": why,
            "seed": request["seed"],
        }

    def _read_prompt(self, tokens):
        """Feed the prompt to an empty memory; False when it was cancelled."""
        lib = self.lib
        lib.llama_memory_clear(self.memory, False)  # True would write zeros over the whole cache
        # Asked at every step of the computation: right for a prompt that takes minutes, too dear for single tokens.
        stop = lib.ggml_abort_callback(lambda _: self.parent.cancelled.is_set())
        lib.llama_set_abort_callback(self.context, stop, None)
        try:
            for i in range(0, len(tokens), self.n_batch):
                some = tokens[i : i + self.n_batch]
                ids = (ctypes.c_int32 * len(some))(*some)  # a name keeps it alive: the batch holds a bare pointer to it
                status = lib.llama_decode(self.context, lib.llama_batch_get_one(ids, len(some)))
                if status == 2 or self.parent.cancelled.is_set():
                    return False
                if status:
                    raise RuntimeError(f"llama_decode answered {status} while reading the prompt")
            return True
        finally:
            lib.llama_set_abort_callback(self.context, lib.ggml_abort_callback(), None)


def handle(model, parent, request):
    """(the model, the answer to the request)."""
    do = request["do"]
    if do == "load":
        model = Model(parent, request)
        return model, model.facts()
    if do == "prompt":
        return model, {"prompt": model.render(request["messages"])}
    if do == "tokenize":
        return model, {"tokens": model.tokenize(request["text"])}
    if do == "count":
        return model, {"counts": [len(model.tokens(text)) for text in request["texts"]]}
    if do == "embed":
        for text in request["texts"]:
            if parent.cancelled.is_set():
                break
            model.embed(text, request["id"])
        return model, {}
    request["seed"] = random.randrange(2**32) if request["seed"] is None else request["seed"]
    return model, model.answer(request)


def serve():
    parent = Parent()
    sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows Ctrl-C reaches every process of the console
    model = None
    for request in parent.requests():
        try:
            model, answer = handle(model, parent, request)
            parent.send({"id": request["id"], "done": answer})
        except Exception as error:  # every failure must reach the parent as an answer
            kind = getattr(error, "kind", "other")
            if kind == "other":
                traceback.print_exc()
            parent.send({"id": request["id"], "error": str(error) or type(error).__name__, "kind": kind})


if __name__ == "__main__":
    serve()
