"""Attention with rotary positions, as most families have it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.limits import MAX_HEADS, MAX_WIDTH
from aircompile.architectures.toolkit.rope import read_rope
from aircompile.graph import RopeInfo
from aircompile.operators import Attention, Rope, RopeMode, Slice


@dataclass(frozen=True)
class Heads:
    """Query heads over KV heads; `head_dim` elements in queries and keys, `v_dim` in values; the scale of scores."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    scale: float


def read_heads(b: Builder) -> Heads:
    """The shape of attention, where it is the same in all layers."""
    hyper, n_layers = b.hyper, b.n_layers
    n_heads = hyper.uniform_integer("attention.head_count", MAX_HEADS, n_layers)
    n_kv_heads = hyper.uniform_integer("attention.head_count_kv", MAX_HEADS, n_layers, default=n_heads)
    if b.n_embd % n_heads and not hyper.has("attention.key_length"):
        raise hyper.error("attention.head_count", f"is {n_heads}, which does not divide the width {b.n_embd}")
    if n_heads % n_kv_heads:
        raise hyper.error("attention.head_count_kv", f"is {n_kv_heads}, which does not divide {n_heads} heads")
    head_dim = hyper.integer("attention.key_length", MAX_WIDTH, default=max(1, b.n_embd // n_heads))
    v_dim = hyper.integer("attention.value_length", MAX_WIDTH, default=head_dim)
    # 0 stands for the usual scale
    scale = hyper.number("attention.scale", 0.0, 1e6, 0.0) or 1.0 / math.sqrt(head_dim)
    return Heads(n_heads, n_kv_heads, head_dim, v_dim, scale)


@dataclass(frozen=True)
class Rotary:
    """A table of rotary positions: `rotary(q, n_heads, 'rope_q')` adds a rotation by it."""

    builder: Builder
    head_dim: int
    dim: int
    mode: RopeMode
    table: int
    factors: str | None

    def __call__(self, x: str, n_heads: int, output: str) -> str:
        op = Rope(n_heads, self.head_dim, self.dim, self.mode, self.table, self.factors)
        return self.builder.add(output, op, x)


def rotary(b: Builder, heads: Heads, mode: RopeMode, *, factors: str | None = "rope_freqs.weight") -> Rotary:
    """The model's rotary positions, by the `rope.*` keys; `factors` is used where the file has it."""
    key = "rope.dimension_count"
    dim = b.hyper.integer(key, MAX_WIDTH, default=heads.head_dim)
    if dim > heads.head_dim:
        raise b.hyper.error(key, f"is {dim}, but heads have {heads.head_dim} elements")
    if dim % 2:
        where = key if b.hyper.has(key) else "attention.key_length"
        raise b.hyper.error(where, f"is {dim}: rotary positions need an even number")
    return add_rope(b, heads.head_dim, mode, read_rope(b.hyper, dim, b.n_ctx_train), factors)


def add_rope(b: Builder, head_dim: int, mode: RopeMode, rope: RopeInfo, factors: str | None = None) -> Rotary:
    """A further table of rotary positions."""
    found = None if factors is None else b.tensors.optional_vector(factors, rope.dim // 2)
    ropes = b.graph.hyper.ropes
    b.graph.hyper = dataclasses.replace(b.graph.hyper, ropes=(*ropes, rope))
    return Rotary(b, head_dim, rope.dim, mode, len(ropes), found)


def project_qkv(b: Builder, x: str, heads: Heads) -> tuple[str, str, str]:
    """Queries, keys and values: products of their own, or one whose columns they share."""
    widths = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim, heads.n_kv_heads * heads.v_dim)
    if b.has("attn_qkv"):
        together = b.linear(x, "attn_qkv", sum(widths), "qkv")
        firsts = (0, widths[0], widths[0] + widths[1])
        parts = zip("qkv", firsts, widths, strict=True)
        q, k, v = (b.add(name, Slice(first, width), together) for name, first, width in parts)
        return q, k, v
    q, k, v = (b.linear(x, f"attn_{name}", width, name) for name, width in zip("qkv", widths, strict=True))
    return q, k, v


def attend(
    b: Builder,
    q: str,
    k: str,
    v: str,
    heads: Heads,
    *,
    rope: Rotary | None = None,
    window: int = 0,
    softcap: float = 0.0,
    alibi: float = 0.0,
) -> str:
    """Rotate queries and keys, attend, and project back to the residual stream's width."""
    if rope is not None:
        q, k = rope(q, heads.n_heads, "rope_q"), rope(k, heads.n_kv_heads, "rope_k")
    op = Attention(
        heads.n_heads,
        heads.n_kv_heads,
        heads.head_dim,
        heads.v_dim,
        heads.scale,
        window=window,
        softcap=softcap,
        alibi=alibi,
    )
    return b.linear(b.add("attention", op, q, k, v), "attn_output", b.n_embd)
