"""Reading memory, to measure it."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import read_probe
from airkernels.cpu.isa import VectorIsa
from airschedules.specs.kernel import KernelSpec, Program


@dataclass(frozen=True)
class ReadProbeSpec(KernelSpec):
    """Reading memory, for `airrun bench`; every plan has it under one name."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (read_probe.PIECE,)

    @property
    def symbol(self) -> str:
        return "air_read_probe"

    def build(self, isa: VectorIsa) -> Program:
        return read_probe.read_probe(self.symbol, isa)
