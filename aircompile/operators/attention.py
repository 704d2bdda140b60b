"""Positions, the cache, and attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aircompile.operators.base import Kind, Op, RopeMode, Value, Weights, arity, floats, same_kind, vector


@dataclass(frozen=True)
class Rope(Op):
    """Rotary positions (Su et al. 2021): the first `dim` elements of each head are turned by the angles of its token.

    `table` counts ``ModelInfo.ropes``. `factors` names a tensor that divides the table's frequencies; constant
    folding reads it.
    """

    n_heads: int
    head_dim: int
    dim: int
    mode: RopeMode
    table: int = 0
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
class ScaleByPosition(Op):
    """Rows times ``1 + strength * log(1 + floor((cell + 1) / period))``: attention that keeps its temperature over long
    contexts (Llama 4, after Nakanishi 2025)."""

    period: int
    strength: float

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        x = same_kind(floats(inputs[0]), inputs[0].width, "tokens")
        return (Kind(x.width, "tokens", "float32"),)


@dataclass(frozen=True)
class Attention(Op):
    """Causal attention, `n_heads` query heads over `n_kv_heads`: ``softmax(score(q k^T)) v``.

    Inputs are (q, k, v), rotated; or, once ``RopeStore`` keeps k and v in the cache, (q,).

    Attributes
    ----------
    head_dim, v_dim
        Elements of a query or key, and of a value.
    scale
        Factor of the products of queries and keys.
    window
        A token sees itself and the `window` - 1 before it; 0: all before it.
    chunk
        A token sees those of its own chunk of so many tokens; 0: no chunks.
    softcap
        Scores become ``softcap * tanh(score / softcap)`` (Gemma 2); 0: they stay.
    alibi
        Largest bias of ALiBi (Press et al. 2021): the score of a token n places back loses n times the slope of the
        head; 0: no bias.
    sinks
        Tensor of a score per head that takes part in the softmax without a value (gpt-oss).
    slot
        The cache that holds k and v, once they are stored.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    scale: float
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: str | None = None
    slot: int = -1

    def tensors(self) -> tuple[str, ...]:
        return () if self.sinks is None else (self.sinks,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 3 if self.slot < 0 else 1)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} heads do not divide over {self.n_kv_heads}")
        q = same_kind(floats(inputs[0]), self.n_heads * self.head_dim, "tokens")
        for value, dim in zip(inputs[1:], (self.head_dim, self.v_dim), strict=False):
            same_kind(floats(value), self.n_kv_heads * dim, "tokens")
        if self.sinks is not None:
            vector(weights, self.sinks, self.n_heads)
        return (Kind(self.n_heads * self.v_dim, q.rows, "float32"),)


@dataclass(frozen=True)
class RopeStore(Op):
    """Rotate q and k (unless `dim` is 0), store k and v in cache `slot`, and return q. Updates q and k in place."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    dim: int
    mode: RopeMode
    table: int = 0
    slot: int = 0

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 3)
        if self.dim:
            _rotation(self.dim, self.head_dim)
        q = same_kind(floats(inputs[0]), self.n_heads * self.head_dim, "tokens")
        for value, dim in zip(inputs[1:], (self.head_dim, self.v_dim), strict=True):
            same_kind(floats(value), self.n_kv_heads * dim, "tokens")
        return (Kind(q.width, "tokens", "float32"),)


def _rotation(dim: int, head_dim: int) -> None:
    if dim % 2 or not 0 < dim <= head_dim:
        raise ValueError(f"{dim} rotating elements in heads of {head_dim}")
