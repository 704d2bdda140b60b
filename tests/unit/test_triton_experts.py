"""GPU kernels of mixtures of experts against float64: routing, the order of rows, and products with chosen matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from block_samples import fresh_rng, random_weights
from reference_experts import choose_experts
from triton_harness import Machine, decode_rows, machine, put_planes  # noqa: F401  (a fixture)

from airkernels.cpu.row_order import RowOrder
from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.experts import (
    dispatch,
    expert_gemm,
    expert_product,
    expert_product_float,
    sort_by_expert,
    sum_experts,
)
from airkernels.triton.layout import RowLayout, padded
from airkernels.triton.route import route
from airkernels.triton.rows import convert
from airschedules.gpu.specs import RouteSpec

N, N_TOKENS = 24, 6
PLAIN = RouteSpec(N, 4, True, False, 1.0, False, False, 1, 1, 1, (N + 8, 7, 9))
ROUTERS = {
    "softmax": PLAIN,
    "normalized": replace(PLAIN, normalize=True, n_used=7),
    "one": replace(PLAIN, n_used=1, softmax=False),
    "scaled": replace(PLAIN, scales=True, scale=2.5, normalize=True),
    "biased": replace(PLAIN, softmax=False, bias=True, normalize=True, scale=0.5),
    "grouped": replace(PLAIN, softmax=False, bias=True, n_groups=6, n_groups_used=2, group_best=2, normalize=True),
    "best_group": replace(PLAIN, n_groups=4, n_groups_used=3, group_best=1),
    "all": replace(PLAIN, n_used=N, strides=(N, N, N)),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_experts_and_weights(machine: Machine, name: str) -> None:  # noqa: F811
    rng, router = fresh_rng(), ROUTERS[name]
    logits_stride, numbers_stride, weights_stride = router.strides
    logits = (3 * rng.standard_normal((N_TOKENS, N))).astype(np.float32)
    logits[1] = 0.0  # ties: the first experts win
    logits[2, 5], logits[2, 6] = 40.0, -40.0
    logits[3] *= 1e-3
    bias = (rng.standard_normal(N) / 4).astype(np.float32)
    scales = rng.uniform(0.5, 2.0, N).astype(np.float32)
    rows = np.full((N_TOKENS, logits_stride), np.nan, np.float32)
    rows[:, :N] = logits
    numbers = machine.poisoned(4 * N_TOKENS * numbers_stride, "i32")
    weights = machine.poisoned(4 * N_TOKENS * weights_stride, "fp32")
    machine.run(
        route, (N_TOKENS,), machine.put(rows), machine.put(bias), machine.put(scales), numbers, weights,
        **router.schedule("sm_90").constants,
    )  # fmt: skip
    got = machine.get(numbers, np.int32, N_TOKENS, numbers_stride)[:, : router.n_used]
    factors = machine.get(weights, np.float32, N_TOKENS, weights_stride)[:, : router.n_used]
    for token in range(N_TOKENS):
        chosen, expected = choose_experts(router, logits[token], bias, scales)
        assert got[token].tolist() == chosen, f"token {token}"
        np.testing.assert_allclose(factors[token], expected, rtol=2e-5, atol=1e-30)


def random_order(rng: np.random.Generator, n_tokens: int, n_experts: int, n_used: int) -> np.ndarray:
    """Experts of tokens, distinct; nobody chose expert 1."""
    others = [expert for expert in range(n_experts) if expert != 1]
    return np.stack([rng.choice(others, n_used, replace=False) for _ in range(n_tokens)]).astype(np.int32)


@pytest.mark.parametrize("n_tokens", [1, 13])
def test_order_of_rows(machine: Machine, n_tokens: int) -> None:  # noqa: F811
    rng, order = fresh_rng(), RowOrder(7, 3)
    chosen = random_order(rng, n_tokens, order.n_experts, order.n_used)
    numbers = np.full((n_tokens, 5), -1, np.int32)
    numbers[:, :3] = chosen
    out = machine.poisoned(4 * n_tokens * order.n_words, "i32")
    machine.run(
        sort_by_expert, (order.n_experts,), machine.put(numbers), out, n_tokens,
        N_EXPERTS=order.n_experts, N_USED=order.n_used, STRIDE=5, EXPERTS_AT=order.experts(0), TILE=16,
    )  # fmt: skip
    words = machine.get(out, np.int32, n_tokens * order.n_words)
    flat, n_rows = chosen.reshape(-1), chosen.size
    sources = np.argsort(flat, kind="stable")
    assert words[: order.n_experts + 1].tolist() == [int((flat < expert).sum()) for expert in range(8)]
    at = {name: getattr(order, name)(n_tokens) for name in ("experts", "sources", "places")}
    assert (words[at["experts"] : at["experts"] + n_rows] == flat[sources]).all()
    assert (words[at["sources"] : at["sources"] + n_rows] == sources).all()
    assert (words[at["places"] : at["places"] + n_rows][sources] == np.arange(n_rows)).all()


@pytest.mark.parametrize("weighed", [False, True])
def test_rows_go_to_experts_and_back(machine: Machine, weighed: bool) -> None:  # noqa: F811
    rng, n_tokens, n_experts, n_used, n = fresh_rng(), 5, 7, 3, 75
    chosen = random_order(rng, n_tokens, n_experts, n_used)
    sources = np.argsort(chosen.reshape(-1), kind="stable").astype(np.int32)
    places = np.argsort(sources).astype(np.int32)
    order = machine.put(np.concatenate([chosen.reshape(-1)[sources], sources, places]).astype(np.int32))
    x = rng.standard_normal((n_tokens, 80)).astype(np.float32)
    weights = rng.standard_normal((n_tokens, 5)).astype(np.float32)
    stride = 5 if weighed else 0
    rows = machine.poisoned(4 * n_tokens * n_used * 80, "u32")
    machine.run(
        dispatch, (n_tokens * n_used, 2), machine.put(x).at(0, "u32"), order, machine.put(weights), rows, n_tokens,
        N_USED=n_used, N_WORDS=80, WEIGHT_STRIDE=stride, TILE=64,
    )  # fmt: skip
    factors = weights[sources // n_used, sources % n_used] if weighed else np.ones(len(sources), np.float32)
    got = machine.get(rows, np.float32, n_tokens * n_used, 80)
    assert (got == x[sources // n_used] * factors[:, None]).all()
    out = machine.poisoned(4 * n_tokens * 84, "fp32")
    machine.run(
        sum_experts, (n_tokens, 2), rows.at(0, "fp32"), order, machine.put(weights), out, n_tokens,
        N_USED=n_used, N=n, IN_STRIDE=80, WEIGHT_STRIDE=stride, OUT_STRIDE=84, TILE=64,
    )  # fmt: skip
    w = weights[:, :3].astype(np.float64) ** 2 if weighed else np.ones((n_tokens, 3))
    want = w.sum(1, keepdims=True) * x[:, :n]
    sums = machine.get(out, np.float32, n_tokens, 84)
    np.testing.assert_allclose(sums[:, :n], want, rtol=1e-5, atol=1e-6)
    assert (sums[:, n:].view(np.uint32) == 0xA5A5A5A5).all()


@pytest.mark.parametrize(("name", "kind"), [("Q4_0", "q8"), ("Q5_K", "q16"), ("MXFP4", "q8"), ("F16", "f32")])
def test_product_with_the_matrix_of_an_expert(machine: Machine, name: str, kind: str) -> None:  # noqa: F811
    rng, n_experts, fmt = fresh_rng(), 4, FORMATS[name]
    n_rows = 3 if fmt.block == 256 else 5  # large blocks take the interpreter long
    n_cols = 3 * fmt.block if isinstance(fmt, BlockFormat) else 75
    raw, values = random_weights(rng, name, n_experts * n_rows, n_cols)
    experts = np.array([0, 2, 2, 3], np.int32)
    x = rng.standard_normal((len(experts), n_cols)).astype(np.float32)
    bias = rng.standard_normal((n_experts, n_rows)).astype(np.float32)
    out = machine.poisoned(4 * len(experts) * 8, "fp32")
    shape = {"N_ROWS": n_rows, "N_COLS": n_cols, "TOKENS": 1, "OUT_STRIDE": 8, "ACCUMULATE": False, "BIAS": True}
    tail = machine.put(experts), machine.put(bias), out
    if isinstance(fmt, BlockFormat):
        planes, layout = put_planes(machine, name, raw, n_cols), RowLayout(kind, n_cols, fmt.block)
        rows = machine.poisoned(len(experts) * layout.nbytes, "u32")
        machine.run(
            convert, (len(experts), 1), machine.put(x), rows, N=n_cols, IN_STRIDE=n_cols,
            OUT_STRIDE=layout.nbytes // 4, KIND=kind, BLOCK=layout.block, PLACES=layout.places, BLOCKS=layout.places,
        )  # fmt: skip
        units, tile = n_rows * padded(planes.layout.n_blocks), 32 if machine.parallel else 4
        machine.run(
            expert_product, (-(-n_rows // tile), len(experts)), planes.words, planes.halves, rows, *tail, warps=1,
            FORMAT=name, KIND=kind, X_STRIDE=layout.nbytes // 4, WORDS=units * planes.layout.n_words,
            HALVES=units * planes.layout.n_halves, ROWS=2, TILE=tile, COLUMNS=2, UNROLL=False, **shape,
        )  # fmt: skip
        exact = decode_rows(machine.get(rows, np.uint8, len(experts), layout.nbytes), layout)
    else:
        weights = machine.put(raw).at(0, "fp16")
        machine.run(
            expert_product_float, (2, len(experts)), weights, machine.put(x), *tail,
            X_STRIDE=n_cols, ROWS=4, COLUMNS=32, **shape,
        )  # fmt: skip
        exact = x.astype(np.float64)
    matrices = values.reshape(n_experts, n_rows, n_cols)
    want = np.einsum("rk,rnk->rn", exact, matrices[experts]) + bias[experts]
    got = machine.get(out, np.float32, len(experts), 8)
    np.testing.assert_allclose(got[:, :n_rows], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert (got[:, n_rows:].view(np.uint32) == 0xA5A5A5A5).all()


@pytest.mark.parametrize(("kind", "k"), [("f16", 96), ("f32", 75)])
def test_products_expert_by_expert(machine: Machine, kind: str, k: int) -> None:  # noqa: F811
    """Those of experts 1 to 3, of which one has no rows and one more than a tile."""
    rng, n_rows, starts = fresh_rng(), 37, np.array([0, 3, 3, 24, 29], np.int32)
    layout, total = RowLayout(kind, k, 1), 29
    x = rng.standard_normal((total, k)).astype(np.float32)
    weights = rng.standard_normal((3, n_rows, k)).astype({"f16": np.float16, "f32": np.float32}[kind])
    bias = rng.standard_normal((4, n_rows)).astype(np.float32)
    rows = machine.poisoned(total * layout.nbytes, "u32")
    machine.run(
        convert, (total, 1), machine.put(x), rows, N=k, IN_STRIDE=k, OUT_STRIDE=layout.nbytes // 4,
        KIND=kind, BLOCK=32, PLACES=0, BLOCKS=4,
    )  # fmt: skip
    exact = decode_rows(machine.get(rows, np.uint8, total, layout.nbytes), layout)
    out = machine.poisoned(4 * total * 40, "fp32")
    itemsize = 2 if kind == "f16" else 4
    element = "fp16" if kind == "f16" else "fp32"
    machine.run(
        expert_gemm, (3, 3), machine.put(weights), rows.at(0, element), machine.put(starts), machine.put(bias), out,
        FIRST=1, N_ROWS=n_rows, K=k, X_STRIDE=layout.nbytes // itemsize, OUT_STRIDE=40,
        SCALE_AT=padded(k) // 2 if kind == "f16" else -1, BIAS=True, TOKENS=16, ROWS=16, DEPTH=32,
    )  # fmt: skip
    got = machine.get(out, np.float32, total, 40)
    assert (got[:3].view(np.uint32) == 0xA5A5A5A5).all() and (got[:, n_rows:].view(np.uint32) == 0xA5A5A5A5).all()
    for expert in range(1, 4):
        here = slice(starts[expert], starts[expert + 1])
        want = exact[here] @ weights[expert - 1].astype(np.float64).T + bias[expert]
        np.testing.assert_allclose(got[here, :n_rows], want, rtol=1e-3, atol=2e-3)
