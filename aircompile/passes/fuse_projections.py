"""Compute products of one input (q, k and v; gate and up) as one product, whose columns they become.

One product reads its input once, is one step, and divides over threads more evenly than its members.
"""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import Add, MatMul, Slice, Split
from aircompile.passes.names import joined
from aircompile.passes.options import PassOptions

PANEL = 16
"""Rows that kernels interleave: a member has to end where a panel does, so that the next one starts a new panel."""


def fuse_projections(graph: Graph, options: PassOptions) -> Graph:
    """MatMul(x), MatMul(x), ... -> Slice(MatMul(x)), ... for matrices of one storage format.

    Members in different formats stay products of their own. So do those that a residual is added to, which add it
    themselves (``fuse_residual``), and those whose rows are split, which must be evenly apart.
    """
    graph = graph.copy()
    for value in list(graph.values):
        groups: dict[tuple[str, int], list[Operator]] = {}
        for reader in graph.consumers(value):
            if isinstance(reader.op, MatMul) and _fits(graph, reader, reader.op):
                groups.setdefault((reader.op.format(graph.weights), reader.layer), []).append(reader)
        for members in groups.values():
            if len(members) > 1:
                _fuse(graph, members)
    return graph


def _fits(graph: Graph, member: Operator, op: MatMul) -> bool:
    (output,) = member.outputs
    return (
        not op.accumulate
        and output not in graph.outputs
        and all(graph.weights[name].shape[0] % PANEL == 0 for name in op.weights)
        and not any(isinstance(reader.op, Add | Split) for reader in graph.consumers(output))
    )


def _fuse(graph: Graph, members: list[Operator]) -> None:
    """Replace products by one, of which their values are slices."""
    products = [member.op for member in members if isinstance(member.op, MatMul)]
    weights: tuple[str, ...] = sum((op.weights for op in products), ())
    biases: tuple[str | None, ...] = sum((op.biases for op in products), ())
    first = members[0]
    name = joined([member.name for member in members])
    fused = Operator(name, MatMul(weights, biases), first.inputs, (name,), first.layer, first.phase)
    slices, column = [], 0
    for member in members:
        width = graph.values[member.outputs[0]].width
        slices.append(dataclasses.replace(member, op=Slice(column, width), inputs=(name,)))
        column += width
    graph.replace([member.name for member in members], [fused, *slices])
