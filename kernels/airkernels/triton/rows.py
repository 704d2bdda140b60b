"""Rows of activations: norms, rounding, selection; each writes the kind of row that the next product reads.

A row is handled as a tile [blocks, groups of a block, 32], so that groups, blocks and planes are its axes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

HALF_LARGEST = tl.constexpr(8192.0)
"""What the largest element of a half-precision row becomes: far from both ends of the type's range."""

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding it and taking it away rounds a float32 to the nearest integer."""


@triton.jit
def norm(
    x, weight, bias, out,
    N: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, GROUPS: tl.constexpr, WEIGHTS: tl.constexpr,
    BIASES: tl.constexpr, IN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``x / sqrt(mean(x**2) + eps) * weight + bias`` for NORM 'rms'; 'layer' takes the mean of x away before.

    Programs are (row, group): each of `GROUPS` equal parts of a row, of `N` elements, is normed apart. WEIGHTS and
    BIASES are those of a group, those of a row, or none. Strides in 32-bit words, here and below.

    `BLOCK` is at least 32 here (elements of the tile's blocks); rows for float matrices take 32 with `PLACES` 0.
    Groups are stored as plain floats.
    """
    index, exists = tile(0, N, BLOCK, BLOCKS)
    group = tl.program_id(1) * N
    if WEIGHTS > 0:
        scale = tl.load(weight + (group if WEIGHTS > N else 0) + index, mask=exists, other=0.0)
    if BIASES > 0:
        shift = tl.load(bias + (group if BIASES > N else 0) + index, mask=exists, other=0.0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(x + row * IN_STRIDE + group + index, mask=exists, other=0.0)
    if NORM == "layer":
        mean = tl.sum(tl.reshape(value, (BLOCKS * BLOCK,)), 0) / N
        value = tl.where(exists, value - mean, 0.0)
    square = tl.sum(tl.reshape(value * value, (BLOCKS * BLOCK,)), 0) / N
    value = value * (1.0 / tl.sqrt_rn(square + EPS))
    if WEIGHTS > 0:
        value = value * scale
    if BIASES > 0:
        value = value + shift
    if GROUPS == 1:
        store_row(out + row * OUT_STRIDE, value, 0, N, KIND, BLOCK, PLACES, BLOCKS)
    else:
        tl.store((out + row * OUT_STRIDE + group).to(tl.pointer_type(tl.float32)) + index, value, mask=exists)


@triton.jit
def convert(
    x, out,
    N: tl.constexpr, IN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Float rows to another kind. Programs are (row, tile of blocks)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCKS
    index, exists = tile(first, N, BLOCK, BLOCKS)
    value = tl.load(x + row * IN_STRIDE + index, mask=exists, other=0.0)
    store_row(out + row * OUT_STRIDE, value, first, N, KIND, BLOCK, PLACES, BLOCKS)


@triton.jit
def select(
    x, rows, out, N_WORDS: tl.constexpr, IN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Copy rows by number (int32), of any kind. Programs are (output row, tile of words)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * TILE + tl.arange(0, TILE)
    source = tl.load(rows + row).to(tl.int64)
    value = tl.load(x + source * IN_STRIDE + word, mask=word < N_WORDS, other=0)
    tl.store(out + row * OUT_STRIDE + word, value, mask=word < N_WORDS)


@triton.jit
def tile(first, N: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Natural element numbers [BLOCKS, BLOCK / 32, 32] of the blocks from `first` on, and which exist."""
    block = (first + tl.arange(0, BLOCKS))[:, None, None]
    group = tl.arange(0, BLOCK // 32)[None, :, None]
    index = block * BLOCK + group * 32 + tl.arange(0, 32)[None, None, :]
    return index, index < N


@triton.jit
def store_row(
    out, value, first, N: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Store the tile that starts at block `first` as a row of `KIND` (`layout.RowLayout`).

    `out` points to the row, as 32-bit words. A half-precision row must be one tile: its scale is over all of it.
    """
    block = (first + tl.arange(0, BLOCKS))[:, None, None]
    group = tl.arange(0, BLOCK // 32)[None, :, None]
    lane = tl.arange(0, 32)[None, None, :]
    if PLACES == 0:
        element = block * BLOCK + group * 32 + lane
        fits = element < (N + 3) // 4 * 4
    else:
        element = (group * 32 + lane) * PLACES + block
        fits = (block < PLACES) & (lane < 32) & (group < BLOCK)
    if KIND == "f32":
        tl.store(out.to(tl.pointer_type(tl.float32)) + element, value, mask=fits)
    elif KIND == "f16":
        largest = tl.max(tl.reshape(tl.abs(value), (BLOCKS * BLOCK,)), 0)
        inverse = tl.where(largest > 0, HALF_LARGEST / largest, 0.0)
        tl.store(out.to(tl.pointer_type(tl.float16)) + element, (value * inverse).to(tl.float16), mask=fits)
        last = (N + 3) // 4 * 4 if PLACES == 0 else BLOCK * PLACES
        tl.store(out.to(tl.pointer_type(tl.float32)) + last // 2, largest / HALF_LARGEST)
    else:
        _store_integers(out, value, block, group, KIND, BLOCK, PLACES, BLOCKS)


@triton.jit
def _store_integers(
    out, value, block, group, KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr
):
    GROUPS: tl.constexpr = BLOCK // 32
    DIGITS: tl.constexpr = 1 if KIND == "q8" else 2
    MOST: tl.constexpr = 127.0 if KIND == "q8" else 16256.0
    largest = tl.max(tl.abs(value), 2)
    inverse = tl.where(largest > 0, MOST / largest, 0.0)
    codes = ((value * inverse[:, :, None] + ROUND) - ROUND).to(tl.int32)
    high = codes if DIGITS == 1 else (codes + 64) >> 7
    _store_digit(out, high, block, group, 0, BLOCK, PLACES, BLOCKS)
    if DIGITS == 2:
        _store_digit(out, codes - (high << 7), block, group, BLOCK // 4, BLOCK, PLACES, BLOCKS)

    at = tl.reshape(group * PLACES + block, (BLOCKS, GROUPS))
    fits = tl.reshape((block < PLACES) & (group < GROUPS), (BLOCKS, GROUPS))
    after = DIGITS * (BLOCK // 4) * PLACES
    tl.store(out.to(tl.pointer_type(tl.float32)) + after + at, largest * (1.0 / MOST), mask=fits)
    sums = out.to(tl.pointer_type(tl.int32)) + after + GROUPS * PLACES
    tl.store(sums + at, tl.sum(codes, 2), mask=fits)
    half = tl.arange(0, 2)[None, None, :]
    halves = tl.sum(tl.reshape(codes, (BLOCKS, GROUPS, 2, 16)), 3)
    tl.store(sums + GROUPS * PLACES + (2 * group + half) * PLACES + block, halves, mask=(block < PLACES) & (half < 2))


@triton.jit
def _store_digit(out, digit, block, group, plane, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr):
    """Bytes, four to a word, into planes from `plane` on."""
    GROUPS: tl.constexpr = BLOCK // 32
    shift = (8 * tl.arange(0, 4))[None, None, None, :]
    parts = (tl.reshape(digit, (BLOCKS, GROUPS, 8, 4)) & 255) << shift
    word = tl.arange(0, 8)[None, None, :]
    at = (plane + group * 8 + word) * PLACES + block
    tl.store(out.to(tl.pointer_type(tl.int32)) + at, tl.sum(parts, 3), mask=(block < PLACES) & (word < 8))
