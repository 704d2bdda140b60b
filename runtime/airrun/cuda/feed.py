"""The way of raw bytes to the device: over the bus in one stream, into planes in another, beside what is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from airrun.cuda.driver import Device
from airrun.cuda.pieces import Transfer
from airrun.cuda.planes import Planes
from airrun.cuda.tiers import STAGING_SLOTS


class _Slot(NamedTuple):
    """Memory on the device for the bytes of a transfer, and when they have arrived and are needed no more."""

    address: int
    arrived: Any
    free: Any


class Feed:
    """Carries transfers, one after the other.

    Attributes
    ----------
    copies
        The stream that goes over the bus.
    """

    def __init__(self, gpu: Device, planes: Planes, slot_nbytes: int) -> None:
        self._gpu, self._planes = gpu, planes
        self.copies, self._packs = gpu.new_stream(), gpu.new_stream()
        self._slots = [_Slot(gpu.allocate(slot_nbytes), gpu.event(), gpu.event()) for _ in range(STAGING_SLOTS)]
        self._began = gpu.event()
        self._sent = 0

    def begin(self) -> None:
        """Begin after what the device does now, so that nothing of before is in the way."""
        self._gpu.record(self._began)
        for stream in (self.copies, self._packs):
            self._gpu.follow(self._began, stream)
        self._sent = 0

    def send(
        self, transfer: Transfer, source: int, used: Mapping[int, Any] | None = None, ready: Sequence[Any] | None = None
    ) -> None:
        """Carry the bytes at `source` to where their pieces belong.

        Parameters
        ----------
        used
            By visit, the event after which its place is free.
        ready
            Of every visit, the event to record when all of it is there.
        """
        gpu, slot = self._gpu, self._slots[self._sent % len(self._slots)]
        if self._sent >= len(self._slots):
            gpu.follow(slot.free, self.copies)
        gpu.upload(slot.address, source, transfer.nbytes, self.copies)
        gpu.record(slot.arrived, self.copies)
        gpu.follow(slot.arrived, self._packs)
        for piece in transfer.pieces:
            if used is not None and piece.first_row == 0 and piece.visit in used:
                gpu.follow(used[piece.visit], self._packs)
            self._planes.place(piece, slot.address + piece.at, self._packs)
            if ready is not None and piece.ends:
                gpu.record(ready[piece.visit], self._packs)
        gpu.record(slot.free, self._packs)
        self._sent += 1
