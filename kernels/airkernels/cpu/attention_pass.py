"""A pass over cells of the cache for a few queries: the online softmax of Milakov & Gimelshein (2018), by blocks.

The sums of a row of results are its largest score, the sum of its weights relative to that, and the sum of the values
with these weights. Sums of different cells can be merged, also by other workers than made them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm

from tvm import tirx

from airkernels import exact
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.cells import Values
from airkernels.cpu.functions import softcap
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Region, cast, const, let, local, loop, splat, zeros
from airkernels.cpu.scores import Scores
from airkernels.cpu.vectors import add, exp, lanes_dividing, reduce

MASKED = -3.0e38
"""The score of a cell that is not seen, and the largest of none."""

_LINE = 64
"""Bytes that memory brings at once."""


@dataclass(frozen=True)
class AttentionShape:
    """Heads and strides (floats) of queries and outputs, and how scores are made.

    A task covers `heads` query heads of a KV head and `group` neighbouring tokens, of which `tile` (it divides the
    group) share a pass over the cache, as the heads do.
    `parts`: blocks i, i + parts, i + 2 * parts, ... of the cache are summed up apart, and the sums of all i are merged
    in order. `sinks`: p6 has a score per head that takes part in the softmax. The rest as in ``operators.Attention``.
    """

    n_heads: int
    scale: float
    q_stride: int
    out_stride: int
    group: int
    tile: int
    heads: int = 1
    parts: int = 1
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

    def blocks_of(self, part: Expr, start: Expr, limit: Expr) -> tuple[Expr, Expr]:
        """The first block of a part among those of cells `start` to `limit`, and how many there are."""
        first = tirx.indexdiv(start, BLOCK_CELLS)
        if self.parts > 1:
            first = let(first + tirx.indexmod(part + self.parts - tirx.indexmod(first, self.parts), self.parts))
        last = tirx.indexdiv(limit, BLOCK_CELLS)
        return first, let(tirx.indexdiv(tirx.max(last - first + self.parts, 0), self.parts))


@dataclass
class Row:
    """One query of a pass: token `t` and head `h`, counted from its first; what it sees, and its slope of ALiBi."""

    t: int
    h: int
    limit: Expr
    start: Expr
    slope: Expr


def slope_of(shape: AttentionShape, head: Expr) -> Expr:
    """ALiBi's slope of a head: powers of 2^(-bias/m) for the first m heads, m the largest power of two among them; the
    odd powers of its root for the rest (Press et al. 2021)."""
    if not shape.alibi:
        return None
    m = 1 << (shape.n_heads.bit_length() - 1)
    slope = const(0.0, "float32")
    for i in range(shape.n_heads):
        power = (i + 1) / m if i < m else (2 * (i - m) + 1) / (2 * m)
        slope = tirx.Select(head == i, const(exact.power(2.0, -shape.alibi * power), "float32"), slope)
    return let(slope)


class Sums:
    """The sums of a row of results, in memory: its values [v_dim], and its state, which is its largest score and its
    weight; in two regions of float32, from a place of each on."""

    def __init__(self, values: Region, at: Expr, state: Region, state_at: Expr) -> None:
        self.values, self.at, self.state, self.state_at = values, at, state, state_at

    @property
    def largest(self) -> Expr:
        return self.state.load(self.state_at)

    @property
    def weight(self) -> Expr:
        return self.state.load(self.state_at + 1)

    def put(self, largest: Expr, weight: Expr) -> None:
        self.state.store(self.state_at, largest)
        self.state.store(self.state_at + 1, weight)

    def clear(self, v_dim: int, isa: VectorIsa) -> None:
        """The sums of no cells."""
        lanes = lanes_dividing(v_dim, isa)
        self.put(const(MASKED, "float32"), const(0.0, "float32"))
        with loop(v_dim // lanes) as i:
            self.values.store(self.at + i * lanes, zeros("float32", lanes))

    def copy(self, other: Sums, v_dim: int, isa: VectorIsa) -> None:
        lanes = lanes_dividing(v_dim, isa)
        self.put(other.largest, other.weight)
        with loop(v_dim // lanes) as i:
            self.values.store(self.at + i * lanes, other.values.load(other.at + i * lanes, lanes))

    def merge(self, other: Sums, v_dim: int, isa: VectorIsa) -> None:
        """Add the sums of other cells. The sums of no cells leave every bit as it is."""
        lanes = lanes_dividing(v_dim, isa)
        mine, theirs = let(self.largest), let(other.largest)
        largest = let(tirx.max(mine, theirs))
        kept, added = let(exp(mine - largest, isa)), let(exp(theirs - largest, isa))
        self.put(largest, isa.fused_multiply_add(other.weight, added, self.weight * kept))
        with loop(v_dim // lanes) as i:
            before = self.values.load(self.at + i * lanes, lanes) * splat(kept, lanes)
            new = other.values.load(other.at + i * lanes, lanes)
            self.values.store(self.at + i * lanes, isa.fused_multiply_add(new, splat(added, lanes), before))


class LocalSums:
    """Sums of the rows of a pass on the stack: float32 [n, v_dim] and [n, 2]."""

    def __init__(self, n: int, v_dim: int) -> None:
        self.values, self.state = local("float32", n * v_dim), local("float32", 2 * n)
        self.rows = [Sums(self.values, r * v_dim, self.state, 2 * r) for r in range(n)]


def _ask_ahead(base: Expr | None, lines: int, iterations: int) -> Callable[[Expr], None]:
    """What asks for some of the cache lines from `base` on in each of so many iterations, if there is a base."""
    if base is None:
        return lambda _iteration: None
    region, each = Region(base, "uint8"), -(-lines // iterations)

    def ask(iteration: Expr) -> None:
        for i in range(each):
            region.prefetch((iteration * each + i) * _LINE)

    return ask


@dataclass
class Pass:
    """Adds up blocks for rows that are some query heads of one KV head, for neighbouring tokens of one sequence.

    `keys` makes the products with the queries of the rows; `limit` is the last cell that any of them sees.
    """

    isa: VectorIsa
    cache: CacheLayout
    shape: AttentionShape
    rows: Sequence[Row]
    keys: Scores
    kv_head: Expr
    limit: Expr

    def __post_init__(self) -> None:
        self.scores = local("float32", len(self.rows) * BLOCK_CELLS)
        self.corrections = local("float32", len(self.rows))

    def add_block(self, block: Expr, following: Expr | None, place: Expr, sums: LocalSums) -> None:
        """Add a block, which begins at cell `place`; `following` is the one that comes next, if it is to be asked
        for while this one is worked on."""
        valid = let(tirx.min(self.limit + 1 - place, BLOCK_CELLS))
        keys, values = self.cache.keys_of(block, self.kv_head), self.cache.values_of(block, self.kv_head)
        next_keys = next_values = None
        if following is not None:
            next_keys = self.cache.keys_of(following, self.kv_head)
            next_values = self.cache.values_of(following, self.kv_head)
        for first in range(0, len(self.rows), self.keys.most_rows):
            rows = range(first, min(first + self.keys.most_rows, len(self.rows)))
            self._score(keys, rows, valid, None if first else next_keys)
        for r, row in enumerate(self.rows):
            self._weigh(row, r, sums.rows[r], place, valid)
        most = self.isa.registers // 2
        for first in range(0, len(self.rows), most):
            rows = range(first, min(first + most, len(self.rows)))
            self._add_values(values, rows, sums.values, valid, None if first else next_values)

    def _score(self, keys: Expr, rows: range, valid: Expr, following: Expr | None) -> None:
        """Products of the queries of some rows with the keys of a block."""
        lanes = self.isa.lanes
        together = _vectors_together(BLOCK_CELLS // lanes, len(rows), self.keys.most_rows)
        step, n_steps = together * lanes, self.keys.n_steps
        ask = _ask_ahead(following, self.cache.key_nbytes * BLOCK_CELLS // _LINE, BLOCK_CELLS // step * n_steps)
        with loop(tirx.indexdiv(valid + step - 1, step)) as v:
            first = let(v * step)
            products = self.keys.products(keys, first, together, rows, lambda i: ask(v * n_steps + i))
            for r, vectors in zip(rows, products, strict=True):
                for u, value in enumerate(vectors):
                    self.scores.store(r * BLOCK_CELLS + first + u * lanes, value)

    def _weigh(self, row: Row, r: int, sums: Sums, place: Expr, valid: Expr) -> None:
        """Turn the scores of row r into softmax weights relative to the largest score so far."""
        isa, lanes, shape, scores = self.isa, self.isa.lanes, self.shape, self.scores
        start, limit = let(row.start - place), let(row.limit - place)
        n_vectors = let(tirx.indexdiv(valid + lanes - 1, lanes))
        scale = splat(const(shape.scale, "float32"), lanes)
        masked = splat(const(MASKED, "float32"), lanes)
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
        before = let(sums.largest)
        largest = let(tirx.max(before, reduce(vector.load(0, lanes), tirx.max)))
        vector.store(0, zeros("float32", lanes))
        with loop(n_vectors) as v:
            at = r * BLOCK_CELLS + v * lanes
            weight = exp(scores.load(at, lanes) - splat(largest, lanes), isa)
            weight = let(tirx.Select(visible(v), weight, zeros("float32", lanes)))
            scores.store(at, weight)
            vector.store(0, vector.load(0, lanes) + weight)
        correction = let(exp(before - largest, isa))
        sums.put(largest, sums.weight * correction + reduce(vector.load(0, lanes), add))
        self.corrections.store(r, correction)

    def _add_values(self, block: Expr, rows: range, acc: Region, valid: Expr, following: Expr | None) -> None:
        """Add the values of a block by the weights of some rows."""
        isa, v_dim, values, most = self.isa, self.cache.v_dim, Values(self.cache, self.isa), self.isa.registers // 2
        lanes = lanes_dividing(v_dim, isa)
        together = _vectors_together(v_dim // lanes, len(rows), most)
        step = together * lanes
        span = lcm(step, values.span)
        slots = [(r, u, ((r - rows.start) * together + u) * lanes) for r in rows for u in range(together)]
        ask = _ask_ahead(following, self.cache.value_nbytes * BLOCK_CELLS // _LINE, v_dim // step * BLOCK_CELLS)
        with loop(v_dim // span) as i:
            column = let(i * span)
            for at in range(0, span, step):
                sums = local("float32", len(rows) * step)
                for r, u, slot in slots:
                    before = acc.load(r * v_dim + column + at + u * lanes, lanes)
                    sums.store(slot, before * splat(self.corrections.load(r), lanes))
                with loop(valid) as j:
                    ask((i * (span // step) + at // step) * BLOCK_CELLS + j)
                    loaded = [let(values.load(block, j, column, at + u * lanes, lanes)) for u in range(together)]
                    for r, u, slot in slots:
                        weight = splat(self.scores.load(r * BLOCK_CELLS + j), lanes)
                        sums.store(slot, isa.fused_multiply_add(weight, loaded[u], sums.load(slot, lanes)))
                for r, u, slot in slots:
                    acc.store(r * v_dim + column + at + u * lanes, sums.load(slot, lanes))


def _vectors_together(n_vectors: int, n_rows: int, most: int) -> int:
    """How many neighbouring vectors a loop works on at once, so that few rows still make many independent sums."""
    return max(u for u in range(1, max(1, most // n_rows) + 1) if n_vectors % u == 0)
