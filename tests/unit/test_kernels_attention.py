"""Rotary positions, the KV cache and attention, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from cache_rows import as_floats, as_rows, filled_blocks, hadamard, is_spread, read_cache, read_rows
from kernel_harness import EPS, LEVELS, Bytes, Doubles, Floats, Kernels, Memory, vector_isa
from reference_functions import alibi_slopes

from airkernels.cpu.attention import attention, attention_parts, merge_parts, scratch_nbytes
from airkernels.cpu.attention_pass import AttentionShape
from airkernels.cpu.cache import BLOCK_CELLS, BlockTable, CacheLayout
from airkernels.cpu.hadamard import spread_rows
from airkernels.cpu.rope import RopeShape, rope_store

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N_BLOCKS, MAX_BLOCKS = 9, 4


@dataclass(frozen=True)
class Heads:
    """A model's attention: `dim` of `head_dim` elements rotate, the cache has rows of formats `keys` and `values`, and
    so many heads share a task of one token, whose cells are in `parts`; the last fields are those of `AttentionShape`.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    dim: int
    mode: str
    keys: str
    values: str
    together: int = 1
    parts: int = 1
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: bool = False

    @property
    def cache(self) -> CacheLayout:
        return CacheLayout(self.n_kv_heads, self.head_dim, self.v_dim, self.keys, self.values, BlockTable(MAX_BLOCKS))

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def k_width(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def v_width(self) -> int:
        return self.n_kv_heads * self.v_dim

    @property
    def out_width(self) -> int:
        return self.n_heads * self.v_dim

    def heads_of(self, name: str) -> int:
        """Heads that share a task of the kernel `name`."""
        return self.together if SHAPES[name] == (1, 1) else 1

    def shape(self, name: str) -> AttentionShape:
        """That of the kernel `name`."""
        strides = self.stride, self.out_width + 3
        return AttentionShape(
            *(self.n_heads, self.head_dim**-0.5, *strides, *SHAPES[name], self.heads_of(name), self.parts),
            *(self.window, self.chunk, self.softcap, self.alibi, self.sinks),
        )

    @property
    def sink_scores(self) -> Floats:
        return np.linspace(-1, 2, self.n_heads, dtype=np.float32)

    def visible(self, cell: int) -> Any:
        """Whether a token in `cell` sees each cell up to its own."""
        cells = np.arange(cell + 1)
        seen = np.ones(cell + 1, bool)
        if self.window:
            seen &= cell - cells < self.window
        if self.chunk:
            seen &= cells // self.chunk == cell // self.chunk
        return seen

    @property
    def stride(self) -> int:
        """Floats between tokens of q, k and v side by side: odd, so that rows lie at any alignment."""
        return self.q_width + self.k_width + self.v_width + 5


MODELS = {
    "grouped": Heads(9, 3, 64, 64, 64, "normal", "F16", "F16", 3, 2),
    "multi": Heads(3, 3, 48, 48, 32, "neox", "F32", "F32"),
    "single": Heads(12, 1, 80, 80, 80, "neox", "F16", "F16", 12),
    "odd": Heads(2, 1, 18, 18, 10, "normal", "F32", "F32", 2, 4),
    "windowed": Heads(4, 2, 32, 32, 32, "neox", "F32", "F32", 2, 2, window=40, softcap=5.0),
    "chunked": Heads(4, 2, 32, 48, 16, "normal", "F32", "F32", parts=2, chunk=50),
    "biased": Heads(6, 3, 32, 16, 0, "normal", "F16", "F16", 2, 3, alibi=8.0),
    "sinking": Heads(4, 2, 16, 16, 16, "neox", "F32", "F32", 2, 2, window=64, sinks=True),
    "bytes": Heads(8, 2, 64, 96, 32, "neox", "Q8_0", "Q8_0", 4, 3),
    "nibbles": Heads(6, 2, 96, 32, 96, "normal", "Q4_0", "Q4_0", 3, 2, softcap=20.0, sinks=True),
    "bytes_and_nibbles": Heads(4, 4, 32, 64, 0, "normal", "Q8_0", "Q4_0", window=70, alibi=4.0),
    "floats_and_bytes": Heads(2, 1, 40, 32, 20, "neox", "F16", "Q8_0", 2),
}
# tokens of a task, and of a pass over the cache; "alone" is one in which heads share it, as they do in "split", which
# has a task for each part
SHAPES = {"alone": (1, 1), "split": (1, 1), "pairs": (8, 2), "eights": (8, 8)}


@dataclass
class Batch:
    """Tokens of several sequences, each at some place in its own blocks."""

    cells: Any
    sequences: Any
    table: Any

    @classmethod
    def of(cls, rng: np.random.Generator, lengths: list[tuple[int, int]]) -> Batch:
        """`lengths`: first cell and number of tokens of each sequence; blocks are dealt out at random."""
        cells = np.concatenate([np.arange(first, first + n) for first, n in lengths])
        sequences = np.repeat(np.arange(len(lengths)), [n for _, n in lengths])
        order = list(rng.permutation(N_BLOCKS))
        table = np.full((len(lengths), MAX_BLOCKS), N_BLOCKS - 1)
        for row, (first, n) in enumerate(lengths):
            for i in range(-(-(first + n) // BLOCK_CELLS)):
                table[row, i] = order.pop()
        return cls(cells.astype(np.int32), sequences.astype(np.int32), table.astype(np.int32))

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.cells[part], self.sequences[part], self.table)

    @property
    def n(self) -> int:
        return len(self.cells)

    @property
    def memory(self) -> list[Memory]:
        return [Memory(self.cells), Memory(self.sequences), Memory(self.table)]


@dataclass
class Compiled:
    """Kernels of one model's attention."""

    heads: Heads
    kernels: Kernels

    def store(self, qkv: Floats, batch: Batch, angles: Floats, cache: Memory) -> Floats:
        """Rotate and store; returns q, k and v as they are afterwards."""
        h = self.heads
        memory = Memory(qkv)

        def part(column: int) -> Any:
            # a pointer into the same rows
            view = Memory.__new__(Memory)
            view.__dict__ |= memory.__dict__ | {"address": memory.address + 4 * column}
            return view

        rope = Memory(angles)
        pointers = (memory, part(h.q_width), part(h.q_width + h.k_width), rope, cache, *batch.memory)
        tasks = batch.n * ((h.n_heads if h.dim else 0) + h.n_kv_heads)
        self._in_two("store", pointers, batch.n, tasks)
        return memory.view(np.float32, *qkv.shape).copy()

    def attend(self, name: str, qkv: Floats, batch: Batch, cache: Memory) -> Floats:
        out = Memory(4 * batch.n * (self.heads.out_width + 3))
        scratch = Memory(scratch_nbytes(self.heads.cache, self.heads.shape("eights")) or 64)
        rest = (cache, *batch.memory, Memory(self.heads.sink_scores), scratch)
        if name == "split":
            for t in range(batch.n):
                one = (Memory(qkv[t]), Memory(4 * self.heads.out_width), cache, *batch[t : t + 1].memory, *rest[4:])
                places = self.heads.n_heads // self.heads.together
                self._in_two("split", one, 1, places * self.heads.parts)
                self._in_two("merge", one, 1, places)
                out.view(np.float32, batch.n, -1)[t, : self.heads.out_width] = one[1].view(np.float32, -1)
        else:
            tasks = -(-batch.n // SHAPES[name][0]) * (self.heads.n_heads // self.heads.heads_of(name))
            self._in_two(name, (Memory(qkv), out, *rest), batch.n, tasks)
        rows = out.view(np.float32, batch.n, self.heads.out_width + 3)
        assert (rows[:, self.heads.out_width :].view(np.uint32) == 0xA5A5A5A5).all()
        return rows[:, : self.heads.out_width].copy()

    def _in_two(self, name: str, memory: Sequence[Memory], n: int, tasks: int) -> None:
        """Run the tasks of a kernel, split anywhere, as two workers would."""
        self.kernels(name, *memory, n=n, end=tasks // 3)
        self.kernels(name, *memory, n=n, begin=tasks // 3, end=tasks)


def cases() -> list[Any]:
    # every model shape on the best instruction set, and some that differ in all respects on the others
    return [
        pytest.param((level, name), id=f"{level}-{name}", marks=[pytest.mark.slow] if later else [])
        for i, level in enumerate(LEVELS)
        for name in MODELS
        for later in [i > 0 and name not in ("grouped", "odd", "windowed")]
    ]


@pytest.fixture(scope="module", params=cases())
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    level, name = request.param
    # what is asked for ahead of its use must not matter, also past the end of memory
    h, isa = MODELS[name], replace(vector_isa(level), prefetch=8192)
    s = h.stride
    programs = {"store": rope_store("store", isa, h.cache, RopeShape(h.n_heads, h.dim, h.mode, h.dim // 2), s, s, s)}
    for symbol in SHAPES:
        make = attention_parts if symbol == "split" else attention
        programs[symbol] = make(symbol, isa, h.cache, h.shape(symbol))
    programs["merge"] = merge_parts("merge", isa, h.cache, h.shape("split"))
    return Compiled(h, Kernels(level, programs, tmp_path_factory.mktemp("kernels")))


def random_qkv(rng: np.random.Generator, h: Heads, n: int) -> Floats:
    return rng.standard_normal((n, h.stride)).astype(np.float32)


def angles_of(h: Heads, cells: Any) -> tuple[Floats, Doubles]:
    """Cosines and sines as the kernel reads them, and in double precision."""
    angle = cells[:, None] * 10000.0 ** (-np.arange(h.dim // 2) / max(1, h.dim // 2))
    exact = np.stack([np.cos(angle), np.sin(angle)], 1)
    return exact.astype(np.float32), exact.astype(np.float32).astype(np.float64)


def rotate(h: Heads, rows: Floats, angles: Doubles) -> Doubles:
    """float64 [n, heads, head_dim] of rows [n, heads * head_dim]."""
    x = rows.astype(np.float64).reshape(len(rows), -1, h.head_dim)
    half = h.dim // 2
    first = np.arange(half) * 2 if h.mode == "normal" else np.arange(half)
    second = first + 1 if h.mode == "normal" else first + half
    cosine, sine = angles[:, 0, None], angles[:, 1, None]
    out = x.copy()
    out[..., first] = x[..., first] * cosine - x[..., second] * sine
    out[..., second] = x[..., first] * sine + x[..., second] * cosine
    return out


LENGTHS = [(0, 70), (130, 17), (63, 2), (5, 1)]


def test_rope_and_store(compiled: Compiled) -> None:
    rng, h = fresh_rng(), compiled.heads
    batch = Batch.of(rng, LENGTHS)
    qkv = random_qkv(rng, h, batch.n)
    # what a half can hold: subnormals, zeros, values past its largest; and halves of steps of integers
    v = qkv[:, h.q_width + h.k_width :][:, : h.v_width]
    v[3] *= np.float32(1e-6)
    v[4] *= np.float32(1e-8)
    v[5] = np.float32(-0.0)
    v[6] = np.sign(v[6]) * np.float32(4e5 if h.values == "Q4_0" else 1e6) if h.values != "F32" else v[6]
    v[7] = np.where(np.arange(h.v_width) % 32, np.rint(4 * v[7]) / 2, np.float32(127))
    if is_spread(h.values):  # then they are to be so once they are transformed
        v[3:8] = spread_rows(v[3:8].reshape(5, h.n_kv_heads, h.v_dim)).reshape(5, -1)
    angles, exact_angles = angles_of(h, batch.cells)
    cache = Memory(filled_blocks(h.cache, N_BLOCKS, rng))
    before = cache.bytes.copy()
    after = compiled.store(qkv, batch, angles, cache)

    turned = {}
    for name, first, width in (("q", 0, h.q_width), ("k", h.q_width, h.k_width)):
        exact = rotate(h, qkv[:, first : first + width], exact_angles)
        turned[name] = after[:, first : first + width].reshape(exact.shape)
        assert np.abs(turned[name] - exact).max() <= 4 * EPS * np.abs(exact).max()
        still = turned[name][..., h.dim :]
        assert np.array_equal(still, qkv[:, first : first + width].reshape(exact.shape)[..., h.dim :])
    assert np.array_equal(after[:, h.q_width + h.k_width :], qkv[:, h.q_width + h.k_width :])

    v = v.reshape(batch.n, h.n_kv_heads, h.v_dim)
    expected = [
        as_rows(fmt, spread_rows(heads) if is_spread(fmt) else heads)
        for fmt, heads in ((h.keys, turned["k"]), (h.values, v))
    ]
    written = np.zeros((N_BLOCKS, BLOCK_CELLS), bool)
    for row, (first, n) in enumerate(LENGTHS):
        for got, rows in zip(read_rows(h.cache, cache.bytes, batch.table[row], first + n), expected, strict=True):
            assert np.array_equal(got[first:], rows[batch.sequences == row])
        cells = np.arange(first, first + n)
        written[batch.table[row, cells // BLOCK_CELLS], cells % BLOCK_CELLS] = True
    every = np.arange(N_BLOCKS), N_BLOCKS * BLOCK_CELLS
    for got, was in zip(read_rows(h.cache, cache.bytes, *every), read_rows(h.cache, before, *every), strict=True):
        elsewhere = ~written.reshape(-1)
        assert np.array_equal(got[elsewhere], was[elsewhere]), "cells of others were written"


@pytest.mark.parametrize("n", [32, 64, 96, 128, 576])
def test_the_transform_spreads_every_element_evenly(n: int) -> None:
    rng = fresh_rng()
    x = rng.standard_normal((7, n)).astype(np.float32)
    x[1] = np.float32(1e3) * (np.arange(n) == 5)
    turned = spread_rows(x)
    assert np.abs(turned - x.astype(np.float64) @ hadamard(n)).max(1) == pytest.approx(0, abs=8 * EPS * 1e3)
    assert np.abs(turned[1]).max() <= 1e3 / np.sqrt(32) * (1 + 4 * EPS)
    assert spread_rows(turned) == pytest.approx(x, abs=16 * EPS * 1e3)


def filled(compiled: Compiled, rng: np.random.Generator, lengths: list[tuple[int, int]]) -> tuple[Batch, Memory]:
    """A batch, and a cache that holds its sequences from their first cells on."""
    h = compiled.heads
    batch = Batch.of(rng, lengths)
    cache = Memory(filled_blocks(h.cache, N_BLOCKS, rng))
    for row, (first, n) in enumerate(lengths):
        cells = np.arange(first + n, dtype=np.int32)
        whole = Batch(cells, np.full(len(cells), row, np.int32), batch.table)
        compiled.store(random_qkv(rng, h, whole.n), whole, angles_of(h, cells)[0], cache)
    return batch, cache


def attention_reference(h: Heads, qkv: Floats, batch: Batch, cache: Bytes) -> Doubles:
    out = np.zeros((batch.n, h.n_heads, h.v_dim))
    q = qkv[:, : h.q_width].reshape(batch.n, h.n_heads, h.head_dim).astype(np.float64)
    for t in range(batch.n):
        keys, values = read_cache(h.cache, cache, batch.table[batch.sequences[t]], int(batch.cells[t]) + 1)
        for head in range(h.n_heads):
            shared = head // (h.n_heads // h.n_kv_heads)
            scores = keys[:, shared] @ q[t, head] * h.head_dim**-0.5
            if h.softcap:
                scores = h.softcap * np.tanh(scores / h.softcap)
            if h.alibi:
                scores = scores - alibi_slopes(h.n_heads, h.alibi)[head] * (batch.cells[t] - np.arange(len(scores)))
            scores = np.where(h.visible(int(batch.cells[t])), scores, -np.inf)
            sink = h.sink_scores[head] if h.sinks else -np.inf
            largest = max(scores.max(), sink)
            weights = np.exp(scores - largest)
            out[t, head] = weights / (weights.sum() + np.exp(sink - largest)) @ values[:, shared]
    return out.reshape(batch.n, -1)


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 1e4, 0.0])
def test_attention(compiled: Compiled, sharpness: float) -> None:
    """From flat to one-hot softmax, over one to four blocks, with the rest of the cache full of other things."""
    rng, h = fresh_rng(), compiled.heads
    batch, cache = filled(compiled, rng, LENGTHS)
    qkv = random_qkv(rng, h, batch.n) * np.float32(sharpness)
    expected = attention_reference(h, qkv, batch, cache.bytes)
    before = cache.bytes.copy()
    # an error of a score is relative to its size, and weights change by as much
    room = 1e-6 + 4 * EPS * np.sqrt(h.head_dim) * sharpness * 16
    if h.keys in ("Q8_0", "Q4_0"):
        # queries are rounded to 1 in 2 * 127 * 128 of the largest
        room += 4 * sharpness / (2 * 127 * 128)
    for name in SHAPES:
        got = compiled.attend(name, qkv, batch, cache)
        if sharpness <= 30:
            assert np.abs(got - expected).max() <= room * np.abs(expected).max(), name
        else:
            # near ties may fall either way: compare where the best score leads by a margin
            assert np.isfinite(got).all()
            assert np.median(np.abs(got - expected)) <= 1e-5
    assert np.array_equal(cache.bytes, before)


def test_attention_does_not_depend_on_the_batch(compiled: Compiled) -> None:
    """A token's output has the same bits alone and among any others, in tasks and tiles of any size."""
    rng, h = fresh_rng(), compiled.heads
    batch, cache = filled(compiled, rng, LENGTHS)
    qkv = random_qkv(rng, h, batch.n)
    whole = compiled.attend("alone", qkv, batch, cache)
    for name in SHAPES:
        assert np.array_equal(compiled.attend(name, qkv, batch, cache).view(np.uint32), whole.view(np.uint32)), name
        for n in range(1, 18):
            first = int(rng.integers(batch.n - n + 1))
            some = slice(first, first + n)
            got = compiled.attend(name, qkv[some], batch[some], cache)
            assert np.array_equal(got.view(np.uint32), whole[some].view(np.uint32)), f"{name}, {n} tokens from {first}"


def test_attention_to_a_single_cell_returns_its_value(compiled: Compiled) -> None:
    rng, h = fresh_rng(), compiled.heads
    batch, cache = filled(compiled, rng, [(0, 1)])
    _, rows = read_rows(h.cache, cache.bytes, batch.table[0], 1)
    values = as_floats(h.values, rows).astype(np.float32)
    values = spread_rows(values) if is_spread(h.values) else values
    if h.sinks:
        pytest.skip("the sink takes its share")
    got = compiled.attend("alone", random_qkv(rng, h, 1) * np.float32(1e3), batch, cache)
    expected = np.repeat(values[0], h.n_heads // h.n_kv_heads, axis=0).reshape(-1)
    assert np.array_equal(got[0], expected)
