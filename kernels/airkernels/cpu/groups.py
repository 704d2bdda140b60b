"""Kernels over equal groups of columns. Tasks are rows."""

from __future__ import annotations

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.norms import sum_of
from airkernels.cpu.program import Expr, Kernel, define, let, loop
from airkernels.cpu.rounding import row_of
from airkernels.cpu.vectors import for_vectors


def group_dot(name: str, isa: VectorIsa, n: int, groups: int, strides: tuple[int, int, int]) -> tirx.PrimFunc:
    """out[g] = the sum of a * b over group g of `groups` equal ones; p0 a, p1 b, p2 out float32."""
    size = n // groups

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            a, b, out = (row_of(k, i, row, stride) for i, stride in enumerate(strides))
            with loop(groups) as group:
                first = let(group * size)

                def product(at: Expr, lanes: int, total: Expr) -> Expr:
                    return isa.fused_multiply_add(a.load(first + at, lanes), b.load(first + at, lanes), total)

                out.store(group, sum_of(isa, size, product))

    return define(name, body)


def group_slice(
    name: str, isa: VectorIsa, groups: int, part: tuple[int, int, int], strides: tuple[int, int]
) -> tirx.PrimFunc:
    """Columns of every group, of which `part` says (columns in all, first, how many); p0 x, p1 out float32."""
    size, first, width = part

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            x, out = (row_of(k, i, row, stride) for i, stride in enumerate(strides))
            with loop(groups) as group:
                source, target = let(group * size + first), let(group * width)
                for_vectors(width, isa, lambda at, lanes: out.store(target + at, x.load(source + at, lanes)))

    return define(name, body)
