"""GPT-2 and StarCoder: learned positions, layer norms, biases everywhere, GELU without a gate.

StarCoder shares one head of keys and values.

Sources: Radford et al. 2019; Li et al. 2023.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import plain, read_width
from aircompile.architectures.toolkit.registry import family


@family("gpt2", "starcoder")
def build(b: Builder) -> None:
    n_ff, heads, norm = read_width(b), read_heads(b), b.layer_norm()
    hidden = b.learned_positions(b.embedding())
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        hidden = b.residual(hidden, project_output(b, attend(b, q, k, v, heads)), "attn_residual")
        x = plain(b, norm(hidden, "ffn_norm"), n_ff, "gelu_tanh")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
