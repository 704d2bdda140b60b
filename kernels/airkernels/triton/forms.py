"""Blocks as they are kept in device memory, where that is not as in the file.

A GPU picks four values at once from the bytes of two registers, by *selectors* of four bits each, so that the values of
codebooks never leave registers. Points of a grid are read from a table of 1 to 8 KiB. Blocks are rearranged when they
arrive, so that what is left to do for each word of elements are two or three operations on words:

- eight neighbouring elements of a codebook are the nibbles of a word, that is selectors; in a file, nibbles of a byte
  are half a group apart;
- indices of points are one string of bits, a shift and a mask away, rather than bytes and what is above them;
- all signs are there, where a file has seven of eight and their parity, in the order in which they are applied.

That takes up to 6% more than in the file. To expand grids to selectors at upload would spare reading the table, but
takes two to three times the memory that such files are made to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce
from operator import or_
from typing import Protocol

from airkernels.formats.base import EACH, PAIRS, WORD, BlockFormat, Field, Reader, Table, Value, shifted
from airkernels.formats.codebooks import Codebook
from airkernels.formats.grids import MovedGrid, SignedGrid, grid_levels, grid_values
from airkernels.formats.ternary import Q1_0, Q2_0

NIBBLES = 0x11111111
"""One in each nibble of a word."""

_GROUP = 32
"""Elements that share a word of signs."""

_SIGN_OF_EACH = 0xBA98
"""Selectors of the signs of a word's four bytes."""

Units = dict[str, list[Value]]
"""The units of a block by field, uint32."""


class DeviceReader(Reader, Protocol):
    """What readers on a device can do besides."""

    def permute(self, low: Value, high: Value, selectors: Value) -> Value:
        """Byte j is byte ``s & 7`` of two words, where ``s`` is nibble j of the lower 16 bits of `selectors`; where
        ``s >= 8`` it is that byte's upper bit eight times."""


class DeviceForm(BlockFormat):
    """A format as it is kept in device memory: its scales are those of the source, its elements are sums of bytes.

    Attributes
    ----------
    source
        The format as it is in the file.
    table
        What entries are read of, if anything.
    """

    source: BlockFormat
    table: Table | None = None

    def __init__(self, source: BlockFormat) -> None:
        self.source, self.name, self.group = source, source.name, source.group
        self.fields = source.fields

    def addends(self, r: DeviceReader, word: int) -> list[Value]:
        """Words whose signed bytes add up to elements `4 * word` to `4 * word + 3`, the zero point added: uint32."""
        raise NotImplementedError

    def rearranged(self, r: Reader) -> Units:
        """The fields that are not those of the source, read from it."""
        raise NotImplementedError

    def scale(self, r: Reader, group: int) -> Value:
        return self.source.scale(r, group)


