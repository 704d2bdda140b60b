"""Integer dot products of aarch64, see `dot`.

A vector of 16 rows is four registers, and a sum has a part for each. Digits come four words at a time; instructions
that take one word of a register spread it over the lanes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx

from airkernels.cpu.dot import MOST_SIGNED, DotSum
from airkernels.cpu.program import Expr, Region, bits, join, let, llvm, registers

_WORDS = 4
"""Words of a register."""


def _spread_digits(words: Region, first: Expr) -> Callable[[int], Expr]:
    """Digits as int32x4; a word in every lane, from a register that is loaded when its first word is wanted."""
    loaded: list[Expr] = []

    def word(w: int) -> Expr:
        register, lane = divmod(w, _WORDS)
        if register == len(loaded):
            loaded.append(let(words.load(first + register * _WORDS, _WORDS)))
        return tirx.Shuffle([loaded[register]], [tirx.const(lane, "int32")] * _WORDS)

    return word


@dataclass(frozen=True)
class Sdot:
    """The dot product extension: four products of signed bytes a lane in one instruction."""

    in_one: ClassVar[bool] = True
    n_tokens: ClassVar[int] = 1

    def is_centred(self, code_max: int) -> bool:
        return code_max > MOST_SIGNED

    def takes(self, code_max: int) -> bool:
        return code_max <= MOST_SIGNED

    def digits(self, words: Region, firsts: Sequence[Expr], lanes: int) -> Callable[[int], Expr]:
        [first] = firsts
        return _spread_digits(words, first)

    def start(self, initial: Expr, code_max: int, is_centred: bool) -> DotSum:
        return _FourProducts(initial)


class _FourProducts:
    """Sums that a register of codes and one of digits are multiplied and added to by one instruction."""

    def __init__(self, initial: Expr) -> None:
        self._parts = registers(initial)

    def add(self, codes: Expr, digits: Expr) -> None:
        digits = bits(digits, "int8x16")
        self._parts = [
            let(self._multiply_add(part, bits(each, "int8x16"), digits))
            for part, each in zip(self._parts, registers(codes), strict=True)
        ]

    def _multiply_add(self, part: Expr, codes: Expr, digits: Expr) -> Expr:
        # in this order: only of the second factor may a word be taken for all lanes
        return llvm("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", part, codes, digits)

    def total(self) -> Expr:
        return join(self._parts)


@dataclass(frozen=True)
class Smmla(Sdot):
    """The matrix extension: products of two rows with two tokens, of eight codes each, in one instruction.

    Lanes of a register: the first token with the first row and with the second, then the second token.
    """

    n_tokens: ClassVar[int] = 2

    def digits(self, words: Region, firsts: Sequence[Expr], lanes: int) -> Callable[[int], Expr]:
        loaded: list[Expr] = []

        def word(w: int) -> Expr:
            """Two words of each token."""
            both, half = divmod(w, 2)
            if both == len(loaded):
                tokens = [words.load(first + both * _WORDS, _WORDS) for first in firsts]
                loaded.append(let(tirx.Shuffle([let(join(tokens))], [0, 1, 4, 5, 2, 3, 6, 7])))
            return (tirx.vectorhigh if half else tirx.vectorlow)("int32x4", loaded[both])

        return word

    def start(self, initial: Expr, code_max: int, is_centred: bool) -> DotSum:
        return _PairsOfEight(initial)


class _PairsOfEight(_FourProducts):
    def _multiply_add(self, part: Expr, codes: Expr, digits: Expr) -> Expr:
        return llvm("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", part, digits, codes)


@dataclass(frozen=True)
class Smlal(Sdot):
    """Plain NEON: products of signed bytes, added up in 16 bits as long as they fit."""

    in_one: ClassVar[bool] = False

    def start(self, initial: Expr, code_max: int, is_centred: bool) -> DotSum:
        return _LongProducts(initial, MOST_SIGNED + 1 if is_centred else code_max)


class _LongProducts:
    """Four products a row lie side by side in 16 bits, then two sums in 32; those are added last."""

    def __init__(self, initial: Expr, most: int) -> None:
        self._initial, self._room = initial, (2**15 - 1) // (most * MOST_SIGNED)
        self._free = self._room
        self._pending: list[Expr] = []
        self._pairs: list[Expr] = []

    def add(self, codes: Expr, digits: Expr) -> None:
        digits = tirx.vectorlow("int8x8", bits(digits, "int8x16"))
        halves = [
            half("int8x8", bits(register, "int8x16"))
            for register in registers(codes)
            for half in (tirx.vectorlow, tirx.vectorhigh)
        ]
        products = [llvm("int16x8", "llvm.aarch64.neon.smull.v8i16", half, digits) for half in halves]
        self._pending = _added(self._pending, products)
        self._free -= 1
        if not self._free:
            self._widen()

    def _widen(self) -> None:
        pairs = [llvm("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", each) for each in self._pending]
        self._pairs, self._pending, self._free = _added(self._pairs, pairs), [], self._room

    def total(self) -> Expr:
        if self._pending:
            self._widen()
        rows = [
            llvm("int32x4", "llvm.aarch64.neon.addp.v4i32", self._pairs[i], self._pairs[i + 1])
            for i in range(0, len(self._pairs), 2)
        ]
        return self._initial + join(rows)


def _added(sums: list[Expr], values: list[Expr]) -> list[Expr]:
    return [let(s + v) for s, v in zip(sums, values, strict=True)] if sums else values
