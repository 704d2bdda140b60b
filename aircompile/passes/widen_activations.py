"""Give rounded activations a second digit where outliers would cost accuracy.

A group of 32 shares one scale, so an element much larger than its neighbours takes their precision away. That
happens in the inputs of query, key and value products and after gated activations; with two digits there, the
perplexity of a quantized model is close to that of exact arithmetic, and the other products (most of the
multiplications, and the head) keep one. Measured on SmolLM2: tests/bench/FINDINGS.md.
"""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import (
    Activation,
    Attention,
    Dispatch,
    GatedActivation,
    HeadMatMul,
    Join,
    Norm,
    Product,
    Quantize,
    Rope,
    RopeStore,
    Rounding,
    Slice,
    Split,
)
from aircompile.passes.options import PassOptions


def widen_activations(graph: Graph, options: PassOptions) -> Graph:
    """Quantize to two digits what feeds attention and what an activation made ('auto' only)."""
    if options.activations != "auto":
        return graph
    graph = graph.copy()
    for operator in graph.operators():
        op = operator.op
        if isinstance(op, Rounding | Quantize) and _is_quantized(graph, operator) and _has_outliers(graph, operator):
            wide = dataclasses.replace(operator, op=dataclasses.replace(op, digits=2))
            # rows that are copied keep their type
            copies = [reader for reader in graph.consumers(operator.outputs[0]) if isinstance(reader.op, Dispatch)]
            graph.replace([operator.name], [wide])
            for copy in copies:
                graph.replace([copy.name], [copy])
    return graph


def _is_quantized(graph: Graph, operator: Operator) -> bool:
    return graph.values[operator.outputs[0]].dtype == "q8"


def _has_outliers(graph: Graph, operator: Operator) -> bool:
    """Whether outliers were seen in values of this kind; a Quantize is judged by what it rounds."""
    source = graph.producer(operator.inputs[0]) if isinstance(operator.op, Quantize) else operator
    activated = source is not None and isinstance(source.op, Activation | GatedActivation)
    products = [reader for reader in graph.consumers(operator.outputs[0]) if isinstance(reader.op, Product)]
    return activated or any(_feeds_attention(graph, product) for product in products)


def _feeds_attention(graph: Graph, operator: Operator) -> bool:
    """Whether a result becomes queries, keys or values, as it is or normed and rotated."""
    return any(
        isinstance(reader.op, RopeStore | Attention)
        or (isinstance(reader.op, Slice | Norm | Rope | Split | Join | HeadMatMul) and _feeds_attention(graph, reader))
        for value in operator.outputs
        for reader in graph.consumers(value)
    )
