"""GGML's first quantizations: blocks of 32 elements with one half-precision scale.

Layouts: `block_q4_0`, `block_q4_1`, `block_q5_0`, `block_q5_1`, `block_q8_0` of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Sequence

from airkernels.formats.base import (
    EACH,
    HIGH_NIBBLES,
    LOW_NIBBLES,
    SIGNS,
    BlockFormat,
    Field,
    Reader,
    RoundedFormat,
    Rounder,
    Value,
    run,
)


class _Nibbles(BlockFormat):
    """16 nibbles low, 16 nibbles high."""

    group = 32
    code_max = 15

    def codes_in_place(self, r: Reader, word: int) -> Value:
        return r.word("qs", word % 4) & r.constant(HIGH_NIBBLES if word // 4 else LOW_NIBBLES)

    def code_shift(self, word: int) -> int:
        return 4 * (word // 4)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")


class Q4_0(_Nibbles, RoundedFormat):
    """Nibbles with an offset of 8. The extreme element becomes -8."""

    name = "Q4_0"
    fields: tuple[Field, ...] = (Field("d", 0, 2, 1), Field("qs", 2, 4, 4))
    zero_point = 8

    def scale_of(self, r: Rounder, values: Value) -> Value:
        return r.extreme(values) * -0.125

    def code_of(self, r: Rounder, scaled: Value) -> Value:
        return r.least(r.truncated(scaled + 8.5), self.code_max)

    def units_of(self, r: Rounder, words: Sequence[Value]) -> list[Value]:
        half = len(words) // 2
        return [low | (high << 4) for low, high in zip(words[:half], words[half:], strict=True)]


class Q4_1(_Nibbles):
    """Nibbles with a minimum."""

    name = "Q4_1"
    fields: tuple[Field, ...] = (Field("d", 0, 2, 1), Field("m", 2, 2, 1), Field("qs", 4, 4, 4))
    has_minimum = True

    def minimum(self, r: Reader, group: int) -> Value:
        return r.half("m")


class Q5_0(BlockFormat):
    """As Q4_0, with a fifth bit of each element in a word of their own."""

    name = "Q5_0"
    group = 32
    fields: tuple[Field, ...] = (Field("d", 0, 2, 1), Field("qh", 2, 4, 1), Field("qs", 6, 4, 4))
    zero_point = 16
    code_max = 31

    def codes_in_place(self, r: Reader, word: int) -> Value:
        nibbles = (r.word("qs", word % 4) >> (4 * (word // 4))) & r.constant(LOW_NIBBLES)
        return r.choose(r.word("qh", 0), run(4 * word), nibbles | r.constant(0x10 * EACH), nibbles)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")


class Q5_1(Q5_0):
    """As Q5_0, with a minimum in place of the offset."""

    name = "Q5_1"
    fields: tuple[Field, ...] = (
        Field("d", 0, 2, 1),
        Field("m", 2, 2, 1),
        Field("qh", 4, 4, 1),
        Field("qs", 8, 4, 4),
    )
    zero_point = 0
    has_minimum = True

    def minimum(self, r: Reader, group: int) -> Value:
        return r.half("m")


class Q8_0(RoundedFormat):
    """Signed bytes, read as unsigned codes with their sign bit flipped. The largest element becomes +-127."""

    name = "Q8_0"
    group = 32
    fields: tuple[Field, ...] = (Field("d", 0, 2, 1), Field("qs", 2, 4, 8))
    zero_point = 128
    code_max = 255

    def codes_in_place(self, r: Reader, word: int) -> Value:
        return r.word("qs", word) ^ r.constant(SIGNS)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")

    def scale_of(self, r: Rounder, values: Value) -> Value:
        return r.largest(values) / 127.0

    def code_of(self, r: Rounder, scaled: Value) -> Value:
        return r.nearest(scaled) + self.zero_point

    def units_of(self, r: Rounder, words: Sequence[Value]) -> list[Value]:
        return [word ^ r.constant(SIGNS, word) for word in words]
