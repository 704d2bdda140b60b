"""Rotary positions, the KV cache, and attention over it."""

from __future__ import annotations

from aircompile.graph import Graph, Operator
from aircompile.lowering.calls import Pointer
from aircompile.lowering.lowering import Lowering, input_array, lowers
from aircompile.operators import Attention, RopeStore
from airkernels.cpu.attention import BLOCK_CELLS, CacheLayout, RopeShape
from airrun.errors import UnsupportedError
from airschedules.specs import AttentionSpec, RopeStoreSpec

_GROUP = 8
"""Tokens per attention task in prefill."""


@lowers(RopeStore)
def _rope_store(low: Lowering, operator: Operator, op: RopeStore) -> None:
    graph, out = low.graph, operator.outputs[0]
    columns = op.columns([graph.values[name] for name in operator.inputs])
    places = [(operator.inputs[columns[part].input], columns[part].first) for part in ("q", "k", "v")]
    q_value, q_column = places[0]
    assert q_column == 0
    low.aliases[out] = low.aliases.get(q_value, q_value)
    low.strides[out] = low.stride_of(q_value)
    strides = tuple(low.stride_of(value) for value, _column in places)
    spec = RopeStoreSpec(low.cache, RopeShape(op.n_heads, op.dim, op.mode), (strides[0], strides[1], strides[2]))
    pointers = {i: low.value(value, column) for i, (value, column) in enumerate(places)}
    pointers |= {3: input_array("rope"), 4: Pointer("kv", str(operator.layer)), 5: input_array("cells")}
    pointers |= {6: input_array("sequences"), 7: input_array("block_table")}
    low.emit(operator, spec, pointers, tasks=op.n_heads + op.n_kv_heads)


@lowers(Attention)
def _attention(low: Lowering, operator: Operator, op: Attention) -> None:
    if len(operator.inputs) != 1:
        raise UnsupportedError(f"{operator.name}: attention without the cache is not supported")
    source, out = operator.inputs[0], operator.outputs[0]
    group = _GROUP if low.phase == "prefill" else 1
    spec = AttentionSpec(low.cache, op.n_heads, op.scale, low.stride_of(source), low.stride_of(out), group)
    pointers = {
        0: low.value(source),
        1: low.value(out),
        2: Pointer("kv", str(operator.layer)),
        3: input_array("cells"),
        4: input_array("sequences"),
        5: input_array("block_table"),
    }
    low.emit(operator, spec, pointers, tasks=op.n_heads, tokens_per_task=group)


def cache_layout(graph: Graph, kv_type: str, max_tokens: int) -> CacheLayout:
    """The KV cache of a model: `max_tokens` is the longest sequence its block tables can describe."""
    hyper = graph.hyper
    dtype = {"f16": "float16", "f32": "float32"}[kv_type]
    return CacheLayout(hyper.n_kv_heads, hyper.head_dim, dtype, -(-max_tokens // BLOCK_CELLS))
