"""Formats whose codes are four-bit indices into a table of sixteen values that are not evenly spaced.

Layouts: `block_iq4_nl`, `block_iq4_xs`, `block_mxfp4`, `block_nvfp4` of ggml-common.h; the elements of the latter two
are E2M1 floats and their scales E8M0 and E4M3 (OCP Microscaling Formats v1.0, sections 5.3 and 5.4.1; OCP 8-bit
Floating Point v1.0, section 4). Values are stored here as codes: the zero point added.
"""

from __future__ import annotations

from typing import ClassVar

from airkernels.formats.base import LOW_NIBBLES, WORD, BlockFormat, Field, Reader, SuperBlockFormat, Value

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


class Codebook(BlockFormat):
    """A group's low nibbles are its first half, the high nibbles its second."""

    values: ClassVar[tuple[int, ...]]

    def indices(self, r: Reader, word: int) -> Value:
        """Where the elements of a code word stand in the table, one a byte."""
        half = self.group // WORD // 2
        group, within = divmod(word, 2 * half)
        nibbles = r.word("qs", group * half + within % half) >> (4 * (within // half))
        return nibbles & r.constant(LOW_NIBBLES)

    def codes_in_place(self, r: Reader, word: int) -> Value:
        return r.lookup(tuple(v + self.zero_point for v in self.values), self.indices(r, word))


class IQ4_NL(Codebook):
    """One half-precision scale for 32 elements."""

    name = "IQ4_NL"
    group = 32
    fields = (Field("d", 0, 2, 1), Field("qs", 2, 4, 4))
    values = _IQ4_VALUES
    zero_point = 128
    code_max = 241

    def scale(self, r: Reader, group: int) -> Value:
        return r.half("d")


class IQ4_XS(Codebook, SuperBlockFormat):
    """Eight groups of 32 with six-bit scales, whose two high bits are apart."""

    name = "IQ4_XS"
    group = 32
    fields = (Field("d", 0, 2, 1), Field("scales_h", 2, 2, 1), Field("scales_l", 4, 4, 1), Field("qs", 8, 4, 32))
    values = _IQ4_VALUES
    zero_point = 128
    code_max = 241

    def block_scale(self, r: Reader) -> Value:
        return r.half("d")

    def factor(self, r: Reader, group: int) -> Value:
        low = (r.word("scales_l", 0) >> (4 * group)) & 15
        high = (r.narrow("scales_h") >> (2 * group)) & 3
        return r.byte_of(low | (high << 4), 0) - 32


class MXFP4(Codebook):
    """E2M1 elements with a power of two as the scale of 32."""

    name = "MXFP4"
    group = 32
    fields = (Field("e", 0, 1, 1), Field("qs", 1, 4, 4))
    values = _E2M1_DOUBLED
    zero_point = 16
    code_max = 28

    def scale(self, r: Reader, group: int) -> Value:
        """2^(e - 128), as the product of two powers: the smallest two are subnormal and have no exponent."""
        e = r.narrow("e")
        half = e >> 1
        return r.float_of((half + 63) << 23) * r.float_of((e - half + 63) << 23)


class NVFP4(Codebook):
    """E2M1 elements with an E4M3 scale for 16."""

    name = "NVFP4"
    group = 16
    fields = (Field("d", 0, 4, 1), Field("qs", 4, 4, 8))
    values = _E2M1_DOUBLED
    zero_point = 16
    code_max = 28

    def scale(self, r: Reader, group: int) -> Value:
        """Exponent and mantissa moved to where a half has them; the exponents' biases differ by 8, and values are
        doubled. The one NaN without a sign counts as zero, as in ggml."""
        e4m3 = r.byte("d", group)
        is_nan = ((e4m3 ^ 0x7F) - 1) >> 31
        return r.half_of((e4m3 & 0x7F & ~is_nan) << 7) * 128.0
