"""Operators that work element by element."""

from __future__ import annotations

import dataclasses

from aircompile.graph import Operator
from aircompile.lowering.calls import Pointer
from aircompile.lowering.lowering import Lowering, input_array, lowers
from aircompile.operators import Activation, Add, Bias, GatedActivation, Multiply, Scale, ScaleByPosition, Slice
from airkernels.cpu.elementwise import RowShape
from airschedules.specs import ActivationSpec, AddSpec, ElementwiseSpec, GatedSpec, MultiplySpec, PositionScaleSpec

_CHUNK = 256
"""Columns per task: small enough to share one row between threads."""


def _row(low: Lowering, operator: Operator) -> RowShape:
    (out,) = operator.outputs
    strides = tuple(low.stride_of(value) for value in operator.inputs)
    return RowShape(low.graph.values[out].width, strides, low.stride_of(out), _CHUNK, low.digits(out))


def _with_vector(low: Lowering, operator: Operator) -> RowShape:
    """The shape with a tensor as the second input, the same for every row."""
    row = _row(low, operator)
    return dataclasses.replace(row, strides=(*row.strides, 0))


def _emit(low: Lowering, operator: Operator, spec: ElementwiseSpec, *inputs: Pointer) -> None:
    pointers = dict(enumerate(inputs or map(low.value, operator.inputs)))
    out = operator.outputs[0]
    pointers[2] = low.value(out)
    low.emit(operator, spec, pointers, tasks=low.graph.values[out].slots * -(-spec.row.n // _CHUNK))


@lowers(GatedActivation)
def _gated(low: Lowering, operator: Operator, op: GatedActivation) -> None:
    _emit(low, operator, GatedSpec(_row(low, operator), op.kind, op.parameters))


@lowers(Activation)
def _activation(low: Lowering, operator: Operator, op: Activation) -> None:
    _emit(low, operator, ActivationSpec(_row(low, operator), op.kind, op.parameters))


@lowers(Add)
def _add(low: Lowering, operator: Operator, op: Add) -> None:
    _emit(low, operator, AddSpec(_row(low, operator), op.scale))


@lowers(Multiply)
def _multiply(low: Lowering, operator: Operator, op: Multiply) -> None:
    a, b = (low.graph.values[value].width for value in operator.inputs)
    _emit(low, operator, MultiplySpec(_row(low, operator), a // b))


@lowers(Bias)
def _bias(low: Lowering, operator: Operator, op: Bias) -> None:
    spec = AddSpec(_with_vector(low, operator), 1.0)
    _emit(low, operator, spec, low.value(operator.inputs[0]), low.vector(op.weight))


@lowers(Scale)
def _scale(low: Lowering, operator: Operator, op: Scale) -> None:
    row = _with_vector(low, operator)
    spec = MultiplySpec(row, row.n // low.graph.weights[op.weight].shape[0])
    _emit(low, operator, spec, low.value(operator.inputs[0]), low.vector(op.weight))


@lowers(ScaleByPosition)
def _scale_by_position(low: Lowering, operator: Operator, op: ScaleByPosition) -> None:
    spec = PositionScaleSpec(_row(low, operator), op.period, op.strength)
    _emit(low, operator, spec, low.value(operator.inputs[0]), input_array("cells"))


@lowers(Slice)
def _slice(low: Lowering, operator: Operator, op: Slice) -> None:
    low.alias(operator.outputs[0], operator.inputs[0], op.first)
