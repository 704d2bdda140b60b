"""Operators that work element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aircompile.operators.base import Kind, Op, Rounding, Value, Weights, arity, floats, same_kind, vector

Function = Literal[
    "silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2", "sigmoid", "tanh", "xielu", "scale", "clamp", "softcap"
]
Gate = Literal["silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2", "sigmoid", "swiglu_oai"]


@dataclass(frozen=True)
class Activation(Rounding):
    """A function of each element, quantized on the way out if `quantize`. What each computes, and its parameters:
    ``airkernels.cpu.functions``."""

    kind: Function
    parameters: tuple[float, ...] = ()

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        return (Kind(x.width, x.rows, self.dtype),)


@dataclass(frozen=True)
class GatedActivation(Rounding):
    """``activation(gate) * up`` of inputs (gate, up), quantized on the way out if `quantize` (Shazeer 2020)."""

    kind: Gate
    parameters: tuple[float, ...] = ()

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        gate = floats(inputs[0])
        same_kind(floats(inputs[1]), gate.width, gate.rows)
        return (Kind(gate.width, gate.rows, self.dtype),)


@dataclass(frozen=True)
class _Pairwise(Op):
    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        a = floats(inputs[0])
        same_kind(floats(inputs[1]), a.width, a.rows)
        return (Kind(a.width, a.rows, "float32"),)


@dataclass(frozen=True)
class Multiply(_Pairwise):
    """Element-wise product of two values."""


@dataclass(frozen=True)
class Add(_Pairwise):
    """``a + scale * b`` of inputs (a, b)."""

    scale: float = 1.0


@dataclass(frozen=True)
class Scale(Op):
    """Every element times that of `weight` in its column, or times the only element of `weight`."""

    weight: str

    def tensors(self) -> tuple[str, ...]:
        return (self.weight,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        if weights[self.weight].shape != (1,):
            vector(weights, self.weight, x.width)
        return (Kind(x.width, x.rows, "float32"),)


@dataclass(frozen=True)
class Slice(Op):
    """Columns [first, first + width) of a value: a view, not a copy."""

    first: int
    width: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        if not 0 <= self.first < self.first + self.width <= x.width:
            raise ValueError(f"columns {self.first} to {self.first + self.width} of {x.name}, which has {x.width}")
        return (Kind(self.width, x.rows, "float32"),)
