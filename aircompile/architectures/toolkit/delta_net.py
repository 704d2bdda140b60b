"""Layers of Qwen 3-Next and its successors: gated delta nets, and attention whose output is gated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aircompile.architectures.toolkit.attention import Heads, Rotary, attend, norm_heads, project_output
from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.limits import MAX_HEADS, MAX_LAYERS, MAX_WIDTH
from aircompile.architectures.toolkit.recurrence import convolve, split
from aircompile.operators import Activation, Bias, GroupSlice, LinearAttention, Multiply, Norm, Scale

_MAX_KERNEL = 64
_INTERVAL = 4


@dataclass(frozen=True)
class DeltaShape:
    """Heads of values and of keys, the elements of each, and the taps of the convolution."""

    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    kernel: int


def read_delta(b: Builder) -> DeltaShape:
    """The shape of all delta nets."""
    hyper = b.hyper
    inner, n_heads = hyper.integer("ssm.inner_size", MAX_WIDTH), hyper.integer("ssm.time_step_rank", MAX_HEADS)
    n_keys = hyper.integer("ssm.group_count", MAX_HEADS)
    if inner % n_heads or n_heads % n_keys:
        raise hyper.error("ssm.time_step_rank", f"is {n_heads}: heads do not fit {inner} columns or {n_keys} key heads")
    key_dim, kernel = hyper.integer("ssm.state_size", MAX_WIDTH), hyper.integer("ssm.conv_kernel", _MAX_KERNEL, low=2)
    return DeltaShape(n_heads, n_keys, key_dim, inner // n_heads, kernel)


def read_recurrent_layers(b: Builder) -> tuple[bool, ...]:
    """Which layers are delta nets: as the file says, or all but the last of every few."""
    interval = b.hyper.integer("full_attention_interval", MAX_LAYERS, default=_INTERVAL)
    key = "attention.recurrent_layers"
    if b.hyper.has(key):
        return tuple(map(bool, b.hyper.integers(key, 1, b.n_layers, low=0)))
    return tuple((layer + 1) % interval != 0 for layer in range(b.n_layers))


def delta_net(b: Builder, x: str, alpha: str, beta: str, shape: DeltaShape, norm: Normalize, tiled: bool) -> str:
    """A gated delta net (Yang et al. 2024); alpha and beta are what decays and strengths of the heads come from, and
    `tiled` says how heads of values share those of keys."""
    n, keys, values = shape.n_heads, shape.n_key_heads * shape.key_dim, shape.n_heads * shape.value_dim
    mixed = convolve(b, b.linear(x, "attn_qkv", 2 * keys + values), "ssm_conv1d", shape.kernel)
    mixed = b.add("activated", Activation("silu"), mixed)
    q, k, v = split(b, mixed, q=keys, k=keys, v=values)
    # vectors of length 1, and queries over the root of their size: x / |x| is the RMS norm over that root
    q = _unit(b, q, "unit_q", shape, 1.0 / shape.key_dim)
    k = _unit(b, k, "unit_k", shape, 1.0 / math.sqrt(shape.key_dim))
    bias, a = b.tensors.vector(b.name("ssm_dt.bias"), n), b.tensors.vector(b.name("ssm_a"), n)
    step = b.add("step", Activation("softplus"), b.add("biased_alpha", Bias(bias), alpha))
    decay = b.add("decay", Activation("exp"), b.add("scaled_step", Scale(a), step))
    strength = b.add("strength", Activation("sigmoid"), beta)
    op = LinearAttention(n, shape.n_key_heads, shape.key_dim, shape.value_dim, "delta", tiled=tiled)
    y = norm(b.add("delta_net", op, q, k, v, decay, strength), "ssm_norm", groups=n)
    gate = b.add("delta_gate", Activation("silu"), b.linear(x, "attn_gate", values))
    return b.linear(b.add("delta_gated", Multiply(), gate, y), "ssm_out", b.n_embd)


def _unit(b: Builder, x: str, output: str, shape: DeltaShape, scale: float) -> str:
    eps = b.hyper.number("attention.layer_norm_rms_epsilon", 1e-30, 1.0) / shape.key_dim
    normed = b.add(f"{output}_norm", Norm(None, eps, groups=shape.n_key_heads), x)
    return b.add(output, Activation("scale", (scale,)), normed)


def gated_attention(b: Builder, x: str, heads: Heads, norm: Normalize, rope: Rotary) -> str:
    """Attention whose output is gated; rows of the matrix of queries are those of a head's query, then of its gate."""
    n, dim = heads.n_heads, heads.head_dim
    both = b.linear(x, "attn_q", 2 * n * dim, "q_and_gate")
    q, gate = b.add("q", GroupSlice(n, 0, dim), both), b.add("attn_gate", GroupSlice(n, dim, dim), both)
    k, v = (b.linear(x, f"attn_{name}", width, name) for name, width in zip("kv", heads.widths[1:], strict=True))
    q, k = norm_heads(norm, q, k, heads)
    y = attend(b, q, k, v, heads, rope=rope)
    gate = b.add("attn_gate_activation", Activation("sigmoid"), gate)
    return project_output(b, b.add("attn_gated", Multiply(), gate, y))
