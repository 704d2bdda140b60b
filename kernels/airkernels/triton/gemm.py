"""Products with many rows of activations, on tensor cores, with matrices that are plain floats by now.

out[t, r] (+)= x_scale[t] * sum over k of x[t, k] * weights[r, k]
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def gemm(
    weights, x, bias, out, n_tokens,
    N_ROWS: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, SCALE_AT: tl.constexpr,
    ACCUMULATE: tl.constexpr, BIAS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, BAND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """weights [N_ROWS, K] and x of one type: float16 (rows with scales) or float32 (three tf32 products).

    X_STRIDE is in elements. SCALE_AT: place of the row's scale, in float32 from its start; -1 for none. Programs
    go through bands of `BAND` tiles of tokens, so that a tile of weights is read from L2 by those of a band.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    n_down = tl.cdiv(n_tokens, TOKENS)
    n_across = tl.cdiv(N_ROWS, ROWS)
    number = tl.program_id(0)
    per_band = BAND * n_across
    top = number // per_band * BAND
    height = tl.minimum(n_down - top, BAND)
    down = top + number % per_band % height
    across = number % per_band // height
    if down >= n_down:
        return

    token = down * TOKENS + tl.arange(0, TOKENS)
    row = across * ROWS + tl.arange(0, ROWS)
    acc = multiply_tiles(weights, x, token, n_tokens, row, N_ROWS, K, X_STRIDE, TOKENS, ROWS, DEPTH)
    finish(acc, x, bias, out, token, n_tokens, row, N_ROWS, X_STRIDE, OUT_STRIDE, SCALE_AT, ACCUMULATE, BIAS)


@triton.jit
def multiply_tiles(
    weights, x, token, stop, row,
    N_ROWS: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Products [TOKENS, ROWS] of rows of activations and of the matrix; those past the ends are read as the last."""
    k = tl.arange(0, DEPTH)
    x_row = x + tl.minimum(token, stop - 1).to(tl.int64) * X_STRIDE
    w_row = weights + tl.minimum(row, N_ROWS - 1).to(tl.int64) * K
    acc = tl.zeros((TOKENS, ROWS), tl.float32)
    for at in range(0, K, DEPTH):
        if K % DEPTH == 0:
            a = tl.load(x_row[:, None] + (at + k)[None, :])
            b = tl.load(w_row[None, :] + (at + k)[:, None])
        else:
            a = tl.load(x_row[:, None] + (at + k)[None, :], mask=(at + k)[None, :] < K, other=0.0)
            b = tl.load(w_row[None, :] + (at + k)[:, None], mask=(at + k)[:, None] < K, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="tf32x3" if x.dtype.element_ty == tl.float32 else None)
    return acc


@triton.jit
def finish(
    acc, x, bias, out, token, stop, row,
    N_ROWS: tl.constexpr, X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, SCALE_AT: tl.constexpr,
    ACCUMULATE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Scale products by the rows' scales, add what is to be added, and store those that there are."""
    exists = (token[:, None] < stop) & (row[None, :] < N_ROWS)
    if SCALE_AT >= 0:
        x_row = x + tl.minimum(token, stop - 1).to(tl.int64) * X_STRIDE
        scale = tl.load(x_row.to(tl.pointer_type(tl.float32)) + SCALE_AT)
        acc = acc * scale[:, None]
    if BIAS:
        acc += tl.load(bias + row, mask=row < N_ROWS, other=0.0)[None, :]
    target = out + token.to(tl.int64)[:, None] * OUT_STRIDE + row[None, :]
    if ACCUMULATE:
        acc += tl.load(target, mask=exists, other=0.0)
    tl.store(target, acc, mask=exists)
