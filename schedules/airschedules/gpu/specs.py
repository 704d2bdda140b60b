"""Every kernel that a plan for a GPU can name."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton import attention, gemm, matrices, product, rows, sample
from airkernels.triton.build import Constants
from airkernels.triton.layout import RowLayout, padded
from airrun.plan.device import CHOSEN_RING
from airschedules.gpu.rules import ProductConfig, ProductTask, schedule_flash, schedule_gemm, schedule_product, splits
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec

CELLS = 64
"""Tokens per block of the cache."""

_MOST_PARTS = 128
"""Of the search for the largest logit."""


def argmax_parts(n: int) -> int:
    """Programs that share the search among `n` logits, a power of two."""
    return min(_MOST_PARTS, _power(max(n // 256, 1)))


_FLOATS = {"F32": "*fp32", "F16": "*fp16", "BF16": "*bf16"}
_PLANES = ("*u32", "*fp16")


def _power(n: int, least: int = 1) -> int:
    """The smallest power of two from `n`, and from `least`, on."""
    return max(least, 1 << (n - 1).bit_length())


@dataclass(frozen=True)
class RowKind:
    """A kind of row, by which a row kernel stores: `layout.RowLayout` as constants."""

    kind: str
    n: int
    block: int

    @property
    def layout(self) -> RowLayout:
        return RowLayout(self.kind, self.n, self.block)

    @property
    def tile_block(self) -> int:
        """Elements of a block of the kernel's tile."""
        return max(self.block, 32)

    @property
    def n_tiles(self) -> int:
        """Blocks of the tile that cover a row."""
        return self.layout.places if self.block > 1 else -(-self.n // 32)

    def constants(self, elements: int) -> Constants:
        """Constants of a kernel whose programs store at least `elements`; a half-precision row is one tile."""
        blocks = _power(self.n_tiles) if self.kind == "f16" else _power(max(elements // self.tile_block, 1))
        return {
            "KIND": self.kind,
            "BLOCK": self.tile_block,
            "PLACES": self.layout.places if self.block > 1 else 0,
            "BLOCKS": min(blocks, _power(self.n_tiles)),
            "OUT_STRIDE": self.layout.nbytes // 4,
        }


def _row_warps(elements: int) -> int:
    """Warps for a tile: some eight elements a lane, at most 16 warps."""
    return min(16, _power(max(elements // 256, 1)))


@dataclass(frozen=True)
class ProductSpec(DeviceSpec):
    """A product with one row of activations at a time. Extents: matrix rows, tokens."""

    weights: str
    n_rows: int
    n_cols: int
    kind: str
    out_stride: int
    accumulate: bool
    bias: bool

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, self.n_cols)

    def schedule(self, arch: str) -> DeviceSchedule:
        return self.configured(schedule_product(ProductTask(self.weights, self.kind, self.n_rows, self.n_cols), arch))

    def configured(self, config: ProductConfig) -> DeviceSchedule:
        """The product under a configuration."""
        fmt = FORMATS[self.weights]
        x_stride = RowLayout(self.kind, self.n_cols, fmt.block).nbytes // 4
        constants: Constants = {
            "N_ROWS": self.n_rows,
            "N_COLS": self.n_cols,
            "TOKENS": 1,
            "X_STRIDE": x_stride,
            "OUT_STRIDE": self.out_stride,
            "ACCUMULATE": self.accumulate,
            "BIAS": self.bias,
        }
        if isinstance(fmt, BlockFormat):
            constants |= {"FORMAT": self.weights, "KIND": self.kind, "ROWS": config.rows, "TILE": config.tile}
            constants |= {"COLUMNS": config.columns, "UNROLL": config.unroll}
            types: tuple[str, ...] = (*_PLANES, "*u32", "*fp32", "*fp32")
            tiles = (config.rows * config.tile // config.columns, 1)
            return DeviceSchedule(product.product, types, constants, tiles, 1, 1, config.reason)
        constants |= {"ROWS": config.rows, "COLUMNS": config.columns}
        types = (_FLOATS[self.weights], "*fp32", "*fp32", "*fp32")
        return DeviceSchedule(product.product_float, types, constants, (config.rows, 1), config.warps, 2, config.reason)


@dataclass(frozen=True)
class GemmSpec(DeviceSpec):
    """A product with many rows on tensor cores, in f16 or f32. Extents: tokens, matrix rows."""

    kind: str
    n_rows: int
    k: int
    x_nbytes: int
    out_stride: int
    accumulate: bool
    bias: bool

    @property
    def fmt(self) -> str:
        return self.kind

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, self.k)

    def schedule(self, arch: str) -> DeviceSchedule:
        config = schedule_gemm(self.kind, self.n_rows, self.k, arch)
        half = self.kind == "f16"
        constants: Constants = {
            "N_ROWS": self.n_rows,
            "K": self.k,
            "X_STRIDE": self.x_nbytes // (2 if half else 4),
            "OUT_STRIDE": self.out_stride,
            "SCALE_AT": padded(self.k) // 2 if half else -1,
            "ACCUMULATE": self.accumulate,
            "BIAS": self.bias,
            "TOKENS": config.tokens,
            "ROWS": config.rows,
            "DEPTH": config.depth,
            "BAND": 8,
        }
        element = "*fp16" if half else "*fp32"
        types = (element, element, "*fp32", "*fp32", "i32")
        tiles = (config.tokens, config.rows)
        return DeviceSchedule(gemm.gemm, types, constants, tiles, config.warps, config.stages, config.reason)


@dataclass(frozen=True)
class PackSpec(DeviceSpec):
    """Raw blocks into planes, when they arrive. Extents: places of all rows."""

    weights: str
    n_cols: int

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_cols,)

    def schedule(self, arch: str) -> DeviceSchedule:
        n_blocks = self.n_cols // FORMATS[self.weights].block
        constants: Constants = {"FORMAT": self.weights, "PLACES": padded(n_blocks)}
        constants |= {"N_BLOCKS": n_blocks, "TILE": 256}
        types = ("*u8", "*u32", "*u16", "i32", "i32")
        return DeviceSchedule(matrices.pack, types, constants, (256,), 8)


@dataclass(frozen=True)
class UnpackSpec(DeviceSpec):
    """Rows of a matrix as floats of `kind`, for tensor cores. Extents: places of all rows, groups of a
    block (elements of float matrices)."""

    weights: str
    n_rows: int
    n_cols: int
    kind: str

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, self.n_cols)

    def schedule(self, arch: str) -> DeviceSchedule:
        out = "*fp16" if self.kind == "f16" else "*fp32"
        fmt = FORMATS[self.weights]
        if not isinstance(fmt, BlockFormat):
            n = self.n_rows * self.n_cols
            return DeviceSchedule(matrices.widen, (_FLOATS[self.weights], out), {"N": n, "TILE": 1024}, (1024,))
        constants: Constants = {"FORMAT": self.weights, "PLACES": padded(self.n_cols // fmt.block)}
        constants |= {"N_ROWS": self.n_rows, "TILE": 128}
        return DeviceSchedule(matrices.unpack, (*_PLANES, out), constants, (128, 1), 1)


@dataclass(frozen=True)
class GatherSpec(DeviceSpec):
    """Rows of an embedding table. Extents: tokens, blocks, groups of a block (elements of float tables)."""

    weights: str
    n_cols: int
    out_stride: int

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_cols,)

    def schedule(self, arch: str) -> DeviceSchedule:
        fmt = FORMATS[self.weights]
        constants: Constants
        if not isinstance(fmt, BlockFormat):
            constants = {"N_COLS": self.n_cols, "OUT_STRIDE": self.out_stride, "TILE": 256}
            types = (_FLOATS[self.weights], "*i32", "*fp32")
            return DeviceSchedule(matrices.gather_float, types, constants, (1, 256), 2)
        n_blocks = self.n_cols // fmt.block
        constants = {"FORMAT": self.weights, "PLACES": padded(n_blocks)}
        constants |= {"N_BLOCKS": n_blocks, "OUT_STRIDE": self.out_stride, "TILE": 32}
        return DeviceSchedule(matrices.gather, (*_PLANES, "*i32", "*fp32"), constants, (1, 32, 1), 1)


@dataclass(frozen=True)
class NormSpec(DeviceSpec):
    """Root-mean-square norm. Extents: rows."""

    out: RowKind
    in_stride: int
    eps: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(self.out.tile_block * _power(self.out.n_tiles))
        constants: Constants = {"N": self.out.n, "EPS": self.eps, "IN_STRIDE": self.in_stride, **stored}
        types = ("*fp32", "*fp32", "*u32")
        return DeviceSchedule(rows.rms_norm, types, constants, (1,), _row_warps(self.out.n))


@dataclass(frozen=True)
class GatedSpec(DeviceSpec):
    """SiLU of the gate times the other half. Extents: rows, blocks of the tile."""

    out: RowKind
    gate_stride: int
    up_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(256)
        constants: Constants = {
            "N": self.out.n,
            "GATE_STRIDE": self.gate_stride,
            "UP_STRIDE": self.up_stride,
            **stored,
        }
        blocks = int(stored["BLOCKS"])
        warps = _row_warps(blocks * self.out.tile_block)
        return DeviceSchedule(rows.gated_silu, ("*fp32", "*fp32", "*u32"), constants, (1, blocks), warps)


@dataclass(frozen=True)
class ConvertSpec(DeviceSpec):
    """Float rows to another kind. Extents: rows, blocks of the tile."""

    out: RowKind
    in_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(256)
        constants: Constants = {"N": self.out.n, "IN_STRIDE": self.in_stride, **stored}
        blocks = int(stored["BLOCKS"])
        warps = _row_warps(blocks * self.out.tile_block)
        return DeviceSchedule(rows.convert, ("*fp32", "*u32"), constants, (1, blocks), warps)


@dataclass(frozen=True)
class SelectSpec(DeviceSpec):
    """Copying the output rows of a batch. Extents: outputs, words of a row."""

    n_words: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_words,)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {
            "N_WORDS": self.n_words,
            "IN_STRIDE": self.n_words,
            "OUT_STRIDE": self.n_words,
            "TILE": 1024,
        }
        return DeviceSchedule(rows.select, ("*u32", "*i32", "*u32"), constants, (1, 1024), 4)


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
        constants |= {"Q_STRIDE": q, "K_STRIDE": k, "V_STRIDE": v, "WIDTH": _power(-(-self.heads.head_dim // 2))}
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
        constants |= {"GROUP": _power(heads.n_heads // heads.n_kv_heads, 16), "WIDTH": _power(heads.head_dim, 16)}
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
            attention.combine, ("*fp32", "*u32"), constants, (1, blocks), _row_warps(blocks * self.out.tile_block)
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
        constants |= {"OUT_STRIDE": self.out_stride, "TOKENS": config.tokens, "WIDTH": _power(self.heads.head_dim, 16)}
        types = ("*fp32", self.heads.pointer, "*i32", "*i32", "*i32", "*fp32", "i32")
        tiles = (config.tokens, 1)
        return DeviceSchedule(attention.flash, types, constants, tiles, config.warps, config.stages, config.reason)


@dataclass(frozen=True)
class ArgmaxSpec(DeviceSpec):
    """The largest logit, in parts. Extents: parts."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N": self.n, "TILE": 256, "PARTS": argmax_parts(self.n)}
        return DeviceSchedule(sample.argmax_parts, ("*fp32", "*fp32", "*i32"), constants)


@dataclass(frozen=True)
class AdvanceSpec(DeviceSpec):
    """The step to the best of `n` tokens. Extents: one program."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        types = ("*fp32", "*i32", "*i32", "*i32", "*i32", "*i32")
        return DeviceSchedule(sample.advance, types, {"PARTS": argmax_parts(self.n), "RING": CHOSEN_RING}, (1,), 1)
