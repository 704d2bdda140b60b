"""Mamba and Falcon Mamba: layers are selective scans, with nothing else between the norms and residual adds.

Falcon Mamba norms dt, b and c, without weights; the file does not carry the epsilon of that, for which the model's
stands, as in llama.cpp.

Sources: Gu & Dao 2023; Zuo et al. 2024.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.recurrence import mamba, read_mamba
from aircompile.architectures.toolkit.registry import family


@family("mamba")
def build(b: Builder) -> None:
    b.hyper.ignore("attention.head_count", "feed_forward_length")
    shape, norm = read_mamba(b), b.rms_norm()
    inner_norm = norm if b.hyper.flag("ssm.dt_b_c_rms", False) else None
    hidden = b.embedding()
    for _ in b.layers():
        x = mamba(b, norm(hidden, "attn_norm"), shape, inner_norm)
        hidden = b.residual(hidden, x, "residual")
    b.logits(norm(hidden, "output_norm"))
