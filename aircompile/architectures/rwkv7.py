"""RWKV-7: linear attention whose state each token decays, corrects and adds to.

Source: Peng et al. 2025, "RWKV-7 Goose".
"""

from __future__ import annotations

import math

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import read_width
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.architectures.toolkit.recurrence import lerp, read_wkv_heads
from aircompile.architectures.toolkit.registry import family
from aircompile.operators import (
    Activation,
    Add,
    Function,
    GroupDot,
    Join,
    LinearAttention,
    MatMul,
    Multiply,
    Norm,
    Scale,
    TokenShift,
)

_NORM_EPS = 64e-5
_UNIT_EPS = 1e-24
_LOG_DECAY = -0.606531
"""Of the strongest decay: -exp(-1/2)."""
_RANKS = {"w": "decay", "a": "iclr", "v": "value_residual_mix", "g": "gate"}


@family("rwkv7")
def build(b: Builder) -> None:
    n_ff, n_heads, norm = read_width(b), read_wkv_heads(b), b.layer_norm()
    ranks = {i: b.hyper.integer(f"attention.{name}_lora_rank", MAX_WIDTH) for i, name in _RANKS.items()}
    b.hyper.ignore("attention.head_count")
    b.tensors.ignore(r"blk\.0\.time_mix_v[012]\.weight")  # the first layer's values are those that others mix with
    hidden, first_values = norm(b.embedding(), "token_embd_norm"), None
    for _ in b.layers():
        x, first_values = _time_mix(b, norm(hidden, "attn_norm"), n_heads, ranks, first_values)
        hidden = b.residual(hidden, x, "attn_residual")
        hidden = b.residual(hidden, _channel_mix(b, norm(hidden, "attn_norm_2"), n_ff), "ffn_residual")
    b.logits(norm(hidden, "output_norm"))


def _time_mix(b: Builder, x: str, n_heads: int, ranks: dict[str, int], first_values: str | None) -> tuple[str, str]:
    n, head_dim = b.n_embd, b.n_embd // n_heads
    shift = b.add("time_shift", TokenShift(n), x)
    amounts = b.tensors.parts(f"{b.name('time_mix_lerp_fused')}.weight", 6, n)
    xr, xw, xk, xv, xa, xg = (lerp(b, x, shift, by, f"mixed_{i}") for i, by in zip("rwkvag", amounts, strict=True))
    r, k, v = (
        b.linear(given, f"time_mix_{part}", n) for given, part in ((xr, "receptance"), (xk, "key"), (xv, "value"))
    )
    decay = b.add("decay_gate", Activation("sigmoid"), _low_rank(b, xw, "w", ranks, "tanh"))
    decay = b.add("decay", Activation("exp"), b.scale(decay, _LOG_DECAY, "log_decay"))
    if first_values is None:
        first_values = v
    else:
        amount = b.add("value_gate", Activation("sigmoid"), _low_rank(b, xv, "v", ranks))
        away = b.add("value_difference", Add(-1.0), first_values, v)
        v = b.add("mixed_values", Add(), v, b.add("value_shift", Multiply(), away, amount))
    rate = b.add("rate", Activation("sigmoid"), _low_rank(b, xa, "a", ranks))

    # what is taken out of the state, and what replaces it, along keys of length 1
    unit = b.add(
        "unit_norm", Norm(None, _UNIT_EPS / head_dim, groups=n_heads), b.add("removal_key", Scale(_vector(b, "k_k")), k)
    )
    unit = b.scale(unit, 1.0 / math.sqrt(head_dim), "unit_key")
    removed, replaced = b.scale(unit, -1.0, "removed"), b.add("replaced", Multiply(), unit, rate)
    key_share = b.add("key_share", Scale(_vector(b, "k_a")), k)
    change = b.add("key_change", Add(-1.0), b.add("rated_share", Multiply(), rate, key_share), key_share)
    k = b.add("replacement_key", Add(), k, change)

    op = LinearAttention(n_heads, n_heads, head_dim, head_dim, "rank_one")
    y = b.add("wkv", op, r, k, v, decay, b.add("correction", Join(), removed, replaced))
    bias = b.tensors.vector(f"{b.name('time_mix_ln')}.bias", n)
    y = b.add("wkv_norm", Norm(_vector(b, "ln"), _NORM_EPS, bias, "layer", n_heads), y)
    bonus = b.add("bonus", GroupDot(n_heads), b.add("bonus_key", Scale(_vector(b, "r_k")), k), r)
    y = b.add("with_bonus", Add(), y, b.add("bonus_values", Multiply(), v, bonus))
    y = b.add("gated", Multiply(), y, _low_rank(b, xg, "g", ranks, "sigmoid"))
    return b.linear(y, "time_mix_output", n), first_values


def _low_rank(b: Builder, x: str, part: str, ranks: dict[str, int], kind: Function | None = None) -> str:
    """``w2 activation(w1 x) + w0``."""
    x = b.linear(x, f"time_mix_{part}1", ranks[part])
    x = x if kind is None else b.add(f"{part}_activation", Activation(kind), x)
    matrix = b.tensors.matrix(f"{b.name(f'time_mix_{part}2')}.weight", b.n_embd, ranks[part])
    bias = b.tensors.optional_vector(f"{b.name(f'time_mix_{part}0')}.weight", b.n_embd)
    return b.add(f"{part}_product", MatMul((matrix,), (bias,)), x)


def _channel_mix(b: Builder, x: str, n_ff: int) -> str:
    by = b.tensors.vector(f"{b.name('channel_mix_lerp_k')}.weight", b.n_embd)
    k = lerp(b, x, b.add("channel_shift", TokenShift(b.n_embd), x), by, "channel_mixed")
    k = b.add("channel_activation", Activation("relu2"), b.linear(k, "channel_mix_key", n_ff))
    return b.linear(k, "channel_mix_value", b.n_embd)


def _vector(b: Builder, part: str) -> str:
    return b.tensors.vector(f"{b.name(f'time_mix_{part}')}.weight", b.n_embd)
