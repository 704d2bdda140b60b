"""Matrix products against float64: every format, instruction set and schedule, any number of rows and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from activation_samples import random_activations
from block_samples import fresh_rng, random_weights
from kernel_harness import (
    EPS,
    LEVELS,
    PRODUCT_LEVELS,
    Bytes,
    Doubles,
    Floats,
    Kernels,
    Memory,
    quantize_reference,
    vector_isa,
)

from airkernels.cpu.isa import PANEL
from airkernels.cpu.matmul_float import matmul_float
from airkernels.cpu.matmul_float import scratch_nbytes as float_scratch_nbytes
from airkernels.cpu.matmul_int import MatmulSchedule, MatmulShape, matmul_int, scratch_nbytes
from airkernels.cpu.pack import pack
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS, BlockFormat

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

FLOATS = ["F32", "F16", "BF16"]
INTEGERS = [name for name, fmt in FORMATS.items() if isinstance(fmt, BlockFormat)]
N_ROWS, N_TOKENS = 150, 17
STRIDE = 163  # more than the ten panels need, and odd, so that rows of output lie at any alignment
ROW_COUNTS = (1, 15, 16, 17)
N_COLS = {name: 75 if name in FLOATS else {32: 96, 64: 192, 128: 256, 256: 512}[f.block] for name, f in FORMATS.items()}
N_COLS |= {"Q4_1": 160, "Q6_K": 768}
LONG_COLS = {name: 1536 if FORMATS[name].block < 256 else 256 for name in FORMATS}
LONG_COLS |= {"F32": 1537, "BF16": 1, "Q4_1": 32, "Q8_0": 1056, "MXFP4": 1568}

TWO_DIGITS = ("Q4_0", "Q6_K", "Q2_K")
"""Formats whose products with two digits are always tested: they have every feature of the others."""

ALL_LEVELS = (*FLOATS, "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "Q5_0", "MXFP4")
"""Formats that are always tested on every instruction set; the others only on the best. These have every primitive
that vectors of different widths compute differently, but for tables."""

TABLES = (("x86-64-v3", "IQ3_XXS"), ("x86-64-v2", "IQ2_XS"))
"""Which format stands for those with tables on each of the lesser instruction sets: they take long to compile."""

DECODED = ("Q2_K", "IQ1_M", "IQ2_XS", "IQ3_S", "TQ1_0", "NVFP4")
"""Formats with large blocks that are always tested with float activations, on the best instruction set; the others
differ from them in what the integer products cover."""


def n_panels(n_rows: int) -> int:
    return -(-n_rows // PANEL)


def is_slow(level: str, name: str, digits: int) -> bool:
    best = level == PRODUCT_LEVELS[0]
    if level not in LEVELS and not best:
        return name not in TWO_DIGITS
    if name in FLOATS:
        return False
    if not digits:
        return not (best and name in DECODED) and (name not in ALL_LEVELS or FORMATS[name].block == 256)
    if digits == 2:
        return name not in TWO_DIGITS or not (best or name in ALL_LEVELS)
    return not (best or name in ALL_LEVELS or (level, name) in TABLES)


def cases(formats: list[str], digits: tuple[int, ...]) -> list[Any]:
    """(level, format, digits); unquantized formats have no digits."""
    return [
        pytest.param(
            (level, name, d), marks=[pytest.mark.slow] if is_slow(level, name, d) else [], id=f"{level}-{name}-{d}"
        )
        for level in PRODUCT_LEVELS
        for name in formats
        for d in (digits if name in INTEGERS else (0,))
        if d or level in LEVELS
    ]


class Product:
    """A weight matrix in panels, and the kernels for it.

    Attributes
    ----------
    kernels
        `one`: a token at a time; `tiled`: several at a time; both add a bias to what is there. `plain`: neither.
    """

    def __init__(self, level: str, name: str, n_cols: int, folder: Any, *, digits: int) -> None:
        self.name, self.n_cols, self.digits, self.quantized = name, n_cols, digits, digits > 0
        quantized = self.quantized
        fmt, isa = FORMATS[name], vector_isa(level)
        self.in_stride = n_cols + 3
        added = MatmulShape(N_ROWS, n_cols, STRIDE, accumulate=True, bias=True, digits=max(digits, 1))
        plain = MatmulShape(N_ROWS, n_cols, STRIDE, digits=max(digits, 1))
        programs = {"pack": pack("pack", fmt, n_cols)}
        self.scratch_nbytes = 64
        if quantized:
            assert isinstance(fmt, BlockFormat)
            self.scratch_nbytes = scratch_nbytes(isa, fmt, n_cols)
            for symbol, shape, schedule in (
                ("one", added, MatmulSchedule(1)),
                ("tiled", added, MatmulSchedule(4, 3 if name in ALL_LEVELS else 2)),
                ("plain", plain, MatmulSchedule(2, 0 if name in ALL_LEVELS else 1)),
            ):
                # one of those compared prefetches, also past the end of the matrix
                ahead = replace(isa, prefetch=4096 if symbol == "one" else 0)
                programs[symbol] = matmul_int(symbol, ahead, fmt, shape, schedule)
        else:
            self.scratch_nbytes = max(float_scratch_nbytes(fmt, n_cols), 64)
            for symbol, shape, tile in (("one", added, 1), ("tiled", added, 4), ("plain", plain, 2)):
                programs[symbol] = matmul_float(symbol, isa, fmt, shape, self.in_stride, tile)
        self.kernels = Kernels(level, programs, folder)

    def panels(self, raw: Bytes) -> Memory:
        """Interleave rows, which start at an odd multiple of two bytes as in files of the wild."""
        n = len(raw)
        packed = Memory(n_panels(n) * PanelLayout(FORMATS[self.name], self.n_cols).nbytes)
        source = Memory(raw, skew=0 if raw.nbytes % 4 == 2 else 2)
        assert source.address % 4 == 2 or raw.nbytes % 2
        self.kernels("pack", source, packed, n=n, end=n_panels(n))
        return packed

    def inputs(self, x: Floats) -> tuple[Memory, Doubles]:
        """Activations in memory, and the values they stand for."""
        if self.quantized:
            rows, values = quantize_reference(x, self.digits)
            return Memory(rows, skew=4), values
        padded = np.full((len(x), self.in_stride), np.nan, np.float32)
        padded[:, : self.n_cols] = x
        # the last row ends where the forbidden page begins
        return Memory(padded.reshape(-1)[: -(self.in_stride - self.n_cols)]), x.astype(np.float64)

    def run(self, symbol: str, panels: Memory, x: Memory, start: Floats, bias: Memory | None, n_rows: int) -> Floats:
        """Outputs [n_tokens, STRIDE]; what was there before is `start`."""
        out = Memory(start)
        scratch = Memory(2 * self.scratch_nbytes)
        arguments = (panels, x, out, bias, None, None, None, scratch)
        half = n_panels(n_rows) // 2
        # as two workers would: tasks split anywhere, and scratch of their own
        self.kernels(symbol, *arguments, n=len(start), end=half)
        self.kernels(symbol, *arguments, n=len(start), begin=half, end=n_panels(n_rows), worker=1)
        return out.view(np.float32, *start.shape).copy()

    def tolerance(self, weights: Doubles, values: Doubles) -> Doubles:
        """Bound of the rounding errors of float32 sums, [n_tokens, n_rows]."""
        largest = np.abs(weights).max(1)
        if self.quantized:
            # terms are groups; a minimum and its codes may cancel, so they are bounded by the largest weight
            return (4 * (self.n_cols / 16 + 8) * EPS) * (np.abs(values).sum(1)[:, None] * largest)
        return (8 * np.sqrt(self.n_cols) + 8) * EPS * (np.abs(values) @ np.abs(weights).T)


@pytest.fixture(scope="module")
def product(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Product:
    level, name, digits = request.param
    return Product(level, name, N_COLS[name], tmp_path_factory.mktemp("kernels"), digits=digits)


@pytest.fixture(scope="module")
def decoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Product:
    """Integer formats with float activations."""
    level, name, _ = request.param
    return Product(level, name, N_COLS[name], tmp_path_factory.mktemp("kernels"), digits=0)


def check_values(p: Product) -> None:
    rng = fresh_rng()
    raw, weights = random_weights(rng, p.name, N_ROWS, p.n_cols)
    x, values = p.inputs(random_activations(rng, N_TOKENS, p.n_cols))
    bias = rng.standard_normal(N_ROWS).astype(np.float32)
    start = rng.standard_normal((N_TOKENS, STRIDE)).astype(np.float32)
    product = values @ weights.T
    tolerance = p.tolerance(weights, values)
    panels = p.panels(raw)

    nothing = np.full_like(start, np.nan)
    out = p.run("plain", panels, x, nothing, None, N_ROWS)
    assert (np.abs(out[:, :N_ROWS] - product) <= tolerance).all()
    assert np.isnan(out[:, n_panels(N_ROWS) * PANEL :]).all(), "columns past the last panel belong to someone else"

    expected = start[:, :N_ROWS] + (product + bias)
    slack = tolerance + 4 * EPS * (np.abs(product) + np.abs(bias) + np.abs(start[:, :N_ROWS]))
    for symbol in ("one", "tiled"):
        out = p.run(symbol, panels, x, start, Memory(bias), N_ROWS)
        assert (np.abs(out[:, :N_ROWS] - expected) <= slack).all(), symbol
        assert np.array_equal(out[:, n_panels(N_ROWS) * PANEL :], start[:, n_panels(N_ROWS) * PANEL :])


def check_batch_invariance(p: Product) -> None:
    """A token's outputs have the same bits alone, in any batch, and under any schedule."""
    rng = fresh_rng()
    raw, _ = random_weights(rng, p.name, N_ROWS, p.n_cols)
    activations = random_activations(rng, N_TOKENS, p.n_cols)
    bias = Memory(rng.standard_normal(N_ROWS).astype(np.float32))
    start = rng.standard_normal((N_TOKENS, STRIDE)).astype(np.float32)
    panels = p.panels(raw)
    whole = p.run("one", panels, p.inputs(activations)[0], start, bias, N_ROWS)[:, :N_ROWS]
    for n in range(1, N_TOKENS + 1):
        for symbol in ("one", "tiled"):
            first = rng.integers(N_TOKENS - n + 1)
            some = slice(first, first + n)
            out = p.run(symbol, panels, p.inputs(activations[some])[0], start[some], bias, N_ROWS)[:, :N_ROWS]
            assert np.array_equal(out.view(np.uint32), whole[some].view(np.uint32)), f"{symbol}, {n} tokens"


