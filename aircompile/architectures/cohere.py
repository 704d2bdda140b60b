"""Command R: one layer norm without bias feeds attention and the feed-forward sub-layer side by side.

Command R7B and A (`cohere2`) have a window and positions in three of four layers, and neither in the fourth. Logits
are scaled.

Source: Cohere 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import (
    attend,
    norm_heads,
    project_output,
    project_qkv,
    read_heads,
    read_windows,
    rotary,
)
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated, read_width
from aircompile.architectures.toolkit.registry import family


@family("command-r")
def command_r(b: Builder) -> None:
    _build(b, (0,) * b.n_layers, all_rotate=True)


@family("cohere2")
def cohere2(b: Builder) -> None:
    _build(b, read_windows(b, period=4), all_rotate=False)


def _build(b: Builder, windows: tuple[int, ...], all_rotate: bool) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    logit_scale = b.hyper.number("logit_scale", 0.0, 1e6, 0.0) or 1.0
    rope, norm = rotary(b, heads, "normal"), b.layer_norm()
    hidden = b.embedding()
    for layer in b.layers():
        x, window = norm(hidden, "attn_norm"), windows[layer]
        q, k, v = project_qkv(b, x, heads)
        if b.has("attn_q_norm"):
            q, k = norm_heads(norm, q, k, heads)
        rotates = all_rotate or window > 0
        attended = attend(b, q, k, v, heads, rope=rope if rotates else None, window=window)
        hidden = b.residual(hidden, project_output(b, attended), "attn_residual")
        hidden = b.residual(hidden, gated(b, x, n_ff, "silu"), "ffn_residual")
    # the product with the output matrix is linear, and its input is the smaller of the two
    b.logits(b.scale(norm(hidden, "output_norm"), logit_scale, "scaled_output"))
