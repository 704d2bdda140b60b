"""Apertus: like Qwen 3, with xIELU (whose parameters differ between layers) without a gate.

Source: Swiss AI 2025; Huang & Schlag 2025 (xIELU).
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
from aircompile.architectures.toolkit.feed_forward import plain, read_width
from aircompile.architectures.toolkit.hyperparameters import Hyperparameters
from aircompile.architectures.toolkit.registry import family
from airkernels.exact import softplus


@family("apertus")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    # these keys are not under the architecture's name
    xielu, keys = Hyperparameters(b.model, "xielu"), ("alpha_p", "alpha_n", "beta", "eps")
    alpha_p, alpha_n, beta, eps = (xielu.numbers(key, -1e6, 1e6, b.n_layers) for key in keys)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for layer in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        q, k = norm_heads(norm, q, k, heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        # the file has them before the softplus that keeps them positive
        bends = (softplus(alpha_p[layer]), beta[layer] + softplus(alpha_n[layer]), beta[layer], eps[layer])
        x = plain(b, norm(hidden, "ffn_norm"), n_ff, "xielu", bends)
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
