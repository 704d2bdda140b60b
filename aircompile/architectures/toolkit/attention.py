"""Attention with rotary positions, as most families have it."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.limits import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH
from aircompile.architectures.toolkit.rope import plain_rope, read_base, read_rope
from aircompile.graph import RopeInfo
from aircompile.operators import Activation, Attention, Rope, RopeMode, Slice


@dataclass(frozen=True)
class Heads:
    """Query heads over KV heads; `head_dim` elements in queries and keys, `v_dim` in values; the scale of scores."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    scale: float

    @property
    def widths(self) -> tuple[int, int, int]:
        """Columns of queries, keys and values."""
        return self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim, self.n_kv_heads * self.v_dim


def read_heads(b: Builder, n_kv_heads: int | None = None) -> Heads:
    """The shape of attention, where it is the same in all layers; the KV heads may be known already."""
    hyper, n_layers = b.hyper, b.n_layers
    n_heads = hyper.uniform_integer("attention.head_count", MAX_HEADS, n_layers)
    if n_kv_heads is None:
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


def read_some_heads(b: Builder) -> tuple[Heads, tuple[bool, ...]]:
    """The shape of attention in those layers that have it, and which: the others have no KV heads."""
    key = "attention.head_count_kv"
    each = b.hyper.integers(key, MAX_HEADS, b.n_layers, low=0)
    counts = set(each) - {0}
    if len(counts) > 1:
        raise b.hyper.unsupported(key, f"differs between layers with attention ({min(counts)} to {max(counts)})")
    return read_heads(b, max(counts, default=1)), tuple(n > 0 for n in each)


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


def rotary(b: Builder, heads: Heads, mode: RopeMode, alpha: float = 0.0) -> Rotary:
    """The model's rotary positions, by the `rope.*` keys and the tensors of factors, where the file has them."""
    dim = read_rope_dim(b, heads.head_dim)
    return add_rope(b, heads.head_dim, mode, read_rope(b.hyper, dim, b.n_ctx_train, alpha), _factors(b))


def local_rotary(b: Builder, heads: Heads, mode: RopeMode, default: float) -> Rotary:
    """Those of layers with a window: never scaled, and with a base of their own where the file has one."""
    base = read_base(b.hyper, "rope.freq_base_swa", default)
    return add_rope(b, heads.head_dim, mode, plain_rope(read_rope_dim(b, heads.head_dim), base))


def read_rope_dim(b: Builder, head_dim: int, key: str = "rope.dimension_count") -> int:
    """Elements of a head that rotate."""
    dim = b.hyper.integer(key, MAX_WIDTH, default=head_dim)
    if dim > head_dim:
        raise b.hyper.error(key, f"is {dim}, but heads have {head_dim} elements")
    if dim % 2:
        where = key if b.hyper.has(key) else "attention.key_length"
        raise b.hyper.error(where, f"is {dim}: rotary positions need an even number")
    return dim


def add_rope(b: Builder, head_dim: int, mode: RopeMode, rope: RopeInfo, factors: str | None = None) -> Rotary:
    """A further table of rotary positions, whose frequencies a tensor of factors may divide."""
    name = None if factors is None else b.tensors.vector(factors, rope.dim // 2)
    ropes = b.graph.hyper.ropes
    b.graph.hyper = dataclasses.replace(b.graph.hyper, ropes=(*ropes, rope))
    return Rotary(b, head_dim, rope.dim, mode, len(ropes), name)


def _factors(b: Builder) -> str | None:
    """The factors of the frequencies. LongRoPE (Ding et al. 2024) has two kinds, of which sessions within the
    original context take the short ones, and longer ones the long ones for all their positions."""
    long, short = "rope_factors_long.weight", "rope_factors_short.weight"
    if not b.tensors.has(long):
        return "rope_freqs.weight" if b.tensors.has("rope_freqs.weight") else None
    n_original = b.hyper.integer("rope.scaling.original_context_length", MAX_CONTEXT, default=b.n_ctx_train)
    extended = b.ctx_size is not None and b.ctx_size > n_original
    if not extended:
        b.limit_context(n_original)
    b.tensors.ignore(re.escape(short if extended else long))
    return long if extended else short


def read_windows(b: Builder, period: int, default: int = 0) -> tuple[int, ...]:
    """The sliding window of each layer, 0 where a layer sees everything: by default the last of every `period`."""
    window = b.hyper.integer("attention.sliding_window", MAX_CONTEXT, low=0, default=default)
    key = "attention.sliding_window_pattern"
    if window and b.hyper.is_array(key):
        return tuple(window * flag for flag in b.hyper.integers(key, 1, b.n_layers, low=0))
    period = b.hyper.integer(key, MAX_LAYERS, low=0, default=period) if window else 1
    return tuple(window if period == 0 or layer % period < period - 1 else 0 for layer in range(b.n_layers))


def read_first_shared(b: Builder, windows: tuple[int, ...], default: int = 0) -> int:
    """From here on layers read the cache of the last one before of their kind, with window or without."""
    key = "attention.shared_kv_layers"
    n_shared = b.hyper.integer(key, MAX_LAYERS, low=0, default=default)
    first = max(0, b.n_layers - n_shared)
    if not {window > 0 for window in windows[first:]} <= {window > 0 for window in windows[:first]}:
        raise b.hyper.error(key, f"is {n_shared}, which leaves nothing to share")
    # files may keep what these layers do not use
    for layer in range(first, b.n_layers):
        b.tensors.ignore(rf"blk\.{layer}\.attn_(k|v|k_norm)\.weight")
    return first


def project_qkv(b: Builder, x: str, heads: Heads, clamp: float = 0.0) -> tuple[str, str, str]:
    """Queries, keys and values: products of their own, or one whose columns they share; within +-`clamp` if not 0."""
    q_width, k_width, v_width = heads.widths
    if b.has("attn_qkv"):
        together = b.linear(x, "attn_qkv", q_width + k_width + v_width, "qkv")
        q = b.add("q", Slice(0, q_width), together)
        k = b.add("k", Slice(q_width, k_width), together)
        v = b.add("v", Slice(q_width + k_width, v_width), together)
    else:
        q = b.linear(x, "attn_q", q_width, "q")
        k = b.linear(x, "attn_k", k_width, "k")
        v = b.linear(x, "attn_v", v_width, "v")
    if clamp == 0.0:
        return q, k, v
    op = Activation("clamp", (-clamp, clamp))
    return b.add("clamped_q", op, q), b.add("clamped_k", op, k), b.add("clamped_v", op, v)


def norm_heads(norm: Normalize, q: str, k: str, heads: Heads) -> tuple[str, str]:
    """Norm every head of queries and keys."""
    return norm(q, "attn_q_norm", groups=heads.n_heads), norm(k, "attn_k_norm", groups=heads.n_kv_heads)


def attend(
    b: Builder,
    q: str,
    k: str,
    v: str,
    heads: Heads,
    *,
    rope: Rotary | None = None,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    alibi: float = 0.0,
    sinks: str | None = None,
) -> str:
    """Rotate queries and keys, and attend."""
    if rope is not None:
        q, k = rope(q, heads.n_heads, "rope_q"), rope(k, heads.n_kv_heads, "rope_k")
    shape = (heads.n_heads, heads.n_kv_heads, heads.head_dim, heads.v_dim, heads.scale)
    op = Attention(*shape, window=window, chunk=chunk, softcap=softcap, alibi=alibi, sinks=sinks)
    return b.add("attention", op, q, k, v)


def project_output(b: Builder, x: str) -> str:
    """Back to the width of the residual stream."""
    return b.linear(x, "attn_output", b.n_embd)
