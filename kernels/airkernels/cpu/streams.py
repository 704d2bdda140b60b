"""Kernels over several residual streams, and over the statistics of rows. Rows are independent of each other."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.norms import mean_of
from airkernels.cpu.program import Expr, Kernel, Region, const, define, let, loop, splat
from airkernels.cpu.rounding import row_of
from airkernels.cpu.vectors import for_vectors, square_root


@dataclass(frozen=True)
class CombineShape:
    """Columns; floats between rows of base, coefficients, every stream, and the output; see ``operators.Combine``."""

    n: int
    first: int
    offset: float
    base_stride: int
    coefficient_stride: int
    strides: tuple[int, ...]
    out_stride: int


def combine(name: str, isa: VectorIsa, shape: CombineShape) -> tirx.PrimFunc:
    """Tasks are rows. p0 base, p1 coefficients, p2 out, p3 and on the streams, all float32."""

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            base, coefficients = row_of(k, 0, row, shape.base_stride), row_of(k, 1, row, shape.coefficient_stride)
            out = row_of(k, 2, row, shape.out_stride)
            streams = [row_of(k, 3 + j, row, stride) for j, stride in enumerate(shape.strides)]
            factors = [
                let(coefficients.load(shape.first + j) + const(shape.offset, "float32")) for j in range(len(streams))
            ]

            def emit(at: Expr, lanes: int) -> None:
                value = base.load(at, lanes)
                for factor, stream in zip(factors, streams, strict=True):
                    value = isa.fused_multiply_add(splat(factor, lanes), stream.load(at, lanes), value)
                out.store(at, value)

            for_vectors(shape.n, isa, emit)

    return define(name, body)


def match_size(
    name: str, isa: VectorIsa, n: int, in_stride: int, target_stride: int, out_stride: int, least: float
) -> tirx.PrimFunc:
    """out = x * rms(target) / rms(x). Tasks are rows. p0 x, p1 target, p2 out, all float32."""

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            x, target = row_of(k, 0, row, in_stride), row_of(k, 1, row, target_stride)
            out = row_of(k, 2, row, out_stride)

            def square(region: Region, at: Expr, lanes: int, total: Expr) -> Expr:
                value = let(region.load(at, lanes))
                return isa.fused_multiply_add(value, value, total)

            wanted = let(square_root(mean_of(isa, n, lambda at, lanes, total: square(target, at, lanes, total))))
            size = let(mean_of(isa, n, lambda at, lanes, total: square(x, at, lanes, total)))
            factor = let(wanted / square_root(tirx.max(size, const(least, "float32"))))
            for_vectors(n, isa, lambda at, lanes: out.store(at, x.load(at, lanes) * splat(factor, lanes)))

    return define(name, body)


def cut_off(name: str, isa: VectorIsa, n: int, in_stride: int, out_stride: int, deviations: float) -> tirx.PrimFunc:
    """out = max(0, x - mean - deviations * std). Tasks are rows. p0 x float32, p2 out float32."""

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            x, out = row_of(k, 0, row, in_stride), row_of(k, 2, row, out_stride)
            mean = let(mean_of(isa, n, lambda at, lanes, total: total + x.load(at, lanes)))

            def square(at: Expr, lanes: int, total: Expr) -> Expr:
                value = let(x.load(at, lanes) - splat(mean, lanes))
                return isa.fused_multiply_add(value, value, total)

            limit = let(mean + const(deviations, "float32") * square_root(mean_of(isa, n, square)))

            def emit(at: Expr, lanes: int) -> None:
                above = x.load(at, lanes) - splat(limit, lanes)
                out.store(at, tirx.max(above, splat(const(0.0, "float32"), lanes)))

            for_vectors(n, isa, emit)

    return define(name, body)
