"""GLM 4: norms on both sides of each sub-layer, gate and up in one matrix, part of each head rotates.

Source: GLM Team 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("glm4")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, norm(x, "post_attention_norm"), "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, norm(x, "post_ffw_norm"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
