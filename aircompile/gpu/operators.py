"""Selection for a GPU: every operator becomes launches.

Single tokens and small batches are multiplied by integer dot products or float arithmetic as on a processor; large
batches go through tensor cores, with rows in half precision and matrices unpacked into scratch, part by part.
"""

from __future__ import annotations

from aircompile.gpu.calls import MAX_TOKENS, PREFILL, TOKENS_AT_ONCE, Axis, DeviceMatrix
from aircompile.gpu.lowering import DeviceLowering, input_array, lowers
from aircompile.gpu.narrow_activations import narrow_activations
from aircompile.graph import Graph, Operator
from aircompile.lowering import Caches, Pointer
from aircompile.operators import (
    Attention,
    GatedActivation,
    Gather,
    MatMul,
    Norm,
    Quantize,
    RopeStore,
    SelectRows,
    Slice,
)
from airkernels.formats import BlockFormat
from airrun.errors import UnsupportedError
from airschedules.gpu.specs import (
    CombineSpec,
    ConvertSpec,
    FlashSpec,
    GatedSpec,
    GatherSpec,
    GemmSpec,
    Heads,
    NormSpec,
    ProductSpec,
    RopeStoreSpec,
    RowKind,
    SelectSpec,
    SplitSpec,
    UnpackSpec,
)

_UNPACKED_NBYTES = 256 << 20
"""Of a matrix, as much is unpacked at a time."""


def lower_for_device(graph: Graph, caches: Caches, exact: bool) -> dict[str, DeviceLowering]:
    """Lower the graph for every program, by name."""
    graph = narrow_activations(graph)
    lowered = {}
    for phase in MAX_TOKENS:
        lowered[phase] = low = DeviceLowering(graph, caches, phase, exact)
        low.run()
    return lowered