class CodebookForm(DeviceForm):
    """Nibbles in the order of the elements."""

    def __init__(self, source: Codebook) -> None:
        super().__init__(source)
        self.codebook = source

    def addends(self, r: DeviceReader, word: int) -> list[Value]:
        """Sixteen values are sums of two permutations of eight bytes: what one gives for selectors of the other, which
        is a sign, is taken from the other's values. A second dot product costs less than merging the two, as other
        units do it."""
        selectors = r.word("qs", word // 2) >> 16 * (word % 2)
        pairs = list(zip(self.codebook.values[:8], self.codebook.values[8:], strict=True))
        lower, upper = [a + (b < 0) for a, b in pairs], [b + (a < 0) for a, b in pairs]
        return [_picked(r, lower, selectors), _picked(r, upper, selectors ^ 0x8888)]

    def rearranged(self, r: Reader) -> Units:
        halves = [_nibbles(self.codebook.indices(r, word)) for word in range(self.block // WORD)]
        return {"qs": [low | (high << 16) for low, high in zip(halves[::2], halves[1::2], strict=True)]}


class GridForm(DeviceForm):
    """Indices as one string of bits."""

    index_bits: int
    keeps_table: bool = True
    """Whether products copy the table into shared memory; else it is read through the cache."""

    def index(self, r: Reader, point: int) -> Value:
        """Which point of the grid."""
        word, at = divmod(point * self.index_bits, 32)
        found = r.word("indices", word) >> at
        if at + self.index_bits > 32:
            found = found | (r.word("indices", word + 1) << 32 - at)
        return found & ((1 << self.index_bits) - 1)

    def entry(self, r: Reader, point: int) -> Value:
        """What the table has of a point."""
        table = self.table
        assert table is not None
        return r.once((point, "entry"), lambda: r.entry(table, self.index(r, point)))

    def _describe(self, d: bool, **counts: int) -> None:
        """Fields: words, so many of each, behind the half-precision scale if there is one."""
        fields = [Field("d", 0, 2, 1)] if d else []
        at = 2 * len(fields)
        for name, count in counts.items():
            fields.append(Field(name, at, WORD, count))
            at += WORD * count
        self.fields = tuple(fields)


class SignedGridForm(GridForm):
    """Scales as nibbles and all signs."""

    def __init__(self, source: SignedGrid) -> None:
        super().__init__(source)
        self.grid, self.index_bits = source, source.index_bits
        self.n_points = self.block // source.dimensions
        self._describe(
            d=True,
            indices=self.n_points * self.index_bits // 32,
            signs=self.block // _GROUP,
            scales=self.block // self.group // 8,
        )

    def scale(self, r: Reader, group: int) -> Value:
        nibble = (r.word("scales", group // 8) >> 4 * (group % 8)) & 15
        return self.grid.block_scale(r) * r.to_float((nibble << 1) + 1)

    def rearranged(self, r: Reader) -> Units:
        indices = [self.grid.index(r, point) for point in range(self.n_points)]
        factors = [self.grid.factor(r, group) >> 1 for group in range(self.block // self.group)]
        signs = [self._signs(r, first) for first in range(0, self.block // WORD, 8)]
        return {"indices": _packed(indices, self.index_bits), "signs": signs, "scales": _packed(factors, 4)}

    def _signs(self, r: Reader, first: int) -> Value:
        """The signs of eight code words from `first` on."""
        found = []
        for i in range(8):
            bits, places = self.grid.signs(r, first + i)
            found.append(self.placed_signs(r.choose(bits, places, r.constant(EACH), r.constant(0)), i))
        return reduce(or_, found)

    def placed_signs(self, ones: Value, i: int) -> Value:
        """The signs of code word `i` of eight, one or zero in each byte, where a word of signs has them."""
        raise NotImplementedError


class EightDimensions(SignedGridForm):
    """Three levels: with its sign an element is one of eight values, which are picked.

    Bit ``4 * (e % 8) + e // 8`` of a word of signs is that of element `e` of 32: in line with a point's selectors.
    """

    def __init__(self, source: SignedGrid) -> None:
        super().__init__(source)
        self.table = _selectors(source.name)
        self._magnitudes = (*grid_values(source.name), 0)

    def addends(self, r: DeviceReader, word: int) -> list[Value]:
        point, half = divmod(word, 2)

        def selectors() -> Value:
            signs = shifted(r.word("signs", point // 4), 2 - point % 4)
            return self.entry(r, point) | (signs & (4 * NIBBLES))

        values = (*self._magnitudes, *(-m for m in self._magnitudes))
        return [_picked(r, values, r.once((point, "selectors"), selectors) >> 16 * half)]

    def placed_signs(self, ones: Value, i: int) -> Value:
        return _nibbles(ones) << 16 * (i % 2) + i // 2


class FourDimensions(SignedGridForm):
    """A word of the table has the magnitudes of a point, less one: where a mask of ones is set, it inverts such a byte
    and is added to it. So an element is one less than it should be: the zero point.

    Bit ``8 * (e % 4) + e // 4`` of a word of signs is that of element `e` of 32.
    """

    zero_point = -1
    # on an H200 the copy costs as much as it spares or more; with eight dimensions it spares up to a third
    keeps_table = False

    def __init__(self, source: SignedGrid) -> None:
        super().__init__(source)
        values = grid_values(source.name)
        points = [[values[level] - 1 for level in point] for point in grid_levels(source.name).tolist()]
        self.table = Table(tuple(int.from_bytes(bytes(point), "little") for point in points))

    def addends(self, r: DeviceReader, word: int) -> list[Value]:
        ones = r.permute(r.word("signs", word // 8) << 7 - word % 8, 0, _SIGN_OF_EACH)
        return [self.entry(r, word) ^ ones, ones]

    def placed_signs(self, ones: Value, i: int) -> Value:
        return ones << i


class MovedGridForm(GridForm):
    """Three levels moved up or down: one of eight values, which are picked."""

    index_bits = 11

    def __init__(self, source: MovedGrid) -> None:
        super().__init__(source)
        self.grid, self.table = source, _selectors("IQ1_S")
        levels = (-8, 0, 8)
        self._values = (*(v + 1 for v in levels), 0, *(v - 1 for v in levels), 0)
        self.n_points = self.block // 8

    def down(self, r: Reader, point: int) -> Value:
        """One where a point is moved down, else zero."""
        raise NotImplementedError

    def addends(self, r: DeviceReader, word: int) -> list[Value]:
        point, half = divmod(word, 2)

        def selectors() -> Value:
            return self.entry(r, point) | (self.down(r, point) * (4 * NIBBLES))

        return [_picked(r, self._values, r.once((point, "selectors"), selectors) >> 16 * half)]

    def rearranged(self, r: Reader) -> Units:
        indices = [self.grid.index(r, point) for point in range(self.n_points)]
        return {"indices": _packed(indices, self.index_bits)}

    def source_down(self, r: Reader, point: int) -> Value:
        """The same of a block as it is in the file."""
        word, bit = self.grid.down(r, point)
        return (word >> bit) & 1


class MovedGroups(MovedGridForm):
    """Nibbles with the scale and the direction of a group."""

    def __init__(self, source: MovedGrid) -> None:
        super().__init__(source)
        self._describe(d=True, indices=self.n_points * self.index_bits // 32, groups=1)

    def down(self, r: Reader, point: int) -> Value:
        return (r.word("groups", 0) >> point // 4 * 4 + 3) & 1

    def scale(self, r: Reader, group: int) -> Value:
        small = (r.word("groups", 0) >> 4 * group) & 7
        return self.grid.block_scale(r) * r.to_float((small << 1) + 1)

    def rearranged(self, r: Reader) -> Units:
        nibbles = [
            (self.grid.factor(r, group) >> 1) | (self.source_down(r, 4 * group) << 3)
            for group in range(self.block // 32)
        ]
        return {**super().rearranged(r), "groups": _packed(nibbles, 4)}


class MovedPoints(MovedGridForm):
    """A direction for each point; scales as in the file."""

    def __init__(self, source: MovedGrid) -> None:
        super().__init__(source)
        self._describe(d=False, indices=self.n_points * self.index_bits // 32, down=1, scales=2)

    def down(self, r: Reader, point: int) -> Value:
        return (r.word("down", 0) >> point) & 1

    def rearranged(self, r: Reader) -> Units:
        down = [self.source_down(r, point) for point in range(self.n_points)]
        return {**super().rearranged(r), "down": _packed(down, 1)}


class PairsForm(DeviceForm):
    """Pairs of bits so that those of four neighbouring elements are in as many bytes."""

    def __init__(self, source: Q2_0) -> None:
        super().__init__(source)
        self.zero_point = source.zero_point

    def addends(self, r: DeviceReader, word: int) -> list[Value]:
        return [(r.word("qs", word // 4) >> 2 * (word % 4)) & PAIRS]

    def rearranged(self, r: Reader) -> Units:
        n_words = self.block // WORD
        codes = [self.source.codes(r, word) << 2 * (word % 4) for word in range(n_words)]
        return {"qs": [reduce(or_, codes[i : i + 4]) for i in range(0, n_words, 4)]}


class SignForm(DeviceForm):
    """Signs so that those of four neighbouring elements are in as many bytes."""

    def __init__(self, source: Q1_0) -> None:
        super().__init__(source)
        self.zero_point = source.zero_point

    def addends(self, r: DeviceReader, word: int) -> list[Value]:
        return [shifted(r.word("qs", word // 8), 1 - word % 8) & (2 * EACH)]

    def rearranged(self, r: Reader) -> Units:
        n_words = self.block // WORD
        codes = [shifted(self.source.codes(r, word), word % 8 - 1) for word in range(n_words)]
        return {"qs": [reduce(or_, codes[i : i + 8]) for i in range(0, n_words, 8)]}


@cache
def stored(fmt: BlockFormat) -> BlockFormat:
    """A format as it is kept in device memory."""
    if isinstance(fmt, Codebook):
        return CodebookForm(fmt)
    if isinstance(fmt, SignedGrid):
        return (EightDimensions if fmt.dimensions == 8 else FourDimensions)(fmt)
    if isinstance(fmt, MovedGrid):
        return (MovedGroups if fmt.group == 32 else MovedPoints)(fmt)
    if isinstance(fmt, Q2_0):
        return PairsForm(fmt)
    if isinstance(fmt, Q1_0):
        return SignForm(fmt)
    return fmt


def stored_units(form: BlockFormat, r: Reader) -> Units:
    """All units of a form, from a reader of the block as it is in the file; those of narrow fields as uint32 too."""
    found = form.rearranged(r) if isinstance(form, DeviceForm) else {}
    for field in form.fields:
        if field.name not in found:
            wide = field.unit == WORD
            found[field.name] = [r.word(field.name, i) if wide else r.narrow(field.name) for i in range(field.count)]
    return found


@cache
def _selectors(name: str) -> Table:
    """The levels of each point of a grid of eight dimensions, a nibble each."""
    levels = grid_levels(name).tolist()
    return Table(tuple(sum(level << 4 * i for i, level in enumerate(point)) for point in levels))


def _picked(r: DeviceReader, values: Sequence[int], selectors: Value) -> Value:
    """Four of eight signed bytes; the sign of one where a selector has its upper bit set."""
    low, high = (int.from_bytes(bytes(v & 255 for v in values[i : i + WORD]), "little") for i in (0, WORD))
    return r.permute(low, high, selectors)


def _nibbles(word: Value) -> Value:
    """The lower nibbles of four bytes, whose upper ones are zero, side by side."""
    pairs = word | (word >> 4)
    return (pairs & 0xFF) | ((pairs >> 8) & 0xFF00)


def _packed(values: Sequence[Value], bits: int) -> list[Value]:
    """Values of so many bits as one string."""
    words: list[list[Value]] = [[] for _ in range(len(values) * bits // 32)]
    for i, value in enumerate(values):
        word, at = divmod(i * bits, 32)
        words[word].append(value << at)
        if at + bits > 32:
            words[word + 1].append(value >> 32 - at)
    return [reduce(or_, parts) for parts in words]
