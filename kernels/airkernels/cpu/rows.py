"""Kernels that work on one row at a time: embedding, norms, rounding to bytes, gated activation.

Rows are tokens, or the batch's output rows. Every kernel is compiled for its width and strides, which
count elements. A row's result never depends on the other rows.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from airkernels.cpu.activations import DIGIT, GROUP, HALF_GROUP, QuantizedRow, largest_code
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import (
    Expr,
    Kernel,
    Region,
    bits,
    byte_offset,
    cast,
    const,
    define,
    let,
    llvm,
    local,
    loop,
    splat,
    zeros,
)
from airkernels.cpu.vectors import (
    add,
    bfloat_to_float,
    for_vectors,
    half_to_float,
    lanes_dividing,
    reduce,
    round_to_int,
    silu,
    square_root,
)
from airkernels.formats import AnyFormat, FloatFormat
from airkernels.formats.base import WORD

Produce = Callable[[Expr, int], Expr]
"""Builds `lanes` neighbouring values of a row, from a column on."""


class QuantizedOut:
    """Writes groups of one row as digits, scales and sums (`QuantizedRow`)."""

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

    def _store_digits(self, at: Expr, integers: Expr) -> None:
        if self.layout.digits == 1:
            self.bytes.store(at, cast(integers, "int8"))
            return
        high = let((integers + DIGIT // 2) >> (DIGIT.bit_length() - 1))
        self.bytes.store(at, cast(high, "int8"))
        self.bytes.store(at + self.layout.n, cast(integers - high * DIGIT, "int8"))


def _row(k: Kernel, pointer: int, row: Expr, stride: int) -> Region:
    return Region(byte_offset(k.pointers[pointer], cast(row, "int64") * (4 * stride)), "float32")


def rms_norm(
    name: str, isa: VectorIsa, n: int, in_stride: int, out_stride: int, eps: float, digits: int
) -> tirx.PrimFunc:
    """out = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019); tasks are rows.

    p0 x float32, p1 weight float32 [n], p2 out: float32 (no digits), or quantized rows.
    """
    lanes = lanes_dividing(n, isa)
    parts = next(p for p in (4, 2, 1) if n % (p * lanes) == 0)

    def body(k: Kernel) -> None:
        weight = k.region(1, "float32")
        with loop(k.end, k.begin) as row:
            x = _row(k, 0, row, in_stride)
            squares = local("float32", parts * lanes)
            for p in range(parts):
                squares.store(p * lanes, zeros("float32", lanes))
            with loop(n // (parts * lanes)) as i:
                for p in range(parts):
                    value = let(x.load((i * parts + p) * lanes, lanes))
                    squares.store(p * lanes, isa.fused_multiply_add(value, value, squares.load(p * lanes, lanes)))
            total = squares.load(0, lanes)
            for p in range(1, parts):
                total = total + squares.load(p * lanes, lanes)
            mean = reduce(total, add) * const(1 / n, "float32")
            scale = let(const(1.0, "float32") / square_root(mean + const(eps, "float32")))

            def normal(at: Expr, width: int) -> Expr:
                return x.load(at, width) * splat(scale, width) * weight.load(at, width)

            _write(k, 2, row, n, out_stride, isa, digits, normal)

    return define(name, body)


def _write(
    k: Kernel, pointer: int, row: Expr, n: int, stride: int, isa: VectorIsa, digits: int, produce: Produce
) -> None:
    """Write one whole row, rounded to integers of so many digits, or as it is with none."""
    if digits:
        out = QuantizedOut(k.pointers[pointer], row, n, digits, isa)
        with loop(n // GROUP) as group:
            out.write_group(group, produce)
    else:
        floats = _row(k, pointer, row, stride)
        for_vectors(n, isa, lambda at, width: floats.store(at, produce(at, width)))


def quantize_rows(name: str, isa: VectorIsa, n: int, in_stride: int, digits: int = 1) -> tirx.PrimFunc:
    """p0 x float32, p2 quantized rows; tasks are rows."""

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as row:
            x = _row(k, 0, row, in_stride)
            _write(k, 2, row, n, 0, isa, digits, x.load)

    return define(name, body)


def gated_silu(
    name: str, isa: VectorIsa, n: int, gate_stride: int, up_stride: int, out_stride: int, chunk: int, digits: int
) -> tirx.PrimFunc:
    """out = silu(gate) * up; tasks are chunks of `chunk` columns (a multiple of 32), row by row.

    p0 gate float32, p1 up float32, p2 out: float32 (no digits), or quantized rows.
    """
    n_chunks = -(-n // chunk)

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as task:
            row = let(tirx.indexdiv(task, n_chunks))
            first = let(tirx.indexmod(task, n_chunks) * chunk)
            stop = let(tirx.min(first + chunk, n))
            gate, up = _row(k, 0, row, gate_stride), _row(k, 1, row, up_stride)

            def value(at: Expr, width: int) -> Expr:
                return silu(gate.load(at, width), isa) * up.load(at, width)

            if digits:
                out = QuantizedOut(k.pointers[2], row, n, digits, isa)
                with loop(tirx.indexdiv(stop, GROUP), tirx.indexdiv(first, GROUP)) as group:
                    out.write_group(group, value)
            else:
                lanes = lanes_dividing(n, isa)
                floats = _row(k, 2, row, out_stride)
                with loop(tirx.indexdiv(stop - first, lanes)) as i:
                    floats.store(first + i * lanes, value(first + i * lanes, lanes))

    return define(name, body)


def select_rows(name: str, isa: VectorIsa, n: int, in_stride: int, out_stride: int) -> tirx.PrimFunc:
    """out[i] = x[rows[i]]; p0 x float32, p1 rows int32, p2 out float32; tasks are output rows."""

    def body(k: Kernel) -> None:
        rows = k.region(1, "int32")
        with loop(k.end, k.begin) as i:
            x, out = _row(k, 0, rows.load(i), in_stride), _row(k, 2, i, out_stride)
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
            out = _row(k, 2, t, out_stride)
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
