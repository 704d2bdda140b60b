"""GPU row kernels against float64: norms, rounding, selection, the greedy choice and the most likely tokens."""

from __future__ import annotations

import numpy as np
import pytest
from activation_samples import random_activations
from block_samples import fresh_rng
from leaders_of import leaders_of
from triton_harness import Machine, decode_rows, machine  # noqa: F401  (a fixture)

from airkernels.triton.layout import RowLayout
from airkernels.triton.rows import convert, norm, select
from airkernels.triton.sample import advance, argmax_parts, leaders
from airrun.generation.leaders import MASS_ERROR, Leaders

KINDS = [("f32", 32), ("f32", 1), ("f16", 32), ("f16", 1), ("f16", 256), ("q8", 32), ("q16", 32), ("q16", 256)]
STEP = {"f32": 1e-6, "f16": 2.0**-11, "q8": 0.51 / 127, "q16": 0.51 / 16256}
"""Largest error, of the element for floats, of its group's largest for integers."""


def constants(layout: RowLayout) -> dict[str, int | str]:
    block = max(layout.block, 32)
    places = layout.places if layout.block > 1 else 0
    return {"KIND": layout.kind, "BLOCK": block, "PLACES": places, "OUT_STRIDE": layout.nbytes // 4}


def n_blocks(layout: RowLayout) -> int:
    """Blocks of the tile that covers a row: a power of two."""
    covered = layout.places if layout.block > 1 else -(-layout.n // 32)
    return 1 << (covered - 1).bit_length()


def check_rows(got: np.ndarray, want: np.ndarray, kind: str, lost: float = 0.0) -> None:
    """`lost`: error by sums that cancel, of the largest element of a row."""
    lost = lost * np.abs(want).max(1, keepdims=True) + 1e-30
    if kind[0] == "f":
        # a half-precision row has a scale of its own: what is far below its largest element keeps fewer digits
        floor = 0 if kind == "f32" else np.abs(want).max(1, keepdims=True) * 2.0**-24
        assert (np.abs(got - want) <= STEP[kind] * np.abs(want) + floor + lost).all()
    else:
        groups = np.abs(want.reshape(len(want), -1, 32)).max(2, keepdims=True)
        error = np.abs(got - want).reshape(len(want), -1, 32)
        assert (error <= groups * (STEP[kind] + 1e-6) + lost[..., None]).all()


def width(layout_block: int) -> int:
    return {1: 93, 32: 96, 256: 768}[layout_block]


@pytest.mark.parametrize(("kind", "block"), KINDS)
def test_norm(machine: Machine, kind: str, block: int) -> None:  # noqa: F811
    rng, n, n_rows, eps = fresh_rng(), width(block), 5, 1e-5
    layout = RowLayout(kind, n, block)
    x = random_activations(rng, n_rows, n)
    x[2] /= 1e10  # whose squares overflow, on the CPU too
    weight, bias = rng.standard_normal((2, n)).astype(np.float32)
    layer = block == 32  # the other kind of norm, with a bias
    out = machine.poisoned(n_rows * layout.nbytes, "u32")
    machine.run(
        norm, (n_rows, 1), machine.put(x), machine.put(weight), machine.put(bias), out,
        N=n, NORM="layer" if layer else "rms", EPS=eps, GROUPS=1, WEIGHTS=n, BIASES=n * layer, IN_STRIDE=n,
        BLOCKS=n_blocks(layout), **constants(layout),
    )  # fmt: skip
    exact = x.astype(np.float64)
    want = normed(exact - exact.mean(1, keepdims=True), eps) * weight + bias if layer else normed(exact, eps) * weight
    got = decode_rows(machine.get(out, np.uint8, n_rows, layout.nbytes), layout)
    check_rows(got, want, kind, 2e-6 if layer else 0.0)


def normed(x: np.ndarray, eps: float) -> np.ndarray:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps))


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("shared", [None, True, False])
def test_norm_of_groups(machine: Machine, shared: bool | None, layer: bool) -> None:  # noqa: F811
    """Parts of rows, an odd number of odd width, without weights, with those of a group, and with those of a row."""
    rng, groups, n, n_rows, eps = fresh_rng(), 3, 37, 4, 1e-6
    layout, stride = RowLayout("f32", groups * n, 1), 123
    x = rng.standard_normal((n_rows, stride)).astype(np.float32)
    size = 0 if shared is None else n if shared else groups * n
    weight, bias = rng.standard_normal((2, max(size, 1))).astype(np.float32)
    out = machine.poisoned(n_rows * layout.nbytes, "u32")
    machine.run(
        norm, (n_rows, groups), machine.put(x), machine.put(weight), machine.put(bias), out,
        N=n, NORM="layer" if layer else "rms", EPS=eps, GROUPS=groups, WEIGHTS=size, BIASES=size, IN_STRIDE=stride,
        BLOCKS=2, **constants(layout),
    )  # fmt: skip
    exact = x[:, : groups * n].astype(np.float64).reshape(n_rows, groups, n)
    want = normed(exact - exact.mean(2, keepdims=True) if layer else exact, eps)
    if size:
        want = want * weight.reshape(-1, n) + bias.reshape(-1, n)
    got = machine.get(out, np.float32, n_rows, layout.nbytes // 4)
    np.testing.assert_allclose(got[:, : groups * n], want.reshape(n_rows, -1), rtol=2e-5, atol=2e-6)
    untouched = machine.get(out, np.uint32, n_rows, layout.nbytes // 4)[:, groups * n :]
    assert (untouched == 0xA5A5A5A5).all()


@pytest.mark.parametrize(("kind", "block"), KINDS)
def test_conversion(machine: Machine, kind: str, block: int) -> None:  # noqa: F811
    rng, n, n_rows, stride = fresh_rng(), width(block), 5, 800
    layout = RowLayout(kind, n, block)
    x = random_activations(rng, n_rows, stride)
    out = machine.poisoned(n_rows * layout.nbytes, "u32")
    machine.run(
        convert, (n_rows, 1), machine.put(x), out, N=n, IN_STRIDE=stride, BLOCKS=n_blocks(layout), **constants(layout)
    )
    check_rows(decode_rows(machine.get(out, np.uint8, n_rows, layout.nbytes), layout), x[:, :n].astype(float), kind)


def test_selected_rows(machine: Machine) -> None:  # noqa: F811
    rng = fresh_rng()
    x = rng.integers(0, 2**32, (6, 75), dtype=np.uint32)
    rows = np.array([5, 0, 5], np.int32)
    out = machine.poisoned(4 * 3 * 80, "u32")
    machine.run(
        select, (3, 2), machine.put(x), machine.put(rows), out, N_WORDS=75, IN_STRIDE=75, OUT_STRIDE=80, TILE=64
    )
    got = machine.get(out, np.uint32, 3, 80)
    assert (got[:, :75] == x[rows]).all() and (got[:, 75:] == 0xA5A5A5A5).all()


@pytest.mark.parametrize("n", [1, 100, 1003])
def test_greedy_choice(machine: Machine, n: int) -> None:  # noqa: F811
    rng, parts = fresh_rng(), 8
    for logits in (
        rng.standard_normal(n).astype(np.float32),
        np.zeros(n, np.float32),
        np.full(n, -np.inf, np.float32),
        np.where(np.arange(n) % 7 == 3, 5, -5).astype(np.float32),
    ):
        values, places = machine.poisoned(4 * parts, "fp32"), machine.poisoned(4 * parts, "i32")
        state = machine.put(np.array([77, 41, 43, 0, 0, 0, 0], np.int32))
        machine.run(argmax_parts, (parts,), machine.put(logits), values, places, N=n, TILE=64, PARTS=parts)
        machine.run(advance, (1,), values, places, *(state.at(4 * i) for i in range(4)), PARTS=parts, RING=4)
        best = int(np.argmax(logits))
        assert machine.get(state, np.int32, 7).tolist() == [best, 42, 44, 0, best, 0, 0]


@pytest.mark.parametrize(("n", "parts", "tile"), [(5, 1, 8), (300, 4, 128), (1003, 2, 512)])
def test_most_likely_tokens(machine: Machine, n: int, parts: int, tile: int) -> None:  # noqa: F811
    """Ties, parts that are shorter than what is kept of them, and rows that exclude tokens."""
    rng, best, n_watched = fresh_rng(), 16, 64
    for logits in (
        (rng.standard_normal(n) * 4).astype(np.float32),
        rng.integers(-2, 3, n).astype(np.float32),
        np.where(rng.random(n) < 0.9, -np.inf, rng.standard_normal(n)).astype(np.float32),
        np.full(n, -np.inf, np.float32),
    ):
        watched = rng.integers(0, n, n_watched).astype(np.int32)
        found = [machine.poisoned(4 * size, kind) for size, kind in zip(
            (parts * best, parts * best, n_watched, parts), ("fp32", "i32", "fp32", "fp32"), strict=True
        )]  # fmt: skip
        machine.run(
            leaders, (parts,), machine.put(logits), machine.put(watched), *found,
            N=n, PARTS=parts, BEST=best, CHUNK=8, TILE=tile, WATCHED=n_watched,
        )  # fmt: skip
        want = leaders_of(logits, parts, best, watched=watched)
        values = machine.get(found[0], np.float32, parts, best)
        np.testing.assert_array_equal(values, want.best)
        there = values > -np.inf
        np.testing.assert_array_equal(machine.get(found[1], np.int32, parts, best)[there], want.tokens[there])
        np.testing.assert_array_equal(machine.get(found[2], np.float32, n_watched), want.seen)
        np.testing.assert_allclose(machine.get(found[3], np.float32, parts), want.sums, rtol=MASS_ERROR / 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_most_likely_tokens_of_a_damaged_row(machine: Machine, bad: float) -> None:  # noqa: F811
    logits = fresh_rng().standard_normal(300).astype(np.float32)
    logits[77] = bad
    found = [machine.poisoned(4 * 64, kind) for kind in ("fp32", "i32", "fp32", "fp32")]
    machine.run(
        leaders, (4,), machine.put(logits), machine.put(np.zeros(64, np.int32)), *found,
        N=300, PARTS=4, BEST=16, CHUNK=8, TILE=128, WATCHED=64,
    )  # fmt: skip
    best, sums = machine.get(found[0], np.float32, 4, 16), machine.get(found[3], np.float32, 4)
    nothing = np.empty(0, np.int32)
    assert not Leaders(best, best.view(np.int32), sums, nothing, nothing.view(np.float32), lambda: logits).sound
