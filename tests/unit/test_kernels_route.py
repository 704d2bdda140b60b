"""Routers against numpy, with every option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from kernel_harness import LEVELS, Kernels, Memory, vector_isa
from reference_experts import choose_experts

from airkernels.cpu.route import RouteShape, route

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N, N_TOKENS = 24, 40
PLAIN = RouteShape(N, 4, True, False, 1.0, False, 1, 1, 1, False, N + 8, 7, 9)
SHAPES = {
    "softmax": PLAIN,
    "normalized": replace(PLAIN, normalize=True, n_used=7),
    "one": replace(PLAIN, n_used=1, softmax=False),
    "scaled": replace(PLAIN, scales=True, scale=2.5, normalize=True),
    "biased": replace(PLAIN, softmax=False, bias=True, normalize=True, scale=0.5),
    "grouped": replace(PLAIN, softmax=False, bias=True, n_groups=6, n_groups_used=2, group_best=2, normalize=True),
    "best_group": replace(PLAIN, n_groups=4, n_groups_used=3, group_best=1),
    "all": replace(PLAIN, n_used=N, numbers_stride=N, weights_stride=N),
}


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    programs: dict[str, Any] = {name: route(name, vector_isa(request.param), shape) for name, shape in SHAPES.items()}
    return Kernels(request.param, programs, tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("name", SHAPES)
def test_experts_and_weights(kernels: Kernels, name: str) -> None:
    rng, shape = fresh_rng(), SHAPES[name]
    logits = (3 * rng.standard_normal((N_TOKENS, N))).astype(np.float32)
    logits[1] = 0.0  # ties: the first experts win
    logits[2, 5], logits[2, 6] = 40.0, -40.0
    logits[3] *= 1e-3
    bias = (rng.standard_normal(N) / 4).astype(np.float32)
    scales = rng.uniform(0.5, 2.0, N).astype(np.float32)
    rows = np.full((N_TOKENS, shape.in_stride), np.nan, np.float32)
    rows[:, :N] = logits
    numbers, weights = Memory(4 * N_TOKENS * shape.numbers_stride), Memory(4 * N_TOKENS * shape.weights_stride)
    arguments = (Memory(rows), Memory(bias), numbers, weights, Memory(scales))
    for first, last in ((N_TOKENS // 3, N_TOKENS), (0, N_TOKENS // 3)):
        kernels(name, *arguments, n=N_TOKENS, begin=first, end=last)
    got = numbers.view(np.int32, N_TOKENS, -1)[:, : shape.n_used]
    factors = weights.view(np.float32, N_TOKENS, -1)[:, : shape.n_used]
    for token in range(N_TOKENS):
        chosen, expected = choose_experts(shape, logits[token], bias, scales)
        assert got[token].tolist() == chosen, f"token {token}"
        np.testing.assert_allclose(factors[token], expected, rtol=2e-5, atol=1e-30)
