"""Products with matrices of weights.

Single tokens and small batches are multiplied by integer dot products or float arithmetic as on a processor; large
batches go through tensor cores, with rows in half precision and matrices unpacked into scratch, part by part.
"""

from __future__ import annotations

from aircompile.gpu.calls import TOKENS_AT_ONCE, Axis, DeviceMatrix
from aircompile.gpu.lowering import DeviceLowering, lowers
from aircompile.graph import Operator
from aircompile.lowering import Pointer
from aircompile.operators import MatMul
from airkernels.formats import BlockFormat
from airschedules.gpu.specs import GemmSpec, ProductSpec, RowKind, UnpackSpec

UNPACKED_NBYTES = 256 << 20
"""Of a matrix, as much is unpacked at a time."""


@lowers(MatMul, "accumulate")
def _matmul(low: DeviceLowering, operator: Operator, op: MatMul) -> None:
    graph, source, out = low.graph, operator.inputs[0], operator.outputs[0]
    matrix = low.matrix(op.weights, operator.layer)
    if op.accumulate:
        low.alias(out, operator.inputs[1])
    # one launch does all members at once, unless biases (a tensor each) keep them apart
    pieces = [(first, stop, bias) for (_n, first, stop), bias in zip(op.members(graph.weights), op.biases, strict=True)]
    if not any(op.biases):
        pieces = [(0, matrix.n_rows, None)]
    multiply = _many_rows if low.many(source) else _few_rows
    for first, stop, bias in pieces:
        multiply(low, operator, op, matrix, first, stop, bias)


def _few_rows(
    low: DeviceLowering, operator: Operator, op: MatMul, matrix: DeviceMatrix, first: int, stop: int, bias: str | None
) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    value = low.graph.values[source]
    kind = RowKind("f32" if value.dtype == "float32" else value.dtype, matrix.n_cols, matrix.layout.fmt.block)
    x = low.rows_as(operator, source, kind)
    spec = ProductSpec(
        matrix.fmt,
        stop - first,
        matrix.n_cols,
        kind.kind,
        low.stride_of(out),
        op.accumulate,
        bias is not None,
        TOKENS_AT_ONCE[low.phase],
    )
    target = low.value(out, first)
    pointers = [*low.planes(matrix, first), x, low.vector_or(bias, target), target]
    low.emit(operator, spec, [Axis(0, "fixed", stop - first), Axis(1, value.rows, 1)], pointers)


def _many_rows(
    low: DeviceLowering, operator: Operator, op: MatMul, matrix: DeviceMatrix, first: int, stop: int, bias: str | None
) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    kind = low.batch_kind(source, matrix)
    half = kind.kind == "f16"
    x = low.rows_as(operator, source, kind)
    k, itemsize = matrix.layout.unpacked_cols, 2 if half else 4
    direct = matrix.fmt == ("F16" if half else "F32")
    most = stop - first if direct else max(UNPACKED_NBYTES // (k * itemsize) // 256 * 256, 256)
    for at in range(first, stop, most):
        n = min(most, stop - at)
        weights = low.planes(matrix, at)[0]
        if not direct:
            weights = low.scratch_for("unpacked", n * k * itemsize)
            unpack = UnpackSpec(matrix.fmt, n, matrix.n_cols, kind.kind)
            low.emit(operator, unpack, unpacked(matrix, n), [*low.planes(matrix, at), weights])
        spec = GemmSpec(kind.kind, n, k, kind.layout.nbytes, low.stride_of(out), op.accumulate, bias is not None)
        target = low.value(out, at)
        place = low.vector_or(bias, target)
        if bias is not None and at != first:
            place = Pointer(place.space, place.name, 4 * (at - first))
        extents = [Axis(0, "tokens", 1), Axis(0, "fixed", n)]
        low.emit(operator, spec, extents, [weights, x, place, target], ["tokens"])


def unpacked(matrix: DeviceMatrix, n: int) -> list[Axis]:
    """What unpacking `n` rows of a matrix goes through."""
    fmt = matrix.layout.fmt
    if not isinstance(fmt, BlockFormat):
        return [Axis(0, "fixed", n * matrix.n_cols)]
    places = matrix.layout.unpacked_cols // fmt.block
    return [Axis(0, "fixed", n * places), Axis(1, "fixed", fmt.block // fmt.group)]
