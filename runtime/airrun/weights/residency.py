"""Residency: which chunks of the weights a memory budget keeps, and the ring through which the others stream.

A token uses all weights once, in order, over and over: whatever is kept saves its bytes in every pass, and any chunk is
worth as much as any other. So the plan's keep order is followed as far as memory goes; it spreads what is kept evenly
between what is streamed, so that reading goes on while kept weights are computed with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from airrun.plan.chunks import Chunk, chunks_of, is_bank
from airrun.plan.schema import Plan
from airrun.records import record
from airrun.weights.expert_banks import banks_of, chosen_nbytes, least_slots, slot_nbytes

PAGE = 4096
"""Reads past the page cache begin and end at multiples of this, in the file and in memory: every disk and file system
takes that, and pages of memory, of 4 to 64 KiB, are multiples of it. What a run reads so depends on the plan alone."""


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


@record
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
    expert_slots, expert_slot_nbytes
        Room for matrices of experts that are not kept, which are read when they are chosen.
    """

    plan: Plan
    kept: tuple[int, ...] | None
    kept_nbytes: int
    n_slots: int
    slot_nbytes: int
    expert_slots: int = 0
    expert_slot_nbytes: int = 0

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
        """Offset of each chunk in the memory of kept weights, -1 if it is not there."""
        if self.kept is not None:
            return self.kept
        plan, first = self.plan, list(_weight_offsets(self.plan))
        return [first[c.weight] + c.first_panel * plan.weights[c.weight].panel_nbytes for c in self.chunks]

    @cached_property
    def streamed_nbytes(self) -> int:
        """Bytes read from files in every pass, as they are read: whole pages."""
        if self.kept is None:
            return 0
        absent = (c for c, place in zip(self.chunks, self.kept, strict=True) if place < 0)
        return sum(span_of(c)[1] for c in absent if not is_bank(self.plan, self.plan.weights[c.weight]))

    @cached_property
    def expert_nbytes(self) -> float:
        """Bytes of experts that a token can be expected to read if it may choose any as likely as another."""
        if not self.expert_slots:
            return 0.0
        total = sum(bank.n_experts for bank in banks_of(self.plan))
        return chosen_nbytes(self.plan) * max(0.0, 1.0 - self.expert_slots / total)

    def segments(self) -> list[list[Segment]]:
        """Segments of each weight, in order; what is kept side by side is one, and experts in a cache have none."""
        if self.kept is None:
            return [
                [Segment(0, weight.nbytes // weight.panel_nbytes, offset, -1)]
                for weight, offset in zip(self.plan.weights, _weight_offsets(self.plan), strict=True)
            ]
        found: list[list[Segment]] = []
        numbered = enumerate(zip(self.chunks, self.kept, strict=True))
        for index, group in groupby(numbered, key=lambda item: item[1][0].weight):
            if is_bank(self.plan, self.plan.weights[index]):
                found.append([])
                continue
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


def nothing_kept(plan: Plan, n_slots: int) -> Residency:
    """Everything is streamed through `n_slots` buffers; of experts there is room for as many as a step needs."""
    chunks = tuple(chunks_of(plan))
    streamed = (span_of(chunk)[1] for chunk in chunks if not is_bank(plan, plan.weights[chunk.weight]))
    expert_nbytes = slot_nbytes(banks_of(plan))
    return Residency(plan, (-1,) * len(chunks), 0, n_slots, max(streamed, default=0), least_slots(plan), expert_nbytes)


def keep(bare: Residency, room: int) -> Residency:
    """As much is kept as fits `room` bytes, where nothing is kept so far.

    What every token uses comes before experts, of which a token uses some.
    """
    plan, chunks = bare.plan, bare.chunks
    kept = [False] * len(chunks)
    full = False
    for number in plan.keep_order:
        nbytes = _panels_nbytes(plan, chunks[number])
        if is_bank(plan, plan.weights[chunks[number].weight]):
            continue
        full = nbytes > room
        if full:
            break
        room -= nbytes
        kept[number] = True
    if bare.expert_slots and not full:
        most = sum(bank.n_experts for bank in banks_of(plan))
        bare = replace(bare, expert_slots=min(most, bare.expert_slots + room // bare.expert_slot_nbytes))
    return _placed(bare, kept)


def matrix_span_nbytes(plan: Plan) -> int:
    """Bytes of whole pages that hold any matrix of a bank, wherever it begins."""
    return max((bank.matrix_nbytes // PAGE + 2 for bank in banks_of(plan)), default=0) * PAGE


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
