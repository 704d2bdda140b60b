"""The quantized rows that a tile of an integer product multiplies with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_

from tvm import tirx

from airkernels.cpu.activations import GROUP, QuantizedRow
from airkernels.cpu.program import Expr, Region, splat


@dataclass(frozen=True)
class RowTile:
    """The quantized rows of a tile's `n` tokens, `stride` words apart, and what kernels need of a group of them.

    `group` is how many elements the groups of the weights have; values are the same in every lane.
    """

    layout: QuantizedRow
    group: int
    words: Region
    floats: Region
    stride: int
    n: int
    lanes: int

    def scale(self, token: int, group: Expr) -> Expr:
        return self._splat(self.floats, token, self.layout.scale, self._scaled_together(group))

    def scaled_sum(self, token: int, group: Expr) -> Expr:
        plane = self.layout.scaled_sum if self.group == GROUP else self.layout.scaled_half_sum
        return self._splat(self.floats, token, plane, group)

    def negative_sum(self, token: int, group: Expr) -> Expr:
        plane = self.layout.negative_sum if self.group == GROUP else self.layout.negative_half_sum
        return self._splat(self.words, token, plane, group)

    def any_high(self, group: Expr) -> Expr:
        """Not zero if any of the tokens has high digits there."""
        flag = self.layout.has_high // 4 + self._scaled_together(group)
        return reduce(or_, [self.words.load(t * self.stride + flag) for t in range(self.n)])

    def _scaled_together(self, group: Expr) -> Expr:
        return group if self.group == GROUP else tirx.indexdiv(group * self.group, GROUP)

    def _splat(self, region: Region, token: int, plane: int, index: Expr) -> Expr:
        return splat(region.load(token * self.stride + plane // 4 + index), self.lanes)
