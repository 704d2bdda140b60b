"""Kernels over equal groups of columns, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from kernel_harness import EPS, LEVELS, Kernels, Memory, vector_isa

from airkernels.cpu.groups import group_dot, group_slice

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N_ROWS = 4
DOTS = {"dot": (192, 3), "dot_odd": (75, 5), "dot_single": (64, 64)}
SLICES = {"slice": (4, 64, 32, 32), "slice_odd": (3, 11, 2, 7), "slice_all": (2, 20, 0, 20)}


@pytest.fixture(
    scope="module", params=[pytest.param(level, marks=[pytest.mark.slow] * (i > 0)) for i, level in enumerate(LEVELS)]
)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    isa, programs = vector_isa(request.param), dict[str, Any]()
    for name, (n, groups) in DOTS.items():
        programs[name] = group_dot(name, isa, n, groups, (n, n + 3, groups + 1))
    for name, (groups, size, first, width) in SLICES.items():
        strides = (groups * size, groups * width + 2)
        programs[name] = group_slice(name, isa, groups, (size, first, width), strides)
    return Kernels(request.param, programs, tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("name", DOTS)
def test_dot_products(kernels: Kernels, name: str) -> None:
    rng, (n, groups) = fresh_rng(), DOTS[name]
    a, b = (rng.standard_normal((N_ROWS, stride)).astype(np.float32) for stride in (n, n + 3))
    out = Memory(4 * N_ROWS * (groups + 1))
    kernels(name, Memory(a), Memory(b.reshape(-1)[:-3]), out, n=N_ROWS, end=N_ROWS)
    products = (a.astype(np.float64) * b[:, :n]).reshape(N_ROWS, groups, -1)
    rows = out.view(np.float32, N_ROWS, groups + 1)
    assert (np.abs(rows[:, :-1] - products.sum(2)) <= 2 * n / groups * EPS * np.abs(products).sum(2)).all()
    assert (rows[:, -1:].view(np.uint32) == 0xA5A5A5A5).all()


@pytest.mark.parametrize("name", SLICES)
def test_columns_of_groups(kernels: Kernels, name: str) -> None:
    rng, (groups, size, first, width) = fresh_rng(), SLICES[name]
    x = rng.standard_normal((N_ROWS, groups * size)).astype(np.float32)
    out = Memory(4 * N_ROWS * (groups * width + 2))
    kernels(name, Memory(x), out, n=N_ROWS, end=N_ROWS)
    rows = out.view(np.float32, N_ROWS, groups * width + 2)
    expected = x.reshape(N_ROWS, groups, size)[:, :, first : first + width].reshape(N_ROWS, -1)
    assert np.array_equal(rows[:, :-2], expected)
    assert (rows[:, -2:].view(np.uint32) == 0xA5A5A5A5).all()
