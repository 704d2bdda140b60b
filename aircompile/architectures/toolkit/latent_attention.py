"""Multi-head latent attention (Liu et al. 2024, "DeepSeek-V2"): keys and values of all heads come from a short vector.

A head has a part that rotates, which all keys share, and a part that does not. Where the file has the matrices of keys
and values apart, those are absorbed: the one of the keys is applied to queries, the one of the values to what attention
returns, and the cache holds the short vector, as a single KV head. Otherwise keys and values are spelled out.

Rotating parts are put first, so that a rotation begins with a head.
"""

from __future__ import annotations

import dataclasses
import math

from aircompile.architectures.toolkit.attention import Heads, Rotary, add_rope, attend, project_output
from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.limits import MAX_HEADS, MAX_WIDTH
from aircompile.architectures.toolkit.rope import read_rope
from aircompile.operators import HeadMatMul, Join, Slice, Split
from airkernels import exact


class LatentAttention:
    """Attention of every layer of a model: ``attention(x)`` adds one with its output projection."""

    def __init__(self, b: Builder, norm: Normalize) -> None:
        hyper = b.hyper
        self.builder, self.norm = b, norm
        self.n_heads = hyper.uniform_integer("attention.head_count", MAX_HEADS, b.n_layers)
        self.rank = hyper.integer("attention.kv_lora_rank", MAX_WIDTH)
        self.q_rank = hyper.integer("attention.q_lora_rank", MAX_WIDTH, low=0, default=0)
        # older files have the lengths of heads where newer ones have those of the absorbed form
        suffix = "_mla" if hyper.has("attention.key_length_mla") else ""
        self.head_dim = hyper.integer(f"attention.key_length{suffix}", MAX_WIDTH)
        self.v_dim = hyper.integer(f"attention.value_length{suffix}", MAX_WIDTH)
        hyper.ignore("attention.key_length", "attention.value_length", "attention.head_count_kv")
        self.rope_dim = hyper.integer("rope.dimension_count", MAX_WIDTH)
        if self.rope_dim >= self.head_dim or self.rope_dim % 2:
            raise hyper.error("rope.dimension_count", f"is {self.rope_dim}, in heads of {self.head_dim}")
        self.absorbed = b.tensors.has("blk.0.attn_k_b.weight")
        self.scale, self.rope = self._positions()

    def _positions(self) -> tuple[float, Rotary]:
        """The factor of scores, and the rotation. Where YaRN stretches the context, its magnitude counts in the factor,
        which scales the parts that do not rotate too."""
        hyper, b = self.builder.hyper, self.builder
        rope, scale = read_rope(hyper, self.rope_dim, b.n_ctx_train), 1.0 / math.sqrt(self.head_dim)
        # a tenth of the model's own multiplier
        multiplier = hyper.number("rope.scaling.yarn_log_multiplier", 0.0, 1e6, 0.0)
        if multiplier and hyper.text("rope.scaling.type", "linear") == "yarn":
            factor = hyper.number("rope.scaling.factor", 1.0, 1e6)
            stretch = 1.0 + multiplier * exact.log(factor)
            scale *= stretch * stretch
            rope = dataclasses.replace(rope, magnitude=1.0)
        width = self.rope_dim + (self.rank if self.absorbed else self.head_dim - self.rope_dim)
        return scale, add_rope(b, width, "normal", rope)

    def __call__(self, x: str) -> str:
        b, n_plain = self.builder, self.head_dim - self.rope_dim
        both = b.linear(x, "attn_kv_a_mqa", self.rank + self.rope_dim, "latent+k_rotating")
        latent = self.norm(b.add("latent", Slice(0, self.rank), both), "attn_kv_a_norm")
        k_rotating = b.add("k_rotating", Slice(self.rank, self.rope_dim), both)
        queries = b.add("q_heads", Split(self.n_heads), self._queries(x))
        q_plain = b.add("q_plain", Slice(0, n_plain), queries)
        q_rotating = b.add("q_rotating", Slice(n_plain, self.rope_dim), queries)
        attention = self._absorbed if self.absorbed else self._spelled_out
        return project_output(b, attention(q_rotating, q_plain, k_rotating, latent))

    def _queries(self, x: str) -> str:
        b, width = self.builder, self.n_heads * self.head_dim
        if not self.q_rank:
            return b.linear(x, "attn_q", width, "q")
        x = self.norm(b.linear(x, "attn_q_a", self.q_rank), "attn_q_a_norm")
        return b.linear(x, "attn_q_b", width, "q")

    def _absorbed(self, q_rotating: str, q_plain: str, k_rotating: str, latent: str) -> str:
        b, n_heads = self.builder, self.n_heads
        q = self._per_head("attn_k_b", q_plain, self.rank)
        q = b.add("q_joined", Split(1), b.add("q_absorbed", Join(), q_rotating, q))
        k = b.add("k", Join(), k_rotating, latent)
        heads = Heads(n_heads, 1, self.rope_dim + self.rank, self.rank, self.scale)
        y = b.add("attention_heads", Split(n_heads), attend(b, q, k, latent, heads, rope=self.rope))
        return b.add("attention_joined", Split(1), self._per_head("attn_v_b", y, self.v_dim))

    def _per_head(self, part: str, x: str, n_rows: int) -> str:
        b = self.builder
        weight = b.tensors.matrices(f"{b.name(part)}.weight", self.n_heads, n_rows, b.width(x))
        return b.add(part, HeadMatMul(weight), x)

    def _spelled_out(self, q_rotating: str, q_plain: str, k_rotating: str, latent: str) -> str:
        b, n_heads, n_plain = self.builder, self.n_heads, self.head_dim - self.rope_dim
        both = b.add("kv_heads", Split(n_heads), b.linear(latent, "attn_kv_b", n_heads * (n_plain + self.v_dim)))
        k_plain = b.add("k_plain", Slice(0, n_plain), both)
        k = b.add("k_joined", Split(1), b.add("k", Join(), k_rotating, k_plain))
        v = b.add("v_joined", Split(1), b.add("v", Join(), b.add("v_heads", Slice(n_plain, self.v_dim), both)))
        q = b.add("q_joined", Split(1), b.add("q_turned", Join(), q_rotating, q_plain))
        heads = Heads(n_heads, n_heads, self.head_dim, self.v_dim, self.scale)
        return attend(b, q, k, v, heads, rope=self.rope)
