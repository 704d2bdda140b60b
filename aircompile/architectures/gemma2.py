"""Gemma 2: norms on both sides of each sub-layer, soft-capped scores and logits, a window in every other layer.

The 27B model (46 layers) scales scores by the width per head instead of the heads' own.

Source: Gemma Team 2024, "Gemma 2".
"""

from __future__ import annotations

import dataclasses
import math

from aircompile.architectures.toolkit.attention import (
    attend,
    project_output,
    project_qkv,
    read_heads,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family

_LAYERS_OF_27B = 46
_WINDOW = 4096


@family("gemma2")
def build(b: Builder) -> None:
    n_ff, heads, windows = read_width(b), read_heads(b), read_windows(b, period=2, default=_WINDOW)
    if b.n_layers == _LAYERS_OF_27B:
        heads = dataclasses.replace(heads, scale=1.0 / math.sqrt(b.n_embd // heads.n_heads))
    softcap = b.hyper.number("attn_logit_softcapping", 0.0, 1e6, 50.0)
    final_softcap = b.hyper.number("final_logit_softcapping", 0.0, 1e6, 30.0)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding(scale=math.sqrt(b.n_embd))
    for layer in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope, window=windows[layer], softcap=softcap))
        hidden = b.residual(hidden, norm(x, "post_attention_norm"), "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "gelu_tanh")
        hidden = b.residual(hidden, norm(x, "post_ffw_norm"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"), softcap=final_softcap)
