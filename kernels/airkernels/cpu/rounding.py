"""Writing rows of results: as floats, or rounded to integers (`activations.QuantizedRow`)."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tvm import tirx

from airkernels.cpu.activations import DIGIT, GROUP, HALF_GROUP, MOST, SHIFT, QuantizedRow, has_outlier
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, byte_offset, cast, const, let, llvm, loop, splat
from airkernels.cpu.vectors import add, for_vectors, reduce, round_to_int

Produce = Callable[[Expr, int], Expr]
"""Builds `lanes` neighbouring values of a row, from a column on."""


class QuantizedOut:
    """Writes groups of one row as digits, scales and sums. `always_fine`: all groups get high digits."""

    def __init__(
        self, base: Expr, row: Expr, n: int, digits: int, isa: VectorIsa, *, always_fine: bool = False
    ) -> None:
        self.layout, self.isa, self.always_fine = QuantizedRow(n, digits), isa, always_fine
        start = byte_offset(base, cast(row, "int64") * self.layout.nbytes)
        self.bytes, self.ints, self.floats = Region(start, "int8"), Region(start, "int32"), Region(start, "float32")

    def write_group(self, group: Expr, produce: Produce) -> None:
        """Round the 32 values from column 32 * group on; see `activations.quantize_rows`."""
        lanes = min(self.isa.lanes, HALF_GROUP)
        starts = range(0, GROUP, lanes)
        values = [let(produce(group * GROUP + at, lanes)) for at in starts]
        magnitudes = [let(llvm(f"float32x{lanes}", "llvm.fabs", value)) for value in values]
        largest = let(reduce(functools.reduce(tirx.max, magnitudes), tirx.max))
        most, per_unit = const(float(MOST), "float32"), const(1 / MOST, "float32")
        if self.layout.digits == 2:
            if self.always_fine:
                has_high = const(1, "bool")
            else:
                has_high = let(has_outlier(largest, reduce(functools.reduce(add, magnitudes), add)))
            self.ints.store(group + self.layout.has_high // 4, cast(has_high, "int32"))
            most = tirx.Select(has_high, const(float(MOST * DIGIT), "float32"), most)
            per_unit = tirx.Select(has_high, const(1 / (MOST * DIGIT), "float32"), per_unit)
        inverse = let(tirx.Select(largest > const(0.0, "float32"), most / largest, const(0.0, "float32")))
        integers = [let(round_to_int(value * splat(inverse, lanes))) for value in values]
        for at, vector in zip(starts, integers, strict=True):
            low = vector
            if self.layout.digits == 2:
                high = let(((vector + DIGIT // 2) >> SHIFT) & splat(const(0, "int32") - cast(has_high, "int32"), lanes))
                self.bytes.store(self.layout.n + group * GROUP + at, cast(high, "int8"))
                low = vector - (high << SHIFT)
            self.bytes.store(group * GROUP + at, cast(low, "int8"))
        self._store_scales(group, let(largest * per_unit), starts, integers)

    def _store_scales(self, group: Expr, scale: Expr, starts: range, integers: list[Expr]) -> None:
        """Store the scale of a group, and the sums of its integers."""
        half_sums = [const(0, "int32"), const(0, "int32")]
        for at, vector in zip(starts, integers, strict=True):
            half_sums[at // HALF_GROUP] += reduce(vector, add)
        half_sums = [let(s) for s in half_sums]
        total = let(half_sums[0] + half_sums[1])
        self.floats.store(group + self.layout.scale // 4, scale)
        self.ints.store(group + self.layout.negative_sum // 4, const(0, "int32") - total)
        self.floats.store(group + self.layout.scaled_sum // 4, scale * cast(total, "float32"))
        for i, s in enumerate(half_sums):
            self.ints.store(group * 2 + i + self.layout.negative_half_sum // 4, const(0, "int32") - s)
            self.floats.store(group * 2 + i + self.layout.scaled_half_sum // 4, scale * cast(s, "float32"))


def row_of(k: Kernel, pointer: int, row: Expr, stride: int) -> Region:
    return Region(byte_offset(k.pointers[pointer], cast(row, "int64") * (4 * stride)), "float32")


def write_row(
    k: Kernel, pointer: int, row: Expr, n: int, stride: int, isa: VectorIsa, digits: int, produce: Produce
) -> None:
    """Write one whole row, rounded to integers of so many digits, or as it is with none."""
    if digits:
        out = QuantizedOut(k.pointers[pointer], row, n, digits, isa)
        with loop(n // GROUP) as group:
            out.write_group(group, produce)
    else:
        floats = row_of(k, pointer, row, stride)
        for_vectors(n, isa, lambda at, width: floats.store(at, produce(at, width)))
