"""Recurrent states as kernels see them.

A cache has `nbytes` for each sequence, at the slot that the input `state_slots` names for every token; a negative entry
-1 - slot marks the first token of a sequence, before which the state is zero. Tokens of a batch are taken in order, one
by one, so what a token computes does not depend on what it is batched with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.program import Expr, Kernel, Region, byte_offset, cast, let, loop, when, zeros

LARGEST_PART = 64


def part_of(n: int) -> int:
    """Columns that a task takes of n: a power of two that divides them, or all of a few."""
    return n if n < LARGEST_PART else next(p for p in (64, 32, 16, 8, 4, 2, 1) if n % p == 0)


@dataclass(frozen=True)
class StateLayout:
    """A state of `size` float32 per sequence."""

    size: int

    @property
    def nbytes(self) -> int:
        """Bytes between the states of two sequences: whole cache lines."""
        return -(-4 * self.size // 64) * 64

    def for_tokens(
        self,
        k: Kernel,
        state: int,
        slots: int,
        clear: Callable[[Region], None],
        emit: Callable[[Expr, Region], None],
    ) -> None:
        """Go through the tokens of the batch: `emit(token, state)` for each, with `clear(state)` before a first one.

        `state` and `slots` count pointers: of the cache, and of the input `state_slots`.
        """
        places = k.region(slots, "int32")
        with loop(k.n_tokens) as token:
            place = let(places.load(token))
            slot = tirx.Select(place < 0, -1 - place, place)
            region = Region(byte_offset(k.pointers[state], cast(slot, "int64") * self.nbytes), "float32")
            with when(place < 0):
                clear(region)
            emit(token, region)


def clear(region: Region, first: Expr, n: int, lanes: int) -> None:
    """Zero `n` elements, a multiple of `lanes`."""
    with loop(n // lanes) as i:
        region.store(first + i * lanes, zeros("float32", lanes))
