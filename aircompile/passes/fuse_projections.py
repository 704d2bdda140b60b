"""Compute products of one input whose results are read together (q, k and v; gate and up) as one product.

One product reads its input once, is one step, and divides over threads more evenly than its members.
"""

from __future__ import annotations

from aircompile.graph import Graph, Operator
from aircompile.operators import MatMul, Parted
from aircompile.passes.names import joined
from aircompile.passes.options import PassOptions

PANEL = 16
"""Rows that kernels interleave: a member has to end where a panel does, so that the next one starts a new panel."""


def fuse_projections(graph: Graph, options: PassOptions) -> Graph:
    """Fuse neighbouring inputs of an operator with parts that are products of one input in one format.

    Members in different formats stay products of their own, and the operator keeps several inputs.
    """
    graph = graph.copy()
    for operator in graph.operators():
        if isinstance(operator.op, Parted):
            _fuse_inputs(graph, operator)
    return graph


def _fuse_inputs(graph: Graph, operator: Operator) -> None:
    first = 0
    while first < len(operator.inputs):
        members = _run(graph, operator, first)
        if len(members) > 1:
            operator = _fuse(graph, operator, first, members)
        first += 1


def _run(graph: Graph, reader: Operator, first: int) -> list[Operator]:
    """The longest run of inputs, from `first` on, whose producers can be fused."""
    members: list[Operator] = []
    for value in reader.inputs[first:]:
        member = graph.producer(value)
        if member is None or graph.only_consumer(value) is None or not _fits(graph, member):
            break
        if member in members:
            break
        if members and (member.inputs, _format(graph, member)) != (members[0].inputs, _format(graph, members[0])):
            break
        members.append(member)
    return members


def _fits(graph: Graph, member: Operator) -> bool:
    op = member.op
    return (
        isinstance(op, MatMul)
        and not op.accumulate
        and all(graph.weights[name].shape[0] % PANEL == 0 for name in op.weights)
    )


def _format(graph: Graph, member: Operator) -> str:
    assert isinstance(member.op, MatMul)
    return member.op.format(graph.weights)


def _fuse(graph: Graph, reader: Operator, first: int, members: list[Operator]) -> Operator:
    """Replace the members and their reader; returns the new reader."""
    products = [member.op for member in members if isinstance(member.op, MatMul)]
    weights: tuple[str, ...] = sum((op.weights for op in products), ())
    biases: tuple[str | None, ...] = sum((op.biases for op in products), ())
    name = joined([member.name for member in members])
    fused = Operator(name, MatMul(weights, biases), members[0].inputs, (name,), members[0].layer, members[0].phase)
    assert isinstance(reader.op, Parted)
    inputs = (*reader.inputs[:first], name, *reader.inputs[first + len(members) :])
    op = reader.op.merged(first, len(members))
    merged = Operator(reader.name, op, inputs, reader.outputs, reader.layer, reader.phase)
    graph.replace([*(member.name for member in members), reader.name], [fused, merged])
    return merged
