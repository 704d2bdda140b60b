"""Operators that work row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aircompile.operators.base import Kind, Op, Value, Weights, arity, floats, matrix, quantized_dtype, vector


@dataclass(frozen=True)
class Gather(Op):
    """Rows of `table` (n_vocab, width) picked by the token ids of the batch, which are no value of the graph."""

    table: str

    def tensors(self) -> tuple[str, ...]:
        return (self.table,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 0)
        return (Kind(matrix(weights, self.table)[1], "tokens", "float32"),)


@dataclass(frozen=True)
class Norm(Op):
    """``x / sqrt(mean(x**2) + eps) * weight + bias`` over each row, quantized on the way out if `quantize`."""

    weight: str
    eps: float
    bias: str | None = None
    quantize: bool = False
    digits: int = 1
    kind: Literal["rms"] = "rms"

    def tensors(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        for name in self.tensors():
            vector(weights, name, x.width)
        return (Kind(x.width, x.rows, quantized_dtype(self.digits) if self.quantize else "float32"),)


@dataclass(frozen=True)
class SelectRows(Op):
    """The rows that the caller asked outputs for, out of the rows of all tokens."""

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        if inputs[0].rows != "tokens":
            raise ValueError(f"{inputs[0].name} already has the rows of the outputs")
        return (Kind(inputs[0].width, "outputs", inputs[0].dtype),)


@dataclass(frozen=True)
class Quantize(Op):
    """Round float rows to integers of one or two digits."""

    digits: int = 1

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = floats(inputs[0])
        return (Kind(x.width, x.rows, quantized_dtype(self.digits)),)
