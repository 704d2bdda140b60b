"""The memory of sequences: one pool of blocks of the KV cache, and one of states, shared by all of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import UsageError
from airrun.ledger import kv_nbytes
from airrun.plan.schema import KvCache, StateCache
from airrun.replay.memory import Region

if TYPE_CHECKING:
    from airrun.replay.memory import Bytes


class BlockPool:
    """Blocks of `spec.block_cells` tokens; block i of cache l stands at `addresses[l] + i * its block_nbytes`.

    Memory is virtual until it is written, so a long context costs nothing before it is used.

    Attributes
    ----------
    layout
        How a block is arranged: that of one device means nothing to another.
    """

    layout = "cpu"

    def __init__(self, spec: KvCache, n_blocks: int) -> None:
        self.spec, self.n_blocks = spec, n_blocks
        self._region = Region(kv_nbytes(spec, n_blocks))
        self._starts = [0, *accumulate(n_blocks * layer.block_nbytes for layer in spec.layers)]
        self.addresses = [self._region.address + start for start in self._starts[:-1]]
        self._free = list(range(n_blocks - 1, -1, -1))

    def take(self) -> int:
        """A free block."""
        if not self._free:
            cells = self.n_blocks * self.spec.block_cells
            raise UsageError(f"the KV cache is full: its {cells} tokens are in use by the open sequences")
        return self._free.pop()

    def give_back(self, block: int) -> None:
        assert 0 <= block < self.n_blocks and block not in self._free
        self._free.append(block)

    def contents(self, layer: int, block: int) -> Bytes:
        """The bytes of one block of one cache."""
        nbytes = self.spec.layers[layer].block_nbytes
        start = self._starts[layer] + block * nbytes
        return self._region.bytes[start : start + nbytes]

    def write(self, layer: int, block: int, data: Bytes) -> None:
        """Replace the bytes of one block of one cache."""
        self.contents(layer, block)[:] = data


class StatePool:
    """States of sequences that models with recurrences carry along: slot s of cache i is at
    `addresses[i] + s * its nbytes`."""

    def __init__(self, specs: Sequence[StateCache], n_slots: int) -> None:
        self.specs, self.n_slots = specs, n_slots
        self._region = Region(n_slots * sum(spec.nbytes for spec in specs))
        self._starts = [0, *accumulate(n_slots * spec.nbytes for spec in specs)]
        self.addresses = [self._region.address + start for start in self._starts[:-1]]
        self._free = list(range(n_slots - 1, -1, -1))

    def take(self) -> int:
        """A free slot."""
        if not self._free:
            raise UsageError(f"no state is free: all {self.n_slots} are in use by the open sequences")
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        assert 0 <= slot < self.n_slots and slot not in self._free
        self._free.append(slot)

    def contents(self, cache: int, slot: int) -> Bytes:
        """The bytes of one state of one sequence."""
        nbytes = self.specs[cache].nbytes
        start = self._starts[cache] + slot * nbytes
        return self._region.bytes[start : start + nbytes]


class SequenceMemory:
    """The blocks of one sequence, in order, and the slot of its states.

    Attributes
    ----------
    slot
        -1 for an empty sequence, and where the model has no states.
    """

    def __init__(self, pool: BlockPool, states: StatePool) -> None:
        self._pool, self._states = pool, states
        self.slot = -1
        self.blocks: list[int] = []
        self.table = np.zeros(pool.spec.max_blocks, np.int32)
        """Row of the block table."""
        self.row = self.table.data

    @property
    def n_cells(self) -> int:
        """Tokens there is room for."""
        return len(self.blocks) * self._pool.spec.block_cells

    def reserve(self, n_cells: int) -> None:
        """Have room for the first `n_cells` tokens, at least one."""
        if self.slot < 0 and self._states.specs:
            self.slot = self._states.take()
        while self.n_cells < n_cells:
            block = self._pool.take()
            self.table[len(self.blocks)] = block
            self.blocks.append(block)

    def keep(self, n_cells: int) -> None:
        """Give back what is not needed for the first `n_cells` tokens."""
        if n_cells == 0 and self.slot >= 0:
            self._states.give_back(self.slot)
            self.slot = -1
        wanted = -(-n_cells // self._pool.spec.block_cells)
        while len(self.blocks) > wanted:
            self._pool.give_back(self.blocks.pop())
