"""Mamba-2: layers are linear attention whose heads forget at a rate of their own.

Source: Dao & Gu 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.recurrence import mamba2, read_mamba
from aircompile.architectures.toolkit.registry import family


@family("mamba2")
def build(b: Builder) -> None:
    b.hyper.ignore("attention.head_count", "feed_forward_length")
    shape, norm = read_mamba(b), b.rms_norm()
    hidden = b.embedding()
    for _ in b.layers():
        hidden = b.residual(hidden, mamba2(b, norm(hidden, "attn_norm"), shape, norm), "residual")
    b.logits(norm(hidden, "output_norm"))
