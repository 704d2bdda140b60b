"""Kernels that work element by element on one or two values.

Tasks are chunks of `chunk` columns (a multiple of 32), row by row, so that threads can share one row.
p0, p1 inputs float32, in rows of so many floats (0: the same row for every token); p2 out: float32 (no digits), or
quantized rows. An input may be the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.activations import GROUP
from airkernels.cpu.functions import Parameters, apply, gate, log
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, cast, const, define, let, loop, splat
from airkernels.cpu.rounding import QuantizedOut, row_of
from airkernels.cpu.vectors import for_vectors, lanes_dividing

Combine = Callable[[Sequence[Region], Expr, int], Expr]
"""Builds `lanes` neighbouring results, from a column on, out of the rows of the inputs."""


@dataclass(frozen=True)
class RowShape:
    """Columns of a row; floats between rows of each input and of the output; columns per task; digits of the result."""

    n: int
    strides: tuple[int, ...]
    out_stride: int
    chunk: int
    digits: int = 0


def activation(name: str, isa: VectorIsa, shape: RowShape, kind: str, parameters: Parameters) -> tirx.PrimFunc:
    """out = function(x); see `functions.apply`."""
    return _elementwise(name, isa, shape, lambda x, at, lanes: apply(kind, parameters, x[0].load(at, lanes), isa))


def gated(name: str, isa: VectorIsa, shape: RowShape, kind: str, parameters: Parameters) -> tirx.PrimFunc:
    """out = function(gate, up); see `functions.gate`."""

    def combine(inputs: Sequence[Region], at: Expr, lanes: int) -> Expr:
        return gate(kind, parameters, inputs[0].load(at, lanes), inputs[1].load(at, lanes), isa)

    return _elementwise(name, isa, shape, combine)


def add(name: str, isa: VectorIsa, shape: RowShape, scale: float) -> tirx.PrimFunc:
    """out = a + scale * b."""

    def combine(inputs: Sequence[Region], at: Expr, lanes: int) -> Expr:
        a, b = (x.load(at, lanes) for x in inputs)
        return a + b if scale == 1.0 else isa.fused_multiply_add(b, splat(const(scale, "float32"), lanes), a)

    return _elementwise(name, isa, shape, combine)


def multiply(name: str, isa: VectorIsa, shape: RowShape, group: int) -> tirx.PrimFunc:
    """out = a * b, where every element of b stands for `group` columns of a: 1, or equal parts of the row."""
    whole = group in (1, shape.n) or group % isa.lanes == 0

    def combine(inputs: Sequence[Region], at: Expr, lanes: int) -> Expr:
        a, b = inputs
        if group == 1:
            return a.load(at, lanes) * b.load(at, lanes)
        return a.load(at, lanes) * splat(b.load(tirx.indexdiv(at, group)), lanes)

    return _elementwise(name, isa, shape, combine, isa.lanes if whole else lanes_dividing(group, isa))


def scale_by_position(name: str, isa: VectorIsa, shape: RowShape, period: int, strength: float) -> tirx.PrimFunc:
    """out = x * (1 + strength * log(1 + floor((cell + 1) / period))); p1 cells int32."""

    def body(k: Kernel) -> None:
        chunks = -(-shape.n // shape.chunk)
        with loop(k.end, k.begin) as task:
            row, first = let(tirx.indexdiv(task, chunks)), let(tirx.indexmod(task, chunks) * shape.chunk)
            steps = let(tirx.indexdiv(k.region(1, "int32").load(row) + 1, period) + 1)
            growth = log(let(cast(steps, "float32")), isa)
            factor = let(isa.fused_multiply_add(growth, const(strength, "float32"), const(1.0, "float32")))
            x, out = row_of(k, 0, row, shape.strides[0]), row_of(k, 2, row, shape.out_stride)
            with loop(let(tirx.min(first + shape.chunk, shape.n)), first) as at:
                out.store(at, x.load(at) * factor)

    return define(name, body)


def join(name: str, isa: VectorIsa, shape: RowShape, widths: tuple[int, ...], slots: tuple[int, ...]) -> tirx.PrimFunc:
    """[a | b] of rows of inputs p0 and p1, or a copy of p0; tasks are rows.

    Each of the inputs has a row for every so many (`slots`) rows of the result.
    """

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            out = row_of(k, 2, row, shape.out_stride)
            first = 0
            for i, (width, n, stride) in enumerate(zip(widths, slots, shape.strides, strict=True)):
                x = row_of(k, i, let(tirx.indexdiv(row, n)), stride)
                _copy(isa, x, out, first, width)
                first += width

    return define(name, body)


def _copy(isa: VectorIsa, x: Region, out: Region, first: int, width: int) -> None:
    for_vectors(width, isa, lambda at, lanes: out.store(first + at, x.load(at, lanes)))


def _elementwise(
    name: str, isa: VectorIsa, shape: RowShape, combine: Combine, lanes: int | None = None
) -> tirx.PrimFunc:
    n, chunk, lanes = shape.n, shape.chunk, lanes or isa.lanes
    n_chunks = -(-n // chunk)

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as task:
            row = let(tirx.indexdiv(task, n_chunks))
            first = let(tirx.indexmod(task, n_chunks) * chunk)
            stop = let(tirx.min(first + chunk, n))
            inputs = [row_of(k, i, row, stride) for i, stride in enumerate(shape.strides)]
            if shape.digits:
                out = QuantizedOut(k.pointers[2], row, n, shape.digits, isa)
                with loop(tirx.indexdiv(stop, GROUP), tirx.indexdiv(first, GROUP)) as group:
                    out.write_group(group, lambda at, width: combine(inputs, at, width))
                return
            floats = row_of(k, 2, row, shape.out_stride)
            whole = let(tirx.indexdiv(stop - first, lanes))
            with loop(whole) as i:
                at = first + i * lanes
                floats.store(at, combine(inputs, at, lanes))
            if n % lanes:
                with loop(stop, first + whole * lanes) as at:
                    floats.store(at, combine(inputs, at, 1))

    return define(name, body)
