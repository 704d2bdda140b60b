"""What the host tells the device before a step: tokens, their places, the block table, rotary angles."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from airrun.cuda.driver import Device
from airrun.ledger import table_row
from airrun.plan.container import LoadedPlan
from airrun.plan.device import CHOSEN_RING, DEVICE_INPUTS, MAX_SMALL, MAX_WATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from airrun.replay.batch import BatchSequence
    from airrun.replay.kv_cache import SequenceMemory

    Ints = npt.NDArray[np.int32]

_PER_TOKEN = ("token_ids", "cells", "sequences", "output_rows", "rope_rows")
_UNIT = 16
"""Kernels take every address to be a multiple of this."""


class Inputs:
    """The arrays of `DEVICE_INPUTS`: those of single tokens apart from those of batches, the rest shared.

    Attributes
    ----------
    addresses
        For batches, by input; `one` likewise for a single token.
    chosen
        The ring that the greedy steps write, readable here.
    """

    def __init__(self, loaded: LoadedPlan, gpu: Device, max_tokens: int, ctx_size: int) -> None:
        plan = loaded.plan
        self._gpu, self._max_tokens, self._ctx_size = gpu, max_tokens, ctx_size
        self._n_arrays = len(_PER_TOKEN)
        stride = -(-4 * max_tokens // _UNIT) * _UNIT
        self._stride = stride // 4
        self._host = gpu.allocate_pinned(self._n_arrays * stride)
        self._batch: Ints = np.frombuffer(self._host, np.int32).reshape(self._n_arrays, -1)
        self._device = gpu.allocate(self._n_arrays * stride)
        scalars = self._n_arrays * _UNIT
        self._one_nbytes = scalars + 4 * MAX_WATCHED
        self._host_one = gpu.allocate_pinned(self._one_nbytes)
        ints: Ints = np.frombuffer(self._host_one, np.int32)
        ints[:] = 0
        self._one, self._watched = ints[: scalars // 4].reshape(self._n_arrays, -1)[:, 0], ints[scalars // 4 :]
        self._device_one = gpu.allocate(self._one_nbytes)
        self._table_row = table_row(plan.kv)
        self._table = gpu.allocate(4 * self._table_row * MAX_SMALL)
        self._blocks: tuple[list[int], list[int]] = ([], [])
        ring = gpu.allocate_pinned(4 * CHOSEN_RING)
        self.chosen: Ints = np.frombuffer(ring, np.int32)
        self._angles = _Angles(loaded)
        self._rope_nbytes = 8 * max(self._angles.n_pairs, 1)
        self._rope = gpu.allocate(self._rope_nbytes * (ctx_size + max_tokens))
        rows = self._angles.rows(np.arange(ctx_size)[:, None])
        gpu.upload(self._rope, rows.ctypes.data, rows.nbytes)
        gpu.synchronize()
        shared = {"rope": self._rope, "block_table": self._table, "chosen": ctypes.addressof(ring)}
        shared["watched"] = self._device_one + scalars
        batch = {name: self._device + i * stride for i, name in enumerate(_PER_TOKEN)}
        one = {name: self._device_one + i * _UNIT for i, name in enumerate(_PER_TOKEN)}
        self.addresses = [(shared | batch)[name] for name in DEVICE_INPUTS]
        self.one = [(shared | one)[name] for name in DEVICE_INPUTS]

    def upload_one(self) -> None:
        """Copy what `set_one` and `watch` wrote; part of a graph."""
        self._gpu.upload(self._device_one, ctypes.addressof(self._host_one), self._one_nbytes)

    def set_one(self, token: int, cell: int) -> None:
        """Describe one token of the sequence whose blocks were given to `set_blocks`."""
        self._one[:] = (token, cell, 0, 0, cell)

    def watch(self, tokens: Ints) -> None:
        """Have the logits of so many tokens at most `MAX_WATCHED` seen, whatever they are."""
        self._watched[: len(tokens)] = tokens

    def set_blocks(self, blocks: SequenceMemory) -> None:
        """Use the blocks of a sequence from now on; free when they are as before."""
        if (blocks.blocks, blocks.ring) == self._blocks:
            return
        self._gpu.upload(self._table, blocks.table.ctypes.data, blocks.table.nbytes)
        self._gpu.synchronize()
        self._blocks = (list(blocks.blocks), list(blocks.ring))

    def set_batch(self, sequence: BatchSequence) -> None:
        """Describe a sequence's new tokens. Returns when the device has them."""
        n = sequence.n
        cells = np.arange(sequence.first_cell, sequence.first_cell + n)
        outputs = list(sequence.outputs)
        if sequence.token_ids is not None:
            self._batch[0, :n] = sequence.token_ids
        self._batch[1, :n] = cells
        self._batch[2, :n] = 0
        self._batch[3, : len(outputs)] = outputs
        self._batch[4, :n] = cells
        if sequence.positions is not None:
            rows = self._angles.rows(self._angles.places(sequence.positions))
            self._gpu.upload(self._rope + self._rope_nbytes * self._ctx_size, rows.ctypes.data, rows.nbytes)
            self._batch[4, :n] = np.arange(self._ctx_size, self._ctx_size + n)
        self._gpu.upload(self._device, ctypes.addressof(self._host), self._batch.nbytes)
        self._gpu.synchronize()

    def set_several(self, sequences: Sequence[BatchSequence]) -> None:
        """Describe new tokens of up to `MAX_SMALL` sequences. Returns when the device has them."""
        at, outputs = 0, 0
        tables = np.zeros((len(sequences), self._table_row), np.int32)
        for number, sequence in enumerate(sequences):
            assert sequence.token_ids is not None
            cells = np.arange(sequence.first_cell, sequence.first_cell + sequence.n)
            here = slice(at, at + sequence.n)
            self._batch[0, here], self._batch[1, here], self._batch[2, here] = sequence.token_ids, cells, number
            self._batch[3, outputs : outputs + len(sequence.outputs)] = [at + i for i in sequence.outputs]
            self._batch[4, here] = cells
            tables[number] = sequence.memory.table
            at, outputs = at + sequence.n, outputs + len(sequence.outputs)
        self._blocks = ([], [])
        self._gpu.upload(self._table, tables.ctypes.data, tables.nbytes)
        self._gpu.upload(self._device, ctypes.addressof(self._host), self._batch.nbytes)
        self._gpu.synchronize()


class _Angles:
    """Cosines and sines of a plan's rotary tables."""

    def __init__(self, loaded: LoadedPlan) -> None:
        plan = loaded.plan
        rope, constants = plan.rope, loaded.segment(plan.constants_segment)
        self.n_pairs = rope.n_pairs

        def array(number: int, dtype: str) -> npt.NDArray[Any]:
            c = plan.constants[number]
            return np.frombuffer(constants, dtype, c.nbytes // np.dtype(dtype).itemsize, c.offset)

        empty = np.zeros(0)
        self._frequency = array(rope.inverse_frequency, "<f8") if self.n_pairs else empty
        self._magnitude = array(rope.magnitude, "<f8") if self.n_pairs else empty
        self._axis = array(rope.axis, "<i4") if self.n_pairs else empty.astype(np.int32)
        self._one_axis = rope.n_axes == 1

    def places(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions [n_axes, n] as `rows` wants them."""
        places: npt.NDArray[np.int64] = positions[0][:, None] if self._one_axis else positions[self._axis].T
        return places

    def rows(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 [n, 2, n_pairs] of places [n, n_pairs or 1]."""
        angles = places * self._frequency
        both = np.stack([np.cos(angles), np.sin(angles)], 1) * self._magnitude
        return np.ascontiguousarray(both, np.float32)
