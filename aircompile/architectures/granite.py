"""Granite 3: like llama, with factors on the embedding, on what sub-layers add, and on the logits (which are divided).

Some have experts, with or without a shared one, in the place of feed-forward sub-layers.

Source: Granite Team, IBM 2024 (maximal update parametrisation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, has_experts, read_experts, softmax_router, with_shared
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.architectures.toolkit.registry import family


@dataclass(frozen=True)
class Scales:
    """Factors on the embedding and on what sub-layers add; the divisor of logits."""

    embedding: float
    residual: float
    logits: float


def read_scales(b: Builder) -> Scales:
    # 0 stands for none
    embedding = b.hyper.number("embedding_scale", 0.0, 1e6, 0.0) or 1.0
    residual = b.hyper.number("residual_scale", 0.0, 1e6, 0.0) or 1.0
    return Scales(embedding, residual, b.hyper.number("logit_scale", 1e-6, 1e6))


@family("granite", "granitemoe")
def build(b: Builder) -> None:
    heads, scales, feed = read_heads(b), read_scales(b), feed_forward(b)
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    # the key that says whether scaled positions were trained stands for whether there are positions here
    rotates = b.hyper.flag("rope.scaling.finetuned", True)
    hidden = b.embedding(scale=scales.embedding)
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope if rotates else None))
        hidden = b.residual(hidden, x, "attn_residual", scales.residual)
        hidden = b.residual(hidden, feed(norm(hidden, "ffn_norm")), "ffn_residual", scales.residual)
    # the product with the output matrix is linear, and its input is the smaller of the two
    b.logits(b.scale(norm(hidden, "output_norm"), 1.0 / scales.logits, "scaled_output"))


def feed_forward(b: Builder) -> Callable[[str], str]:
    """A dense sub-layer, or experts and what they share."""
    n_ff = read_width(b)
    if not has_experts(b):
        return lambda x: gated(b, x, n_ff, "silu")
    experts = read_experts(b, n_ff)
    n_shared = b.hyper.integer("expert_shared_feed_forward_length", MAX_WIDTH, low=0, default=0)
    return with_shared(Mixture(b, experts, softmax_router(experts, normalize=True)), n_shared)
