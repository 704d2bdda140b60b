"""Rotary positions, the KV cache on the device, and attention over it.

A block of the cache holds, per KV head, keys [cells, head_dim] and then values [cells, head_dim]; a sequence's row of
the block table names its blocks in order. Scores are tensor core products with float32 sums; a float32 factor of a
half-precision product is split into a high and a low half, so that nothing is lost but what the cache's type lost.

A token sees the cells from `_first_seen` to its own; a cache that goes round in `RING` blocks names these at the end of
a row of the block table. Scores are in base 2. The context is gone through by `STEP` cells, a whole part of a block.

`split` and `combine` are flash decoding (Dao et al. 2023): the context of a token is divided between programs whose
partial softmaxes are merged; `flash` is FlashAttention 2 (Dao 2023) for the tokens of one sequence.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from airkernels.triton.functions import softcap
from airkernels.triton.rows import store_row
from airkernels.triton.tiles import device

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rope_store(
    q, k, v, rope, rope_rows, cells, sequences, block_table, cache,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, NEOX: tl.constexpr,
    PAIRS: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    MAX_BLOCKS: tl.constexpr, RING: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
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
    cosine, sine, first, second = _angles(rope, rope_rows, token, DIM, NEOX, PAIRS, WIDTH)
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
        block = tl.load(table + _place(cell // CELLS, MAX_BLOCKS, RING)).to(tl.int64)
        keys = cache + (block * N_KV_HEADS + kv_head) * (2 * CELLS * HEAD_DIM) + (cell % CELLS) * HEAD_DIM
        values = keys + CELLS * HEAD_DIM
        kind = cache.dtype.element_ty
        tl.store(keys + first, (a * cosine - b * sine).to(kind), mask=has_first)
        tl.store(keys + second, (a * sine + b * cosine).to(kind), mask=has_second)
        tl.store(values + first, c.to(kind), mask=has_first)
        tl.store(values + second, d.to(kind), mask=has_second)


@triton.jit
def rope(
    x, angles, rope_rows, out,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, NEOX: tl.constexpr, PAIRS: tl.constexpr,
    IN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rotated copies of heads. Programs are (token, head); the rest is as for `rope_store`."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0)
    head = tl.program_id(1) * HEAD_DIM
    cosine, sine, first, second = _angles(angles, rope_rows, token, DIM, NEOX, PAIRS, WIDTH)
    row = token.to(tl.int64)
    source = x + row * IN_STRIDE + head
    target = out + row * OUT_STRIDE + head
    a = tl.load(source + first, mask=first < HEAD_DIM, other=0.0)
    b = tl.load(source + second, mask=second < HEAD_DIM, other=0.0)
    tl.store(target + first, a * cosine - b * sine, mask=first < HEAD_DIM)
    tl.store(target + second, a * sine + b * cosine, mask=second < HEAD_DIM)


@triton.jit
def _angles(rope, rope_rows, token, DIM: tl.constexpr, NEOX: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    """Cosines and sines of the pairs of a head, and which elements they are; those that do not turn, too."""
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
    return cosine, sine, first, second


@triton.jit
def split(
    q, cache, cells, sequences, block_table, partial,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    Q_STRIDE: tl.constexpr, MAX_BLOCKS: tl.constexpr, RING: tl.constexpr, CELLS: tl.constexpr, STEP: tl.constexpr,
    SPLITS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attention of one token to one of `SPLITS` parts of its context. Programs are (KV head, split, token).

    partial: float32 [token, head, split, HEAD_DIM + 2]: unnormalized output, largest score, sum of weights.
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
    cell = tl.load(cells + token)
    start = _first_seen(cell, WINDOW, CHUNK) // STEP
    stop = cell // STEP + 1
    per_split = tl.cdiv(stop - start, SPLITS)
    first = start + part * per_split
    last = tl.minimum(first + per_split, stop)
    table = block_table + tl.load(sequences + token).to(tl.int64) * MAX_BLOCKS
    inside = (member[:, None] < HEADS) & (d[None, :] < HEAD_DIM)
    at = token.to(tl.int64) * Q_STRIDE + head[:, None] * HEAD_DIM + d[None, :]
    queries = _scaled(tl.load(q + at, mask=inside, other=0.0), SCALE, SOFTCAP)
    slope = _slope(head, N_HEADS, ALIBI)
    limit = cell + tl.zeros((GROUP,), tl.int32)
    largest = tl.full((GROUP,), -1.0e30, tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    out = tl.zeros((GROUP, WIDTH), tl.float32)
    for i in range(first, last):
        keys, values = _block(cache, table, i, kv_head, N_KV_HEADS, HEAD_DIM, MAX_BLOCKS, RING, CELLS, STEP, WIDTH)
        scores = _scores(_dot(queries, tl.trans(keys), True), i, limit, slope, WINDOW, CHUNK, SOFTCAP, ALIBI, STEP)
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(largest - highest)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + _dot(weights, values, True)
        largest = highest
    row = (token.to(tl.int64) * N_HEADS + head) * SPLITS + part
    target = partial + row * (HEAD_DIM + 2)
    tl.store(target[:, None] + d[None, :], out, mask=inside)
    tl.store(target + HEAD_DIM, largest, mask=member < HEADS)
    tl.store(target + HEAD_DIM + 1, total, mask=member < HEADS)


@triton.jit
def combine(
    partial, sinks, out,
    N: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr, OUT_STRIDE: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merge the splits of all heads into a row of `KIND` (`N` = heads * HEAD_DIM). Programs are (token, blocks).

    sinks, where there are `SINKS`: a score per head (base e) that takes part without a value.
    """
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
    if SINKS:
        sink = tl.load(sinks + index // HEAD_DIM, mask=exists, other=-1.0e30) * LOG2E
        largest = tl.maximum(largest, sink)
        total += tl.exp2(sink - largest)
    value = tl.zeros((BLOCKS, BLOCK // 32, 32), tl.float32)
    for part in tl.static_range(SPLITS):
        at = start + part * (HEAD_DIM + 2)
        weight = tl.exp2(tl.load(at + HEAD_DIM, mask=exists, other=-1.0e30) - largest)
        total += weight * tl.load(at + HEAD_DIM + 1, mask=exists, other=0.0)
        value += weight * tl.load(at + index % HEAD_DIM, mask=exists, other=0.0)
    value = tl.where(exists, value / total, 0.0)
    store_row(out + token * OUT_STRIDE, value, first, N, KIND, BLOCK, PLACES, BLOCKS)


@triton.jit
def flash(
    q, cache, cells, sequences, block_table, sinks, out, n_tokens,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    Q_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, MAX_BLOCKS: tl.constexpr, RING: tl.constexpr,
    CELLS: tl.constexpr, STEP: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
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
    queries = _scaled(tl.load(q + at, mask=inside, other=0.0), SCALE, SOFTCAP)
    slope = _slope(head + tl.zeros((TOKENS,), tl.int32), N_HEADS, ALIBI)
    total = tl.zeros((TOKENS,), tl.float32)
    if SINKS:
        largest = total + tl.load(sinks + head) * LOG2E
        total += 1.0
    else:
        largest = tl.full((TOKENS,), -1.0e30, tl.float32)
    acc = tl.zeros((TOKENS, WIDTH), tl.float32)
    # what a token does not see of the first step is weighed against nothing yet; its first real score takes that away
    for i in range(_first_seen(tl.min(cell, 0), WINDOW, CHUNK) // STEP, tl.max(cell, 0) // STEP + 1):
        keys, values = _block(cache, table, i, kv_head, N_KV_HEADS, HEAD_DIM, MAX_BLOCKS, RING, CELLS, STEP, WIDTH)
        scores = _scores(_dot(queries, tl.trans(keys), True), i, cell, slope, WINDOW, CHUNK, SOFTCAP, ALIBI, STEP)
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(largest - highest)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + _dot(weights, values, False)
        largest = highest
    target = out + token.to(tl.int64)[:, None] * OUT_STRIDE + head * HEAD_DIM + d[None, :]
    tl.store(target, acc / total[:, None], mask=inside & (token[:, None] < n_tokens))


@triton.jit
def _first_seen(cell, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first cell that the token at `cell` sees."""
    if WINDOW > 0:
        first = tl.maximum(cell - (WINDOW - 1), 0)
    elif CHUNK > 0:
        first = cell // CHUNK * CHUNK
    else:
        first = cell * 0
    return first


@triton.jit
def _scaled(queries, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """Queries whose products are scores: in base 2, but before a cap in base e."""
    return queries * (SCALE if SOFTCAP > 0 else SCALE * LOG2E)


@triton.jit
def _slope(head, N_HEADS: tl.constexpr, ALIBI: tl.constexpr):
    """ALiBi's slope of heads, in base 2: powers of 2^(-ALIBI / m) for the first m heads, m the largest power of two
    among them; the odd powers of its root for the rest (Press et al. 2021)."""
    m: tl.constexpr = _largest_power(N_HEADS)
    power = tl.where(head < m, (head + 1) / m, (2 * (head - m) + 1) / (2 * m))
    return tl.exp2(-ALIBI * power) * LOG2E


@triton.jit
def _scores(
    products, i, limit, slope,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Scores of the cells of step `i` for rows whose tokens stand at `limit`; very low where they do not see them."""
    cell = (i * STEP + tl.arange(0, STEP))[None, :]
    scores = products
    if SOFTCAP > 0:
        scores = softcap(scores, SOFTCAP) * LOG2E
    if ALIBI > 0:
        scores += slope[:, None] * (cell - limit[:, None]).to(tl.float32)
    seen = (cell <= limit[:, None]) & (cell >= _first_seen(limit, WINDOW, CHUNK)[:, None])
    return tl.where(seen, scores, -1.0e30)


@triton.jit
def _place(block, MAX_BLOCKS: tl.constexpr, RING: tl.constexpr):
    """Where a row of the block table names block number `block` of a sequence."""
    if RING > 0:
        block = MAX_BLOCKS - RING + block % RING
    return block


@triton.jit
def _block(
    cache, table, i, kv_head,
    N_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, MAX_BLOCKS: tl.constexpr, RING: tl.constexpr,
    CELLS: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Keys and values [STEP, WIDTH] of a head in step `i` of a sequence."""
    PARTS: tl.constexpr = CELLS // STEP
    d = tl.arange(0, WIDTH)
    number = tl.load(table + _place(i // PARTS, MAX_BLOCKS, RING)).to(tl.int64)
    start = (number * N_KV_HEADS + kv_head) * (2 * CELLS * HEAD_DIM) + i % PARTS * (STEP * HEAD_DIM)
    at = cache + start + tl.arange(0, STEP)[:, None] * HEAD_DIM + d[None, :]
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


@device
def _largest_power(n: int, _semantic: Any = None) -> Any:
    """The largest power of two up to `n`."""
    return tl.constexpr(1 << (n.bit_length() - 1))
