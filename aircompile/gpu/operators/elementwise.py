"""Operators that work element by element."""

from __future__ import annotations

from aircompile.gpu.calls import Axis
from aircompile.gpu.lowering import DeviceLowering, input_array, lowers
from aircompile.graph import Operator
from aircompile.lowering import Pointer
from aircompile.operators import Activation, Add, Bias, GatedActivation, Multiply, Scale, ScaleByPosition, Slice
from airschedules.gpu.specs import (
    ActivationSpec,
    AddSpec,
    FunctionOf,
    GatedSpec,
    MultiplySpec,
    PositionScaleSpec,
    RowKind,
)
from airschedules.gpu.specs.elementwise import PairSpec


def _tiles(low: DeviceLowering, out: str, kind: RowKind) -> list[Axis]:
    return [low.rows(out), Axis(1, "fixed", kind.n_tiles)]


@lowers(GatedActivation, "quantize digits parameters")
def _gated(low: DeviceLowering, operator: Operator, op: GatedActivation) -> None:
    (gate, up), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = GatedSpec(kind, FunctionOf(op.kind, op.parameters), low.stride_of(gate), low.stride_of(up))
    low.emit(operator, spec, _tiles(low, out, kind), [low.value(gate), low.value(up), low.value(out)])


@lowers(Activation, "quantize digits parameters")
def _activation(low: DeviceLowering, operator: Operator, op: Activation) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = ActivationSpec(kind, FunctionOf(op.kind, op.parameters), low.stride_of(source))
    low.emit(operator, spec, _tiles(low, out, kind), [low.value(source), low.value(out)])


def _emit_pair(low: DeviceLowering, operator: Operator, spec: PairSpec, b: Pointer) -> None:
    (out,) = operator.outputs
    extents = [low.rows(out), Axis(1, "fixed", spec.n)]
    low.emit(operator, spec, extents, [low.value(operator.inputs[0]), b, low.value(out)])


def _strides(low: DeviceLowering, operator: Operator) -> tuple[int, int, int]:
    """Of two values and their result; 0 for a tensor in the place of the second."""
    a, *b = operator.inputs
    return low.stride_of(a), low.stride_of(b[0]) if b else 0, low.stride_of(operator.outputs[0])


@lowers(Add, "scale")
def _add(low: DeviceLowering, operator: Operator, op: Add) -> None:
    n = low.graph.values[operator.outputs[0]].width
    spec = AddSpec(n, _strides(low, operator), op.scale)
    _emit_pair(low, operator, spec, low.value(operator.inputs[1]))


@lowers(Bias)
def _bias(low: DeviceLowering, operator: Operator, op: Bias) -> None:
    n = low.graph.values[operator.outputs[0]].width
    _emit_pair(low, operator, AddSpec(n, _strides(low, operator)), low.vector(op.weight))


@lowers(Multiply)
def _multiply(low: DeviceLowering, operator: Operator, op: Multiply) -> None:
    a, b = (low.graph.values[value].width for value in operator.inputs)
    spec = MultiplySpec(a, _strides(low, operator), a // b)
    _emit_pair(low, operator, spec, low.value(operator.inputs[1]))


@lowers(Scale)
def _scale(low: DeviceLowering, operator: Operator, op: Scale) -> None:
    n = low.graph.values[operator.outputs[0]].width
    spec = MultiplySpec(n, _strides(low, operator), n // low.graph.weights[op.weight].shape[0])
    _emit_pair(low, operator, spec, low.vector(op.weight))


@lowers(ScaleByPosition)
def _scale_by_position(low: DeviceLowering, operator: Operator, op: ScaleByPosition) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    n = low.graph.values[out].width
    spec = PositionScaleSpec(n, op.period, op.strength, low.stride_of(source), low.stride_of(out))
    extents = [low.rows(out), Axis(1, "fixed", n)]
    low.emit(operator, spec, extents, [low.value(source), input_array("cells"), low.value(out)])


@lowers(Slice)
def _slice(low: DeviceLowering, operator: Operator, op: Slice) -> None:
    low.alias(operator.outputs[0], operator.inputs[0], op.first)
