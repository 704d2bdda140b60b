"""Kernels that copy and round rows: embedding, selection, rounding to integers.

Rows are tokens, or the batch's output rows. Every kernel is compiled for its width and strides, which
count elements. A row's result never depends on the other rows.
"""

from __future__ import annotations

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, bits, byte_offset, cast, define, let, loop, splat
from airkernels.cpu.reader import VectorReader
from airkernels.cpu.rounding import row_of, write_row
from airkernels.cpu.vectors import bfloat_to_float, for_vectors, half_to_float
from airkernels.formats import AnyFormat, FloatFormat
from airkernels.formats.base import WORD


def quantize_rows(name: str, isa: VectorIsa, n: int, in_stride: int, digits: int = 1) -> tirx.PrimFunc:
    """p0 x float32, p2 quantized rows; tasks are rows."""

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            x = row_of(k, 0, row, in_stride)
            write_row(k, 2, row, n, 0, isa, digits, x.load)

    return define(name, body)


def select_rows(name: str, isa: VectorIsa, n: int, in_stride: int, out_stride: int) -> tirx.PrimFunc:
    """out[i] = x[rows[i]]; p0 x float32, p1 rows int32, p2 out float32; tasks are output rows."""

    def body(k: Kernel) -> None:
        rows = k.region(1, "int32")
        with loop(k.end, k.begin) as i:
            x, out = row_of(k, 0, rows.load(i), in_stride), row_of(k, 2, i, out_stride)
            for_vectors(n, isa, lambda at, width: out.store(at, x.load(at, width)))

    return define(name, body)


class _RawReader(VectorReader):
    """`formats.base.Reader` over one raw block of a file, at any byte address: the same in every lane."""

    def __init__(self, fmt: AnyFormat, block: Expr, isa: VectorIsa) -> None:
        super().__init__(isa, WORD)
        self.fmt, self.block = fmt, block

    def load(self, field: str, index: int) -> Expr:
        f = self.fmt.field(field)
        unit = Region(byte_offset(self.block, f.offset + index * f.unit), f"uint{8 * f.unit}").load(0)
        return splat(let(unit), self.lanes)


def float_value(fmt: FloatFormat, base: Expr, index: Expr, lanes: int, isa: VectorIsa) -> Expr:
    """`lanes` elements of an unquantized tensor as float32."""
    if fmt.dtype == "float32":
        return Region(base, "float32").load(index, lanes)
    raw = Region(base, "uint16").load(index, lanes)
    return half_to_float(raw, isa) if fmt.dtype == "float16" else bfloat_to_float(raw)


def gather_rows(name: str, isa: VectorIsa, fmt: AnyFormat, n: int, out_stride: int) -> tirx.PrimFunc:
    """out[t] = decoded row ids[t]; tasks are rows.

    p0 raw rows as they stand in the file, p1 ids int32, p2 out float32.
    """
    row_nbytes = n // fmt.block * fmt.nbytes

    def body(k: Kernel) -> None:
        ids = k.region(1, "int32")
        with loop(k.end, k.begin) as t:
            raw = byte_offset(k.pointers[0], cast(ids.load(t), "int64") * row_nbytes)
            out = row_of(k, 2, t, out_stride)
            if isinstance(fmt, FloatFormat):
                for_vectors(n, isa, lambda at, width: out.store(at, float_value(fmt, raw, at, width, isa)))
                return
            # A lane per element of a word: each takes its own byte.
            byte_shifts = tirx.Cast(f"uint32x{WORD}", tirx.Ramp(0, 8, WORD))
            with loop(n // fmt.block) as b:
                reader = _RawReader(fmt, byte_offset(raw, cast(b, "int64") * fmt.nbytes), isa)
                for g in range(fmt.block // fmt.group):
                    scale = let(fmt.scale(reader, g))
                    minimum = let(fmt.minimum(reader, g)) if fmt.has_minimum else None
                    for w in range(g * fmt.group // WORD, (g + 1) * fmt.group // WORD):
                        codes = (fmt.codes(reader, w) >> byte_shifts) & 0xFF
                        value = scale * cast(bits(codes, f"int32x{WORD}") - fmt.zero_point, "float32")
                        out.store(b * fmt.block + w * WORD, value if minimum is None else value + minimum)

    return define(name, body)
