"""Operators that work row by row: embeddings, norms, rounding, selection."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.calls import Pointer
from aircompile.lowering.lowering import Lowering, input_array, lowers
from aircompile.operators import Gather, Norm, Quantize, SelectRows
from airrun.errors import UnsupportedError
from airschedules.specs import GatherSpec, NormSpec, QuantizeSpec, SelectSpec


@lowers(Gather)
def _gather(low: Lowering, operator: Operator, op: Gather) -> None:
    out = operator.outputs[0]
    spec = GatherSpec(low.format(op.table), low.graph.values[out].width, low.stride_of(out))
    pointers = {0: Pointer("tensor", op.table), 1: input_array("token_ids"), 2: low.value(out)}
    low.emit(operator, spec, pointers)


@lowers(Norm)
def _norm(low: Lowering, operator: Operator, op: Norm) -> None:
    if op.bias is not None:
        raise UnsupportedError(f"{operator.name}: norms with a bias are not supported yet")
    source, out = operator.inputs[0], operator.outputs[0]
    n = low.graph.values[source].width
    spec = NormSpec(n, low.stride_of(source), low.stride_of(out), op.eps, low.digits(out))
    low.emit(operator, spec, {0: low.value(source), 1: low.vector(op.weight), 2: low.value(out)})


@lowers(SelectRows)
def _select_rows(low: Lowering, operator: Operator, op: SelectRows) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    spec = SelectSpec(low.graph.values[source].width, low.stride_of(source), low.stride_of(out))
    low.emit(operator, spec, {0: low.value(source), 1: input_array("output_rows"), 2: low.value(out)})


@lowers(Quantize)
def _quantize(low: Lowering, operator: Operator, op: Quantize) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    spec = QuantizeSpec(low.graph.values[source].width, low.stride_of(source), low.digits(out))
    low.emit(operator, spec, {0: low.value(source), 2: low.value(out)})
