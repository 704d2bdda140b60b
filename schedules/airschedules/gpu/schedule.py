"""A kernel of the device and how it is launched, before it is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airkernels.triton.build import Binary, Constant, compile_kernel
from airschedules.spec import Spec


@dataclass(frozen=True)
class DeviceSchedule:
    """A kernel with its constants, for one architecture.

    Attributes
    ----------
    kernel
        Function of `airkernels.triton`.
    types
        Of its arguments: pointers, then integers.
    constants
        Its other parameters.
    tiles
        What a program covers of each extent of its steps.
    warps, stages
        Warps of a program, depth of software pipelining.
    reason
        Why this configuration, for people.
    """

    kernel: Any
    types: tuple[str, ...]
    constants: Mapping[str, Constant]
    tiles: tuple[int, ...] = (1,)
    warps: int = 4
    stages: int = 1
    reason: str = ""

    def compile(self, arch: str) -> Binary:
        return compile_kernel(self.kernel, self.types, self.constants, arch, self.warps, self.stages)

    def __str__(self) -> str:
        shown = [f"{name.lower()} {self.constants[name]}" for name in _SHOWN if name in self.constants]
        return ", ".join([*shown, f"{self.warps} warp{'s'[: self.warps > 1]}"])


_SHOWN = ("TOKENS", "ROWS", "TILE", "COLUMNS", "DEPTH", "BLOCKS", "SPLITS")
"""Constants that say how a kernel is tiled."""


@dataclass(frozen=True)
class DeviceSpec(Spec):
    """Base of kernels of the device."""

    def schedule(self, arch: str) -> DeviceSchedule:
        """The configuration for an architecture."""
        raise NotImplementedError
