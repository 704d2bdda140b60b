"""Operators that carry a state from each token of a sequence to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aircompile.operators.base import Kind, Op, Value, Weights, arity, floats, same_kind, vector

Rule = Literal["decay", "bonus", "delta", "rank_one"]


@dataclass(frozen=True)
class Stateful(Op):
    """An operator with a state of `state_size` float32 per sequence, all zeros before the first token."""

    @property
    def state_size(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class TokenShift(Stateful):
    """What the token before was more than this one: ``x[t - 1] - x[t]`` (Peng et al. 2023)."""

    width: int

    @property
    def state_size(self) -> int:
        return self.width

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        same_kind(floats(inputs[0]), self.width, "tokens")
        return (Kind(self.width, "tokens", "float32"),)


@dataclass(frozen=True)
class CausalConvolution(Stateful):
    """Every column convolved with its own `kernel` taps over the tokens up to this one, plus `bias`.

    ``sum(weight[c * kernel + j] * x[t - kernel + 1 + j, c] for j in range(kernel)) + bias[c]``
    """

    width: int
    kernel: int
    weight: str
    bias: str | None = None

    @property
    def state_size(self) -> int:
        return (self.kernel - 1) * self.width

    def tensors(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        same_kind(floats(inputs[0]), self.width, "tokens")
        vector(weights, self.weight, self.width * self.kernel)
        if self.bias is not None:
            vector(weights, self.bias, self.width)
        return (Kind(self.width, "tokens", "float32"),)


@dataclass(frozen=True)
class SelectiveScan(Stateful):
    """The recurrence of Mamba (Gu & Dao 2023), of inputs (x, dt, b, c): x and dt have a column per channel, b and c
    one per element of a channel's state h, of which there are `n_states`.

    ``h[i] = exp(dt * a[channel, i]) * h[i] + dt * x * b[i]; y = sum(c[i] * h[i])``
    """

    n_channels: int
    n_states: int
    a: str

    @property
    def state_size(self) -> int:
        return self.n_channels * self.n_states

    def tensors(self) -> tuple[str, ...]:
        return (self.a,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 4)
        for value, width in zip(inputs, (self.n_channels,) * 2 + (self.n_states,) * 2, strict=True):
            same_kind(floats(value), width, "tokens")
        vector(weights, self.a, self.n_channels * self.n_states)
        return (Kind(self.n_channels, "tokens", "float32"),)


@dataclass(frozen=True)
class LinearAttention(Stateful):
    """Attention without softmax as a recurrence: each head has a state S [key_dim, value_dim], of which a token's
    query q reads ``o = q S`` after its key k has changed it. Inputs are (q, k, v, w) and one more for the last two
    rules; w, the decay of the state, has a column per head, or one per element of every key.

    'decay'
        ``S = w S + k v^T`` (state space duality, Dao & Gu 2024).
    'bonus'
        The same, but the token itself is read with the weights of tensor `bonus` [n_heads * key_dim] in place of 1:
        ``o = q (S_before + (bonus k) v^T)`` (RWKV-6, Peng et al. 2024).
    'delta'
        ``S = w S + beta k (v - w S^T k)^T``; the fifth input beta has a column per head (Yang et al. 2024).
    'rank_one'
        ``S = w S + k v^T + b (a S)^T``; the fifth input has all a, then all b (RWKV-7, Peng et al. 2025).

    Attributes
    ----------
    n_key_heads
        Heads of q and k. Head i has those of head ``i // (n_heads / n_key_heads)``, or ``i % n_key_heads`` if `tiled`.
    """

    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    rule: Rule
    bonus: str | None = None
    tiled: bool = False

    @property
    def state_size(self) -> int:
        return self.n_heads * self.key_dim * self.value_dim

    def tensors(self) -> tuple[str, ...]:
        return () if self.bonus is None else (self.bonus,)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        keys, values = self.n_heads * self.key_dim, self.n_heads * self.value_dim
        fifth = {"delta": (self.n_heads,), "rank_one": (2 * keys,)}.get(self.rule, ())
        arity(inputs, 4 + len(fifth))
        if self.n_heads % self.n_key_heads:
            raise ValueError(f"{self.n_heads} heads do not divide over {self.n_key_heads}")
        shared = self.n_key_heads * self.key_dim
        decay = self.n_heads if inputs[3].width == self.n_heads else keys
        if self.rule == "delta" and decay != self.n_heads:
            raise ValueError("the delta rule has one decay per head")
        for value, width in zip(inputs, (shared, shared, values, decay, *fifth), strict=True):
            same_kind(floats(value), width, "tokens")
        if (self.bonus is not None) != (self.rule == "bonus"):
            raise ValueError(f"rule {self.rule} with bonus {self.bonus}")
        if self.bonus is not None:
            vector(weights, self.bonus, keys)
        return (Kind(values, "tokens", "float32"),)
