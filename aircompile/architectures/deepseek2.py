"""DeepSeek V2, V2 Lite, V3 and R1: latent attention, leading dense layers, then experts beside shared ones.

V3 chooses by sigmoids with a bias that balances the load, within the best groups of experts; layers that only predict
further tokens are left out.

Sources: DeepSeek-AI 2024, "DeepSeek-V2" and "DeepSeek-V3".
"""

from __future__ import annotations

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, leading_dense, read_experts, read_router, with_shared
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.latent_attention import LatentAttention
from aircompile.architectures.toolkit.limits import MAX_HEADS
from aircompile.architectures.toolkit.registry import family


@family("deepseek2")
def build(b: Builder) -> None:
    b.leave_out_prediction_layers()
    n_ff, n_dense, experts = read_width(b), leading_dense(b), read_experts(b)
    n_shared = experts.n_ff * b.hyper.integer("expert_shared_count", MAX_HEADS, low=0)
    mixture = with_shared(Mixture(b, experts, read_router(b, experts, "softmax")), n_shared)
    norm = b.rms_norm()
    attention = LatentAttention(b, norm)
    hidden = b.embedding()
    for layer in b.layers():
        hidden = b.residual(hidden, attention(norm(hidden, "attn_norm")), "attn_residual")
        x = norm(hidden, "ffn_norm")
        hidden = b.residual(hidden, gated(b, x, n_ff, "silu") if layer < n_dense else mixture(x), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
