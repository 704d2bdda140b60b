"""Operators over several residual streams, and over the statistics of rows."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.lowering import Lowering, lowers
from aircompile.operators import Combine, CutOff, MatchSize
from airkernels.cpu.streams import CombineShape
from airschedules.specs import CombineSpec, CutOffSpec, MatchSizeSpec


@lowers(Combine)
def _combine(low: Lowering, operator: Operator, op: Combine) -> None:
    (out,), n = operator.outputs, low.graph.values[operator.outputs[0]].width
    base, coefficients, *streams = (low.stride_of(value) for value in operator.inputs)
    shape = CombineShape(n, op.first, op.offset, base, coefficients, tuple(streams), low.stride_of(out))
    first, second, *rest = map(low.value, operator.inputs)
    pointers = {0: first, 1: second, 2: low.value(out)} | {3 + j: pointer for j, pointer in enumerate(rest)}
    low.emit(operator, CombineSpec(shape), pointers)


@lowers(MatchSize)
def _match_size(low: Lowering, operator: Operator, op: MatchSize) -> None:
    (x, target), (out,) = operator.inputs, operator.outputs
    strides = (low.stride_of(x), low.stride_of(target), low.stride_of(out))
    spec = MatchSizeSpec(low.graph.values[out].width, *strides, op.least)
    low.emit(operator, spec, {0: low.value(x), 1: low.value(target), 2: low.value(out)})


@lowers(CutOff)
def _cut_off(low: Lowering, operator: Operator, op: CutOff) -> None:
    (x,), (out,) = operator.inputs, operator.outputs
    spec = CutOffSpec(low.graph.values[out].width, low.stride_of(x), low.stride_of(out), op.deviations)
    low.emit(operator, spec, {0: low.value(x), 2: low.value(out)})
