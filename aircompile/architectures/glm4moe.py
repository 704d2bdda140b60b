"""GLM 4.5: leading dense layers, then experts chosen by biased sigmoids, beside one that all tokens share.

Layers that only predict further tokens (multi-token prediction) are left out.

Source: GLM-4.5 Team 2025.
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
from aircompile.architectures.toolkit.experts import Mixture, leading_dense, read_experts, read_router, with_shared
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.limits import MAX_HEADS
from aircompile.architectures.toolkit.registry import family


@family("glm4moe")
def build(b: Builder) -> None:
    b.leave_out_prediction_layers()
    n_ff, heads, n_dense = read_width(b), read_heads(b), leading_dense(b)
    experts = read_experts(b)
    n_shared = experts.n_ff * b.hyper.integer("expert_shared_count", MAX_HEADS, low=0)
    mixture = with_shared(Mixture(b, experts, read_router(b, experts, "sigmoid")), n_shared)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for layer in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        if b.has("attn_q_norm"):
            q, k = norm_heads(norm, q, k, heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = norm(hidden, "post_attention_norm")
        hidden = b.residual(hidden, gated(b, x, n_ff, "silu") if layer < n_dense else mixture(x), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
