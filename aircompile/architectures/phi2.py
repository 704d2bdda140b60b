"""Phi 1 to 2: one layer norm feeds attention and the feed-forward sub-layer side by side; part of each head rotates.

Source: Javaheripi et al. 2023.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import plain, read_width
from aircompile.architectures.toolkit.registry import family


@family("phi2")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.layer_norm()
    hidden = b.embedding()
    for _ in b.layers():
        x = norm(hidden, "attn_norm")
        q, k, v = project_qkv(b, x, heads)
        attended = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, attended, "attn_residual")
        hidden = b.residual(hidden, plain(b, x, n_ff, "gelu_tanh"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
