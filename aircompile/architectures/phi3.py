"""Phi 3 to 4: like llama, with q, k, v in one matrix, gate and up in another, and LongRoPE factors in some.

A window that the file names is not part of the graph: llama.cpp, the reference for this format, ignores it.

Source: Abdin et al. 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("phi3")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    b.hyper.ignore("attention.sliding_window")
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
