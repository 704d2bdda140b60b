"""Kernels over equal groups of columns, by description."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import groups
from airkernels.cpu.isa import VectorIsa
from airschedules.specs.kernel import KernelSpec, Program


@dataclass(frozen=True)
class GroupDotSpec(KernelSpec):
    """Dot products of equal groups of columns; floats between rows of both inputs and the output."""

    n: int
    groups: int
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, self.groups)

    def build(self, isa: VectorIsa) -> Program:
        return groups.group_dot(self.symbol, isa, self.n, self.groups, self.strides)


@dataclass(frozen=True)
class GroupSliceSpec(KernelSpec):
    """Copying columns of equal groups of `size`; floats between rows of input and output."""

    groups: int
    size: int
    first: int
    width: int
    strides: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.groups * self.width,)

    def build(self, isa: VectorIsa) -> Program:
        part = (self.size, self.first, self.width)
        return groups.group_slice(self.symbol, isa, self.groups, part, self.strides)
