"""Rotary positions, the KV cache, and attention over it."""

from __future__ import annotations

from aircompile.gpu.calls import PREFILL, Axis
from aircompile.gpu.lowering import DeviceLowering, input_array, lowers
from aircompile.graph import Operator
from aircompile.lowering import Pointer
from aircompile.operators import Attention, Quantize, Rope, RopeStore
from airrun.errors import UnsupportedError
from airschedules.gpu.specs import (
    CombineSpec,
    FlashSpec,
    Heads,
    RopeSpec,
    RopeStoreSpec,
    Rotation,
    Seen,
    SplitSpec,
)


def _heads(low: DeviceLowering, n_heads: int, slot: int) -> Heads:
    cache = low.caches.layers[slot]
    if cache.head_dim != cache.v_dim:
        raise UnsupportedError("GPUs have no kernels for values shorter than keys yet; build for a CPU target")
    dtypes = {"F16": "float16", "F32": "float32"}
    if cache.keys != cache.values or cache.keys not in dtypes:
        raise UnsupportedError("GPUs have no kernels for rounded caches yet: use --kv-type f16 or f32")
    table = low.caches.table
    ring = table.ring_blocks if cache.ring else 0
    return Heads(n_heads, cache.n_kv_heads, cache.head_dim, table.stride, dtypes[cache.keys], ring)


def _rotation(low: DeviceLowering, op: Rope | RopeStore) -> Rotation:
    return Rotation(op.dim, op.mode == "neox", sum(rope.dim // 2 for rope in low.graph.hyper.ropes))


def _angles(low: DeviceLowering, table: int) -> Pointer:
    """The angles of a table: those of all tables lie side by side."""
    before = sum(rope.dim // 2 for rope in low.graph.hyper.ropes[:table])
    return input_array("rope", 4 * before)


@lowers(Rope, "table")
def _rope(low: DeviceLowering, operator: Operator, op: Rope) -> None:
    (x,), (out,) = operator.inputs, operator.outputs
    spec = RopeSpec(_rotation(low, op), op.head_dim, low.stride_of(x), low.stride_of(out))
    pointers = [low.value(x), _angles(low, op.table), input_array("rope_rows"), low.value(out)]
    low.emit(operator, spec, [low.rows(x), Axis(1, "fixed", op.n_heads)], pointers)


@lowers(RopeStore, "table slot")
def _rope_store(low: DeviceLowering, operator: Operator, op: RopeStore) -> None:
    low.alias(operator.outputs[0], operator.inputs[0])
    q, k, v = operator.inputs
    strides = (low.stride_of(q), low.stride_of(k), low.stride_of(v))
    spec = RopeStoreSpec(_heads(low, op.n_heads, op.slot), _rotation(low, op), strides)
    pointers = [*map(low.value, operator.inputs), _angles(low, op.table)]
    pointers += map(input_array, ("rope_rows", "cells", "sequences", "block_table"))
    extents = [low.rows(q), Axis(1, "fixed", op.n_heads + op.n_kv_heads)]
    low.emit(operator, spec, extents, [*pointers, Pointer("kv", str(op.slot))])


@lowers(Attention, "slot window chunk softcap alibi sinks")
def _attention(low: DeviceLowering, operator: Operator, op: Attention) -> None:
    if op.slot < 0:
        raise UnsupportedError(f"{operator.name}: attention without the cache is not supported")
    (source,), (out,) = operator.inputs, operator.outputs
    heads = _heads(low, op.n_heads, op.slot)
    seen = Seen(op.scale, op.window, op.chunk, op.softcap, op.alibi)
    queries, has_sinks = low.value(source), op.sinks is not None
    sinks = low.vector_or(op.sinks, queries)
    state = [Pointer("kv", str(op.slot)), *map(input_array, ("cells", "sequences", "block_table"))]
    if low.phase == PREFILL:
        flash = FlashSpec(heads, seen, low.stride_of(source), low.stride_of(out), has_sinks)
        extents = [Axis(0, "tokens", 1), Axis(1, "fixed", op.n_heads)]
        low.emit(operator, flash, extents, [queries, *state, sinks, low.value(out)], ["tokens"])
        return
    partial = low.scratch_for("partial", heads.partial_nbytes * low.max_tokens)
    split = SplitSpec(heads, seen, low.stride_of(source))
    extents = [Axis(0, "fixed", heads.n_kv_heads), Axis(1, "fixed", heads.splits), Axis(2, "tokens", 1)]
    low.emit(operator, split, extents, [queries, *state, partial])
    # rounding is part of the merge where nothing else reads the floats
    reader = low.graph.only_consumer(out)
    if reader is not None and isinstance(reader.op, Quantize):
        low.done.add(reader.name)
        out = reader.outputs[0]
    kind = low.kind(out)
    spec = CombineSpec(kind, op.head_dim, heads.splits, has_sinks)
    extents = [low.rows(out), Axis(1, "fixed", kind.n_tiles)]
    low.emit(operator, spec, extents, [partial, low.vector_or(op.sinks, partial), low.value(out)])
