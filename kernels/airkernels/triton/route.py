"""Routers: the best experts of each token and their weights, from logits."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOWEST = tl.constexpr(-3.4e38)
"""Ranks of experts that cannot be chosen (any more)."""

LEAST_SUM = tl.constexpr(1e-20)
"""Of weights that are divided by it."""


@triton.jit
def route(
    logits, bias, scales, numbers, weights,
    N_EXPERTS: tl.constexpr, N_USED: tl.constexpr, SOFTMAX: tl.constexpr, NORMALIZE: tl.constexpr, SCALE: tl.constexpr,
    BIAS: tl.constexpr, SCALES: tl.constexpr, N_GROUPS: tl.constexpr, N_GROUPS_USED: tl.constexpr,
    GROUP_BEST: tl.constexpr, IN_STRIDE: tl.constexpr, NUMBERS_STRIDE: tl.constexpr, WEIGHTS_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, GROUPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As ``aircompile.operators.Route`` describes it; programs are tokens. numbers: int32; all else: float32.

    WIDTH, SLOTS and GROUPS are the experts, those used, and the groups, as powers of two.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, WIDTH)
    exists = expert < N_EXPERTS
    x = tl.load(logits + token * IN_STRIDE + expert, mask=exists, other=LOWEST)
    if SOFTMAX:
        shifted = tl.where(exists, tl.exp(x - tl.max(x, 0)), 0.0)
        scores = shifted / tl.sum(shifted, 0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-x))
    # scores rise with logits, but as floats some that differ may become equal
    ranks = x
    if BIAS:
        ranks = scores + tl.load(bias + expert, mask=exists, other=0.0)
    elif N_GROUPS > 1:
        ranks = scores
    ranks = tl.where(exists, ranks, LOWEST)
    if N_GROUPS_USED < N_GROUPS:
        ranks = _leave_best_groups(ranks, expert, N_EXPERTS // N_GROUPS, N_GROUPS, N_GROUPS_USED, GROUP_BEST, GROUPS)
    slot = tl.arange(0, SLOTS)
    chosen = tl.zeros((SLOTS,), tl.int32)
    weight = tl.zeros((SLOTS,), tl.float32)
    for i in range(N_USED):
        best = tl.argmax(ranks, 0)
        chosen = tl.where(slot == i, best, chosen)
        weight = tl.where(slot == i, tl.sum(tl.where(expert == best, scores, 0.0), 0), weight)
        ranks = tl.where(expert == best, LOWEST, ranks)
    if NORMALIZE:
        weight = weight / tl.maximum(tl.sum(weight, 0), LEAST_SUM)
    weight = weight * SCALE
    used = slot < N_USED
    if SCALES:
        weight = weight * tl.load(scales + chosen, mask=used, other=0.0)
    tl.store(numbers + token * NUMBERS_STRIDE + slot, chosen, mask=used)
    tl.store(weights + token * WEIGHTS_STRIDE + slot, weight, mask=used)


@triton.jit
def _leave_best_groups(
    ranks, expert, SIZE: tl.constexpr, N_GROUPS: tl.constexpr, N_GROUPS_USED: tl.constexpr, GROUP_BEST: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Ranks with the lowest for experts outside the best groups; a group is as good as the sum of its best experts."""
    group = tl.arange(0, GROUPS)
    good = tl.where(group < N_GROUPS, 0.0, LOWEST)
    for number in range(N_GROUPS):
        spare = tl.where(expert // SIZE == number, ranks, LOWEST)
        for _ in tl.static_range(GROUP_BEST):
            best = tl.argmax(spare, 0)
            good += tl.where(group == number, tl.max(spare, 0), 0.0)
            spare = tl.where(expert == best, LOWEST, spare)
    kept = ranks * 0.0
    for _ in range(N_GROUPS_USED):
        best = tl.argmax(good, 0)
        kept = tl.where(expert // SIZE == best, 1.0, kept)
        good = tl.where(group == best, LOWEST, good)
    return tl.where(kept > 0, ranks, LOWEST)
