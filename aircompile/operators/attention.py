"""Positions, the cache, and attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from aircompile.operators.base import Kind, Op, RopeMode, Value, Weights, arity, floats, same_kind, vector
from aircompile.operators.parted import Parted


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
        arity(inputs, 1)
        x = same_kind(floats(inputs[0]), self.n_heads * self.head_dim, "tokens")
        _rotation(self.dim, self.head_dim)
        if self.factors is not None:
            vector(weights, self.factors, self.dim // 2)
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
            arity(inputs, 3)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} heads do not divide over {self.n_kv_heads}")
        for value in inputs[1:]:
            same_kind(floats(value), self.n_kv_heads * self.head_dim, "tokens")
        q = same_kind(floats(inputs[0]), self.n_heads * self.head_dim, "tokens")
        return (Kind(q.width, q.rows, "float32"),)


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


def _rotation(dim: int, head_dim: int) -> None:
    if dim % 2 or not 0 < dim <= head_dim:
        raise ValueError(f"{dim} rotating elements in heads of {head_dim}")
