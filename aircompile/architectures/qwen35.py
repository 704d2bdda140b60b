"""Qwen 3-Next, and Qwen 3.5 with and without experts: three gated delta nets to one layer of gated attention.

Positions of texts are the same on all axes, so that the sections of multi-axis rotary positions do not matter. How
heads of values share those of keys differs, and what beta and alpha come from: in Qwen 3-Next one matrix, which has
beta and alpha for the first key head, then those for the next.

Sources: Qwen Team 2025, "Qwen3-Next"; Qwen Team 2026.
"""

from __future__ import annotations

from collections.abc import Callable

from aircompile.architectures.toolkit.attention import read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.delta_net import (
    DeltaShape,
    delta_net,
    gated_attention,
    read_delta,
    read_recurrent_layers,
)
from aircompile.architectures.toolkit.experts import Mixture, has_experts, read_experts, shared, softmax_router
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import Add, GroupSlice

Feed = Callable[[str], str]
Control = Callable[[Builder, str, DeltaShape], tuple[str, str]]
"""What decays and strengths of the heads come from: alpha and beta."""


@family("qwen35", "qwen35moe")
def build(b: Builder) -> None:
    b.hyper.ignore("rope.dimension_sections")
    _build(b, _alpha_and_beta, tiled=True)


@family("qwen3next")
def build_next(b: Builder) -> None:
    _build(b, _beta_with_alpha, tiled=False)


def _build(b: Builder, control: Control, *, tiled: bool) -> None:
    recurrent = read_recurrent_layers(b)  # which counts the layers that are left out
    b.leave_out_prediction_layers()
    heads, shape, feed = read_heads(b), read_delta(b), _feed_forward(b)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for layer in b.layers():
        x = norm(hidden, "attn_norm")
        if recurrent[layer]:
            x = delta_net(b, x, *control(b, x, shape), shape, norm, tiled)
        else:
            x = gated_attention(b, x, heads, norm, rope)
        hidden = b.residual(hidden, x, "attn_residual")
        hidden = b.residual(hidden, feed(norm(hidden, "post_attention_norm")), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))


def _feed_forward(b: Builder) -> Feed:
    n_ff = read_width(b)
    if not has_experts(b):
        return lambda x: gated(b, x, n_ff, "silu")
    experts = read_experts(b)
    n_shared = b.hyper.integer("expert_shared_feed_forward_length", MAX_WIDTH)
    mixture = Mixture(b, experts, softmax_router(experts, normalize=True))
    return lambda x: b.add("experts_and_shared", Add(), mixture(x), shared(b, x, n_shared, weighed=True))


def _alpha_and_beta(b: Builder, x: str, shape: DeltaShape) -> tuple[str, str]:
    return b.linear(x, "ssm_alpha", shape.n_heads, "alpha"), b.linear(x, "ssm_beta", shape.n_heads, "beta")


def _beta_with_alpha(b: Builder, x: str, shape: DeltaShape) -> tuple[str, str]:
    n_keys, n = shape.n_key_heads, shape.n_heads // shape.n_key_heads
    both = b.linear(x, "ssm_ba", 2 * shape.n_heads, "control")
    return b.add("alpha", GroupSlice(n_keys, n, n), both), b.add("beta", GroupSlice(n_keys, 0, n), both)
