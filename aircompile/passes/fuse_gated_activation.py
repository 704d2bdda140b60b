"""Apply the activation of a gate and the product with the other branch in one operator."""

from __future__ import annotations

from aircompile.graph import Graph, Operator
from aircompile.operators import Activation, GatedActivation, Multiply
from aircompile.passes.options import PassOptions


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
            op = GatedActivation(gate.op.kind, parts=tuple((p,) for p in GatedActivation.PARTS))
            inputs = (gate.inputs[0], up)
            fused = Operator(operator.name, op, inputs, operator.outputs, operator.layer, operator.phase)
            graph.replace([gate.name, operator.name], [fused])
            break
    return graph
