"""Jamba: Mamba layers whose dt, b and c are normed, with attention without positions in a few layers, and experts in
every other.

Source: Lieber et al. 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_some_heads
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, has_experts, read_experts, softmax_router
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.recurrence import mamba, read_mamba
from aircompile.architectures.toolkit.registry import family


@family("jamba")
def build(b: Builder) -> None:
    n_ff, (heads, attends), shape, norm = read_width(b), read_some_heads(b), read_mamba(b), b.rms_norm()
    experts = read_experts(b, n_ff) if has_experts(b) else None
    mixture = None if experts is None else Mixture(b, experts, softmax_router(experts, normalize=False))
    hidden = b.embedding()
    for layer in b.layers():
        x = norm(hidden, "attn_norm")
        if attends[layer]:
            x = project_output(b, attend(b, *project_qkv(b, x, heads), heads))
        else:
            x = mamba(b, x, shape, norm, weighted=True)
        hidden = b.residual(hidden, x, "attn_residual")
        x = norm(hidden, "ffn_norm")
        x = mixture(x) if mixture is not None and b.has("ffn_gate_inp") else gated(b, x, n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
