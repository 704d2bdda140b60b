"""The memory of sequences: one pool of blocks of the KV cache, and one of states, shared by all of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import UsageError
from airrun.ledger import kv_nbytes, table_row
from airrun.plan.schema import KvCache, StateCache
from airrun.replay.memory import Region

if TYPE_CHECKING:
    from airrun.replay.memory import Bytes


class FreeList:
    """Numbers from 0 on, each of which has one owner at most."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._free = list(range(n - 1, -1, -1))

    def take(self) -> int | None:
        """One that is free, or None."""
        return self._free.pop() if self._free else None

    def give_back(self, number: int) -> None:
        assert 0 <= number < self.n and number not in self._free
        self._free.append(number)


class BlockPool:
    """Blocks of `spec.block_cells` tokens; block i of cache l stands at `addresses[l] + i * its block_nbytes`.

    Caches that go round have `ring` blocks, which are fewer. Memory is virtual until it is written, so a long context
    costs nothing before it is used.

    Attributes
    ----------
    layout
        How a block is arranged: that of one device means nothing to another.
    """

    layout = "cpu"

    def __init__(self, spec: KvCache, n_blocks: int, n_ring_blocks: int) -> None:
        self.spec = spec
        self.blocks, self.ring = FreeList(n_blocks), FreeList(n_ring_blocks)
        self._region = Region(kv_nbytes(spec, n_blocks, n_ring_blocks))
        counts = [n_ring_blocks if layer.ring else n_blocks for layer in spec.layers]
        sizes = (n * layer.block_nbytes for n, layer in zip(counts, spec.layers, strict=True))
        self._starts = [0, *accumulate(sizes)]
        self.addresses = [self._region.address + start for start in self._starts[:-1]]

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
    """The blocks of one sequence, in order, those that it goes round in, and the slot of its states.

    Attributes
    ----------
    slot
        -1 for an empty sequence, and where the model has no states.
    written
        Cells that there was ever room for, so that they may have taken the place of earlier ones.
    """

    def __init__(self, pool: BlockPool, states: StatePool) -> None:
        self._pool, self._states = pool, states
        self.slot, self.written = -1, 0
        self.blocks: list[int] = []
        self.ring: list[int] = []
        self.table = np.zeros(table_row(pool.spec), np.int32)
        """Row of the block table."""
        self.row = self.table.data

    @property
    def n_cells(self) -> int:
        """Tokens there is room for."""
        return len(self.blocks) * self._pool.spec.block_cells

    def reserve(self, n_cells: int) -> None:
        """Have room for the first `n_cells` tokens, at least one."""
        spec = self._pool.spec
        if self.slot < 0 and self._states.specs:
            self.slot = self._states.take()
        wanted = -(-n_cells // spec.block_cells)
        self._extend(self.blocks, self._pool.blocks, wanted, 0)
        self._extend(self.ring, self._pool.ring, min(wanted, spec.ring_blocks), spec.max_blocks)
        self.written = max(self.written, n_cells)

    def _extend(self, mine: list[int], free: FreeList, wanted: int, first: int) -> None:
        while len(mine) < wanted:
            block = free.take()
            if block is None:
                cells = free.n * self._pool.spec.block_cells
                raise UsageError(f"the KV cache is full: its {cells} tokens are in use by the open sequences")
            self.table[first + len(mine)] = block
            mine.append(block)

    def intact(self, n_cells: int) -> bool:
        """Whether all that a token after the first `n_cells` looks back at is still there."""
        spec = self._pool.spec
        if not spec.ring_blocks:
            return True
        oldest = max(0, n_cells - (spec.window - 1)) // spec.block_cells
        return (self.written - 1) // spec.block_cells - oldest < spec.ring_blocks

    def keep(self, n_cells: int) -> None:
        """Give back what is not needed for the first `n_cells` tokens."""
        if n_cells == 0:
            self.written = 0
            if self.slot >= 0:
                self._states.give_back(self.slot)
                self.slot = -1
        wanted = -(-n_cells // self._pool.spec.block_cells)
        for mine, free in ((self.blocks, self._pool.blocks), (self.ring, self._pool.ring)):
            while len(mine) > wanted:
                free.give_back(mine.pop())

    def parts(self) -> list[tuple[int, int]]:
        """Cache and block of all blocks, cache by cache."""
        layers = enumerate(self._pool.spec.layers)
        return [(i, block) for i, layer in layers for block in (self.ring if layer.ring else self.blocks)]
