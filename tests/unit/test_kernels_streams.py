"""Kernels over several residual streams and over the statistics of rows, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from kernel_harness import EPS, LEVELS, Floats, Kernels, Memory, vector_isa

from airkernels.cpu.streams import CombineShape, combine, cut_off, match_size

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N_ROWS = 4
# divisible by every vector, and odd
WIDTHS = (96, 75)


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    isa, programs = vector_isa(request.param), dict[str, Any]()
    for n in WIDTHS:
        shape = CombineShape(n, 2, 1.0, n + 5, 9, (n + 3, n + 1, n + 2), n + 1)
        programs[f"combine{n}"] = combine(f"combine{n}", isa, shape)
        programs[f"match{n}"] = match_size(f"match{n}", isa, n, n + 5, n + 3, n + 1, 1e-5)
        programs[f"cut{n}"] = cut_off(f"cut{n}", isa, n, n + 5, n + 1, 0.7)
    return Kernels(request.param, programs, tmp_path_factory.mktemp("kernels"))


def strided(rows: Floats, stride: int) -> Memory:
    padded = np.full((len(rows), stride), np.nan, np.float32)
    padded[:, : rows.shape[1]] = rows
    return Memory(padded.reshape(-1)[: padded.size - (stride - rows.shape[1])])


def run(kernels: Kernels, name: str, n: int, *inputs: Memory | None) -> Floats:
    """All rows at once, checked to be what each row alone gives; the output is the third pointer."""
    out, again = (Memory(4 * N_ROWS * (n + 1)) for _ in range(2))
    first, rest = inputs[:2], inputs[2:]
    kernels(name, *first, out, *rest, n=N_ROWS, end=N_ROWS)
    for row in reversed(range(N_ROWS)):
        kernels(name, *first, again, *rest, n=N_ROWS, begin=row, end=row + 1)
    assert np.array_equal(out.bytes, again.bytes)
    rows = out.view(np.float32, N_ROWS, n + 1)
    assert (rows[:, n].view(np.uint32) == 0xA5A5A5A5).all()
    return rows[:, :n].copy()


def random_rows(rng: np.random.Generator, n: int) -> Floats:
    return (rng.standard_normal((N_ROWS, n)) * rng.choice([0.1, 1, 10], (N_ROWS, 1)) + 0.3).astype(np.float32)


@pytest.mark.parametrize("n", WIDTHS)
def test_combine(kernels: Kernels, n: int) -> None:
    rng = fresh_rng()
    base, coefficients, *streams = (random_rows(rng, width) for width in (n, 8, n, n, n))
    memory = [strided(x, n + extra) for x, extra in zip(streams, (3, 1, 2), strict=True)]
    got = run(kernels, f"combine{n}", n, strided(base, n + 5), strided(coefficients, 9), *memory)
    terms = np.stack([(coefficients[:, 2 + j, None].astype(np.float64) + 1) * x for j, x in enumerate(streams)])
    room = 6 * EPS * (np.abs(base) + np.abs(terms).sum(0) + sum(np.abs(x) for x in streams))
    assert (np.abs(got - (base + terms.sum(0))) <= room).all()


@pytest.mark.parametrize("n", WIDTHS)
def test_match_size(kernels: Kernels, n: int) -> None:
    rng = fresh_rng()
    x, target = random_rows(rng, n), random_rows(rng, n)
    x[1] *= np.float32(1e-4)  # less than what counts as least
    got = run(kernels, f"match{n}", n, strided(x, n + 5), strided(target, n + 3))
    size, wanted = ((v.astype(np.float64) ** 2).mean(1, keepdims=True) for v in (x, target))
    exact = x * np.sqrt(wanted / np.maximum(size, 1e-5))
    assert (np.abs(got - exact) <= 24 * EPS * np.abs(exact)).all()


@pytest.mark.parametrize("n", WIDTHS)
def test_cut_off(kernels: Kernels, n: int) -> None:
    x = random_rows(fresh_rng(), n)
    got = run(kernels, f"cut{n}", n, strided(x, n + 5), None)
    wide = x.astype(np.float64)
    exact = np.maximum(wide - wide.mean(1, keepdims=True) - 0.7 * wide.std(1, keepdims=True), 0)
    assert 0.1 < (got > 0).mean() < 0.4
    assert (np.abs(got - exact) <= 16 * EPS * np.abs(wide).max(1, keepdims=True)).all()
