"""The compute buffer: which tensors of a calculation exist at the same time, and where llama.cpp puts them.

llama.cpp plans a calculation before it runs, for the worst case: `n_ubatch` tokens with a full cache. It walks through
the tensors in order. Each gets the smallest hole that fits, or a place at the end, and leaves a hole after its last
use. The buffer is as large as its end ever was. The same order and the same rule give the same bytes here.
"""

import functools
from dataclasses import dataclass

from . import architectures, formats

ALIGNMENT = 32  # bytes; every tensor starts at a multiple (ggml-backend.cpp, TENSOR_ALIGNMENT)
NUMBER_BYTES = {"f16": 2, "bf16": 2, "f32": 4}
ROTATION = 64  # quantized caches are rotated when a head is a multiple of this (llama-kv-cache.cpp)


@dataclass(frozen=True)
class Piece:
    """A tensor in the buffer: `rows` x `width` numbers of `number_bytes` bytes. Unused room is a piece called "gap"."""

    name: str
    rows: int
    width: int
    number_bytes: int
    n_bytes: int


@dataclass(frozen=True)
class Plan:
    """`stages`: bytes that each stage reaches. `pieces`: the buffer at its fullest moment, from start to end."""

    stages: dict
    pieces: tuple[Piece, ...]

    @property
    def n_bytes(self):
        """Size of the compute buffer in bytes."""
        return max(self.stages.values())


