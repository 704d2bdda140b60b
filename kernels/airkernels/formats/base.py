"""The description of a block format, from which everything else about it is derived.

A format says where its bytes are (`fields`) and how four neighbouring elements become four integer
codes (`codes_in_place`), with one float scale, and for some formats one float minimum, per group:

    value[k] = scale(group) * (code[k] - zero_point) + minimum(group)

`codes_in_place`, `scale` and `minimum` are written against `Reader`, not against an array library, so that the
same few lines run on numpy arrays (the reference) and build TVM expressions (the kernels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from airrun.plan.blocks import BLOCKS

Value = Any
"""A numpy array or a TVM expression: one entry per row."""

WORD = 4
"""Elements per code word: one byte each in a 32-bit lane."""

Places = tuple[int, int, int, int]
"""Which bit of a word belongs to each of four elements."""

EACH = 0x01010101
"""One in each byte of a word: times a byte, it is that byte four times."""

LOW_NIBBLES = 0x0F * EACH
HIGH_NIBBLES = 0xF0 * EACH
PAIRS = 0x03 * EACH
SIX_BITS = 0x3F * EACH
SIGNS = 0x80 * EACH


@dataclass(frozen=True)
class Table:
    """A table of words, which formats whose codes are indices look entries up in.

    Attributes
    ----------
    entries
        uint32. The top bit of each byte is zero: tables travel inside the kernels as text, which has seven bits.
    """

    entries: tuple[int, ...]

    def __post_init__(self) -> None:
        assert not any(entry & SIGNS for entry in self.entries)


class Reader(Protocol):
    """Reads the fields of one block of several rows at once, and does what plain operators cannot."""

    def word(self, field: str, index: int) -> Value:
        """Unit `index` of a four-byte `field` as uint32."""

    def half(self, field: str) -> Value:
        """A two-byte float `field` as float32."""

    def byte(self, field: str, index: int) -> Value:
        """Byte `index` of a four-byte-unit `field` as int32, zero-extended."""

    def signed_byte(self, field: str, index: int) -> Value:
        """Byte `index` of a four-byte-unit `field` as int32, sign-extended."""

    def byte_of(self, word: Value, index: int) -> Value:
        """Byte `index` of a uint32 as int32, zero-extended."""

    def narrow(self, field: str) -> Value:
        """A one- or two-byte `field` as uint32, zero-extended."""

    def to_float(self, value: Value) -> Value:
        """An int32 value as float32."""

    def half_of(self, bits: Value) -> Value:
        """The half-precision float whose bits are the lower sixteen of an integer, as float32."""

    def float_of(self, bits: Value) -> Value:
        """The float32 whose bits are those of an integer."""

    def constant(self, value: int) -> Value:
        """A uint32 constant."""

    def choose(self, bits: Value, places: Places, if_set: Value, if_clear: Value) -> Value:
        """Byte j of `if_set` where bit `places[j]` of the uint32 `bits` is one, else byte j of `if_clear`."""

    def lookup(self, entries: tuple[int, ...], indices: Value) -> Value:
        """Byte j is `entries[byte j of indices]`; sixteen entries of a byte each."""

    def entry(self, table: Table, index: Value) -> Value:
        """Word `index` of a table."""

    def once(self, key: object, build: Callable[[], Value]) -> Value:
        """What `build` makes, made once for all calls with this key: for values that several words share."""


def run(first: int, stride: int = 1) -> Places:
    """Four bits, `stride` apart."""
    return (first, first + stride, first + 2 * stride, first + 3 * stride)


def shifted(value: Value, left: int) -> Value:
    """`value << left`, where left may be negative."""
    return value << left if left > 0 else value >> -left if left < 0 else value


@dataclass(frozen=True)
class Field:
    """A run of equal units inside a block.

    Attributes
    ----------
    name
        What the format's own definition calls it.
    offset
        First byte, from the start of the block.
    unit
        Bytes per unit (1, 2 or 4); interleaving moves whole units.
    count
        Number of units; one where they are narrower than four bytes.
    """

    name: str
    offset: int
    unit: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.unit * self.count


class BlockFormat:
    """Integer block format: codes of 8 bits or fewer with float scales."""

    name: str
    group: int
    fields: tuple[Field, ...]
    zero_point: int = 0
    has_minimum: bool = False
    code_max: int
    """Largest code: what a saturating 16-bit dot product has to hold."""
    groups_of_words: ClassVar[int] = 1
    """How many neighbouring groups have their codes in the same words."""

    @property
    def block(self) -> int:
        """Elements per block."""
        return BLOCKS[self.name].block

    @property
    def nbytes(self) -> int:
        """Bytes per block."""
        return BLOCKS[self.name].nbytes

    def field(self, name: str) -> Field:
        return next(f for f in self.fields if f.name == name)

    def codes_in_place(self, r: Reader, word: int) -> Value:
        """Codes of elements `4 * word` to `4 * word + 3` as uint32, one a byte, times `2 ** code_shift(word)`.

        Codes that lie in the upper bits of a byte may stay there: a dot product can be shifted once at its end.
        """
        raise NotImplementedError

    def code_shift(self, word: int) -> int:
        """How far `codes_in_place` are from the bottom of their bytes."""
        return 0

    def codes(self, r: Reader, word: int) -> Value:
        """The codes themselves, as uint32."""
        codes = self.codes_in_place(r, word)
        shift = self.code_shift(word)
        return codes >> shift if shift else codes

    def scale(self, r: Reader, group: int) -> Value:
        """Scale of a group, float32."""
        raise NotImplementedError

    def minimum(self, r: Reader, group: int) -> Value:
        """What is added to every element of a group, float32; only if `has_minimum`."""
        raise NotImplementedError


class Rounder(Protocol):
    """What rounding the values of a block takes; a value is a vector of them, or an array."""

    def largest(self, values: Value) -> Value:
        """The largest magnitude of a block."""

    def extreme(self, values: Value) -> Value:
        """The element that has it, with its sign; the first of equals."""

    def nearest(self, x: Value) -> Value:
        """To int32, halves away from zero."""

    def truncated(self, x: Value) -> Value:
        """To int32, towards zero."""

    def least(self, x: Value, most: int) -> Value:
        """The smaller of int32 and a constant."""

    def constant(self, value: int, like: Value) -> Value:
        """A uint32 constant beside words."""


class RoundedFormat(BlockFormat):
    """A format that values can be rounded to while a model runs: blocks of a scale `d` and codes `qs`, which lie in
    runs of neighbouring words."""

    def scale_of(self, r: Rounder, values: Value) -> Value:
        """The scale of a block, before it is itself rounded to a half; as ggml's `quantize_row_*_ref`."""
        raise NotImplementedError

    def code_of(self, r: Rounder, scaled: Value) -> Value:
        """Codes, int32, of values divided by the scale."""
        raise NotImplementedError

    def units_of(self, r: Rounder, words: Sequence[Value]) -> list[Value]:
        """The units `qs` of a block, from its codes as words; either may be in vectors of neighbours."""
        raise NotImplementedError


