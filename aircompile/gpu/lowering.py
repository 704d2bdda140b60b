"""Selection for a GPU: every operator becomes launches.

Single tokens are multiplied by integer dot products or float arithmetic as on a processor; batches go through tensor
cores, with rows in half precision and matrices unpacked into scratch, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from aircompile.gpu.calls import DECODE, MAX_TOKENS, PREFILL, Axis, DeviceCall, DeviceMatrix
from aircompile.graph import Graph, Operator
from aircompile.lowering import Caches, Pointer
from aircompile.operators import (
    Attention,
    GatedActivation,
    Gather,
    MatMul,
    Norm,
    Op,
    Quantize,
    RopeStore,
    SelectRows,
    Slice,
)
from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.layout import FORMATS as DEVICE_FORMATS
from airrun.errors import UnsupportedError
from airschedules.gpu.schedule import DeviceSpec
from airschedules.gpu.specs import (
    CELLS,
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

NOTHING = Pointer("none")


@dataclass
class DeviceLowering:
    """Lowers a graph for one program.

    Attributes
    ----------
    exact
        Whether batches keep float32 precision where activations are floats.
    calls
        Launches in order.
    matrices
        What they read, by name.
    places
        Where values lie that are part of another: that value and the first column.
    scratch
        Bytes of each kind of scratch.
    converted
        Copies of values as rows of another kind, by name.
    """

    graph: Graph
    caches: Caches
    phase: str
    exact: bool
    calls: list[DeviceCall] = field(default_factory=list)
    matrices: dict[str, DeviceMatrix] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)
    converted: dict[str, RowKind] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def run(self) -> None:
        for operator in self.graph.operators():
            lower = _LOWERINGS.get(type(operator.op))
            if lower is None:
                kind = type(operator.op).__name__
                raise UnsupportedError(f"{operator.name}: GPUs have no kernel for {kind} yet; build for a CPU target")
            if operator.name not in self.done:
                lower(self, operator)

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest batch."""
        return MAX_TOKENS[self.phase]

    # values

    def many(self, value: str) -> bool:
        """Whether a value has the rows of a large batch."""
        return self.phase == PREFILL and self.graph.values[value].rows == "tokens"

    def kind(self, value: str) -> RowKind:
        """How a value's rows are stored."""
        if value in self.converted:
            return self.converted[value]
        v = self.graph.values[value]
        if v.dtype == "float32":
            return RowKind("f32", v.width, 1)
        readers = [r.op for r in self.graph.consumers(value) if isinstance(r.op, MatMul)]
        assert readers, f"{value} is rounded, but no product reads it"
        block = FORMATS[self.format(readers[0].weights[0])].block
        return RowKind("f16" if self.many(value) else v.dtype, v.width, block)

    def row_nbytes(self, value: str) -> int:
        """Bytes of a row of a value in the arena."""
        return self.kind(value).layout.nbytes

    def stride_of(self, value: str) -> int:
        """32-bit words between the rows of a value."""
        return self.row_nbytes(self.place_of(value)[0]) // 4

    def place_of(self, value: str) -> tuple[str, int]:
        """The value whose memory holds this one, and the column where it starts."""
        return self.places.get(value, (value, 0))

    def alias(self, value: str, of: str, column: int = 0) -> None:
        """Let a value be part of another, from a column on."""
        base, first = self.place_of(of)
        self.places[value] = (base, first + column)

    def value(self, name: str, column: int = 0) -> Pointer:
        """A value, from a column on."""
        base, first = self.place_of(name)
        offset = 4 * (first + column)
        return Pointer("logits", "", offset) if base in self.graph.outputs else Pointer("value", base, offset)

    def rows_as(self, operator: Operator, value: str, kind: RowKind) -> Pointer:
        """A value as rows of a kind, converted once where it is stored in another."""
        if self.kind(self.place_of(value)[0]) == kind or (kind.kind, kind.block) == ("f32", 1):
            return self.value(value)
        if self.kind(value).kind != "f32":
            raise UnsupportedError(f"{operator.name}: {value} is read by matrices of unlike block formats")
        name = f"{value}.{kind.kind}.{kind.block}"
        if name not in self.converted:
            self.converted[name] = kind
            spec = ConvertSpec(kind, self.stride_of(value))
            self._append(spec, operator, [self.rows(value), Axis(1, "fixed", kind.n_tiles)], value, name)
        return Pointer("value", name)

    def _append(self, spec: DeviceSpec, operator: Operator, extents: Sequence[Axis], source: str, target: str) -> None:
        pointers = (self.value(source), Pointer("value", target))
        self.calls.append(DeviceCall(spec, operator, tuple(extents), pointers))

    # tensors

    def format(self, tensor: str) -> str:
        """Block format of a tensor whose elements a kernel decodes."""
        name = self.graph.weights[tensor].format
        if name not in DEVICE_FORMATS:
            known = ", ".join(DEVICE_FORMATS)
            raise UnsupportedError(f"tensor {tensor}: block format {name} is not supported on GPUs (known: {known})")
        return name

    def vector(self, name: str) -> Pointer:
        """A tensor that a kernel reads as it stands."""
        fmt = self.graph.weights[name].format
        if fmt != "F32":
            raise UnsupportedError(f"tensor {name}: vectors in {fmt} are not supported, only in F32")
        return Pointer("tensor", name)

    def matrix(self, tensors: Sequence[str], layer: int) -> DeviceMatrix:
        """A matrix of one or several tensors."""
        infos = [self.graph.weights[name] for name in tensors]
        n_rows, n_cols = sum(info.shape[0] for info in infos), infos[0].shape[-1]
        found = DeviceMatrix(tuple(tensors), layer, self.format(tensors[0]), n_rows, n_cols)
        return self.matrices.setdefault(found.name, found)

    def planes(self, matrix: DeviceMatrix, first: int = 0) -> list[Pointer]:
        """Pointers to a matrix from a row on: words and halves, or its only plane."""
        layout = matrix.layout
        fmt = layout.fmt
        if not isinstance(fmt, BlockFormat):
            offsets = [("weight", first * matrix.n_cols * fmt.nbytes)]
        else:
            places = layout.unpacked_cols // fmt.block
            offsets = [
                ("weight", 4 * first * layout.n_words * places),
                ("halves", 2 * first * layout.n_halves * places),
            ]
        if any(offset % 16 for _space, offset in offsets):
            raise UnsupportedError(f"{matrix.name}: row {first} is not aligned on a GPU")
        return [Pointer(space, matrix.name, offset) for space, offset in offsets]

    # launches

    def rows(self, value: str) -> Axis:
        """The rows of a value along axis 0."""
        return Axis(0, self.graph.values[value].rows, 1)

    def emit(
        self,
        operator: Operator,
        spec: DeviceSpec,
        extents: Sequence[Axis],
        pointers: Sequence[Pointer],
        integers: Sequence[str] = (),
    ) -> None:
        self.calls.append(DeviceCall(spec, operator, tuple(extents), tuple(pointers), tuple(integers)))

    def scratch_for(self, use: str, nbytes: int) -> Pointer:
        """Scratch of a kind, of at least so many bytes."""
        self.scratch[use] = max(self.scratch.get(use, 0), nbytes)
        return Pointer("scratch", use)


