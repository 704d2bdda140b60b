"""Reading memory and nothing else: the ceiling that a decode step is measured against."""

from __future__ import annotations

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Kernel, Region, byte_offset, cast, define, local, loop, zeros

PIECE = 1 << 16
"""Bytes per task."""

_CHAINS = 4


def read_probe(name: str, isa: VectorIsa) -> tirx.PrimFunc:
    """Add up memory as 32-bit integers; p0 memory, p1 sums of all workers (64 bytes each); tasks are pieces."""
    lanes = isa.lanes

    def body(k: Kernel) -> None:
        sums = local("int32", _CHAINS * lanes)
        for chain in range(_CHAINS):
            sums.store(chain * lanes, zeros("int32", lanes))
        with loop(k.end, k.begin) as task:
            piece = Region(byte_offset(k.pointers[0], cast(task, "int64") * PIECE), "int32")
            with loop(PIECE // (4 * _CHAINS * lanes)) as i:
                for chain in range(_CHAINS):
                    at = chain * lanes
                    sums.store(at, sums.load(at, lanes) + piece.load(i * (_CHAINS * lanes) + at, lanes))
        total = sums.load(0, lanes)
        for chain in range(1, _CHAINS):
            total = total + sums.load(chain * lanes, lanes)
        Region(byte_offset(k.pointers[1], cast(k.worker, "int64") * 64), "int32").store(0, total)

    return define(name, body)
