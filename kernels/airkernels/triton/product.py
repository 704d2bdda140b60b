"""Products with a few rows of activations: every weight is read once, decoded in registers and multiplied there.

    out[t, r] (+)= sum over groups of scale * x_scale * (codes . x_codes - zero_point * sum(x_codes)) + minimum * ...

A program is one warp: a tile of `TILE` blocks, `TILE / COLUMNS` rows by `COLUMNS` blocks of a row, repeated along the
row and for `ROWS` groups of rows. It handles `TOKENS` rows of activations, and there are as many programs along axis 1
of the grid as that takes. What a warp reads first does not depend on the kernel before it, so it is loaded before
waiting for that one (programmatic dependent launch).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from airkernels.formats import BlockFormat
from airkernels.formats.base import WORD, Table
from airkernels.triton import intrinsics
from airkernels.triton.forms import GridForm
from airkernels.triton.layout import GROUP, RowLayout, count_units, padded
from airkernels.triton.tiles import (
    BlockReader,
    Expr,
    Planes,
    addends,
    block_format,
    decode,
    device,
    dot4,
    load,
    signed_addends,
    zero_point_of,
)


@triton.jit
def product(
    words, halves, x, bias, out,
    FORMAT: tl.constexpr, N_ROWS: tl.constexpr, N_COLS: tl.constexpr, TOKENS: tl.constexpr, KIND: tl.constexpr,
    X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, ACCUMULATE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
    TARGET: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Quantized weights by quantized (or float) rows.

    words, halves: a `MatrixLayout`; x: rows of a `RowLayout` as uint32, `X_STRIDE` words apart; bias, out: float32.
    `UNROLL`: whether the tiles along a row are unrolled too; code that is fast for short rows, and long for long ones.
    """
    SUBROWS: tl.constexpr = TILE // COLUMNS
    entry = tl.arange(0, TILE)
    subrow = entry // COLUMNS
    column = entry % COLUMNS
    first = tl.program_id(0) * (ROWS * SUBROWS)
    token = tl.program_id(1) * TOKENS
    x += token * X_STRIDE
    out += token.to(tl.int64) * OUT_STRIDE
    N_BLOCKS: tl.constexpr = _blocks_of(FORMAT, N_COLS)
    sums = _zeros(ROWS * TOKENS, TILE)
    table = _keep_table(entry, FORMAT)
    if UNROLL:
        for at in tl.static_range(0, N_BLOCKS, COLUMNS):
            sums = _step(
                sums, table, words, halves, x, first, subrow, column, at,
                FORMAT, N_ROWS, N_COLS, TOKENS, KIND, X_STRIDE, ROWS, TILE, COLUMNS, TARGET, PDL and at == 0,
            )  # fmt: skip
    else:
        for at in range(0, N_BLOCKS, COLUMNS):
            sums = _step(
                sums, table, words, halves, x, first, subrow, column, at,
                FORMAT, N_ROWS, N_COLS, TOKENS, KIND, X_STRIDE, ROWS, TILE, COLUMNS, TARGET, PDL,
            )  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    for i in tl.static_range(ROWS * TOKENS):
        row = first + (i // TOKENS) * SUBROWS + tl.arange(0, SUBROWS)
        value = tl.sum(tl.reshape(sums[i], (SUBROWS, COLUMNS)), 1)
        _finish(value, row, i % TOKENS, bias, out, N_ROWS, OUT_STRIDE, ACCUMULATE, BIAS)


@triton.jit
def _step(
    sums, table, words, halves, x, first, subrow, column, at,
    FORMAT: tl.constexpr, N_ROWS: tl.constexpr, N_COLS: tl.constexpr, TOKENS: tl.constexpr, KIND: tl.constexpr,
    X_STRIDE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
    TARGET: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Add the products of the tiles at block `at`. Waiting for the kernel before is free after the first time."""
    SUBROWS: tl.constexpr = TILE // COLUMNS
    tiles = _load_blocks(words, halves, first, subrow, column, at, FORMAT, N_ROWS, N_COLS, ROWS, SUBROWS, COLUMNS)
    if WAIT:
        gdc_wait()
    return _multiply(sums, table, tiles, x, column, at, FORMAT, N_COLS, TOKENS, KIND, X_STRIDE, ROWS, COLUMNS, TARGET)


@triton.jit
def product_float(
    weights, x, bias, out,
    N_ROWS: tl.constexpr, N_COLS: tl.constexpr, TOKENS: tl.constexpr, X_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr, ACCUMULATE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Weights in F32, F16 or BF16 by float32 rows, all [rows, columns]; strides in elements."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    x += tl.program_id(1) * (TOKENS * X_STRIDE)
    out += tl.program_id(1).to(tl.int64) * (TOKENS * OUT_STRIDE)
    start = weights + tl.minimum(row, N_ROWS - 1).to(tl.int64)[:, None] * N_COLS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for token in tl.static_range(TOKENS):
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for at in range(0, N_COLS, COLUMNS):
            here = at + column
            if N_COLS % COLUMNS == 0:
                w = tl.load(start + here[None, :])
                v = tl.load(x + token * X_STRIDE + here)
            else:
                w = tl.load(start + here[None, :], mask=here[None, :] < N_COLS, other=0.0)
                v = tl.load(x + token * X_STRIDE + here, mask=here < N_COLS, other=0.0)
            total += w.to(tl.float32) * v[None, :]
        _finish(tl.sum(total, 1), row, token, bias, out, N_ROWS, OUT_STRIDE, ACCUMULATE, BIAS)


@triton.jit
def _finish(
    value, row, token, bias, out,
    N_ROWS: tl.constexpr, OUT_STRIDE: tl.constexpr, ACCUMULATE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    exists = row < N_ROWS
    at = out + token * OUT_STRIDE + row
    if BIAS:
        value += tl.load(bias + row, mask=exists, other=0.0)
    if ACCUMULATE:
        value += tl.load(at, mask=exists, other=0.0)
    tl.store(at, value, mask=exists)


@device
def _blocks_of(format_name: str, n_cols: int, _semantic: Any = None) -> Any:
    return tl.constexpr(n_cols // block_format(format_name).block)


@device
def _load_blocks(
    words: Any, halves: Any, first: Any, subrow: Any, column: Any, at: Any,
    format_name: str, n_rows: int, n_cols: int, rows: int, subrows: int, columns: int, _semantic: Any = None,
) -> Any:  # fmt: skip
    """The planes of a tile of blocks for every row group, as one tuple."""
    s, fmt = _semantic, block_format(format_name)
    places = padded(n_cols // fmt.block)
    mask = _exists(column, at, n_cols // fmt.block, columns, s)
    found: list[Any] = []
    for i in range(rows):
        row = s.add(s.add(first, i * subrows, False), subrow, False)
        if n_rows % (rows * subrows):
            # rows past the last are read as the last, and not stored
            row = s.minimum(row, s.to_tensor(n_rows - 1), tl.PropagateNan.NONE)
        line = s.cast(row, tl.int64)

        def start(base: Any, unit: int, line: Any = line) -> Any:
            per_row = count_units(fmt, unit) * places
            return s.add(s.add(base, s.mul(line, per_row, False), False), s.add(column, at, False), False)

        found += Planes(fmt, start(words, WORD), start(halves, 2), places, mask, s).load_all()
    return tl.tuple(found)


@device
def _multiply(
    sums: Any, table: Any, tiles: Any, x: Any, column: Any, at: Any,
    format_name: str, n_cols: int, n_tokens: int, kind: str, x_stride: int, rows: int, columns: int, target: str,
    _semantic: Any = None,
) -> Any:  # fmt: skip
    """`sums` and the products of loaded blocks with every token: a tuple of tiles, row groups slower."""
    s, fmt = _semantic, block_format(format_name)
    layout = RowLayout(kind, n_cols, fmt.block)
    planes = [Expr(tile, s) for tile in tiles]
    per_row = len(planes) // rows
    kept = table if _kept_table(fmt) else None
    readers = [BlockReader(fmt, planes[i * per_row : (i + 1) * per_row], kept) for i in range(rows)]
    mask = _exists(column, at, n_cols // fmt.block, columns, s)
    terms = _integer_terms if layout.digits else _float_terms
    totals = [Expr(tile, s) for tile in sums]
    for token in range(n_tokens):
        base = s.add(x, s.add(s.add(column, at, False), token * x_stride, False), False)
        row = _Row(layout, base, mask, s)
        for group in range(fmt.block // fmt.group):
            for i, term in enumerate(terms(fmt, readers, row, group, target)):
                totals[i * n_tokens + token] += term
    return tl.tuple([total.tensor for total in totals])


@device
def _keep_table(entry: Any, format_name: str, _semantic: Any = None) -> Any:
    """Copy the table of a format that wants it; what `entry` of a reader needs to read from the copy."""
    table = _kept_table(block_format(format_name))
    return entry if table is None else intrinsics.keep(table, _semantic.cast(entry, tl.uint32), _semantic)


def _kept_table(form: BlockFormat) -> Table | None:
    return form.table if isinstance(form, GridForm) and form.keeps_table else None


@device
def _zeros(count: int, tile: int, _semantic: Any = None) -> Any:
    return tl.tuple([_semantic.full([tile], 0, tl.float32) for _ in range(count)])


def _exists(column: Any, at: Any, n_blocks: int, columns: int, semantic: Any) -> Any:
    """Which blocks of a tile there are; None for all."""
    if n_blocks % columns == 0:
        return None
    return semantic.less_than(semantic.add(column, at, False), n_blocks)


class _Row:
    """One row of activations at a tile of blocks."""

    def __init__(self, layout: RowLayout, base: Any, mask: Any, semantic: Any) -> None:
        self.layout, self._base, self._mask, self.semantic = layout, base, mask, semantic

    def plane(self, index: int) -> Expr:
        return load(self._base, index * self.layout.places, self._mask, self.semantic)

    def zero(self) -> Expr:
        """An int32 tile of zeros."""
        return Expr(self.semantic.full(list(self._base.shape), 0, tl.int32), self.semantic)


def _integer_terms(fmt: BlockFormat, readers: list[BlockReader], row: _Row, group: int, target: str) -> list[Expr]:
    """A group's share of the product for the blocks of every reader, from integer dot products."""
    layout = row.layout
    x_scale = row.plane(layout.scales + group * fmt.group // GROUP).bits(tl.float32)
    first_sum = layout.sums if fmt.group == GROUP else layout.half_sums
    signed, zero_point = signed_addends(fmt), zero_point_of(fmt)
    x_sum = row.plane(first_sum + group).bits(tl.int32) if zero_point or fmt.has_minimum else None
    words = range(group * fmt.group // WORD, (group + 1) * fmt.group // WORD)
    digits = [[row.plane(d * (layout.block // WORD) + w).bits(tl.int32) for w in words] for d in range(layout.digits)]
    terms = []
    for reader in readers:
        weights = [addends(fmt, reader, w) for w in words]
        total = None
        for digit in digits:
            part = row.zero()
            for addend, value in ((a, value) for each, value in zip(weights, digit, strict=True) for a in each):
                part = dot4(addend, value, part, signed, target, row.semantic)
            total = part if total is None else (total << 7) + part
        assert total is not None
        if zero_point:
            assert x_sum is not None
            total = total - x_sum * zero_point
        term = total.to(tl.float32) * (fmt.scale(reader, group) * x_scale)
        if fmt.has_minimum:
            assert x_sum is not None
            term = term + fmt.minimum(reader, group) * (x_scale * x_sum.to(tl.float32))
        terms.append(term)
    return terms


def _float_terms(fmt: BlockFormat, readers: list[BlockReader], row: _Row, group: int, target: str) -> list[Expr]:
    """The same with float activations."""
    elements = range(group * fmt.group, (group + 1) * fmt.group)
    values = [row.plane(element).bits(tl.float32) for element in elements]
    terms = []
    for reader in readers:
        products = (weight * value for weight, value in zip(decode(fmt, reader, group), values, strict=True))
        terms.append(reduce(Expr.__add__, products))
    return terms
