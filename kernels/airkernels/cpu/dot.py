"""Integer dot products: how products of codes and digits are added to 32-bit lanes, on each instruction set.

A code word has four unsigned codes of a row in each lane, the digits of an activation four signed bytes that are the
same in every lane. Digits are at most 127 in magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from airkernels.cpu.program import Expr, Region, bits, const, lanes_of, let, llvm, splat
from airkernels.formats.base import SIGNS

MOST_SIGNED = 127
"""Largest code that is the same number as a signed byte; formats with larger ones may be centred: given less 128."""

CENTRE = 128


class DotSum(Protocol):
    """A sum of products, as it is made."""

    def add(self, codes: Expr, digits: Expr) -> None:
        """Add the products of a code word, uint32 x lanes, and of digits as `Dot.digits` gives them."""

    def total(self) -> Expr:
        """The sum, int32 x lanes."""


class Dot(Protocol):
    """An instruction set's way of making such sums; `in_one` where one instruction multiplies and adds a word,
    `n_tokens` are those of a sum."""

    in_one: ClassVar[bool]
    n_tokens: ClassVar[int]

    def is_centred(self, code_max: int) -> bool:
        """Whether codes up to this are wanted as signed bytes, less 128."""

    def takes(self, code_max: int) -> bool:
        """Whether codes may stay in place, so that the largest is this, or are better shifted down first."""

    def digits(self, words: Region, firsts: Sequence[Expr], lanes: int) -> Callable[[int], Expr]:
        """What gives digits in every lane: those of word 0, 1, 2 ... from the first on, of each token of a sum."""

    def start(self, initial: Expr, code_max: int, is_centred: bool) -> DotSum:
        """A sum that begins with these, int32 x lanes, for codes up to `code_max` or centred ones."""


def _splat_digits(words: Region, firsts: Sequence[Expr], lanes: int) -> Callable[[int], Expr]:
    [first] = firsts
    return lambda w: let(splat(words.load(first + w), lanes))


@dataclass(frozen=True)
class Vpdpbusd:
    """AVX-512 VNNI and AVX-VNNI: four products a lane in one instruction, of any code."""

    in_one: ClassVar[bool] = True
    n_tokens: ClassVar[int] = 1

    def is_centred(self, code_max: int) -> bool:
        return False

    def takes(self, code_max: int) -> bool:
        return True

    def digits(self, words: Region, firsts: Sequence[Expr], lanes: int) -> Callable[[int], Expr]:
        return _splat_digits(words, firsts, lanes)

    def start(self, initial: Expr, code_max: int, is_centred: bool) -> DotSum:
        return _VpdpbusdSum(initial)


class _VpdpbusdSum:
    def __init__(self, initial: Expr) -> None:
        self._sum = initial

    def add(self, codes: Expr, digits: Expr) -> None:
        lanes = lanes_of(codes)
        n_bytes = f"int8x{4 * lanes}"
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        self._sum = let(llvm(f"int32x{lanes}", name, self._sum, bits(codes, n_bytes), bits(digits, n_bytes)))

    def total(self) -> Expr:
        return self._sum


@dataclass(frozen=True)
class Pmaddubsw:
    """SSSE3 and AVX2: sums of two products in 16-bit lanes.

    Several of those are added up before pairs of them are widened: words of codes up to 15 eight at a time, which is
    a group. Codes of 8 bits would overflow even one such sum, so they are centred and digits take their sign.
    """

    in_one: ClassVar[bool] = False
    n_tokens: ClassVar[int] = 1

    def is_centred(self, code_max: int) -> bool:
        return code_max > MOST_SIGNED

    def takes(self, code_max: int) -> bool:
        return _words_at_once(code_max) > 1

    def digits(self, words: Region, firsts: Sequence[Expr], lanes: int) -> Callable[[int], Expr]:
        return _splat_digits(words, firsts, lanes)

    def start(self, initial: Expr, code_max: int, is_centred: bool) -> DotSum:
        return _PmaddubswSum(initial, code_max, is_centred)


def _words_at_once(code_max: int) -> int:
    """How many words may be added up in 16 bits."""
    return (2**15 - 1) // (2 * code_max * MOST_SIGNED)


_SSE_AVX2 = {
    4: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd", "llvm.x86.ssse3.psign.b.128"),
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.psign.b"),
}
"""Products of bytes, sums of pairs and transfer of signs, by lanes."""


class _PmaddubswSum:
    def __init__(self, initial: Expr, code_max: int, is_centred: bool) -> None:
        self._sum, self._centred = initial, is_centred
        self._room = self._free = 1 if self._centred else _words_at_once(code_max)
        self._pending: Expr | None = None

    def add(self, codes: Expr, digits: Expr) -> None:
        lanes = lanes_of(codes)
        n_bytes = f"int8x{4 * lanes}"
        multiply, _widen, take_sign = _SSE_AVX2[lanes]
        codes, digits = bits(codes, n_bytes), bits(digits, n_bytes)
        if self._centred:
            digits = llvm(n_bytes, take_sign, digits, codes)
            codes = llvm(n_bytes, "llvm.abs", codes, const(False, "bool"))
        products = llvm(f"int16x{2 * lanes}", multiply, codes, digits)
        self._pending = let(products if self._pending is None else self._pending + products)
        self._free -= 1
        if not self._free:
            self._widen()

    def _widen(self) -> None:
        lanes = lanes_of(self._sum)
        _multiply, widen, _take_sign = _SSE_AVX2[lanes]
        ones = splat(const(1, "int16"), 2 * lanes)
        self._sum = let(self._sum + llvm(f"int32x{lanes}", widen, self._pending, ones))
        self._pending, self._free = None, self._room

    def total(self) -> Expr:
        if self._pending is not None:
            self._widen()
        return self._sum


def centred(codes: Expr) -> Expr:
    """Codes less 128, as signed bytes."""
    return codes ^ splat(const(SIGNS, "uint32"), lanes_of(codes))
