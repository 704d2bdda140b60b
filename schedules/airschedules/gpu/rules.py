"""Configurations of GPU kernels: what was measured on the target if there is a record, else a model of the machine.

Rules are an ordered list, as for processors; the last one always answers. Where no record fits, `reason` says so:
most targets were not at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.forms import stored
from airkernels.triton.layout import count_units
from airschedules.gpu.records import ProductRecord, find_record

_TARGET_PROGRAMS = 128
"""Programs of decode attention: about as many as a large GPU has multiprocessors."""

_WORDS_OF_A_LANE = 72
"""Of weights, in all: with fewer the start of a program weighs too much, with more there are too few programs."""


@dataclass(frozen=True)
class ProductTask:
    """A product of few rows, by what its best configuration depends on."""

    fmt: str
    kind: str
    n_rows: int
    n_cols: int

    def key(self, arch: str) -> str:
        return f"{arch}/{self.fmt}/{self.kind}/{self.n_rows}x{self.n_cols}"


@dataclass(frozen=True)
class ProductConfig:
    """Tiling of `airkernels.triton.product`: row groups, entries of a tile, its columns; `warps` for float matrices."""

    rows: int
    tile: int
    columns: int
    unroll: bool
    warps: int
    reason: str


@dataclass(frozen=True)
class GemmConfig:
    """Tiling of `airkernels.triton.gemm`."""

    tokens: int
    rows: int
    depth: int
    warps: int
    stages: int
    reason: str


@dataclass(frozen=True)
class FlashConfig:
    """Tiling of `airkernels.triton.attention.flash`."""

    tokens: int
    warps: int
    stages: int
    reason: str


ProductRule = Callable[[ProductTask, str], ProductConfig | None]


def measured(task: ProductTask, arch: str) -> ProductConfig | None:
    """What was fastest on this architecture."""
    record = find_record(task.key(arch))
    if record is None:
        return None
    reason = f"tuning record: {record.microseconds:.1f} us on {record.device}"
    return configure(task, record.rows, record.tile, record.columns, reason)


def float_matrix(task: ProductTask, arch: str) -> ProductConfig | None:
    """Rows of floats: four at a time, by as many columns as keep wide loads in flight."""
    if isinstance(FORMATS[task.fmt], BlockFormat):
        return None
    return ProductConfig(4, 0, 512 if task.n_cols >= 2048 else 128, False, 4, "float matrix: 4 rows a program")


def enough_in_flight(task: ProductTask, arch: str) -> ProductConfig | None:
    """A lane should have some tens of words in flight, and neighbouring lanes neighbouring blocks.

    On an H200, of the tilings of five formats: 4 rows of 64 blocks where blocks have 32 elements, else as many rows as
    give a lane two large blocks, or more where it would otherwise end after few words; a row that nearly fills a tile
    is not cut.
    """
    fmt = FORMATS[task.fmt]
    assert isinstance(fmt, BlockFormat)
    n_blocks = task.n_cols // fmt.block
    columns = _columns(n_blocks)
    tile = max(columns, 32)
    most = _WORDS_OF_A_LANE // (-(-n_blocks // columns) * (tile // 32) * count_units(stored(fmt), 4))
    rows = 4 if fmt.block == 32 else max(1, 64 // tile, min(8, 1 << most.bit_length() >> 1))
    return configure(task, rows, tile, columns, f"no record for {arch}: as was fastest for other shapes on an H200")


def _columns(n_blocks: int) -> int:
    """Columns of a tile: a power of two up to 64 that wastes at most a quarter of its lanes."""
    columns = 64
    while columns > 1 and -(-n_blocks // columns) * columns > 1.25 * n_blocks:
        columns //= 2
    return columns


PRODUCT_RULES: list[ProductRule] = [measured, float_matrix, enough_in_flight]


def schedule_product(task: ProductTask, arch: str) -> ProductConfig:
    """The configuration of a product."""
    for rule in PRODUCT_RULES:
        config = rule(task, arch)
        if config is not None:
            return config
    raise AssertionError("the last rule always applies")


def candidates(task: ProductTask) -> list[tuple[int, int, int]]:
    """(rows, tile, columns) worth measuring; the rules' choice comes first."""
    chosen = enough_in_flight(task, "")
    assert chosen is not None
    n_blocks = task.n_cols // FORMATS[task.fmt].block
    # words of a lane before they spill: small blocks leave room for more rows
    limit = 512 if FORMATS[task.fmt].block < 256 else 128
    tried = [(chosen.rows, chosen.tile, chosen.columns)]
    for tile in (32, 64, 128):
        for columns in (8, 16, 32, 64, 128):
            for rows in (1, 2, 4, 8):
                wasted = -(-n_blocks // columns) * columns / n_blocks
                fits = columns <= tile <= 4 * columns and rows * tile <= limit
                if fits and wasted <= 1.25 and 4 * columns >= chosen.columns:
                    tried.append((rows, tile, columns))
    return list(dict.fromkeys(tried))


def configure(task: ProductTask, rows: int, tile: int, columns: int, reason: str) -> ProductConfig:
    """A configuration of a quantized matrix."""
    fmt = FORMATS[task.fmt]
    assert isinstance(fmt, BlockFormat)
    n_tiles = -(-(task.n_cols // fmt.block) // columns)
    # unrolled code grows with the words of a block and the tiles of a row
    unroll = n_tiles * rows * count_units(stored(fmt), 4) <= 64
    return ProductConfig(rows, tile, columns, unroll, 1, reason)


def for_tokens(config: ProductConfig, tokens: int) -> ProductConfig:
    """A configuration for several rows of activations at a time: fewer matrix rows leave registers for their sums."""
    if tokens == 1:
        return config
    reason = f"{tokens} tokens; for one: {config.reason}"
    return replace(config, rows=max(1, config.rows // 2), unroll=False, reason=reason)


def schedule_gemm(kind: str, n_rows: int, k: int, arch: str) -> GemmConfig:
    """Tiles for tensor cores: as large as shared memory and registers allow."""
    if kind == "f32":
        return GemmConfig(64, 64, 32, 4, 2, "three tf32 products a step need registers")
    if arch == "sm_90":
        return GemmConfig(128, 256, 64, 8, 3, "warpgroup products of 128 x 256")
    if arch.startswith("gfx"):
        return GemmConfig(128, 128, 32, 8, 2, f"no record for {arch}")
    return GemmConfig(128, 128, 32, 8, 3, f"no record for {arch}: 100 KB of shared memory")


def schedule_expert_gemm(kind: str) -> GemmConfig:
    """Tiles for the rows of one expert, which are a few dozen in most batches."""
    if kind == "f32":
        return GemmConfig(32, 64, 32, 4, 2, "three tf32 products a step need registers")
    return GemmConfig(64, 128, 64, 4, 3, "not tuned: few rows an expert")


def schedule_flash(head_dim: int, dtype: str, arch: str) -> FlashConfig:
    """Tiles of attention."""
    if dtype == "float32" or head_dim > 128:
        tokens = 16 if dtype == "float32" and head_dim > 256 else 32
        return FlashConfig(tokens, 4, 1, "wide heads or floats need registers and shared memory")
    return FlashConfig(64, 4, 2 if arch != "sm_90" else 3, "64 tokens a program")


def cells_at_once(head_dim: int, dtype: str) -> int:
    """Cells that attention goes through at a time, a power of two: their keys fill at most 16 KiB of shared memory."""
    row = (4 if dtype == "float32" else 2) << (head_dim - 1).bit_length()
    return max(16, min(64, (16 << 10) // row))


def splits(n_kv_heads: int, max_blocks: int) -> int:
    """Parts of the context in decode attention, for every architecture: the layout of partial results depends on it."""
    return max(1, min(32, max_blocks, _TARGET_PROGRAMS // n_kv_heads))


__all__ = [
    "ProductRecord",
    "ProductTask",
    "candidates",
    "cells_at_once",
    "for_tokens",
    "schedule_expert_gemm",
    "schedule_flash",
    "schedule_gemm",
    "schedule_product",
    "splits",
]
