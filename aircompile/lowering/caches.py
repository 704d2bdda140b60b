"""The KV caches and the states that a graph needs."""

from __future__ import annotations

from dataclasses import dataclass

from aircompile.graph import Graph
from aircompile.operators import RopeStore, Stateful
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.state import StateLayout


@dataclass(frozen=True)
class Caches:
    """Caches by slot, all of one element type and behind one block table of `max_blocks` entries a sequence; and the
    states by the name of their operator."""

    dtype: str
    max_blocks: int
    layers: tuple[CacheLayout, ...]
    states: dict[str, StateLayout]


def plan_caches(graph: Graph, kv_type: str, max_tokens: int) -> Caches:
    """The caches of a graph whose longest sequence has `max_tokens`."""
    dtype = {"f16": "float16", "f32": "float32"}[kv_type]
    max_blocks = -(-max_tokens // BLOCK_CELLS)
    stores = {op.op.slot: op.op for op in graph.operators() if isinstance(op.op, RopeStore)}
    assert sorted(stores) == list(range(len(stores)))
    layers = (
        CacheLayout(op.n_kv_heads, op.head_dim, op.v_dim, dtype, max_blocks) for _slot, op in sorted(stores.items())
    )
    states = {op.name: StateLayout(op.op.state_size) for op in graph.operators() if isinstance(op.op, Stateful)}
    return Caches(dtype, max_blocks, tuple(layers), states)
