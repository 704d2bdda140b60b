"""Apply the activation of a gate and the product with the other branch in one operator."""

from __future__ import annotations

import typing

from aircompile.graph import Graph, Operator
from aircompile.operators import Activation, Gate, GatedActivation, Multiply
from aircompile.passes.options import PassOptions

_GATES: dict[str, Gate] = {gate: gate for gate in typing.get_args(Gate)}


def fuse_gated_activation(graph: Graph, options: PassOptions) -> Graph:
    """Multiply(Activation(gate), up), in either order -> GatedActivation(gate, up)."""
    graph = graph.copy()
    for operator in graph.operators():
        if not isinstance(operator.op, Multiply):
            continue
        for value, up in (operator.inputs, operator.inputs[::-1]):
            gate = graph.producer(value)
            if gate is None or not isinstance(gate.op, Activation) or graph.only_consumer(value) is None or up == value:
                continue
            if gate.op.kind not in _GATES or graph.values[value].width != graph.values[up].width:
                continue
            op = GatedActivation(_GATES[gate.op.kind], gate.op.parameters)
            inputs = (gate.inputs[0], up)
            fused = Operator(operator.name, op, inputs, operator.outputs, operator.layer, operator.phase)
            graph.replace([gate.name, operator.name], [fused])
            break
    return graph
