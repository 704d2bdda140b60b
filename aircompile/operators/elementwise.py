"""Operators that work element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from aircompile.operators.base import Kind, Op, Value, Weights, arity, floats, quantized_dtype, same_kind
from aircompile.operators.parted import Parted


@dataclass(frozen=True)
class GatedActivation(Parted):
    """``activation(gate) * up``, quantized on the way out if `quantize` (Shazeer 2020, GLU variants)."""

    PARTS: ClassVar[tuple[str, ...]] = ("gate", "up")

    kind: Literal["silu"]
    quantize: bool = False
    digits: int = 1
    parts: tuple[tuple[str, ...], ...] = field(default=(("gate", "up"),), kw_only=True)

    def part_widths(self, total: int) -> tuple[int, ...]:
        if total % 2:
            raise ValueError(f"{total} columns are not a gate and an equal up")
        return (total // 2, total // 2)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        up = self.columns(inputs)["up"]
        return (Kind(up.width, inputs[0].rows, quantized_dtype(self.digits) if self.quantize else "float32"),)


@dataclass(frozen=True)
class Activation(Op):
    """An element-wise function: 'silu' is ``x / (1 + exp(-x))``."""

    kind: Literal["silu"]

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        return (Kind(x.width, x.rows, "float32"),)


@dataclass(frozen=True)
class _Elementwise(Op):
    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        a = floats(inputs[0])
        same_kind(floats(inputs[1]), a.width, a.rows)
        return (Kind(a.width, a.rows, "float32"),)


@dataclass(frozen=True)
class Multiply(_Elementwise):
    """Element-wise product of two values."""


@dataclass(frozen=True)
class Add(_Elementwise):
    """Element-wise sum of two values."""
