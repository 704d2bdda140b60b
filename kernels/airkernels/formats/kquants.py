"""GGML's K-quants: super-blocks of 256 elements whose groups have small integer scales.

Layouts: `block_q2_K` to `block_q6_K` of ggml-common.h.
"""

from __future__ import annotations

from airkernels.formats.base import (
    EACH,
    HIGH_NIBBLES,
    LOW_NIBBLES,
    PAIRS,
    SIX_BITS,
    WORD,
    Field,
    Reader,
    SuperBlockFormat,
    Value,
    shifted,
)


class Q2_K(SuperBlockFormat):
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

    def block_scale(self, r: Reader) -> Value:
        return r.half("d")

    def factor(self, r: Reader, group: int) -> Value:
        word = group // WORD
        four = r.once((word, "factors"), lambda: r.word("scales", word) & r.constant(LOW_NIBBLES))
        return r.byte_of(four, group % WORD)

    def block_minimum(self, r: Reader) -> Value:
        return -r.half("dmin")

    def minimum_factor(self, r: Reader, group: int) -> Value:
        word = group // WORD
        four = r.once((word, "minima"), lambda: (r.word("scales", word) >> 4) & r.constant(LOW_NIBBLES))
        return r.byte_of(four, group % WORD)


class Q3_K(SuperBlockFormat):
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

    def block_scale(self, r: Reader) -> Value:
        return r.half("d")

    def factor(self, r: Reader, group: int) -> Value:
        word = group // WORD

        def four() -> Value:
            low = (r.word("scales", word % 2) >> (4 * (word // 2))) & r.constant(LOW_NIBBLES)
            return low | (shifted(r.word("scales", 2), 4 - 2 * word) & r.constant(PAIRS << 4))

        return r.byte_of(r.once((word, "factors"), four), group % WORD) - 32


class Q4_K(SuperBlockFormat):
    """Eight groups of 32 nibbles; six-bit scales and minima packed in twelve bytes."""

    name = "Q4_K"
    group = 32
    fields: tuple[Field, ...] = (
        Field("d", 0, 2, 1),
        Field("dmin", 2, 2, 1),
        Field("scales", 4, 4, 3),
        Field("qs", 16, 4, 32),
    )
    has_minimum = True
    code_max = 15
    groups_of_words = 2

    def codes_in_place(self, r: Reader, word: int) -> Value:
        chunk, within = divmod(word, 16)
        return r.word("qs", 8 * chunk + within % 8) & r.constant(HIGH_NIBBLES if within // 8 else LOW_NIBBLES)

    def code_shift(self, word: int) -> int:
        return 4 * (word % 16 // 8)

    def block_scale(self, r: Reader) -> Value:
        return r.half("d")

    def factor(self, r: Reader, group: int) -> Value:
        return r.byte_of(self._six_bits(r, 0, group // WORD), group % WORD)

    def block_minimum(self, r: Reader) -> Value:
        return -r.half("dmin")

    def minimum_factor(self, r: Reader, group: int) -> Value:
        return r.byte_of(self._six_bits(r, 1, group // WORD), group % WORD)

    def _six_bits(self, r: Reader, of: int, word: int) -> Value:
        """Four factors of scales (0) or minima (1): whole for groups 0 to 3, in two parts for 4 to 7."""

        def four() -> Value:
            first = r.word("scales", of)
            if word == 0:
                return first & r.constant(SIX_BITS)
            low = (r.word("scales", 2) >> (4 * of)) & r.constant(LOW_NIBBLES)
            return low | ((first >> 2) & r.constant(PAIRS << 4))

        return r.once((of, word, "six bits"), four)


class Q5_K(Q4_K):
    """As Q4_K, with a fifth bit of each element apart: bit g of a byte belongs to group g."""

    name = "Q5_K"
    fields: tuple[Field, ...] = (
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


class Q6_K(SuperBlockFormat):
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

    def block_scale(self, r: Reader) -> Value:
        return r.half("d")

    def factor(self, r: Reader, group: int) -> Value:
        return r.signed_byte("scales", group)
