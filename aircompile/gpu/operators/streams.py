"""Operators over several residual streams, and over the statistics of rows."""

from __future__ import annotations

from aircompile.gpu.calls import Axis
from aircompile.gpu.lowering import DeviceLowering, lowers
from aircompile.graph import Operator
from aircompile.operators import Combine, CutOff, MatchSize
from aircompile.operators.streams import MAX_STREAMS
from airschedules.gpu.specs import CombineStreamsSpec, CutOffSpec, MatchSizeSpec


@lowers(Combine, "offset")
def _combine(low: DeviceLowering, operator: Operator, op: Combine) -> None:
    (out,), n = operator.outputs, low.graph.values[operator.outputs[0]].width
    base, coefficients, *streams = (low.stride_of(value) for value in operator.inputs)
    spec = CombineStreamsSpec(n, op.first, op.offset, base, coefficients, tuple(streams), low.stride_of(out))
    pointers = [low.value(value) for value in operator.inputs]
    pointers += pointers[-1:] * (MAX_STREAMS - len(streams))
    low.emit(operator, spec, [low.rows(out), Axis(1, "fixed", n)], [*pointers, low.value(out)])


@lowers(MatchSize)
def _match_size(low: DeviceLowering, operator: Operator, op: MatchSize) -> None:
    (x, target), (out,) = operator.inputs, operator.outputs
    strides = (low.stride_of(x), low.stride_of(target), low.stride_of(out))
    spec = MatchSizeSpec(low.graph.values[out].width, op.least, strides)
    low.emit(operator, spec, [low.rows(out)], [low.value(x), low.value(target), low.value(out)])


@lowers(CutOff)
def _cut_off(low: DeviceLowering, operator: Operator, op: CutOff) -> None:
    (x,), (out,) = operator.inputs, operator.outputs
    spec = CutOffSpec(low.graph.values[out].width, op.deviations, low.stride_of(x), low.stride_of(out))
    low.emit(operator, spec, [low.rows(out)], [low.value(x), low.value(out)])
