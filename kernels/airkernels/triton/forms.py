"""Blocks as they are kept in device memory, where that is not as in the file.

Elements of codebooks and grids are *picked* from eight or sixteen values. A GPU picks four at once from the bytes of
two registers, by *selectors* of four bits each, so that values never leave registers. Blocks are therefore rearranged
when they arrive, so that eight neighbouring elements are the nibbles of a word: in a file, nibbles of a byte are half
a group apart. Points of a grid become selectors when they are read from the grid, a table of 1 to 8 KiB, which stays
in the nearest cache; their signs are arranged so as to be added by one shift and mask. To expand grids at upload would
spare those reads, but takes two to three times the memory that such files are made to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce
from operator import or_

from airkernels.formats.base import EACH, WORD, BlockFormat, Field, Reader, Table, Value
from airkernels.formats.codebooks import Codebook
from airkernels.formats.grids import MovedGrid, SignedGrid, grid_levels, grid_values

NIBBLES = 0x11111111
"""One in each nibble of a word."""

_GROUP = 32
"""Elements that share a word of signs."""

Units = dict[str, list[Value]]
"""The units of a block by field, uint32."""


class PickedForm(BlockFormat):
    """Blocks whose elements are picked from a few values.

    Attributes
    ----------
    source
        The format as it is in the file.
    values
        Eight or sixteen signed bytes. Where there are eight, the upper bit of a selector is zero.
    table
        What `selectors` reads entries of, if anything.
    """

    source: BlockFormat
    values: tuple[int, ...]
    table: Table | None = None

    def __init__(self, source: BlockFormat) -> None:
        self.source, self.name, self.group = source, source.name, source.group
        self.fields = source.fields

    def selectors(self, r: Reader, word: int) -> Value:
        """The selectors of elements `4 * word` to `4 * word + 3` in the lower 16 bits of a uint32."""
        raise NotImplementedError

    def rearranged(self, r: Reader) -> Units:
        """The fields that are not those of the source, read from it."""
        raise NotImplementedError

    def scale(self, r: Reader, group: int) -> Value:
        return self.source.scale(r, group)


class CodebookForm(PickedForm):
    """Nibbles in the order of the elements."""

    def __init__(self, source: Codebook) -> None:
        super().__init__(source)
        self.codebook, self.values = source, source.values

    def selectors(self, r: Reader, word: int) -> Value:
        return r.word("qs", word // 2) >> 16 * (word % 2)

    def rearranged(self, r: Reader) -> Units:
        halves = [_nibbles(self.codebook.indices(r, word)) for word in range(self.block // WORD)]
        return {"qs": [low | (high << 16) for low, high in zip(halves[::2], halves[1::2], strict=True)]}


class SignedGridForm(PickedForm):
    """Indices as bytes and what is above them, all signs, and scales as nibbles.

    Bit ``4 * (e % 8) + e // 8`` of a word of signs is that of element `e` of 32, so that those of a point are in line
    with its selectors.
    """

    def __init__(self, source: SignedGrid) -> None:
        super().__init__(source)
        self.grid = source
        self.table: Table = _grid_table(source.name)
        magnitudes = grid_values(source.name)
        self._sign_bit = (len(magnitudes) - 1).bit_length()
        magnitudes += ((1 << self._sign_bit) - len(magnitudes)) * (0,)
        self.values = (*magnitudes, *(-m for m in magnitudes))
        self._n_points = self.block // source.dimensions
        self._high_bits = source.index_bits - 8
        counts = {"qs": self._n_points // WORD, "qh": self._n_points * self._high_bits // 32}
        counts |= {"signs": self.block // _GROUP, "scales": self.block // self.group // 8}
        at, fields = 2, [Field("d", 0, 2, 1)]
        for name, count in counts.items():
            if count:
                fields.append(Field(name, at, WORD, count))
                at += WORD * count
        self.fields = tuple(fields)

    def selectors(self, r: Reader, word: int) -> Value:
        words = self.grid.dimensions // WORD
        point, part = divmod(word, words)

        def of_point() -> Value:
            index = r.byte("qs", point)
            if self._high_bits:
                place = point * self._high_bits
                high = (r.word("qh", place // 32) >> place % 32) & ((1 << self._high_bits) - 1)
                index = index | (high << 8)
            first = point * words * WORD % _GROUP
            shift = 4 * (first % 8) + first // 8 - self._sign_bit
            signs = r.word("signs", point * words * WORD // _GROUP)
            signs = signs >> shift if shift > 0 else signs << -shift
            return r.entry(self.table, index) | (signs & r.constant(NIBBLES << self._sign_bit))

        return r.once((point, "selectors"), of_point) >> 16 * part

    def scale(self, r: Reader, group: int) -> Value:
        nibble = (r.word("scales", group // 8) >> 4 * (group % 8)) & 15
        return self.grid.block_scale(r) * r.to_float((nibble << 1) + 1)

    def rearranged(self, r: Reader) -> Units:
        indices = [self.grid.index(r, point) for point in range(self._n_points)]
        factors = [self.grid.factor(r, group) >> 1 for group in range(self.block // self.group)]
        return {
            "qs": _packed([index & 255 for index in indices], 8),
            "qh": _packed([index >> 8 for index in indices], self._high_bits) if self._high_bits else [],
            "signs": [self._signs(r, first) for first in range(0, self.block // WORD, 8)],
            "scales": _packed(factors, 4),
        }

    def _signs(self, r: Reader, first: int) -> Value:
        """The signs of eight code words from `first` on."""
        found = []
        for i in range(8):
            bits, places = self.grid.signs(r, first + i)
            ones = _nibbles(r.choose(bits, places, r.constant(EACH), r.constant(0)))
            found.append(ones << 16 * (i % 2) + i // 2)
        return reduce(or_, found)


class MovedGridForm(PickedForm):
    """As in the file; only the grid is another."""

    def __init__(self, source: MovedGrid) -> None:
        super().__init__(source)
        self.grid = source
        self.table: Table = _grid_table("IQ1_S")
        levels = (-8, 0, 8)
        self.values = (*(v + 1 for v in levels), 0, *(v - 1 for v in levels), 0)

    def selectors(self, r: Reader, word: int) -> Value:
        point, part = divmod(word, 2)

        def of_point() -> Value:
            flags, bit = self.grid.down(r, point)
            return r.entry(self.table, self.grid.index(r, point)) | (((flags >> bit) & 1) * (4 * NIBBLES))

        return r.once((point, "selectors"), of_point) >> 16 * part

    def rearranged(self, r: Reader) -> Units:
        return {}


@cache
def stored(fmt: BlockFormat) -> BlockFormat:
    """A format as it is kept in device memory."""
    if isinstance(fmt, Codebook):
        return CodebookForm(fmt)
    if isinstance(fmt, SignedGrid):
        return SignedGridForm(fmt)
    if isinstance(fmt, MovedGrid):
        return MovedGridForm(fmt)
    return fmt


def stored_units(form: BlockFormat, r: Reader) -> Units:
    """All units of a form, from a reader of the block as it is in the file; those of narrow fields as uint32 too."""
    found = form.rearranged(r) if isinstance(form, PickedForm) else {}
    for field in form.fields:
        if field.name not in found:
            wide = field.unit == WORD
            found[field.name] = [r.word(field.name, i) if wide else r.narrow(field.name) for i in range(field.count)]
    return found


@cache
def _grid_table(name: str) -> Table:
    """The levels of each point, a nibble each."""
    levels = grid_levels(name).tolist()
    return Table(tuple(sum(level << 4 * i for i, level in enumerate(point)) for point in levels))


def _nibbles(word: Value) -> Value:
    """The lower nibbles of four bytes, whose upper ones are zero, side by side."""
    pairs = word | (word >> 4)
    return (pairs & 0xFF) | ((pairs >> 8) & 0xFF00)


def _packed(values: Sequence[Value], bits: int) -> list[Value]:
    """Values of so many bits, side by side in words."""
    per_word = 32 // bits
    rows = [values[i : i + per_word] for i in range(0, len(values), per_word)]
    return [reduce(or_, (value << bits * i for i, value in enumerate(row))) for row in rows]
