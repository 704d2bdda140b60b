"""Writing rows of results: as floats, or rounded to integers (`activations.QuantizedRow`)."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from airkernels.cpu.activations import DIGIT, GROUP, HALF_GROUP, QuantizedRow, largest_code
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, byte_offset, cast, const, let, llvm, loop, splat
from airkernels.cpu.vectors import add, for_vectors, reduce, round_to_int

Produce = Callable[[Expr, int], Expr]
"""Builds `lanes` neighbouring values of a row, from a column on."""


class QuantizedOut:
    """Writes groups of one row as digits, scales and sums."""

    def __init__(self, base: Expr, row: Expr, n: int, digits: int, isa: VectorIsa) -> None:
        self.layout, self.isa = QuantizedRow(n, digits), isa
        start = byte_offset(base, cast(row, "int64") * self.layout.nbytes)
        self.bytes, self.ints, self.floats = Region(start, "int8"), Region(start, "int32"), Region(start, "float32")

    def write_group(self, group: Expr, produce: Produce) -> None:
        """Round the 32 values from column 32 * group on; see `activations.quantize_rows`."""
        lanes = min(self.isa.lanes, HALF_GROUP)
        starts = range(0, GROUP, lanes)
        values = [let(produce(group * GROUP + at, lanes)) for at in starts]
        magnitude = let(llvm(f"float32x{lanes}", "llvm.fabs", values[0]))
        for value in values[1:]:
            magnitude = let(tirx.max(magnitude, llvm(f"float32x{lanes}", "llvm.fabs", value)))
        largest = let(reduce(magnitude, tirx.max))
        most = largest_code(self.layout.digits)
        one_over = const(float(most), "float32") / largest
        inverse = let(tirx.Select(largest > const(0.0, "float32"), one_over, const(0.0, "float32")))
        half_sums = [const(0, "int32"), const(0, "int32")]
        for at, value in zip(starts, values, strict=True):
            integers = let(round_to_int(value * splat(inverse, lanes)))
            self._store_digits(group * GROUP + at, integers)
            half_sums[at // HALF_GROUP] += reduce(integers, add)
        half_sums = [let(s) for s in half_sums]
        scale = let(largest * const(1 / most, "float32"))
        total = let(half_sums[0] + half_sums[1])
        self.floats.store(group + self.layout.scale // 4, scale)
        self.ints.store(group + self.layout.negative_sum // 4, const(0, "int32") - total)
        self.floats.store(group + self.layout.scaled_sum // 4, scale * cast(total, "float32"))
        for i, s in enumerate(half_sums):
            self.ints.store(group * 2 + i + self.layout.negative_half_sum // 4, const(0, "int32") - s)
            self.floats.store(group * 2 + i + self.layout.scaled_half_sum // 4, scale * cast(s, "float32"))

    def _store_digits(self, at: Expr, integers: Expr) -> None:
        if self.layout.digits == 1:
            self.bytes.store(at, cast(integers, "int8"))
            return
        high = let((integers + DIGIT // 2) >> (DIGIT.bit_length() - 1))
        self.bytes.store(at, cast(high, "int8"))
        self.bytes.store(at + self.layout.n, cast(integers - high * DIGIT, "int8"))


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
