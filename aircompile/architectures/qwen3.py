"""Qwen 3: like Qwen 2, with RMS norms of the heads of queries and keys before they rotate; dense, or with experts.

The language models of Qwen 3-VL are the same for texts, whose positions are equal on all axes; what images add to the
first layers, texts lack.

Source: Yang et al. 2025.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import (
    attend,
    norm_heads,
    project_output,
    project_qkv,
    read_heads,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, has_experts, read_experts, softmax_router
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    mixture = None
    if has_experts(b):
        experts = read_experts(b)
        mixture = Mixture(b, experts, softmax_router(experts, normalize=True))
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    for key in ("rope.dimension_sections", "n_deepstack_layers"):
        b.hyper.ignore(key)
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        q, k = norm_heads(norm, q, k, heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = norm(hidden, "ffn_norm")
        x = gated(b, x, n_ff, "silu") if mixture is None else mixture(x)
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
