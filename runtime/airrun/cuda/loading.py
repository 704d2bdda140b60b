"""Weights on their way to the device: read by several threads into pinned memory, copied, and put into planes there.

Two buffers take turns, so that a piece is read while the one before it crosses the bus.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airrun.cuda.driver import Arguments, Device
from airrun.errors import ModelFileError
from airrun.plan.blocks import BLOCKS
from airrun.plan.device import DevicePlan
from airrun.plan.schema import Plan

if TYPE_CHECKING:
    from airrun.cuda.programs import Kernel

PIECE = 32 << 20
"""Most raw bytes read, copied and packed at a time."""

_READERS = 4
_SLICE = 4 << 20


class Piece(NamedTuple):
    """Neighbouring raw rows of a tensor: where they are, and the row of the weight that the first becomes."""

    weight: int
    file: int
    offset: int
    nbytes: int
    first_row: int
    n_rows: int


def pieces(plan: Plan, device: DevicePlan) -> Iterator[Piece]:
    """All weights in order, cut at `PIECE`."""
    for number, weight in enumerate(device.weights):
        row_nbytes = BLOCKS[weight.format].row_bytes(weight.n_cols)
        step = max(PIECE // row_nbytes, 1)
        row = 0
        for part in weight.parts:
            tensor = plan.tensors[part]
            n_rows = tensor.nbytes // row_nbytes
            for first in range(0, n_rows, step):
                n = min(step, n_rows - first)
                yield Piece(number, tensor.file, tensor.offset + first * row_nbytes, n * row_nbytes, row + first, n)
            row += n_rows


class DeviceWeights:
    """Addresses of matrices and vectors on the device. `load` fills them.

    Attributes
    ----------
    addresses
        Of each of the device plan's weights.
    tensors
        Addresses of the vectors that programs read, by number of the tensor.
    """

    def __init__(self, plan: Plan, device: DevicePlan, gpu: Device, paths: Sequence[Path]) -> None:
        self._plan, self._device, self._gpu, self._paths = plan, device, gpu, paths
        self.addresses = [gpu.allocate(weight.nbytes) for weight in device.weights]
        used = {o.index for p in device.programs for step in p.steps for o in step.operands if o.space == "tensor"}
        self.tensors = {i: gpu.allocate(plan.tensors[i].nbytes) for i in sorted(used)}

    def load(self, kernels: Sequence[Kernel]) -> None:
        """Read everything; returns when the last byte is on its way.

        Raises
        ------
        ModelFileError
            A file that cannot be read or is shorter than it was.
        """
        gpu = self._gpu
        files = [os.open(path, os.O_RDONLY) for path in self._paths]
        largest = max((p.nbytes for p in pieces(self._plan, self._device)), default=0)
        largest = max([largest, *(self._plan.tensors[i].nbytes for i in self.tensors)])
        pinned = [gpu.allocate_pinned(largest) for _ in range(2)]
        staging = [gpu.allocate(largest) for _ in range(2)]
        free = [gpu.event(), gpu.event()]
        try:
            with ThreadPoolExecutor(_READERS) as readers:
                for i, tensor in enumerate(self.tensors):
                    info = self._plan.tensors[tensor]
                    piece = Piece(-1, info.file, info.offset, info.nbytes, 0, 1)
                    gpu.wait(free[i % 2])
                    self._read(readers, files, piece, pinned[i % 2])
                    gpu.upload(self.tensors[tensor], ctypes.addressof(pinned[i % 2]), piece.nbytes)
                    gpu.record(free[i % 2])
                for i, piece in enumerate(pieces(self._plan, self._device)):
                    gpu.wait(free[i % 2])
                    self._read(readers, files, piece, pinned[i % 2])
                    self._place(kernels, piece, ctypes.addressof(pinned[i % 2]), staging[i % 2])
                    gpu.record(free[i % 2])
            gpu.synchronize()
        finally:
            for file in files:
                os.close(file)
        for address in staging:
            gpu.free(address)
        for buffer in pinned:
            gpu.free_pinned(buffer)

    def _read(self, readers: ThreadPoolExecutor, files: list[int], piece: Piece, target: Any) -> None:
        """Fill pinned memory from a file, a slice per reader at a time."""
        view = memoryview(target).cast("B")
        starts = range(0, piece.nbytes, _SLICE)

        def read(start: int) -> int:
            stop = min(start + _SLICE, piece.nbytes)
            at = start
            while at < stop:
                n = os.preadv(files[piece.file], [view[at:stop]], piece.offset + at)
                if n == 0:
                    break
                at += n
            return at - start

        done = sum(readers.map(read, starts))
        if done != piece.nbytes:
            short = f"{piece.nbytes - done} of the {piece.nbytes} bytes at {piece.offset} are missing"
            raise ModelFileError(f"{self._paths[piece.file]}: ends inside the weights: {short}")

    def _place(self, kernels: Sequence[Kernel], piece: Piece, source: int, staging: int) -> None:
        """Copy a piece to the device, and into its planes."""
        weight, address = self._device.weights[piece.weight], self.addresses[piece.weight]
        if weight.pack < 0:
            row_nbytes = piece.nbytes // piece.n_rows
            self._gpu.upload(address + piece.first_row * row_nbytes, source, piece.nbytes)
            return
        self._gpu.upload(staging, source, piece.nbytes)
        # (raw, words, halves, first row, rows), see `airkernels.triton.matrices.pack`
        arguments = Arguments([staging, address, address + weight.halves_offset], [piece.first_row, piece.n_rows])
        kernel = kernels[weight.pack]
        self._gpu.launch(kernel.function, (-(-piece.n_rows * weight.places // kernel.tiles[0]),), arguments)
