"""Formats whose codes are indices into a grid: a table of points of four or eight dimensions.

The grids were found by search, so they are data, taken from the gguf package. They are stored here as codes or as
two-bit levels, ready for use.

Layouts: `block_iq2_xxs` to `block_iq1_m` of ggml-common.h.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import gguf.quants

from airkernels.formats.base import EACH, PAIRS, Field, Places, Reader, SuperBlockFormat, Table, Value, run


def _points(name: str) -> Any:
    """The grid of a format, int [points, dimensions]."""
    source = getattr(gguf.quants, name)
    source.init_grid()
    return source.grid.reshape(source.grid_shape).astype(int)


def _words(codes: Any) -> Table:
    """Bytes [n, 4] as a table of words."""
    return Table(tuple(int.from_bytes(bytes(row), "little") for row in codes.tolist()))


@cache
def _codes(name: str, zero_point: int) -> Table:
    """A grid of four dimensions as codes."""
    return _words(_points(name) + zero_point)


def grid_values(name: str) -> tuple[int, ...]:
    """The values of all coordinates of a grid, ascending."""
    return tuple(sorted(set(_points(name).reshape(-1).tolist())))


def grid_levels(name: str) -> Any:
    """A grid with the places of its coordinates among `grid_values`, int [points, dimensions]."""
    points = _points(name)
    return sum((points == value) * level for level, value in enumerate(grid_values(name)))


@cache
def _levels(name: str, shifts: tuple[int, int]) -> Table:
    """A grid of eight dimensions as two-bit levels, those of each half shifted left so far in their bytes."""
    levels = grid_levels(name)
    return _words((levels[:, :4] << shifts[0]) | (levels[:, 4:] << shifts[1]))


class _Grid(SuperBlockFormat):
    """Groups with odd factors, in units of the block's scale."""

    unit: ClassVar[float] = 1.0

    def block_scale(self, r: Reader) -> Value:
        return r.half("d") * self.unit


class SignedGrid(_Grid):
    """Magnitudes from a grid, and signs apart."""

    dimensions: ClassVar[int]
    index_bits: ClassVar[int]

    def index(self, r: Reader, point: int) -> Value:
        """Which point of the grid, int32."""
        raise NotImplementedError

    def signs(self, r: Reader, word: int) -> tuple[Value, Places]:
        """A word with the signs of the elements of a code word, and where they are."""
        raise NotImplementedError

    def with_signs(self, r: Reader, codes: Value, signs: Value, places: Places) -> Value:
        """Codes mirrored at the zero point where the bit is set."""
        return r.choose(signs, places, r.constant(2 * self.zero_point * EACH) - codes, codes)


def _even_parity(seven: Value) -> Value:
    """Bit k is the parity of bits k to k + 6: the sign which makes the number of minus signs even."""
    two = seven ^ (seven >> 1)
    four = two ^ (two >> 2)
    return four ^ (two >> 4) ^ (seven >> 6)


def _packed_signs(r: Reader, field: str, index: int) -> Value:
    """Four times seven signs in a word, and in its four upper bits (which were a scale) the eighth ones."""

    def build() -> Value:
        word = r.word(field, index)
        eighth = _even_parity(word) & r.constant(0x00204081)
        # Bits 0, 7, 14 and 21 arrive at 28 to 31; no two terms of the product meet, so nothing carries.
        gathered = eighth * r.constant((1 << 28) | (1 << 22) | (1 << 16) | (1 << 10))
        return (word & r.constant(0x0FFFFFFF)) | (gathered & r.constant(0xF0000000))

    return r.once((field, index, "signs"), build)


def _packed_places(word: int) -> Places:
    """Where `_packed_signs` has the signs of a code word, of eight."""
    eighth, half = divmod(word, 2)
    return (7 * eighth + 4, 7 * eighth + 5, 7 * eighth + 6, 28 + eighth) if half else run(7 * eighth)


class _Iq2(SignedGrid):
    """Points of eight dimensions with three levels."""

    zero_point = 64
    code_max = 64 + 43
    unit = 0.125
    dimensions = 8
    _values = tuple(64 + level for level in (8, 25, 43)) + 13 * (0,)

    def codes_in_place(self, r: Reader, word: int) -> Value:
        point, half = divmod(word, 2)
        table = _levels(self.name, (0, 2))
        levels = r.once((point, "levels"), lambda: r.entry(table, self.index(r, point)))
        codes = r.lookup(self._values, (levels >> (2 * half)) & r.constant(PAIRS))
        return self.with_signs(r, codes, *self.signs(r, word))


