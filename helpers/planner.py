"""The compute buffer: which tensors of a calculation exist at the same time, and where llama.cpp puts them.

llama.cpp plans a calculation before it runs, for the worst case: `n_ubatch` tokens with a full cache. It walks through
the tensors in order. Each gets the smallest hole that fits, or a place at the end, and leaves a hole after its last
use. The buffer is as large as its end ever was. The same order and the same rule give the same bytes here.
"""

import functools
from dataclasses import dataclass

from . import architectures, formats

ALIGNMENT = 32  # bytes; every tensor starts at a multiple (ggml-backend.cpp, TENSOR_ALIGNMENT)
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

    *When it misleads*: families without a tensor table are planned like llama.
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
        self.buffer, self.rows = Buffer(), resolved.n_tokens
        self.rotated_k = _rotation(settings.cache_type_k, spec.n_embd_head_k)
        self.rotated_v = _rotation(settings.cache_type_v, spec.n_embd_head_v) and ROTATION
        self.windows = resolved.window_cells > 0
        self.kinds = ["window " if self.windows and spec.is_windowed(layer) else "" for layer in range(spec.n_layer)]
        self.cells = {"": resolved.n_ctx_seq, "window ": resolved.window_cells}
        self.last_of = {kind: layer for layer, kind in enumerate(self.kinds)}  # in the order of each kind's first layer
        self.heads = [spec.kv_heads(layer) for layer in range(spec.n_layer)]
        self.most_values = spec.most_kv_heads * spec.n_embd_head_v

    def inputs(self):
        buffer, rows = self.buffer, self.rows
        buffer.stage = "inputs"
        buffer.take("tokens", rows, 1)
        buffer.take("input embeddings", rows, self.spec.n_embd)  # for images; reserved for text too, and never freed
        for kind in self.last_of:
            if self.rotated_k:
                buffer.take(kind + "K rotation", self.rotated_k, self.rotated_k)
            if "positions" not in buffer.placed:
                buffer.take("positions", rows, 1)
            if self.rotated_v:
                buffer.take(kind + "V rotation", self.rotated_v, self.rotated_v)
            buffer.take(kind + "K places", rows, 1, 8)
            buffer.take(kind + "V places", rows, 1 if self.flash_attn else self.most_values, 8)
            buffer.take(kind + "mask", rows, self.cells[kind], 2 if self.flash_attn else 4)
        buffer.take("output places", self.resolved.n_outputs, 1)
        buffer.take("residual", rows, self.spec.n_embd)
        buffer.free("tokens")

    def all_layers(self):
        """Walk through the layers; one that meets the buffer as an equal layer met it before leaves it alike."""
        after, numbers, states = {}, {}, []

        def number(state):
            if state not in numbers:
                numbers[state] = len(states)
                states.append(state)
            return numbers[state]

        now = number(self.buffer.save())
        for layer, key in enumerate(zip(self.kinds, self.heads, strict=True)):
            if layer in self.last_of.values() or (now, key) not in after:
                self.buffer.load(states[now])
                self.attention(layer)
                self.feed_forward(layer)
                after[now, key] = number(self.buffer.save())
            now = after[now, key]

    def attention(self, layer):
        spec, buffer, kind = self.spec, self.buffer, self.kinds[layer]
        buffer.stage = "attention"
        done = layer == self.last_of[kind]  # what only this kind of layer reads is free afterwards
        self.widths = {
            "query": spec.n_head * spec.n_embd_head_k,
            "key": self.heads[layer] * spec.n_embd_head_k,
            "value": self.heads[layer] * spec.n_embd_head_v,
            "attended": spec.n_head * spec.n_embd_head_v,
        }
        buffer.take("normed", self.rows, spec.n_embd)
        if "qkv" in self.family:
            self.fused_qkv(layer)
        else:
            self.separate_qkv(layer)
        if done and self.rotated_k:
            buffer.free(kind + "K rotation")
        self.store(kind, done)
        self.attend(kind, done)
        buffer.take("attention out", self.rows, spec.n_embd)
        buffer.free("attended")

    def step(self, name, verb):
        """A step whose result needs a place of its own, before the old tensor goes."""
        self.buffer.take(f"{verb} {name}", self.rows, self.widths[name])
        self.buffer.replace(name, by=f"{verb} {name}")

    def separate_qkv(self, layer):
        order = ("query", "key", "value") if self.windows else ("query", "value", "key")
        for name in order:
            self.buffer.take(name, self.rows, self.widths[name])
            if name == order[-1]:
                self.buffer.free("normed")
            if name != "value":
                self.step(name, "placed")  # norm, position and scale: one new tensor, the rest in place
            if name == "key" and layer == self.spec.n_layer - 1:
                self.buffer.free("positions")
            if self.rotated_v if name == "value" else self.rotated_k:
                self.step(name, "rotated")

    def fused_qkv(self, layer):
        """One matrix gives query, key and value together; they stay until the last of them was used."""
        self.buffer.take("query, key, value", self.rows, sum(self.widths[name] for name in ("query", "key", "value")))
        self.buffer.free("normed")
        self.step("query", "placed")
        if self.rotated_k:
            self.step("query", "rotated")
        if self.rotated_v:
            self.step("value", "copied")
            self.step("value", "rotated")
        self.step("key", "placed")
        if self.rotated_v:
            self.buffer.free("query, key, value")
        if layer == self.spec.n_layer - 1:
            self.buffer.free("positions")
        if self.rotated_k:
            self.step("key", "rotated")

    def store(self, kind, done):
        """Keys and values go into the cache. Without flash attention values are stored by head: some need a copy."""
        buffer = self.buffer
        buffer.free("key", *[kind + "K places"] * done)
        if not self.flash_attn and "value" not in buffer.placed:
            self.step("value", "copied")
            buffer.free("query, key, value")
        if not self.flash_attn and self.widths["value"] < self.most_values:
            buffer.take("padded value", self.rows, self.most_values)
            buffer.replace("value", by="padded value")
        buffer.free("value" if "value" in buffer.placed else "query, key, value", *[kind + "V places"] * done)

    def attend(self, kind, done):
        buffer, mask = self.buffer, [kind + "mask"] * done
        if self.flash_attn:
            buffer.take("attended", self.rows, self.widths["attended"])
            buffer.free("query", *mask)
        else:
            buffer.take("scores", self.rows, self.cells[kind] * self.spec.n_head)
            buffer.free("query", *mask)
            buffer.take("attended by head", self.rows, self.widths["attended"])
            buffer.free("scores")
            buffer.take("attended", self.rows, self.widths["attended"])
            buffer.free("attended by head")
        if self.rotated_v:
            self.step("attended", "rotated")
            buffer.free(*[kind + "V rotation"] * done)

    def feed_forward(self, layer):
        spec, buffer, rows = self.spec, self.buffer, self.rows
        if layer == spec.n_layer - 1:  # only the tokens whose logits are wanted go on
            rows = self.resolved.n_outputs
            for name in ("attention out", "residual"):
                buffer.take(f"chosen {name}", rows, spec.n_embd)
                buffer.replace(name, by=f"chosen {name}")
            buffer.free("output places")
        buffer.stage = "feed-forward"
        buffer.replace("residual", by="attention out")  # the sum, in place
        buffer.take("normed", rows, spec.n_embd)
        if "gate_up" in self.family:
            buffer.take("gate and up", rows, 2 * spec.n_ff)
            buffer.free("normed")
            buffer.take("activation", rows, spec.n_ff)
            buffer.free("gate and up")
        else:
            buffer.take("gate", rows, spec.n_ff)
            buffer.take("up", rows, spec.n_ff)
            buffer.free("normed")
            buffer.take("activation", rows, spec.n_ff)
            buffer.free("gate", "up")
        buffer.take("down", rows, spec.n_embd)
        buffer.free("activation")
        if spec.architecture == "phi3":  # adds the other way round, so the sum lies where the residual was
            buffer.free("down")
        else:
            buffer.replace("residual", by="down")

    def logits(self):
        self.buffer.stage = "logits"
        self.buffer.take("logits", self.resolved.n_outputs, self.spec.n_vocab)


def _rotation(cache_type, head):
    """Width of the rotation before a quantized cache: the largest power of two, from 64 on, that divides the head."""
    if formats.block_type(cache_type).block_length == 1 or head % ROTATION:
        return 0
    width = ROTATION
    while head % (2 * width) == 0:
        width *= 2
    return width
