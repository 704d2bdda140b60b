"""Attention over the KV cache.

The online softmax of Milakov & Gimelshein (2018) over whole blocks of the cache in order, so a token's result is the
same whatever it is batched with, and memory does not grow with the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from tvm import tirx

from airkernels import exact
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.cells import Values
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
from airkernels.cpu.scores import Scores, scores_of
from airkernels.cpu.vectors import add, exp, lanes_dividing, reduce

_MASKED = -3.0e38


@dataclass(frozen=True)
class AttentionShape:
    """Heads and strides (floats) of queries and outputs, and how scores are made.

    A task covers `heads` query heads of a KV head and `group` neighbouring tokens, of which `tile` (it divides the
    group) share a pass over the cache, as the heads do.
    `sinks`: p6 has a score per head that takes part in the softmax. The rest as in ``operators.Attention``.
    """

    n_heads: int
    scale: float
    q_stride: int
    out_stride: int
    group: int
    tile: int
    heads: int = 1
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

    Tasks are (group of tokens, heads), heads innermost. p0 q float32, p1 out float32, p2 cache,
    p3 cells, p4 sequences, p5 block table int32, p6 sinks float32 [n_heads], p7 scratch of all workers.
    """

    def body(k: Kernel) -> None:
        sequences = k.region(4, "int32")
        parts = shape.n_heads // shape.heads
        with loop(k.end, k.begin) as task:
            group = let(tirx.indexdiv(task, parts) * shape.group)
            work = _Pass(isa, cache, shape, k, let(tirx.indexmod(task, parts) * shape.heads))
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
class _Row:
    """One query of a pass: token `t` and head `h`, counted from its first; what it sees, and its slope of ALiBi."""

    t: int
    h: int
    limit: Expr
    start: Expr
    slope: Expr


