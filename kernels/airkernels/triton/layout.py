"""How matrices and rows of activations lie in device memory.

A lane of a warp works on one block. So that neighbouring lanes read neighbouring words, block number `b` of a row
keeps its word number `w` at place `b` of *plane* `w`: a row is stored as planes of one 32-bit word a block, and the
narrower fields (scales) as planes of two-byte units behind the words of all rows. Rows of activations are permuted
alike: element number `e` of every block is in plane `e`. Planes are padded to `ALIGNMENT` blocks, with zeros.

Plain float matrices keep the order of the file; their block is one element, and so is that of their activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.formats.base import WORD, AnyFormat, BlockFormat, Field
from airkernels.triton.forms import stored

ALIGNMENT = 4
"""Blocks that every plane is padded to: 16 bytes of words."""

GROUP = 32
"""Elements of a quantized row that share a scale."""

HALF_GROUP = 16
"""Elements per sum of the finer kind, for formats whose groups are 16."""

KINDS = ("f32", "f16", "q8", "q16")
"""Activations: floats; half precision with a scale per row, for tensor cores; integers of one and two digits with a
scale per 32 elements (see `airkernels.cpu.activations`), for integer dot products."""

_PAGE = 256
"""Alignment of what device memory is divided into, in bytes."""


def padded(n: int) -> int:
    """Places of a plane for `n` blocks."""
    return -(-n // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class MatrixLayout:
    """A matrix of `n_rows` rows of `n_cols` elements in planes."""

    fmt: AnyFormat
    n_rows: int
    n_cols: int

    @property
    def n_blocks(self) -> int:
        """Blocks per row."""
        return self.n_cols // self.fmt.block

    @property
    def n_words(self) -> int:
        """Word planes: the four-byte units of a block, field by field."""
        return self._count(WORD)

    @property
    def n_halves(self) -> int:
        """Planes of two-byte units."""
        return self._count(2)

    def _count(self, unit: int) -> int:
        assert isinstance(self.fmt, BlockFormat)
        return count_units(stored(self.fmt), unit)

    @property
    def halves_offset(self) -> int:
        """First byte of the two-byte planes."""
        if not isinstance(self.fmt, BlockFormat):
            return 0
        return _whole(self.n_rows * self.n_words * padded(self.n_blocks) * WORD)

    @property
    def nbytes(self) -> int:
        if not isinstance(self.fmt, BlockFormat):
            return _whole(self.n_rows * self.n_cols * self.fmt.nbytes)
        return self.halves_offset + _whole(self.n_rows * self.n_halves * padded(self.n_blocks) * 2)

    @property
    def unpacked_cols(self) -> int:
        """Elements of a row once decoded, padding included."""
        return self.fmt.block * padded(self.n_blocks) if isinstance(self.fmt, BlockFormat) else self.n_cols


def plane_unit(field: Field) -> int:
    """Bytes of a unit of a field in planes."""
    return WORD if field.unit == WORD else 2


def count_units(fmt: BlockFormat, unit: int) -> int:
    """Planes of so many bytes: words, or two bytes for every narrower unit."""
    return sum(field.count for field in fmt.fields if plane_unit(field) == unit)


def first_planes(fmt: BlockFormat) -> dict[str, int]:
    """The first plane of each field, counted among the planes of its unit."""
    found, counts = {}, {2: 0, WORD: 0}
    for field in fmt.fields:
        found[field.name] = counts[plane_unit(field)]
        counts[plane_unit(field)] += field.count
    return found


@dataclass(frozen=True)
class RowLayout:
    """A row of `n` activations of a kind of `KINDS`, permuted for matrices with blocks of `block` elements.

    Floats: `block` planes of elements; kind 'f16' has the row's scale, a float32, behind them. Integers: planes of
    words (four elements each, digit by digit, the high one first), then per 32 elements a float32 scale and an int32
    sum of the integers, then per 16 elements an int32 sum.
    """

    kind: str
    n: int
    block: int

    @property
    def places(self) -> int:
        """Entries of a plane."""
        return padded(self.n // self.block)

    @property
    def digits(self) -> int:
        return {"q8": 1, "q16": 2}.get(self.kind, 0)

    @property
    def elements(self) -> int:
        """Elements with padding."""
        return self.places * self.block

    @property
    def scales(self) -> int:
        """First plane of the scales of an integer row."""
        return self.digits * (self.block // WORD)

    @property
    def sums(self) -> int:
        return self.scales + self.block // GROUP

    @property
    def half_sums(self) -> int:
        return self.sums + self.block // GROUP

    @property
    def nbytes(self) -> int:
        """Bytes from one row to the next, a multiple of 64."""
        if self.kind == "f32":
            n = 4 * self.elements
        elif self.kind == "f16":
            n = 2 * self.elements + 4
        else:
            n = 4 * self.places * (self.half_sums + self.block // HALF_GROUP)
        return -(-n // 64) * 64


def _whole(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE
