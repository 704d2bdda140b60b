"""Granite 3: like llama, with factors on the embedding, on what sub-layers add, and on the logits (which are divided).

Source: Granite Team, IBM 2024 (maximal update parametrisation).
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("granite")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    # 0 stands for none
    embedding_scale = b.hyper.number("embedding_scale", 0.0, 1e6, 0.0) or 1.0
    residual_scale = b.hyper.number("residual_scale", 0.0, 1e6, 0.0) or 1.0
    logit_scale = b.hyper.number("logit_scale", 1e-6, 1e6)
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    # the key that says whether scaled positions were trained stands for whether there are positions here
    rotates = b.hyper.flag("rope.scaling.finetuned", True)
    hidden = b.embedding(scale=embedding_scale)
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope if rotates else None))
        hidden = b.residual(hidden, x, "attn_residual", residual_scale)
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual", residual_scale)
    # the product with the output matrix is linear, and its input is the smaller of the two
    b.logits(b.scale(norm(hidden, "output_norm"), 1.0 / logit_scale, "scaled_output"))