class IQ2_XXS(_Iq2):
    """Two words for 32 elements: four indices; four times seven signs and a four-bit scale."""

    name = "IQ2_XXS"
    group = 32
    index_bits = 8
    fields = (Field("d", 0, 2, 1), Field("qs", 2, 4, 16))

    def index(self, r: Reader, point: int) -> Value:
        return r.byte("qs", 8 * (point // 4) + point % 4)

    def signs(self, r: Reader, word: int) -> tuple[Value, Places]:
        return _packed_signs(r, "qs", 2 * (word // 8) + 1), _packed_places(word % 8)

    def factor(self, r: Reader, group: int) -> Value:
        return _odd(r.word("qs", 2 * group + 1) >> 28)


class IQ2_XS(_Iq2):
    """Nine bits of index and seven signs for eight elements, four bits of scale for 16."""

    name = "IQ2_XS"
    group = 16
    index_bits = 9
    fields = (Field("d", 0, 2, 1), Field("qs", 2, 4, 16), Field("scales", 66, 4, 2))

    def index(self, r: Reader, point: int) -> Value:
        return (r.word("qs", point // 2) >> (16 * (point % 2))) & 511

    def signs(self, r: Reader, word: int) -> tuple[Value, Places]:
        """The eighth sign takes the place of the lowest index bit."""
        point, half = divmod(word, 2)
        stored, first = r.word("qs", point // 2), 16 * (point % 2)
        if not half:
            return stored, run(first + 9)
        eighth = (_even_parity(stored) >> 9) & r.constant(0x00010001)
        all_signs = (stored & r.constant(0xFE00FE00)) | eighth
        return r.once((point // 2, "signs"), lambda: all_signs), (first + 13, first + 14, first + 15, first)

    def factor(self, r: Reader, group: int) -> Value:
        return _odd(_nibble(r, "scales", group))


class IQ2_S(_Iq2):
    """Ten bits of index and eight signs for eight elements, four bits of scale for 16."""

    name = "IQ2_S"
    group = 16
    index_bits = 10
    fields = (
        Field("d", 0, 2, 1),
        Field("qs", 2, 4, 8),
        Field("signs", 34, 4, 8),
        Field("qh", 66, 4, 2),
        Field("scales", 74, 4, 2),
    )

    def index(self, r: Reader, point: int) -> Value:
        high = (r.word("qh", point // 16) >> (2 * (point % 16))) & 3
        return r.byte("qs", point) | (high << 8)

    def signs(self, r: Reader, word: int) -> tuple[Value, Places]:
        return r.word("signs", word // 8), run(4 * (word % 8))

    def factor(self, r: Reader, group: int) -> Value:
        return _odd(_nibble(r, "scales", group))


class _Iq3(SignedGrid):
    """Points of four dimensions, kept as codes."""

    dimensions = 4

    def codes_in_place(self, r: Reader, word: int) -> Value:
        codes = r.entry(_codes(self.name, self.zero_point), self.index(r, word))
        return self.with_signs(r, codes, *self.signs(r, word))


class IQ3_XXS(_Iq3):
    """A byte of index for four elements; four times seven signs and a four-bit scale in a word for 32."""

    name = "IQ3_XXS"
    group = 32
    fields = (Field("d", 0, 2, 1), Field("qs", 2, 4, 16), Field("signs", 66, 4, 8))
    zero_point = 64
    code_max = 64 + 62
    unit = 0.25
    index_bits = 8

    def index(self, r: Reader, point: int) -> Value:
        return r.byte("qs", point)

    def signs(self, r: Reader, word: int) -> tuple[Value, Places]:
        return _packed_signs(r, "signs", word // 8), _packed_places(word % 8)

    def factor(self, r: Reader, group: int) -> Value:
        return _odd(r.word("signs", group) >> 28)


class IQ3_S(_Iq3):
    """Nine bits of index and four signs for four elements, four bits of scale for 32."""

    name = "IQ3_S"
    group = 32
    fields = (
        Field("d", 0, 2, 1),
        Field("qs", 2, 4, 16),
        Field("qh", 66, 4, 2),
        Field("signs", 74, 4, 8),
        Field("scales", 106, 4, 1),
    )
    zero_point = 16
    code_max = 16 + 15
    index_bits = 9

    def index(self, r: Reader, point: int) -> Value:
        high = (r.word("qh", point // 32) >> (point % 32)) & 1
        return r.byte("qs", point) | (high << 8)

    def signs(self, r: Reader, word: int) -> tuple[Value, Places]:
        return r.word("signs", word // 8), run(4 * (word % 8))

    def factor(self, r: Reader, group: int) -> Value:
        return _odd(_nibble(r, "scales", group))


class MovedGrid(_Grid):
    """Points of eight dimensions with levels -1, 0 and 1, all moved up or down by an eighth.

    A code is 16 + 8 * level +- 1.
    """

    zero_point = 16
    code_max = 16 + 8 + 1
    unit = 0.125
    fields: tuple[Field, ...]

    def index(self, r: Reader, point: int) -> Value:
        raise NotImplementedError

    def down(self, r: Reader, point: int) -> tuple[Value, int]:
        """A word, and which bit of it says that the point is moved down."""
        raise NotImplementedError

    def codes_in_place(self, r: Reader, word: int) -> Value:
        point, half = divmod(word, 2)
        levels = r.once((point, "levels"), lambda: r.entry(_levels("IQ1_S", (3, 0)), self.index(r, point)))
        flags, bit = self.down(r, point)
        places = (bit, bit, bit, bit)
        moved = r.once((point, "moved"), lambda: r.choose(flags, places, r.constant(7 * EACH), r.constant(9 * EACH)))
        return ((levels << (3 * half)) & r.constant(0x18 * EACH)) + moved


class IQ1_S(MovedGrid):
    """Eleven bits of index for eight elements; three bits of scale and the direction for 32."""

    name = "IQ1_S"
    group = 32
    fields = (Field("d", 0, 2, 1), Field("qs", 2, 4, 8), Field("qh", 34, 4, 4))

    def index(self, r: Reader, point: int) -> Value:
        high = (r.word("qh", point // 8) >> (16 * (point // 4 % 2) + 3 * (point % 4))) & 7
        return r.byte("qs", point) | (high << 8)

    def down(self, r: Reader, point: int) -> tuple[Value, int]:
        return r.word("qh", point // 8), 16 * (point // 4 % 2) + 15

    def factor(self, r: Reader, group: int) -> Value:
        return _odd((r.word("qh", group // 2) >> (16 * (group % 2) + 12)) & 7)


class IQ1_M(MovedGrid):
    """Eleven bits of index and a direction for eight elements, three bits of scale for 16.

    The half-precision scale of the block is in the upper nibbles of four 16-bit units.
    """

    name = "IQ1_M"
    group = 16
    fields = (Field("qs", 0, 4, 8), Field("qh", 32, 4, 4), Field("scales", 48, 4, 2))

    def index(self, r: Reader, point: int) -> Value:
        high = (r.word("qh", point // 8) >> (4 * (point % 8))) & 7
        return r.byte("qs", point) | (high << 8)

    def down(self, r: Reader, point: int) -> tuple[Value, int]:
        return r.word("qh", point // 8), 4 * (point % 8) + 3

    def factor(self, r: Reader, group: int) -> Value:
        return _odd((r.word("scales", group // 8) >> (16 * (group // 4 % 2) + 3 * (group % 4))) & 7)

    def block_scale(self, r: Reader) -> Value:
        first, second = r.word("scales", 0), r.word("scales", 1)
        lower = ((first >> 12) & 0x000F) | ((first >> 24) & 0x00F0)
        bits = lower | ((second >> 4) & 0x0F00) | ((second >> 16) & 0xF000)
        return r.once("d", lambda: r.half_of(bits)) * self.unit


def _odd(small: Value) -> Value:
    """2 * small + 1."""
    return (small << 1) + 1


def _nibble(r: Reader, field: str, index: int) -> Value:
    return (r.word(field, index // 8) >> (4 * (index % 8))) & 15
