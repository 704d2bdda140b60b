"""Kernels that copy and round rows: embedding, selection, rounding to integers.

Rows are tokens, or the batch's output rows. Every kernel is compiled for its width and strides, which
count elements. A row's result never depends on the other rows.
"""

from __future__ import annotations

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, bits, byte_offset, cast, const, define, let, loop
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


class _RawReader:
    """`formats.base.Reader` over one raw block of a file, at any byte address."""

    def __init__(self, fmt: AnyFormat, block: Expr, isa: VectorIsa) -> None:
        self.fmt, self.block, self.isa = fmt, block, isa

    def _unit(self, field: str, index: int, dtype: str) -> Expr:
        f = next(f for f in self.fmt.fields if f.name == field)
        return let(Region(byte_offset(self.block, f.offset + index * f.unit), dtype).load(0))

    def word(self, field: str, index: int) -> Expr:
        return self._unit(field, index, "uint32")

    def half(self, field: str) -> Expr:
        return let(half_to_float(self._unit(field, 0, "uint16"), self.isa))

    def byte(self, field: str, index: int) -> Expr:
        word, byte = divmod(index, 4)
        return bits((self.word(field, word) >> (8 * byte)) & 0xFF, "int32")

    def signed_byte(self, field: str, index: int) -> Expr:
        word, byte = divmod(index, 4)
        return bits(self.word(field, word) << (24 - 8 * byte), "int32") >> 24

    def to_float(self, value: Expr) -> Expr:
        return cast(value, "float32")

    def constant(self, value: int) -> Expr:
        return const(value, "uint32")


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
            with loop(n // fmt.block) as b:
                reader = _RawReader(fmt, byte_offset(raw, cast(b, "int64") * fmt.nbytes), isa)
                for g in range(fmt.block // fmt.group):
                    scale = let(fmt.scale(reader, g))
                    minimum = let(fmt.minimum(reader, g)) if fmt.has_minimum else None
                    for w in range(g * fmt.group // WORD, (g + 1) * fmt.group // WORD):
                        codes = let(fmt.codes(reader, w))
                        for j in range(WORD):
                            code = bits((codes >> (8 * j)) & 0xFF, "int32") - fmt.zero_point
                            value = scale * cast(code, "float32")
                            value = value if minimum is None else value + minimum
                            out.store(b * fmt.block + w * WORD + j, value)

    return define(name, body)
