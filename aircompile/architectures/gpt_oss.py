"""gpt-oss: every other layer with a window, attention sinks, biases everywhere, experts with a bounded SwiGLU.

The router's softmax is over the chosen experts, which is the same as over all and divided by the sum of the chosen.

Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card".
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import (
    attend,
    project_output,
    project_qkv,
    read_heads,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.experts import Mixture, read_experts, softmax_router
from aircompile.architectures.toolkit.feed_forward import read_width
from aircompile.architectures.toolkit.registry import family

_ALPHA, _LIMIT = 1.702, 7.0


@family("gpt-oss")
def build(b: Builder) -> None:
    experts, heads, windows = read_experts(b, read_width(b)), read_heads(b), read_windows(b, period=2)
    mixture = Mixture(b, experts, softmax_router(experts, normalize=True), "swiglu_oai", (_ALPHA, _LIMIT))
    rope, norm = rotary(b, heads, "neox"), b.rms_norm()
    hidden = b.embedding()
    for layer in b.layers():
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        sinks = b.tensors.vector(f"{b.name('attn_sinks')}.weight", heads.n_heads)
        x = attend(b, q, k, v, heads, rope=rope, window=windows[layer], sinks=sinks)
        hidden = b.residual(hidden, project_output(b, x), "attn_residual")
        hidden = b.residual(hidden, mixture(norm(hidden, "post_attention_norm")), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
