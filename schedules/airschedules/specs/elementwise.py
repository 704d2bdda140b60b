"""What works element by element."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import elementwise
from airkernels.cpu.elementwise import RowShape
from airkernels.cpu.isa import VectorIsa
from airschedules.specs.kernel import KernelSpec, Program


@dataclass(frozen=True)
class ElementwiseSpec(KernelSpec):
    """Base of what works element by element."""

    row: RowShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.row.n,)

    @property
    def rate(self) -> str:
        return "gated"


@dataclass(frozen=True)
class GatedSpec(ElementwiseSpec):
    """A function of the gate times the other half; see `functions.gate`."""

    kind: str
    parameters: tuple[float, ...]

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.gated(self.symbol, isa, self.row, self.kind, self.parameters)


@dataclass(frozen=True)
class ActivationSpec(ElementwiseSpec):
    """A function of each element; see `functions.apply`."""

    kind: str
    parameters: tuple[float, ...]

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.activation(self.symbol, isa, self.row, self.kind, self.parameters)


@dataclass(frozen=True)
class AddSpec(ElementwiseSpec):
    """a + scale * b."""

    scale: float

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.add(self.symbol, isa, self.row, self.scale)


@dataclass(frozen=True)
class MultiplySpec(ElementwiseSpec):
    """a * b, where every element of b stands for `group` columns."""

    group: int

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.multiply(self.symbol, isa, self.row, self.group)


@dataclass(frozen=True)
class PositionScaleSpec(ElementwiseSpec):
    """Rows times a factor that grows with their position."""

    period: int
    strength: float

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.scale_by_position(self.symbol, isa, self.row, self.period, self.strength)


@dataclass(frozen=True)
class JoinSpec(ElementwiseSpec):
    """Columns of one or two inputs side by side; so many rows of the result have the same row of an input."""

    widths: tuple[int, ...]
    slots: tuple[int, ...]

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.join(self.symbol, isa, self.row, self.widths, self.slots)
