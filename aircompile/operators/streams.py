"""Operators over several residual streams (AltUp, Baykal et al. 2023), and over the statistics of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aircompile.operators.base import Kind, Op, Value, Weights, arity, floats, same_kind

MAX_STREAMS = 4


@dataclass(frozen=True)
class Combine(Op):
    """``base + sum over j of (coefficients[first + j] + offset) * x_j``, coefficients being those of the row.

    Inputs are (base, coefficients, x_0, x_1 ...), at most `MAX_STREAMS` of the latter.
    """

    first: int
    offset: float = 0.0

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        if not 3 <= len(inputs) <= 2 + MAX_STREAMS:
            raise ValueError(f"{len(inputs)} inputs instead of 3 to {2 + MAX_STREAMS}")
        base, coefficients = floats(inputs[0]), floats(inputs[1])
        for x in inputs[2:]:
            same_kind(floats(x), base.width, base.rows)
        if coefficients.rows != base.rows or not 0 <= self.first <= coefficients.width - len(inputs[2:]):
            raise ValueError(f"coefficients {self.first} on of {coefficients.name}, which has {coefficients.width}")
        return (Kind(base.width, base.rows, "float32"),)


@dataclass(frozen=True)
class MatchSize(Op):
    """Inputs (x, target): each row of x, scaled to the root mean square of that of the target.

    A mean square of x below `least` counts as that.
    """

    least: float

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        x = floats(inputs[0])
        same_kind(floats(inputs[1]), x.width, x.rows)
        return (Kind(x.width, x.rows, "float32"),)


@dataclass(frozen=True)
class CutOff(Op):
    """``max(0, x - mean - deviations * std)`` of each row: about a fixed share of its elements stays above 0."""

    deviations: float

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        return (Kind(x.width, x.rows, "float32"),)
