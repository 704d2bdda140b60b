"""Decoders in the manner of llama: RMS norm, grouped-query attention with rotary positions, SwiGLU, residual adds.

llama 1 to 3.3, mistral, and everything else that is stored as `llama`; ERNIE 4.5 is the same. Mixtral has experts in
the place of feed-forward sub-layers (Jiang et al. 2024). Biases, untied output
matrices and rope factors are used where the file has them. Mistral's sliding window is not part of the graph:
llama.cpp, the reference for this format, ignores it for this architecture.

Sources: Touvron et al. 2023; tensor and key names from the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, has_experts, read_experts, softmax_router
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("llama", "ernie4_5")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    mixture = None
    if has_experts(b):
        experts = read_experts(b, n_ff)
        mixture = Mixture(b, experts, softmax_router(experts, normalize=True))
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    b.hyper.ignore("attention.sliding_window")
    # angles that old converters stored; they follow from the frequency base
    b.tensors.ignore(r"blk\.\d+\.attn[._]rot_embd(\.weight)?")

    hidden = b.embedding()
    for _ in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = norm(hidden, "ffn_norm")
        x = gated(b, x, n_ff, "silu") if mixture is None else mixture(x)
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
