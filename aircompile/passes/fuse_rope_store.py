"""Keep k and v in the cache: rotate q and k and store k and v in one operator; attention then reads the cache."""

from __future__ import annotations

import dataclasses

from aircompile.graph import Graph, Operator
from aircompile.operators import Attention, Rope, RopeStore
from aircompile.passes.names import joined
from aircompile.passes.options import PassOptions


def fuse_rope_store(graph: Graph, options: PassOptions) -> Graph:
    """Attention(Rope(q), Rope(k), v) -> Attention(RopeStore(q, k, v)); without rotations that fit, store k and v only.

    Later attention over the same k and v reads the cache of the first.
    """
    graph = graph.copy()
    slots: dict[tuple[str, str], int] = {}
    for operator in graph.operators():
        if not isinstance(operator.op, Attention) or len(operator.inputs) != 3:
            continue
        q, k, v = operator.inputs
        known = slots.get((k, v))
        if known is not None:
            op = dataclasses.replace(operator.op, slot=known)
            graph.replace([operator.name], [dataclasses.replace(operator, op=op, inputs=(q,))])
            continue
        slots[k, v] = len(slots)
        _store(graph, operator, operator.op, slots[k, v])
    return graph


def _store(graph: Graph, operator: Operator, op: Attention, slot: int) -> None:
    gone, inputs, q_value = [operator.name], operator.inputs, operator.inputs[0]
    shape = RopeStore(op.n_heads, op.n_kv_heads, op.head_dim, op.v_dim, 0, "normal", 0, slot)
    q, k = graph.producer(inputs[0]), graph.producer(inputs[1])
    if q is not None and k is not None and _rotate_alike(graph, q, k):
        assert isinstance(q.op, Rope)
        shape = dataclasses.replace(shape, dim=q.op.dim, mode=q.op.mode, table=q.op.table)
        gone += [q.name, k.name]
        inputs = (*q.inputs, *k.inputs, inputs[2])
        name = joined([q.name, k.name])
    else:
        # the value of q goes through, under another name
        name = q_value = f"{operator.name}.store"
    store = Operator(name, shape, inputs, (q_value,), operator.layer, operator.phase)
    reads = dataclasses.replace(operator, op=dataclasses.replace(op, slot=slot), inputs=(q_value,))
    graph.replace(gone, [store, reads])


def _rotate_alike(graph: Graph, q: Operator, k: Operator) -> bool:
    """Whether two operators are rotations of the same kind, by folded tables, whose results only one attention reads
    (k: any number, from the cache), and that may be done in place."""
    if q.name == k.name or not isinstance(q.op, Rope) or not isinstance(k.op, Rope):
        return False
    alike = dataclasses.replace(q.op, n_heads=0) == dataclasses.replace(k.op, n_heads=0)
    shared = all(isinstance(reader.op, Attention) for reader in graph.consumers(k.outputs[0]))
    in_place = all(graph.only_consumer(rotation.inputs[0]) is not None for rotation in (q, k))
    return alike and shared and in_place and graph.only_consumer(q.outputs[0]) is not None and q.op.factors is None
