"""Norms of rows, or of equal groups of their columns.

Sums are taken in one order whatever the batch: several vectors of partial sums, then their lanes pairwise.
"""

from __future__ import annotations

from collections.abc import Callable
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
    zeros,
)
from airkernels.cpu.rounding import row_of, write_row
from airkernels.cpu.vectors import add, for_vectors, lanes_dividing, reduce, square_root


@dataclass(frozen=True)
class NormShape:
    """Shape and strides (floats) of a norm.

    Attributes
    ----------
    kind
        'rms' or 'layer', which subtracts the mean.
    n, groups
        Columns of a row; the equal parts of it that are normed apart.
    weight, bias
        Their elements: those of a row, those of a group, or 0 where there is none.
    digits
        Of the result; 0 for floats, the only choice with groups.
    """

    kind: str
    n: int
    groups: int
    weight: int
    bias: int
    eps: float
    in_stride: int
    out_stride: int
    digits: int


def norm(name: str, isa: VectorIsa, shape: NormShape) -> tirx.PrimFunc:
    """out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias; without means for 'rms'.

    Tasks are groups of rows. p0 x float32, p1 weight float32, p2 out: float32 (no digits), or quantized rows, p3 bias.
    """
    n = shape.n // shape.groups

    def vector(k: Kernel, pointer: int, size: int, group: Expr) -> Region | None:
        if not size:
            return None
        base = k.pointers[pointer]
        return Region(base if size == n else byte_offset(base, cast(group, "int64") * (4 * n)), "float32")

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as task:
            row, group = let(tirx.indexdiv(task, shape.groups)), let(tirx.indexmod(task, shape.groups))
            x = row_of(k, 0, row, shape.in_stride)
            x = Region(byte_offset(x.base, cast(group, "int64") * (4 * n)), "float32") if shape.groups > 1 else x
            weight, bias = vector(k, 1, shape.weight, group), vector(k, 3, shape.bias, group)
            mean: Expr = None
            if shape.kind == "layer":
                mean = let(mean_of(isa, n, lambda at, lanes, total: total + x.load(at, lanes)))

            def centred(at: Expr, lanes: int) -> Expr:
                return x.load(at, lanes) if mean is None else x.load(at, lanes) - splat(mean, lanes)

            def square(at: Expr, lanes: int, total: Expr) -> Expr:
                value = let(centred(at, lanes))
                return isa.fused_multiply_add(value, value, total)

            size = square_root(mean_of(isa, n, square) + const(shape.eps, "float32"))
            scale = let(const(1.0, "float32") / size)

            def normal(at: Expr, lanes: int) -> Expr:
                value = centred(at, lanes) * splat(scale, lanes)
                value = value if weight is None else value * weight.load(at, lanes)
                return value if bias is None else value + bias.load(at, lanes)

            if shape.groups == 1:
                write_row(k, 2, row, n, shape.out_stride, isa, shape.digits, normal)
            else:
                out = row_of(k, 2, row, shape.out_stride)
                for_vectors(n, isa, lambda at, lanes: out.store(group * n + at, normal(at, lanes)))

    return define(name, body)


def mean_of(isa: VectorIsa, n: int, accumulate: Callable[[Expr, int, Expr], Expr]) -> Expr:
    """Mean over n columns of what `accumulate(column, lanes, sum so far)` adds."""
    return sum_of(isa, n, accumulate) * const(1 / n, "float32")


def sum_of(isa: VectorIsa, n: int, accumulate: Callable[[Expr, int, Expr], Expr]) -> Expr:
    """The same without the division."""
    lanes = lanes_dividing(n, isa)
    parts = next(p for p in (4, 2, 1) if n % (p * lanes) == 0)
    sums = local("float32", parts * lanes)
    for p in range(parts):
        sums.store(p * lanes, zeros("float32", lanes))
    with loop(n // (parts * lanes)) as i:
        for p in range(parts):
            sums.store(p * lanes, accumulate((i * parts + p) * lanes, lanes, sums.load(p * lanes, lanes)))
    total = sums.load(0, lanes)
    for p in range(1, parts):
        total = total + sums.load(p * lanes, lanes)
    return reduce(total, add)
