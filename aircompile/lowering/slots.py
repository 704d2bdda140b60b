"""Operators that regroup the columns of a row."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.lowering import Lowering, lowers
from aircompile.operators import Join, Split
from airkernels.cpu.elementwise import RowShape
from airkernels.cpu.isa import PANEL
from airrun.errors import UnsupportedError
from airschedules.specs import JoinSpec


@lowers(Split)
def _split(low: Lowering, operator: Operator, op: Split) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    for value in (source, out):
        found = low.graph.values[value]
        if found.slots > 1 and found.width % PANEL:
            raise UnsupportedError(f"{operator.name}: heads of {found.width} elements are not a multiple of {PANEL}")
    low.alias(out, source)
    base, column = low.place_of(out)
    assert column == 0 and low.row_nbytes(base) == low.row_nbytes(out), f"{source} is no whole rows of {base}"


@lowers(Join)
def _join(low: Lowering, operator: Operator, op: Join) -> None:
    inputs = [low.graph.values[value] for value in operator.inputs]
    out = low.graph.values[operator.outputs[0]]
    strides = tuple(low.stride_of(value.name) for value in inputs)
    row = RowShape(out.width, strides, low.stride_of(out.name), out.width)
    spec = JoinSpec(row, tuple(x.width for x in inputs), tuple(out.slots // x.slots for x in inputs))
    pointers = {i: low.value(x.name) for i, x in enumerate(inputs)} | {2: low.value(out.name)}
    low.emit(operator, spec, pointers, tasks=out.slots)
