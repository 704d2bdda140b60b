"""Several streams of one residual."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import streams
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.streams import CombineShape
from airschedules.specs.kernel import KernelSpec, Program


@dataclass(frozen=True)
class CombineSpec(KernelSpec):
    """A sum of streams by coefficients of the row."""

    combine: CombineShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.combine.n,)

    @property
    def rate(self) -> str:
        return "gated"

    def build(self, isa: VectorIsa) -> Program:
        return streams.combine(self.symbol, isa, self.combine)


@dataclass(frozen=True)
class MatchSizeSpec(KernelSpec):
    """Rows scaled to the size of others."""

    n: int
    in_stride: int
    target_stride: int
    out_stride: int
    least: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def rate(self) -> str:
        return "norm"

    def build(self, isa: VectorIsa) -> Program:
        strides = (self.in_stride, self.target_stride, self.out_stride)
        return streams.match_size(self.symbol, isa, self.n, *strides, self.least)


@dataclass(frozen=True)
class CutOffSpec(KernelSpec):
    """What lies some deviations above the mean of its row."""

    n: int
    in_stride: int
    out_stride: int
    deviations: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def rate(self) -> str:
        return "norm"

    def build(self, isa: VectorIsa) -> Program:
        return streams.cut_off(self.symbol, isa, self.n, self.in_stride, self.out_stride, self.deviations)
