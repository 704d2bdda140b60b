"""The description of a block format, from which everything else about it is derived.

A format says where its bytes are (`fields`) and how four neighbouring elements become four integer
codes (`codes_in_place`), with one float scale, and for some formats one float minimum, per group:

    value[k] = scale(group) * (code[k] - zero_point) + minimum(group)

`codes_in_place`, `scale` and `minimum` are written against `Reader`, not against an array library, so that the
same few lines run on numpy arrays (the reference) and build TVM expressions (the kernels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from airrun.plan.blocks import BLOCKS

Value = Any
"""A numpy array or a TVM expression: one entry per row."""

WORD = 4
"""Elements per code word: one byte each in a 32-bit lane."""

LOW_NIBBLES = 0x0F0F0F0F
HIGH_NIBBLES = 0xF0F0F0F0
PAIRS = 0x03030303
SIGNS = 0x80808080


class Reader(Protocol):
    """Reads the fields of one block of several rows at once."""

    def word(self, field: str, index: int) -> Value:
        """Unit `index` of a four-byte `field` as uint32."""

    def half(self, field: str) -> Value:
        """A two-byte float `field` as float32."""

    def byte(self, field: str, index: int) -> Value:
        """Byte `index` of a four-byte-unit `field` as int32, zero-extended."""

    def signed_byte(self, field: str, index: int) -> Value:
        """Byte `index` of a four-byte-unit `field` as int32, sign-extended."""

    def to_float(self, value: Value) -> Value:
        """An int32 value as float32."""

    def constant(self, value: int) -> Value:
        """A uint32 constant."""


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
        Bytes per unit (2 or 4); interleaving moves whole units.
    count
        Number of units.
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

    name: ClassVar[str]
    group: ClassVar[int]
    fields: ClassVar[tuple[Field, ...]]
    zero_point: ClassVar[int] = 0
    has_minimum: ClassVar[bool] = False
    code_max: ClassVar[int]
    """Largest code: what a saturating 16-bit dot product has to hold."""

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


AnyFormat = BlockFormat | FloatFormat
