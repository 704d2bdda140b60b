"""Stream plan: how tensors are read, in which pieces, and what to keep first when memory is short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aircompile.lowering import Lowering, Phase
from aircompile.operators import ExpertMatMul
from airrun.machine.profile import Disk
from airrun.plan.schema import Stream

_CHUNK_NBYTES = 4 << 20
_READERS = 2
"""At least: while one thread wakes up after a read, the other's keeps the disk busy."""

_LEAST_CHUNK_NBYTES = 1 << 20
"""A chunk is read as whole pages, and the outer two of them twice: of smaller chunks, that is a larger share."""

_SLOTS_AHEAD = 3
"""Buffers beside those that readers fill: one that is being used, and two in reserve for what a token does between
products and between passes."""


def accesses(lowered: Sequence[tuple[Phase, Lowering]], names: Iterable[str]) -> dict[str, str]:
    """How each tensor is read: 'row_gather' by a gather, 'experts' by products with chosen matrices of it, 'pinned'
    where a kernel reads it whole, 'weight' otherwise."""
    found = dict.fromkeys(names, "weight")
    for _phase, low in lowered:
        for call in low.calls:
            if isinstance(call.operator.op, ExpertMatMul):
                found[call.operator.op.weight] = "experts"
            for pointer in call.pointers:
                if pointer.space == "tensor":
                    found[pointer.name] = "row_gather" if call.spec.op == "gather" else "pinned"
    return found


def chunk_panels(n_panels: int, panel_nbytes: int, disk: Disk) -> int:
    """Panels per chunk: equal chunks of about what the disk likes to be read by.

    Parameters
    ----------
    n_panels
        Panels of the largest part of a weight.
    panel_nbytes
        Bytes of a panel.
    disk
        Of the target; of one that was not measured nothing is known.
    """
    wanted = max(disk.chunk or _CHUNK_NBYTES, _LEAST_CHUNK_NBYTES)
    n_chunks = max(1, -(-n_panels * panel_nbytes // wanted))
    return -(-n_panels // n_chunks)


def stream(disk: Disk) -> Stream:
    """Readers and buffers for a disk."""
    readers = max(disk.readers, _READERS)
    return Stream(readers, readers + _SLOTS_AHEAD)


def keep_order(n_chunks: int) -> tuple[int, ...]:
    """The order in which chunks are worth keeping in memory: a permutation of their numbers.

    A token uses all chunks once, in order, over and over, so none is used sooner than another and only spacing matters:
    kept chunks should stand evenly between streamed ones, so that reading never pauses while kept ones are computed
    with. Of the bit-reversed order (van der Corput) any beginning is spread evenly.
    """
    bits = max(n_chunks - 1, 1).bit_length()
    return tuple(sorted(range(n_chunks), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2)))
