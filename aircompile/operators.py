"""The vocabulary of the graph: what an operator computes, and which values it accepts and makes.

Operators are general (a product, a norm, attention), so that every frontend lowers to the same ones. Each states its
typing rule once, in `infer`; the graph uses it both to type new operators and to check old ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

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


class Columns(NamedTuple):
    """Where a part lies: columns [first, first + width) of input number `input`."""

    input: int
    first: int
    width: int


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
class Gather(Op):
    """Rows of `table` (n_vocab, width) picked by the token ids of the batch, which are no value of the graph."""

    table: str

    def tensors(self) -> tuple[str, ...]:
        return (self.table,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        _arity(inputs, 0)
        return (Kind(_matrix(weights, self.table)[1], "tokens", "float32"),)


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
        _arity(inputs, 1)
        x = _float(inputs[0])
        for name in self.tensors():
            _vector(weights, name, x.width)
        return (Kind(x.width, x.rows, quantized_dtype(self.digits) if self.quantize else "float32"),)


@dataclass(frozen=True)
class MatMul(Op):
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
        """Storage format of the members."""
        return weights[self.weights[0]].format

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        _arity(inputs, 2 if self.accumulate else 1)
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(f"{len(self.weights)} weights with {len(self.biases)} biases")
        x = inputs[0]
        width = 0
        for name, bias in zip(self.weights, self.biases, strict=True):
            n_rows, n_cols = _matrix(weights, name)
            if n_cols != x.width:
                raise ValueError(f"{name} has {n_cols} columns for rows of {x.width} ({x.name})")
            if weights[name].format != self.format(weights):
                raise ValueError(f"{name} is in {weights[name].format}, the first member in {self.format(weights)}")
            if bias is not None:
                _vector(weights, bias, n_rows)
            width += n_rows
        if x.dtype != "float32" and not is_integer_format(self.format(weights)):
            raise ValueError(f"quantized rows ({x.name}) with a matrix in {self.format(weights)}")
        if self.accumulate:
            _same_kind(_float(inputs[1]), width, x.rows)
        return (Kind(width, x.rows, "float32"),)


@dataclass(frozen=True)
class Rope(Op):
    """Rotary positions (Su et al. 2021): `dim` elements of each head are turned by the angles of its token.

    `factors` names a tensor that divides the frequencies; constant folding reads it into the model's rope table.
    """

    n_heads: int
    head_dim: int
    dim: int
    mode: RopeMode
    factors: str | None = None

    def tensors(self) -> tuple[str, ...]:
        return () if self.factors is None else (self.factors,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        _arity(inputs, 1)
        x = _same_kind(_float(inputs[0]), self.n_heads * self.head_dim, "tokens")
        _rotation(self.dim, self.head_dim)
        if self.factors is not None:
            _vector(weights, self.factors, self.dim // 2)
        return (Kind(x.width, x.rows, "float32"),)


@dataclass(frozen=True)
class Attention(Op):
    """Causal attention, `n_heads` query heads over `n_kv_heads`: ``softmax(scale * q k^T) v``.

    Inputs are (q, k, v), rotated; or, once ``RopeStore`` keeps k and v in the cache of the layer, (q,).
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        if len(inputs) != 1:
            _arity(inputs, 3)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} heads do not divide over {self.n_kv_heads}")
        for value in inputs[1:]:
            _same_kind(_float(value), self.n_kv_heads * self.head_dim, "tokens")
        q = _same_kind(_float(inputs[0]), self.n_heads * self.head_dim, "tokens")
        return (Kind(q.width, q.rows, "float32"),)


