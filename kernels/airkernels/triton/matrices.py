"""Matrices themselves: into planes when they arrive on the device, out of them for tensor cores, and single rows."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from airkernels.formats import FORMATS, BlockFormat
from airkernels.formats.base import WORD
from airkernels.triton.forms import stored, stored_units
from airkernels.triton.layout import count_units, first_planes, plane_unit
from airkernels.triton.tiles import BlockReader, Planes, RawPlanes, block_format, decode, device


@triton.jit
def pack(
    raw, words, halves, first_row, n_rows,
    FORMAT: tl.constexpr, N_BLOCKS: tl.constexpr, PLACES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Rows of raw blocks (bytes, at any address) into rows `first_row` and following of a matrix in planes.

    Programs divide the places of all rows; what lies past the last block of a row is filled with zeros.
    """
    entry = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    row = entry // PLACES
    _pack_blocks(raw, words, halves, row, first_row + row, entry % PLACES, row < n_rows, FORMAT, N_BLOCKS, PLACES)


@triton.jit
def unpack(
    words, halves, out,
    FORMAT: tl.constexpr, N_ROWS: tl.constexpr, PLACES: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A whole matrix to floats of the type of `out`, [N_ROWS, block, PLACES]: permuted as activations are.

    Programs are (places of all rows, group of a block). Padding is zeros, which decode to zeros.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for group in tl.static_range(_groups_of(FORMAT)):
        if tl.program_id(1) == group:
            _unpack_part(words, halves, out, group, FORMAT, N_ROWS, PLACES, TILE)


@triton.jit(noinline=True)
def _unpack_part(
    words, halves, out,
    GROUP: tl.constexpr, FORMAT: tl.constexpr, N_ROWS: tl.constexpr, PLACES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A function of its own, as the compiler's time grows with the cube of what hangs together."""
    entry = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    row = entry // PLACES
    _unpack_group(words, halves, out, row, row, entry % PLACES, row < N_ROWS, GROUP, FORMAT, PLACES, True)


@triton.jit
def widen(weights, out, N: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr):
    """A float matrix to the type of `out`: `N` elements."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    tl.store(out + at, tl.load(weights + at, mask=at < N, other=0.0).to(out.dtype.element_ty), mask=at < N)


@triton.jit
def gather(
    words, halves, ids, out,
    FORMAT: tl.constexpr, N_BLOCKS: tl.constexpr, PLACES: tl.constexpr, OUT_STRIDE: tl.constexpr,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows `ids` (int32) of a matrix to float32 in natural order. Programs are (token, tile of blocks, group)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for group in tl.static_range(_groups_of(FORMAT)):
        if tl.program_id(2) == group:
            _gather_part(words, halves, ids, out, group, FORMAT, N_BLOCKS, PLACES, OUT_STRIDE, TILE)


@triton.jit(noinline=True)
def _gather_part(
    words, halves, ids, out,
    GROUP: tl.constexpr, FORMAT: tl.constexpr, N_BLOCKS: tl.constexpr, PLACES: tl.constexpr,
    OUT_STRIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    place = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = tl.load(ids + token).to(tl.int64)
    start = out + token.to(tl.int64) * OUT_STRIDE
    _unpack_group(
        words, halves, start, row, token.to(tl.int64) * 0, place, place < N_BLOCKS, GROUP, FORMAT, PLACES, False
    )


@triton.jit
def gather_float(
    table, ids, out, N_COLS: tl.constexpr, OUT_STRIDE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr
):
    """The same for F32, F16 and BF16."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = tl.load(ids + token).to(tl.int64)
    value = tl.load(table + row * N_COLS + column, mask=column < N_COLS, other=0.0)
    tl.store(out + token.to(tl.int64) * OUT_STRIDE + column, value.to(tl.float32), mask=column < N_COLS)


@device
def _pack_blocks(
    raw: Any, words: Any, halves: Any, source: Any, target: Any, place: Any, fits: Any,
    format_name: str, n_blocks: int, places: int, _semantic: Any = None,
) -> None:  # fmt: skip
    s, fmt = _semantic, FORMATS[format_name]
    assert isinstance(fmt, BlockFormat)
    form = stored(fmt)
    exists = s.and_(fits, s.less_than(place, n_blocks))
    start = s.add(s.mul(source, n_blocks * fmt.nbytes, False), s.mul(place, fmt.nbytes, False), False)
    units = stored_units(form, BlockReader(fmt, RawPlanes(fmt, s.add(raw, start, False), exists, s)))
    planes = first_planes(form)
    for field in form.fields:
        base, dtype = (words, tl.uint32) if plane_unit(field) == WORD else (halves, tl.uint16)
        row = s.mul(target, count_units(form, plane_unit(field)) * places, False)
        for i, value in enumerate(units[field.name]):
            plane = s.add(row, s.add(place, (planes[field.name] + i) * places, False), False)
            tl.store(s.add(base, plane, False), value.to(dtype).tensor, fits, _semantic=s)


@device
def _groups_of(format_name: str, _semantic: Any = None) -> Any:
    fmt = block_format(format_name)
    return tl.constexpr(fmt.block // fmt.group)


@device
def _unpack_group(
    words: Any, halves: Any, out: Any, source: Any, target: Any, place: Any, exists: Any, group: int,
    format_name: str, places: int, permuted: bool, _semantic: Any = None,
) -> None:  # fmt: skip
    """Decode a group of the blocks at `place` of row `source` into row `target`: by element, or plane by plane."""
    s, fmt = _semantic, block_format(format_name)

    def start(base: Any, unit: int) -> Any:
        return s.add(base, s.add(s.mul(source, count_units(fmt, unit) * places, False), place, False), False)

    reader = BlockReader(fmt, Planes(fmt, start(words, WORD), start(halves, 2), places, exists, s))
    row = s.add(out, s.mul(target, fmt.block * places, False), False)
    step, scale = (1, places) if permuted else (fmt.block, 1)
    at = s.add(row, s.mul(place, step, False), False)
    for number, value in enumerate(decode(fmt, reader, group), group * fmt.group):
        tl.store(s.add(at, number * scale, False), value.to(out.dtype.element_ty).tensor, exists, _semantic=s)
