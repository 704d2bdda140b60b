"""Hunyuan dense: like llama, with RMS norms of the heads of queries and keys after they rotate.

`rope.scaling.alpha` stretches the context by a larger frequency base (NTK-aware scaling).

Source: Tencent's hunyuan-dense, as llama.cpp reads it.
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


@family("hunyuan-dense")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    alpha = b.hyper.number("rope.scaling.alpha", 0.0, 1e9, 0.0)
    rope, norm = rotary(b, heads, "neox", alpha), b.rms_norm()
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        q, k = rope(q, heads.n_heads, "rope_q"), rope(k, heads.n_kv_heads, "rope_k")
        q, k = norm_heads(norm, q, k, heads)
        hidden = b.residual(hidden, project_output(b, attend(b, q, k, v, heads)), "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
