"""The state of lowering one program for a GPU, and the table of how each operator type is lowered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TypeVar

from aircompile.gpu.calls import MAX_TOKENS, PREFILL, Axis, DeviceCall, DeviceMatrix
from aircompile.graph import Graph, Operator
from aircompile.lowering import Caches, Pointer
from aircompile.operators import Activation, Dispatch, Op, Product, Scale
from airkernels.formats import FORMATS, BlockFormat
from airrun.errors import UnsupportedError
from airschedules.gpu.schedule import DeviceSpec
from airschedules.gpu.specs import ConvertSpec, RowKind

ALIGNMENT = 16
"""Of every address that a kernel gets, in bytes: they are compiled for that."""


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
        Kinds of copies of values as rows of another kind, by name.
    copies
        What they are copies of.
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
    copies: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def run(self) -> None:
        self._compute_outputs_in_place()
        for operator in self.graph.operators():
            lower = _LOWERINGS.get(type(operator.op))
            if lower is None:
                kind = type(operator.op).__name__
                raise UnsupportedError(f"{operator.name}: GPUs have no kernel for {kind} yet; build for a CPU target")
            if operator.name not in self.done:
                lower(self, operator)

    def _compute_outputs_in_place(self) -> None:
        """What is computed from a single value into an output of the graph overwrites it, as on a processor."""
        for output in self.graph.outputs:
            producer = self.graph.producer(output)
            if producer is not None and isinstance(producer.op, Activation | Scale):
                (source,) = producer.inputs
                assert self.graph.only_consumer(source) is not None
                self.alias(source, output)

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
        v, producer = self.graph.values[value], self.graph.producer(value)
        if v.dtype in ("float32", "int32"):
            return RowKind("f32", v.width, 1)
        if producer is not None and isinstance(producer.op, Dispatch):
            return self.kind(producer.inputs[0])
        blocks = {FORMATS[self.format(tensor)].block for tensor in self._multiplied_with(value)}
        assert blocks, f"{value} is rounded, but no product reads it"
        if len(blocks) > 1:
            # each of its readers has a copy made
            return RowKind("f32", v.width, 1)
        return RowKind("f16" if self.many(value) else v.dtype, v.width, blocks.pop())

    def batch_kind(self, value: str, matrix: DeviceMatrix) -> RowKind:
        """What rows of a large batch are for tensor cores."""
        rounded = self.graph.values[value].dtype != "float32"
        half = rounded or (matrix.fmt == "F16" and not self.exact)
        return RowKind("f16" if half else "f32", matrix.n_cols, matrix.layout.fmt.block)

    def _multiplied_with(self, value: str) -> Iterator[str]:
        """A tensor of every product that reads a rounded value, or copies of its rows."""
        for reader in self.graph.consumers(value):
            if isinstance(reader.op, Dispatch):
                yield from self._multiplied_with(reader.outputs[0])
            elif isinstance(reader.op, Product):
                yield reader.op.tensors()[0]

    def slots(self, value: str) -> int:
        """Rows of a value per token."""
        return self.graph.values[self.copies.get(value, value)].slots

    def row_nbytes(self, value: str) -> int:
        """Bytes of a token's rows of a value in the arena."""
        return self.slots(value) * self.kind(value).layout.nbytes

    def stride_of(self, value: str) -> int:
        """32-bit words between the rows of a value."""
        return self.row_nbytes(self.place_of(value)[0]) // (4 * self.slots(value))

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
        # parts of wider rows are further apart than a product takes its rows to be
        fits = 4 * self.stride_of(value) == kind.layout.nbytes
        if fits and (self.kind(self.place_of(value)[0]) == kind or (kind.kind, kind.block) == ("f32", 1)):
            return self.value(value)
        assert self.kind(value).kind == "f32", f"{value} is stored for other matrices"
        name = f"{value}.{kind.kind}.{kind.block}"
        if name not in self.converted:
            self.converted[name], self.copies[name] = kind, value
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
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise UnsupportedError(f"tensor {tensor}: block format {name} is not supported (known: {known})")
        return name

    def vector(self, name: str) -> Pointer:
        """A tensor that a kernel reads as it stands."""
        fmt = self.graph.weights[name].format
        if fmt != "F32":
            raise UnsupportedError(f"tensor {name}: vectors in {fmt} are not supported, only in F32")
        return Pointer("tensor", name)

    def vector_or(self, name: str | None, nothing: Pointer) -> Pointer:
        """A vector; without one any other address, which the kernel is told not to read."""
        return nothing if name is None else self.vector(name)

    def matrix(self, tensors: Sequence[str], layer: int) -> DeviceMatrix:
        """A matrix of one or several tensors; a tensor of several matrices is one with the rows of all."""
        infos = [self.graph.weights[name] for name in tensors]
        n_rows, n_cols = sum(math.prod(info.shape[:-1]) for info in infos), infos[0].shape[-1]
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
        return [Pointer(space, matrix.name, offset) for space, offset in offsets]

    # launches

    def rows(self, value: str) -> Axis:
        """The rows of a value along axis 0."""
        found = self.graph.values[value]
        return Axis(0, found.rows, found.slots)

    def emit(
        self,
        operator: Operator,
        spec: DeviceSpec,
        extents: Sequence[Axis],
        pointers: Sequence[Pointer],
        integers: Sequence[str] = (),
    ) -> None:
        if any(pointer.offset % ALIGNMENT for pointer in pointers):
            raise UnsupportedError(f"{operator.name}: a part of a row does not begin at 16 bytes, as GPUs need it to")
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


def lowers(kind: type[OpT], understands: str = "") -> Callable[[Lower[OpT]], Lower[OpT]]:
    """Register the function that emits the launches of an operator type.

    Attributes with defaults keep them, but those that the function `understands`: so none is passed over in silence.
    """

    def register(function: Lower[OpT]) -> Lower[OpT]:
        def lower(low: DeviceLowering, operator: Operator) -> None:
            assert isinstance(operator.op, kind)
            for attribute in fields(operator.op):
                value = getattr(operator.op, attribute.name)
                known = attribute.default is MISSING or attribute.name in understands.split()
                if not known and value != attribute.default:
                    what = f"{kind.__name__} with {attribute.name} {value}"
                    raise UnsupportedError(
                        f"{operator.name}: GPUs have no kernel for {what} yet; build for a CPU target"
                    )
            function(low, operator, operator.op)

        assert kind not in _LOWERINGS
        _LOWERINGS[kind] = lower
        return function

    return register
