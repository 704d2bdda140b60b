"""Operators over equal groups of columns."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.lowering import Lowering, lowers
from aircompile.operators import GroupDot, GroupSlice
from airschedules.specs import GroupDotSpec, GroupSliceSpec


@lowers(GroupDot)
def _group_dot(low: Lowering, operator: Operator, op: GroupDot) -> None:
    (a, b), (out,) = operator.inputs, operator.outputs
    strides = (low.stride_of(a), low.stride_of(b), low.stride_of(out))
    spec = GroupDotSpec(low.graph.values[a].width, op.groups, strides)
    low.emit(operator, spec, {0: low.value(a), 1: low.value(b), 2: low.value(out)})


@lowers(GroupSlice)
def _group_slice(low: Lowering, operator: Operator, op: GroupSlice) -> None:
    (x,), (out,) = operator.inputs, operator.outputs
    size = low.graph.values[x].width // op.groups
    spec = GroupSliceSpec(op.groups, size, op.first, op.width, (low.stride_of(x), low.stride_of(out)))
    low.emit(operator, spec, {0: low.value(x), 1: low.value(out)})
