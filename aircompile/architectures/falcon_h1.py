"""Falcon H1: attention and Mamba-2 side by side in every layer.

The multipliers of its parametrisation are folded into the matrices of the file. The norm before the feed-forward
sub-layer has no suffix in its name.

Source: Falcon LLM Team 2025.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.recurrence import mamba2, read_mamba
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import Add, Norm


@family("falcon-h1")
def build(b: Builder) -> None:
    n_ff, heads, shape = read_width(b), read_heads(b), read_mamba(b)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    eps = b.hyper.number("attention.layer_norm_rms_epsilon", 1e-30, 1.0)
    hidden = b.embedding()
    for _ in b.layers():
        x = norm(hidden, "attn_norm")
        attended = project_output(b, attend(b, *project_qkv(b, x, heads), heads, rope=rope))
        x = b.add("mixed", Add(), attended, mamba2(b, x, shape, norm))
        hidden = b.residual(hidden, x, "attn_residual")
        weight = b.tensors.vector(b.name("ffn_norm"), b.n_embd)
        x = gated(b, b.add("ffn_norm", Norm(weight, eps), hidden), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
