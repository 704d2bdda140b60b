"""Rotation, the cache, and attention over it."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import attention
from airkernels.cpu import rope as rope_kernels
from airkernels.cpu.attention_pass import AttentionShape
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.rope import RopeShape
from airschedules.specs.kernel import KernelSpec, Program


@dataclass(frozen=True)
class RopeSpec(KernelSpec):
    """Rotation of the heads of a value."""

    rope: RopeShape
    head_dim: int
    in_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rope.n_heads * self.head_dim,)

    @property
    def rate(self) -> str:
        return "ropestore"

    def build(self, isa: VectorIsa) -> Program:
        strides = (self.in_stride, self.out_stride)
        return rope_kernels.rope(self.symbol, isa, self.rope, self.head_dim, *strides)


@dataclass(frozen=True)
class RopeStoreSpec(KernelSpec):
    """Rotation of queries and keys, and the write to the cache."""

    cache: CacheLayout
    rope: RopeShape
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rope.n_heads, self.cache.n_kv_heads, self.cache.head_dim)

    def build(self, isa: VectorIsa) -> Program:
        return rope_kernels.rope_store(self.symbol, isa, self.cache, self.rope, *self.strides)


@dataclass(frozen=True)
class AttentionSpec(KernelSpec):
    """Attention over the cache; `group` tokens and `heads` query heads a task, which sums up `parts` parts apart. The
    last fields as in ``AttentionShape``."""

    cache: CacheLayout
    n_heads: int
    scale: float
    q_stride: int
    out_stride: int
    group: int
    heads: int = 1
    parts: int = 1
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_heads, self.cache.n_kv_heads, self.cache.head_dim)

    @property
    def rate(self) -> str:
        return "attention"

    def attention_shape(self, isa: VectorIsa) -> AttentionShape:
        return AttentionShape(
            self.n_heads,
            self.scale,
            self.q_stride,
            self.out_stride,
            self.group,
            min(self.group, isa.registers // 4),
            self.heads,
            self.parts,
            self.window,
            self.chunk,
            self.softcap,
            self.alibi,
            self.sinks,
        )

    def build(self, isa: VectorIsa) -> Program:
        return attention.attention(self.symbol, isa, self.cache, self.attention_shape(isa))

    def scratch_nbytes(self, isa: VectorIsa) -> int:
        return attention.scratch_nbytes(self.cache, self.attention_shape(isa))

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        heads = f"{self.heads} heads, " if self.heads > 1 else ""
        parts = f", {self.parts} parts" if self.parts > 1 else ""
        tile = self.attention_shape(isa).tile
        return f"tile {tile} tokens, {heads}blocks of {BLOCK_CELLS} cells{parts}", "online softmax by blocks"


@dataclass(frozen=True)
class AttentionPartsSpec(AttentionSpec):
    """The sums of the parts of a single token, a task each."""

    def build(self, isa: VectorIsa) -> Program:
        return attention.attention_parts(self.symbol, isa, self.cache, self.attention_shape(isa))


@dataclass(frozen=True)
class MergePartsSpec(KernelSpec):
    """The result of a single token from the sums of its parts."""

    of: AttentionPartsSpec

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.of.n_heads * self.of.parts * self.of.cache.v_dim,)

    @property
    def rate(self) -> str:
        return "select"

    def build(self, isa: VectorIsa) -> Program:
        return attention.merge_parts(self.symbol, isa, self.of.cache, self.of.attention_shape(isa))

    def scratch_nbytes(self, isa: VectorIsa) -> int:
        return self.of.scratch_nbytes(isa)
