"""Rotary positions, the KV cache, and attention over it.

The cache of a layer is an array of blocks; a sequence's row of the block table names its blocks in order.
A block holds, per KV head, keys as [head_dim][cells] and values as [cells][head_dim]: scores are then
computed for a vector of cells at a time and outputs for a vector of dimensions, without reductions.

Attention is the online softmax of Milakov & Gimelshein (2018) over whole blocks in order, so a token's
result is the same whatever it is batched with, and memory does not grow with the context.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import (
    Expr,
    Kernel,
    Region,
    byte_offset,
    cast,
    const,
    define,
    let,
    local,
    loop,
    splat,
    when,
    zeros,
)
from airkernels.cpu.vectors import add, exp, float_to_half, half_to_float, lanes_dividing, reduce

BLOCK_CELLS = 64
"""Tokens per block of the cache, and per step of the softmax."""

_MASKED = -3.0e38


@dataclass(frozen=True)
class CacheLayout:
    """Shape of one layer's cache; `dtype` is 'float16' or 'float32'."""

    n_kv_heads: int
    head_dim: int
    dtype: str
    max_blocks: int

    @property
    def element_nbytes(self) -> int:
        return 2 if self.dtype == "float16" else 4

    @property
    def plane(self) -> int:
        """Elements of the keys, or of the values, of one head in one block."""
        return self.head_dim * BLOCK_CELLS

    @property
    def block_nbytes(self) -> int:
        return 2 * self.n_kv_heads * self.plane * self.element_nbytes

    def region(self, base: Expr) -> Region:
        return Region(base, "uint16" if self.dtype == "float16" else "float32")

    def load(self, region: Region, index: Expr, lanes: int, isa: VectorIsa) -> Expr:
        raw = region.load(index, lanes)
        return half_to_float(raw, isa) if self.dtype == "float16" else raw

    def convert(self, value: Expr, isa: VectorIsa) -> Expr:
        return float_to_half(value, isa) if self.dtype == "float16" else value

    def block(self, cache: Expr, table: Region, sequence: Expr, index: Expr) -> Region:
        number = table.load(sequence * self.max_blocks + index)
        return self.region(byte_offset(cache, cast(number, "int64") * self.block_nbytes))


@dataclass(frozen=True)
class RopeShape:
    """Which elements rotate: `dim` of `head_dim`, as neighbours ('normal') or as halves ('neox')."""

    n_heads: int
    dim: int
    mode: str


