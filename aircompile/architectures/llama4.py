"""Llama 4: three layers with chunked attention and rotary positions to one that sees everything and has none; experts
in every layer or every other, chosen by sigmoids that weigh what they are given, beside a shared one.

Heads of queries and keys are normed after they rotate, but not in the model of 128 experts. In layers without positions
queries grow with the length of the context. A window of 0 in the file means rotation everywhere, and no chunks.

Source: Meta AI 2025; as transformers and llama.cpp compute it.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import (
    Heads,
    Rotary,
    attend,
    project_output,
    project_qkv,
    read_heads,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.experts import Mixture, read_experts, with_shared
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.limits import MAX_CONTEXT, MAX_LAYERS
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import Route, ScaleByPosition

_CHUNK = 8192
_PERIOD = 4
_STRENGTH = 0.1
_EXPERTS_WITHOUT_NORMS = 128


@family("llama4")
def build(b: Builder) -> None:
    n_ff, heads, experts = read_width(b), read_heads(b), read_experts(b)
    step = b.hyper.integer("interleave_moe_layer_step", MAX_LAYERS, low=0)
    router = Route(experts.n_used, "sigmoid", False, experts.scale)
    mixture = with_shared(Mixture(b, experts, router, weigh_first=True), experts.n_ff)
    chunked = b.hyper.integer("attention.sliding_window", MAX_CONTEXT, low=0, default=_CHUNK) > 0
    rope, norm = rotary(b, heads, "normal"), b.rms_norm()
    norm_heads = norm if experts.n != _EXPERTS_WITHOUT_NORMS else None
    hidden = b.embedding()
    for layer in b.layers():
        rotates = not chunked or layer % _PERIOD < _PERIOD - 1
        x = _attention(b, norm(hidden, "attn_norm"), heads, rope if rotates else None, chunked, norm_heads)
        hidden = b.residual(hidden, x, "attn_residual")
        x = norm(hidden, "ffn_norm")
        sparse = step > 0 and layer % step == step - 1
        hidden = b.residual(hidden, mixture(x) if sparse else gated(b, x, n_ff, "silu"), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))


def _attention(b: Builder, x: str, heads: Heads, rope: Rotary | None, chunked: bool, norm: Normalize | None) -> str:
    q, k, v = project_qkv(b, x, heads)
    if rope is None:
        q = b.add("q_scaled", ScaleByPosition(_CHUNK, _STRENGTH), q)
        return project_output(b, attend(b, q, k, v, heads))
    q, k = rope(q, heads.n_heads, "rope_q"), rope(k, heads.n_kv_heads, "rope_k")
    if norm is not None:
        q = norm(q, None, groups=heads.n_heads, output="q_norm")
        k = norm(k, None, groups=heads.n_kv_heads, output="k_norm")
    return project_output(b, attend(b, q, k, v, heads, chunk=_CHUNK if chunked else 0))
