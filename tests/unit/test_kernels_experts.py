"""Mixtures of experts against numpy: the order of rows, products with one matrix of many, and sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng, random_weights
from kernel_harness import EPS, LEVELS, Array, Doubles, Floats, Kernels, Memory, quantize_reference, vector_isa

from airkernels.cpu import experts, matmul_float, matmul_int
from airkernels.cpu.experts import Bank, SumShape
from airkernels.cpu.isa import PANEL
from airkernels.cpu.matmul_int import MatmulSchedule, MatmulShape
from airkernels.cpu.pack import pack
from airkernels.cpu.panels import PanelLayout
from airkernels.cpu.program import define
from airkernels.cpu.row_order import RowOrder
from airkernels.formats import FORMATS, BlockFormat

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N_EXPERTS, N_USED, N_ROWS, N_HEADS = 7, 3, 48, 5
N_PANELS = N_ROWS // PANEL
ORDER = RowOrder(N_EXPERTS, N_USED)
STRIDE = 53
PLACES = (3, 0, 6, 1, 5, 2, 4)
"""Where each matrix is in memory."""
NUMBERS_STRIDE = 16


def choose(rng: np.random.Generator, n_tokens: int) -> Array:
    """Experts of each token, of which one is popular and one is never chosen."""
    numbers = np.stack([rng.permutation(N_EXPERTS - 1)[:N_USED] for _ in range(n_tokens)])
    numbers[:, 0] = np.where((numbers == 2).any(axis=1), numbers[:, 0], 2)
    return numbers.astype(np.int32)


def padded(rows: Array, stride: int) -> Memory:
    """Rows with something between them that must not be read."""
    out = np.full((len(rows), stride), -1 if rows.dtype == np.int32 else np.nan, rows.dtype)
    out[:, : rows.shape[1]] = rows
    return Memory(out)


def sort_rows(numbers: Array) -> tuple[Array, Array, Array]:
    """Starts, sources and places of an order, by numpy."""
    flat = numbers.reshape(-1)
    sources = np.argsort(flat, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=N_EXPERTS))])
    return starts, sources, np.argsort(sources, kind="stable")


class Moves:
    """The kernels that move rows, of float rows of 75 columns."""

    n = 75

    def __init__(self, level: str, folder: Any) -> None:
        isa = vector_isa(level)
        self.kernels = Kernels(
            level,
            {
                "sort": experts.sort_by_expert("sort", ORDER, NUMBERS_STRIDE),
                "dispatch": experts.dispatch("dispatch", isa, ORDER, 4 * self.n, 0),
                "weighed": experts.dispatch("weighed", isa, ORDER, 4 * self.n, 20),
                "weighed_sum": experts.sum_experts("weighed_sum", isa, ORDER, SumShape(self.n, 80, 20, 77, 32)),
                "sum": experts.sum_experts("sum", isa, ORDER, SumShape(self.n, 80, 0, 77, 32)),
            },
            folder,
        )

    def order(self, numbers: Array) -> Memory:
        out = Memory(4 * len(numbers) * ORDER.n_words)
        self.kernels("sort", padded(numbers, NUMBERS_STRIDE), None, out, n=len(numbers), end=1)
        return out


@pytest.fixture(scope="module", params=LEVELS)
def moves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Moves:
    return Moves(request.param, tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("n_tokens", [1, 2, 33])
def test_rows_are_sorted_by_expert_and_stay_in_order_within_one(moves: Moves, n_tokens: int) -> None:
    numbers = choose(fresh_rng(), n_tokens)
    words = moves.order(numbers).view(np.int32, -1)
    starts, sources, places = sort_rows(numbers)
    rows = n_tokens * N_USED
    assert np.array_equal(words[ORDER.starts : ORDER.starts + N_EXPERTS + 1], starts)
    for at, expected in (
        (ORDER.experts(n_tokens), numbers.reshape(-1)[sources]),
        (ORDER.sources(n_tokens), sources),
        (ORDER.places(n_tokens), places),
    ):
        assert np.array_equal(words[at : at + rows], expected)


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_dispatched_rows_are_copies_and_weighed_ones_products(moves: Moves, n_tokens: int) -> None:
    rng = fresh_rng()
    numbers, x = choose(rng, n_tokens), rng.standard_normal((n_tokens, Moves.n)).astype(np.float32)
    weights = rng.standard_normal((n_tokens, N_USED)).astype(np.float32)
    _, sources, _ = sort_rows(numbers)
    order, rows = moves.order(numbers), n_tokens * N_USED
    for name, factors in (("dispatch", np.ones_like(weights)), ("weighed", weights)):
        out = Memory(4 * rows * Moves.n)
        for first, last in ((0, rows // 2), (rows // 2, rows)):
            given = padded(weights, 20) if name == "weighed" else None
            moves.kernels(name, Memory(x), order, out, given, n=n_tokens, begin=first, end=last)
        expected = (x[:, None] * factors[..., None]).reshape(rows, Moves.n)[sources]
        assert np.array_equal(out.view(np.float32, rows, Moves.n), expected)


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_rows_of_a_token_are_added_in_the_order_of_its_choice(moves: Moves, n_tokens: int) -> None:
    rng = fresh_rng()
    numbers, rows = choose(rng, n_tokens), n_tokens * N_USED
    y = rng.standard_normal((rows, Moves.n)).astype(np.float32)
    weights = rng.standard_normal((n_tokens, N_USED)).astype(np.float32)
    _, sources, _ = sort_rows(numbers)
    order, chunks = moves.order(numbers), -(-Moves.n // 32)
    for name, factors in (("sum", np.ones_like(weights)), ("weighed_sum", weights)):
        out = Memory(4 * n_tokens * 77)
        given = padded(weights, 20) if name == "weighed_sum" else None
        for task in reversed(range(n_tokens * chunks)):
            moves.kernels(name, padded(y[sources], 80), order, out, given, n=n_tokens, begin=task, end=task + 1)
        terms = y.reshape(n_tokens, N_USED, -1).astype(np.float64) * factors[..., None]
        slack = 4 * EPS * np.abs(terms).sum(axis=1)
        got = out.view(np.float32, n_tokens, 77)
        assert (np.abs(got[:, : Moves.n] - terms.sum(axis=1)) <= slack).all()
        assert (got[:, Moves.n :].view(np.uint32) == 0xA5A5A5A5).all()


class Products:
    """Kernels of a bank of one format: for few rows, for many, and by head."""

    def __init__(self, level: str, name: str, digits: int, folder: Any) -> None:
        fmt, isa = FORMATS[name], vector_isa(level)
        self.name, self.digits, self.n_cols = name, digits, 96 if fmt.block <= 32 else 256
        n, bias = self.n_cols, digits != 2
        self.bias, self.in_stride, self.panel = bias, n + 3, PanelLayout(fmt, n).nbytes
        row_nbytes = 4 * self.in_stride if not digits else quantize_reference(np.zeros((1, n), "f4"), digits)[0].nbytes
        bank = Bank(N_ROWS, self.panel, row_nbytes, STRIDE)
        shape = MatmulShape(N_ROWS, n, STRIDE, bias=bias, digits=max(digits, 1))
        heads = MatmulShape(N_ROWS, n, N_HEADS * STRIDE, digits=max(digits, 1), step=N_HEADS)

        def body(shape: MatmulShape, tile: int, unpack_from: int, stride: int) -> experts.Body:
            if digits:
                assert isinstance(fmt, BlockFormat)
                return matmul_int.product(isa, fmt, shape, MatmulSchedule(tile, unpack_from))
            return matmul_float.product(isa, fmt, shape, stride, tile)

        few = experts.by_row(bank, ORDER, body(shape, 1, 0, self.in_stride), bias)
        many = experts.by_expert(bank, ORDER, body(shape, 4, 3, self.in_stride), bias)
        by_head = experts.by_head(bank, body(heads, 4, 3, N_HEADS * self.in_stride))
        programs = {"few": define("few", few), "many": define("many", many), "heads": define("heads", by_head)}
        programs["pack"] = pack("pack", fmt, n)
        programs["sort"] = experts.sort_by_expert("sort", ORDER, NUMBERS_STRIDE)
        self.kernels = Kernels(level, programs, folder)
        self.scratch_nbytes = max(matmul_float.scratch_nbytes(fmt, n), 64)
        if digits:
            assert isinstance(fmt, BlockFormat)
            self.scratch_nbytes = matmul_int.scratch_nbytes(isa, fmt, n)

    def bank(self, rng: np.random.Generator, n: int) -> tuple[Memory, Doubles]:
        """Panels of n matrices, and their values."""
        raw, weights = random_weights(rng, self.name, n * N_ROWS, self.n_cols)
        panels = Memory(n * N_PANELS * self.panel)
        self.kernels("pack", Memory(raw), panels, n=n * N_ROWS, end=n * N_PANELS)
        return panels, weights.reshape(n, N_ROWS, self.n_cols)

    def scattered(self, panels: Memory) -> tuple[Memory, Memory]:
        """The same matrices in another order, and the table that says where each is."""
        matrices = panels.bytes.reshape(N_EXPERTS, -1)
        moved = np.empty_like(matrices)
        moved[list(PLACES)] = matrices
        return Memory(moved), Memory((np.array(PLACES) * matrices.shape[1]).astype(np.int64))

    def inputs(self, x: Floats) -> tuple[Memory, Doubles]:
        if self.digits:
            rows, values = quantize_reference(x, self.digits)
            return Memory(rows), values
        return padded(x, self.in_stride), x.astype(np.float64)

    def run(self, symbol: str, tasks: int, n: int, *memory: Memory | None, rows: int) -> Floats:
        """Results [rows, N_ROWS]; tasks are split anywhere, last first."""
        out, scratch = Memory(4 * rows * STRIDE), Memory(2 * self.scratch_nbytes)
        panels, x, bias, order, table = memory
        cuts = [0, tasks // 5, tasks // 2 + 1, tasks]
        for i in reversed(range(3)):
            arguments = (panels, x, out, bias, order, table, None, scratch)
            self.kernels(symbol, *arguments, n=n, begin=cuts[i], end=cuts[i + 1], worker=i % 2)
        whole = out.view(np.float32, rows, STRIDE)
        assert (whole[:, N_ROWS:].view(np.uint32) == 0xA5A5A5A5).all()
        return whole[:, :N_ROWS].copy()


CASES = [(LEVELS[0], *case) for case in (("Q8_0", 1), ("Q4_K", 2), ("MXFP4", 1), ("MXFP4", 0))] if LEVELS else []
CASES += [(level, "F16", 0) for level in LEVELS]
"""What differs between instruction sets is tested with the ordinary products."""


@pytest.fixture(scope="module", params=CASES, ids=str)
def products(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Products:
    level, name, digits = request.param
    return Products(level, name, digits, tmp_path_factory.mktemp("kernels"))


def test_every_row_meets_the_matrix_of_its_expert(products: Products) -> None:
    """In batches and alone, with the same bits; the matrices of experts that nobody chose may be absent."""
    p, rng = products, fresh_rng()
    panels, weights = p.bank(rng, N_EXPERTS)
    biases = rng.standard_normal((N_EXPERTS, N_ROWS)).astype(np.float32)
    bias = Memory(biases) if p.bias else None
    n_tokens = 13
    numbers = choose(rng, n_tokens)
    _, sources, places = sort_rows(numbers)
    x, values = p.inputs(rng.standard_normal((n_tokens * N_USED, p.n_cols)).astype(np.float32)[sources])
    order = Memory(4 * n_tokens * ORDER.n_words)
    p.kernels("sort", padded(numbers, NUMBERS_STRIDE), None, order, n=n_tokens, end=1)
    rows = n_tokens * N_USED
    moved, table = p.scattered(panels)
    many = p.run("many", N_EXPERTS * N_PANELS, n_tokens, moved, x, bias, order, table, rows=rows)
    chosen = numbers.reshape(-1)[sources]
    expected = np.einsum("irc,ic->ir", weights[chosen], values) + (biases[chosen] if p.bias else 0)
    largest = np.abs(weights).max(axis=2)[chosen] * np.abs(values).sum(axis=1)[:, None]
    slack = 4 * (p.n_cols / 16 + 8) * EPS * (largest + 8 * np.abs(biases[chosen]))
    assert (np.abs(many - expected) <= slack).all()
    few = p.run("few", rows * N_PANELS, n_tokens, moved, x, bias, order, table, rows=rows)
    assert np.array_equal(few.view(np.uint32), many.view(np.uint32))
    assert not np.array_equal(places, np.arange(rows)), "nothing was sorted"


def test_every_head_meets_its_own_matrix(products: Products) -> None:
    p, rng, n_tokens = products, fresh_rng(), 6
    panels, weights = p.bank(rng, N_HEADS)
    x, values = p.inputs(rng.standard_normal((n_tokens * N_HEADS, p.n_cols)).astype(np.float32))
    rows = n_tokens * N_HEADS
    got = p.run("heads", N_HEADS * N_PANELS, n_tokens, panels, x, None, None, None, rows=rows)
    expected = np.einsum("hrc,thc->thr", weights, values.reshape(n_tokens, N_HEADS, -1)).reshape(rows, N_ROWS)
    largest = np.abs(weights).max() * np.abs(values).sum(axis=1)[:, None]
    assert (np.abs(got - expected) <= 4 * (p.n_cols / 16 + 8) * EPS * largest).all()
