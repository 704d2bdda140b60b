"""Rotary positions, the KV cache, and attention over it."""

from __future__ import annotations

from aircompile.gpu.calls import PREFILL, Axis
from aircompile.gpu.lowering import DeviceLowering, input_array, lowers
from aircompile.graph import Operator
from aircompile.lowering import Pointer
from aircompile.operators import Attention, Quantize, RopeStore
from airrun.errors import UnsupportedError
from airschedules.gpu.specs import CombineSpec, FlashSpec, Heads, RopeStoreSpec, SplitSpec


def _heads(low: DeviceLowering, n_heads: int, slot: int) -> Heads:
    cache = low.caches.layers[slot]
    if cache.head_dim != cache.v_dim:
        raise UnsupportedError("GPUs have no kernels for values shorter than keys yet; build for a CPU target")
    dtypes = {"F16": "float16", "F32": "float32"}
    if cache.keys != cache.values or cache.keys not in dtypes:
        raise UnsupportedError("GPUs have no kernels for rounded caches yet: use --kv-type f16 or f32")
    return Heads(n_heads, cache.n_kv_heads, cache.head_dim, low.caches.table.stride, dtypes[cache.keys])


@lowers(RopeStore, "table slot")
def _rope_store(low: DeviceLowering, operator: Operator, op: RopeStore) -> None:
    low.alias(operator.outputs[0], operator.inputs[0])
    q, k, v = operator.inputs
    ropes = low.graph.hyper.ropes
    before = sum(rope.dim // 2 for rope in ropes[: op.table])
    heads = _heads(low, op.n_heads, op.slot)
    strides = (low.stride_of(q), low.stride_of(k), low.stride_of(v))
    spec = RopeStoreSpec(heads, op.dim, op.mode == "neox", sum(rope.dim // 2 for rope in ropes), strides)
    pointers = [*map(low.value, operator.inputs), input_array("rope", 4 * before)]
    pointers += map(input_array, ("rope_rows", "cells", "sequences", "block_table"))
    extents = [low.rows(q), Axis(1, "fixed", op.n_heads + op.n_kv_heads)]
    low.emit(operator, spec, extents, [*pointers, Pointer("kv", str(op.slot))])


@lowers(Attention, "slot")
def _attention(low: DeviceLowering, operator: Operator, op: Attention) -> None:
    if op.slot < 0:
        raise UnsupportedError(f"{operator.name}: attention without the cache is not supported")
    (source,), (out,) = operator.inputs, operator.outputs
    heads = _heads(low, op.n_heads, op.slot)
    state = [Pointer("kv", str(op.slot)), *map(input_array, ("cells", "sequences", "block_table"))]
    if low.phase == PREFILL:
        flash = FlashSpec(heads, op.scale, low.stride_of(source), low.stride_of(out))
        extents = [Axis(0, "tokens", 1), Axis(1, "fixed", op.n_heads)]
        low.emit(operator, flash, extents, [low.value(source), *state, low.value(out)], ["tokens"])
        return
    partial = low.scratch_for("partial", heads.partial_nbytes * low.max_tokens)
    split = SplitSpec(heads, op.scale, low.stride_of(source))
    extents = [Axis(0, "fixed", heads.n_kv_heads), Axis(1, "fixed", heads.splits), Axis(2, "tokens", 1)]
    low.emit(operator, split, extents, [low.value(source), *state, partial])
    # rounding is part of the merge where nothing else reads the floats
    reader = low.graph.only_consumer(out)
    if reader is not None and isinstance(reader.op, Quantize):
        low.done.add(reader.name)
        out = reader.outputs[0]
    kind = low.kind(out)
    spec = CombineSpec(kind, op.head_dim, heads.splits)
    low.emit(operator, spec, [low.rows(out), Axis(1, "fixed", kind.n_tiles)], [partial, low.value(out)])
