"""Operators that work row by row: embeddings, norms, rounding, selection."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.calls import Pointer
from aircompile.lowering.lowering import Lowering, input_array, lowers
from aircompile.operators import Gather, Norm, Quantize, SelectRows
from airkernels.cpu.norms import NormShape
from airschedules.specs import GatherSpec, NormSpec, QuantizeSpec, SelectSpec


@lowers(Gather)
def _gather(low: Lowering, operator: Operator, op: Gather) -> None:
    out = operator.outputs[0]
    spec = GatherSpec(low.format(op.table), low.graph.values[out].width, low.stride_of(out))
    pointers = {0: Pointer("tensor", op.table), 1: input_array(op.by), 2: low.value(out)}
    low.emit(operator, spec, pointers)


@lowers(Norm)
def _norm(low: Lowering, operator: Operator, op: Norm) -> None:
    source, out = operator.inputs[0], operator.outputs[0]

    def size(name: str | None) -> int:
        return 0 if name is None else low.graph.weights[name].shape[0]

    strides = (low.stride_of(source), low.stride_of(out))
    n = low.graph.values[source].width
    shape = NormShape(op.kind, n, op.groups, size(op.weight), size(op.bias), op.eps, *strides, low.digits(out))
    pointers = {0: low.value(source), 2: low.value(out)}
    pointers |= {i: low.vector(name) for i, name in ((1, op.weight), (3, op.bias)) if name is not None}
    low.emit(operator, NormSpec(shape), pointers, tasks=op.groups)


@lowers(SelectRows)
def _select_rows(low: Lowering, operator: Operator, op: SelectRows) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    spec = SelectSpec(low.graph.values[source].width, low.stride_of(source), low.stride_of(out))
    low.emit(operator, spec, {0: low.value(source), 1: input_array("output_rows"), 2: low.value(out)})


@lowers(Quantize)
def _quantize(low: Lowering, operator: Operator, op: Quantize) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    value = low.graph.values[source]
    spec = QuantizeSpec(value.width, low.stride_of(source), low.digits(out))
    low.emit(operator, spec, {0: low.value(source), 2: low.value(out)}, tasks=value.slots)
