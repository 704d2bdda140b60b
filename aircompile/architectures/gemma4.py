"""Gemma 4: like Gemma 3, with other heads in layers without a window, caches that later layers share, inputs per layer,
and a factor on what each layer makes; some have experts beside the feed-forward sub-layer.

Values are normed, without weights. The last layers have no keys and values of their own and read those of the last
layer of their kind that has. Where the file has no value matrix, keys before their norm are the values.

Source: Google DeepMind 2026; as transformers and llama.cpp compute it.
"""

from __future__ import annotations

import math

from aircompile.architectures.toolkit.attention import (
    Heads,
    Rotary,
    add_rope,
    attend,
    project_output,
    read_first_shared,
    read_rope_dim,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.experts import Mixture, has_experts, read_experts, softmax_router
from aircompile.architectures.toolkit.feed_forward import gated, read_widths
from aircompile.architectures.toolkit.limits import MAX_HEADS, MAX_WIDTH
from aircompile.architectures.toolkit.per_layer import PerLayerInputs
from aircompile.architectures.toolkit.registry import family
from aircompile.architectures.toolkit.rope import plain_rope, read_base
from aircompile.operators import Add, MatMul, Scale


@family("gemma4")
def build(b: Builder) -> None:
    widths, windows = read_widths(b), read_windows(b, period=0)
    attention = _Attention(b, windows)
    final_softcap = b.hyper.number("final_logit_softcapping", 0.0, 1e6, 0.0)
    norm = attention.norm
    mixture = None
    if has_experts(b):
        experts = read_experts(b)
        mixture = Mixture(b, experts, softmax_router(experts, normalize=True), "gelu_tanh")
    hidden = b.embedding(scale=math.sqrt(b.n_embd))
    inputs = PerLayerInputs(b, norm, hidden)
    for layer in b.layers():
        x = attention.add(norm(hidden, "attn_norm"))
        hidden = b.residual(hidden, norm(x, "post_attention_norm"), "attn_residual")
        x = gated(b, norm(hidden, "ffn_norm"), widths[layer], "gelu_tanh")
        if mixture is not None and b.has("ffn_gate_inp"):
            y = mixture(norm(hidden, "pre_ffw_norm_2"), _router_logits(b, norm, hidden, mixture.experts.n))
            x = b.add("experts_and_shared", Add(), norm(x, "post_ffw_norm_1"), norm(y, "post_ffw_norm_2"))
        hidden = b.residual(hidden, norm(x, "post_ffw_norm"), "ffn_residual")
        hidden = inputs.residual(hidden)
        scale = b.tensors.optional_vector(f"{b.name('layer_output_scale')}.weight", 1)
        hidden = hidden if scale is None else b.add("layer_output", Scale(scale), hidden)
    b.logits(norm(hidden, "output_norm"), softcap=final_softcap)


def _router_logits(b: Builder, norm: Normalize, hidden: str, n_experts: int) -> str:
    """The router reads the residual stream, normed in its own way."""
    name = b.name("ffn_gate_inp")
    x = b.scale(norm(hidden, None, output="router_norm"), 1 / math.sqrt(b.n_embd), "router_scaled")
    x = b.add("router_input", Scale(b.tensors.vector(f"{name}.scale", b.n_embd)), x)
    return b.add("router", MatMul((b.tensors.matrix(f"{name}.weight", n_experts, b.n_embd),), (None,)), x)


class _Attention:
    """Attention with heads by kind of layer; keys and values are kept for the layers that share them."""

    def __init__(self, b: Builder, windows: tuple[int, ...]) -> None:
        self.builder, self.windows, self.norm = b, windows, b.rms_norm()
        self.heads = _read_heads(b, windows)
        self.first_shared = read_first_shared(b, windows)
        self.ropes = {windowed: self._rope(windowed) for windowed in {w > 0 for w in windows}}
        self.kept: dict[bool, tuple[str, str]] = {}
        """Keys and values of the last layer that made some, by kind."""

    def _rope(self, windowed: bool) -> Rotary:
        b, heads = self.builder, next(h for h, w in zip(self.heads, self.windows, strict=True) if (w > 0) == windowed)
        if not windowed:
            return rotary(b, heads, "neox")
        dim = read_rope_dim(b, heads.head_dim, "rope.dimension_count_swa")
        return add_rope(b, heads.head_dim, "neox", plain_rope(dim, read_base(b.hyper, "rope.freq_base_swa", 10000.0)))

    def add(self, x: str) -> str:
        b, norm = self.builder, self.norm
        heads, window = self.heads[b.layer], self.windows[b.layer]
        rope = self.ropes[window > 0]
        q_width, k_width, v_width = heads.widths
        q = norm(b.linear(x, "attn_q", q_width, "q"), "attn_q_norm", groups=heads.n_heads)
        q = rope(q, heads.n_heads, "rope_q")
        if b.layer < self.first_shared:
            k = b.linear(x, "attn_k", k_width, "k")
            v = b.linear(x, "attn_v", v_width, "v") if b.has("attn_v") else k
            k = rope(norm(k, "attn_k_norm", groups=heads.n_kv_heads), heads.n_kv_heads, "rope_k")
            self.kept[window > 0] = (k, norm(v, None, groups=heads.n_kv_heads, output="attn_v_norm"))
        return project_output(b, attend(b, q, *self.kept[window > 0], heads, window=window))


def _read_heads(b: Builder, windows: tuple[int, ...]) -> list[Heads]:
    """Heads of each layer; scores are not scaled."""
    n_heads = b.hyper.integers("attention.head_count", MAX_HEADS, b.n_layers)
    n_kv_heads = b.hyper.integers("attention.head_count_kv", MAX_HEADS, b.n_layers)
    dims = {
        suffix: tuple(b.hyper.integer(f"attention.{part}_length{suffix}", MAX_WIDTH) for part in ("key", "value"))
        for suffix in {"_swa" if window else "" for window in windows}
    }
    found = []
    for n, n_kv, window in zip(n_heads, n_kv_heads, windows, strict=True):
        if n % n_kv:
            raise b.hyper.error("attention.head_count_kv", f"is {n_kv}, which does not divide {n} heads")
        head_dim, v_dim = dims["_swa" if window else ""]
        found.append(Heads(n, n_kv, head_dim, v_dim, 1.0))
    return found
