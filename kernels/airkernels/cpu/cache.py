"""The KV cache as kernels see it.

The cache of a layer is an array of blocks; a sequence's row of the block table names its blocks in order.
A block holds, per KV head, keys as [head_dim][cells] and values as [cells][v_dim]: scores are then
computed for a vector of cells at a time and outputs for a vector of dimensions, without reductions.
"""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Region, byte_offset, cast
from airkernels.cpu.vectors import float_to_half, half_to_float

BLOCK_CELLS = 64
"""Tokens per block of the cache, and per step of the softmax."""


@dataclass(frozen=True)
class CacheLayout:
    """Shape of one layer's cache; `dtype` is 'float16' or 'float32'."""

    n_kv_heads: int
    head_dim: int
    v_dim: int
    dtype: str
    max_blocks: int

    @property
    def element_nbytes(self) -> int:
        return 2 if self.dtype == "float16" else 4

    @property
    def key_plane(self) -> int:
        """Elements of the keys of one head in one block."""
        return self.head_dim * BLOCK_CELLS

    @property
    def plane(self) -> int:
        """Elements of the keys and values of one head in one block."""
        return (self.head_dim + self.v_dim) * BLOCK_CELLS

    @property
    def block_nbytes(self) -> int:
        return self.n_kv_heads * self.plane * self.element_nbytes

    def region(self, base: Expr) -> Region:
        return Region(base, "uint16" if self.dtype == "float16" else "float32")

    def load(self, region: Region, index: Expr, lanes: int, isa: VectorIsa) -> Expr:
        raw = region.load(index, lanes)
        return half_to_float(raw, isa) if self.dtype == "float16" else raw

    def convert(self, value: Expr, isa: VectorIsa) -> Expr:
        return float_to_half(value, isa) if self.dtype == "float16" else value

    def block(self, cache: Expr, table: Region, sequence: Expr, index: Expr) -> Region:
        number = table.load(sequence * self.max_blocks + index)
        return self.region(byte_offset(cache, cast(number, "int64") * self.block_nbytes))
