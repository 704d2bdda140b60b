"""Attention over the KV cache.

A token's result is the same whatever it is batched with and however many threads there are: blocks of the cache are
added up in an order that follows from the token's own place. Memory does not grow with the context.

Where the heads of a model are few, a single token's cells are split into parts, for more tasks than heads: blocks are
dealt out to parts in turn, and the sums of the parts are merged in order. All kernels of a model do so, those that go
through all parts themselves too, so that they agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu import scores
from airkernels.cpu.attention_pass import AttentionShape, LocalSums, Pass, Row, Sums, slope_of
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.hadamard import spread
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
    loop,
    splat,
    when,
)
from airkernels.cpu.vectors import lanes_dividing


def parts_nbytes(cache: CacheLayout, shape: AttentionShape) -> int:
    """Bytes of the sums of all parts, which stand at the beginning of the scratch of all workers."""
    return -(-shape.n_heads * shape.parts * (cache.v_dim + 2) // 16) * 64


def scratch_nbytes(cache: CacheLayout, shape: AttentionShape) -> int:
    """Bytes of scratch that a worker needs."""
    return parts_nbytes(cache, shape) + scores.scratch_nbytes(cache, shape.tile * shape.heads)


def attention(name: str, isa: VectorIsa, cache: CacheLayout, shape: AttentionShape) -> tirx.PrimFunc:
    """Causal attention of every token over its sequence's cells up to its own.

    Tasks are (group of tokens, heads), heads innermost. p0 q float32, p1 out float32, p2 cache,
    p3 cells, p4 sequences, p5 block table int32, p6 sinks float32 [n_heads], p7 scratch of all workers.
    """

    def body(k: Kernel) -> None:
        sequences = k.region(4, "int32")
        places = shape.n_heads // shape.heads
        with loop(k.end, k.begin) as task:
            group = let(tirx.indexdiv(task, places) * shape.group)
            work = _Heads(isa, cache, shape, k, let(tirx.indexmod(task, places) * shape.heads))
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
                        work.attend(first, shape.tile)
                    alone = let(tirx.Select(shared != 0, stop, first))
                with loop(tirx.max(stop - alone, 0)) as i:
                    work.attend(let(alone + i), 1)

    return define(name, body)


def attention_parts(name: str, isa: VectorIsa, cache: CacheLayout, shape: AttentionShape) -> tirx.PrimFunc:
    """The sums of every part for the first token of a batch, to be merged by `merge_parts`.

    Tasks are (part, heads), heads innermost; the shape's group is one token. Pointers as of `attention`, but for p1 and
    p6, which are not used.
    """

    def body(k: Kernel) -> None:
        places = shape.n_heads // shape.heads
        with loop(k.end, k.begin) as task:
            work = _Heads(isa, cache, shape, k, let(tirx.indexmod(task, places) * shape.heads))
            work.sum_part(let(tirx.indexdiv(task, places)))

    return define(name, body)


def merge_parts(name: str, isa: VectorIsa, cache: CacheLayout, shape: AttentionShape) -> tirx.PrimFunc:
    """The result of the first token of a batch from the sums of its parts.

    Tasks are heads that shared one. p1 out, p3 cells, p6 sinks, p7 scratch, as of `attention`.
    """

    def body(k: Kernel) -> None:
        with loop(k.end * shape.heads, k.begin * shape.heads) as head:
            _Heads(isa, cache, shape, k, head).merge()

    return define(name, body)


@dataclass
class _Heads:
    """Attention of some query heads, from `head` on, of one KV head."""

    isa: VectorIsa
    cache: CacheLayout
    shape: AttentionShape
    kernel: Kernel
    head: Expr

    def attend(self, first: Expr, n_tokens: int) -> None:
        """All there is to do for neighbouring tokens of one sequence."""
        shape, rows = self.shape, self._rows(first, n_tokens, self.shape.heads)
        work = self._pass(first, rows)
        totals, sums = LocalSums(len(rows), self.cache.v_dim), LocalSums(len(rows), self.cache.v_dim)
        for row, total in zip(rows, totals.rows, strict=True):
            self._begin(row, total)
        with loop(shape.parts) as part:
            block, count = shape.blocks_of(part, rows[0].start, work.limit)
            with when(count > 0):
                self._add_blocks(work, first, sums, block, count)
                for total, each in zip(totals.rows, sums.rows, strict=True):
                    total.merge(each, self.cache.v_dim, self.isa)
        for row, total in zip(rows, totals.rows, strict=True):
            self._finish(first, row, total)

    def sum_part(self, part: Expr) -> None:
        """The sums of one part for the first token, unless it has no cells."""
        token = const(0, "int32")
        rows = self._rows(token, 1, self.shape.heads)
        block, count = self.shape.blocks_of(part, rows[0].start, rows[0].limit)
        with when(count > 0):
            sums = LocalSums(len(rows), self.cache.v_dim)
            self._add_blocks(self._pass(token, rows), token, sums, block, count)
            for row, each in zip(rows, sums.rows, strict=True):
                self._part(row, part).copy(each, self.cache.v_dim, self.isa)

    def merge(self) -> None:
        """Merge the parts of one head for the first token."""
        token = const(0, "int32")
        (row,) = self._rows(token, 1, 1)
        total = LocalSums(1, self.cache.v_dim).rows[0]
        self._begin(row, total)
        with loop(self.shape.parts) as part:
            _block, count = self.shape.blocks_of(part, row.start, row.limit)
            with when(count > 0):
                total.merge(self._part(row, part), self.cache.v_dim, self.isa)
        self._finish(token, row, total)

    def _rows(self, first: Expr, n_tokens: int, n_heads: int) -> list[Row]:
        cells = self.kernel.region(3, "int32")
        limits = [let(cells.load(first + t)) for t in range(n_tokens)]
        starts = [let(self.shape.first_cell(limit)) for limit in limits]
        slopes = [slope_of(self.shape, self.head + h) for h in range(n_heads)]
        return [Row(t, h, limits[t], starts[t], slopes[h]) for t in range(n_tokens) for h in range(n_heads)]

    def _pass(self, first: Expr, rows: list[Row]) -> Pass:
        k, cache, shape = self.kernel, self.cache, self.shape
        queries = [self._row_of(0, first, shape.q_stride, cache.head_dim, row) for row in rows]
        scratch = byte_offset(k.pointers[7], parts_nbytes(cache, shape))
        keys = scores.scores_of(cache, self.isa, queries, scratch, k.worker, shape.tile * shape.heads)
        kv_head = let(tirx.indexdiv(self.head, shape.n_heads // cache.n_kv_heads))
        return Pass(self.isa, cache, shape, rows, keys, kv_head, rows[-1].limit)

    def _add_blocks(self, work: Pass, first: Expr, sums: LocalSums, block: Expr, count: Expr) -> None:
        """Sums of `count` blocks of a part, from one on."""
        k, cache, step = self.kernel, self.cache, self.shape.parts
        table, sequence = k.region(5, "int32"), k.region(4, "int32").load(first)
        for each in sums.rows:
            each.clear(cache.v_dim, self.isa)
        with loop(count) as i:
            number = let(block + i * step)
            following = None
            if self.shape.tile == 1 and self.isa.prefetch:
                after = let(block + tirx.min(i + 1, count - 1) * step)
                following = cache.block(k.pointers[2], table, sequence, after)
            here = cache.block(k.pointers[2], table, sequence, number)
            work.add_block(here, following, number * BLOCK_CELLS, sums)

    def _part(self, row: Row, part: Expr) -> Sums:
        """Where the sums of a part are kept for a row."""
        shape, base = self.shape, Region(self.kernel.pointers[7], "float32")
        place = (self.head + row.h) * shape.parts + part
        return Sums(base, place * self.cache.v_dim, base, shape.n_heads * shape.parts * self.cache.v_dim + 2 * place)

    def _begin(self, row: Row, total: Sums) -> None:
        total.clear(self.cache.v_dim, self.isa)
        if self.shape.sinks:  # a cell that comes first and has no value
            total.put(self.kernel.region(6, "float32").load(self.head + row.h), const(1.0, "float32"))

    def _finish(self, first: Expr, row: Row, total: Sums) -> None:
        lanes = lanes_dividing(self.cache.v_dim, self.isa)
        inverse = let(const(1.0, "float32") / total.weight)
        out = self._row_of(1, first, self.shape.out_stride, self.cache.v_dim, row)
        if self.cache.spreads_values:
            spread(total.values, total.at, out, self.cache.v_dim, self.isa, inverse)
            return
        with loop(self.cache.v_dim // lanes) as i:
            out.store(i * lanes, total.values.load(total.at + i * lanes, lanes) * splat(inverse, lanes))

    def _row_of(self, pointer: int, first: Expr, stride: int, dim: int, row: Row) -> Region:
        at = cast(first + row.t, "int64") * (4 * stride) + cast(self.head + row.h, "int64") * (4 * dim)
        return Region(byte_offset(self.kernel.pointers[pointer], at), "float32")
