"""A kernel of the processor by description, independent of the instruction set it is compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airkernels.cpu.isa import VectorIsa
from airschedules.spec import Spec

Program = Any
"""A TVM PrimFunc."""


@dataclass(frozen=True)
class KernelSpec(Spec):
    """Base: builds itself for an instruction set, under the schedule that the rules choose there."""

    @property
    def rate(self) -> str:
        """Name of the measured rate that prices it."""
        return self.op

    def build(self, isa: VectorIsa) -> Program:
        raise NotImplementedError

    def scratch_nbytes(self, isa: VectorIsa) -> int:
        """Scratch bytes a worker needs."""
        return 0

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        """The schedule in words, and why."""
        return "", ""
