"""The greedy choice of the next token, on the device, and the step to it."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def argmax_parts(logits, values, places, N: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr):
    """The largest of each of `PARTS` parts of a row, and where it is; of equals the first."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    part = tl.program_id(0)
    PER_PART: tl.constexpr = (N + PARTS - 1) // PARTS
    first = part * PER_PART
    last = tl.minimum(first + PER_PART, N)
    best = tl.full((TILE,), float("-inf"), tl.float32)
    place = tl.full((TILE,), 2147483647, tl.int32)
    for at in range(0, PER_PART, TILE):
        here = first + at + tl.arange(0, TILE)
        value = tl.load(logits + here, mask=here < last, other=float("-inf"))
        better = value > best
        best = tl.where(better, value, best)
        place = tl.where(better, here, place)
    top = tl.max(best, 0)
    tl.store(values + part, top)
    tl.store(places + part, tl.min(tl.where(best == top, place, 2147483647), 0))


@triton.jit
def advance(
    values, places, token_ids, cells, rope_rows, chosen, PARTS: tl.constexpr, RING: tl.constexpr, PDL: tl.constexpr
):
    """Make the best of all parts the next token of sequence 0, one cell further.

    The host looks for it in `chosen`, at the cell modulo `RING`: the next step can run before it has looked.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    part = tl.arange(0, PARTS)
    value = tl.load(values + part)
    place = tl.load(places + part)
    token = tl.min(tl.where(value == tl.max(value, 0), place, 2147483647), 0)
    # where no logit is a number above -inf
    token = tl.where(token == 2147483647, 0, token)
    cell = tl.load(cells)
    tl.store(token_ids, token)
    tl.store(chosen + cell % RING, token)
    tl.store(cells, cell + 1)
    tl.store(rope_rows, tl.load(rope_rows) + 1)
