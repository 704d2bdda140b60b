"""MPT: ALiBi or learned positions, layer norms, GELU without a gate; clamped or normed queries and keys in some.

Source: MosaicML 2023.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import plain, read_width
from aircompile.architectures.toolkit.registry import family


@family("mpt")
def build(b: Builder) -> None:
    n_ff, heads, norm = read_width(b), read_heads(b), b.layer_norm()
    clamp = b.hyper.number("attention.clamp_kqv", 0.0, 1e6, 0.0)
    alibi = b.hyper.number("attention.max_alibi_bias", 0.0, 1e3, 0.0)
    hidden = b.embedding()
    if b.tensors.has("position_embd.weight"):
        hidden = b.learned_positions(hidden)
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads, clamp)
        if b.has("attn_q_norm"):
            q, k = norm(q, "attn_q_norm"), norm(k, "attn_k_norm")
        x = project_output(b, attend(b, q, k, v, heads, alibi=alibi))
        hidden = b.residual(hidden, x, "attn_residual")
        x = plain(b, norm(hidden, "ffn_norm"), n_ff, "gelu_tanh")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
