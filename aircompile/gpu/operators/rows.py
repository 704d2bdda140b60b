"""Operators that work row by row."""

from __future__ import annotations

from aircompile.gpu.calls import Axis
from aircompile.gpu.lowering import DeviceLowering, input_array, lowers
from aircompile.graph import Operator
from aircompile.operators import Gather, Norm, Quantize, SelectRows
from airkernels.formats import BlockFormat
from airschedules.gpu.specs import ConvertSpec, GatherSpec, NormSpec, SelectSpec


@lowers(Gather, "by")
def _gather(low: DeviceLowering, operator: Operator, op: Gather) -> None:
    (out,) = operator.outputs
    matrix = low.matrix((op.table,), operator.layer)
    spec = GatherSpec(matrix.fmt, matrix.n_cols, low.stride_of(out))
    pointers = [*low.planes(matrix), input_array(op.by), low.value(out)]
    fmt = matrix.layout.fmt
    extents = [low.rows(out), Axis(1, "fixed", matrix.n_cols // fmt.block)]
    if isinstance(fmt, BlockFormat):
        extents.append(Axis(2, "fixed", fmt.block // fmt.group))
    low.emit(operator, spec, extents, pointers)


@lowers(Norm, "quantize digits bias kind groups")
def _norm(low: DeviceLowering, operator: Operator, op: Norm) -> None:
    (source,), (out,) = operator.inputs, operator.outputs

    def size(name: str | None) -> int:
        return 0 if name is None else low.graph.weights[name].shape[0]

    spec = NormSpec(low.kind(out), low.stride_of(source), op.eps, op.kind, op.groups, size(op.weight), size(op.bias))
    x, target = low.value(source), low.value(out)
    pointers = [x, low.vector_or(op.weight, x), low.vector_or(op.bias, x), target]
    low.emit(operator, spec, [low.rows(out), Axis(1, "fixed", op.groups)], pointers)


@lowers(Quantize, "digits")
def _quantize(low: DeviceLowering, operator: Operator, op: Quantize) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = ConvertSpec(kind, low.stride_of(source))
    extents = [low.rows(out), Axis(1, "fixed", kind.n_tiles)]
    low.emit(operator, spec, extents, [low.value(source), low.value(out)])


@lowers(SelectRows)
def _select_rows(low: DeviceLowering, operator: Operator, op: SelectRows) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    assert low.kind(source) == low.kind(out) and low.stride_of(source) == low.stride_of(out)
    spec = SelectSpec(low.stride_of(source))
    extents = [low.rows(out), Axis(1, "fixed", low.stride_of(source))]
    low.emit(operator, spec, extents, [low.value(source), input_array("output_rows"), low.value(out)])
