"""Choosing the next token: the greedy choice and the step to it, or the few tokens that a draw decides between."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

NOWHERE = tl.constexpr(2147483647)
"""No place of a row."""


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
    place = tl.full((TILE,), NOWHERE, tl.int32)
    for at in range(0, PER_PART, TILE):
        here = first + at + tl.arange(0, TILE)
        value = tl.load(logits + here, mask=here < last, other=float("-inf"))
        better = value > best
        best = tl.where(better, value, best)
        place = tl.where(better, here, place)
    top = tl.max(best, 0)
    tl.store(values + part, top)
    tl.store(places + part, tl.min(tl.where(best == top, place, NOWHERE), 0))


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
    token = tl.min(tl.where(value == tl.max(value, 0), place, NOWHERE), 0)
    # where no logit is a number above -inf
    token = tl.where(token == NOWHERE, 0, token)
    cell = tl.load(cells)
    tl.store(token_ids, token)
    tl.store(chosen + cell % RING, token)
    tl.store(cells, cell + 1)
    tl.store(rope_rows, tl.load(rope_rows) + 1)


@triton.jit
def leaders(
    logits, watched, best, tokens, seen, sums,
    N: tl.constexpr, PARTS: tl.constexpr, BEST: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    WATCHED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The `BEST` largest of each of `PARTS` parts of a row with their places, largest first, of equals the first.

    Beside them the sum of ``exp(logit - largest of the part)``, and the logits of the tokens that are `watched`. Chunks
    of a row are dealt to the parts in turn: tokens that are likely together are often neighbours, and a part must not
    be full of them. What is left of a part that has fewer numbers above -inf is -inf.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    part = tl.program_id(0)
    at = tl.arange(0, TILE)
    here = (at // CHUNK * PARTS + part) * CHUNK + at % CHUNK
    left = tl.load(logits + here, mask=here < N, other=float("-inf"))
    weight = tl.exp(left - tl.max(left, 0))
    tl.store(sums + part, tl.sum(tl.where(left == float("-inf"), 0.0, weight), 0))
    for i in range(BEST):
        largest = tl.max(left, 0)
        place = tl.min(tl.where(left == largest, here, NOWHERE), 0)
        tl.store(best + part * BEST + i, largest)
        tl.store(tokens + part * BEST + i, place)
        left = tl.where(here == place, float("-inf"), left)
    SHARE: tl.constexpr = WATCHED // PARTS
    mine = part * SHARE + tl.arange(0, SHARE)
    tl.store(seen + mine, tl.load(logits + tl.load(watched + mine)))
