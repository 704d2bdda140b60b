"""EXAONE 4: norms after the sub-layers instead of before, norms of the heads of queries and keys; the 32B model has a
window and positions in three of four layers, and neither in the fourth.

Source: LG AI Research 2025.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import (
    attend,
    norm_heads,
    project_output,
    project_qkv,
    read_heads,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("exaone4")
def build(b: Builder) -> None:
    n_ff, heads, windows = read_width(b), read_heads(b), read_windows(b, period=4)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for layer in b.layers():
        rotates = windows[layer] > 0 or not any(windows)
        q, k, v = project_qkv(b, hidden, heads)
        q, k = norm_heads(norm, q, k, heads)
        x = attend(b, q, k, v, heads, rope=rope if rotates else None, window=windows[layer])
        hidden = b.residual(hidden, norm(project_output(b, x), "post_attention_norm"), "attn_residual")
        x = gated(b, hidden, n_ff, "silu")
        hidden = b.residual(hidden, norm(x, "post_ffw_norm"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
