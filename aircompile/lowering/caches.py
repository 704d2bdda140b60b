"""The KV caches and the states that a graph needs."""

from __future__ import annotations

from dataclasses import dataclass

from aircompile.graph import Graph
from aircompile.kv_types import parse_kv_type
from aircompile.lowering.calls import PHASES
from aircompile.operators import Attention, RopeStore, Stateful
from airkernels.cpu.cache import BLOCK_CELLS, BlockTable, CacheLayout
from airkernels.cpu.state import StateLayout
from airkernels.formats import FORMATS
from airrun.errors import UnsupportedError


@dataclass(frozen=True)
class Caches:
    """Caches by slot, with rows of the formats `keys` and `values`, all behind one block table; and the states by the
    name of their operator. Those that go round hold `window` tokens and the largest batch at least."""

    keys: str
    values: str
    window: int
    table: BlockTable
    layers: tuple[CacheLayout, ...]
    states: dict[str, StateLayout]


def plan_caches(graph: Graph, kv_type: str, max_tokens: int) -> Caches:
    """The caches of a graph whose longest sequence has `max_tokens`.

    Raises
    ------
    UsageError
        The type is unknown.
    UnsupportedError
        Its blocks do not divide the heads.
    """
    keys, values = parse_kv_type(kv_type)
    stores = {op.op.slot: op.op for op in graph.operators() if isinstance(op.op, RopeStore)}
    assert sorted(stores) == list(range(len(stores)))
    windows = {slot: _window(graph, slot) for slot in stores}
    max_blocks, ring_blocks = -(-max_tokens // BLOCK_CELLS), 0
    if any(windows.values()):
        ring_blocks = _ring_blocks(max(windows.values()))
        if ring_blocks >= max_blocks:
            windows, ring_blocks = dict.fromkeys(stores, 0), 0
    table = BlockTable(max_blocks, ring_blocks)
    layers = []
    for slot, op in sorted(stores.items()):
        _check(op.head_dim, keys)
        _check(op.v_dim, values)
        layers.append(CacheLayout(op.n_kv_heads, op.head_dim, op.v_dim, keys, values, table, windows[slot] > 0))
    states = {op.name: StateLayout(op.op.state_size) for op in graph.operators() if isinstance(op.op, Stateful)}
    return Caches(keys, values, max(windows.values(), default=0), table, tuple(layers), states)


def _window(graph: Graph, slot: int) -> int:
    """How far back the layers that read a cache look, the token itself counted; 0 if to the beginning."""
    readers = [op.op for op in graph.operators() if isinstance(op.op, Attention) and op.op.slot == slot]
    reach = [op.window or op.chunk for op in readers]
    return max(reach) if all(reach) else 0


def _ring_blocks(window: int) -> int:
    """Blocks that a batch writes and what its first token looks back at, wherever they begin in a block.

    A batch is written before any of its tokens looks back; the same room lets as many tokens be taken back.
    """
    return (window + PHASES[-1].max_tokens - 3) // BLOCK_CELLS + 2


def _check(dim: int, fmt: str) -> None:
    block = FORMATS[fmt].block
    if dim % block:
        raise UnsupportedError(
            f"KV cache of type {fmt.lower()}: heads of {dim} elements are not whole blocks of {block}; use f16 or f32"
        )
