"""Gemma: like llama, with GELU gates, an embedding scaled by the root of its width, and that matrix for the output.

The 1 that is added to norm weights is in the file's weights.

Source: Gemma Team 2024.
"""

from __future__ import annotations

import math

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("gemma")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding(scale=math.sqrt(b.n_embd))
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "gelu_tanh")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
