"""StableLM: layer norms, part of each head rotates; the 12B model norms heads and has its sub-layers side by side.

Source: Bellagente et al. 2024.
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


@family("stablelm")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.layer_norm()
    # the norm before the feed-forward sub-layer is there or not, which says the same
    b.hyper.ignore("use_parallel_residual")
    hidden = b.embedding()
    for _ in b.layers():
        normed = norm(hidden, "attn_norm")
        q, k, v = project_qkv(b, normed, heads)
        if b.has("attn_q_norm"):
            q, k = norm_heads(norm, q, k, heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        normed = norm(hidden, "ffn_norm") if b.has("ffn_norm") else normed
        hidden = b.residual(hidden, gated(b, normed, n_ff, "silu"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
