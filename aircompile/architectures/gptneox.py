"""GPT-NeoX and Pythia: layer norms, part of each head rotates, sub-layers side by side or one after the other.

Source: Black et al. 2022.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.attention import attend, project_output, project_qkv, read_heads, rotary
from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import plain, read_width
from aircompile.architectures.toolkit.registry import family


@family("gptneox")
def build(b: Builder) -> None:
    n_ff, heads = read_width(b), read_heads(b)
    parallel = b.hyper.flag("use_parallel_residual", True)
    rope, norm = rotary(b, heads, "neox"), b.layer_norm()
    hidden = b.embedding()
    for _ in b.layers():
        before = hidden
        q, k, v = project_qkv(b, norm(hidden, "attn_norm"), heads)
        x = project_output(b, attend(b, q, k, v, heads, rope=rope))
        hidden = b.residual(hidden, x, "attn_residual")
        x = plain(b, norm(before if parallel else hidden, "ffn_norm"), n_ff, "gelu_tanh")
        hidden = b.residual(hidden, x, "ffn_residual")
    b.logits(norm(hidden, "output_norm"))
