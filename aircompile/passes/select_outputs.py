"""Run the head on the requested rows only: a prompt needs the logits of its last token, not of all."""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import SelectRows
from aircompile.passes.options import PassOptions


def select_outputs(graph: Graph, options: PassOptions) -> Graph:
    """Select rows of every value of all tokens that enters the head."""
    graph = graph.copy()
    selected: dict[str, str] = {}
    for operator in graph.operators():
        if operator.phase != "head":
            continue
        new: list[Operator] = []
        for value in operator.inputs:
            producer = graph.producer(value)
            if value in selected or producer is None or producer.phase == "head" or isinstance(operator.op, SelectRows):
                continue
            selected[value] = f"{value}.selected"
            new.append(Operator(selected[value], SelectRows(), (value,), (selected[value],), -1, "head"))
        inputs = operator.inputs
        if not isinstance(operator.op, SelectRows):
            inputs = tuple(selected.get(value, value) for value in inputs)
        graph.replace([operator.name], [*new, dataclasses.replace(operator, inputs=inputs)])
    return graph