def input_array(name: str, offset: int = 0) -> Pointer:
    """One of the arrays that the host fills."""
    return Pointer("input", name, offset)


OpT = TypeVar("OpT", bound=Op)
Lower = Callable[[DeviceLowering, Operator, OpT], None]

_LOWERINGS: dict[type[Op], Callable[[DeviceLowering, Operator], None]] = {}


def _lowers(kind: type[OpT]) -> Callable[[Lower[OpT]], Lower[OpT]]:
    """Register the function that emits the launches of an operator type."""

    def register(function: Lower[OpT]) -> Lower[OpT]:
        def lower(low: DeviceLowering, operator: Operator) -> None:
            assert isinstance(operator.op, kind)
            function(low, operator, operator.op)

        assert kind not in _LOWERINGS
        _LOWERINGS[kind] = lower
        return function

    return register


@_lowers(Gather)
def _gather(low: DeviceLowering, operator: Operator, op: Gather) -> None:
    if op.by != "token_ids":
        raise UnsupportedError(f"{operator.name}: GPUs gather rows by token id only; build for a CPU target")
    (out,) = operator.outputs
    matrix = low.matrix((op.table,), -1)
    spec = GatherSpec(matrix.fmt, matrix.n_cols, low.stride_of(out))
    pointers = [*low.planes(matrix), input_array("token_ids"), low.value(out)]
    fmt = matrix.layout.fmt
    extents = [low.rows(out), Axis(1, "fixed", matrix.n_cols // fmt.block)]
    if isinstance(fmt, BlockFormat):
        extents.append(Axis(2, "fixed", fmt.block // fmt.group))
    low.emit(operator, spec, extents, pointers)


@_lowers(Norm)
def _norm(low: DeviceLowering, operator: Operator, op: Norm) -> None:
    if op.kind != "rms" or op.groups != 1 or op.bias is not None or op.weight is None:
        raise UnsupportedError(f"{operator.name}: GPUs have no kernel for this norm yet; build for a CPU target")
    (source,), (out,) = operator.inputs, operator.outputs
    spec = NormSpec(low.kind(out), low.stride_of(source), op.eps)
    low.emit(operator, spec, [low.rows(out)], [low.value(source), low.vector(op.weight), low.value(out)])


@_lowers(GatedActivation)
def _gated(low: DeviceLowering, operator: Operator, op: GatedActivation) -> None:
    if op.kind != "silu":
        raise UnsupportedError(f"{operator.name}: GPUs have no kernel for {op.kind} yet; build for a CPU target")
    (gate, up), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = GatedSpec(kind, low.stride_of(gate), low.stride_of(up))
    extents = [low.rows(out), Axis(1, "fixed", kind.n_tiles)]
    low.emit(operator, spec, extents, [low.value(gate), low.value(up), low.value(out)])


@_lowers(Quantize)
def _quantize(low: DeviceLowering, operator: Operator, op: Quantize) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    kind = low.kind(out)
    spec = ConvertSpec(kind, low.stride_of(source))
    extents = [low.rows(out), Axis(1, "fixed", kind.n_tiles)]
    low.emit(operator, spec, extents, [low.value(source), low.value(out)])


@_lowers(SelectRows)
def _select_rows(low: DeviceLowering, operator: Operator, op: SelectRows) -> None:
    (source,), (out,) = operator.inputs, operator.outputs
    assert low.kind(source) == low.kind(out) and low.place_of(source)[1] == 0
    spec = SelectSpec(low.stride_of(source))
    extents = [low.rows(out), Axis(1, "fixed", low.stride_of(source))]
    low.emit(operator, spec, extents, [low.value(source), input_array("output_rows"), low.value(out)])


@_lowers(Slice)
def _slice(low: DeviceLowering, operator: Operator, op: Slice) -> None:
    low.alias(operator.outputs[0], operator.inputs[0], op.first)


@_lowers(MatMul)
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
        matrix.fmt, stop - first, matrix.n_cols, kind.kind, low.stride_of(out), op.accumulate, bias is not None
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
    return Heads(n_heads, cache.n_kv_heads, cache.head_dim, low.caches.max_blocks, low.caches.dtype)


@_lowers(RopeStore)
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


@_lowers(Attention)
def _attention(low: DeviceLowering, operator: Operator, op: Attention) -> None:
    if op.slot < 0 or op.window or op.chunk or op.softcap or op.alibi or op.sinks is not None:
        raise UnsupportedError(f"{operator.name}: GPUs have no kernel for this attention yet; build for a CPU target")
    (source,), (out,) = operator.inputs, operator.outputs
    heads = _heads(low, op.n_heads, op.slot)
    state = [Pointer("kv", str(op.slot)), *map(input_array, ("cells", "sequences", "block_table"))]
    if low.phase == PREFILL:
        flash = FlashSpec(heads, op.scale, low.stride_of(source), low.stride_of(out))
        extents = [Axis(0, "tokens", 1), Axis(1, "fixed", op.n_heads)]
        low.emit(operator, flash, extents, [low.value(source), *state, low.value(out)], ["tokens"])
        return
    partial = low.scratch_for("partial", heads.partial_nbytes * MAX_TOKENS[DECODE])
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


def lower_for_device(graph: Graph, caches: Caches, exact: bool) -> dict[str, DeviceLowering]:
    """Lower the graph for every program, by name."""
    lowered = {}
    for phase in MAX_TOKENS:
        lowered[phase] = low = DeviceLowering(graph, caches, phase, exact)
        low.run()
    return lowered


__all__ = ["CELLS", "DeviceLowering", "lower_for_device"]
