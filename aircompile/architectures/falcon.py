"""Falcon: attention and the feed-forward sub-layer side by side, with one layer norm for both, or one each.

Source: Almazrouei et al. 2023.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import plain, read_width
from aircompile.architectures.toolkit.registry import family


@family("falcon")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.layer_norm()
    hidden = b.embedding()
    for _ in b.layers():
        x = norm(hidden, "attn_norm")
        q, k, v = project_qkv(b, norm(hidden, "attn_norm_2") if b.has("attn_norm_2") else x, heads)
        attended = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, attended, "attn_residual")
        hidden = b.residual(hidden, plain(b, x, n_ff, "gelu_tanh"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
