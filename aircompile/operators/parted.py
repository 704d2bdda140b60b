"""Operators over several column ranges, which may come as one input or as several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from aircompile.operators.base import Op, Value, arity, floats, same_kind


class Columns(NamedTuple):
    """Where a part lies: columns [first, first + width) of input number `input`."""

    input: int
    first: int
    width: int


@dataclass(frozen=True)
class Parted(Op):
    """An operator over several column ranges, which may come as one input or as several.

    `parts` has one entry per input: the names of the ranges that lie in it, in column order. The inputs side by side
    always hold the parts in the order of `PARTS`.
    """

    PARTS: ClassVar[tuple[str, ...]]
    parts: tuple[tuple[str, ...], ...] = field(kw_only=True)

    def part_widths(self, total: int) -> tuple[int, ...]:
        """Columns of each part if the inputs have `total` together."""
        raise NotImplementedError

    def columns(self, inputs: Sequence[Value]) -> dict[str, Columns]:
        """Where each part lies; ValueError where the inputs do not fit."""
        arity(inputs, len(self.parts))
        if sum(self.parts, ()) != self.PARTS:
            raise ValueError(f"parts {self.parts} are not {self.PARTS} in order")
        widths = dict(zip(self.PARTS, self.part_widths(sum(value.width for value in inputs)), strict=True))
        found: dict[str, Columns] = {}
        for i, (value, names) in enumerate(zip(inputs, self.parts, strict=True)):
            first = 0
            for name in names:
                found[name] = Columns(i, first, widths[name])
                first += widths[name]
            same_kind(floats(value), first, inputs[0].rows)
        return found

    def merged(self, first: int, n: int) -> Parted:
        """The same operator with inputs `first` to `first + n - 1` side by side in one."""
        together: tuple[str, ...] = sum(self.parts[first : first + n], ())
        return dataclasses.replace(self, parts=(*self.parts[:first], together, *self.parts[first + n :]))