def check_row_counts(p: Product) -> None:
    """Fewer rows than a panel has, and one more; rows past the last are zero and harm nobody."""
    rng = fresh_rng()
    x, values = p.inputs(random_activations(rng, 3, p.n_cols))
    for n_rows in ROW_COUNTS:
        raw, weights = random_weights(rng, p.name, n_rows, p.n_cols)
        out = p.run("plain", p.panels(raw), x, np.full((3, STRIDE), np.nan, np.float32), None, n_rows)
        assert (np.abs(out[:, :n_rows] - values @ weights.T) <= p.tolerance(weights, values)).all()
        assert (out[:, n_rows : n_panels(n_rows) * PANEL] == 0).all()


@pytest.mark.parametrize("product", cases(FLOATS + INTEGERS, (1, 2)), indirect=True)
class TestProducts:
    def test_values(self, product: Product) -> None:
        check_values(product)

    def test_batch_invariance(self, product: Product) -> None:
        check_batch_invariance(product)

    def test_row_counts(self, product: Product) -> None:
        check_row_counts(product)


@pytest.mark.parametrize("decoded", cases(INTEGERS, (0,)), indirect=True)
class TestFloatActivations:
    def test_values(self, decoded: Product) -> None:
        check_values(decoded)

    def test_batch_invariance(self, decoded: Product) -> None:
        check_batch_invariance(decoded)

    def test_row_counts(self, decoded: Product) -> None:
        check_row_counts(decoded)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOATS + INTEGERS)
