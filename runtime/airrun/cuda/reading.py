"""Reading of transfers into pinned memory of the host: by threads, ahead of the bus."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from airrun.cuda.driver import Device
from airrun.cuda.pieces import Transfer
from airrun.errors import WeightFileError
from airrun.replay.memory import Region
from airrun.weights.files import WeightFiles
from airrun.weights.stream import TIMEOUT_S

_BLOCK_NBYTES = 1 << 30
"""Memory is pinned in blocks of about so many bytes: a call each, and the first early."""


def read_transfer(
    files: WeightFiles, descriptors: Sequence[int], transfer: Transfer, memory: mmap.mmap, start: int = 0
) -> None:
    """Fill memory from a place on.

    Raises
    ------
    WeightFileError
        A file cannot be read or ends too early; names it and the offset.
    """
    view = memoryview(memory)[start : start + transfer.nbytes]
    for piece in transfer.pieces:
        first, nbytes, place = piece.span
        needed, done = piece.offset + piece.nbytes - first, 0
        while done < needed:
            try:
                n = os.preadv(descriptors[piece.file], [view[place + done : place + nbytes]], first + done)
            except OSError as error:
                reason = os.strerror(error.errno or errno.EIO)
                path = files.paths[piece.file]
                raise WeightFileError(f"{path}: cannot be read at offset {first + done}: {reason}") from None
            if n == 0:
                what = f"nothing to read at offset {first + done}"
                raise WeightFileError(f"{files.paths[piece.file]}: ends before its weights do: {what}")
            done += n
    files.nbytes_read += transfer.nbytes


class Slots:
    """Memory of the host that transfers are read into; all of its pages are there.

    The system gives pages at a few GB/s, and pins those that are there in a twentieth of that time.

    Attributes
    ----------
    region
        All of it.
    n, nbytes
        Number of slots, and bytes of each.
    """

    def __init__(self, n: int, nbytes: int) -> None:
        self.n, self.nbytes = n, nbytes
        self.region = Region(n * nbytes, huge=True)
        # other threads go on meanwhile, which they do not with madvise
        ctypes.memset(self.region.address, 0, self.region.nbytes)

    def address(self, slot: int) -> int:
        """Where a slot begins."""
        return self.region.address + slot * self.nbytes


class Reader:
    """Slots that transfers are read into in turn, ahead of those who take them.

    Parameters
    ----------
    transfers
        What is read, in order, over and over.
    slots
        Where to; their memory is pinned here.
    """

    def __init__(
        self,
        gpu: Device,
        files: WeightFiles,
        descriptors: Sequence[int],
        transfers: Sequence[Transfer],
        slots: Slots,
        threads: int,
    ) -> None:
        self._gpu, self._files, self._descriptors, self._transfers = gpu, files, descriptors, transfers
        self._slots = slots
        self._free = [gpu.event() for _ in range(slots.n)]
        self._pool = ThreadPoolExecutor(threads, "airrun_read", gpu.use)
        self._reads: list[Future[None]] = []
        self._taken = 0
        self._fill()
        # beside the first reads
        gpu.register(slots.region.address, slots.region.nbytes)
        self._pinned = True

    def _fill(self) -> None:
        for _ in self._free:
            self._submit()

    def _submit(self) -> None:
        self._reads.append(self._pool.submit(self._read, len(self._reads)))

    def _read(self, number: int) -> None:
        slot = number % self._slots.n
        self._gpu.wait(self._free[slot])
        transfer, start = self._transfers[number % len(self._transfers)], slot * self._slots.nbytes
        read_transfer(self._files, self._descriptors, transfer, self._slots.region.memory, start)

    def rewind(self) -> None:
        """Begin with the first transfer again, unless it is the next one anyway."""
        if self._taken % len(self._transfers) == 0 and not self._failed():
            return
        for read in self._reads[self._taken :]:
            read.cancel()
        wait(self._reads[self._taken :])
        self._reads, self._taken = [], 0
        self._fill()

    def _failed(self) -> bool:
        return any(read.done() and read.exception() is not None for read in self._reads[self._taken :])

    def take(self) -> int:
        """Address of the slot with the next transfer; waits for it.

        Raises
        ------
        WeightFileError
            It cannot be read.
        """
        number = self._taken
        try:
            self._reads[number].result(TIMEOUT_S)
        except TimeoutError:
            piece = self._transfers[number % len(self._transfers)].pieces[0]
            path = self._files.paths[piece.file]
            raise WeightFileError(
                f"{path}: the disk did not answer within {TIMEOUT_S} s at offset {piece.offset}"
            ) from None
        return self._slots.address(number % self._slots.n)

    def give(self, stream: Any) -> None:
        """The slot taken last is free once a stream has come this far."""
        self._gpu.record(self._free[self._taken % len(self._free)], stream)
        self._taken += 1
        self._submit()

    def close(self) -> None:
        """End the threads and give the memory back."""
        for read in self._reads:
            read.cancel()
        self._pool.shutdown()
        if self._pinned:
            for free in self._free:
                self._gpu.wait(free)
            self._gpu.unregister(self._slots.region.address)
            self._pinned = False


class HostStore:
    """Transfers that stay in pinned memory of the host.

    Pages are pinned while further ones are read: each takes the system some time.

    Attributes
    ----------
    addresses
        Of each transfer.
    """

    def __init__(self, gpu: Device, transfers: Sequence[Transfer]) -> None:
        self._gpu, self._transfers = gpu, transfers
        self._blocks: list[tuple[Region, list[int]]] = []
        self.addresses: list[int] = []
        pending: list[int] = []
        used = 0
        for number, transfer in enumerate(transfers):
            if pending and used + transfer.nbytes > _BLOCK_NBYTES:
                self._add(pending, used)
                pending, used = [], 0
            pending.append(number)
            used += transfer.nbytes
        if pending:
            self._add(pending, used)

    def _add(self, numbers: list[int], nbytes: int) -> None:
        region = Region(nbytes, huge=True)
        self._blocks.append((region, numbers))
        at = region.address
        for number in numbers:
            self.addresses.append(at)
            at += self._transfers[number].nbytes

    def load(self, files: WeightFiles, descriptors: Sequence[int], threads: int) -> None:
        """Read and pin everything."""

        def read(number: int, region: Region) -> None:
            transfer = self._transfers[number]
            read_transfer(files, descriptors, transfer, region.memory, self.addresses[number] - region.address)

        def pin(region: Region, reads: list[Future[None]]) -> None:
            for each in reads:
                each.result()
            self._gpu.register(region.address, region.nbytes)

        with (
            ThreadPoolExecutor(threads, "airrun_read") as readers,
            ThreadPoolExecutor(1, "pin", self._gpu.use) as pins,
        ):
            pinned = [
                pins.submit(pin, region, [readers.submit(read, number, region) for number in numbers])
                for region, numbers in self._blocks
            ]
            for each in pinned:
                each.result()
