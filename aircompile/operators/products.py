"""Products with matrices of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aircompile.operators.base import (
    Kind,
    Op,
    Value,
    Weights,
    arity,
    floats,
    is_integer_format,
    matrices,
    matrix,
    same_kind,
    single,
    vector,
)


class Product(Op):
    """A product with matrices of weights, which takes rounded rows where their format is one of integers."""

    def format(self, weights: Weights) -> str:
        """Storage format of the matrices."""
        raise NotImplementedError


@dataclass(frozen=True)
class MatMul(Product):
    """``x @ concatenate(weights).T + concatenate(biases)``, plus the second input if `accumulate`.

    The members keep their names and output columns (`members`): each is a slot for an adapter. All are in one storage
    format. With `accumulate` nothing but this operator reads the second input afterwards, so it may be updated in
    place (``Graph.check`` asserts it).
    """

    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    accumulate: bool = False

    def tensors(self) -> tuple[str, ...]:
        return self.weights + tuple(bias for bias in self.biases if bias is not None)

    def members(self, weights: Weights) -> tuple[tuple[str, int, int], ...]:
        """(name, first output column, end) of each member."""
        found: list[tuple[str, int, int]] = []
        first = 0
        for name in self.weights:
            found.append((name, first, first + weights[name].shape[0]))
            first = found[-1][2]
        return tuple(found)

    def format(self, weights: Weights) -> str:
        return weights[self.weights[0]].format

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2 if self.accumulate else 1)
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(f"{len(self.weights)} weights with {len(self.biases)} biases")
        x = single(inputs[0])
        width = 0
        for name, bias in zip(self.weights, self.biases, strict=True):
            n_rows, n_cols = matrix(weights, name)
            if n_cols != x.width:
                raise ValueError(f"{name} has {n_cols} columns for rows of {x.width} ({x.name})")
            if weights[name].format != self.format(weights):
                raise ValueError(f"{name} is in {weights[name].format}, the first member in {self.format(weights)}")
            if bias is not None:
                vector(weights, bias, n_rows)
            width += n_rows
        takes(x, self.format(weights))
        if self.accumulate:
            same_kind(floats(inputs[1]), width, x.rows)
        return (Kind(width, x.rows, "float32"),)


@dataclass(frozen=True)
class HeadMatMul(Product):
    """``x @ matrix.T`` with a matrix of its own for each of the `x.slots` rows of a token; `weight` holds them all."""

    weight: str

    def tensors(self) -> tuple[str, ...]:
        return (self.weight,)

    def format(self, weights: Weights) -> str:
        return weights[self.weight].format

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = inputs[0]
        n_rows, n_cols = matrices(weights, self.weight, x.slots)
        if n_cols != x.width:
            raise ValueError(f"{self.weight} has {n_cols} columns for rows of {x.width} ({x.name})")
        takes(x, self.format(weights))
        return (Kind(n_rows, x.rows, "float32", x.slots),)


def takes(x: Value, fmt: str) -> None:
    """Refuse rows that cannot be multiplied with a matrix of this format."""
    if x.dtype == "int32":
        raise ValueError(f"{x.name} is int32: no matrix takes that")
    if x.dtype != "float32" and not is_integer_format(fmt):
        raise ValueError(f"quantized rows ({x.name}) with a matrix in {fmt}")
