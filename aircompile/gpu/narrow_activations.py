"""Take the second digit of rounded activations away where it is not worth its cost on a GPU.

Kernels for CPUs pass over high digits where a group of values has no outliers (`airkernels.cpu.activations`); those for
GPUs multiply with all of them, which doubles the dot products. So only what feeds attention and what an activation made
keeps two digits there: most of a model's accuracy depends on these. Measured on SmolLM2: tests/bench/FINDINGS.md.
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


def narrow_activations(graph: Graph) -> Graph:
    """Round to one digit what is rounded to two, except where outliers were seen."""
    graph = graph.copy()
    for operator in graph.operators():
        op, dtype = operator.op, graph.values[operator.outputs[0]].dtype
        if isinstance(op, Rounding | Quantize) and dtype == "q16" and not _has_outliers(graph, operator):
            narrow = dataclasses.replace(operator, op=dataclasses.replace(op, digits=1))
            # rows that are copied keep their type
            copies = [reader for reader in graph.consumers(operator.outputs[0]) if isinstance(reader.op, Dispatch)]
            graph.replace([operator.name], [narrow])
            for copy in copies:
                graph.replace([copy.name], [copy])
    return graph


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
