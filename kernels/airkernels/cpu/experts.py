"""Products with one matrix of many, and what brings the rows of tokens to them and back (``row_order``).

A bank holds matrices in panels; a table says where each is, or they follow each other. A product works on the rows of
one matrix at a time with the ordinary kernel, so that a row's result is the same bits whatever other rows there are,
and matrices without rows are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tvm import tirx

from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, byte_offset, cast, const, define, let, local, loop, splat, when
from airkernels.cpu.rounding import row_of
from airkernels.cpu.row_order import RowOrder
from airkernels.cpu.vectors import for_vectors

Body = Callable[[Kernel], None]
"""Emits a product of `n_tokens` rows with panels [begin, end)."""


@dataclass(frozen=True)
class Bank:
    """Matrices of equal shape: rows of one (whole panels), bytes of a panel, and of a row of x; floats of a result."""

    n_rows: int
    panel_nbytes: int
    x_nbytes: int
    out_stride: int

    @property
    def n_panels(self) -> int:
        return self.n_rows // PANEL


class _Part(NamedTuple):
    """A matrix and the rows that it is multiplied with: `count` from `first` on."""

    matrix: Expr
    first: Expr
    count: Expr


def by_expert(bank: Bank, order: RowOrder, product: Body, bias: bool) -> Body:
    """Tasks are all panels of the bank; each does all rows of its expert. p4 is the order, p5 the table."""

    def part(k: Kernel, expert: Expr) -> _Part:
        starts = k.region(4, "int32")
        first = let(starts.load(order.starts + expert))
        return _Part(expert, first, let(starts.load(order.starts + expert + 1) - first))

    return _parts(bank, product, part, _by_table, bias)


def by_row(bank: Bank, order: RowOrder, product: Body, bias: bool) -> Body:
    """Tasks are the panels of the expert of each sorted row, for few rows. p4 is the order, p5 the table."""

    def part(k: Kernel, row: Expr) -> _Part:
        experts = k.region(4, "int32")
        return _Part(let(experts.load(order.experts(k.n_tokens) + row)), row, const(1, "int32"))

    return _parts(bank, product, part, _by_table, bias)


def by_head(bank: Bank, product: Body) -> Body:
    """Tasks are all panels; each does the rows of its head, one per token, which lie between those of other heads."""
    size = bank.n_panels * bank.panel_nbytes
    return _parts(bank, product, lambda k, head: _Part(head, head, k.n_tokens), lambda k, i: cast(i, "int64") * size)


def _by_table(k: Kernel, matrix: Expr) -> Expr:
    return let(k.region(5, "int64").load(matrix))


def _parts(
    bank: Bank,
    product: Body,
    part: Callable[[Kernel, Expr], _Part],
    offset: Callable[[Kernel, Expr], Expr],
    bias: bool = False,
) -> Body:
    """A product for each part that tasks touch; `offset` says where a matrix is, in bytes after p0."""
    n_panels = bank.n_panels

    def body(k: Kernel) -> None:
        first = let(tirx.indexdiv(k.begin, n_panels))
        with loop(tirx.indexdiv(k.end - 1, n_panels) + 1 - first) as i:
            number = let(first + i)
            begin = let(tirx.max(k.begin - number * n_panels, 0))
            end = let(tirx.min(k.end - number * n_panels, n_panels))
            matrix, row, count = part(k, number)
            with when(count > 0):
                pointers = list(k.pointers)
                pointers[0] = byte_offset(k.pointers[0], offset(k, matrix))
                pointers[1] = byte_offset(k.pointers[1], cast(row, "int64") * bank.x_nbytes)
                pointers[2] = byte_offset(k.pointers[2], cast(row, "int64") * (4 * bank.out_stride))
                if bias:
                    pointers[3] = byte_offset(k.pointers[3], cast(matrix, "int64") * (4 * bank.n_rows))
                product(Kernel(pointers, count, begin, end, k.worker))

    return body


def sort_by_expert(name: str, order: RowOrder, in_stride: int) -> tirx.PrimFunc:
    """p0 expert numbers int32, p2 the order; one task."""

    def body(k: Kernel) -> None:
        numbers, out = k.region(0, "int32"), k.region(2, "int32")
        n_experts, n_used = order.n_experts, order.n_used
        at = {name: let(getattr(order, name)(k.n_tokens)) for name in ("experts", "sources", "places")}
        following = local("int32", n_experts + 1)
        """Counts of each expert, one place further on; then the next row of each."""
        with loop(n_experts + 1) as expert:
            following.store(expert, const(0, "int32"))

        def each(visit: Callable[[Expr, Expr], None]) -> None:
            with loop(k.n_tokens) as token, loop(n_used) as slot:
                visit(let(token * n_used + slot), let(numbers.load(token * in_stride + slot)))

        def count(row: Expr, expert: Expr) -> None:
            following.store(expert + 1, following.load(expert + 1) + 1)

        def place(row: Expr, expert: Expr) -> None:
            sorted_row = let(following.load(expert))
            following.store(expert, sorted_row + 1)
            out.store(at["experts"] + sorted_row, expert)
            out.store(at["sources"] + sorted_row, row)
            out.store(at["places"] + row, sorted_row)

        each(count)
        out.store(order.starts, const(0, "int32"))
        with loop(n_experts) as expert:
            following.store(expert + 1, following.load(expert + 1) + following.load(expert))
            out.store(order.starts + expert + 1, following.load(expert + 1))
        each(place)

    return define(name, body)


def dispatch(name: str, isa: VectorIsa, order: RowOrder, row_nbytes: int, weight_stride: int) -> tirx.PrimFunc:
    """Copy rows to their sorted places; tasks are sorted rows.

    p0 rows of tokens, p1 the order, p2 sorted rows, p3 weights float32 in rows of so many (0: there are none), which
    multiply float32 rows.
    """

    def body(k: Kernel) -> None:
        sources = k.region(1, "int32")
        dtype = "float32" if weight_stride else "int32"
        with loop(k.end, k.begin) as row:
            source = let(sources.load(order.sources(k.n_tokens) + row))
            token = let(tirx.indexdiv(source, order.n_used))
            x = Region(byte_offset(k.pointers[0], cast(token, "int64") * row_nbytes), dtype)
            out = Region(byte_offset(k.pointers[2], cast(row, "int64") * row_nbytes), dtype)
            if not weight_stride:
                for_vectors(row_nbytes // 4, isa, lambda at, lanes: out.store(at, x.load(at, lanes)))
                return
            slot = tirx.indexmod(source, order.n_used)
            weight = let(k.region(3, "float32").load(token * weight_stride + slot))
            for_vectors(row_nbytes // 4, isa, lambda at, lanes: out.store(at, x.load(at, lanes) * splat(weight, lanes)))

    return define(name, body)


@dataclass(frozen=True)
class SumShape:
    """Columns of a row; floats between rows of x, of weights (0: there are none) and of sums; columns per task."""

    n: int
    in_stride: int
    weight_stride: int
    out_stride: int
    chunk: int


def sum_experts(name: str, isa: VectorIsa, order: RowOrder, shape: SumShape) -> tirx.PrimFunc:
    """Add up the rows of each token, in the order of its choice; tasks are chunks of columns, token by token.

    p0 sorted rows float32, p1 the order, p2 sums float32, p3 weights float32.
    """

    def body(k: Kernel) -> None:
        n_chunks = -(-shape.n // shape.chunk)
        places = k.region(1, "int32")
        with loop(k.end, k.begin) as task:
            token = let(tirx.indexdiv(task, n_chunks))
            first = let(tirx.indexmod(task, n_chunks) * shape.chunk)
            stop = let(tirx.min(first + shape.chunk, shape.n))
            out = row_of(k, 2, token, shape.out_stride)
            weights = row_of(k, 3, token, shape.weight_stride) if shape.weight_stride else None
            rows = []
            for slot in range(order.n_used):
                place = places.load(order.places(k.n_tokens) + token * order.n_used + slot)
                weight = None if weights is None else let(weights.load(slot))
                rows.append((row_of(k, 0, let(place), shape.in_stride), weight))

            def total(at: Expr, lanes: int) -> Expr:
                value: Expr = None
                for x, weight in rows:
                    row = x.load(at, lanes)
                    if weight is None:
                        value = row if value is None else value + row
                    elif value is None:
                        value = row * splat(weight, lanes)
                    else:
                        value = isa.fused_multiply_add(row, splat(weight, lanes), value)
                return value

            whole = let(tirx.indexdiv(stop - first, isa.lanes))
            with loop(whole) as i:
                at = first + i * isa.lanes
                out.store(at, total(at, isa.lanes))
            if shape.n % isa.lanes:
                with loop(stop, first + whole * isa.lanes) as at:
                    out.store(at, total(at, 1))

    return define(name, body)
