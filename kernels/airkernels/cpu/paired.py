"""Panels for products of pairs of rows with pairs of tokens, as the matrix extension of ARM makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tvm import tirx

from airkernels.cpu.decoded import UnpackedPanel
from airkernels.cpu.isa import PANEL
from airkernels.cpu.program import Expr, join, let, registers
from airkernels.formats.base import WORD

_HALF = PANEL // 2


class PairedPanel(UnpackedPanel):
    """A panel decoded into scratch, of which a vector is eight rows from `first_row` on, for two tokens.

    Codes uint8 [n_cols/8][16 rows][8]: a register is two rows. Floats twice for the two tokens, in the order of the
    sums: [groups][8 pairs of rows][2 tokens][2 rows].
    """

    floats_of_group: ClassVar[int] = 2 * PANEL

    @property
    def rows(self) -> int:
        return _HALF

    @property
    def n_words(self) -> int:
        return self.fmt.group // (2 * WORD)

    def _store_codes(self, first: Expr, words: Iterator[Expr]) -> None:
        for w, (even, odd) in enumerate(zip(words, words, strict=True)):
            pairs = zip(registers(even), registers(odd), strict=True)
            for i, pair in enumerate(pairs):
                self.codes.store(first + (2 * w * PANEL + 8 * i), _shuffled(pair, (0, 4, 1, 5, 2, 6, 3, 7)))

    def place(self, word: int) -> int:
        return (2 * word + self.first_row // _HALF) * PANEL

    def _store(self, plane: int, index: Expr, value: Expr) -> None:
        for i, register in enumerate(registers(value)):
            twice = _shuffled((register, register), (0, 1, 0, 1, 2, 3, 2, 3))
            self.floats.store(plane + index * (2 * PANEL) + 8 * i, twice)

    def load(self, plane: int, index: Expr) -> Expr:
        at = plane + index * (2 * PANEL) + self.first_row // _HALF * PANEL
        return self.floats.load(at, self.isa.lanes)


def of_tokens(sums: Expr) -> tuple[Expr, Expr]:
    """The eight rows of either token, from a vector of sums."""
    order = [4 * pair + 2 * token + row for token in range(2) for pair in range(4) for row in range(2)]
    apart = let(tirx.Shuffle([let(sums)], order))
    return tirx.vectorlow("float32x8", apart), tirx.vectorhigh("float32x8", apart)


def _shuffled(pair: tuple[Expr, Expr], order: tuple[int, ...]) -> Expr:
    return tirx.Shuffle([let(join(pair))], list(order))
