"""Attention without softmax: every head has a matrix as its state, which each token decays, adds to and reads.

Columns of the state do not depend on each other: a task is a part of the columns of one head.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, byte_offset, cast, define, let, local, loop, splat, zeros
from airkernels.cpu.rounding import row_of
from airkernels.cpu.state import StateLayout, part_of
from airkernels.cpu.vectors import lanes_dividing


@dataclass(frozen=True)
class LinearAttentionShape:
    """As in ``operators.LinearAttention``; `per_key`: w has a column per element of a key.

    `strides` are the floats between rows of q, k, v, w and the fifth input, 0 where that is a tensor or missing.
    """

    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    rule: str
    tiled: bool
    per_key: bool
    strides: tuple[int, int, int, int, int]
    out_stride: int

    @property
    def state(self) -> StateLayout:
        """[n_heads, parts, key_dim, columns of a part]: what a task walks over for every token lies together.

        With the columns of all parts side by side, a part would use every other line of memory only, for which there is
        half of the first-level cache.
        """
        return StateLayout(self.n_heads * self.key_dim * self.value_dim)

    @property
    def tasks(self) -> int:
        return self.n_heads * (self.value_dim // part_of(self.value_dim))

    def key_head(self, head: Expr) -> Expr:
        if self.tiled:
            return tirx.indexmod(head, self.n_key_heads)
        return tirx.indexdiv(head, self.n_heads // self.n_key_heads)


def linear_attention(name: str, isa: VectorIsa, shape: LinearAttentionShape) -> tirx.PrimFunc:
    """Change the state by every token and read it; see ``operators.LinearAttention`` for the rules.

    p0 q, p1 k, p2 v, p3 w, p4 out float32, p5 state, p6 slots, p7 the fifth input or the bonus.
    """
    parts = shape.value_dim // part_of(shape.value_dim)

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as task:
            head, part = let(tirx.indexdiv(task, parts)), let(tirx.indexmod(task, parts))
            work = _Head(isa, shape, k, head, let(part * part_of(shape.value_dim)))
            shape.state.for_tokens(k, 5, 6, work.clear, work.step)

    return define(name, body)


@dataclass
class _Head:
    """Columns of the state of one head, from `column` on."""

    isa: VectorIsa
    shape: LinearAttentionShape
    kernel: Kernel
    head: Expr
    column: Expr

    def __post_init__(self) -> None:
        n = part_of(self.shape.value_dim)
        self.lanes = lanes_dividing(n, self.isa)
        self.starts = range(0, n, self.lanes)
        self.columns = n
        self.first = let((self.head * self.shape.value_dim + self.column) * self.shape.key_dim)

    def _at(self, j: Expr, start: int) -> Expr:
        return self.first + j * self.columns + start

    def clear(self, state: Region) -> None:
        with loop(self.shape.key_dim) as j:
            for start in self.starts:
                state.store(self._at(j, start), zeros("float32", self.lanes))

    def _row(self, pointer: int, token: Expr, stride: int, column: Expr) -> Region:
        """A row of an input from a column on."""
        row = row_of(self.kernel, pointer, token, stride)
        return Region(byte_offset(row.base, cast(column, "int64") * 4), "float32")

    def step(self, token: Expr, state: Region) -> None:
        shape, isa, head, n = self.shape, self.isa, self.head, self.shape.key_dim
        key = shape.key_head(head) * n
        q, k = (self._row(i, token, shape.strides[i], key) for i in (0, 1))
        v = self._row(2, token, shape.strides[2], head * shape.value_dim + self.column)
        w = self._row(3, token, shape.strides[3], head * n if shape.per_key else head)
        out = self._row(4, token, shape.out_stride, head * shape.value_dim + self.column)
        added = [let(v.load(start, self.lanes)) for start in self.starts]
        corrections: list[Expr] = []
        if shape.rule == "delta":
            beta, decay = let(self._fifth(token, head).load(0)), let(w.load(0))
            read = self._read(state, k)
            added = [let((x - r * self._splat(decay)) * self._splat(beta)) for x, r in zip(added, read, strict=True)]
        elif shape.rule == "rank_one":
            a, b = self._fifth(token, head * n), self._fifth(token, (shape.n_heads + head) * n)
            corrections = self._read(state, a)
        elif shape.rule == "bonus":
            bonus = self._fifth(token, head * n)

        sums = self._zeros()
        with loop(n) as j:
            decay_j, key_j, query_j = (
                self._splat(let(x)) for x in (w.load(j if shape.per_key else 0), k.load(j), q.load(j))
            )
            for i, start in enumerate(self.starts):
                before = let(state.load(self._at(j, start), self.lanes))
                new = let(isa.fused_multiply_add(key_j, added[i], before * decay_j))
                if corrections:
                    new = let(isa.fused_multiply_add(self._splat(b.load(j)), corrections[i], new))
                state.store(self._at(j, start), new)
                seen = new
                if shape.rule == "bonus":
                    seen = isa.fused_multiply_add(self._splat(bonus.load(j)) * key_j, added[i], before)
                sums.store(start, isa.fused_multiply_add(query_j, seen, sums.load(start, self.lanes)))
        for start in self.starts:
            out.store(start, sums.load(start, self.lanes))

    def _fifth(self, token: Expr, column: Expr) -> Region:
        return self._row(7, token, self.shape.strides[4], column)

    def _read(self, state: Region, x: Region) -> list[Expr]:
        """x S, before the state changes."""
        sums = self._zeros()
        with loop(self.shape.key_dim) as j:
            factor = self._splat(let(x.load(j)))
            for start in self.starts:
                value = state.load(self._at(j, start), self.lanes)
                sums.store(start, self.isa.fused_multiply_add(factor, value, sums.load(start, self.lanes)))
        return [let(sums.load(start, self.lanes)) for start in self.starts]

    def _zeros(self) -> Region:
        sums = local("float32", len(self.starts) * self.lanes)
        for start in self.starts:
            sums.store(start, zeros("float32", self.lanes))
        return sums

    def _splat(self, value: Expr) -> Expr:
        return splat(value, self.lanes)
