"""Granite 3: like llama, with factors on the embedding, on what sub-layers add, and on the logits (which are divided).

Some have experts, with or without a shared one, in the place of feed-forward sub-layers.

Source: Granite Team, IBM 2024 (maximal update parametrisation).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, has_experts, read_experts, softmax_router, with_shared
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.architectures.toolkit.registry import family


@family("granite", "granitemoe")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    # 0 stands for none
    embedding_scale = b.hyper.number("embedding_scale", 0.0, 1e6, 0.0) or 1.0
    residual_scale = b.hyper.number("residual_scale", 0.0, 1e6, 0.0) or 1.0
    logit_scale = b.hyper.number("logit_scale", 1e-6, 1e6)
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    # the key that says whether scaled positions were trained stands for whether there are positions here
    rotates = b.hyper.flag("rope.scaling.finetuned", True)
    feed_forward = _experts(b, n_ff) if has_experts(b) else partial(gated, b, n_ff=n_ff, kind="silu")
    hidden = b.embedding(scale=embedding_scale)
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope if rotates else None))
        hidden = b.residual(hidden, x, "attn_residual", residual_scale)
        x = feed_forward(norm(hidden, "ffn_norm"))
        hidden = b.residual(hidden, x, "ffn_residual", residual_scale)
    # the product with the output matrix is linear, and its input is the smaller of the two
    b.logits(b.scale(norm(hidden, "output_norm"), 1.0 / logit_scale, "scaled_output"))


def _experts(b: Builder, n_ff: int) -> Callable[[str], str]:
    """Experts and what they share."""
    experts = read_experts(b, n_ff)
    n_shared = b.hyper.integer("expert_shared_feed_forward_length", MAX_WIDTH, low=0, default=0)
    return with_shared(Mixture(b, experts, softmax_router(experts, normalize=True)), n_shared)
