"""Kernels that work element by element on one or two values."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.triton import elementwise
from airkernels.triton.build import Constants
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec
from airschedules.gpu.specs.rows import RowKind, row_warps

_TILE = 256
"""Columns per program: small enough to share one row between multiprocessors."""


@dataclass(frozen=True)
class FunctionOf:
    """A function of elements by name, with its parameters (`airkernels.triton.functions`)."""

    kind: str
    parameters: tuple[float, ...] = ()

    @property
    def constants(self) -> Constants:
        given = (*self.parameters, 0.0, 0.0, 0.0, 0.0)
        return {"FUNCTION": self.kind, "A": given[0], "B": given[1], "C": given[2], "D": given[3]}


@dataclass(frozen=True)
class ActivationSpec(DeviceSpec):
    """A function of every element. Extents: rows, blocks of the tile."""

    out: RowKind
    function: FunctionOf
    in_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(_TILE)
        constants: Constants = {**self.function.constants, "N": self.out.n, "IN_STRIDE": self.in_stride, **stored}
        blocks = int(stored["BLOCKS"])
        warps = row_warps(blocks * self.out.tile_block)
        return DeviceSchedule(elementwise.activation, ("*fp32", "*u32"), constants, (1, blocks), warps)


@dataclass(frozen=True)
class GatedSpec(DeviceSpec):
    """A function of the gate times the other half. Extents: rows, blocks of the tile."""

    out: RowKind
    function: FunctionOf
    gate_stride: int
    up_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(_TILE)
        constants: Constants = {**self.function.constants, "N": self.out.n, **stored}
        constants |= {"GATE_STRIDE": self.gate_stride, "UP_STRIDE": self.up_stride}
        blocks = int(stored["BLOCKS"])
        warps = row_warps(blocks * self.out.tile_block)
        return DeviceSchedule(elementwise.gated, ("*fp32", "*fp32", "*u32"), constants, (1, blocks), warps)


@dataclass(frozen=True)
class PairSpec(DeviceSpec):
    """Base of kernels of two values, of which the second may be a vector (stride 0). Extents: rows, columns."""

    n: int
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def _constants(self) -> Constants:
        a, b, out = self.strides
        return {"N": self.n, "A_STRIDE": a, "B_STRIDE": b, "OUT_STRIDE": out, "TILE": _TILE}


@dataclass(frozen=True)
class AddSpec(PairSpec):
    """``a + scale * b``."""

    scale: float = 1.0

    def schedule(self, arch: str) -> DeviceSchedule:
        constants = {**self._constants, "SCALE": self.scale}
        return DeviceSchedule(elementwise.add, ("*fp32",) * 3, constants, (1, _TILE), 2)


@dataclass(frozen=True)
class MultiplySpec(PairSpec):
    """``a * b``, an element of b for every `group` of a."""

    group: int = 1

    def schedule(self, arch: str) -> DeviceSchedule:
        constants = {**self._constants, "GROUP": self.group}
        return DeviceSchedule(elementwise.multiply, ("*fp32",) * 3, constants, (1, _TILE), 2)


@dataclass(frozen=True)
class PositionScaleSpec(DeviceSpec):
    """Rows times a factor of their place. Extents: rows, columns."""

    n: int
    period: int
    strength: float
    in_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N": self.n, "PERIOD": self.period, "STRENGTH": self.strength, "TILE": _TILE}
        constants |= {"IN_STRIDE": self.in_stride, "OUT_STRIDE": self.out_stride}
        return DeviceSchedule(elementwise.scale_by_position, ("*fp32", "*i32", "*fp32"), constants, (1, _TILE), 2)
