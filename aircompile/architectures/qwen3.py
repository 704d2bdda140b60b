"""Qwen 3: like Qwen 2, with RMS norms of the heads of queries and keys before they rotate.

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
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("qwen3")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        q, k = norm_heads(norm, q, k, heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
