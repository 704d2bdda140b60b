"""Let a product add to the residual stream itself, instead of writing a result that is added afterwards."""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import Add, MatMul, Slice
from aircompile.passes.options import PassOptions


def fuse_residual(graph: Graph, options: PassOptions) -> Graph:
    """Add(x, MatMul(y)), in either order -> MatMul(y, x) with accumulate, where x may be overwritten."""
    graph = graph.copy()
    for operator in graph.operators():
        if operator.op != Add():
            continue
        for residual, value in (operator.inputs, operator.inputs[::-1]):
            product = graph.producer(value)
            if product is None or not isinstance(product.op, MatMul) or product.op.accumulate or residual == value:
                continue
            if graph.only_consumer(value) is None or not _dead_after(graph, residual, product, operator):
                continue
            fused = dataclasses.replace(
                product,
                op=dataclasses.replace(product.op, accumulate=True),
                inputs=(*product.inputs, residual),
                outputs=operator.outputs,
            )
            graph.replace([product.name, operator.name], [fused])
            break
    return graph


def _dead_after(graph: Graph, residual: str, product: Operator, operator: Operator) -> bool:
    """Whether every other reader of the residual has run when the product starts, in any order of operators."""
    views = [graph.producer(residual), *graph.consumers(residual)]
    if residual in graph.outputs or any(view is not None and isinstance(view.op, Slice) for view in views):
        return False
    before = graph.ancestors(product.name)
    return all(reader.name in before for reader in graph.consumers(residual) if reader.name != operator.name)
