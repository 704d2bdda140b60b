"""RWKV-6: linear attention whose decay each token chooses, mixed with the token before by amounts it chooses too.

Sources: Peng et al. 2024, "Eagle and Finch"; what is stored of it, llama.cpp's converter. Where layers are rescaled,
the file's matrices are as well, and the residual stream is halved after every so many layers.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import read_width
from aircompile.architectures.toolkit.limits import MAX_LAYERS, MAX_WIDTH
from aircompile.architectures.toolkit.recurrence import lerp, read_wkv_heads
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import Activation, Add, LinearAttention, MatMul, Multiply, Norm, Slice, TokenShift

_NORM_EPS = 64e-5
_MIXED = "wkvrg"
"""What a mixture of a token and the one before is for, in the order of the file."""


@family("rwkv6")
def build(b: Builder) -> None:
    n_ff, n_heads, norm = read_width(b), read_wkv_heads(b), b.layer_norm()
    ranks = tuple(b.hyper.integer(f"time_{kind}_extra_dim", MAX_WIDTH) for kind in ("mix", "decay"))
    rescale = b.hyper.integer("rescale_every_n_layers", MAX_LAYERS, low=0, default=0)
    b.hyper.ignore("attention.head_count")
    hidden = norm(b.embedding(), "token_embd_norm")
    for layer in b.layers():
        hidden = b.residual(hidden, _time_mix(b, norm(hidden, "attn_norm"), n_heads, *ranks), "attn_residual")
        hidden = b.residual(hidden, _channel_mix(b, norm(hidden, "attn_norm_2"), n_ff), "ffn_residual")
        if rescale and (layer + 1) % rescale == 0:
            hidden = b.scale(hidden, 0.5, "rescaled")
    b.logits(norm(hidden, "output_norm"))


def _time_mix(b: Builder, x: str, n_heads: int, mix_rank: int, decay_rank: int) -> str:
    n = b.n_embd
    given = dict(zip(_MIXED, _mixtures(b, x, mix_rank), strict=True))
    r, k, v = (
        b.linear(given[i], f"time_mix_{name}", n) for i, name in (("r", "receptance"), ("k", "key"), ("v", "value"))
    )
    gate = b.add("gate", Activation("silu"), b.linear(given["g"], "time_mix_gate", n))
    decay = b.add("decay_hidden", Activation("tanh"), b.linear(given["w"], "time_mix_decay_w1", decay_rank))
    w2, base = b.tensors.matrix(f"{b.name('time_mix_decay_w2')}.weight", n, decay_rank), _vector(b, "time_mix_decay")
    # exp(-exp(w))
    decay = b.add("decay_rate", Activation("exp"), b.add("log_decay_rate", MatMul((w2,), (base,)), decay))
    decay = b.add("decay", Activation("exp"), b.scale(decay, -1.0, "log_decay"))
    bonus = b.tensors.flat(f"{b.name('time_mix_first')}.weight", n_heads, n // n_heads)
    y = b.add("wkv", LinearAttention(n_heads, n_heads, n // n_heads, n // n_heads, "bonus", bonus), r, k, v, decay)
    bias = b.tensors.vector(f"{b.name('time_mix_ln')}.bias", n)
    y = b.add("wkv_norm", Norm(_vector(b, "time_mix_ln"), _NORM_EPS, bias, "layer", n_heads), y)
    return b.linear(b.add("gated", Multiply(), y, gate), "time_mix_output", n)


def _mixtures(b: Builder, x: str, rank: int) -> list[str]:
    """Five mixtures of each token with the one before, by amounts that a first mixture decides."""
    n, shift = b.n_embd, b.add("time_shift", TokenShift(b.n_embd), x)
    first = lerp(b, x, shift, _vector(b, "time_mix_lerp_x"), "mixed_x")
    chosen = b.add("chosen", Activation("tanh"), b.linear(first, "time_mix_w1", len(_MIXED) * rank))
    matrices = b.tensors.parts(f"{b.name('time_mix_w2')}.weight", len(_MIXED), n, rank)
    if b.has("time_mix_lerp_fused"):
        amounts = b.tensors.parts(f"{b.name('time_mix_lerp_fused')}.weight", len(_MIXED), n)
    else:
        amounts = tuple(_vector(b, f"time_mix_lerp_{i}") for i in _MIXED)
    found = []
    for i, (name, matrix, amount) in enumerate(zip(_MIXED, matrices, amounts, strict=True)):
        part = b.add(f"chosen_{name}", Slice(i * rank, rank), chosen)
        by = b.add(f"amount_{name}", MatMul((matrix,), (amount,)), part)
        found.append(b.add(f"mixed_{name}", Add(), x, b.add(f"shift_{name}", Multiply(), by, shift)))
    return found


def _channel_mix(b: Builder, x: str, n_ff: int) -> str:
    shift = b.add("channel_shift", TokenShift(b.n_embd), x)
    k = lerp(b, x, shift, _vector(b, "channel_mix_lerp_k"), "channel_mixed_k")
    k = b.add("channel_activation", Activation("relu2"), b.linear(k, "channel_mix_key", n_ff))
    r = lerp(b, x, shift, _vector(b, "channel_mix_lerp_r"), "channel_mixed_r")
    r = b.add("channel_gate", Activation("sigmoid"), b.linear(r, "channel_mix_receptance", b.n_embd))
    return b.add("channel_mix", Multiply(), r, b.linear(k, "channel_mix_value", b.n_embd))


def _vector(b: Builder, part: str) -> str:
    return b.tensors.vector(f"{b.name(part)}.weight", b.n_embd)