@lowers(Gather)
def _gather(low: DeviceLowering, operator: Operator, op: Gather) -> None:
    (out,) = operator.outputs
    matrix = low.matrix((op.table,), -1)
    spec = GatherSpec(matrix.fmt, matrix.n_cols, low.stride_of(out))
    pointers = [*low.planes(matrix), input_array("token_ids"), low.value(out)]
    fmt = matrix.layout.fmt
    extents = [low.rows(out), Axis(1, "fixed", matrix.n_cols // fmt.block)]
    if isinstance(fmt, BlockFormat):
        extents.append(Axis(2, "fixed", fmt.block // fmt.group))
    low.emit(operator, spec, extents, pointers)


@lowers(Norm, "quantize digits")
def _norm(low: DeviceLowering, operator: Operator, op: Norm) -> None:
    if op.weight is None:
        raise UnsupportedError(f"{operator.name}: GPUs have no kernel for norms without weights yet")
    (source,), (out,) = operator.inputs, operator.outputs
    spec = NormSpec(low.kind(out), low.stride_of(source), op.eps)
    low.emit(operator, spec, [low.rows(out)], [low.value(source), low.vector(op.weight), low.value(out)])


@lowers(GatedActivation, "quantize digits")
def _gated(low: DeviceLowering, operator: Operator, op: GatedActivation) -> None:
    if op.kind != "silu":
        raise UnsupportedError(f"{operator.name}: GPUs have no kernel for {op.kind} yet; build for a CPU target")
    (gate, up), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = GatedSpec(kind, low.stride_of(gate), low.stride_of(up))
    extents = [low.rows(out), Axis(1, "fixed", kind.n_tiles)]
    low.emit(operator, spec, extents, [low.value(gate), low.value(up), low.value(out)])


@lowers(Quantize, "digits")
def _quantize(low: DeviceLowering, operator: Operator, op: Quantize) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = ConvertSpec(kind, low.stride_of(source))
    extents = [low.rows(out), Axis(1, "fixed", kind.n_tiles)]
    low.emit(operator, spec, extents, [low.value(source), low.value(out)])


@lowers(SelectRows)
def _select_rows(low: DeviceLowering, operator: Operator, op: SelectRows) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    assert low.kind(source) == low.kind(out) and low.place_of(source)[1] == 0
    spec = SelectSpec(low.stride_of(source))
    extents = [low.rows(out), Axis(1, "fixed", low.stride_of(source))]
    low.emit(operator, spec, extents, [low.value(source), input_array("output_rows"), low.value(out)])


@lowers(Slice)
def _slice(low: DeviceLowering, operator: Operator, op: Slice) -> None:
    low.alias(operator.outputs[0], operator.inputs[0], op.first)


@lowers(MatMul, "accumulate")
def _matmul(low: DeviceLowering, operator: Operator, op: MatMul) -> None:
    graph, source, out = low.graph, operator.inputs[0], operator.outputs[0]
    matrix = low.matrix(op.weights, operator.layer)
    if op.accumulate:
        low.alias(out, operator.inputs[1])
    # one launch does all members at once, unless biases (a tensor each) keep them apart
    pieces = [(first, stop, bias) for (_n, first, stop), bias in zip(op.members(graph.weights), op.biases, strict=True)]
    if not any(op.biases):
        pieces = [(0, matrix.n_rows, None)]
    multiply = _many_rows if low.many(source) else _few_rows
    for first, stop, bias in pieces:
        multiply(low, operator, op, matrix, first, stop, bias)


def _few_rows(
    low: DeviceLowering, operator: Operator, op: MatMul, matrix: DeviceMatrix, first: int, stop: int, bias: str | None
) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    value = low.graph.values[source]
    kind = RowKind("f32" if value.dtype == "float32" else value.dtype, matrix.n_cols, matrix.layout.fmt.block)
    x = low.rows_as(operator, source, kind)
    spec = ProductSpec(
        matrix.fmt,
        stop - first,
        matrix.n_cols,
        kind.kind,
        low.stride_of(out),
        op.accumulate,
        bias is not None,
        TOKENS_AT_ONCE[low.phase],
    )
    target = low.value(out, first)
    pointers = [*low.planes(matrix, first), x, low.vector(bias) if bias is not None else target, target]
    low.emit(operator, spec, [Axis(0, "fixed", stop - first), Axis(1, value.rows, 1)], pointers)


def _many_rows(
    low: DeviceLowering, operator: Operator, op: MatMul, matrix: DeviceMatrix, first: int, stop: int, bias: str | None
) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    rounded = low.graph.values[source].dtype != "float32"
    half = rounded or (matrix.fmt == "F16" and not low.exact)
    kind = RowKind("f16" if half else "f32", matrix.n_cols, matrix.layout.fmt.block)
    x = low.rows_as(operator, source, kind)
    k, itemsize = matrix.layout.unpacked_cols, 2 if half else 4
    direct = matrix.fmt == ("F16" if half else "F32")
    most = stop - first if direct else max(_UNPACKED_NBYTES // (k * itemsize) // 256 * 256, 256)
    for at in range(first, stop, most):
        n = min(most, stop - at)
        weights = low.planes(matrix, at)[0]
        if not direct:
            weights = low.scratch_for("unpacked", n * k * itemsize)
            unpack = UnpackSpec(matrix.fmt, n, matrix.n_cols, kind.kind)
            low.emit(operator, unpack, _unpacked(matrix, n), [*low.planes(matrix, at), weights])
        spec = GemmSpec(kind.kind, n, k, kind.layout.nbytes, low.stride_of(out), op.accumulate, bias is not None)
        target = low.value(out, at)
        place = low.vector(bias) if bias is not None else target
        if bias is not None and at != first:
            place = Pointer(place.space, place.name, 4 * (at - first))
        extents = [Axis(0, "tokens", 1), Axis(0, "fixed", n)]
        low.emit(operator, spec, extents, [weights, x, place, target], ["tokens"])


def _unpacked(matrix: DeviceMatrix, n: int) -> list[Axis]:
    fmt = matrix.layout.fmt
    if not isinstance(fmt, BlockFormat):
        return [Axis(0, "fixed", n * matrix.n_cols)]
    places = matrix.layout.unpacked_cols // fmt.block
    return [Axis(0, "fixed", n * places), Axis(1, "fixed", fmt.block // fmt.group)]


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