@pytest.mark.parametrize("level", LEVELS)
def test_other_widths(level: str, name: str, tmp_path: Any) -> None:
    """One block, one column, and rows long enough for sums to drift."""
    p = Product(level, name, LONG_COLS[name], tmp_path, digits=2 if name in INTEGERS else 0)
    check_values(p)
    check_batch_invariance(p)
    check_row_counts(p)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_schedule_gives_the_same_bits(level: str, name: str, tmp_path: Any) -> None:
    """Whatever a tuner chooses: tiles of any size, decoded in registers or once into scratch."""
    rng = fresh_rng()
    fmt, n_cols = FORMATS[name], N_COLS[name]
    assert isinstance(fmt, BlockFormat)
    schedules = [MatmulSchedule(tile, start) for tile in (1, 2, 3, 6, 8, 12) for start in (0, 1, 3, 33)]
    shape = MatmulShape(N_ROWS, n_cols, STRIDE)
    programs = {f"s{i}": matmul_int(f"s{i}", vector_isa(level), fmt, shape, s) for i, s in enumerate(schedules)}
    kernels = Kernels(level, {**programs, "pack": pack("pack", fmt, n_cols)}, tmp_path)
    raw, _ = random_weights(rng, name, N_ROWS, n_cols)
    panels = Memory(n_panels(N_ROWS) * PanelLayout(fmt, n_cols).nbytes)
    kernels("pack", Memory(raw), panels, n=N_ROWS, end=n_panels(N_ROWS))
    for n in (1, 2, 5, 13, N_TOKENS):
        rows, _ = quantize_reference(random_activations(rng, n, n_cols))
        first = None
        for i, schedule in enumerate(schedules):
            out = Memory(4 * n * STRIDE)
            scratch = Memory(scratch_nbytes(vector_isa(level), fmt, n_cols))
            kernels(f"s{i}", panels, Memory(rows), out, *[None] * 4, scratch, n=n, end=n_panels(N_ROWS))
            got = out.view(np.uint32, n, STRIDE)[:, :N_ROWS].copy()
            first = got if first is None else first
            assert np.array_equal(got, first), schedule


