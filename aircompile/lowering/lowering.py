"""The state of lowering one program, and the table of how each operator type is lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aircompile.graph import Graph, Operator
from aircompile.lowering.caches import Caches
from aircompile.lowering.calls import NOTHING, Call, PanelWeight, Pointer, stride
from aircompile.operators import Activation, Op, Scale
from airkernels.cpu.activations import QuantizedRow
from airkernels.formats import FORMATS
from airrun.errors import UnsupportedError
from airrun.plan.schema import INPUTS, POINTERS_PER_STEP
from airschedules.specs import KernelSpec

_DIGITS = {"float32": 0, "int32": 0, "q8": 1, "q16": 2}
"""Digits of each type of activations."""


@dataclass
class Lowering:
    """Lowers a graph for one phase.

    Attributes
    ----------
    calls
        Kernel calls in order.
    weights
        Matrices to be interleaved, by name.
    places
        Where values lie that are part of another: that value and the first column.
    """

    graph: Graph
    caches: Caches
    phase: str
    calls: list[Call] = field(default_factory=list)
    weights: dict[str, PanelWeight] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    def run(self) -> None:
        self._compute_outputs_in_place()
        for operator in self.graph.operators():
            lower = _LOWERINGS.get(type(operator.op))
            if lower is None:
                raise UnsupportedError(f"{operator.name}: no kernel computes {type(operator.op).__name__} on its own")
            lower(self, operator)

    def digits(self, value: str) -> int:
        """Digits that a value is rounded to; 0 for floats."""
        return _DIGITS[self.graph.values[value].dtype]

    def row_nbytes(self, value: str) -> int:
        """Bytes of a token's rows of a value in the arena."""
        found, digits = self.graph.values[value], self.digits(value)
        nbytes = QuantizedRow(found.width, digits).nbytes if digits else 4 * stride(found.width)
        return found.slots * (-(-nbytes // 64) * 64)

    def place_of(self, value: str) -> tuple[str, int]:
        """The value whose memory holds this one, and the column where it starts."""
        return self.places.get(value, (value, 0))

    def alias(self, value: str, of: str, column: int = 0) -> None:
        """Let a value be part of another, from a column on."""
        base, first = self.place_of(of)
        self.places[value] = (base, first + column)

    def stride_of(self, value: str) -> int:
        """Floats between the rows of a value."""
        return self.row_nbytes(self.place_of(value)[0]) // (4 * self.graph.values[value].slots)

    def _compute_outputs_in_place(self) -> None:
        """What is computed from a single value into an output of the graph overwrites it: logits are large, and the
        arena has room for every token."""
        for output in self.graph.outputs:
            producer = self.graph.producer(output)
            if producer is not None and isinstance(producer.op, Activation | Scale):
                (source,) = producer.inputs
                assert self.graph.only_consumer(source) is not None
                self.alias(source, output)

    def emit(
        self,
        operator: Operator,
        spec: KernelSpec,
        pointers: dict[int, Pointer],
        *,
        tasks: int = 1,
        tokens_per_task: int = 1,
        sync: bool = True,
    ) -> None:
        listed = tuple(pointers.get(i, NOTHING) for i in range(POINTERS_PER_STEP))
        rows = self.graph.values[operator.outputs[0]].rows
        self.calls.append(Call(spec, operator, rows, tasks, tokens_per_task, sync, listed))

    def value(self, name: str, column: int = 0) -> Pointer:
        """A value, from a column on."""
        base, first = self.place_of(name)
        offset = 4 * (first + column)
        return Pointer("logits", "", offset) if base in self.graph.outputs else Pointer("value", base, offset)

    def vector(self, name: str) -> Pointer:
        """A tensor that a kernel reads as it stands."""
        fmt = self.graph.weights[name].format
        if fmt != "F32":
            raise UnsupportedError(f"tensor {name}: vectors in {fmt} are not supported, only in F32")
        return Pointer("tensor", name)

    def format(self, tensor: str) -> str:
        """Block format of a tensor whose elements a kernel decodes."""
        name = self.graph.weights[tensor].format
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise UnsupportedError(f"tensor {tensor}: block format {name} is not supported (supported: {known})")
        return name


def input_array(name: str, offset: int = 0) -> Pointer:
    """One of the arrays that the host fills."""
    assert name in INPUTS
    return Pointer("input", name, offset)


OpT = TypeVar("OpT", bound=Op)
Lower = Callable[[Lowering, Operator, OpT], None]

_LOWERINGS: dict[type[Op], Callable[[Lowering, Operator], None]] = {}


def lowers(kind: type[OpT]) -> Callable[[Lower[OpT]], Lower[OpT]]:
    """Register the function that emits the calls of an operator type; it gets the operator and its attributes."""

    def register(function: Lower[OpT]) -> Lower[OpT]:
        def lower(low: Lowering, operator: Operator) -> None:
            assert isinstance(operator.op, kind)
            function(low, operator, operator.op)

        assert kind not in _LOWERINGS
        _LOWERINGS[kind] = lower
        return function

    return register
