"""LFM2: in most layers short convolutions between two gates stand in for attention, which the others have.

Some have experts in all but the first layers.

The last norm has the tensor name of an embedding's.

Source: Liquid AI 2025.
"""

from __future__ import annotations

from dataclasses import replace

from aircompile.architectures.toolkit.attention import (
    attend,
    norm_heads,
    project_output,
    project_qkv,
    read_some_heads,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, has_experts, leading_dense, read_experts, read_router
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.limits import MAX_CONTEXT
from aircompile.architectures.toolkit.recurrence import convolve, split
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import Multiply

_MAX_KERNEL = 64


@family("lfm2", "lfm2moe")
def build(b: Builder) -> None:
    mixture, n_dense = _experts(b)
    n_ff, (heads, attends) = read_width(b), read_some_heads(b)
    kernel = b.hyper.integer("shortconv.l_cache", _MAX_KERNEL, low=2)
    window = b.hyper.integer("attention.sliding_window", MAX_CONTEXT, low=0, default=0)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for layer in b.layers():
        x = norm(hidden, "attn_norm")
        if attends[layer]:
            q, k, v = project_qkv(b, x, heads)
            q, k = norm_heads(norm, q, k, heads)
            x = project_output(b, attend(b, q, k, v, heads, rope=rope, window=window))
        else:
            x = _short_convolution(b, x, kernel)
        hidden = b.residual(hidden, x, "attn_residual")
        x = norm(hidden, "ffn_norm")
        x = gated(b, x, n_ff, "silu") if mixture is None or layer < n_dense else mixture(x)
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "token_embd_norm"))


def _experts(b: Builder) -> tuple[Mixture | None, int]:
    """The experts if there are any, and how many layers come before those that have them."""
    if not has_experts(b):
        return None, b.n_layers
    experts = read_experts(b)
    return Mixture(b, experts, replace(read_router(b, experts, "sigmoid"), normalize=True)), leading_dense(b)


def _short_convolution(b: Builder, x: str, kernel: int) -> str:
    n = b.n_embd
    before, after, x = split(b, b.linear(x, "shortconv.in_proj", 3 * n), before=n, after=n, given=n)
    x = convolve(b, b.add("gated_before", Multiply(), before, x), "shortconv.conv", kernel)
    return b.linear(b.add("gated_after", Multiply(), after, x), "shortconv.out_proj", n)
