"""GPU rotation, cache and attention against float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from block_samples import fresh_rng
from triton_harness import Machine, decode_rows, machine  # noqa: F401  (a fixture)

from airkernels.triton.attention import combine, flash, rope_store, split
from airkernels.triton.layout import RowLayout

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    head_dim: int
    cells: int
    dtype: str

    @property
    def width(self) -> int:
        return max(16, 1 << (self.head_dim - 1).bit_length())


CASES = [Case(6, 2, 20, 16, "float16"), Case(3, 3, 32, 16, "float32"), Case(4, 1, 16, 32, "float16")]
MAX_BLOCKS = 6


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


def attend(q: Doubles, keys: Doubles, values: Doubles, scale: float) -> Doubles:
    """q [n_heads, head_dim] over all cells."""
    group = len(q) // len(keys)
    scores = np.einsum("hd,hcd->hc", q, np.repeat(keys, group, 0)) * scale
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("hc,hcd->hd", weights, np.repeat(values, group, 0))


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
        Q_STRIDE=width, K_STRIDE=width, V_STRIDE=width, MAX_BLOCKS=MAX_BLOCKS, CELLS=case.cells, WIDTH=case.width,
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


@pytest.mark.parametrize("case", CASES)
def test_decode(machine: Machine, case: Case) -> None:  # noqa: F811
    rng, splits = fresh_rng(), 3
    cells = np.array([0, case.cells - 1, 4 * case.cells + 5], np.int32)
    sequences = np.array([1, 0, 1], np.int32)
    cache = Cache(rng, case, 2)
    n_tokens, n = len(cells), case.n_heads * case.head_dim
    q = (rng.standard_normal((n_tokens, n)) * 3).astype(np.float32)
    partial = machine.poisoned(4 * n_tokens * case.n_heads * splits * (case.head_dim + 2), "fp32")
    machine.run(
        split, (case.n_kv_heads, splits, n_tokens), machine.put(q), machine.put(cache.data), machine.put(cells),
        machine.put(sequences), machine.put(cache.table), partial,
        N_HEADS=case.n_heads, N_KV_HEADS=case.n_kv_heads, HEAD_DIM=case.head_dim, SCALE=0.3, Q_STRIDE=n,
        MAX_BLOCKS=MAX_BLOCKS, CELLS=case.cells, SPLITS=splits, GROUP=16, WIDTH=case.width,
    )  # fmt: skip
    layout = RowLayout("f32", n, 1)
    out = machine.poisoned(n_tokens * layout.nbytes, "u32")
    machine.run(
        combine, (n_tokens, 2), partial, out, N=n, HEAD_DIM=case.head_dim, SPLITS=splits,
        OUT_STRIDE=layout.nbytes // 4, KIND="f32", BLOCK=32, PLACES=0, BLOCKS=2,
    )  # fmt: skip
    got = decode_rows(machine.get(out, np.uint8, n_tokens, layout.nbytes), layout)
    for token in range(n_tokens):
        keys, values = cache.keys_values(sequences[token], cache.data)
        seen = cells[token] + 1
        want = attend(q[token].reshape(case.n_heads, -1), keys[:, :seen], values[:, :seen], 0.3)
        np.testing.assert_allclose(got[token], want.reshape(-1), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_prefill(machine: Machine, case: Case) -> None:  # noqa: F811
    rng, n_tokens, start = fresh_rng(), 19, case.cells + 3
    cache = Cache(rng, case, 2)
    n = case.n_heads * case.head_dim
    q = (rng.standard_normal((n_tokens, n)) * 3).astype(np.float32)
    cells = np.arange(start, start + n_tokens).astype(np.int32)
    sequences = np.ones(n_tokens, np.int32)
    out = machine.poisoned(4 * n_tokens * n, "fp32")
    machine.run(
        flash, (2, case.n_heads), machine.put(q), machine.put(cache.data), machine.put(cells),
        machine.put(sequences), machine.put(cache.table), out, n_tokens,
        N_HEADS=case.n_heads, N_KV_HEADS=case.n_kv_heads, HEAD_DIM=case.head_dim, SCALE=0.3, Q_STRIDE=n,
        OUT_STRIDE=n, MAX_BLOCKS=MAX_BLOCKS, CELLS=case.cells, TOKENS=16, WIDTH=case.width,
    )  # fmt: skip
    got = machine.get(out, np.float32, n_tokens, n)
    keys, values = cache.keys_values(1, cache.data)
    for token in range(n_tokens):
        seen = cells[token] + 1
        want = attend(q[token].reshape(case.n_heads, -1).astype(np.float64), keys[:, :seen], values[:, :seen], 0.3)
        np.testing.assert_allclose(got[token], want.reshape(-1), rtol=2e-3, atol=2e-3)
