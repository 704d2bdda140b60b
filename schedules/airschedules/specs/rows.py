"""Rows gathered, normed, rounded and selected."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import norms, rows
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.norms import NormShape
from airkernels.formats import FORMATS
from airschedules.specs.kernel import KernelSpec, Program


@dataclass(frozen=True)
class GatherSpec(KernelSpec):
    """Rows of an embedding table."""

    weights: str
    n: int
    out_stride: int

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        return rows.gather_rows(self.symbol, isa, FORMATS[self.weights], self.n, self.out_stride)


@dataclass(frozen=True)
class NormSpec(KernelSpec):
    """A norm of rows or of groups of their columns."""

    norm: NormShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.norm.n,)

    def build(self, isa: VectorIsa) -> Program:
        return norms.norm(self.symbol, isa, self.norm)


@dataclass(frozen=True)
class QuantizeSpec(KernelSpec):
    """Rounding rows to bytes."""

    n: int
    in_stride: int
    digits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        return rows.quantize_rows(self.symbol, isa, self.n, self.in_stride, self.digits)


@dataclass(frozen=True)
class SelectSpec(KernelSpec):
    """Copying the output rows of a batch."""

    n: int
    in_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        return rows.select_rows(self.symbol, isa, self.n, self.in_stride, self.out_stride)
