"""The quantized rows that a tile of an integer product multiplies with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from tvm import tirx

from airkernels.cpu.activations import GROUP, QuantizedRow
from airkernels.cpu.program import Expr, Region, join, let, splat


@dataclass(frozen=True)
class RowTile:
    """The quantized rows of a tile's tokens, and what kernels need of a group of them.

    A sum is of one token, whose values are the same in every lane, or of two, for two lanes in turn: `starts` are the
    places of each sum's tokens, in words. `group` is how many elements the groups of the weights have.
    """

    layout: QuantizedRow
    group: int
    words: Region
    floats: Region
    starts: Sequence[Sequence[int]]
    lanes: int

    @property
    def n(self) -> int:
        """Sums of a vector of rows."""
        return len(self.starts)

    def scale(self, number: int, group: Expr) -> Expr:
        return self._spread(self.floats, number, self.layout.scale, self._scaled_together(group))

    def scaled_sum(self, number: int, group: Expr) -> Expr:
        plane = self.layout.scaled_sum if self.group == GROUP else self.layout.scaled_half_sum
        return self._spread(self.floats, number, plane, group)

    def negative_sum(self, number: int, group: Expr) -> Expr:
        plane = self.layout.negative_sum if self.group == GROUP else self.layout.negative_half_sum
        return self._spread(self.words, number, plane, group)

    def any_high(self, group: Expr) -> Expr:
        """Not zero if any of the tokens has high digits there."""
        flag = self.layout.has_high // 4 + self._scaled_together(group)
        starts = sorted({start for together in self.starts for start in together})
        return reduce(or_, [self.words.load(start + flag) for start in starts])

    def _scaled_together(self, group: Expr) -> Expr:
        return group if self.group == GROUP else tirx.indexdiv(group * self.group, GROUP)

    def _spread(self, region: Region, number: int, plane: int, index: Expr) -> Expr:
        values = [region.load(start + plane // 4 + index) for start in self.starts[number]]
        if len(values) == 1:
            return splat(values[0], self.lanes)
        register = let(join([splat(value, 2) for value in values]))
        return join([register] * (self.lanes // 4))


def starts_of(n_tokens: int, n_together: int, stride: int) -> list[list[int]]:
    """Places of the tokens of each sum, `stride` apart; where one is missing, the last token stands in."""
    return [
        [min(first + i, n_tokens - 1) * stride for i in range(n_together)] for first in range(0, n_tokens, n_together)
    ]
