"""Weights of a run: loaded where they stay, and carried to the device in every step where they do not."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from airrun.cuda.driver import Device
from airrun.cuda.feed import Feed
from airrun.cuda.lanes import load, loaders
from airrun.cuda.pieces import (
    LOAD_NBYTES,
    Ring,
    ring_of,
    rows_of_tensor,
    rows_of_weight,
    slot_nbytes_for,
    transfers_of,
)
from airrun.cuda.planes import Planes
from airrun.cuda.reading import HostStore, Reader, Slots
from airrun.cuda.tiers import DEVICE, DISK, HOST, HOST_ROWS, HOST_SLOTS, LOAD_SLOTS, UNIT, Tiers, vectors_of
from airrun.plan.device import DevicePlan
from airrun.plan.schema import Plan
from airrun.weights.files import LoadMode, WeightFiles

if TYPE_CHECKING:
    from airrun.cuda.programs import BoundProgram, Kernel


def loading_slots(plan: Plan, device: DevicePlan) -> Slots:
    """Memory that everything is read into while loading. Nothing of the device is needed for it yet."""
    nbytes = slot_nbytes_for(plan, device, vectors_of(device), LOAD_NBYTES)
    read = sum(plan.tensors[part].nbytes for weight in device.weights for part in weight.parts)
    return Slots(min(LOAD_SLOTS, -(-read // nbytes) + 1), nbytes)


class DeviceWeights:
    """Addresses of matrices and vectors, and how they get there.

    Attributes
    ----------
    addresses
        Of each of the device plan's weights: where it stays, or its place in the ring.
    tensors
        Addresses of the vectors that programs read, by number of the tensor.
    reads
        Whether files are read in every step.
    streams
        Whether matrices cross the bus in every step.
    nbytes_read
        From files in steps so far.
    """

    def __init__(self, tiers: Tiers, gpu: Device, files: WeightFiles) -> None:
        plan, device = tiers.plan, tiers.device
        self._tiers, self._gpu, self._files = tiers, gpu, files
        self.reads, self.streams, self.nbytes_read = tiers.reads, tiers.streams, 0
        streamed = [device.weights[i] for i in tiers.streamed]
        self._ring: Ring = ring_of([weight.nbytes for weight in streamed], tiers.ring_nbytes, UNIT)
        base = gpu.allocate(tiers.ring_nbytes) if streamed else 0
        rows = {i: gpu.allocate_pinned(device.weights[i].nbytes) for i in tiers.weights_in(HOST_ROWS)}
        self.addresses = [0] * len(device.weights)
        for i, offset in zip(tiers.streamed, self._ring.offsets, strict=True):
            self.addresses[i] = base + offset
        for i, memory in rows.items():
            self.addresses[i] = ctypes.addressof(memory)
        kept, vectors = tiers.weights_in(DEVICE), vectors_of(device)
        sizes = [device.weights[i].nbytes for i in kept] + [plan.tensors[i].nbytes for i in vectors]
        places = _one_after_another(gpu, sizes)
        for i in kept:
            self.addresses[i] = next(places)
        self.tensors = dict(zip(vectors, places, strict=True))

    def load(self, kernels: Sequence[Kernel], slots: Slots, mode: LoadMode) -> None:
        """Read everything that stays in memory, by way of the slots; returns when it is there.

        Raises
        ------
        WeightFileError
            A file that cannot be read or is shorter than it was.
        """
        tiers, gpu = self._tiers, self._gpu
        kept = tiers.weights_in(DEVICE, HOST_ROWS)
        rows = [rows_of_tensor(tiers.plan, i, address) for i, address in self.tensors.items()]
        rows += [rows_of_weight(tiers.plan, tiers.device, i, self.addresses[i]) for i in kept]
        planes = Planes(gpu, tiers.device, kernels)
        load(gpu, self._files, transfers_of(rows, slots.nbytes), slots, tiers.staging_nbytes, planes.place)
        if self.streams:
            self._feed = Feed(gpu, planes, tiers.slot_nbytes)
            self._prepare_stream(mode)

    def _prepare_stream(self, mode: LoadMode) -> None:
        tiers, gpu, ring = self._tiers, self._gpu, self._ring
        rows = [rows_of_weight(tiers.plan, tiers.device, i, self.addresses[i]) for i in tiers.streamed]
        places = [tiers.places[i] for i in tiers.streamed]

        def together(first: int, visit: int) -> bool:
            # what lies in the way of a later one must not be waiting for the same transfer
            return places[first] == places[visit] and ring.after[visit] < first

        self._transfers = transfers_of(rows, tiers.slot_nbytes, together)
        self._after = [max(ring.after[piece.visit] for piece in t.pieces) for t in self._transfers]
        self._ready = [gpu.event() for _ in rows]
        self._used = [gpu.event() for _ in rows]
        self._ways = {visit: self._used[after] for visit, after in enumerate(ring.after) if after >= 0}
        tier = [places[transfer.pieces[0].visit] for transfer in self._transfers]
        stay = [transfer for transfer, place in zip(self._transfers, tier, strict=True) if place == HOST]
        read = [transfer for transfer, place in zip(self._transfers, tier, strict=True) if place == DISK]
        store = HostStore(gpu, stay)
        store.load(self._files, self._files.descriptors, loaders())
        self._store = store
        addresses = iter(store.addresses)
        self._sources = [next(addresses) if place == HOST else 0 for place in tier]
        self._reader: Reader | None = None
        if read:
            self._files.open_streams(mode)
            threads = max(tiers.plan.stream.readers, 2)
            streams = self._files.streams
            slots = Slots(HOST_SLOTS, tiers.slot_nbytes)
            self._reader = Reader(gpu, self._files, streams, read, slots, threads)

    def run(
        self, program: BoundProgram, n_tokens: int, n_outputs: int, first: int = 0, last: int | None = None
    ) -> None:
        """Start steps [first, last) of a program in stream order, and bring what they need.

        Raises
        ------
        WeightFileError
            A weight file cannot be read, or was changed: nothing that was computed may be used.
        """
        last = len(program.steps) if last is None else last
        if not self.streams:
            program.launch(n_tokens, n_outputs, first, last)
            return
        if self._reader is not None:
            self._files.check()
            self._reader.rewind()
        gpu, done, sent = self._gpu, first, 0
        streamed = set(self._tiers.streamed)
        uses = [use for use in program.uses if use.weight in streamed]
        self._feed.begin()
        sent = self._send(sent, -1)
        for visit, use in enumerate(uses):
            program.launch(n_tokens, n_outputs, done, min(use.first, last))
            gpu.follow(self._ready[visit])
            program.launch(n_tokens, n_outputs, use.first, min(use.last + 1, last), apart=True)
            gpu.record(self._used[visit])
            done = use.last + 1
            sent = self._send(sent, visit)
        program.launch(n_tokens, n_outputs, done, last)

    def _send(self, sent: int, used: int) -> int:
        """Send further transfers, as far as the matrices up to visit `used` allow; how many are sent then."""
        while sent < len(self._transfers) and self._after[sent] <= used:
            source: Any = self._sources[sent]
            if source:
                self._feed.send(self._transfers[sent], source, self._ways, self._ready)
            else:
                assert self._reader is not None
                self._feed.send(self._transfers[sent], self._reader.take(), self._ways, self._ready)
                self.nbytes_read += self._transfers[sent].nbytes
                self._reader.give(self._feed.copies)
            sent += 1
        return sent

    def close(self) -> None:
        """End the threads that read; idempotent."""
        if self.streams and self._reader is not None:
            self._reader.close()
            self._reader = None


def _one_after_another(gpu: Device, sizes: Sequence[int]) -> Iterator[int]:
    """Addresses of new memory of some sizes: one allocation, as each takes the driver a while."""
    starts = [0, *accumulate(-(-nbytes // UNIT) * UNIT for nbytes in sizes)]
    base = gpu.allocate(starts[-1])
    return iter([base + start for start in starts[:-1]])
