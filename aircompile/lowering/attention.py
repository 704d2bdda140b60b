"""Rotary positions, the KV cache, and attention over it."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.calls import Pointer
from aircompile.lowering.lowering import Lowering, input_array, lowers
from aircompile.operators import Attention, Rope, RopeStore
from airkernels.cpu.cache import BLOCK_CELLS
from airkernels.cpu.rope import RopeShape
from airrun.errors import UnsupportedError
from airschedules.specs import AttentionPartsSpec, AttentionSpec, MergePartsSpec, RopeSpec, RopeStoreSpec

_GROUP = 8
"""Tokens per attention task in prefill."""

_HEADS = 8
"""Most query heads of a KV head per attention task in decode, which read the cache together."""

_TASKS = 32
"""Tasks that there should be for a single token, so that as many threads have something to do."""

_PARTS = 8
"""Most parts that its cells are split into for that."""


def _shape(low: Lowering, op: Rope | RopeStore) -> RopeShape:
    return RopeShape(op.n_heads, op.dim, op.mode, sum(rope.dim // 2 for rope in low.graph.hyper.ropes))


def _angles(low: Lowering, table: int) -> Pointer:
    """The angles of a table: those of all tables lie side by side."""
    before = sum(rope.dim // 2 for rope in low.graph.hyper.ropes[:table])
    return input_array("rope", 4 * before)


@lowers(Rope)
def _rope(low: Lowering, operator: Operator, op: Rope) -> None:
    (x,), (out,) = operator.inputs, operator.outputs
    spec = RopeSpec(_shape(low, op), op.head_dim, low.stride_of(x), low.stride_of(out))
    low.emit(operator, spec, {0: low.value(x), 1: _angles(low, op.table), 2: low.value(out)}, tasks=op.n_heads)


@lowers(RopeStore)
def _rope_store(low: Lowering, operator: Operator, op: RopeStore) -> None:
    low.alias(operator.outputs[0], operator.inputs[0])
    q, k, v = operator.inputs
    strides = (low.stride_of(q), low.stride_of(k), low.stride_of(v))
    spec = RopeStoreSpec(low.caches.layers[op.slot], _shape(low, op), strides)
    pointers = {i: low.value(value) for i, value in enumerate(operator.inputs)}
    if op.dim:
        pointers[3] = _angles(low, op.table)
    pointers |= {4: Pointer("kv", str(op.slot)), 5: input_array("cells")}
    pointers |= {6: input_array("sequences"), 7: input_array("block_table")}
    low.emit(operator, spec, pointers, tasks=(op.n_heads if op.dim else 0) + op.n_kv_heads)


@lowers(Attention)
def _attention(low: Lowering, operator: Operator, op: Attention) -> None:
    if op.slot < 0:
        raise UnsupportedError(f"{operator.name}: attention without the cache is not supported")
    source, out = operator.inputs[0], operator.outputs[0]
    tasks = op.n_heads // _heads_together(op.n_heads // op.n_kv_heads)
    decode, parts = low.phase != "prefill", _parts(low, op, tasks)
    kind = AttentionPartsSpec if decode and parts > 1 else AttentionSpec
    spec = kind(
        low.caches.layers[op.slot],
        op.n_heads,
        op.scale,
        low.stride_of(source),
        low.stride_of(out),
        1 if decode else _GROUP,
        op.n_heads // tasks if decode else 1,
        parts,
        op.window,
        op.chunk,
        op.softcap,
        op.alibi,
        op.sinks is not None,
    )
    reads = {
        0: low.value(source),
        2: Pointer("kv", str(op.slot)),
        3: input_array("cells"),
        4: input_array("sequences"),
        5: input_array("block_table"),
        7: Pointer("scratch"),
    }
    writes = {1: low.value(out)} | ({} if op.sinks is None else {6: low.vector(op.sinks)})
    if isinstance(spec, AttentionPartsSpec):
        low.emit(operator, spec, reads, tasks=tasks * parts)
        low.emit(operator, MergePartsSpec(spec), writes | {i: reads[i] for i in (3, 7)}, tasks=tasks)
    elif decode:
        low.emit(operator, spec, reads | writes, tasks=tasks)
    else:
        low.emit(operator, spec, reads | writes, tasks=op.n_heads, tokens_per_task=_GROUP)


def _parts(low: Lowering, op: Attention, tasks: int) -> int:
    """Parts that the cells are split into, the same in all phases: a power of two, for which there are blocks."""
    reach = op.window or op.chunk
    blocks = min(low.caches.table.max_blocks, -(-reach // BLOCK_CELLS) + 1 if reach else _PARTS)
    parts = 1
    while tasks * parts < _TASKS and 2 * parts <= min(blocks, _PARTS):
        parts *= 2
    return parts


def _heads_together(n: int) -> int:
    """How many of the n query heads of a KV head share a task."""
    return max(heads for heads in range(1, _HEADS + 1) if n % heads == 0)
