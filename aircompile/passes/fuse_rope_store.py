"""Rotate q and k and store k and v in the cache in one operator; attention then reads the cache."""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import Attention, Rope, RopeStore
from aircompile.passes.names import joined
from aircompile.passes.options import PassOptions


def fuse_rope_store(graph: Graph, options: PassOptions) -> Graph:
    """Attention(Rope(q), Rope(k), v) -> Attention(RopeStore(q, k, v))."""
    graph = graph.copy()
    for operator in graph.operators():
        if not isinstance(operator.op, Attention) or len(operator.inputs) != 3:
            continue
        q, k = graph.producer(operator.inputs[0]), graph.producer(operator.inputs[1])
        if q is None or k is None or not _rotate_alike(graph, q, k):
            continue
        assert isinstance(q.op, Rope) and isinstance(k.op, Rope)
        op = RopeStore(
            q.op.n_heads, k.op.n_heads, q.op.head_dim, q.op.dim, q.op.mode, parts=tuple((p,) for p in RopeStore.PARTS)
        )
        inputs = (*q.inputs, *k.inputs, operator.inputs[2])
        store = Operator(joined([q.name, k.name]), op, inputs, q.outputs, operator.layer, operator.phase)
        attention = dataclasses.replace(operator, inputs=q.outputs)
        graph.replace([q.name, k.name, operator.name], [store, attention])
    return graph


def _rotate_alike(graph: Graph, q: Operator, k: Operator) -> bool:
    """Whether two operators are rotations of the same kind, by folded tables, of values that only attention reads."""
    if q.name == k.name or not isinstance(q.op, Rope) or not isinstance(k.op, Rope):
        return False
    alike = dataclasses.replace(q.op, n_heads=0) == dataclasses.replace(k.op, n_heads=0)
    unread = graph.only_consumer(q.outputs[0]) is not None and graph.only_consumer(k.outputs[0]) is not None
    return alike and unread and q.op.factors is None
