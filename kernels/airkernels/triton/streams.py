"""Several residual streams (AltUp), and the statistics of rows. All values are float32, strides in elements."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def combine_streams(
    base, coefficients, x0, x1, x2, x3, out,
    N: tl.constexpr, N_STREAMS: tl.constexpr, FIRST: tl.constexpr, OFFSET: tl.constexpr,
    BASE_STRIDE: tl.constexpr, COEFFICIENT_STRIDE: tl.constexpr, STRIDE_0: tl.constexpr, STRIDE_1: tl.constexpr,
    STRIDE_2: tl.constexpr, STRIDE_3: tl.constexpr, OUT_STRIDE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``base + sum of (coefficients[FIRST + j] + OFFSET) * x_j`` for `N_STREAMS` of the x. Programs are (row, tile)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    factors = coefficients + row * COEFFICIENT_STRIDE + FIRST
    value = tl.load(base + row * BASE_STRIDE + column, mask=column < N, other=0.0)
    value += (tl.load(factors) + OFFSET) * tl.load(x0 + row * STRIDE_0 + column, mask=column < N, other=0.0)
    if N_STREAMS > 1:
        value += (tl.load(factors + 1) + OFFSET) * tl.load(x1 + row * STRIDE_1 + column, mask=column < N, other=0.0)
    if N_STREAMS > 2:
        value += (tl.load(factors + 2) + OFFSET) * tl.load(x2 + row * STRIDE_2 + column, mask=column < N, other=0.0)
    if N_STREAMS > 3:
        value += (tl.load(factors + 3) + OFFSET) * tl.load(x3 + row * STRIDE_3 + column, mask=column < N, other=0.0)
    tl.store(out + row * OUT_STRIDE + column, value, mask=column < N)


@triton.jit
def match_size(
    x, target, out,
    N: tl.constexpr, LEAST: tl.constexpr, IN_STRIDE: tl.constexpr, TARGET_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``x * rms(target) / rms(x)``, a mean square below `LEAST` counting as that. Programs are rows."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    value = tl.load(x + row * IN_STRIDE + column, mask=column < N, other=0.0)
    wanted = tl.load(target + row * TARGET_STRIDE + column, mask=column < N, other=0.0)
    size = tl.maximum(tl.sum(value * value, 0) / N, LEAST)
    factor = tl.sqrt_rn(tl.sum(wanted * wanted, 0) / N) / tl.sqrt_rn(size)
    tl.store(out + row * OUT_STRIDE + column, value * factor, mask=column < N)


@triton.jit
def cut_off(
    x, out,
    N: tl.constexpr, DEVIATIONS: tl.constexpr, IN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """``max(0, x - mean - DEVIATIONS * std)``. Programs are rows."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    exists = column < N
    value = tl.load(x + row * IN_STRIDE + column, mask=exists, other=0.0)
    mean = tl.sum(value, 0) / N
    centred = tl.where(exists, value - mean, 0.0)
    limit = mean + DEVIATIONS * tl.sqrt_rn(tl.sum(centred * centred, 0) / N)
    tl.store(out + row * OUT_STRIDE + column, tl.maximum(value - limit, 0.0), mask=exists)
