"""Attention and the cache."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.triton import attention
from airkernels.triton.build import Constants
from airschedules.gpu.rules import cells_at_once, schedule_flash, splits
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec
from airschedules.gpu.specs.rows import RowKind, power, row_warps

CELLS = 64
"""Tokens per block of the cache."""


@dataclass(frozen=True)
class Heads:
    """Shape of attention and of the cache; `dtype` 'float16' or 'float32'. A row of the block table has `max_blocks`
    entries, of which a cache that goes round takes the last `ring`, if there are any."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_blocks: int
    dtype: str
    ring: int = 0

    @property
    def constants(self) -> dict[str, int]:
        return {
            "N_HEADS": self.n_heads,
            "N_KV_HEADS": self.n_kv_heads,
            "HEAD_DIM": self.head_dim,
            "MAX_BLOCKS": self.max_blocks,
            "RING": self.ring,
            "CELLS": CELLS,
        }

    @property
    def pointer(self) -> str:
        return "*fp16" if self.dtype == "float16" else "*fp32"

    @property
    def splits(self) -> int:
        """Programs that share the context of a KV head."""
        return splits(self.n_kv_heads, self.ring or self.max_blocks)

    @property
    def partial_nbytes(self) -> int:
        """Of the partial results of one token."""
        return 4 * self.n_heads * self.splits * (self.head_dim + 2)


@dataclass(frozen=True)
class Seen:
    """What tokens see, and their scores: `aircompile.operators.Attention`."""

    scale: float
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    alibi: float = 0.0

    @property
    def constants(self) -> Constants:
        return {
            "SCALE": self.scale,
            "WINDOW": self.window,
            "CHUNK": self.chunk,
            "SOFTCAP": self.softcap,
            "ALIBI": self.alibi,
        }


@dataclass(frozen=True)
class Rotation:
    """Which elements of a head turn: the first `dim`, neighbours or, as `neox`, halves; `pairs` in a row of angles."""

    dim: int
    neox: bool
    pairs: int

    @property
    def constants(self) -> Constants:
        return {"DIM": self.dim, "NEOX": self.neox, "PAIRS": self.pairs}


@dataclass(frozen=True)
class RopeSpec(DeviceSpec):
    """Rotation alone. Extents: tokens, heads."""

    rotation: Rotation
    head_dim: int
    in_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.head_dim,)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants = {**self.rotation.constants, "HEAD_DIM": self.head_dim, "WIDTH": _pairs(self.head_dim)}
        constants |= {"IN_STRIDE": self.in_stride, "OUT_STRIDE": self.out_stride}
        return DeviceSchedule(attention.rope, ("*fp32", "*fp32", "*i32", "*fp32"), constants, (1, 1), 1)


@dataclass(frozen=True)
class RopeStoreSpec(DeviceSpec):
    """Rotation, and the write to the cache. Extents: tokens, heads."""

    heads: Heads
    rotation: Rotation
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads.n_heads, self.heads.n_kv_heads, self.heads.head_dim)

    def schedule(self, arch: str) -> DeviceSchedule:
        q, k, v = self.strides
        constants = {**self.heads.constants, **self.rotation.constants, "WIDTH": _pairs(self.heads.head_dim)}
        constants |= {"Q_STRIDE": q, "K_STRIDE": k, "V_STRIDE": v}
        types = ("*fp32",) * 4 + ("*i32",) * 4 + (self.heads.pointer,)
        return DeviceSchedule(attention.rope_store, types, constants, (1, 1), 1)


@dataclass(frozen=True)
class SplitSpec(DeviceSpec):
    """Attention of single tokens, in parts. Extents: KV heads, parts, tokens."""

    heads: Heads
    seen: Seen
    q_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads.n_heads, self.heads.n_kv_heads, self.heads.head_dim)

    def schedule(self, arch: str) -> DeviceSchedule:
        heads = self.heads
        constants = {**heads.constants, **self.seen.constants, "Q_STRIDE": self.q_stride, "SPLITS": heads.splits}
        step = cells_at_once(heads.head_dim, heads.dtype)
        constants |= {"STEP": step, "WIDTH": power(heads.head_dim, 16)}
        constants |= {"GROUP": power(heads.n_heads // heads.n_kv_heads, 16)}
        types = ("*fp32", heads.pointer, "*i32", "*i32", "*i32", "*fp32")
        # shared memory does not hold two steps of the widest heads
        stages = 1 if heads.dtype == "float32" and heads.head_dim > 256 else 2
        return DeviceSchedule(attention.split, types, constants, (1, 1, 1), 4, stages)


@dataclass(frozen=True)
class CombineSpec(DeviceSpec):
    """Merging the parts of attention, with sinks or without. Extents: tokens, blocks of the tile."""

    out: RowKind
    head_dim: int
    splits: int
    sinks: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(64)
        constants: Constants = {"N": self.out.n, "HEAD_DIM": self.head_dim, "SPLITS": self.splits, **stored}
        constants |= {"SINKS": self.sinks}
        blocks = int(stored["BLOCKS"])
        types, warps = ("*fp32", "*fp32", "*u32"), row_warps(blocks * self.out.tile_block)
        return DeviceSchedule(attention.combine, types, constants, (1, blocks), warps)


@dataclass(frozen=True)
class FlashSpec(DeviceSpec):
    """Attention of many tokens of a sequence. Extents: tokens, heads."""

    heads: Heads
    seen: Seen
    q_stride: int
    out_stride: int
    sinks: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads.n_heads, self.heads.n_kv_heads, self.heads.head_dim)

    def schedule(self, arch: str) -> DeviceSchedule:
        heads = self.heads
        config = schedule_flash(heads.head_dim, heads.dtype, arch)
        constants = {**heads.constants, **self.seen.constants, "SINKS": self.sinks, "Q_STRIDE": self.q_stride}
        constants |= {"OUT_STRIDE": self.out_stride, "TOKENS": config.tokens, "WIDTH": power(heads.head_dim, 16)}
        constants |= {"STEP": cells_at_once(heads.head_dim, heads.dtype)}
        types = ("*fp32", heads.pointer, "*i32", "*i32", "*i32", "*fp32", "*fp32", "i32")
        tiles = (config.tokens, 1)
        return DeviceSchedule(attention.flash, types, constants, tiles, config.warps, config.stages, config.reason)


def _pairs(head_dim: int) -> int:
    """Pairs of a head, as a power of two."""
    return power(-(-head_dim // 2))