@pytest.mark.parametrize("name", [n if n in TWO_DIGITS else pytest.param(n, marks=pytest.mark.slow) for n in INTEGERS])
def test_levels_agree(name: str, tmp_path: Any) -> None:
    """Levels that multiply and add in one rounding give the same bits; the others differ by that rounding."""
    rng = fresh_rng()
    fmt, n_cols = FORMATS[name], N_COLS[name]
    assert isinstance(fmt, BlockFormat)
    raw, weights = random_weights(rng, name, PANEL, n_cols)
    rows, values = quantize_reference(random_activations(rng, N_TOKENS, n_cols), 2)
    shape, layout = MatmulShape(PANEL, n_cols, PANEL, digits=2), PanelLayout(fmt, n_cols)
    results = {}
    for level in PRODUCT_LEVELS:
        isa, folder = vector_isa(level), tmp_path / level
        folder.mkdir()
        programs = {"m": matmul_int("m", isa, fmt, shape, MatmulSchedule(1)), "pack": pack("pack", fmt, n_cols)}
        kernels = Kernels(level, programs, folder)
        panels, out = Memory(layout.nbytes), Memory(4 * N_TOKENS * PANEL)
        kernels("pack", Memory(raw), panels, n=PANEL, end=1)
        kernels("m", panels, Memory(rows), out, *[None] * 5, n=N_TOKENS, end=1)
        results[level] = out.view(np.float32, N_TOKENS, PANEL).copy()
    fused = [results[level].view(np.uint32) for level in PRODUCT_LEVELS if vector_isa(level).fma]
    assert all(np.array_equal(fused[0], other) for other in fused[1:])
    bound = (4 * (n_cols / 16 + 8) * EPS) * (np.abs(values).sum(1)[:, None] * np.abs(weights).max(1))
    assert all((np.abs(result - values @ weights.T) <= bound).all() for result in results.values())