@dataclass(frozen=True)
class Parted(Op):
    """An operator over several column ranges, which may come as one input or as several.

    `parts` has one entry per input: the names of the ranges that lie in it, in column order. The inputs side by side
    always hold the parts in the order of `PARTS`.
    """

    PARTS: ClassVar[tuple[str, ...]]
    parts: tuple[tuple[str, ...], ...] = field(kw_only=True)

    def part_widths(self, total: int) -> tuple[int, ...]:
        """Columns of each part if the inputs have `total` together."""
        raise NotImplementedError

    def columns(self, inputs: Sequence[Value]) -> dict[str, Columns]:
        """Where each part lies; ValueError where the inputs do not fit."""
        _arity(inputs, len(self.parts))
        if sum(self.parts, ()) != self.PARTS:
            raise ValueError(f"parts {self.parts} are not {self.PARTS} in order")
        widths = dict(zip(self.PARTS, self.part_widths(sum(value.width for value in inputs)), strict=True))
        found: dict[str, Columns] = {}
        for i, (value, names) in enumerate(zip(inputs, self.parts, strict=True)):
            first = 0
            for name in names:
                found[name] = Columns(i, first, widths[name])
                first += widths[name]
            _same_kind(_float(value), first, inputs[0].rows)
        return found

    def merged(self, first: int, n: int) -> Parted:
        """The same operator with inputs `first` to `first + n - 1` side by side in one."""
        together: tuple[str, ...] = sum(self.parts[first : first + n], ())
        return dataclasses.replace(self, parts=(*self.parts[:first], together, *self.parts[first + n :]))


@dataclass(frozen=True)
class RopeStore(Parted):
    """Rotate q and k, store k and v in the cache of this layer, and return q."""

    PARTS: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    n_heads: int
    n_kv_heads: int
    head_dim: int
    dim: int
    mode: RopeMode
    parts: tuple[tuple[str, ...], ...] = field(default=(("q", "k", "v"),), kw_only=True)

    def part_widths(self, total: int) -> tuple[int, ...]:
        kv = self.n_kv_heads * self.head_dim
        return (self.n_heads * self.head_dim, kv, kv)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        _rotation(self.dim, self.head_dim)
        q = self.columns(inputs)["q"]
        if inputs[0].rows != "tokens":
            raise ValueError("only rows of tokens have positions")
        return (Kind(q.width, "tokens", "float32"),)


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
        _arity(inputs, 1)
        x = _float(inputs[0])
        return (Kind(x.width, x.rows, "float32"),)


@dataclass(frozen=True)
class _Elementwise(Op):
    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        _arity(inputs, 2)
        a = _float(inputs[0])
        _same_kind(_float(inputs[1]), a.width, a.rows)
        return (Kind(a.width, a.rows, "float32"),)


@dataclass(frozen=True)
class Multiply(_Elementwise):
    """Element-wise product of two values."""


@dataclass(frozen=True)
class Add(_Elementwise):
    """Element-wise sum of two values."""


@dataclass(frozen=True)
class SelectRows(Op):
    """The rows that the caller asked outputs for, out of the rows of all tokens."""

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        _arity(inputs, 1)
        if inputs[0].rows != "tokens":
            raise ValueError(f"{inputs[0].name} already has the rows of the outputs")
        return (Kind(inputs[0].width, "outputs", inputs[0].dtype),)


@dataclass(frozen=True)
class Quantize(Op):
    """Round float rows to integers of one or two digits."""

    digits: int = 1

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        _arity(inputs, 1)
        x = _float(inputs[0])
        return (Kind(x.width, x.rows, quantized_dtype(self.digits)),)


def _arity(inputs: Sequence[Value], n: int) -> None:
    if len(inputs) != n:
        raise ValueError(f"{len(inputs)} inputs instead of {n}")


def _float(value: Value) -> Value:
    if value.dtype != "float32":
        raise ValueError(f"{value.name} is {value.dtype}, not float32")
    return value


def _same_kind(value: Value, width: int, rows: Rows) -> Value:
    if (value.width, value.rows) != (width, rows):
        raise ValueError(f"{value.name} is [{value.rows}, {value.width}], not [{rows}, {width}]")
    return value


def _rotation(dim: int, head_dim: int) -> None:
    if dim % 2 or not 0 < dim <= head_dim:
        raise ValueError(f"{dim} rotating elements in heads of {head_dim}")


def _matrix(weights: Weights, name: str) -> tuple[int, int]:
    shape = weights[name].shape
    if len(shape) != 2:
        raise ValueError(f"{name} of shape {shape} is no matrix")
    return shape[0], shape[1]


def _vector(weights: Weights, name: str, n: int) -> None:
    if weights[name].shape != (n,):
        raise ValueError(f"{name} of shape {weights[name].shape} is no vector of {n}")
