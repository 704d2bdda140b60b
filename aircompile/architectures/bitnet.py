"""BitNet b1.58: like llama, with a further norm before the last product of each sub-layer; matrices may have a scale.

Source: Ma et al. 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gate_up, read_width
from aircompile.architectures.toolkit.registry import family


@family("bitnet")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = norm(attend(b, q, k, v, heads, rope=rope), "attn_sub_norm")
        hidden = b.residual(hidden, project_output(b, x), "attn_residual")
        x = norm(gate_up(b, norm(hidden, "ffn_norm"), n_ff, "silu"), "ffn_sub_norm")
        hidden = b.residual(hidden, b.linear(x, "ffn_down", b.n_embd, "down"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