@pytest.mark.parametrize("n_rows", ROW_COUNTS)
@pytest.mark.parametrize("level", LEVELS)
def test_bias_of_a_partial_panel(level: str, n_rows: int, tmp_path: Any) -> None:
    """A bias ends with its last row: nothing after it may be read, nor added to padding that others see."""
    rng = fresh_rng()
    fmt = FORMATS["F32"]
    shape = MatmulShape(n_rows, 5, PANEL * n_panels(n_rows), bias=True)
    programs = {"m": matmul_float("m", vector_isa(level), fmt, shape, 5, 1), "pack": pack("pack", fmt, 5)}
    kernels = Kernels(level, programs, tmp_path)
    raw, weights = random_weights(rng, "F32", n_rows, 5)
    x = rng.standard_normal((2, 5)).astype(np.float32)
    bias = rng.standard_normal(n_rows).astype(np.float32)
    panels, out = Memory(n_panels(n_rows) * PanelLayout(fmt, 5).nbytes), Memory(4 * 2 * shape.out_stride)
    kernels("pack", Memory(raw), panels, n=n_rows, end=n_panels(n_rows))
    arguments = (panels, Memory(x), out, Memory(bias), None, None, None, Memory(64))
    kernels("m", *arguments, n=2, end=n_panels(n_rows))
    got = out.view(np.float32, 2, shape.out_stride)[:, :n_rows]
    assert np.abs(got - (x.astype(np.float64) @ weights.T + bias)).max() < 1e-5


@pytest.mark.parametrize("name", FLOATS + INTEGERS)
def test_pack_moves_every_byte_once(name: str, tmp_path: Any) -> None:
    """Panels hold the bytes of their rows, no more and no less, and a row's bytes depend on that row only."""
    rng = fresh_rng()
    fmt, n_cols = FORMATS[name], 3 * FORMATS[name].block
    kernels = Kernels(LEVELS[-1], {"pack": pack("pack", fmt, n_cols)}, tmp_path)
    raw = rng.integers(1, 256, (PANEL + 3, n_cols // fmt.block * fmt.nbytes), dtype=np.uint8)
    size = PanelLayout(fmt, n_cols).nbytes

    def packed(rows: Bytes) -> Bytes:
        panels = Memory(2 * size)
        kernels("pack", Memory(rows), panels, n=len(rows), end=2)
        return panels.bytes.copy()

    before = packed(raw)
    assert np.array_equal(np.sort(before[:size]), np.sort(raw[:PANEL].reshape(-1)))
    rest = before[size:]
    assert np.array_equal(np.sort(rest[rest != 0]), np.sort(raw[PANEL:].reshape(-1)))
    assert (rest == 0).sum() == size - raw[PANEL:].size
    for _ in range(20):
        row, column = rng.integers(len(raw)), rng.integers(raw.shape[1])
        other = raw.copy()
        other[row, column] ^= 0xFF
        changed = np.flatnonzero(packed(other) != before)
        assert len(changed) == 1 and changed[0] // size == row // PANEL
        assert packed(other)[changed[0]] == other[row, column]


@pytest.mark.parametrize("level", LEVELS)
def test_every_line_of_a_panel_is_prefetched_once(level: str) -> None:
    from airkernels.cpu.build import compile_kernels

    isa, fmt, n_cols = replace(vector_isa(level), prefetch=4096), FORMATS["Q4_K"], 512
    assert isinstance(fmt, BlockFormat)
    program = matmul_int("product", isa, fmt, MatmulShape(N_ROWS, n_cols, STRIDE), MatmulSchedule(1))
    assembly = compile_kernels({"product": program}, isa).inspect_source("asm")
    # the loop over blocks is rolled; d and dmin share a line, but half a line each
    assert assembly.count("prefetcht1") == PANEL * fmt.nbytes // 64 + 1
