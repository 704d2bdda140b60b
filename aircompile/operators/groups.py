"""Operators over equal groups of neighbouring columns, such as heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aircompile.operators.base import Kind, Op, Value, Weights, arity, floats, same_kind


@dataclass(frozen=True)
class GroupDot(Op):
    """Products of inputs (a, b), summed over each of `groups` equal parts of a row: a column per group."""

    groups: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        a = floats(inputs[0])
        same_kind(floats(inputs[1]), a.width, a.rows)
        if a.width % self.groups:
            raise ValueError(f"{a.width} columns ({a.name}) are not {self.groups} equal groups")
        return (Kind(self.groups, a.rows, "float32"),)


@dataclass(frozen=True)
class GroupSlice(Op):
    """Columns [first, first + width) of each of `groups` equal parts of a row, side by side: a copy."""

    groups: int
    first: int
    width: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        size = x.width // self.groups
        if x.width % self.groups or not 0 <= self.first < self.first + self.width <= size:
            raise ValueError(f"columns {self.first} to {self.first + self.width} of {self.groups} parts of {x.name}")
        return (Kind(self.groups * self.width, x.rows, "float32"),)
