"""Operators that work row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aircompile.operators.base import (
    Kind,
    Op,
    Rounding,
    Value,
    Weights,
    arity,
    float_slots,
    floats,
    matrix,
    quantized_dtype,
    single,
    vector,
)

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True)
class Gather(Op):
    """Rows of `table` (n_rows, width), one per token: picked by token id, or by the token's place in its sequence.

    Neither are values of the graph; the runtime has both.
    """

    table: str
    by: Literal["token_ids", "cells"] = "token_ids"

    def tensors(self) -> tuple[str, ...]:
        return (self.table,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 0)
        return (Kind(matrix(weights, self.table)[1], "tokens", "float32"),)


@dataclass(frozen=True)
class Norm(Rounding):
    """A row, or each of its `groups` equal parts, divided by its size; then times `weight`, plus `bias`.

    'rms': ``x / sqrt(mean(x**2) + eps)`` (Zhang & Sennrich 2019); 'layer': the same of ``x - mean(x)`` (Ba et al.
    2016). Weight and bias have an element per column of the row or of a group. Quantized on the way out if `quantize`.
    """

    weight: str | None
    eps: float
    bias: str | None = None
    kind: NormKind = "rms"
    groups: int = 1

    def tensors(self) -> tuple[str, ...]:
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    @property
    def can_round(self) -> bool:
        return self.groups == 1

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        if x.width % self.groups:
            raise ValueError(f"{x.width} columns ({x.name}) are not {self.groups} equal groups")
        for name in self.tensors():
            if weights[name].shape != (x.width // self.groups,):
                vector(weights, name, x.width)
        if self.quantize and not self.can_round:
            raise ValueError("groups of a row are not quantized")
        return (Kind(x.width, x.rows, self.dtype),)


@dataclass(frozen=True)
class SelectRows(Op):
    """The rows that the caller asked outputs for, out of the rows of all tokens."""

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        if single(inputs[0]).rows != "tokens":
            raise ValueError(f"{inputs[0].name} already has the rows of the outputs")
        return (Kind(inputs[0].width, "outputs", inputs[0].dtype),)


@dataclass(frozen=True)
class Quantize(Op):
    """Round float rows to integers of one or two digits."""

    digits: int = 1

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = float_slots(inputs[0])
        return (Kind(x.width, x.rows, quantized_dtype(self.digits), x.slots),)
