"""GGML's K-quants: super-blocks of 256 elements whose groups have small integer scales.

Layouts: `block_q2_K` to `block_q6_K` of ggml-common.h.
"""

from __future__ import annotations

from typing import ClassVar

from airkernels.formats.base import (
    EACH,
    HIGH_NIBBLES,
    LOW_NIBBLES,
    PAIRS,
    BlockFormat,
    Field,
    Reader,
    Value,
    shifted,
)


class Q2_K(BlockFormat):
    """Sixteen groups of 16 pairs of bits; a byte of each group holds four bits of scale and four of minimum."""

    name = "Q2_K"
    group = 16
    fields = (Field("scales", 0, 4, 4), Field("qs", 16, 4, 16), Field("d", 80, 2, 1), Field("dmin", 82, 2, 1))
    has_minimum = True
    code_max = 3

    def codes_in_place(self, r: Reader, word: int) -> Value:
        return r.word("qs", 8 * (word // 32) + word % 8) & r.constant(PAIRS << self.code_shift(word))

    def code_shift(self, word: int) -> int:
        return 2 * (word % 32 // 8)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d") * r.to_float(r.byte("scales", group) & 15)

    def minimum(self, r: Reader, group: int) -> Value:
        return -(r.half("dmin") * r.to_float(r.byte("scales", group) >> 4))


class Q3_K(BlockFormat):
    """Sixteen groups of 16; two low bits and one high bit apart; six-bit scales packed in twelve bytes, offset 32."""

    name = "Q3_K"
    group = 16
    fields = (Field("hmask", 0, 4, 8), Field("qs", 32, 4, 16), Field("scales", 96, 4, 3), Field("d", 108, 2, 1))
    zero_point = 4
    code_max = 7

    def codes_in_place(self, r: Reader, word: int) -> Value:
        half, within = divmod(word, 32)
        quarter, at = divmod(within, 8)
        low = (r.word("qs", 8 * half + at) >> (2 * quarter)) & r.constant(PAIRS)
        return low | (shifted(r.word("hmask", at), 2 - (4 * half + quarter)) & r.constant(4 * EACH))

    def scale(self, r: Reader, group: int) -> Value:
        low = (r.byte("scales", group % 8) >> (4 * (group // 8))) & 15
        high = (r.byte("scales", 8 + group % 4) >> (2 * (group // 4))) & 3
        return r.half("d") * r.to_float((low | (high << 4)) - 32)


class Q4_K(BlockFormat):
    """Eight groups of 32 nibbles; six-bit scales and minima packed in twelve bytes."""

    name = "Q4_K"
    group = 32
    fields: ClassVar[tuple[Field, ...]] = (
        Field("d", 0, 2, 1),
        Field("dmin", 2, 2, 1),
        Field("scales", 4, 4, 3),
        Field("qs", 16, 4, 32),
    )
    has_minimum = True
    code_max = 15

    def codes_in_place(self, r: Reader, word: int) -> Value:
        chunk, within = divmod(word, 16)
        return r.word("qs", 8 * chunk + within % 8) & r.constant(HIGH_NIBBLES if within // 8 else LOW_NIBBLES)

    def code_shift(self, word: int) -> int:
        return 4 * (word % 16 // 8)

    def scale(self, r: Reader, group: int) -> Value:
        if group < 4:
            six_bits = r.byte("scales", group) & 63
        else:
            six_bits = (r.byte("scales", group + 4) & 15) | ((r.byte("scales", group - 4) >> 6) << 4)
        return r.half("d") * r.to_float(six_bits)

    def minimum(self, r: Reader, group: int) -> Value:
        if group < 4:
            six_bits = r.byte("scales", group + 4) & 63
        else:
            six_bits = (r.byte("scales", group + 4) >> 4) | ((r.byte("scales", group) >> 6) << 4)
        return -(r.half("dmin") * r.to_float(six_bits))


class Q5_K(Q4_K):
    """As Q4_K, with a fifth bit of each element apart: bit g of a byte belongs to group g."""

    name = "Q5_K"
    fields: ClassVar[tuple[Field, ...]] = (
        Field("d", 0, 2, 1),
        Field("dmin", 2, 2, 1),
        Field("scales", 4, 4, 3),
        Field("qh", 16, 4, 8),
        Field("qs", 48, 4, 32),
    )
    code_max = 31

    def codes_in_place(self, r: Reader, word: int) -> Value:
        group, at = divmod(word, 8)
        low = (r.word("qs", 8 * (group // 2) + at) >> (4 * (group % 2))) & r.constant(LOW_NIBBLES)
        return low | (shifted(r.word("qh", at), 4 - group) & r.constant(0x10 * EACH))

    def code_shift(self, word: int) -> int:
        return 0


class Q6_K(BlockFormat):
    """Sixteen groups of 16; four low bits and two high bits apart; signed byte scales."""

    name = "Q6_K"
    group = 16
    fields = (Field("ql", 0, 4, 32), Field("qh", 128, 4, 16), Field("scales", 192, 4, 4), Field("d", 208, 2, 1))
    zero_point = 32
    code_max = 63

    def codes_in_place(self, r: Reader, word: int) -> Value:
        half, within = divmod(word, 32)
        quarter, at = divmod(within, 8)
        low = r.word("ql", 16 * half + 8 * (quarter % 2) + at) >> (4 * (quarter // 2))
        high = r.word("qh", 8 * half + at) >> (2 * quarter)
        return (low & r.constant(LOW_NIBBLES)) | ((high & r.constant(PAIRS)) << 4)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d") * r.to_float(r.signed_byte("scales", group))
