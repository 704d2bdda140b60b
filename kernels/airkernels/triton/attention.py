"""Rotary positions, the KV cache on the device, and attention over it.

A block of the cache holds, per KV head, keys [cells, head_dim] and then values [cells, head_dim]; a sequence's row of
the block table names its blocks in order. Scores are tensor core products with float32 sums; a float32 factor of a
half-precision product is split into a high and a low half, so that nothing is lost but what the cache's type lost.

`split` and `combine` are flash decoding (Dao et al. 2023): the context of a token is divided between programs whose
partial softmaxes are merged; `flash` is FlashAttention 2 (Dao 2023) for the tokens of one sequence.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from airkernels.triton.rows import _store_row

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rope_store(
    q, k, v, rope, rope_rows, cells, sequences, block_table, cache,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, NEOX: tl.constexpr,
    PAIRS: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    MAX_BLOCKS: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rotate queries in place; rotate keys and put keys and values into the cache.

    Programs are (token, head), query heads before KV heads. q, k, v: float32; rope: float32 [rows, 2, PAIRS], cosines
    then sines, of which a token uses row `rope_rows`, the first DIM / 2 pairs. `WIDTH` is a power of two, at
    least half a head.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0)
    head = tl.program_id(1)
    pair = tl.arange(0, WIDTH)
    turning = pair < DIM // 2
    angles = rope + tl.load(rope_rows + token).to(tl.int64) * (2 * PAIRS) + pair
    cosine = tl.load(angles, mask=turning, other=1.0)
    sine = tl.load(angles + PAIRS, mask=turning, other=0.0)
    # beyond the part that turns, a pair is two neighbours
    if NEOX:
        first = tl.where(turning, pair, DIM + 2 * (pair - DIM // 2))
        second = tl.where(turning, pair + DIM // 2, first + 1)
    else:
        first = 2 * pair
        second = first + 1
    has_first = first < HEAD_DIM
    has_second = second < HEAD_DIM
    row = token.to(tl.int64)
    if head < N_HEADS:
        x = q + row * Q_STRIDE + head * HEAD_DIM
        a = tl.load(x + first, mask=has_first, other=0.0)
        b = tl.load(x + second, mask=has_second, other=0.0)
        tl.store(x + first, a * cosine - b * sine, mask=has_first)
        tl.store(x + second, a * sine + b * cosine, mask=has_second)
    else:
        kv_head = head - N_HEADS
        x = k + row * K_STRIDE + kv_head * HEAD_DIM
        a = tl.load(x + first, mask=has_first, other=0.0)
        b = tl.load(x + second, mask=has_second, other=0.0)
        y = v + row * V_STRIDE + kv_head * HEAD_DIM
        c = tl.load(y + first, mask=has_first, other=0.0)
        d = tl.load(y + second, mask=has_second, other=0.0)
        cell = tl.load(cells + token)
        table = block_table + tl.load(sequences + token).to(tl.int64) * MAX_BLOCKS
        block = tl.load(table + cell // CELLS).to(tl.int64)
        keys = cache + (block * N_KV_HEADS + kv_head) * (2 * CELLS * HEAD_DIM) + (cell % CELLS) * HEAD_DIM
        values = keys + CELLS * HEAD_DIM
        kind = cache.dtype.element_ty
        tl.store(keys + first, (a * cosine - b * sine).to(kind), mask=has_first)
        tl.store(keys + second, (a * sine + b * cosine).to(kind), mask=has_second)
        tl.store(values + first, c.to(kind), mask=has_first)
        tl.store(values + second, d.to(kind), mask=has_second)


@triton.jit
def split(
    q, cache, cells, sequences, block_table, partial,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    Q_STRIDE: tl.constexpr, MAX_BLOCKS: tl.constexpr, CELLS: tl.constexpr, SPLITS: tl.constexpr,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attention of one token to one of `SPLITS` parts of its context. Programs are (KV head, split, token).

    partial: float32 [token, head, split, HEAD_DIM + 2]: unnormalized output, largest score (base 2), sum of weights.
    `GROUP` is the query heads of a KV head as a power of two of at least 16, `WIDTH` the head likewise.
    """
    HEADS: tl.constexpr = N_HEADS // N_KV_HEADS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    kv_head = tl.program_id(0)
    part = tl.program_id(1)
    token = tl.program_id(2)
    member = tl.arange(0, GROUP)
    d = tl.arange(0, WIDTH)
    head = kv_head * HEADS + member
    n = tl.load(cells + token) + 1
    per_split = tl.cdiv(tl.cdiv(n, CELLS), SPLITS)
    first = part * per_split
    last = tl.minimum(first + per_split, tl.cdiv(n, CELLS))
    table = block_table + tl.load(sequences + token).to(tl.int64) * MAX_BLOCKS
    inside = (member[:, None] < HEADS) & (d[None, :] < HEAD_DIM)
    at = token.to(tl.int64) * Q_STRIDE + head[:, None] * HEAD_DIM + d[None, :]
    queries = tl.load(q + at, mask=inside, other=0.0) * (SCALE * LOG2E)
    largest = tl.full((GROUP,), -1.0e30, tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    out = tl.zeros((GROUP, WIDTH), tl.float32)
    for i in range(first, last):
        keys, values = _block(cache, table, i, kv_head, N_KV_HEADS, HEAD_DIM, CELLS, WIDTH)
        scores = _dot(queries, tl.trans(keys), True)
        cell = i * CELLS + tl.arange(0, CELLS)
        scores = tl.where(cell[None, :] < n, scores, -1.0e30)
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(largest - highest)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + _dot(weights, values, True)
        largest = highest
    row = (token.to(tl.int64) * N_HEADS + head) * SPLITS + part
    start = partial + row * (HEAD_DIM + 2)
    tl.store(start[:, None] + d[None, :], out, mask=inside)
    tl.store(start + HEAD_DIM, largest, mask=member < HEADS)
    tl.store(start + HEAD_DIM + 1, total, mask=member < HEADS)


@triton.jit
def combine(
    partial, out,
    N: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr, OUT_STRIDE: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merge the splits of all heads into a row of `KIND` (`N` = heads * HEAD_DIM). Programs are (token, blocks)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCKS
    block = (first + tl.arange(0, BLOCKS))[:, None, None]
    index = block * BLOCK + (32 * tl.arange(0, BLOCK // 32))[None, :, None] + tl.arange(0, 32)[None, None, :]
    exists = index < N
    start = partial + (token * (N // HEAD_DIM) + index // HEAD_DIM) * (SPLITS * (HEAD_DIM + 2))
    largest = tl.full((BLOCKS, BLOCK // 32, 32), -1.0e30, tl.float32)
    for part in tl.static_range(SPLITS):
        score = tl.load(start + part * (HEAD_DIM + 2) + HEAD_DIM, mask=exists, other=-1.0e30)
        largest = tl.maximum(largest, score)
    total = tl.zeros((BLOCKS, BLOCK // 32, 32), tl.float32)
    value = tl.zeros((BLOCKS, BLOCK // 32, 32), tl.float32)
    for part in tl.static_range(SPLITS):
        at = start + part * (HEAD_DIM + 2)
        weight = tl.exp2(tl.load(at + HEAD_DIM, mask=exists, other=-1.0e30) - largest)
        total += weight * tl.load(at + HEAD_DIM + 1, mask=exists, other=0.0)
        value += weight * tl.load(at + index % HEAD_DIM, mask=exists, other=0.0)
    value = tl.where(exists, value / total, 0.0)
    _store_row(out + token * OUT_STRIDE, value, first, N, KIND, BLOCK, PLACES, BLOCKS)


@triton.jit
def flash(
    q, cache, cells, sequences, block_table, out, n_tokens,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    Q_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, MAX_BLOCKS: tl.constexpr, CELLS: tl.constexpr,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Causal attention of neighbouring tokens of one sequence; out float32. Programs are (tile of tokens, head)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    # the last tiles see the most cells: they start first
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * TOKENS
    head = tl.program_id(1)
    kv_head = head // (N_HEADS // N_KV_HEADS)
    token = first + tl.arange(0, TOKENS)
    d = tl.arange(0, WIDTH)
    row = tl.minimum(token, n_tokens - 1)
    cell = tl.load(cells + row)
    table = block_table + tl.load(sequences + first).to(tl.int64) * MAX_BLOCKS
    inside = d[None, :] < HEAD_DIM
    at = row.to(tl.int64)[:, None] * Q_STRIDE + head * HEAD_DIM + d[None, :]
    queries = tl.load(q + at, mask=inside, other=0.0) * (SCALE * LOG2E)
    largest = tl.full((TOKENS,), -1.0e30, tl.float32)
    total = tl.zeros((TOKENS,), tl.float32)
    acc = tl.zeros((TOKENS, WIDTH), tl.float32)
    for i in range(tl.max(cell, 0) // CELLS + 1):
        keys, values = _block(cache, table, i, kv_head, N_KV_HEADS, HEAD_DIM, CELLS, WIDTH)
        scores = _dot(queries, tl.trans(keys), True)
        place = i * CELLS + tl.arange(0, CELLS)
        scores = tl.where(place[None, :] <= cell[:, None], scores, -1.0e30)
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(largest - highest)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + _dot(weights, values, False)
        largest = highest
    target = out + token.to(tl.int64)[:, None] * OUT_STRIDE + head * HEAD_DIM + d[None, :]
    tl.store(target, acc / total[:, None], mask=inside & (token[:, None] < n_tokens))


@triton.jit
def _block(
    cache, table, i, kv_head,
    N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Keys and values [CELLS, WIDTH] of a head in block number `i` of a sequence."""
    d = tl.arange(0, WIDTH)
    start = (tl.load(table + i).to(tl.int64) * N_KV_HEADS + kv_head) * (2 * CELLS * HEAD_DIM)
    at = cache + start + tl.arange(0, CELLS)[:, None] * HEAD_DIM + d[None, :]
    if WIDTH == HEAD_DIM:
        keys = tl.load(at)
        values = tl.load(at + CELLS * HEAD_DIM)
    else:
        keys = tl.load(at, mask=d[None, :] < HEAD_DIM, other=0.0)
        values = tl.load(at + CELLS * HEAD_DIM, mask=d[None, :] < HEAD_DIM, other=0.0)
    return keys, values


@triton.jit
def _dot(a, b, EXACT: tl.constexpr):
    """``a @ b`` for float32 `a` and `b` as the cache has it; `EXACT` keeps all bits of `a` where `b` is halves."""
    if b.dtype == tl.float32:
        product = tl.dot(a, b, input_precision="tf32x3")
    else:
        high = a.to(tl.float16)
        product = tl.dot(high, b)
        if EXACT:
            product += tl.dot((a - high.to(tl.float32)).to(tl.float16), b)
    return product
