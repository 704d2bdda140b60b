"""What lowering for a GPU makes: launches whose pointers say what they point to, and the matrices they read."""

from __future__ import annotations

from dataclasses import dataclass

from aircompile.graph import Operator
from aircompile.lowering import Pointer
from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.layout import MatrixLayout
from airrun.plan.device import MAX_SMALL
from airschedules.gpu.schedule import DeviceSpec
from airschedules.gpu.specs import PackSpec

DECODE, SMALL, PREFILL = "decode", "small", "prefill"

MAX_TOKENS = {DECODE: 1, SMALL: MAX_SMALL, PREFILL: 2048}
"""Programs, and tokens of their largest batches."""

TOKENS_AT_ONCE = {DECODE: 1, SMALL: 4, PREFILL: 1}
"""Rows of activations that a product without tensor cores multiplies a matrix with at a time."""


@dataclass(frozen=True)
class Axis:
    """An extent of a launch: axis of the grid, and what is counted along it (`airrun.plan.device.Extent`)."""

    axis: int
    count: str
    n: int


@dataclass(frozen=True)
class DeviceCall:
    """A launch before addresses."""

    spec: DeviceSpec
    operator: Operator
    extents: tuple[Axis, ...]
    pointers: tuple[Pointer, ...]
    integers: tuple[str, ...] = ()

    sync = True
    """Launches run one after the other (`aircompile.memory_plan`)."""


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix in device memory, of one or several tensors of one format."""

    tensors: tuple[str, ...]
    layer: int
    fmt: str
    n_rows: int
    n_cols: int

    @property
    def name(self) -> str:
        return "+".join(self.tensors)

    @property
    def layout(self) -> MatrixLayout:
        return MatrixLayout(FORMATS[self.fmt], self.n_rows, self.n_cols)

    @property
    def pack(self) -> PackSpec | None:
        """The kernel that makes it of raw rows; None where it is their copy."""
        return PackSpec(self.fmt, self.n_cols) if isinstance(FORMATS[self.fmt], BlockFormat) else None
