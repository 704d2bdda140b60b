"""SmolLM 3: like llama, but every fourth layer has no positions.

Source: Bakouch et al. 2025.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family

_ROPE_PERIOD = 4


@family("smollm3")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    hidden = b.embedding()
    for layer in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        rotates = (layer + 1) % _ROPE_PERIOD != 0
        x = project_output(b, attend(b, q, k, v, heads, rope=rope if rotates else None))
        hidden = b.residual(hidden, x, "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), n_ff, "silu")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
