"""Give rounded activations a second digit where outliers would cost accuracy.

A group of 32 shares one scale, so an element much larger than its neighbours takes their precision away. That
happens in the inputs of query, key and value products and after gated activations; with two digits there, the
perplexity of a quantized model is close to that of exact arithmetic, and the other products (most of the
multiplications, and the head) keep one. Measured on SmolLM2: tests/bench/FINDINGS.md.
"""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import GatedActivation, MatMul, Norm, Quantize, RopeStore
from aircompile.passes.options import PassOptions


def widen_activations(graph: Graph, options: PassOptions) -> Graph:
    """Quantize to two digits what feeds attention and what a gate made ('auto' only)."""
    if options.activations != "auto":
        return graph
    graph = graph.copy()
    for operator in graph.operators():
        op = operator.op
        if not isinstance(op, Norm | GatedActivation | Quantize) or not _is_quantized(graph, operator):
            continue
        if _has_outliers(graph, operator):
            graph.replace([operator.name], [dataclasses.replace(operator, op=dataclasses.replace(op, digits=2))])
    return graph


def _is_quantized(graph: Graph, operator: Operator) -> bool:
    return graph.values[operator.outputs[0]].dtype == "q8"


def _has_outliers(graph: Graph, operator: Operator) -> bool:
    """Whether outliers were seen in values of this kind; a Quantize is judged by what it rounds."""
    source = graph.producer(operator.inputs[0]) if isinstance(operator.op, Quantize) else operator
    gated = source is not None and isinstance(source.op, GatedActivation)
    products = [reader for reader in graph.consumers(operator.outputs[0]) if isinstance(reader.op, MatMul)]
    before_attention = any(
        isinstance(reader.op, RopeStore) for product in products for reader in graph.consumers(product.outputs[0])
    )
    return gated or before_attention
