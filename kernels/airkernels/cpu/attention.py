"""Attention over the KV cache.

The online softmax of Milakov & Gimelshein (2018) over whole blocks of the cache in order, so a token's result is the
same whatever it is batched with, and memory does not grow with the context.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels import exact
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.functions import softcap
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
from airkernels.cpu.vectors import add, exp, lanes_dividing, reduce

_MASKED = -3.0e38


@dataclass(frozen=True)
class AttentionShape:
    """Heads and strides (floats) of queries and outputs, and how scores are made.

    A task covers `group` neighbouring tokens; `tile` of them share a pass over the cache (tile divides group).
    `sinks`: p6 has a score per head that takes part in the softmax. The rest as in ``operators.Attention``.
    """

    n_heads: int
    scale: float
    q_stride: int
    out_stride: int
    group: int
    tile: int
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: bool = False

    def first_cell(self, cell: Expr) -> Expr:
        """The first cell that a token in `cell` sees."""
        if self.window:
            return tirx.max(cell - (self.window - 1), 0)
        return cell - tirx.indexmod(cell, self.chunk) if self.chunk else const(0, "int32")

    @property
    def all_cells(self) -> bool:
        return not (self.window or self.chunk)


def attention(name: str, isa: VectorIsa, cache: CacheLayout, shape: AttentionShape) -> tirx.PrimFunc:
    """Causal attention of every token over its sequence's cells up to its own.

    Tasks are (group of tokens, head), heads innermost. p0 q float32, p1 out float32, p2 cache,
    p3 cells, p4 sequences, p5 block table int32, p6 sinks float32 [n_heads].
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
        plane = let(kv_head * cache.plane)
        acc = local("float32", n * cache.v_dim)
        scores = local("float32", n * BLOCK_CELLS)
        running = local("float32", 3 * n)  # largest score, sum of weights, correction of this step
        lanes = lanes_dividing(cache.v_dim, self.isa)
        starts = [let(shape.first_cell(limit)) for limit in limits]
        slope = self._slope()
        for t in range(n):
            # a sink is a cell that comes first and has no value
            sink = k.region(6, "float32").load(self.head) if shape.sinks else const(_MASKED, "float32")
            running.store(t, sink)
            running.store(n + t, const(float(shape.sinks), "float32"))
            with loop(cache.v_dim // lanes) as i:
                acc.store(t * cache.v_dim + i * lanes, zeros("float32", lanes))
        first_block = tirx.indexdiv(starts[0], BLOCK_CELLS)
        with loop(tirx.indexdiv(limits[-1], BLOCK_CELLS) + 1, first_block) as b:
            block = cache.block(k.pointers[2], table, sequence, b)
            valid = let(tirx.min(limits[-1] + 1 - b * BLOCK_CELLS, BLOCK_CELLS))
            self._scores(block, plane, q, scores, valid, n)
            for t in range(n):
                place = b * BLOCK_CELLS
                self._weights(scores, running, starts[t] - place, limits[t] - place, valid, slope, t, n)
            self._outputs(block, plane, acc, scores, running, valid, n)
        for t in range(n):
            inverse = let(const(1.0, "float32") / running.load(n + t))
            with loop(cache.v_dim // lanes) as i:
                value = acc.load(t * cache.v_dim + i * lanes, lanes) * splat(inverse, lanes)
                out.store(t * shape.out_stride + self.head * cache.v_dim + i * lanes, value)

    def _slope(self) -> Expr:
        """ALiBi's slope of the head: powers of 2^(-bias/m) for the first m heads, m the largest power of two among
        them; the odd powers of its root for the rest (Press et al. 2021)."""
        if not self.shape.alibi:
            return None
        m = 1 << (self.shape.n_heads.bit_length() - 1)
        slope = const(0.0, "float32")
        for head in range(self.shape.n_heads):
            power = (head + 1) / m if head < m else (2 * (head - m) + 1) / (2 * m)
            slope = tirx.Select(self.head == head, const(exact.power(2.0, -self.shape.alibi * power), "float32"), slope)
        return let(slope)

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

    def _weights(
        self, scores: Region, running: Region, start: Expr, limit: Expr, valid: Expr, slope: Expr, t: int, n: int
    ) -> None:
        """Turn the scores of token t into softmax weights relative to the largest score so far."""
        isa, lanes, shape = self.isa, self.isa.lanes, self.shape
        start, limit = let(start), let(limit)
        n_vectors = let(tirx.indexdiv(valid + lanes - 1, lanes))
        scale = splat(const(shape.scale, "float32"), lanes)
        masked = splat(const(_MASKED, "float32"), lanes)
        vector = local("float32", lanes)

        def cells(v: Expr) -> Expr:
            return tirx.Ramp(v * lanes, 1, lanes) if lanes > 1 else v

        def visible(v: Expr) -> Expr:
            before = cells(v) <= splat(limit, lanes)
            return before if shape.all_cells else tirx.And(before, cells(v) >= splat(start, lanes))

        def scored(product: Expr, v: Expr) -> Expr:
            score = product * scale
            if shape.softcap:
                score = softcap(score, shape.softcap, isa)
            if slope is not None:
                score = score + splat(slope, lanes) * cast(cells(v) - splat(limit, lanes), "float32")
            return score

        vector.store(0, masked)
        with loop(n_vectors) as v:
            at = t * BLOCK_CELLS + v * lanes
            score = let(tirx.Select(visible(v), scored(scores.load(at, lanes), v), masked))
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
        lanes = lanes_dividing(cache.v_dim, isa)
        together = _vectors_together(cache.v_dim // lanes, n)
        with loop(cache.v_dim // (together * lanes)) as i:
            first = let(i * (together * lanes))
            sums = local("float32", n * together * lanes)
            slots = [(t, u, (t * together + u) * lanes) for t in range(n) for u in range(together)]
            for t, u, slot in slots:
                before = acc.load(t * cache.v_dim + first + u * lanes, lanes)
                sums.store(slot, before * splat(running.load(2 * n + t), lanes))
            with loop(valid) as j:
                row = plane + cache.key_plane + j * cache.v_dim + first
                values = [let(cache.load(block, row + u * lanes, lanes, isa)) for u in range(together)]
                for t, u, slot in slots:
                    weight = splat(scores.load(t * BLOCK_CELLS + j), lanes)
                    sums.store(slot, isa.fused_multiply_add(weight, values[u], sums.load(slot, lanes)))
            for t, u, slot in slots:
                acc.store(t * cache.v_dim + first + u * lanes, sums.load(slot, lanes))


_CHAINS = 8
"""Independent sums kept in flight: hides the latency of multiply-add."""


def _vectors_together(n_vectors: int, n_tokens: int) -> int:
    """How many neighbouring vectors a loop works on at once, so that few tokens still make enough chains."""
    return max(u for u in range(1, max(1, _CHAINS // n_tokens) + 1) if n_vectors % u == 0)
