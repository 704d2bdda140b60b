"""The KV cache as kernels see it.

The cache of a layer is an array of blocks; a sequence's row of the block table names its blocks in order. Layers that
look back no further than a window share a few blocks at the end of the row, through which they go round.

A block holds, per KV head, the keys of its cells and then their values. A value is a row of its format, as a file would
have it; of a format that rounds, a row of the head's transform (`hadamard`). Keys are interleaved: each unit of a row
(`formats.base.Field`) stands next to the same unit of the other cells. So scores are computed for a vector of cells at
a time and outputs for a vector of columns, without reductions.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.program import Expr, Region, byte_offset, cast
from airkernels.formats import FORMATS, AnyFormat, RoundedFormat

BLOCK_CELLS = 64
"""Tokens per block of the cache, and per step of the softmax."""


@dataclass(frozen=True)
class BlockTable:
    """A row of the block table: `max_blocks` blocks in order, then the `ring_blocks` of layers with windows."""

    max_blocks: int
    ring_blocks: int = 0

    @property
    def stride(self) -> int:
        """Entries of a row."""
        return self.max_blocks + self.ring_blocks


@dataclass(frozen=True)
class CacheLayout:
    """Shape of one layer's cache; `keys` and `values` name the formats of their rows. `ring`: it goes round."""

    n_kv_heads: int
    head_dim: int
    v_dim: int
    keys: str
    values: str
    table: BlockTable
    ring: bool = False

    @property
    def key_format(self) -> AnyFormat:
        return FORMATS[self.keys]

    @property
    def value_format(self) -> AnyFormat:
        return FORMATS[self.values]

    @property
    def key_nbytes(self) -> int:
        """Bytes of the key of one head in one cell."""
        return self.head_dim // self.key_format.block * self.key_format.nbytes

    @property
    def value_nbytes(self) -> int:
        """Bytes of the value of one head in one cell."""
        return self.v_dim // self.value_format.block * self.value_format.nbytes

    @property
    def spreads_values(self) -> bool:
        """Whether values are transformed, so that outputs have to be transformed back."""
        return isinstance(self.value_format, RoundedFormat)

    @property
    def plane_nbytes(self) -> int:
        """Bytes of the keys and values of one head in one block."""
        return (self.key_nbytes + self.value_nbytes) * BLOCK_CELLS

    @property
    def block_nbytes(self) -> int:
        return self.n_kv_heads * self.plane_nbytes

    def block(self, cache: Expr, table: Region, sequence: Expr, index: Expr) -> Expr:
        """Where block `index` of a sequence is."""
        place = index
        if self.ring:
            place = tirx.indexmod(index, self.table.ring_blocks) + self.table.max_blocks
        number = table.load(sequence * self.table.stride + place)
        return byte_offset(cache, cast(number, "int64") * self.block_nbytes)

    def keys_of(self, block: Expr, head: Expr) -> Expr:
        """Where the keys of a head are in a block."""
        return byte_offset(block, cast(head, "int64") * self.plane_nbytes)

    def values_of(self, block: Expr, head: Expr) -> Expr:
        """Where the values of a head are in a block."""
        return byte_offset(block, cast(head, "int64") * self.plane_nbytes + BLOCK_CELLS * self.key_nbytes)
