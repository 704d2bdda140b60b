"""Operators that work element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aircompile.operators.base import Kind, Op, Rounding, Value, Weights, arity, float_slots, floats, same_kind, vector

Function = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "gelu_quick",
    "relu",
    "relu2",
    "sigmoid",
    "tanh",
    "exp",
    "softplus",
    "xielu",
    "scale",
    "clamp",
    "softcap",
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
        x = float_slots(inputs[0])
        return (Kind(x.width, x.rows, self.dtype, x.slots),)


@dataclass(frozen=True)
class GatedActivation(Rounding):
    """``activation(gate) * up`` of inputs (gate, up), quantized on the way out if `quantize` (Shazeer 2020)."""

    kind: Gate
    parameters: tuple[float, ...] = ()

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        gate = float_slots(inputs[0])
        same_kind(float_slots(inputs[1]), gate.width, gate.rows, gate.slots)
        return (Kind(gate.width, gate.rows, self.dtype, gate.slots),)


@dataclass(frozen=True)
class Multiply(Op):
    """Element-wise product of inputs (a, b); an element of a narrower b stands for an equal group of columns of a."""

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        a, b = map(float_slots, inputs)
        if a.width % b.width:
            raise ValueError(f"{a.width} columns ({a.name}) are not {b.width} equal groups ({b.name})")
        same_kind(b, b.width, a.rows, a.slots)
        return (Kind(a.width, a.rows, "float32", a.slots),)


@dataclass(frozen=True)
class Add(Op):
    """``a + scale * b`` of inputs (a, b)."""

    scale: float = 1.0

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        a = floats(inputs[0])
        same_kind(floats(inputs[1]), a.width, a.rows)
        return (Kind(a.width, a.rows, "float32"),)


@dataclass(frozen=True)
class Bias(Op):
    """Every element plus that of `weight` in its column."""

    weight: str

    def tensors(self) -> tuple[str, ...]:
        return (self.weight,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        vector(weights, self.weight, x.width)
        return (Kind(x.width, x.rows, "float32"),)


@dataclass(frozen=True)
class Scale(Op):
    """Every element times that of `weight` in its column, or in its equal group of columns where there are fewer."""

    weight: str

    def tensors(self) -> tuple[str, ...]:
        return (self.weight,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        (n,) = weights[self.weight].shape
        if x.width % n:
            raise ValueError(f"{x.width} columns ({x.name}) are not {n} equal groups ({self.weight})")
        return (Kind(x.width, x.rows, "float32"),)


@dataclass(frozen=True)
class Slice(Op):
    """Columns [first, first + width) of a value: a view, not a copy."""

    first: int
    width: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = float_slots(inputs[0])
        if not 0 <= self.first < self.first + self.width <= x.width:
            raise ValueError(f"columns {self.first} to {self.first + self.width} of {x.name}, which has {x.width}")
        return (Kind(self.width, x.rows, "float32", x.slots),)
