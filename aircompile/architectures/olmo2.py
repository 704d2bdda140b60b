"""OLMo 2 and 3: norms after the sub-layers instead of before, norms of whole rows of queries and keys; in OLMo 3 three
layers with a window, whose positions are not scaled, to one without.

Source: OLMo Team 2024, "2 OLMo 2 Furious".
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import (
    attend,
    local_rotary,
    project_output,
    project_qkv,
    read_heads,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family
from aircompile.architectures.toolkit.rope import read_base


@family("olmo2")
def build(b: Builder) -> None:
    n_ff, heads, windows = read_width(b), read_heads(b), read_windows(b, period=4)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    local = local_rotary(b, heads, "neox", read_base(b.hyper, "rope.freq_base", 10000.0)) if any(windows) else rope
    hidden = b.embedding()
    for layer in b.layers():
        window = windows[layer]
        q, k, v = project_qkv(b, hidden, heads)
        q, k = norm(q, "attn_q_norm"), norm(k, "attn_k_norm")
        x = project_output(b, attend(b, q, k, v, heads, rope=local if window else rope, window=window))
        hidden = b.residual(hidden, norm(x, "post_attention_norm"), "attn_residual")
        x = gated(b, hidden, n_ff, "silu")
        hidden = b.residual(hidden, norm(x, "post_ffw_norm"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
