"""Operators that work element by element."""

from __future__ import annotations

from aircompile.gpu.calls import Axis
from aircompile.gpu.lowering import DeviceLowering, lowers
from aircompile.graph import Operator
from aircompile.operators import GatedActivation, Slice
from airrun.errors import UnsupportedError
from airschedules.gpu.specs import GatedSpec


@lowers(GatedActivation, "quantize digits")
def _gated(low: DeviceLowering, operator: Operator, op: GatedActivation) -> None:
    if op.kind != "silu":
        raise UnsupportedError(f"{operator.name}: GPUs have no kernel for {op.kind} yet; build for a CPU target")
    (gate, up), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = GatedSpec(kind, low.stride_of(gate), low.stride_of(up))
    extents = [low.rows(out), Axis(1, "fixed", kind.n_tiles)]
    low.emit(operator, spec, extents, [low.value(gate), low.value(up), low.value(out)])


@lowers(Slice)
def _slice(low: DeviceLowering, operator: Operator, op: Slice) -> None:
    low.alias(operator.outputs[0], operator.inputs[0], op.first)