@dataclass
class _Pass:
    """Attention of some query heads, from `head` on, of one KV head for neighbouring tokens of one sequence."""

    isa: VectorIsa
    cache: CacheLayout
    shape: AttentionShape
    kernel: Kernel
    head: Expr

    def emit(self, first: Expr, n_tokens: int) -> None:
        k, cache, shape = self.kernel, self.cache, self.shape
        cells, sequences, table = (k.region(p, "int32") for p in (3, 4, 5))
        sequence = let(sequences.load(first))
        limits = [let(cells.load(first + t)) for t in range(n_tokens)]
        starts = [let(shape.first_cell(limit)) for limit in limits]
        slopes = [self._slope(h) for h in range(shape.heads)]
        rows = [_Row(t, h, limits[t], starts[t], slopes[h]) for t in range(n_tokens) for h in range(shape.heads)]
        n = len(rows)
        queries = [self._row(0, first, shape.q_stride, cache.head_dim, row) for row in rows]
        keys = scores_of(cache, self.isa, queries, k.pointers[7], k.worker, shape.tile * shape.heads)
        kv_head = let(tirx.indexdiv(self.head, shape.n_heads // cache.n_kv_heads))
        acc = local("float32", n * cache.v_dim)
        scores = local("float32", n * BLOCK_CELLS)
        running = local("float32", 3 * n)  # largest score, sum of weights, correction of this step
        lanes = lanes_dividing(cache.v_dim, self.isa)
        for r, row in enumerate(rows):
            # a sink is a cell that comes first and has no value
            sink = k.region(6, "float32").load(self.head + row.h) if shape.sinks else const(_MASKED, "float32")
            running.store(r, sink)
            running.store(n + r, const(float(shape.sinks), "float32"))
            with loop(cache.v_dim // lanes) as i:
                acc.store(r * cache.v_dim + i * lanes, zeros("float32", lanes))
        first_block = tirx.indexdiv(starts[0], BLOCK_CELLS)
        with loop(tirx.indexdiv(limits[-1], BLOCK_CELLS) + 1, first_block) as b:
            block = cache.block(k.pointers[2], table, sequence, b)
            valid = let(tirx.min(limits[-1] + 1 - b * BLOCK_CELLS, BLOCK_CELLS))
            self._scores(cache.keys_of(block, kv_head), keys, scores, valid, n)
            for r, row in enumerate(rows):
                self._weights(scores, running, row, b * BLOCK_CELLS, valid, r, n)
            self._outputs(cache.values_of(block, kv_head), acc, scores, running, valid, n)
        for r, row in enumerate(rows):
            inverse = let(const(1.0, "float32") / running.load(n + r))
            out = self._row(1, first, shape.out_stride, cache.v_dim, row)
            with loop(cache.v_dim // lanes) as i:
                out.store(i * lanes, acc.load(r * cache.v_dim + i * lanes, lanes) * splat(inverse, lanes))

    def _row(self, pointer: int, first: Expr, stride: int, dim: int, row: _Row) -> Region:
        at = cast(first + row.t, "int64") * (4 * stride) + cast(self.head + row.h, "int64") * (4 * dim)
        return Region(byte_offset(self.kernel.pointers[pointer], at), "float32")

    def _slope(self, h: int) -> Expr:
        """ALiBi's slope of a head: powers of 2^(-bias/m) for the first m heads, m the largest power of two among
        them; the odd powers of its root for the rest (Press et al. 2021)."""
        if not self.shape.alibi:
            return None
        m = 1 << (self.shape.n_heads.bit_length() - 1)
        slope = const(0.0, "float32")
        for head in range(self.shape.n_heads):
            power = (head + 1) / m if head < m else (2 * (head - m) + 1) / (2 * m)
            bias = const(exact.power(2.0, -self.shape.alibi * power), "float32")
            slope = tirx.Select(self.head + h == head, bias, slope)
        return let(slope)

    def _scores(self, block: Expr, keys: Scores, scores: Region, valid: Expr, n: int) -> None:
        lanes = self.isa.lanes
        together = _vectors_together(BLOCK_CELLS // lanes, n)
        with loop(tirx.indexdiv(valid + together * lanes - 1, together * lanes)) as v:
            first = let(v * (together * lanes))
            for r, vectors in enumerate(keys.products(block, first, together)):
                for u, value in enumerate(vectors):
                    scores.store(r * BLOCK_CELLS + first + u * lanes, value)

    def _weights(self, scores: Region, running: Region, row: _Row, place: Expr, valid: Expr, r: int, n: int) -> None:
        """Turn the scores of row r into softmax weights relative to the largest score so far; the block begins at
        cell `place`."""
        isa, lanes, shape = self.isa, self.isa.lanes, self.shape
        start, limit = let(row.start - place), let(row.limit - place)
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
            if row.slope is not None:
                score = score + splat(row.slope, lanes) * cast(cells(v) - splat(limit, lanes), "float32")
            return score

        vector.store(0, masked)
        with loop(n_vectors) as v:
            at = r * BLOCK_CELLS + v * lanes
            score = let(tirx.Select(visible(v), scored(scores.load(at, lanes), v), masked))
            scores.store(at, score)
            vector.store(0, tirx.max(vector.load(0, lanes), score))
        largest = let(tirx.max(running.load(r), reduce(vector.load(0, lanes), tirx.max)))
        vector.store(0, zeros("float32", lanes))
        with loop(n_vectors) as v:
            at = r * BLOCK_CELLS + v * lanes
            weight = exp(scores.load(at, lanes) - splat(largest, lanes), isa)
            weight = let(tirx.Select(visible(v), weight, zeros("float32", lanes)))
            scores.store(at, weight)
            vector.store(0, vector.load(0, lanes) + weight)
        correction = let(exp(running.load(r) - largest, isa))
        running.store(r, largest)
        running.store(n + r, running.load(n + r) * correction + reduce(vector.load(0, lanes), add))
        running.store(2 * n + r, correction)

    def _outputs(self, block: Expr, acc: Region, scores: Region, running: Region, valid: Expr, n: int) -> None:
        isa, v_dim, values = self.isa, self.cache.v_dim, Values(self.cache, self.isa)
        lanes = lanes_dividing(v_dim, isa)
        together = _vectors_together(v_dim // lanes, n)
        step = together * lanes
        span = lcm(step, values.span)
        slots = [(r, u, (r * together + u) * lanes) for r in range(n) for u in range(together)]
        with loop(v_dim // span) as i:
            column = let(i * span)
            for at in range(0, span, step):
                sums = local("float32", n * step)
                for r, u, slot in slots:
                    before = acc.load(r * v_dim + column + at + u * lanes, lanes)
                    sums.store(slot, before * splat(running.load(2 * n + r), lanes))
                with loop(valid) as j:
                    loaded = [let(values.load(block, j, column, at + u * lanes, lanes)) for u in range(together)]
                    for r, u, slot in slots:
                        weight = splat(scores.load(r * BLOCK_CELLS + j), lanes)
                        sums.store(slot, isa.fused_multiply_add(weight, loaded[u], sums.load(slot, lanes)))
                for r, u, slot in slots:
                    acc.store(r * v_dim + column + at + u * lanes, sums.load(slot, lanes))


_CHAINS = 8
"""Independent sums kept in flight: hides the latency of multiply-add."""


def _vectors_together(n_vectors: int, n_rows: int) -> int:
    """How many neighbouring vectors a loop works on at once, so that few rows still make enough chains."""
    return max(u for u in range(1, max(1, _CHAINS // n_rows) + 1) if n_vectors % u == 0)