def rope_store(
    name: str, isa: VectorIsa, cache: CacheLayout, rope: RopeShape, q_stride: int, k_stride: int, v_stride: int
) -> tirx.PrimFunc:
    """Rotate queries in place; rotate keys and put keys and values into the cache.

    Tasks are (token, head), query heads before KV heads. p0 q, p1 k, p2 v float32; p3 rope float32
    [n, 2, dim/2]; p4 cache; p5 cells, p6 sequences, p7 block table int32.
    """
    pairs = rope.dim // 2
    heads_per_token = rope.n_heads + cache.n_kv_heads

    def pair(i: Expr) -> tuple[Expr, Expr]:
        return (i * 2, i * 2 + 1) if rope.mode == "normal" else (i, i + pairs)

    def body(k: Kernel) -> None:
        cells, sequences, table = (k.region(p, "int32") for p in (5, 6, 7))

        def row(pointer: int, token: Expr, stride: int, head: Expr) -> Region:
            at = cast(token, "int64") * (4 * stride) + cast(head, "int64") * (4 * cache.head_dim)
            return Region(byte_offset(k.pointers[pointer], at), "float32")

        def rotate(x: Region, token: Expr) -> None:
            angles = Region(byte_offset(k.pointers[3], cast(token, "int64") * (8 * pairs)), "float32")
            with loop(pairs) as i:
                first, second = pair(i)
                a, b = let(x.load(first)), let(x.load(second))
                c, s = let(angles.load(i)), let(angles.load(i + pairs))
                x.store(first, a * c - b * s)
                x.store(second, a * s + b * c)

        def store(token: Expr, head: Expr, keys: Region, values: Region) -> None:
            cell = let(cells.load(token))
            block = cache.block(k.pointers[4], table, sequences.load(token), tirx.indexdiv(cell, BLOCK_CELLS))
            place = let(tirx.indexmod(cell, BLOCK_CELLS))
            plane = let(head * (2 * cache.plane))
            with loop(cache.head_dim) as d:
                block.store(plane + d * BLOCK_CELLS + place, cache.convert(keys.load(d), isa))
            lanes = lanes_dividing(cache.head_dim, isa)
            with loop(cache.head_dim // lanes) as i:
                at = plane + cache.plane + place * cache.head_dim + i * lanes
                block.store(at, cache.convert(values.load(i * lanes, lanes), isa))

        with loop(k.end, k.begin) as task:
            token, head = let(tirx.indexdiv(task, heads_per_token)), let(tirx.indexmod(task, heads_per_token))
            with when(head < rope.n_heads):
                rotate(row(0, token, q_stride, head), token)
            with when(head >= rope.n_heads):
                kv_head = let(head - rope.n_heads)
                keys = row(1, token, k_stride, kv_head)
                rotate(keys, token)
                store(token, kv_head, keys, row(2, token, v_stride, kv_head))

    return define(name, body)


@dataclass(frozen=True)
class AttentionShape:
    """Heads and strides (floats) of queries and outputs.

    A task covers `group` neighbouring tokens; `tile` of them share a pass over the cache (tile divides group).
    """

    n_heads: int
    scale: float
    q_stride: int
    out_stride: int
    group: int
    tile: int


def attention(name: str, isa: VectorIsa, cache: CacheLayout, shape: AttentionShape) -> tirx.PrimFunc:
    """Causal attention of every token over its sequence's cells up to its own.

    Tasks are (group of tokens, head), heads innermost. p0 q float32, p1 out float32, p2 cache,
    p3 cells, p4 sequences, p5 block table int32.
    """

    def body(k: Kernel) -> None:
        sequences = k.region(4, "int32")
        with loop(k.end, k.begin) as task:
            group = let(tirx.indexdiv(task, shape.n_heads) * shape.group)
            work = _Pass(isa, cache, shape, k, let(tirx.indexmod(task, shape.n_heads)))
            with loop(shape.group // shape.tile) as part:
                first = let(group + part * shape.tile)
                stop = let(tirx.min(first + shape.tile, k.n_tokens))
                alone = first
                if shape.tile > 1:
                    # Tokens of a sequence stand together in a batch, so equal ends mean one sequence throughout.
                    last = tirx.max(stop - 1, 0)
                    one_sequence = sequences.load(tirx.min(first, last)) == sequences.load(last)
                    shared = let(cast(tirx.And(stop - first == shape.tile, one_sequence), "int32"))
                    with when(shared != 0):
                        work.emit(first, shape.tile)
                    alone = let(tirx.Select(shared != 0, stop, first))
                with loop(tirx.max(stop - alone, 0)) as i:
                    work.emit(let(alone + i), 1)

    return define(name, body)


@dataclass
class _Pass:
    """Attention of one head for `n` neighbouring tokens of one sequence."""

    isa: VectorIsa
    cache: CacheLayout
    shape: AttentionShape
    kernel: Kernel
    head: Expr

    def emit(self, first: Expr, n: int) -> None:
        k, cache, shape = self.kernel, self.cache, self.shape
        cells, sequences, table = (k.region(p, "int32") for p in (3, 4, 5))
        q = Region(byte_offset(k.pointers[0], cast(first, "int64") * (4 * shape.q_stride)), "float32")
        out = Region(byte_offset(k.pointers[1], cast(first, "int64") * (4 * shape.out_stride)), "float32")
        sequence = let(sequences.load(first))
        limits = [let(cells.load(first + t)) for t in range(n)]
        kv_head = tirx.indexdiv(self.head, shape.n_heads // cache.n_kv_heads)
        plane = let(kv_head * (2 * cache.plane))
        acc = local("float32", n * cache.head_dim)
        scores = local("float32", n * BLOCK_CELLS)
        running = local("float32", 3 * n)  # largest score, sum of weights, correction of this step
        lanes = lanes_dividing(cache.head_dim, self.isa)
        for t in range(n):
            running.store(t, const(_MASKED, "float32"))
            running.store(n + t, const(0.0, "float32"))
            with loop(cache.head_dim // lanes) as i:
                acc.store(t * cache.head_dim + i * lanes, zeros("float32", lanes))
        with loop(tirx.indexdiv(limits[-1], BLOCK_CELLS) + 1) as b:
            block = cache.block(k.pointers[2], table, sequence, b)
            valid = let(tirx.min(limits[-1] + 1 - b * BLOCK_CELLS, BLOCK_CELLS))
            self._scores(block, plane, q, scores, valid, n)
            for t in range(n):
                self._weights(scores, running, limits[t] - b * BLOCK_CELLS, valid, t, n)
            self._outputs(block, plane, acc, scores, running, valid, n)
        for t in range(n):
            inverse = let(const(1.0, "float32") / running.load(n + t))
            with loop(cache.head_dim // lanes) as i:
                value = acc.load(t * cache.head_dim + i * lanes, lanes) * splat(inverse, lanes)
                out.store(t * shape.out_stride + self.head * cache.head_dim + i * lanes, value)

    def _scores(self, block: Region, plane: Expr, q: Region, scores: Region, valid: Expr, n: int) -> None:
        isa, cache, lanes = self.isa, self.cache, self.isa.lanes
        together = _vectors_together(BLOCK_CELLS // lanes, n)
        with loop(tirx.indexdiv(valid + together * lanes - 1, together * lanes)) as v:
            first = let(v * (together * lanes))
            dots = local("float32", n * together * lanes)
            for i in range(n * together):
                dots.store(i * lanes, zeros("float32", lanes))
            with loop(cache.head_dim) as d:
                for u in range(together):
                    keys = let(cache.load(block, plane + d * BLOCK_CELLS + first + u * lanes, lanes, isa))
                    for t in range(n):
                        query = splat(q.load(t * self.shape.q_stride + self.head * cache.head_dim + d), lanes)
                        slot = (t * together + u) * lanes
                        dots.store(slot, isa.fused_multiply_add(keys, query, dots.load(slot, lanes)))
            for t in range(n):
                for u in range(together):
                    value = dots.load((t * together + u) * lanes, lanes)
                    scores.store(t * BLOCK_CELLS + first + u * lanes, value)

    def _weights(self, scores: Region, running: Region, limit: Expr, valid: Expr, t: int, n: int) -> None:
        """Turn the scores of token t into softmax weights relative to the largest score so far."""
        isa, lanes = self.isa, self.isa.lanes
        limit = let(limit)
        n_vectors = let(tirx.indexdiv(valid + lanes - 1, lanes))
        scale = splat(const(self.shape.scale, "float32"), lanes)
        masked = splat(const(_MASKED, "float32"), lanes)
        vector = local("float32", lanes)

        def visible(v: Expr) -> Expr:
            index = tirx.Ramp(v * lanes, 1, lanes) if lanes > 1 else v
            return index <= splat(limit, lanes)

        vector.store(0, masked)
        with loop(n_vectors) as v:
            at = t * BLOCK_CELLS + v * lanes
            score = let(tirx.Select(visible(v), scores.load(at, lanes) * scale, masked))
            scores.store(at, score)
            vector.store(0, tirx.max(vector.load(0, lanes), score))
        largest = let(tirx.max(running.load(t), reduce(vector.load(0, lanes), tirx.max)))
        vector.store(0, zeros("float32", lanes))
        with loop(n_vectors) as v:
            at = t * BLOCK_CELLS + v * lanes
            weight = exp(scores.load(at, lanes) - splat(largest, lanes), isa)
            weight = let(tirx.Select(visible(v), weight, zeros("float32", lanes)))
            scores.store(at, weight)
            vector.store(0, vector.load(0, lanes) + weight)
        correction = let(exp(running.load(t) - largest, isa))
        running.store(t, largest)
        running.store(n + t, running.load(n + t) * correction + reduce(vector.load(0, lanes), add))
        running.store(2 * n + t, correction)

    def _outputs(
        self, block: Region, plane: Expr, acc: Region, scores: Region, running: Region, valid: Expr, n: int
    ) -> None:
        isa, cache = self.isa, self.cache
        lanes = lanes_dividing(cache.head_dim, isa)
        together = _vectors_together(cache.head_dim // lanes, n)
        with loop(cache.head_dim // (together * lanes)) as i:
            first = let(i * (together * lanes))
            sums = local("float32", n * together * lanes)
            slots = [(t, u, (t * together + u) * lanes) for t in range(n) for u in range(together)]
            for t, u, slot in slots:
                before = acc.load(t * cache.head_dim + first + u * lanes, lanes)
                sums.store(slot, before * splat(running.load(2 * n + t), lanes))
            with loop(valid) as j:
                row = plane + cache.plane + j * cache.head_dim + first
                values = [let(cache.load(block, row + u * lanes, lanes, isa)) for u in range(together)]
                for t, u, slot in slots:
                    weight = splat(scores.load(t * BLOCK_CELLS + j), lanes)
                    sums.store(slot, isa.fused_multiply_add(weight, values[u], sums.load(slot, lanes)))
            for t, u, slot in slots:
                acc.store(t * cache.head_dim + first + u * lanes, sums.load(slot, lanes))


_CHAINS = 8
"""Independent sums kept in flight: hides the latency of multiply-add."""


def _vectors_together(n_vectors: int, n_tokens: int) -> int:
    """How many neighbouring vectors a loop works on at once, so that few tokens still make enough chains."""
    return max(u for u in range(1, max(1, _CHAINS // n_tokens) + 1) if n_vectors % u == 0)
