"""GPU rotation, cache and attention against float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from block_samples import fresh_rng
from reference_functions import alibi_slopes
from triton_harness import Machine, decode_rows, machine  # noqa: F401  (a fixture)

from airkernels.triton.attention import combine, flash, rope, rope_store, split
from airkernels.triton.layout import RowLayout

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    head_dim: int
    cells: int
    dtype: str
    step: int

    @property
    def width(self) -> int:
        return max(16, 1 << (self.head_dim - 1).bit_length())


CASES = [Case(6, 2, 20, 16, "float16", 16), Case(3, 3, 32, 16, "float32", 16), Case(4, 1, 16, 64, "float16", 32)]
MAX_BLOCKS = 6


@dataclass(frozen=True)
class Seen:
    """What a token sees: all before it, or some; and how its scores are bent."""

    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: bool = False

    @property
    def constants(self) -> dict[str, float]:
        return {"WINDOW": self.window, "CHUNK": self.chunk, "SOFTCAP": self.softcap, "ALIBI": self.alibi}

    def attend(self, q: Doubles, keys: Doubles, values: Doubles, cell: int, sinks: Doubles) -> Doubles:
        """q [n_heads, head_dim] of the token at `cell`; keys and values [n_kv_heads, cells, head_dim]."""
        first = max(0, cell - self.window + 1) if self.window else cell - cell % self.chunk if self.chunk else 0
        group = len(q) // len(keys)
        keys, values = (np.repeat(x[:, first : cell + 1], group, 0) for x in (keys, values))
        scores = np.einsum("hd,hcd->hc", q, keys) * SCALE
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if self.alibi:
            scores = scores + alibi_slopes(len(q), self.alibi)[:, None] * (np.arange(first, cell + 1) - cell)
        largest = np.maximum(scores.max(1), sinks if self.sinks else -np.inf)
        weights = np.exp(scores - largest[:, None])
        total = weights.sum(1) + (np.exp(sinks - largest) if self.sinks else 0)
        return np.asarray(np.einsum("hc,hcd->hd", weights / total[:, None], values))


SCALE = 0.3
ALL = Seen()
SEEN = [ALL, Seen(window=21), Seen(window=1), Seen(chunk=24), Seen(softcap=2.5), Seen(alibi=8.0), Seen(sinks=True)]
SEEN += [Seen(window=40, softcap=2.5, sinks=True)]
VARIANTS = [(case, ALL) for case in CASES] + [(CASES[0], seen) for seen in SEEN[1:]] + [(CASES[2], SEEN[-1])]


class Cache:
    """A cache with random contents, and what stands in it in order of cells."""

    def __init__(self, rng: np.random.Generator, case: Case, n_sequences: int) -> None:
        n_blocks = n_sequences * MAX_BLOCKS
        shape = (n_blocks, case.n_kv_heads, 2, case.cells, case.head_dim)
        self.data = rng.standard_normal(shape).astype(case.dtype)
        self.table = rng.permutation(n_blocks).astype(np.int32).reshape(n_sequences, MAX_BLOCKS)

    def keys_values(self, sequence: int, data: npt.NDArray[np.generic]) -> tuple[Doubles, Doubles]:
        """float64 [n_kv_heads, cells, head_dim] each."""
        blocks = data[self.table[sequence]].astype(np.float64)
        merged = blocks.transpose(1, 2, 0, 3, 4).reshape(data.shape[1], 2, -1, data.shape[4])
        return merged[:, 0], merged[:, 1]


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize(("case", "dim"), [(CASES[0], 20), (CASES[0], 12), (CASES[1], 32)])
def test_rotation_and_store(machine: Machine, case: Case, dim: int, neox: bool) -> None:  # noqa: F811
    rng, n_tokens = fresh_rng(), 3
    cache = Cache(rng, case, 2)
    width = (case.n_heads + 2 * case.n_kv_heads) * case.head_dim
    qkv = rng.standard_normal((n_tokens, width)).astype(np.float32)
    pairs = dim // 2 + 3  # more than one table's
    angles = rng.uniform(-3, 3, (5, pairs))
    rope = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    rows = np.array([4, 0, 2], np.int32)
    cells = np.array([0, case.cells - 1, 3 * case.cells + 1], np.int32)
    sequences = np.array([1, 1, 0], np.int32)
    memory, stored = machine.put(qkv), machine.put(cache.data)
    k_at, v_at = case.n_heads * case.head_dim, (case.n_heads + case.n_kv_heads) * case.head_dim
    machine.run(
        rope_store, (n_tokens, case.n_heads + case.n_kv_heads), memory, memory.at(4 * k_at), memory.at(4 * v_at),
        machine.put(rope), machine.put(rows), machine.put(cells), machine.put(sequences), machine.put(cache.table),
        stored, N_HEADS=case.n_heads, N_KV_HEADS=case.n_kv_heads, HEAD_DIM=case.head_dim, DIM=dim, NEOX=neox,
        PAIRS=pairs,
        Q_STRIDE=width, K_STRIDE=width, V_STRIDE=width, MAX_BLOCKS=MAX_BLOCKS, RING=0, CELLS=case.cells,
        WIDTH=case.width,
    )  # fmt: skip

    heads = qkv.astype(np.float64).reshape(n_tokens, -1, case.head_dim)
    turned = heads.copy()
    first, second = (slice(0, dim // 2), slice(dim // 2, dim)) if neox else (slice(0, dim, 2), slice(1, dim, 2))
    c, s = (rope[rows, None, i, : dim // 2].astype(np.float64) for i in (0, 1))
    turned[..., first] = heads[..., first] * c - heads[..., second] * s
    turned[..., second] = heads[..., first] * s + heads[..., second] * c
    got = machine.get(memory, np.float32, n_tokens, width).reshape(heads.shape)
    n = case.n_heads
    np.testing.assert_allclose(got[:, :n], turned[:, :n], rtol=1e-5, atol=1e-6)
    assert (got[:, n:] == qkv.reshape(heads.shape)[:, n:]).all()

    after = machine.get(stored, case.dtype, *cache.data.shape)
    expected = cache.data.astype(np.float64)
    for token in range(n_tokens):
        block, place = cache.table[sequences[token], cells[token] // case.cells], cells[token] % case.cells
        expected[block, :, 0, place] = turned[token, n : n + case.n_kv_heads]
        expected[block, :, 1, place] = heads[token, n + case.n_kv_heads :]
    np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-3)
    assert (after != cache.data).any((1, 2, 4)).sum() == n_tokens


@pytest.mark.parametrize("neox", [False, True])
def test_rotation_alone(machine: Machine, neox: bool) -> None:  # noqa: F811
    rng, n_tokens, n_heads, head_dim, dim, pairs = fresh_rng(), 3, 3, 20, 12, 9
    x = rng.standard_normal((n_tokens, 64)).astype(np.float32)
    angles = rng.uniform(-3, 3, (5, pairs))
    rows = np.array([4, 0, 2], np.int32)
    out = machine.poisoned(4 * n_tokens * 68, "fp32")
    machine.run(
        rope, (n_tokens, n_heads), machine.put(x), machine.put(np.stack([np.cos(angles), np.sin(angles)], 1)
        .astype(np.float32)), machine.put(rows), out,
        HEAD_DIM=head_dim, DIM=dim, NEOX=neox, PAIRS=pairs, IN_STRIDE=64, OUT_STRIDE=68, WIDTH=16,
    )  # fmt: skip
    heads = x[:, : n_heads * head_dim].astype(np.float64).reshape(n_tokens, n_heads, head_dim)
    want = heads.copy()
    first, second = (slice(0, dim // 2), slice(dim // 2, dim)) if neox else (slice(0, dim, 2), slice(1, dim, 2))
    c, s = (f(angles[rows, None, : dim // 2]) for f in (np.cos, np.sin))
    want[..., first] = heads[..., first] * c - heads[..., second] * s
    want[..., second] = heads[..., first] * s + heads[..., second] * c
    got = machine.get(out, np.float32, n_tokens, 68)[:, : n_heads * head_dim]
    np.testing.assert_allclose(got, want.reshape(n_tokens, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("case", "seen"), VARIANTS)
def test_decode(machine: Machine, case: Case, seen: Seen) -> None:  # noqa: F811
    rng, splits = fresh_rng(), 3
    cells = np.array([0, case.cells - 1, 4 * case.cells + 5], np.int32)
    sequences = np.array([1, 0, 1], np.int32)
    cache = Cache(rng, case, 2)
    n_tokens, n = len(cells), case.n_heads * case.head_dim
    q = (rng.standard_normal((n_tokens, n)) * 3).astype(np.float32)
    sinks = rng.standard_normal(case.n_heads).astype(np.float32) * 3
    partial = machine.poisoned(4 * n_tokens * case.n_heads * splits * (case.head_dim + 2), "fp32")
    machine.run(
        split, (case.n_kv_heads, splits, n_tokens), machine.put(q), machine.put(cache.data), machine.put(cells),
        machine.put(sequences), machine.put(cache.table), partial,
        N_HEADS=case.n_heads, N_KV_HEADS=case.n_kv_heads, HEAD_DIM=case.head_dim, SCALE=SCALE, Q_STRIDE=n,
        MAX_BLOCKS=MAX_BLOCKS, RING=0, CELLS=case.cells, STEP=case.step, SPLITS=splits, GROUP=16, WIDTH=case.width,
        **seen.constants,
    )  # fmt: skip
    layout = RowLayout("f32", n, 1)
    out = machine.poisoned(n_tokens * layout.nbytes, "u32")
    machine.run(
        combine, (n_tokens, 2), partial, machine.put(sinks), out, N=n, HEAD_DIM=case.head_dim, SPLITS=splits,
        SINKS=seen.sinks, OUT_STRIDE=layout.nbytes // 4, KIND="f32", BLOCK=32, PLACES=0, BLOCKS=2,
    )  # fmt: skip
    got = decode_rows(machine.get(out, np.uint8, n_tokens, layout.nbytes), layout)
    for token in range(n_tokens):
        keys, values = cache.keys_values(sequences[token], cache.data)
        queries = q[token].reshape(case.n_heads, -1).astype(np.float64)
        want = seen.attend(queries, keys, values, cells[token], sinks.astype(np.float64))
        np.testing.assert_allclose(got[token], want.reshape(-1), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("case", "seen"), VARIANTS)
def test_prefill(machine: Machine, case: Case, seen: Seen) -> None:  # noqa: F811
    rng, n_tokens, start = fresh_rng(), 19, 2 * case.cells + 3
    cache = Cache(rng, case, 2)
    n = case.n_heads * case.head_dim
    q = (rng.standard_normal((n_tokens, n)) * 3).astype(np.float32)
    sinks = rng.standard_normal(case.n_heads).astype(np.float32) * 3
    cells = np.arange(start, start + n_tokens).astype(np.int32)
    sequences = np.ones(n_tokens, np.int32)
    out = machine.poisoned(4 * n_tokens * n, "fp32")
    machine.run(
        flash, (2, case.n_heads), machine.put(q), machine.put(cache.data), machine.put(cells),
        machine.put(sequences), machine.put(cache.table), machine.put(sinks), out, n_tokens,
        N_HEADS=case.n_heads, N_KV_HEADS=case.n_kv_heads, HEAD_DIM=case.head_dim, SCALE=SCALE, SINKS=seen.sinks,
        Q_STRIDE=n, OUT_STRIDE=n, MAX_BLOCKS=MAX_BLOCKS, RING=0, CELLS=case.cells, STEP=case.step, TOKENS=16,
        WIDTH=case.width, **seen.constants,
    )  # fmt: skip
    got = machine.get(out, np.float32, n_tokens, n)
    keys, values = cache.keys_values(1, cache.data)
    for token in range(n_tokens):
        queries = q[token].reshape(case.n_heads, -1).astype(np.float64)
        want = seen.attend(queries, keys, values, cells[token], sinks.astype(np.float64))
        np.testing.assert_allclose(got[token], want.reshape(-1), rtol=2e-3, atol=2e-3)


def test_a_ring_is_gone_round(machine: Machine) -> None:  # noqa: F811
    """Keys and values written block by block through three blocks, of which attention sees the last two."""
    rng, case, ring, splits = fresh_rng(), CASES[0], 3, 2
    seen, n_tokens, n = Seen(window=2 * case.cells - 3), 5 * case.cells + 3, case.n_heads * case.head_dim
    width = (case.n_heads + 2 * case.n_kv_heads) * case.head_dim
    qkv = rng.standard_normal((n_tokens, width)).astype(np.float32)
    shape = (ring, case.n_kv_heads, 2, case.cells, case.head_dim)
    stored, memory = machine.put(np.zeros(shape, np.float16)), machine.put(qkv)
    # the entries in front are those of caches that do not go round
    table = machine.put(np.array([9, 9, *rng.permutation(ring)], np.int32))
    common = {"N_HEADS": case.n_heads, "N_KV_HEADS": case.n_kv_heads, "HEAD_DIM": case.head_dim, "WIDTH": case.width}
    common |= {"MAX_BLOCKS": 2 + ring, "RING": ring, "CELLS": case.cells, "Q_STRIDE": width}
    zeros = machine.put(np.zeros(case.cells, np.int32))
    k_at, v_at = n, n + case.n_kv_heads * case.head_dim
    cells = machine.put(np.arange(n_tokens, dtype=np.int32))
    for first in range(0, n_tokens, case.cells):
        row, cell = memory.at(4 * width * first), cells.at(4 * first)
        machine.run(
            rope_store, (min(case.cells, n_tokens - first), case.n_heads + case.n_kv_heads), row, row.at(4 * k_at),
            row.at(4 * v_at), machine.put(np.zeros(1, np.float32)), zeros, cell, zeros, table, stored,
            DIM=0, NEOX=False, PAIRS=0, K_STRIDE=width, V_STRIDE=width, **common,
        )  # fmt: skip
    row, cell = memory.at(4 * width * (n_tokens - 1)), cells.at(4 * (n_tokens - 1))
    partial = machine.poisoned(4 * case.n_heads * splits * (case.head_dim + 2), "fp32")
    machine.run(
        split, (case.n_kv_heads, splits, 1), row, stored, cell, zeros, table, partial,
        SCALE=SCALE, STEP=case.step, SPLITS=splits, GROUP=16, **common, **seen.constants,
    )  # fmt: skip
    out = machine.poisoned(4 * -(-n // 16) * 16, "u32")
    machine.run(
        combine, (1, 2), partial, partial, out, N=n, HEAD_DIM=case.head_dim, SPLITS=splits, SINKS=False,
        OUT_STRIDE=n, KIND="f32", BLOCK=32, PLACES=0, BLOCKS=2,
    )  # fmt: skip
    q, k, v = np.split(qkv.astype(np.float64), (k_at, v_at), 1)
    keys, values = (x.reshape(n_tokens, case.n_kv_heads, -1).transpose(1, 0, 2) for x in (k, v))
    want = seen.attend(q[-1].reshape(case.n_heads, -1), keys, values, n_tokens - 1, np.zeros(case.n_heads))
    np.testing.assert_allclose(machine.get(out, np.float32, n), want.reshape(-1), rtol=2e-2, atol=2e-3)
