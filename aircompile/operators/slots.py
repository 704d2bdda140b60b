"""Operators that regroup the columns of a row: a token's rows of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aircompile.operators.base import Kind, Op, Value, Weights, arity, float_slots, same_kind


@dataclass(frozen=True)
class Split(Op):
    """A row as `slots` rows of equal width, or such rows as one (`slots` 1): a view, not a copy."""

    slots: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = float_slots(inputs[0])
        total = x.width * x.slots
        if total % self.slots:
            raise ValueError(f"{total} columns ({x.name}) are not {self.slots} equal parts")
        return (Kind(total // self.slots, x.rows, "float32", self.slots),)


@dataclass(frozen=True)
class Join(Op):
    """``[a | b]`` of the rows of inputs (a, b), or a copy of (a); a value of one row per token is repeated for each row
    of the other."""

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, len(inputs) if len(inputs) in (1, 2) else 2)
        slots = max(x.slots for x in inputs)
        for x in inputs:
            same_kind(float_slots(x), x.width, inputs[0].rows, x.slots if x.slots == 1 else slots)
        return (Kind(sum(x.width for x in inputs), inputs[0].rows, "float32", slots),)
