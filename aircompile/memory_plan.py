"""Memory plan: every activation gets a place in the arena; values that never live together share one.

Sizes and offsets are per token of the largest batch, so that one layout serves every batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aircompile.lowering import Pointer


class KernelCall(Protocol):
    """A call, by what it touches and whether everything before it is done when it ends."""

    @property
    def pointers(self) -> tuple[Pointer, ...]: ...

    @property
    def sync(self) -> bool: ...


class Lowered(Protocol):
    """A lowered program: its calls in order, and the bytes of a row of each value."""

    @property
    def calls(self) -> Sequence[KernelCall]: ...

    def row_nbytes(self, value: str) -> int: ...


@dataclass(frozen=True)
class Placement:
    """Where a value is: bytes per token."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Interval:
    """Calls [first, last] between which a value must keep its place."""

    first: int
    last: int

    def overlaps(self, other: Interval) -> bool:
        return self.first <= other.last and other.first <= self.last


def lifetimes(low: Lowered) -> dict[str, Interval]:
    """First and last call that touches each value; aliases count for the value they are part of.

    Calls between two barriers run side by side, so a value lives to the end of its stage.
    """
    stage, stages = 0, []
    for call in low.calls:
        stages.append(stage)
        stage += call.sync
    found: dict[str, Interval] = {}
    for at, call in zip(stages, low.calls, strict=True):
        for pointer in call.pointers:
            if pointer.space == "value":
                seen = found.get(pointer.name, Interval(at, at))
                found[pointer.name] = Interval(min(seen.first, at), max(seen.last, at))
    return found


def place(low: Lowered) -> tuple[dict[str, Placement], int]:
    """Greedy by size: the largest value first, each at the lowest offset free during its life.

    Returns
    -------
    The placements, and the arena's bytes per token.
    """
    lives = lifetimes(low)
    placed: dict[str, Placement] = {}
    for name in sorted(lives, key=lambda v: (-low.row_nbytes(v), v)):
        nbytes = low.row_nbytes(name)
        taken = sorted(
            (p.offset, p.offset + p.nbytes) for other, p in placed.items() if lives[other].overlaps(lives[name])
        )
        offset = 0
        for start, stop in taken:
            if offset + nbytes <= start:
                break
            offset = max(offset, stop)
        placed[name] = Placement(offset, nbytes)
    return placed, max(p.offset + p.nbytes for p in placed.values())
