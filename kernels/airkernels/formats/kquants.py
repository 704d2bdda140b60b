"""GGML's K-quants: super-blocks of 256 elements whose groups have small integer scales.

Layouts: `block_q4_K`, `block_q6_K` of ggml-common.h.
"""

from __future__ import annotations

from airkernels.formats.base import HIGH_NIBBLES, LOW_NIBBLES, PAIRS, BlockFormat, Field, Reader, Value


class Q4_K(BlockFormat):
    """Eight groups of 32 nibbles; six-bit scales and minima packed in twelve bytes."""

    name = "Q4_K"
    group = 32
    fields = (Field("d", 0, 2, 1), Field("dmin", 2, 2, 1), Field("scales", 4, 4, 3), Field("qs", 16, 4, 32))
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
