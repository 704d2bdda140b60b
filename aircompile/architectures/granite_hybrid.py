"""Granite 4: like Granite 3, with Mamba-2 in place of attention in most layers.

Source: Granite Team, IBM 2025.
"""

from __future__ import annotations

from aircompile.architectures.granite import feed_forward, read_scales
from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_some_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.recurrence import mamba2, read_mamba
from aircompile.architectures.toolkit.registry import family


@family("granitehybrid")
def build(b: Builder) -> None:
    (heads, attends), shape, scales, feed = read_some_heads(b), read_mamba(b), read_scales(b), feed_forward(b)
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    rotates = b.hyper.flag("rope.scaling.finetuned", True)
    hidden = b.embedding(scale=scales.embedding)
    for layer in b.layers():
        x = norm(hidden, "attn_norm")
        if attends[layer]:
            q, k, v = project_qkv(b, x, heads)
            x = project_output(b, attend(b, q, k, v, heads, rope=rope if rotates else None))
        else:
            x = mamba2(b, x, shape, norm)
        hidden = b.residual(hidden, x, "attn_residual", scales.residual)
        hidden = b.residual(hidden, feed(norm(hidden, "ffn_norm")), "ffn_residual", scales.residual)
    b.logits(b.scale(norm(hidden, "output_norm"), 1.0 / scales.logits, "scaled_output"))
