"""Round the inputs of products with integer matrices to integers: their dot products are several times faster.

One digit (8 bits) is enough for most groups of values; under 'auto' those with outliers get a second one, which most
of a model's accuracy depends on and which costs little (`airkernels.cpu.activations`).

The rounding is part of the operator that makes the value where that is possible, and an operator of its own elsewhere
(after attention, or where a float matrix reads the same value).
"""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import Dispatch, Product, Quantize, Rounding, is_integer_format
from aircompile.passes.options import PassOptions
from airrun.errors import UnsupportedError


def quantize_activations(graph: Graph, options: PassOptions) -> Graph:
    """Product(x) -> Product(quantized x), for matrices in integer block formats.

    Rows that are dispatched to experts are rounded before: each once, and not once for each of its experts.

    Raises UnsupportedError if quantized activations are insisted on and no matrix can take them.
    """
    if options.activations == "f32":
        return graph
    graph = graph.copy()
    digits = 1 if options.activations == "q8" else 2
    values = dict.fromkeys(operator.inputs[0] for operator in graph.operators() if _wants_q8(graph, operator))
    dispatched = [value for value in values if _is_dispatched(graph, graph.producer(value))]
    if options.activations == "q8" and not values:
        raise UnsupportedError(
            f"activations q8: {graph.hyper.name} has no matrix in an integer block format; use auto or f32"
        )
    for value in [value for value in values if value not in dispatched]:
        _quantize(graph, value, digits)
    return graph


def _wants_q8(graph: Graph, operator: Operator) -> bool:
    op = operator.op
    if _is_dispatched(graph, operator):
        return True
    return isinstance(op, Product) and is_integer_format(op.format(graph.weights))


def _is_dispatched(graph: Graph, operator: Operator | None) -> bool:
    """Whether an operator dispatches rows as they are, to nothing but products that want them rounded."""
    if operator is None or not isinstance(operator.op, Dispatch) or len(operator.inputs) > 2:
        return False
    return all(_wants_q8(graph, reader) for reader in graph.consumers(operator.outputs[0]))


def _quantize(graph: Graph, value: str, digits: int) -> None:
    producer = graph.producer(value)
    assert producer is not None
    readers = graph.consumers(value)
    willing = [r for r in readers if _wants_q8(graph, r) and r.inputs[0] == value]
    op = producer.op
    if len(willing) == len(readers) and value not in graph.outputs and isinstance(op, Rounding) and op.can_round:
        rounding = dataclasses.replace(op, quantize=True, digits=digits)
        graph.replace([producer.name], [dataclasses.replace(producer, op=rounding)])
        return
    name = f"{value}.q8"
    layer, phase = willing[0].layer, willing[0].phase
    quantize = Operator(name, Quantize(digits), (value,), (name,), layer, phase)
    for i, reader in enumerate(willing):
        moved = dataclasses.replace(reader, inputs=(name, *reader.inputs[1:]))
        graph.replace([reader.name], [quantize, moved] if i == 0 else [moved])
