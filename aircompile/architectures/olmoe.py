"""OLMoE: like llama with experts, and norms of whole rows of queries and keys.

Source: Muennighoff et al. 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, read_experts, softmax_router
from aircompile.architectures.toolkit.feed_forward import read_width
from aircompile.architectures.toolkit.registry import family


@family("olmoe")
def build(b: Builder) -> None:
    experts, heads = read_experts(b, read_width(b)), read_heads(b)
    mixture = Mixture(b, experts, softmax_router(experts, normalize=False))
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        q, k = norm(q, "attn_q_norm"), norm(k, "attn_k_norm")
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        hidden = b.residual(hidden, mixture(norm(hidden, "ffn_norm")), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
