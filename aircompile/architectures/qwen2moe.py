"""Qwen 1.5 and 2 with experts: like Qwen 2, with experts and a shared one that a gate of its own weighs.

Weights of the chosen experts stay what softmax over all made them.

Source: Qwen Team 2024, "Qwen1.5-MoE".
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, read_experts, shared, softmax_router
from aircompile.architectures.toolkit.feed_forward import read_width
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import Add


@family("qwen2moe")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    experts = read_experts(b, n_ff // b.hyper.integer("expert_used_count", n_ff))
    n_shared = b.hyper.integer("expert_shared_feed_forward_length", MAX_WIDTH, default=n_ff)
    mixture = Mixture(b, experts, softmax_router(experts, normalize=False))
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = norm(hidden, "ffn_norm")
        x = b.add("experts_and_shared", Add(), mixture(x), shared(b, x, n_shared, weighed=True))
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
