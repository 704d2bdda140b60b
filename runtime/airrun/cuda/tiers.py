"""Tiers: which matrices lie in the device's memory, which in pinned memory of the host, and which in their files only.

A token reads all matrices once, in order, over and over, as on a processor (`airrun.weights.residency`), and what to
keep is said by the same keep order. Here it is followed matrix by matrix, since kernels take them whole: first into the
device's memory, then into the host's. What is not on the device crosses the bus in every step, into a ring there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from airrun.cuda.pieces import LOAD_NBYTES, STREAM_NBYTES, matrix_span_nbytes, slot_nbytes_for
from airrun.plan.chunks import chunks_of
from airrun.plan.device import DevicePlan, matrix_uses
from airrun.plan.schema import Plan

UNIT = 256
"""Alignment of everything on the device, in bytes."""

LOAD_SLOTS = 10
"""Buffers that weights pass through while they are loaded, at most: as many on the device as in the host's memory. Each
has a thread, and more threads keep each other from the interpreter rather than the bus busy."""

STAGING_SLOTS = 3
"""Buffers on the device for what is streamed: one that arrives, one that is put into planes, one in reserve."""

HOST_SLOTS = 8
"""Pinned buffers that files are read into, ahead of the bus."""

_RING_MATRICES = 2
"""The ring holds so many of the largest matrix: one that is read while the next arrives."""

DEVICE, HOST, DISK, HOST_ROWS = "device", "host", "disk", "host_rows"
"""Tiers. 'host_rows': a table in the host's memory of which kernels read rows over the bus."""


@dataclass(frozen=True)
class Tiers:
    """Where every matrix lies.

    Attributes
    ----------
    places
        Tier of each of the device plan's weights.
    ring_nbytes
        Of the ring that others than 'device' ones pass through; 0 where nothing is streamed.
    slot_nbytes
        Of a buffer of raw bytes, on the device and in the host's memory.
    """

    plan: Plan
    device: DevicePlan
    places: tuple[str, ...]
    ring_nbytes: int
    slot_nbytes: int

    @property
    def streams(self) -> bool:
        """Whether matrices cross the bus in every step."""
        return self.ring_nbytes > 0

    @cached_property
    def streamed(self) -> tuple[int, ...]:
        """Matrices that cross the bus in every step, in the order of their use."""
        uses = matrix_uses(self.device.programs[0].steps)
        return tuple(use.weight for use in uses if self.places[use.weight] in (HOST, DISK))

    @property
    def reads(self) -> bool:
        """Whether files are read in every step."""
        return DISK in self.places

    def weights_in(self, *tiers: str) -> list[int]:
        """Numbers of the matrices of some tiers."""
        return [i for i, place in enumerate(self.places) if place in tiers]

    def nbytes(self, *tiers: str) -> int:
        """Bytes of the matrices of some tiers, in planes."""
        return sum(_whole(self.device.weights[i].nbytes) for i in self.weights_in(*tiers))

    def raw_nbytes(self, *tiers: str) -> int:
        """Bytes of them as they are read and copied: whole pages of their files."""
        return sum(self.spans[i] for i in self.weights_in(*tiers))

    @cached_property
    def spans(self) -> tuple[int, ...]:
        """Raw bytes of each matrix, as whole pages."""
        numbers = range(len(self.device.weights))
        return tuple(matrix_span_nbytes(self.plan, self.device, i, self.slot_nbytes) for i in numbers)

    @property
    def device_nbytes(self) -> int:
        """Of the device's memory: what is kept there, the ring, and what is needed to put things into it."""
        return self.nbytes(DEVICE) + self.ring_nbytes + self.staging_nbytes

    @property
    def host_nbytes(self) -> int:
        """Of the host's memory, pinned."""
        return self.raw_nbytes(HOST) + self.nbytes(HOST_ROWS) + self.buffers_nbytes

    @property
    def staging_nbytes(self) -> int:
        """Of the device's memory, for raw bytes: while loading, and afterwards if anything is streamed."""
        return (STAGING_SLOTS if self.streams else LOAD_SLOTS) * self.slot_nbytes

    @property
    def buffers_nbytes(self) -> int:
        """Of the host's memory, for raw bytes."""
        return (HOST_SLOTS if self.streams else LOAD_SLOTS) * self.slot_nbytes


