"""Kernels that work element by element, on tiles of rows as in `airkernels.triton.rows`.

Programs are (row, tile of blocks). Strides are in 32-bit words; an input may be the output.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from airkernels.triton.functions import apply, gate
from airkernels.triton.rows import store_row, tile


@triton.jit
def activation(
    x, out,
    FUNCTION: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    N: tl.constexpr, IN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``function(x)``; see `functions.apply`."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCKS
    index, exists = tile(first, N, BLOCK, BLOCKS)
    value = apply(tl.load(x + row * IN_STRIDE + index, mask=exists, other=0.0), FUNCTION, A, B, C, D)
    # what is no element must be zero: padding is multiplied too
    value = tl.where(exists, value, 0.0)
    store_row(out + row * OUT_STRIDE, value, first, N, KIND, BLOCK, PLACES, BLOCKS)


@triton.jit
def gated(
    x, up, out,
    FUNCTION: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    N: tl.constexpr, GATE_STRIDE: tl.constexpr, UP_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A function of the gate `x` times `up`; see `functions.gate`."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCKS
    index, exists = tile(first, N, BLOCK, BLOCKS)
    g = tl.load(x + row * GATE_STRIDE + index, mask=exists, other=0.0)
    u = tl.load(up + row * UP_STRIDE + index, mask=exists, other=0.0)
    value = tl.where(exists, gate(g, u, FUNCTION, A, B, C, D), 0.0)
    store_row(out + row * OUT_STRIDE, value, first, N, KIND, BLOCK, PLACES, BLOCKS)


@triton.jit
def add(
    a, b, out,
    SCALE: tl.constexpr, N: tl.constexpr, A_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``a + SCALE * b``, float32. With a stride of 0 all rows take the same row of `b`, a vector."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = column < N
    first = tl.load(a + row * A_STRIDE + column, mask=exists)
    second = tl.load(b + row * B_STRIDE + column, mask=exists)
    tl.store(out + row * OUT_STRIDE + column, first + SCALE * second, mask=exists)


@triton.jit
def multiply(
    a, b, out,
    GROUP: tl.constexpr, N: tl.constexpr, A_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``a * b``, float32, an element of b for every `GROUP` neighbouring ones of a. Strides as for `add`."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = column < N
    first = tl.load(a + row * A_STRIDE + column, mask=exists)
    second = tl.load(b + row * B_STRIDE + column // GROUP, mask=exists)
    tl.store(out + row * OUT_STRIDE + column, first * second, mask=exists)


@triton.jit
def scale_by_position(
    x, cells, out,
    PERIOD: tl.constexpr, STRENGTH: tl.constexpr,
    N: tl.constexpr, IN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``x * (1 + STRENGTH * log(1 + floor((cell + 1) / PERIOD)))``, float32."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = column < N
    steps = (tl.load(cells + row) + 1) // PERIOD + 1
    factor = 1.0 + STRENGTH * tl.log(steps.to(tl.float32))
    value = tl.load(x + row * IN_STRIDE + column, mask=exists)
    tl.store(out + row * OUT_STRIDE + column, value * factor, mask=exists)