class Buffer:
    """A buffer without memory behind it: only the places are kept.

    Best fit, as in llama.cpp's ggml-alloc.c: of two holes that fit equally well the later one is taken.

    >>> buffer = Buffer()
    >>> buffer.take("a", 1, 16), buffer.take("b", 1, 8)      # 16 and 8 numbers of 4 bytes
    (0, 64)
    >>> buffer.free("a")
    >>> buffer.take("c", 1, 8)                               # fits into the hole that `a` left
    0
    """

    def __init__(self):
        self.end, self.holes, self.placed = 0, [], {}  # holes: [start, bytes], in order, never side by side
        self.stage, self.stages = "", {}
        self.most, self.fullest = 0, {}

    def take(self, name, rows, width, number_bytes=4):
        """Place a tensor; returns where."""
        n_bytes = (rows * width * number_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        best = None
        for hole in self.holes:
            if n_bytes <= hole[1] and (best is None or hole[1] <= best[1]):
                best = hole
        if best is None:
            start = self.end
            self.end += n_bytes
        else:
            start = best[0]
            best[0] += n_bytes
            best[1] -= n_bytes
            if not best[1]:
                self.holes.remove(best)
        self.placed[name] = start, n_bytes, rows, width, number_bytes
        reach = start + n_bytes
        if reach > self.stages.get(self.stage, 0):
            self.stages[self.stage] = reach
        if reach > self.most:
            self.most, self.fullest = reach, self.placed.copy()
        return start

    def free(self, *names):
        """The tensors were used for the last time."""
        for name in names:
            start, n_bytes = self.placed.pop(name)[:2]
            holes, at = self.holes, 0
            while at < len(holes) and holes[at][0] < start:
                at += 1
            if at < len(holes) and holes[at][0] == start + n_bytes:
                n_bytes += holes.pop(at)[1]
            if at and holes[at - 1][0] + holes[at - 1][1] == start:
                at -= 1
                start, before = holes.pop(at)
                n_bytes += before
            if start + n_bytes == self.end:
                self.end = start
            else:
                holes.insert(at, [start, n_bytes])

    def replace(self, name, by):
        """`by` holds what is called `name` from here on; the old tensor, when there is one, goes."""
        if name in self.placed:
            self.free(name)
        self.placed[name] = self.placed.pop(by)

    def save(self):
        """All that decides what happens next, for `load`."""
        return self.end, tuple(map(tuple, self.holes)), tuple(sorted(self.placed.items()))

    def load(self, saved):
        self.end, self.holes, self.placed = saved[0], [list(hole) for hole in saved[1]], dict(saved[2])

    def pieces(self):
        """The buffer when it was fullest, gaps included."""
        found, end = [], 0
        for name, (start, n_bytes, *shape) in sorted(self.fullest.items(), key=lambda item: item[1]):
            if start > end:
                found.append(Piece("gap", 1, start - end, 1, start - end))
            found.append(Piece(name, *shape, n_bytes))
            end = start + n_bytes
        return tuple(found)


@functools.lru_cache(maxsize=4096)
def plan(spec, settings, resolved):
    """The `Plan` for one model; `resolved` is what `settings.resolve(spec)` gives.

    *When it misleads*: families without a tensor table are planned like llama, and so are DeepSeek files in their older
    form without MLA; a GPT-NeoX is taken to have parallel residuals, as nearly all have.
    Source: the order of the tensors is that of llama.cpp `src/models/*.cpp` and `src/llama-graph.cpp`;
    `tests/bench_memory.py` compares the size with llama.cpp's own.
    """
    graph = _Graph(spec, settings, resolved)
    graph.inputs()
    graph.all_layers()
    graph.logits()
    return Plan(graph.buffer.stages, graph.buffer.pieces())


class _Graph:
    """The tensors of a model in the order in which llama.cpp calculates them; `rows` are the tokens at once."""

    def __init__(self, spec, settings, resolved):
        self.spec, self.resolved, self.flash_attn = spec, resolved, settings.flash_attn
        self.family = architectures.FAMILIES.get(spec.architecture, frozenset())
        self.feed_forward = {
            "phi2": self.feed_forward_phi2,
            "falcon": self.feed_forward_falcon,
            "gptneox": self.feed_forward_gptneox,
        }.get(spec.architecture, self.feed_forward_of_sum)
        self.buffer, self.rows = Buffer(), resolved.n_tokens
        self.latent = spec.kv_lora_rank > 0  # MLA: keys and values are one short vector
        self.cache_types = {"key": settings.cache_type_k, "value": settings.cache_type_v}
        self.rotated_k = 0 if self.latent else _rotation(settings.cache_type_k, spec.n_embd_head_k)
        self.rotated_v = 0 if self.latent else _rotation(settings.cache_type_v, spec.n_embd_head_v) and ROTATION
        self.windows = resolved.window_cells > 0
        self.kinds = ["window " if self.windows and spec.is_windowed(layer) else "" for layer in range(spec.n_layer)]
        self.cells = {"": resolved.n_ctx_seq, "window ": resolved.window_cells}
        self.last_of = {kind: layer for layer, kind in enumerate(self.kinds)}  # in the order of each kind's first layer
        self.heads = [spec.kv_heads(layer) for layer in range(spec.n_layer)]
        dense = spec.n_layer_dense_lead if spec.n_expert else spec.n_layer
        self.has_experts = [layer >= dense for layer in range(spec.n_layer)]
        self.most_values = spec.most_kv_heads * spec.n_embd_head_v
        self.cut_late = spec.architecture == "gpt-oss"  # leaves no token out before the logits
        self.fused = set()  # which of query, key and value still lie in the tensor of all three

    def inputs(self):
        buffer, rows = self.buffer, self.rows
        buffer.stage = "inputs"
        buffer.take("tokens", rows, 1)
        buffer.take("input embeddings", rows, self.spec.n_embd)  # for images; reserved for text too, and never freed
        if "positions" in self.family:
            buffer.take("positions", rows, 1)
        for kind in self.last_of:
            if self.rotated_k:
                buffer.take(kind + "K rotation", self.rotated_k, self.rotated_k)
            if "positions" not in buffer.placed:  # in an image there are four: time, height, width and a spare one
                buffer.take("positions", rows, 4 if self.spec.architecture == "qwen2vl" else 1)
            if self.rotated_v:
                buffer.take(kind + "V rotation", self.rotated_v, self.rotated_v)
            buffer.take(kind + "K places", rows, 1, 8)
            if not self.latent:
                buffer.take(kind + "V places", rows, 1 if self.flash_attn else self.most_values, 8)
            buffer.take(kind + "mask", rows, self.cells[kind], 2 if self.flash_attn else 4)
        buffer.take("output places", self.resolved.n_outputs, 1)
        buffer.take("residual", rows, self.spec.n_embd)
        buffer.free("tokens")
        if "positions" in self.family:  # a learned table, added to the residual in place; nothing is rotated later
            buffer.take("position embeddings", rows, self.spec.n_embd)
            buffer.free("positions", "position embeddings")

    def all_layers(self):
        """Walk through the layers; one that meets the buffer as an equal layer met it before leaves it alike."""
        after, numbers, states, lasts = {}, {}, [], set(self.last_of.values())

        def number(state):
            if state not in numbers:
                numbers[state] = len(states)
                states.append(state)
            return numbers[state]

        now = number(self.buffer.save())
        for layer, key in enumerate(zip(self.kinds, self.heads, self.has_experts, strict=True)):
            if layer in lasts or (now, key) not in after:
                self.buffer.load(states[now])
                self.buffer.stage = "attention"
                self.attention(layer)
                self.feed_forward(layer)
                after[now, key] = number(self.buffer.save())
            now = after[now, key]

    def logits(self):
        buffer, outputs = self.buffer, self.resolved.n_outputs
        if self.cut_late:  # of the wanted tokens only; llama.cpp keeps the others as well
            buffer.take("kept residual", outputs, self.spec.n_embd)
            buffer.free("output places")
        buffer.stage = "logits"
        if "norm_bias" in self.family:  # this norm, unlike the other, never works in place
            buffer.take("normed", outputs, self.spec.n_embd)
            buffer.free("residual")
        buffer.take("logits", outputs, self.spec.n_vocab)

    # Attention

    def attention(self, layer):
        spec, buffer, kind = self.spec, self.buffer, self.kinds[layer]
        done = layer == self.last_of[kind]  # what only this kind of layer reads is free afterwards
        self.widths = {
            "query": spec.n_head * spec.n_embd_head_k,
            "key": self.heads[layer] * spec.n_embd_head_k,
            "value": self.heads[layer] * spec.n_embd_head_v,
            "attended": spec.n_head * (spec.n_embd_head_v_mla if self.latent else spec.n_embd_head_v),
        }
        buffer.take("normed", self.rows, spec.n_embd)
        if self.latent:
            self.latent_qkv(layer)
        elif "qkv" in self.family:
            self.fused_qkv(layer)
        else:
            self.separate_qkv(layer)
        if done and self.rotated_k:
            buffer.free(kind + "K rotation")
        self.store(kind, done)
        if self.latent:
            self.attend_latent(kind, done)
        else:
            self.attend(kind, done)

    def step(self, name, verb):
        """A step whose result needs a place of its own, before the old tensor goes."""
        self.buffer.take(f"{verb} {name}", self.rows, self.widths[name])
        self.drop(name)
        self.buffer.replace(name, by=f"{verb} {name}")

    def drop(self, name):
        """Query, key or value was used for the last time; when they are fused, all three must have been."""
        if name not in self.fused:
            self.buffer.free(name)
            return
        self.fused.remove(name)
        if not self.fused:
            self.buffer.free("query, key, value")

    def all_placed(self, layer):
        """In the last layer nobody asks for positions any more."""
        if layer == self.spec.n_layer - 1 and "positions" in self.buffer.placed:
            self.buffer.free("positions")

    def norm_is_kept(self, layer):
        """True when the feed-forward reads the same norm as attention."""
        return "one_norm" in self.family and not ("second_norm" in self.family and self.heads[layer] > 1)

    def separate_qkv(self, layer):
        order = ("query", "key", "value") if self.windows else ("query", "value", "key")
        for name in order:
            self.buffer.take(name, self.rows, self.widths[name])
            if name == order[-1] and not self.norm_is_kept(layer):
                self.buffer.free("normed")
            if name != "value":
                self.step(name, "placed")  # norm, position and scale: one new tensor, the rest in place
            if name == "key":
                self.all_placed(layer)
            if self.rotated_v if name == "value" else self.rotated_k:
                self.step(name, "rotated")

    def fused_qkv(self, layer):
        """One matrix gives query, key and value together; they stay until the last of them was used."""
        self.fused = {"query", "key", "value"}
        self.buffer.take("query, key, value", self.rows, sum(self.widths[name] for name in self.fused))
        if not self.norm_is_kept(layer):
            self.buffer.free("normed")
        for name in ("query", "value", "key"):
            rotated = self.rotated_v if name == "value" else self.rotated_k
            if name != "value" and "positions" not in self.family:
                self.step(name, "placed")
            elif rotated:
                self.step(name, "copied")
            if name == "key":
                self.all_placed(layer)
            if rotated:
                self.step(name, "rotated")

    def latent_qkv(self, layer):
        """MLA: the query goes into the space of the latent vector, which serves all heads as key and value."""
        spec, buffer, rows, n_rot = self.spec, self.buffer, self.rows, self.spec.n_rot or self.spec.n_embd_head_k
        buffer.take("query by head", rows, spec.n_head * spec.n_embd_head_k_mla)
        buffer.take("latent query", rows, spec.n_head * spec.kv_lora_rank)
        buffer.take("placed query", rows, spec.n_head * n_rot)
        buffer.free("query by head")
        buffer.take("query", rows, self.widths["query"])
        buffer.free("latent query", "placed query")
        buffer.take("latent vector", rows, spec.kv_lora_rank + n_rot)
        if not self.norm_is_kept(layer):
            buffer.free("normed")
        buffer.take("normed vector", rows, spec.kv_lora_rank)
        buffer.take("placed vector", rows, n_rot)
        buffer.free("latent vector")
        self.all_placed(layer)
        buffer.take("key", rows, self.widths["key"])
        buffer.free("normed vector", "placed vector")

    def store(self, kind, done):
        """Keys and values go into the cache. Without flash attention values are stored by head: some need a copy."""
        buffer = self.buffer
        self.drop("key")
        buffer.free(*[kind + "K places"] * done)
        if self.latent:
            return
        if not self.flash_attn and "value" in self.fused:
            self.step("value", "copied")
        if not self.flash_attn and self.widths["value"] < self.most_values:
            buffer.take("padded value", self.rows, self.most_values)
            buffer.replace("value", by="padded value")
        self.drop("value")
        buffer.free(*[kind + "V places"] * done)

    def attend(self, kind, done):
        buffer, mask = self.buffer, [kind + "mask"] * done
        if self.flash_attn:
            copies = self.halved_caches(kind)
            buffer.take("attended", self.rows, self.widths["attended"])
            self.drop("query")
            buffer.free(*copies, *mask)
        else:
            buffer.take("scores", self.rows, self.cells[kind] * self.spec.n_head)
            self.drop("query")
            buffer.free(*mask)
            buffer.take("attended by head", self.rows, self.widths["attended"])
            buffer.free("scores")
            buffer.take("attended", self.rows, self.widths["attended"])
            buffer.free("attended by head")

    def attend_latent(self, kind, done):
        """MLA: what was attended to is a latent vector per head; another matrix makes values of it."""
        spec, buffer, mask = self.spec, self.buffer, [kind + "mask"] * done
        latent = spec.n_head * spec.kv_lora_rank
        if self.flash_attn:
            copies = self.halved_caches(kind)
            buffer.take("attended vectors", self.rows, latent)
            buffer.free("query", *copies, *mask)
        else:
            cells, number_bytes = self.cells[kind] * self.resolved.n_stream, NUMBER_BYTES[self.cache_types["key"]]
            buffer.take("transposed cache", cells, spec.kv_lora_rank, number_bytes)
            buffer.take("scores", self.rows, self.cells[kind] * spec.n_head)
            buffer.free("query", *mask)
            buffer.take("attended vectors", self.rows, latent)
            buffer.free("transposed cache", "scores")
        buffer.take("attended by head", self.rows, self.widths["attended"])
        buffer.free("attended vectors")
        buffer.take("attended", self.rows, self.widths["attended"])
        buffer.free("attended by head")

    def halved_caches(self, kind):
        """Flash attention does not read 32 bits; returns the names of the copies."""
        cells = self.cells[kind] * self.resolved.n_stream
        copied = [name for name, cache_type in self.cache_types.items() if cache_type == "f32"]
        for name in copied:
            self.buffer.take(f"{name} cache in half precision", cells, self.widths[name], 2)
        return [f"{name} cache in half precision" for name in copied]

    # What follows attention

    def is_cut(self, layer):
        """True when only the tokens whose logits are wanted go on after this layer's attention."""
        return layer == self.spec.n_layer - 1 and not self.cut_late

    def rows_after(self, layer):
        return self.resolved.n_outputs if self.is_cut(layer) else self.rows

    def cut(self, layer, *names, done=False):
        """Of these tensors only the wanted tokens are kept; `done`: there is nothing more to cut."""
        if not self.is_cut(layer):
            return
        for name in names:
            self.buffer.take(f"kept {name}", self.resolved.n_outputs, self.spec.n_embd)
            self.buffer.replace(name, by=f"kept {name}")
        if done:
            self.buffer.free("output places")

    def project(self, layer):
        kind = self.kinds[layer]
        if self.rotated_v:
            self.step("attended", "rotated")
            self.buffer.free(*[kind + "V rotation"] * (layer == self.last_of[kind]))
        if "sub_norm" in self.family and self.flash_attn:  # else in place
            self.step("attended", "normed")
        self.buffer.take("attention out", self.rows, self.spec.n_embd)
        self.buffer.free("attended")

    def feed_forward_of_sum(self, layer):
        """Attention is added to the residual, and the feed-forward reads the sum."""
        buffer, rows = self.buffer, self.rows_after(layer)
        self.project(layer)
        self.cut(layer, "attention out", "residual", done=True)
        buffer.stage = "feed-forward"
        buffer.replace("residual", by="attention out")  # the sum, in place
        buffer.take("normed", rows, self.spec.n_embd)
        if self.has_experts[layer]:
            self.experts(rows)
        else:
            self.dense(rows)
        if self.spec.architecture == "phi3":  # adds the other way round, so the sum lies where the residual was
            buffer.free("down")
        else:
            buffer.replace("residual", by="down")

    def feed_forward_phi2(self, layer):
        """Attention and feed-forward read the same norm; the sum of both lies where attention's output was."""
        self.project(layer)
        self.cut(layer, "attention out", "normed")
        self.buffer.stage = "feed-forward"
        self.dense(self.rows_after(layer))
        self.buffer.free("down")
        self.cut(layer, "residual", done=True)
        self.buffer.replace("residual", by="attention out")

    def feed_forward_falcon(self, layer):
        """As phi2, but attention's output comes last; with more than one KV head the feed-forward has its own norm."""
        self.buffer.stage = "feed-forward"
        if not self.norm_is_kept(layer):
            self.buffer.take("normed", self.rows, self.spec.n_embd)
        self.cut(layer, "normed")
        self.dense(self.rows_after(layer))
        self.project(layer)
        self.cut(layer, "attention out")
        self.buffer.free("attention out")
        self.cut(layer, "residual", done=True)
        self.buffer.replace("residual", by="down")

    def feed_forward_gptneox(self, layer):
        """Attention and feed-forward read the same residual; the feed-forward is added first."""
        self.buffer.stage = "feed-forward"
        self.cut(layer, "residual")
        self.buffer.take("normed", self.rows_after(layer), self.spec.n_embd)
        self.dense(self.rows_after(layer))
        self.buffer.replace("residual", by="down")
        self.project(layer)
        self.cut(layer, "attention out", done=True)
        self.buffer.free("attention out")

    def dense(self, rows):
        buffer, width = self.buffer, self.spec.n_ff
        if "no_gate" in self.family:
            buffer.take("up", rows, width)
            buffer.free("normed")
            buffer.replace("activation", by="up")  # in place
        elif "gate_up" in self.family:
            buffer.take("gate and up", rows, 2 * width)
            buffer.free("normed")
            buffer.take("activation", rows, width)
            buffer.free("gate and up")
        else:
            self.gated(rows, width)
        buffer.take("down", rows, self.spec.n_embd)
        buffer.free("activation")

    def gated(self, rows, width, norm_is_free=True):
        buffer = self.buffer
        buffer.take("gate", rows, width)
        buffer.take("up", rows, width)
        if norm_is_free:
            buffer.free("normed")
        buffer.take("activation", rows, width)
        buffer.free("gate", "up")

    def experts(self, rows):
        """A router picks `n_expert_used` experts for each token; their outputs are added up, weighted."""
        spec, buffer, used = self.spec, self.buffer, self.spec.n_expert_used
        width = spec.n_ff_exp or spec.n_ff
        self.router(rows)
        self.gated(rows, used * width, norm_is_free=not spec.n_expert_shared)
        buffer.take("experts' outputs", rows, used * spec.n_embd)
        buffer.free("activation", "experts by score", "weights")
        buffer.take("down", rows, spec.n_embd)
        buffer.free("experts' outputs")
        if spec.n_expert_shared:
            self.gated(rows, spec.n_expert_shared * width)
            buffer.take("shared down", rows, spec.n_embd)
            buffer.free("activation", "shared down")  # added in place

    def router(self, rows):
        buffer, used = self.buffer, self.spec.n_expert_used
        buffer.take("scores of experts", rows, self.spec.n_expert)
        buffer.take("experts by score", rows, self.spec.n_expert)
        buffer.take("weights", rows, used)
        buffer.free("scores of experts")
        if self.latent:  # the scores are the weights
            return
        if "expert_bias" in self.family:
            buffer.take("normed weights", rows, used)
            buffer.replace("weights", by="normed weights")
            return
        buffer.take("sums of weights", rows, 1)
        if used == 1:  # in place, as both have the same shape
            buffer.replace("weights", by="sums of weights")
        else:
            buffer.take("normed weights", rows, used)
            buffer.replace("weights", by="normed weights")
            buffer.free("sums of weights")


def _rotation(cache_type, head):
    """Width of the rotation before a quantized cache: the largest power of two, from 64 on, that divides the head."""
    if formats.block_type(cache_type).block_length == 1 or head % ROTATION or not head:
        return 0
    width = ROTATION
    while head % (2 * width) == 0:
        width *= 2
    return width
