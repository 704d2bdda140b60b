"""Operators with a state against float64: sequences of their own in one batch, and the same bits in any pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from kernel_harness import EPS, LEVELS, Array, Doubles, Floats, Kernels, Memory, vector_isa

from airkernels.cpu.linear_attention import LinearAttentionShape, linear_attention
from airkernels.cpu.recurrence import (
    ConvolutionShape,
    ScanShape,
    causal_convolution,
    selective_scan,
    token_shift,
)
from airkernels.cpu.state import part_of

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

LENGTHS = (5, 1, 7)
"""Tokens of each sequence of a batch; the second goes on from a state, the others begin."""
SLOTS = (3, 0, 1)
N_SLOTS = 5
N = sum(LENGTHS)

CONVOLUTIONS = {
    "conv4": ConvolutionShape(192, 4, True, 203, 196),
    "conv3": ConvolutionShape(24, 3, False, 24, 31),
    "conv2": ConvolutionShape(128, 2, True, 130, 129),
}
SHIFTS = {"shift": ConvolutionShape(96, 2, False, 100, 99), "shift_odd": ConvolutionShape(21, 2, False, 21, 22)}
SCANS = {
    "scan16": ScanShape(128, 16, (130, 128, 17, 16), 131),
    "scan8": ScanShape(20, 8, (20, 21, 9, 8), 20),
    "scan64": ScanShape(64, 64, (64, 64, 64, 65), 64),
}


def heads(rule: str, n: int, n_keys: int, key: int, value: int, per_key: bool, tiled: bool = False) -> Any:
    keys, decay = n_keys * key, n * key if per_key else n
    fifth = {"delta": n + 1, "rank_one": 2 * n * key + 3}.get(rule, 0)
    strides = (keys, keys + 2, n * value + 1, decay, fifth)
    return LinearAttentionShape(n, n_keys, key, value, rule, tiled, per_key, strides, n * value + 5)


ATTENTIONS = {
    "decay": heads("decay", 6, 2, 40, 32, False),
    "decay_keys": heads("decay", 2, 2, 16, 128, True),
    "bonus": heads("bonus", 3, 3, 24, 24, True),
    "delta": heads("delta", 4, 2, 32, 64, False),
    "delta_tiled": heads("delta", 4, 2, 32, 16, False, tiled=True),
    "rank_one": heads("rank_one", 2, 2, 64, 64, True),
}


@pytest.fixture(
    scope="module", params=[pytest.param(level, marks=[pytest.mark.slow] * (i > 0)) for i, level in enumerate(LEVELS)]
)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    isa = vector_isa(request.param)
    programs: dict[str, Any] = {name: causal_convolution(name, isa, s) for name, s in CONVOLUTIONS.items()}
    programs |= {name: token_shift(name, isa, s) for name, s in SHIFTS.items()}
    programs |= {name: selective_scan(name, isa, s) for name, s in SCANS.items()}
    programs |= {name: linear_attention(name, isa, s) for name, s in ATTENTIONS.items()}
    return Kernels(request.param, programs, tmp_path_factory.mktemp("kernels"))


def slots_of_tokens() -> Array:
    slots = np.repeat(SLOTS, LENGTHS).astype(np.int32)
    first = np.cumsum((0, *LENGTHS[:-1]))
    for i, at in enumerate(first):
        if i != 1:
            slots[at] = -1 - slots[at]
    return slots


def rows(rng: np.random.Generator, width: int, stride: int, scale: float = 1.0) -> tuple[Floats, Memory]:
    """Random rows, and the same with NaN between them, which no kernel may read into its result."""
    x = (scale * rng.standard_normal((N, width))).astype(np.float32)
    padded = np.full((N, stride), np.nan, np.float32)
    padded[:, :width] = x
    return x, Memory(padded.reshape(-1)[: N * stride - (stride - width)])


class Run:
    """Runs a kernel on the batch: all at once, and token by token, task by task."""

    def __init__(self, kernels: Kernels, name: str, shape: Any, rng: np.random.Generator) -> None:
        self.kernels, self.name, self.shape = kernels, name, shape
        self.before = rng.standard_normal((N_SLOTS, shape.state.nbytes // 4)).astype(np.float32)

    def __call__(self, width: int, out_stride: int, pointers: dict[int, Memory], out_at: int, state_at: int) -> Any:
        """Outputs [N, width] and states [N_SLOTS, size], after checking that pieces give the same bits."""
        slots, results = slots_of_tokens(), []
        for pieces in (False, True):
            out, state = Memory(4 * N * out_stride), Memory(self.before)
            if not pieces:
                given = pointers | {out_at: out, state_at: state, state_at + 1: Memory(slots)}
                self._call(given, N, 0, self.shape.tasks)
            for token in range(N) if pieces else ():
                for task in reversed(range(self.shape.tasks)):
                    one = {i: self._row(m, token) for i, m in pointers.items()}
                    place = Memory(4 * out_stride)
                    place.bytes[:] = out.bytes[4 * out_stride * token :][: 4 * out_stride]
                    one |= {out_at: place, state_at: state, state_at + 1: Memory(slots[token : token + 1])}
                    self._call(one, 1, task, task + 1)
                    out.bytes[4 * out_stride * token :][: 4 * out_stride] = place.bytes
            results.append((out.view(np.float32, N, out_stride), state.view(np.float32, *self.before.shape)))
        for one, other in zip(*results, strict=True):
            assert np.array_equal(one.view(np.uint32), other.view(np.uint32))
        out_rows, states = results[0]
        assert (out_rows[:, width:].view(np.uint32) == 0xA5A5A5A5).all()
        untouched = sorted(set(range(N_SLOTS)) - set(SLOTS))
        assert np.array_equal(states[untouched], self.before[untouched])
        return out_rows[:, :width], states

    def _call(self, given: dict[int, Memory], n: int, begin: int, end: int) -> None:
        self.kernels(self.name, *(given.get(i) for i in range(8)), n=n, begin=begin, end=end)

    def _row(self, memory: Memory, token: int) -> Memory:
        """Row `token` of a value; tensors, which are marked, stay whole."""
        if getattr(memory, "whole", False):
            return memory
        width = memory.row  # type: ignore[attr-defined]
        return Memory(memory.bytes[4 * width * token :][: 4 * width].copy())


def value(memory: Memory, stride: int) -> Memory:
    memory.row = stride  # type: ignore[attr-defined]
    return memory


def tensor(array: Floats) -> Memory:
    memory = Memory(array)
    memory.whole = True  # type: ignore[attr-defined]
    return memory


def sequences(before: Floats, size: int) -> Any:
    """(tokens of the batch, slot, state before) of each sequence."""
    at = 0
    for i, (length, slot) in enumerate(zip(LENGTHS, SLOTS, strict=True)):
        state = before[slot, :size].astype(np.float64) if i == 1 else np.zeros(size)
        yield range(at, at + length), slot, state
        at += length


def close(ours: Floats, exact: Doubles, size: Doubles, n: int) -> None:
    """Within the rounding of n operations on numbers of that size."""
    assert (np.abs(ours - exact) <= n * EPS * size).all()


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *SHIFTS])
def test_convolution(kernels: Kernels, name: str) -> None:
    rng = fresh_rng()
    shift = name in SHIFTS
    s = SHIFTS[name] if shift else CONVOLUTIONS[name]
    run = Run(kernels, name, s, rng)
    x, memory = rows(rng, s.n, s.in_stride)
    weight = rng.standard_normal((s.n, s.kernel)).astype(np.float32)
    bias = rng.standard_normal(s.n).astype(np.float32) * np.float32(s.bias)
    pointers = {0: value(memory, s.in_stride)}
    if not shift:
        pointers |= {1: tensor(weight)} | ({3: tensor(bias)} if s.bias else {})
    out, states = run(s.n, s.out_stride, pointers, *((1, 2) if shift else (2, 4)))
    taps = np.tile([1.0, -1.0], (s.n, 1)) if shift else weight.astype(np.float64)
    for tokens, slot, state in sequences(run.before, s.state.size):
        history = np.concatenate([state.reshape(s.kernel - 1, s.n), x[list(tokens)].astype(np.float64)])
        for i, token in enumerate(tokens):
            window = history[i : i + s.kernel].T
            size = (np.abs(window) * np.abs(taps)).sum(1) + np.abs(bias)
            close(out[token], (window * taps).sum(1) + bias, size, 2 * s.kernel)
        assert np.array_equal(states[slot, : s.state.size], history[1 - s.kernel :].reshape(-1).astype(np.float32))


@pytest.mark.parametrize("name", SCANS)
def test_selective_scan(kernels: Kernels, name: str) -> None:
    rng, s = fresh_rng(), SCANS[name]
    run = Run(kernels, name, s, rng)
    widths = (s.n_channels, s.n_channels, s.n_states, s.n_states)
    given = [rows(rng, width, stride) for width, stride in zip(widths, s.strides, strict=True)]
    x, dt, b, c = (np.abs(array) if i == 1 else array for i, (array, _) in enumerate(given))
    given[1][1].view(np.float32, -1)[:] = np.abs(given[1][1].view(np.float32, -1))
    a = -np.exp(rng.standard_normal((s.n_channels, s.n_states))).astype(np.float32)
    pointers = {i: value(memory, s.strides[i]) for i, (_, memory) in enumerate(given)} | {4: tensor(a)}
    out, states = run(s.n_channels, s.out_stride, pointers, 5, 6)
    for tokens, slot, state in sequences(run.before, s.state.size):
        h, size = state.reshape(s.n_channels, s.n_states), np.abs(state.reshape(s.n_channels, s.n_states))
        for token in tokens:
            decay = np.exp(dt[token, :, None].astype(np.float64) * a)
            new = (dt[token].astype(np.float64) * x[token])[:, None] * b[token]
            # an exponent is rounded, which the exponential makes larger by as much
            off = 1 + np.abs(dt[token, :, None] * a)
            h, size = decay * h + new, decay * size * off + np.abs(new)
            close(out[token], h @ c[token].astype(np.float64), size @ np.abs(c[token]), 40 + s.n_states)
        close(states[slot, : s.state.size], h.reshape(-1), size.reshape(-1), 40)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_linear_attention(kernels: Kernels, name: str) -> None:
    rng, s = fresh_rng(), ATTENTIONS[name]
    run = Run(kernels, name, s, rng)
    n, keys = s.n_heads, s.n_heads * s.key_dim
    widths = [s.n_key_heads * s.key_dim, s.n_key_heads * s.key_dim, n * s.value_dim, keys if s.per_key else n]
    given = [rows(rng, width, stride, 0.3) for width, stride in zip(widths, s.strides, strict=False)]
    bonus = rng.standard_normal(keys).astype(np.float32)
    if s.rule in ("delta", "rank_one"):
        given.append(rows(rng, n if s.rule == "delta" else 2 * keys, s.strides[4], 0.3))
    pointers = {i if i < 4 else 7: value(memory, s.strides[i]) for i, (_, memory) in enumerate(given)}
    if s.rule == "bonus":
        pointers[7] = tensor(bonus)
    out, states = run(n * s.value_dim, s.out_stride, pointers, 4, 5)
    arrays = [array.astype(np.float64) for array, _ in given]
    shared = np.arange(n) % s.n_key_heads if s.tiled else np.arange(n) // (n // s.n_key_heads)
    for tokens, slot, state in sequences(run.before, s.state.size):
        columns = part_of(s.value_dim)
        exact = state.reshape(n, -1, s.key_dim, columns).swapaxes(1, 2).reshape(n, s.key_dim, s.value_dim)
        size = np.abs(exact)
        for token in tokens:
            rows_of = [array[token] for array in arrays]
            exact, read = attend(s, rows_of, bonus, shared, exact, np.subtract)
            size, large = attend(s, [np.abs(row) for row in rows_of], np.abs(bonus), shared, size, np.add)
            close(out[token], read.reshape(-1), large.reshape(-1), 8 * s.key_dim)
        exact, size = (m.reshape(n, s.key_dim, -1, columns).swapaxes(1, 2).reshape(-1) for m in (exact, size))
        close(states[slot, : s.state.size], exact, size, 8 * s.key_dim)


def attend(
    s: LinearAttentionShape, inputs: list[Doubles], bonus: Any, shared: Any, state: Doubles, minus: Any
) -> tuple[Doubles, Doubles]:
    """The state after a token, and what it reads; with sizes and `np.add` for `minus`, bounds of all terms."""
    n = s.n_heads
    q, k = (x.reshape(s.n_key_heads, s.key_dim)[shared] for x in inputs[:2])
    v, w = inputs[2].reshape(n, s.value_dim), inputs[3].reshape(n, -1, 1)
    new = k[:, :, None] * v[:, None]
    if s.rule == "delta":
        read = np.einsum("hkv,hk->hv", state * w, k)
        new = k[:, :, None] * (minus(v, read) * inputs[4][:, None])[:, None]
    elif s.rule == "rank_one":
        a, b = inputs[4].reshape(2, n, s.key_dim)
        new = new + b[:, :, None] * np.einsum("hk,hkv->hv", a, state)[:, None]
    seen = after = state * w + new
    if s.rule == "bonus":
        seen = state + bonus.reshape(n, s.key_dim, 1) * new
    return after, np.einsum("hk,hkv->hv", q, seen)