class SuperBlockFormat(BlockFormat):
    """Blocks of many groups, whose scales and minima are those of the block times small integers.

    The products are exact in float32: 11 bits of a half-precision float by 8.
    """

    def block_scale(self, r: Reader) -> Value:
        """Scale of the block, float32."""
        raise NotImplementedError

    def factor(self, r: Reader, group: int) -> Value:
        """What a group's scale is times that of the block, an integer."""
        raise NotImplementedError

    def block_minimum(self, r: Reader) -> Value:
        """Minimum of the block, float32; only if `has_minimum`."""
        raise NotImplementedError

    def minimum_factor(self, r: Reader, group: int) -> Value:
        """What a group's minimum is times that of the block, an integer; only if `has_minimum`."""
        raise NotImplementedError

    def scale(self, r: Reader, group: int) -> Value:
        return self.block_scale(r) * r.to_float(self.factor(r, group))

    def minimum(self, r: Reader, group: int) -> Value:
        return self.block_minimum(r) * r.to_float(self.minimum_factor(r, group))


class FloatFormat:
    """A plain float type: one element is one unit."""

    name: ClassVar[str]
    dtype: ClassVar[str]

    block: ClassVar[int] = 1

    @property
    def nbytes(self) -> int:
        """Bytes per element."""
        return BLOCKS[self.name].nbytes

    @property
    def fields(self) -> tuple[Field, ...]:
        return (Field("value", 0, self.nbytes, 1),)

    def field(self, name: str) -> Field:
        return next(f for f in self.fields if f.name == name)


AnyFormat = BlockFormat | FloatFormat
