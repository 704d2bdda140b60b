"""Values, operators in general, and what their typing rules share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from aircompile.frontends.gguf import TensorInfo
from airrun.plan.blocks import BLOCKS

Rows = Literal["tokens", "outputs"]
Dtype = Literal["float32", "int32", "q8", "q16"]
RopeMode = Literal["normal", "neox"]
"""Which elements of a head rotate together: neighbours (2i, 2i + 1), or the halves (i, i + dim / 2)."""

Weights = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Value:
    """A matrix of activations: rows of `width` elements, `slots` of them (for the chosen experts, or the heads) per
    token of the batch, or per requested output.

    `dtype` 'q8' and 'q16' are rows of integers of one and two digits with a scale per 32 elements
    (``airkernels.cpu.activations.QuantizedRow``).
    """

    name: str
    width: int
    rows: Rows
    dtype: Dtype
    slots: int = 1

    @property
    def shape(self) -> str:
        """Rows and columns in words."""
        return shown_shape(self.width, self.rows, self.slots)


def shown_shape(width: int, rows: Rows, slots: int = 1) -> str:
    """The shape of a value in words."""
    return f"[{rows}, {width}]" if slots == 1 else f"[{rows} x {slots}, {width}]"


class Kind(NamedTuple):
    """The type of a value: all of it but its name."""

    width: int
    rows: Rows
    dtype: Dtype
    slots: int = 1


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


def of_type(value: Value, dtype: Dtype) -> Value:
    if value.dtype != dtype:
        raise ValueError(f"{value.name} is {value.dtype}, not {dtype}")
    return value


def single(value: Value) -> Value:
    if value.slots != 1:
        raise ValueError(f"{value.name} has {value.slots} rows per token, not one")
    return value


def floats(value: Value) -> Value:
    return single(of_type(value, "float32"))


def float_slots(value: Value) -> Value:
    """Floats, with any number of rows per token."""
    return of_type(value, "float32")


def same_kind(value: Value, width: int, rows: Rows, slots: int = 1) -> Value:
    if (value.width, value.rows, value.slots) != (width, rows, slots):
        raise ValueError(f"{value.name} is {value.shape}, not {shown_shape(width, rows, slots)}")
    return value


def matrix(weights: Weights, name: str) -> tuple[int, int]:
    shape = weights[name].shape
    if len(shape) != 2:
        raise ValueError(f"{name} of shape {shape} is no matrix")
    return shape[0], shape[1]


def matrices(weights: Weights, name: str, n: int) -> tuple[int, int]:
    """Rows and columns of a tensor of `n` matrices."""
    shape = weights[name].shape
    if len(shape) != 3 or shape[0] != n:
        raise ValueError(f"{name} of shape {shape} is not {n} matrices")
    return shape[1], shape[2]


def vector(weights: Weights, name: str, n: int) -> None:
    if weights[name].shape != (n,):
        raise ValueError(f"{name} of shape {weights[name].shape} is no vector of {n}")
