"""Mixtures of experts: the order of rows by expert, and products with one matrix of many.

A bank is one matrix whose rows are those of all experts, one after the other. Rows of tokens, one per chosen expert,
are sorted by it (`airkernels.cpu.row_order`), so that those of an expert follow each other: a few rows are multiplied
one by one, each with the matrix of its expert; many go through tensor cores expert by expert.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from airkernels.triton.gemm import finish, multiply_tiles
from airkernels.triton.product import product, product_float


@triton.jit
def sort_by_expert(
    numbers, out, n_tokens,
    N_EXPERTS: tl.constexpr, N_USED: tl.constexpr, STRIDE: tl.constexpr, EXPERTS_AT: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The order of rows by expert; numbers: int32 [n_tokens, N_USED]. A program places the rows of one expert."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.program_id(0)
    n_rows = n_tokens * N_USED
    lane = tl.arange(0, TILE)
    start = 0
    for at in range(0, n_rows, TILE):
        start += tl.sum((_chosen(numbers, at + lane, n_rows, N_USED, STRIDE) < expert).to(tl.int32), 0)
    tl.store(out + expert, start)
    if expert == N_EXPERTS - 1:
        tl.store(out + N_EXPERTS, n_rows)
    for at in range(0, n_rows, TILE):
        row = at + lane
        mine = _chosen(numbers, row, n_rows, N_USED, STRIDE) == expert
        place = start + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(out + EXPERTS_AT + place, expert, mask=mine)
        tl.store(out + EXPERTS_AT + n_rows + place, row, mask=mine)
        tl.store(out + EXPERTS_AT + 2 * n_rows + row, place, mask=mine)
        start += tl.sum(mine.to(tl.int32), 0)


@triton.jit
def _chosen(numbers, row, n_rows, N_USED: tl.constexpr, STRIDE: tl.constexpr):
    """The experts of rows; beyond the last, one that is larger than any."""
    return tl.load(numbers + row // N_USED * STRIDE + row % N_USED, mask=row < n_rows, other=0x7FFFFFFF)


@triton.jit
def dispatch(
    x, sources, weights, out, n_tokens,
    N_USED: tl.constexpr, N_WORDS: tl.constexpr, WEIGHT_STRIDE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Copy rows of tokens, of any kind, to their sorted places; float rows may be weighed on the way.

    Programs are (sorted row, tile of words). `sources` follow the experts in the order, `n_tokens * N_USED` words on.
    weights: float32 in rows of WEIGHT_STRIDE; 0: there are none.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * TILE + tl.arange(0, TILE)
    source = tl.load(sources + n_tokens * N_USED + row)
    token = (source // N_USED).to(tl.int64)
    value = tl.load(x + token * N_WORDS + word, mask=word < N_WORDS, other=0)
    if WEIGHT_STRIDE > 0:
        weight = tl.load(weights + token * WEIGHT_STRIDE + source % N_USED)
        value = (value.to(tl.float32, bitcast=True) * weight).to(tl.uint32, bitcast=True)
    tl.store(out + row * N_WORDS + word, value, mask=word < N_WORDS)


@triton.jit
def sum_experts(
    x, places, weights, out, n_tokens,
    N_USED: tl.constexpr, N: tl.constexpr, IN_STRIDE: tl.constexpr, WEIGHT_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add up the sorted rows of each token, float32, in the order of its choice. Programs are (token, columns).

    `places` follow experts and sources in the order; weights are as for `dispatch`.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE,), tl.float32)
    for slot in tl.static_range(N_USED):
        place = tl.load(places + 2 * n_tokens * N_USED + token * N_USED + slot).to(tl.int64)
        value = tl.load(x + place * IN_STRIDE + column, mask=column < N, other=0.0)
        if WEIGHT_STRIDE > 0:
            value = value * tl.load(weights + token * WEIGHT_STRIDE + slot)
        total += value
    tl.store(out + token * OUT_STRIDE + column, total, mask=column < N)


@triton.jit
def expert_product(
    words, halves, x, experts, bias, out,
    FORMAT: tl.constexpr, N_ROWS: tl.constexpr, N_COLS: tl.constexpr, TOKENS: tl.constexpr, KIND: tl.constexpr,
    X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, ACCUMULATE: tl.constexpr, BIAS: tl.constexpr,
    WORDS: tl.constexpr, HALVES: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
    TARGET: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`product` of every sorted row with the matrix of its expert, WORDS and HALVES of the planes of the bank."""
    if PDL:
        # which weights to read is known only now
        gdc_wait()
    expert = tl.load(experts + tl.program_id(1)).to(tl.int64)
    product(
        words + expert * WORDS, halves + expert * HALVES, x, bias + expert * N_ROWS, out,
        FORMAT, N_ROWS, N_COLS, TOKENS, KIND, X_STRIDE, OUT_STRIDE, ACCUMULATE, BIAS, ROWS, TILE, COLUMNS, UNROLL,
        TARGET, PDL,
    )  # fmt: skip


@triton.jit
def expert_product_float(
    weights, x, experts, bias, out,
    N_ROWS: tl.constexpr, N_COLS: tl.constexpr, TOKENS: tl.constexpr, X_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr, ACCUMULATE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`product_float` likewise."""
    if PDL:
        gdc_wait()
    expert = tl.load(experts + tl.program_id(1)).to(tl.int64)
    product_float(
        weights + expert * (N_ROWS * N_COLS), x, bias + expert * N_ROWS, out,
        N_ROWS, N_COLS, TOKENS, X_STRIDE, OUT_STRIDE, ACCUMULATE, BIAS, ROWS, COLUMNS, PDL,
    )  # fmt: skip


@triton.jit
def expert_gemm(
    weights, x, starts, bias, out,
    FIRST: tl.constexpr, N_ROWS: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    SCALE_AT: tl.constexpr, BIAS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`gemm.gemm` of the sorted rows of experts from number `FIRST` on, whose matrices are plain floats in `weights`.

    Programs are (tile of matrix rows, expert), and go through the rows of their expert.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    number = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    weights += number * (N_ROWS * K)
    bias += (FIRST + number) * N_ROWS
    stop = tl.load(starts + FIRST + number + 1)
    for first in range(tl.load(starts + FIRST + number), stop, TOKENS):
        token = first + tl.arange(0, TOKENS)
        acc = multiply_tiles(weights, x, token, stop, row, N_ROWS, K, X_STRIDE, TOKENS, ROWS, DEPTH)
        finish(acc, x, bias, out, token, stop, row, N_ROWS, X_STRIDE, OUT_STRIDE, SCALE_AT, False, BIAS)