def all_on_device(plan: Plan, device: DevicePlan) -> Tiers:
    """Nothing is streamed."""
    slot = slot_nbytes_for(plan, device, vectors_of(device), LOAD_NBYTES)
    return Tiers(plan, device, (DEVICE,) * len(device.weights), 0, slot)


def vectors_of(device: DevicePlan) -> list[int]:
    """Tensors of the plan that are read as they stand."""
    steps = [step for program in device.programs for step in program.steps]
    return sorted({o.index for step in steps for o in step.operands if o.space == "tensor"})


def bind_tiers(plan: Plan, device: DevicePlan, vram: int, ram: int) -> Tiers:
    """The tiers that take the fewest bytes over the bus, with `vram` bytes on the device and `ram` of the host's, both
    for matrices alone. `smallest` says whether there can be any.
    """
    whole = all_on_device(plan, device)
    if whole.device_nbytes <= vram and whole.host_nbytes <= ram:
        return whole
    bare = _bare(plan, device, ram)
    order = _keep_order(plan, device)
    found = [_kept(tiers, order, vram) for tiers in bare if tiers.device_nbytes <= vram]
    best = min(found, key=lambda tiers: tiers.nbytes(DISK))
    return _in_host_memory(best, order, ram)


def smallest(plan: Plan, device: DevicePlan, ram: int) -> int:
    """The fewest bytes on the device that `bind_tiers` can do with."""
    found = [all_on_device(plan, device), *_bare(plan, device, ram)]
    return min(tiers.device_nbytes for tiers in found if tiers.host_nbytes <= ram)


def _bare(plan: Plan, device: DevicePlan, ram: int) -> list[Tiers]:
    """Tiers with as little as possible on the device, one for each size of the largest matrix that is streamed: the
    ring need not be as large if those above it are kept. What is read twice in a pass is kept too."""
    uses = [use.weight for use in matrix_uses(device.programs[0].steps)]
    tables = {o.index for step in device.programs[0].steps for o in step.operands if o.space == "weight"} - set(uses)
    gathered = {
        o.index for step in device.programs[0].steps if step.phase == "embed" for o in step.operands
        if o.space == "weight"
    }  # fmt: skip
    movable = {weight for weight in uses if uses.count(weight) == 1} - gathered
    slot = slot_nbytes_for(plan, device, vectors_of(device), STREAM_NBYTES)
    room = ram - HOST_SLOTS * slot - sum(_whole(device.weights[i].nbytes) for i in tables)
    found = []
    for limit in sorted({device.weights[i].nbytes for i in movable}):
        places = [DISK if i in movable and w.nbytes <= limit else DEVICE for i, w in enumerate(device.weights)]
        for i in tables if room >= 0 else ():
            places[i] = HOST_ROWS
        found.append(Tiers(plan, device, tuple(places), _RING_MATRICES * _whole(limit), slot))
    return found


def _keep_order(plan: Plan, device: DevicePlan) -> list[int]:
    """Matrices, most worth keeping first: as the first of their chunks comes up in the plan's order."""
    weight_of = {part.tensor: i for i, weight in enumerate(plan.weights) for part in weight.parts}
    first: dict[int, int] = {}
    chunks = list(chunks_of(plan))
    for rank, number in enumerate(plan.keep_order):
        first.setdefault(chunks[number].weight, rank)
    ranks = [min(first.get(weight_of.get(part, -1), len(chunks)) for part in w.parts) for w in device.weights]
    return sorted(range(len(ranks)), key=ranks.__getitem__)


def _kept(bare: Tiers, order: Sequence[int], vram: int) -> Tiers:
    """As many matrices on the device as there is room for."""
    room, places = vram - bare.device_nbytes, list(bare.places)
    for i in order:
        nbytes = _whole(bare.device.weights[i].nbytes)
        if places[i] == DISK and nbytes <= room:
            places[i], room = DEVICE, room - nbytes
    return replace(bare, places=tuple(places))


def _in_host_memory(tiers: Tiers, order: Sequence[int], ram: int) -> Tiers:
    """As many of the others in the host's memory as there is room for."""
    room, places = ram - tiers.host_nbytes, list(tiers.places)
    for i in order:
        nbytes = tiers.spans[i]
        if places[i] == DISK and nbytes <= room:
            places[i], room = HOST, room - nbytes
    return replace(tiers, places=tuple(places))


def _whole(nbytes: int) -> int:
    return -(-nbytes // UNIT) * UNIT
