"""How matrices are carried to the device: their raw bytes in pieces, and pieces in transfers of tens of megabytes.

A transfer fills a slot of host memory with whole pages of weight files and goes over the bus as it is; its pieces are
put into planes on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from airrun.plan.blocks import BLOCKS
from airrun.plan.device import DevicePlan
from airrun.plan.schema import Plan
from airrun.weights.residency import PAGE

STREAM_NBYTES, LOAD_NBYTES = 32 << 20, 8 << 20
"""Most bytes of a transfer: the bus reaches its speed from 16 MiB on; loading takes less, so that what was just read is
still in the processor's cache when it is copied, but not so little that threads wait for the interpreter."""


class Piece(NamedTuple):
    """Neighbouring raw rows: where they are, where they go, and which of the weight's rows the first becomes.

    Attributes
    ----------
    weight
        Of the device plan; -1 for vectors, which are copied to `target`.
    target
        Address on the device of the whole matrix.
    file, offset, nbytes
        The rows in their file.
    at
        Where they begin in the slot of the transfer.
    visit, ends
        Number of the matrix in the order of use, and whether these are its last rows.
    """

    weight: int
    target: int
    file: int
    offset: int
    nbytes: int
    first_row: int
    n_rows: int
    at: int
    visit: int
    ends: bool

    @property
    def span(self) -> tuple[int, int, int]:
        """Of the file, first byte and number of bytes of whole pages; and where those go in the slot."""
        first = self.offset // PAGE * PAGE
        nbytes = -(-(self.offset + self.nbytes) // PAGE) * PAGE - first
        return first, nbytes, self.at - (self.offset - first)


@dataclass(frozen=True)
class Transfer:
    """Pieces that cross the bus together, and bytes of their slot in use."""

    pieces: tuple[Piece, ...]
    nbytes: int


class Rows(NamedTuple):
    """All rows of a matrix or vector to be carried: parts as (file, offset, bytes), and bytes of a row."""

    weight: int
    target: int
    parts: tuple[tuple[int, int, int], ...]
    row_nbytes: int


def rows_of_weight(plan: Plan, device: DevicePlan, number: int, target: int) -> Rows:
    """What a matrix is made of."""
    weight = device.weights[number]
    tensors = [plan.tensors[part] for part in weight.parts]
    parts = tuple((tensor.file, tensor.offset, tensor.nbytes) for tensor in tensors)
    return Rows(number, target, parts, BLOCKS[weight.format].row_bytes(weight.n_cols))


def rows_of_tensor(plan: Plan, number: int, target: int) -> Rows:
    """A vector, as one row."""
    tensor = plan.tensors[number]
    return Rows(-1, target, ((tensor.file, tensor.offset, tensor.nbytes),), tensor.nbytes)


def slot_nbytes_for(plan: Plan, device: DevicePlan, vectors: Iterable[int], most: int) -> int:
    """Bytes of a slot: `most`, less if no matrix is so large, but at least what any row and vector takes."""
    rows = [rows_of_weight(plan, device, number, 0) for number in range(len(device.weights))]
    rows += [rows_of_tensor(plan, number, 0) for number in vectors]
    least = max(each.row_nbytes for each in rows)
    largest = max(nbytes for each in rows for _file, _offset, nbytes in each.parts)
    return -(-min(max(most, least), largest) // PAGE) * PAGE + 2 * PAGE


def matrix_span_nbytes(plan: Plan, device: DevicePlan, number: int, slot_nbytes: int) -> int:
    """Bytes of the slots that a matrix fills alone."""
    return sum(piece.span[1] for piece in _pieces(0, rows_of_weight(plan, device, number, 0), slot_nbytes))


def transfers_of(
    rows: Sequence[Rows],
    slot_nbytes: int,
    together: Callable[[int, int], bool] = lambda first, visit: True,
) -> list[Transfer]:
    """Pieces of all rows in order, in as few transfers as they fit.

    Parameters
    ----------
    together
        Whether rows may be in one transfer that begins with others; both by number.
    """
    found: list[Transfer] = []
    pending: list[Piece] = []
    used = 0
    for visit, each in enumerate(rows):
        for piece in _pieces(visit, each, slot_nbytes):
            nbytes = piece.span[1]
            if pending and (used + nbytes > slot_nbytes or not together(pending[0].visit, visit)):
                found.append(Transfer(tuple(pending), used))
                pending, used = [], 0
            pending.append(piece._replace(at=used + piece.offset % PAGE))
            used += nbytes
    if pending:
        found.append(Transfer(tuple(pending), used))
    return found


def _pieces(visit: int, rows: Rows, slot_nbytes: int) -> Iterator[Piece]:
    """Rows cut at what fits a slot in whole pages; a row is never cut."""
    step = max((slot_nbytes - 2 * PAGE) // rows.row_nbytes, 1)
    row = 0
    for number, (file, offset, nbytes) in enumerate(rows.parts):
        n_rows = nbytes // rows.row_nbytes
        for first in range(0, n_rows, step):
            n = min(step, n_rows - first)
            begin = offset + first * rows.row_nbytes
            ends = number == len(rows.parts) - 1 and first + n == n_rows
            yield Piece(
                rows.weight, rows.target, file, begin, n * rows.row_nbytes, row + first, n, begin % PAGE, visit, ends
            )
        row += n_rows


@dataclass(frozen=True)
class Ring:
    """Where streamed matrices are put, one after the other, from the start in every pass.

    Attributes
    ----------
    offsets
        Of each matrix, in the order of use.
    after
        The one that must have been used before, -1 if there is none: what lay in its place.
    """

    offsets: tuple[int, ...]
    after: tuple[int, ...]


def ring_of(sizes: Sequence[int], nbytes: int, unit: int) -> Ring:
    """Place matrices of `sizes` bytes in a ring of `nbytes`, at multiples of `unit`."""
    offsets: list[int] = []
    after: list[int] = []
    at = 0
    for i, size in enumerate(sizes):
        assert size <= nbytes
        if at + size > nbytes:
            at = 0
        over = [j for j in range(i) if offsets[j] < at + size and at < offsets[j] + sizes[j]]
        # whatever is used after it was used later
        after.append(max([*over, *after[-1:]], default=-1))
        offsets.append(at)
        at = -(-(at + size) // unit) * unit
    return Ring(tuple(offsets), tuple(after))
