"""Gemma 3n: four residual streams of which each layer works on one and predicts and corrects the others (AltUp), a
low-rank path beside attention (LAuReL), sparse gates in the first layers, inputs per layer, and shared caches.

Values are normed, without weights. The last layers have no keys and values of their own and read those of the last
layer of their kind that has.

Sources: Google DeepMind 2025; Baykal et al. 2023 (AltUp); Menghani et al. 2024 (LAuReL); transformers for details.
"""

from __future__ import annotations

import dataclasses
import math

from aircompile.architectures.toolkit.alternating_updates import AlternatingUpdates
from aircompile.architectures.toolkit.attention import (
    attend,
    local_rotary,
    norm_heads,
    project_output,
    project_qkv,
    read_first_shared,
    read_heads,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.feed_forward import read_widths
from aircompile.architectures.toolkit.per_layer import PerLayerInputs
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import Activation, Add, CutOff, Multiply, Scale

_OWN_CACHES = 20
_SPARSE_LAYERS, _DEVIATIONS = 10, 1.6448533535003662
"""Where the file says nothing: layers with caches, layers with sparse gates, and how many deviations those cut off."""


@family("gemma3n")
def build(b: Builder) -> None:
    widths, norm = read_widths(b), b.rms_norm()
    final_softcap = b.hyper.number("final_logit_softcapping", 0.0, 1e6, 30.0)
    key = "activation_sparsity_scale"
    cuts = [_DEVIATIONS if layer < _SPARSE_LAYERS else -math.inf for layer in range(b.n_layers)]
    cuts = list(b.hyper.numbers(key, -math.inf, 10.0, b.n_layers)) if b.hyper.has(key) else cuts
    attention, altup = _Attention(b, norm), AlternatingUpdates(b, norm)
    hidden = b.embedding(scale=math.sqrt(b.n_embd))
    inputs = PerLayerInputs(b, norm, hidden)
    streams = altup.spread(hidden)
    for layer in b.layers():
        predictions = altup.predict(streams)
        active = predictions[altup.active]
        x = norm(active, "attn_norm")
        side = _laurel(b, norm, x)
        x = b.add("attn_residual", Add(), active, norm(attention.add(x), "post_attention_norm"))
        hidden = b.scale(b.add("attn_laurel_sum", Add(), x, side), math.sqrt(0.5), "attn_laurel")
        x = _feed_forward(b, norm(hidden, "ffn_norm"), widths[layer], cuts[layer])
        x = b.add("ffn_residual", Add(), hidden, norm(x, "post_ffw_norm"))
        streams = altup.correct(predictions, x)
        scale = b.tensors.vector(f"{b.name('altup_correct_scale')}.weight", b.n_embd)
        mine = inputs.gated(b.add("scaled_stream", Scale(scale), streams[altup.active]))
        streams = [streams[0], *(b.add(f"stream{i}", Add(), s, mine) for i, s in enumerate(streams) if i)]
    b.logits(norm(altup.gather(streams), "output_norm"), softcap=final_softcap)


def _laurel(b: Builder, norm: Normalize, x: str) -> str:
    """``x`` plus a normed low-rank product of it."""
    rank = b.tensors.shape(f"{b.name('laurel_l')}.weight")[0] if b.has("laurel_l") else 1
    low = b.linear(b.linear(x, "laurel_l", rank), "laurel_r", b.n_embd)
    return b.add("laurel", Add(), x, norm(low, "laurel_post_norm"))


def _feed_forward(b: Builder, x: str, n_ff: int, cut: float) -> str:
    gate, up = b.linear(x, "ffn_gate", n_ff, "gate"), b.linear(x, "ffn_up", n_ff, "up")
    gate = gate if cut == -math.inf else b.add("sparse_gate", CutOff(cut), gate)
    gate = b.add("gate_activation", Activation("gelu_tanh"), gate)
    return b.linear(b.add("gated", Multiply(), gate, up), "ffn_down", b.n_embd, "down")


class _Attention:
    """Attention whose last layers share caches."""

    def __init__(self, b: Builder, norm: Normalize) -> None:
        self.builder, self.norm, self.windows = b, norm, read_windows(b, period=5)
        self.heads = dataclasses.replace(read_heads(b), scale=1.0)
        self.first_shared = read_first_shared(b, self.windows, default=max(0, b.n_layers - _OWN_CACHES))
        self.rope = rotary(b, self.heads, "neox")
        self.local = local_rotary(b, self.heads, "neox", default=10000.0)
        self.kept: dict[bool, tuple[str, str]] = {}

    def add(self, x: str) -> str:
        b, heads, window = self.builder, self.heads, self.windows[self.builder.layer]
        rope = self.local if window else self.rope
        if b.layer < self.first_shared:
            q, k, v = project_qkv(b, x, heads)
            q, k = norm_heads(self.norm, q, k, heads)
            k = rope(k, heads.n_kv_heads, "rope_k")
            self.kept[window > 0] = (k, self.norm(v, None, groups=heads.n_kv_heads, output="attn_v_norm"))
        else:
            q = self.norm(b.linear(x, "attn_q", heads.widths[0], "q"), "attn_q_norm", groups=heads.n_heads)
        q = rope(q, heads.n_heads, "rope_q")
        return project_output(b, attend(b, q, *self.kept[window > 0], heads, window=window))
