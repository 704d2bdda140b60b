"""Norms of rows and of groups of their columns, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from kernel_harness import EPS, LEVELS, Doubles, Floats, Kernels, Memory, vector_isa

from airkernels.cpu.norms import NormShape, norm

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N_ROWS = 4


def shape(kind: str, n: int, groups: int = 1, weight: int = 0, bias: int = 0) -> NormShape:
    return NormShape(kind, n, groups, weight, bias, 1e-5, n + 5, n + 1, 0)


# kinds, with and without weights and biases, one vector for all heads or one each, widths that vectors do not divide
SHAPES = {
    "layer": shape("layer", 192, weight=192, bias=192),
    "layer_unbiased": shape("layer", 75, weight=75),
    "layer_plain": shape("layer", 96),
    "rms_biased": shape("rms", 75, weight=75, bias=75),
    "rms_plain": shape("rms", 96),
    "heads": shape("rms", 5 * 48, 5, weight=48),
    "heads_each": shape("layer", 3 * 80, 3, weight=3 * 80),
    "heads_biased": shape("layer", 4 * 18, 4, weight=18, bias=18),
    "heads_plain": shape("rms", 2 * 64, 2),
}


@pytest.fixture(
    scope="module", params=[pytest.param(level, marks=[pytest.mark.slow] * (i > 0)) for i, level in enumerate(LEVELS)]
)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    isa = vector_isa(request.param)
    programs: dict[str, Any] = {name: norm(name, isa, each) for name, each in SHAPES.items()}
    return Kernels(request.param, programs, tmp_path_factory.mktemp("kernels"))


def reference(s: NormShape, x: Floats, weight: Floats, bias: Floats) -> Doubles:
    groups = x.astype(np.float64).reshape(N_ROWS, s.groups, -1)
    if s.kind == "layer":
        groups = groups - groups.mean(2, keepdims=True)
    groups = groups / np.sqrt((groups**2).mean(2, keepdims=True) + s.eps)
    for vector, apply in ((weight, np.multiply), (bias, np.add)):
        if vector.size:
            groups = apply(groups, vector.reshape(s.groups if vector.size == s.n else 1, -1))
    return groups.reshape(N_ROWS, s.n)


@pytest.mark.parametrize("name", SHAPES)
def test_norm(kernels: Kernels, name: str) -> None:
    rng, s = fresh_rng(), SHAPES[name]
    x = rng.standard_normal((N_ROWS, s.n)).astype(np.float32)
    x[1] += 30  # most of it is the mean
    x[2] *= np.float32(1e-3)
    x[3, :5] *= 100
    weight, bias = (rng.standard_normal(size).astype(np.float32) for size in (s.weight, s.bias))
    padded = np.full((N_ROWS, s.in_stride), np.nan, np.float32)
    padded[:, : s.n] = x
    out, again = (Memory(4 * N_ROWS * s.out_stride) for _ in range(2))
    inputs = (Memory(padded.reshape(-1)[: padded.size - 5]), Memory(weight) if s.weight else None)
    last = Memory(bias) if s.bias else None
    kernels(name, *inputs, out, last, n=N_ROWS, end=N_ROWS * s.groups)
    for task in reversed(range(N_ROWS * s.groups)):
        kernels(name, *inputs, again, last, n=N_ROWS, begin=task, end=task + 1)
    assert np.array_equal(out.bytes, again.bytes)
    rows = out.view(np.float32, N_ROWS, s.out_stride)
    assert (rows[:, s.n :].view(np.uint32) == 0xA5A5A5A5).all()
    exact = reference(s, x, weight, bias)
    size = np.abs(reference(replace(s, bias=0), x, weight, bias[:0])) + (np.abs(exact) if s.bias else 0)
    # subtracting a mean leaves errors of its size
    lost = 4 * EPS * 40 if s.kind == "layer" else 0
    assert (np.abs(rows[:, : s.n] - exact) <= 24 * EPS * size + lost * np.abs(weight).max(initial=1)).all()
