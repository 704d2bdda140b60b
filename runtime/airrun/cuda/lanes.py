"""Loading: what stays in memory is brought there once, by threads of which each reads, copies and unpacks on its own.

Nothing is handed from thread to thread: at tens of GB/s that would take longer than the copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from threading import Event
from typing import Any

from airrun.cuda.driver import Device
from airrun.cuda.pieces import Piece, Transfer
from airrun.cuda.reading import Slots, read_transfer
from airrun.weights.files import WeightFiles

_MOST_READERS = 16


def loaders() -> int:
    """Threads that read what is read once: a page cache gives more the more ask it."""
    return max(2, min(_MOST_READERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))


def load(
    gpu: Device,
    files: WeightFiles,
    transfers: Sequence[Transfer],
    slots: Slots,
    room: int,
    place: Callable[[Piece, int, Any], None],
) -> None:
    """Carry transfers from their files to the device; returns when all are there.

    Parameters
    ----------
    slots
        Memory of the host they pass through; pinned meanwhile.
    room
        Bytes of the device's memory they may pass through.
    place
        Puts a piece, from an address on the device, where it belongs, in the order of a stream.

    Raises
    ------
    WeightFileError
        A file that cannot be read or is shorter than it was.
    """
    n_slots = max(min(slots.n, room // slots.nbytes), 1)
    n_lanes = min(loaders(), n_slots)
    staging = gpu.allocate(n_slots * slots.nbytes)
    streams = [gpu.new_stream() for _ in range(n_lanes)]
    events = [gpu.event() for _ in range(n_slots)]
    pinned, failed, pending = Event(), Event(), iter(transfers)

    def lane(number: int) -> None:
        gpu.use()
        stream, mine = streams[number], range(number, n_slots, n_lanes)
        try:
            # `pending` is shared: whoever is free takes the next transfer
            for slot, transfer in zip(cycle(mine), pending):
                if failed.is_set():
                    return
                gpu.wait(events[slot])
                start = slot * slots.nbytes
                read_transfer(files, files.descriptors, transfer, slots.region.memory, start)
                pinned.wait()
                gpu.upload(staging + start, slots.address(slot), transfer.nbytes, stream)
                for piece in transfer.pieces:
                    place(piece, staging + start + piece.at, stream)
                gpu.record(events[slot], stream)
        except BaseException:
            failed.set()
            raise

    registered = False
    try:
        with ThreadPoolExecutor(n_lanes, "airrun_load") as pool:
            lanes = [pool.submit(lane, number) for number in range(n_lanes)]
            try:
                # beside the first reads
                gpu.register(slots.region.address, slots.region.nbytes)
                registered = True
            except BaseException:
                failed.set()
                raise
            finally:
                pinned.set()
            for each in lanes:
                each.result()
    finally:
        # also after a failure, nothing may be on its way from memory that is given back
        for event in events:
            gpu.wait(event)
        if registered:
            gpu.unregister(slots.region.address)
        gpu.free(staging)
