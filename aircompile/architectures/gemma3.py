"""Gemma 3: like Gemma 2 without soft caps of scores, with norms of queries and keys, and five layers with a window and
a frequency base of their own to one without.

The 27B model (62 layers) scales scores by the width per head instead of the heads' own.

Source: Gemma Team 2025, "Gemma 3".
"""

from __future__ import annotations

import dataclasses
import math

from aircompile.architectures.toolkit.attention import (
    attend,
    local_rotary,
    norm_heads,
    project_output,
    project_qkv,
    read_heads,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family

_LAYERS_OF_27B = 62


@family("gemma3")
def build(b: Builder) -> None:
    n_ff, heads, windows = read_width(b), read_heads(b), read_windows(b, period=6)
    if b.n_layers == _LAYERS_OF_27B:
        heads = dataclasses.replace(heads, scale=1.0 / math.sqrt(b.n_embd // heads.n_heads))
    final_softcap = b.hyper.number("final_logit_softcapping", 0.0, 1e6, 0.0)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    local = local_rotary(b, heads, "neox", default=10000.0) if any(windows) else rope
    hidden = b.embedding(scale=math.sqrt(b.n_embd))
    for layer in b.layers():
        window = windows[layer]
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        q, k = norm_heads(norm, q, k, heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=local if window else rope, window=window))
        hidden = b.residual(hidden, norm(x, "post_attention_norm"), "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "gelu_tanh")
        hidden = b.residual(hidden, norm(x, "post_ffw_norm"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"), softcap=final_softcap)
