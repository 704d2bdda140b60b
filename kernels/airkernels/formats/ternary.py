"""Formats of one or two bits an element: signs, ternary digits, pairs of bits.

Layouts: `block_q1_0`, `block_q2_0`, `block_tq1_0`, `block_tq2_0` of ggml-common.h.
"""

from __future__ import annotations

from airkernels.formats.base import EACH, PAIRS, BlockFormat, Field, Reader, Value, run


class Q1_0(BlockFormat):
    """A sign for each of 128 elements: code 0 or 2, less 1."""

    name = "Q1_0"
    group = 32
    fields = (Field("d", 0, 2, 1), Field("qs", 2, 4, 4))
    zero_point = 1
    code_max = 2

    def codes_in_place(self, r: Reader, word: int) -> Value:
        return r.choose(r.word("qs", word // 8), run(4 * (word % 8)), r.constant(2 * EACH), r.constant(0))

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")


class Q2_0(BlockFormat):
    """64 pairs of bits, four neighbouring elements a byte, offset 1."""

    name = "Q2_0"
    group = 32
    fields = (Field("d", 0, 2, 1), Field("qs", 2, 4, 4))
    zero_point = 1
    code_max = 3

    def codes_in_place(self, r: Reader, word: int) -> Value:
        pairs, first = r.word("qs", word // 4), 8 * (word % 4)
        low = r.choose(pairs, run(first, 2), r.constant(EACH), r.constant(0))
        return r.choose(pairs, run(first + 1, 2), low | r.constant(2 * EACH), low)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")


class TQ1_0(BlockFormat):
    """Five ternary digits a byte, in columns: a byte is a fraction of 256, and times three its next digit overflows.

    Digit n of 32 bytes are 32 neighbours; then come 16 bytes in the same way, and 4 with four digits each.
    """

    name = "TQ1_0"
    group = 32
    fields = (Field("qs", 0, 4, 12), Field("qh", 48, 4, 1), Field("d", 52, 2, 1))
    zero_point = 1
    code_max = 2

    def codes_in_place(self, r: Reader, word: int) -> Value:
        if word < 40:
            digit, at = divmod(word, 8)
        elif word < 60:
            digit, at = divmod(word - 40, 4)
            at += 8
        else:
            digit, at = word - 60, 12
        even, odd = self._times_three(r, at, digit, 0), self._times_three(r, at, digit, 1)
        return ((even >> 8) & r.constant(0x00030003)) | (odd & r.constant(0x03000300))

    def _times_three(self, r: Reader, at: int, digit: int, odd: int) -> Value:
        """Three times the fractions left after `digit` digits, of the even or the odd bytes, in 16 bits each."""

        def build() -> Value:
            if digit:
                before = self._times_three(r, at, digit - 1, odd)
            else:
                before = (r.word("qs", at) if at < 12 else r.word("qh", 0)) >> (8 * odd)
            fraction = r.once((at, digit, odd, "fraction"), lambda: before & r.constant(0x00FF00FF))
            return (fraction << 1) + fraction

        return r.once((at, digit, odd), build)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")


class TQ2_0(BlockFormat):
    """256 pairs of bits, in columns: pair n of 32 bytes are 32 neighbours."""

    name = "TQ2_0"
    group = 32
    fields = (Field("qs", 0, 4, 16), Field("d", 64, 2, 1))
    zero_point = 1
    code_max = 3

    def codes_in_place(self, r: Reader, word: int) -> Value:
        return r.word("qs", 8 * (word // 32) + word % 8) & r.constant(PAIRS << self.code_shift(word))

    def code_shift(self, word: int) -> int:
        return 2 * (word % 32 // 8)

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")
