"""Qwen 2 and 2.5: like llama, with biases on queries, keys and values, and halves of a head that rotate together.

The language models of Qwen 2-VL and 2.5-VL are the same: positions of texts are equal on all axes, so that it does not
matter which pairs rotate by which.

Sources: Yang et al. 2024; Wang et al. 2024 (Qwen2-VL).
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("qwen2", "qwen2vl")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    b.hyper.ignore("rope.dimension_sections")
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
