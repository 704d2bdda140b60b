"""Kernels of several residual streams, and of the statistics of rows."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.triton import streams
from airkernels.triton.build import Constants
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec
from airschedules.gpu.specs.rows import power, row_warps

_TILE = 256
"""Columns per program."""


@dataclass(frozen=True)
class CombineStreamsSpec(DeviceSpec):
    """A weighted sum of streams, whose strides are listed. Extents: rows, columns."""

    n: int
    first: int
    offset: float
    base_stride: int
    coefficient_stride: int
    strides: tuple[int, ...]
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, len(self.strides))

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N": self.n, "N_STREAMS": len(self.strides), "FIRST": self.first, "TILE": _TILE}
        constants |= {"OFFSET": self.offset, "BASE_STRIDE": self.base_stride, "OUT_STRIDE": self.out_stride}
        constants |= {"COEFFICIENT_STRIDE": self.coefficient_stride}
        constants |= {f"STRIDE_{j}": self.strides[j] if j < len(self.strides) else 0 for j in range(4)}
        return DeviceSchedule(streams.combine_streams, ("*fp32",) * 7, constants, (1, _TILE), 2)


@dataclass(frozen=True)
class MatchSizeSpec(DeviceSpec):
    """Rows scaled to the size of others. Extents: rows."""

    n: int
    least: float
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        x, target, out = self.strides
        constants: Constants = {"N": self.n, "LEAST": self.least, "WIDTH": power(self.n)}
        constants |= {"IN_STRIDE": x, "TARGET_STRIDE": target, "OUT_STRIDE": out}
        return DeviceSchedule(streams.match_size, ("*fp32",) * 3, constants, (1,), row_warps(self.n))


@dataclass(frozen=True)
class CutOffSpec(DeviceSpec):
    """What stands out of rows. Extents: rows."""

    n: int
    deviations: float
    in_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N": self.n, "DEVIATIONS": self.deviations, "WIDTH": power(self.n)}
        constants |= {"IN_STRIDE": self.in_stride, "OUT_STRIDE": self.out_stride}
        return DeviceSchedule(streams.cut_off, ("*fp32",) * 2, constants, (1,), row_warps(self.n))
