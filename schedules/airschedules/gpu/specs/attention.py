"""Attention and the cache."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.triton import attention
from airkernels.triton.build import Constants
from airschedules.gpu.rules import schedule_flash, splits
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec
from airschedules.gpu.specs.rows import RowKind, power, row_warps

CELLS = 64
"""Tokens per block of the cache."""


@dataclass(frozen=True)
class Heads:
    """Shape of attention and of the cache; `dtype` 'float16' or 'float32'."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_blocks: int
    dtype: str

    @property
    def constants(self) -> dict[str, int]:
        return {
            "N_HEADS": self.n_heads,
            "N_KV_HEADS": self.n_kv_heads,
            "HEAD_DIM": self.head_dim,
            "MAX_BLOCKS": self.max_blocks,
            "CELLS": CELLS,
        }

    @property
    def pointer(self) -> str:
        return "*fp16" if self.dtype == "float16" else "*fp32"

    @property
    def splits(self) -> int:
        """Programs that share the context of a KV head."""
        return splits(self.n_kv_heads, self.max_blocks)

    @property
    def partial_nbytes(self) -> int:
        """Of the partial results of one token."""
        return 4 * self.n_heads * self.splits * (self.head_dim + 2)


@dataclass(frozen=True)
class RopeStoreSpec(DeviceSpec):
    """Rotation, and the write to the cache. Extents: tokens, heads."""

    heads: Heads
    dim: int
    neox: bool
    pairs: int
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads.n_heads, self.heads.n_kv_heads, self.heads.head_dim)

    def schedule(self, arch: str) -> DeviceSchedule:
        q, k, v = self.strides
        constants: Constants = {
            **self.heads.constants,
            "DIM": self.dim,
            "NEOX": self.neox,
            "PAIRS": self.pairs,
        }
        constants |= {"Q_STRIDE": q, "K_STRIDE": k, "V_STRIDE": v, "WIDTH": power(-(-self.heads.head_dim // 2))}
        types = ("*fp32",) * 4 + ("*i32",) * 4 + (self.heads.pointer,)
        return DeviceSchedule(attention.rope_store, types, constants, (1, 1), 1)


@dataclass(frozen=True)
class SplitSpec(DeviceSpec):
    """Attention of single tokens, in parts. Extents: KV heads, parts, tokens."""

    heads: Heads
    scale: float
    q_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads.n_heads, self.heads.n_kv_heads, self.heads.head_dim)

    def schedule(self, arch: str) -> DeviceSchedule:
        heads = self.heads
        constants: Constants = {
            **heads.constants,
            "SCALE": self.scale,
            "Q_STRIDE": self.q_stride,
            "SPLITS": heads.splits,
        }
        constants |= {"GROUP": power(heads.n_heads // heads.n_kv_heads, 16), "WIDTH": power(heads.head_dim, 16)}
        types = ("*fp32", heads.pointer, "*i32", "*i32", "*i32", "*fp32")
        return DeviceSchedule(attention.split, types, constants, (1, 1, 1), 4, 2)


@dataclass(frozen=True)
class CombineSpec(DeviceSpec):
    """Merging the parts of attention. Extents: tokens, blocks of the tile."""

    out: RowKind
    head_dim: int
    splits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(64)
        constants: Constants = {"N": self.out.n, "HEAD_DIM": self.head_dim, "SPLITS": self.splits, **stored}
        blocks = int(stored["BLOCKS"])
        return DeviceSchedule(
            attention.combine, ("*fp32", "*u32"), constants, (1, blocks), row_warps(blocks * self.out.tile_block)
        )


@dataclass(frozen=True)
class FlashSpec(DeviceSpec):
    """Attention of many tokens of a sequence. Extents: tokens, heads."""

    heads: Heads
    scale: float
    q_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads.n_heads, self.heads.n_kv_heads, self.heads.head_dim)

    def schedule(self, arch: str) -> DeviceSchedule:
        config = schedule_flash(self.heads.head_dim, self.heads.dtype, arch)
        constants: Constants = {**self.heads.constants, "SCALE": self.scale, "Q_STRIDE": self.q_stride}
        constants |= {"OUT_STRIDE": self.out_stride, "TOKENS": config.tokens, "WIDTH": power(self.heads.head_dim, 16)}
        types = ("*fp32", self.heads.pointer, "*i32", "*i32", "*i32", "*fp32", "i32")
        tiles = (config.tokens, 1)
        return DeviceSchedule(attention.flash, types, constants, tiles, config.warps, config.stages, config.reason)
