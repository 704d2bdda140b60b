"""BLOOM: biases of attention that grow with distance (ALiBi) for positions, a norm of the embedding, layer norms.

Source: Le Scao et al. 2022.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import plain, read_width
from aircompile.architectures.toolkit.registry import family

_ALIBI = 8.0


@family("bloom")
def build(b: Builder) -> None:
    n_ff, heads, norm = read_width(b), read_heads(b), b.layer_norm()
    hidden = norm(b.embedding(), "token_embd_norm")
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, alibi=_ALIBI))
        hidden = b.residual(hidden, x, "attn_residual")
        x = plain(b, norm(hidden, "ffn_norm"), n_ff, "gelu_tanh")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
