"""Putting raw rows that have arrived on the device where the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airrun.cuda.driver import Arguments, Device
from airrun.cuda.pieces import Piece
from airrun.cuda.programs import Kernel
from airrun.plan.device import DevicePlan


class Planes:
    """The matrices of a plan as its kernels read them: in planes, where a weight says so, otherwise as they were."""

    def __init__(self, gpu: Device, device: DevicePlan, kernels: Sequence[Kernel]) -> None:
        self._gpu, self._weights, self._kernels = gpu, device.weights, kernels

    def place(self, piece: Piece, raw: int, stream: Any) -> None:
        """Put a piece, whose bytes are at the address `raw` of the device, where it belongs, in stream order."""
        weight = self._weights[piece.weight] if piece.weight >= 0 else None
        if weight is None or weight.pack < 0:
            row_nbytes = piece.nbytes // piece.n_rows
            self._gpu.copy(piece.target + piece.first_row * row_nbytes, raw, piece.nbytes, stream)
            return
        # (raw, words, halves, first row, rows), see `airkernels.triton.matrices.pack`
        planes = [raw, piece.target, piece.target + weight.halves_offset]
        kernel = self._kernels[weight.pack]
        grid = (-(-piece.n_rows * weight.places // kernel.tiles[0]),)
        self._gpu.launch(kernel.function, grid, Arguments(planes, [piece.first_row, piece.n_rows]), stream=stream)
