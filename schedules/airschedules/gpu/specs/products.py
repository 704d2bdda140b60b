"""Products, and the matrices they read."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton import gemm, matrices, product
from airkernels.triton.build import Constants
from airkernels.triton.layout import RowLayout, padded
from airschedules.gpu.rules import ProductConfig, ProductTask, for_tokens, schedule_gemm, schedule_product
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec

_FLOATS = {"F32": "*fp32", "F16": "*fp16", "BF16": "*bf16"}
_PLANES = ("*u32", "*fp16")


@dataclass(frozen=True)
class ProductSpec(DeviceSpec):
    """A product with `tokens` rows of activations at a time. Extents: matrix rows, tokens."""

    weights: str
    n_rows: int
    n_cols: int
    kind: str
    out_stride: int
    accumulate: bool
    bias: bool
    tokens: int = 1

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, self.n_cols)

    def schedule(self, arch: str) -> DeviceSchedule:
        task = ProductTask(self.weights, self.kind, self.n_rows, self.n_cols)
        return self.configured(for_tokens(schedule_product(task, arch), self.tokens))

    def configured(self, config: ProductConfig) -> DeviceSchedule:
        """The product under a configuration."""
        fmt = FORMATS[self.weights]
        x_stride = RowLayout(self.kind, self.n_cols, fmt.block).nbytes // 4
        constants: Constants = {
            "N_ROWS": self.n_rows,
            "N_COLS": self.n_cols,
            "TOKENS": self.tokens,
            "X_STRIDE": x_stride,
            "OUT_STRIDE": self.out_stride,
            "ACCUMULATE": self.accumulate,
            "BIAS": self.bias,
        }
        if isinstance(fmt, BlockFormat):
            constants |= {"FORMAT": self.weights, "KIND": self.kind, "ROWS": config.rows, "TILE": config.tile}
            constants |= {"COLUMNS": config.columns, "UNROLL": config.unroll}
            types: tuple[str, ...] = (*_PLANES, "*u32", "*fp32", "*fp32")
            tiles = (config.rows * config.tile // config.columns, self.tokens)
            return DeviceSchedule(product.product, types, constants, tiles, 1, 1, config.reason)
        constants |= {"ROWS": config.rows, "COLUMNS": config.columns}
        types = (_FLOATS[self.weights], "*fp32", "*fp32", "*fp32")
        return DeviceSchedule(
            product.product_float, types, constants, (config.rows, self.tokens), config.warps, 2, config.reason
        )


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
