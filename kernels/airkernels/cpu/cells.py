"""Keys and values in a block of the cache: writing a token's, and reading them in vectors."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.hadamard import spread
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import (
    Expr,
    Region,
    bits,
    byte_offset,
    cast,
    const,
    dtype_of,
    lanes_of,
    let,
    llvm,
    local,
    loop,
    splat,
)
from airkernels.cpu.reader import VectorReader
from airkernels.cpu.vectors import float_to_half, half_to_float, lanes_dividing, reduce
from airkernels.formats import AnyFormat, FloatFormat, RoundedFormat
from airkernels.formats.base import WORD


def store_key(base: Expr, cell: Expr, x: Region, cache: CacheLayout, isa: VectorIsa) -> None:
    """Put the key of a head into a cell; `base` is where the keys of that head are in the block."""
    fmt = cache.key_format
    if isinstance(fmt, FloatFormat):
        out = _floats(fmt, base)
        with loop(cache.head_dim) as d:
            out.store(d * BLOCK_CELLS + cell, _narrowed(fmt, x.load(d), isa))
        return
    assert isinstance(fmt, RoundedFormat)
    x = spread_out(x, cache.head_dim, isa)
    words = local("uint32", fmt.field("qs").count)
    with loop(cache.head_dim // fmt.block) as b:
        scale, units = _round_block(fmt, x, let(b * fmt.block), isa)
        halves, out = Region(base, "uint16"), Region(base, "uint32")
        halves.store(unit_place(fmt, "d", b, 0) + cell, scale)
        for i, vector in enumerate(units):
            words.store(i * lanes_of(vector), vector)
        for i in range(fmt.field("qs").count):
            out.store(unit_place(fmt, "qs", b, i) + cell, words.load(i))


def store_value(base: Expr, cell: Expr, x: Region, cache: CacheLayout, isa: VectorIsa) -> None:
    """Put the value of a head into a cell."""
    fmt = cache.value_format
    row = byte_offset(base, cell * cache.value_nbytes)
    if isinstance(fmt, FloatFormat):
        lanes = lanes_dividing(cache.v_dim, isa)
        out = _floats(fmt, row)
        with loop(cache.v_dim // lanes) as i:
            out.store(i * lanes, _narrowed(fmt, x.load(i * lanes, lanes), isa))
        return
    assert isinstance(fmt, RoundedFormat)
    x = spread_out(x, cache.v_dim, isa)
    halves, codes = Region(row, "uint16"), Region(row, "int8")
    with loop(cache.v_dim // fmt.block) as b:
        scale, units = _round_block(fmt, x, let(b * fmt.block), isa)
        halves.store(b * (fmt.nbytes // 2) + fmt.field("d").offset // 2, scale)
        for i, vector in enumerate(units):
            n = WORD * lanes_of(vector)
            codes.store(b * fmt.nbytes + fmt.field("qs").offset + i * n, bits(vector, f"int8x{n}"))


def spread_out(x: Region, n: int, isa: VectorIsa) -> Region:
    """What is rounded of a head, and queries of rounded keys: its transform."""
    out = local("float32", n)
    spread(x, const(0, "int32"), out, n, isa)
    return out


def unit_place(fmt: AnyFormat, field: str, block: Expr, index: int) -> Expr:
    """Where unit `index` of a field is in the keys of a head, for the first cell; counts units."""
    f = fmt.field(field)
    return block * (fmt.nbytes * BLOCK_CELLS // f.unit) + (f.offset * BLOCK_CELLS // f.unit + index * BLOCK_CELLS)


class Values:
    """Values of one head in a block, as float32 vectors.

    Attributes
    ----------
    span
        Columns after which the way to read them repeats.
    """

    def __init__(self, cache: CacheLayout, isa: VectorIsa) -> None:
        self.cache, self.isa, self.fmt = cache, isa, cache.value_format
        self.span = self.fmt.block

    def load(self, base: Expr, cell: Expr, column: Expr, at: int, lanes: int) -> Expr:
        """Columns from `column` + `at` on of a cell; `column` is a multiple of `span`."""
        if isinstance(self.fmt, FloatFormat):
            raw = _floats(self.fmt, base).load(cell * self.cache.v_dim + column + at, lanes)
            return half_to_float(raw, self.isa) if self.fmt.dtype == "float16" else raw
        assert isinstance(self.fmt, RoundedFormat)
        block, at = tirx.indexdiv(column, self.fmt.block) + at // self.fmt.block, at % self.fmt.block
        first = let(cell * self.cache.value_nbytes + block * self.fmt.nbytes)
        reader = _RowReader(self.fmt, base, first, lanes, self.isa)
        codes = bits(self.fmt.codes(reader, at // WORD), f"uint8x{lanes}")
        whole = cast(cast(codes, "int32") - self.fmt.zero_point, "float32")
        return let(self.fmt.scale(reader, 0)) * whole


class _RowReader(VectorReader):
    """`formats.base.Reader` over neighbouring words of a block of a row, a lane each; codes lie in runs.

    A scale is the same for every code. It is spread before it is converted, which needs no register of halves.
    """

    def __init__(self, fmt: RoundedFormat, base: Expr, first: Expr, n: int, isa: VectorIsa) -> None:
        super().__init__(isa, n // WORD)
        self.fmt, self.base, self.first = fmt, base, first

    def load(self, field: str, index: int) -> Expr:
        f = self.fmt.field(field)
        if f.unit == 2:
            scale = Region(self.base, "uint16").load(tirx.indexdiv(self.first, 2) + f.offset // 2)
            return splat(scale, WORD * self.lanes)
        n = WORD * self.lanes
        raw = Region(self.base, "int8").load(self.first + f.offset + index * WORD, n)
        return bits(raw, "uint32" if self.lanes == 1 else f"uint32x{self.lanes}")


class _BlockRounder:
    """`formats.base.Rounder` over one block of a region; values are its vectors in order."""

    def __init__(self, x: Region, first: Expr) -> None:
        self._x, self._first = x, first

    def largest(self, values: Sequence[Expr]) -> Expr:
        return let(reduce(_fold([_magnitude(v) for v in values], tirx.max), tirx.max))

    def extreme(self, values: Sequence[Expr]) -> Expr:
        largest, lanes = self.largest(values), lanes_of(values[0])
        places = []
        for i, vector in enumerate(values):
            numbers = cast(tirx.Ramp(i * lanes, 1, lanes), "int32")
            is_it = _magnitude(vector) == splat(largest, lanes)
            places.append(let(tirx.Select(is_it, numbers, splat(const(1 << 20, "int32"), lanes))))
        return let(self._x.load(self._first + reduce(_fold(places, tirx.min), tirx.min)))

    def nearest(self, x: Expr) -> Expr:
        return cast(llvm(dtype_of(x), "llvm.round", x), "int32")

    def truncated(self, x: Expr) -> Expr:
        return cast(x, "int32")

    def least(self, x: Expr, most: int) -> Expr:
        return tirx.min(x, splat(const(most, "int32"), lanes_of(x)))

    def constant(self, value: int, like: Expr) -> Expr:
        return splat(const(value, "uint32"), lanes_of(like))


def _round_block(fmt: RoundedFormat, x: Region, first: Expr, isa: VectorIsa) -> tuple[Expr, list[Expr]]:
    """The scale, as bits of a half, and the units of a block, in vectors."""
    vectors = [let(x.load(first + at, isa.lanes)) for at in range(0, fmt.block, isa.lanes)]
    rounder = _BlockRounder(x, first)
    scale, zero = let(fmt.scale_of(rounder, vectors)), const(0.0, "float32")
    inverse = splat(let(tirx.Select(scale != zero, const(1.0, "float32") / scale, zero)), isa.lanes)
    codes = [fmt.code_of(rounder, vector * inverse) for vector in vectors]
    n_words = isa.lanes // WORD
    words = [let(bits(cast(code, "uint8"), "uint32" if n_words == 1 else f"uint32x{n_words}")) for code in codes]
    return float_to_half(scale, isa), fmt.units_of(rounder, words)


def _magnitude(x: Expr) -> Expr:
    return llvm(dtype_of(x), "llvm.fabs", x)


def _fold(vectors: Sequence[Expr], combine: type) -> Expr:
    found = vectors[0]
    for vector in vectors[1:]:
        found = combine(found, vector)
    return let(found)


def _floats(fmt: FloatFormat, base: Expr) -> Region:
    return Region(base, "uint16" if fmt.dtype == "float16" else "float32")


def _narrowed(fmt: FloatFormat, value: Expr, isa: VectorIsa) -> Expr:
    return float_to_half(value, isa) if fmt.dtype == "float16" else value
