"""Operators that work element by element."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.lowering import Lowering, lowers
from aircompile.operators import GatedActivation
from airschedules.specs import GatedSpec

_CHUNK = 256
"""Columns per task: small enough to share one row between threads."""


@lowers(GatedActivation)
def _gated(low: Lowering, operator: Operator, op: GatedActivation) -> None:
    graph, out = low.graph, operator.outputs[0]
    columns = op.columns([graph.values[name] for name in operator.inputs])
    gate, up = ((operator.inputs[columns[p].input], columns[p].first) for p in ("gate", "up"))
    n = graph.values[out].width
    strides = (low.stride_of(gate[0]), low.stride_of(up[0]), low.stride_of(out))
    spec = GatedSpec(n, *strides, _CHUNK, low.digits(out))
    pointers = {0: low.value(*gate), 1: low.value(*up), 2: low.value(out)}
    low.emit(operator, spec, pointers, tasks=-(-n // _CHUNK))
