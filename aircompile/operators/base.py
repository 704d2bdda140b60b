"""Values, operators in general, and what their typing rules share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from aircompile.frontends.gguf import TensorInfo
from airrun.plan.blocks import BLOCKS

Rows = Literal["tokens", "outputs"]
Dtype = Literal["float32", "q8", "q16"]
RopeMode = Literal["normal", "neox"]
"""Which elements of a head rotate together: neighbours (2i, 2i + 1), or the halves (i, i + dim / 2)."""

Weights = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Value:
    """A matrix of activations: one row of `width` elements per token of the batch, or per requested output.

    `dtype` 'q8' and 'q16' are rows of integers of one and two digits with a scale per 32 elements
    (``airkernels.cpu.activations.QuantizedRow``).
    """

    name: str
    width: int
    rows: Rows
    dtype: Dtype


class Kind(NamedTuple):
    """The type of a value: all of it but its name."""

    width: int
    rows: Rows
    dtype: Dtype


def quantized_dtype(digits: int) -> Dtype:
    """Type of rows quantized to so many digits."""
    return "q8" if digits == 1 else "q16"


def is_integer_format(name: str) -> bool:
    """Whether a matrix of this storage format can be multiplied with quantized rows."""
    return BLOCKS[name].quantized


@dataclass(frozen=True)
class Op:
    """What an operator computes, with its attributes."""

    def tensors(self) -> tuple[str, ...]:
        """Names of the weights it reads."""
        return ()

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        """Types of the results for these inputs; ValueError where they do not fit."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rounding(Op):
    """An operator that can round its result to integers of so many `digits` on the way out."""

    quantize: bool = field(default=False, kw_only=True)
    digits: int = field(default=1, kw_only=True)

    @property
    def can_round(self) -> bool:
        return True

    @property
    def dtype(self) -> Dtype:
        """Type of the result."""
        return quantized_dtype(self.digits) if self.quantize else "float32"


def arity(inputs: Sequence[Value], n: int) -> None:
    if len(inputs) != n:
        raise ValueError(f"{len(inputs)} inputs instead of {n}")


def floats(value: Value) -> Value:
    if value.dtype != "float32":
        raise ValueError(f"{value.name} is {value.dtype}, not float32")
    return value


def same_kind(value: Value, width: int, rows: Rows) -> Value:
    if (value.width, value.rows) != (width, rows):
        raise ValueError(f"{value.name} is [{value.rows}, {value.width}], not [{rows}, {width}]")
    return value


def matrix(weights: Weights, name: str) -> tuple[int, int]:
    shape = weights[name].shape
    if len(shape) != 2:
        raise ValueError(f"{name} of shape {shape} is no matrix")
    return shape[0], shape[1]


def vector(weights: Weights, name: str, n: int) -> None:
    if weights[name].shape != (n,):
        raise ValueError(f"{name} of shape {weights[name].shape} is no vector of {n}")
