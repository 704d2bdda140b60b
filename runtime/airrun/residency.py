"""Residency: which chunks of the weights a memory budget keeps, and the ring through which the others stream.

A token uses all weights once, in order, over and over: whatever is kept saves its bytes in every pass, and any chunk is
worth as much as any other. So the plan's keep order is followed as far as memory goes; it spreads what is kept evenly
between what is streamed, so that reading goes on while kept weights are computed with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from airrun.plan.chunks import Chunk, chunks_of, is_bank
from airrun.plan.schema import Plan

PAGE = 4096
"""Reads past the page cache begin and end at multiples of this, in the file and in memory."""


class Segment(NamedTuple):
    """Neighbouring panels of a weight that are found in one place.

    Attributes
    ----------
    first_panel, n_panels
        Which panels.
    offset
        Where the first one is in the memory of kept weights; -1 if they are streamed.
    chunk
        Number of the chunk, if they are streamed.
    """

    first_panel: int
    n_panels: int
    offset: int
    chunk: int


@dataclass(frozen=True)
class Residency:
    """What is kept of the weights of a plan.

    Attributes
    ----------
    kept
        Offset of each chunk in the memory of kept weights, -1 if it is streamed; None if everything is kept.
    kept_nbytes
        Size of that memory.
    n_slots, slot_nbytes
        Buffers that chunks are streamed through; no slots where nothing is streamed.
    """

    plan: Plan
    kept: tuple[int, ...] | None
    kept_nbytes: int
    n_slots: int
    slot_nbytes: int

    @property
    def streams(self) -> bool:
        """Whether anything is streamed."""
        return self.kept is not None

    @property
    def ring_nbytes(self) -> int:
        return self.n_slots * self.slot_nbytes

    @cached_property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks of the plan."""
        return tuple(chunks_of(self.plan))

    @cached_property
    def places(self) -> Sequence[int]:
        """Offset of each chunk in the memory of kept weights, -1 if it is streamed."""
        if self.kept is not None:
            return self.kept
        plan, first = self.plan, list(_weight_offsets(self.plan))
        return [first[c.weight] + c.first_panel * plan.weights[c.weight].panel_nbytes for c in self.chunks]

    @cached_property
    def streamed_nbytes(self) -> int:
        """Bytes read from files in every pass, as they are read: whole pages."""
        if self.kept is None:
            return 0
        return sum(span_of(c)[1] for c, place in zip(self.chunks, self.kept, strict=True) if place < 0)

    def segments(self) -> list[list[Segment]]:
        """Segments of each weight, in order; what is kept side by side is one."""
        if self.kept is None:
            return [
                [Segment(0, weight.nbytes // weight.panel_nbytes, offset, -1)]
                for weight, offset in zip(self.plan.weights, _weight_offsets(self.plan), strict=True)
            ]
        found = []
        numbered = enumerate(zip(self.chunks, self.kept, strict=True))
        for index, group in groupby(numbered, key=lambda item: item[1][0].weight):
            found.append(list(_merged(group, self.plan.weights[index].panel_nbytes)))
        return found


def _merged(chunks: Iterator[tuple[int, tuple[Chunk, int]]], panel_nbytes: int) -> Iterator[Segment]:
    pending: Segment | None = None
    for number, (chunk, place) in chunks:
        if pending is not None and place >= 0 and place == pending.offset + pending.n_panels * panel_nbytes:
            pending = pending._replace(n_panels=pending.n_panels + chunk.n_panels)
            continue
        if pending is not None:
            yield pending
            pending = None
        if place < 0:
            yield Segment(chunk.first_panel, chunk.n_panels, -1, number)
        else:
            pending = Segment(chunk.first_panel, chunk.n_panels, place, -1)
    if pending is not None:
        yield pending


def span_of(chunk: Chunk) -> tuple[int, int]:
    """Offset and bytes of the whole pages of the file that hold a chunk."""
    first = chunk.offset // PAGE * PAGE
    return first, -(-(chunk.offset + chunk.nbytes) // PAGE) * PAGE - first


def resident(plan: Plan) -> Residency:
    """Everything is kept."""
    return Residency(plan, None, _weights_nbytes(plan), 0, 0)


def least_kept(plan: Plan, n_slots: int) -> Residency:
    """Everything is streamed through `n_slots` buffers, but for banks of experts: what they are read for is known too
    late to be read in order."""
    chunks = tuple(chunks_of(plan))
    kept = [is_bank(plan, plan.weights[chunk.weight]) for chunk in chunks]
    slot_nbytes = max((span_of(chunk)[1] for chunk, keeps in zip(chunks, kept, strict=True) if not keeps), default=0)
    return _placed(Residency(plan, (-1,) * len(chunks), 0, n_slots, slot_nbytes), kept)


def keep(least: Residency, room: int) -> Residency:
    """As much more is kept as fits `room` bytes."""
    plan, chunks = least.plan, least.chunks
    kept = [place >= 0 for place in least.places]
    for number in plan.keep_order:
        if kept[number]:
            continue
        room -= _panels_nbytes(plan, chunks[number])
        if room < 0:
            break
        kept[number] = True
    return _placed(least, kept)


def _placed(residency: Residency, kept: Sequence[bool]) -> Residency:
    """Chunks that are kept lie one after another."""
    places, at = [], 0
    for chunk, is_kept in zip(residency.chunks, kept, strict=True):
        places.append(at if is_kept else -1)
        at += _panels_nbytes(residency.plan, chunk) if is_kept else 0
    return replace(residency, kept=tuple(places), kept_nbytes=at)


def _panels_nbytes(plan: Plan, chunk: Chunk) -> int:
    return chunk.n_panels * plan.weights[chunk.weight].panel_nbytes


def _weight_offsets(plan: Plan) -> Iterator[int]:
    """Where each weight begins when all are kept: at a page, so that no two share one."""
    at = 0
    for weight in plan.weights:
        yield at
        at += _whole_pages(weight.nbytes)


def _weights_nbytes(plan: Plan) -> int:
    return sum(_whole_pages(weight.nbytes) for weight in plan.weights)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE
