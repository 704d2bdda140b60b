"""OLMo 1: layer norms without weights, clamped queries, keys and values in some; else like llama.

Source: Groeneveld et al. 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("olmo")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    clamp = b.hyper.number("attention.clamp_kqv", 0.0, 1e6, 0.0)
    rope, norm = rotary(b, heads, "normal"), b.layer_norm()
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, None, output="attn_norm"), heads, clamp)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = gated(b, norm(hidden, None, output="ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, None, output="output_norm"))
