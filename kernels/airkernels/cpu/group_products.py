"""Exact integer products of groups of weights with the tokens of a tile: the inner loop of an integer product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

from airkernels.cpu.activations import SHIFT
from airkernels.cpu.decoded import Codes, Group
from airkernels.cpu.dot import CENTRE, Dot, DotSum
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Region, let, when, zeros
from airkernels.cpu.row_tile import RowTile
from airkernels.formats import BlockFormat
from airkernels.formats.base import WORD

Vectors = Sequence[Group]
"""A group, for each vector of rows."""

Word = Sequence[Codes]
"""A word of a group, for each vector of rows."""


@dataclass(frozen=True)
class GroupProducts:
    """Products with groups of a format; `digits` of each activation are taken."""

    isa: VectorIsa
    dot: Dot
    fmt: BlockFormat
    digits: int

    def store(self, batch: Sequence[Vectors], rows: RowTile, totals: Region) -> None:
        """Store them as int32 [group of the batch][vector of rows][token][lanes].

        The groups of a batch go along word by word, so that what they share is in registers when it is wanted.
        """
        words = [self._words(groups) for groups in batch]
        for at, total in enumerate(self._products(batch, words, rows, 0)):
            totals.store(at * self.isa.lanes, total)
        if self.digits == 2:
            # in one condition, or the compiler puts off the products of all groups but the first until after it
            has_high = [let(rows.any_high(groups[0].index)) for groups in batch]
            with when(reduce(or_, has_high) != 0):
                for i, groups in enumerate(batch):
                    with when(has_high[i] != 0) if len(batch) > 1 else nullcontext():
                        self._add_high_digits(groups, words[i], rows, totals, i * len(groups) * rows.n)

    def _add_high_digits(
        self, groups: Vectors, words: Iterable[Word], rows: RowTile, totals: Region, first: int
    ) -> None:
        """Add them to the totals from `first` on. Digits of tokens that have none there are 0."""
        lanes = self.isa.lanes
        if self.isa.anchors:
            words = self._words([group.again() for group in groups])
        for at, total in enumerate(self._products([groups], [words], rows, 1), first):
            totals.store(at * lanes, totals.load(at * lanes, lanes) + (total << SHIFT))

    def _products(
        self, batch: Sequence[Vectors], words: Sequence[Iterable[Word]], rows: RowTile, digit: int
    ) -> list[Expr]:
        sums = [_GroupSums(self.isa, self.dot, self.fmt, groups[0].index, len(groups), rows, digit) for groups in batch]
        for w, some in enumerate(zip(*words, strict=True)):
            for codes, of_group in zip(some, sums, strict=True):
                of_group.add(w, codes)
        return [total for of_group in sums for total in of_group.totals()]

    def _words(self, groups: Vectors) -> Iterable[Word]:
        """The words of a group, decoded as they are asked for, or all at once and kept."""

        def bound(group: Group, number: int) -> Codes:
            codes, shift = group.word(number)
            return let(codes), shift

        numbers = range(groups[0].n_words)
        if self.isa.anchors:
            return ([bound(group, w) for group in groups] for w in numbers)
        return list(zip(*([bound(group, w) for w in numbers] for group in groups), strict=True))


@dataclass
class _GroupSums:
    """The sums of a group with one digit of the tokens, for each vector of rows and token.

    Codes with different shifts have a sum each until the end; the zero point, of whole elements, goes to the first.
    """

    isa: VectorIsa
    dot: Dot
    fmt: BlockFormat
    index: Expr
    n_vectors: int
    rows: RowTile
    digit: int
    sums: dict[int, list[list[DotSum]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = self.index * (self.fmt.group // WORD) + self.digit * (self.rows.layout.n // WORD)
        starts = [[first + at for at in together] for together in self.rows.starts]
        self._digits = [self.dot.digits(self.rows.words, each, self.isa.lanes) for each in starts]

    def add(self, w: int, words: Word) -> None:
        """Add the products of word `w` of each vector, which is shifted so far."""
        shift = words[0][1]
        if shift not in self.sums:
            self.sums[shift] = self._start(shift)
        for t, digits in enumerate(self._digits):
            x = digits(w)
            for (word, _shift), sums in zip(words, self.sums[shift], strict=True):
                sums[t].add(word, x)

    def _start(self, shift: int) -> list[list[DotSum]]:
        dot, n = self.dot, self.rows.n
        is_centred = dot.is_centred(self.fmt.code_max)
        starts = [zeros("int32", self.isa.lanes)] * n
        zero_point = self.fmt.zero_point - (CENTRE if is_centred else 0)
        if zero_point and not self.digit and not self.sums:
            power = zero_point.bit_length() - 1
            assert 1 << power == zero_point
            starts = [let(self.rows.negative_sum(t, self.index) << (power + shift)) for t in range(n)]
        return [
            [dot.start(start, self.fmt.code_max << shift, is_centred) for start in starts]
            for _vector in range(self.n_vectors)
        ]

    def totals(self) -> list[Expr]:
        return [
            let(_sum_shifted([(sums[v][t].total(), shift) for shift, sums in self.sums.items()]))
            for v in range(self.n_vectors)
            for t in range(self.rows.n)
        ]


def _sum_shifted(parts: list[tuple[Expr, int]]) -> Expr:
    """Sum of integer sums whose codes were shifted left; exact, since each is a multiple of its power of two."""
    plain = [value >> shift if shift else value for value, shift in parts]
    total = plain[0]
    for value in plain[1:]:
        total = total + value
    return total
