"""GPU products and matrices against float64: every format and kind of activations, odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
from block_samples import fresh_rng, random_weights
from triton_harness import Machine, decode_rows, machine, put_planes, row_block  # noqa: F401  (a fixture)

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.gemm import gemm
from airkernels.triton.layout import RowLayout, padded
from airkernels.triton.matrices import gather, gather_float, unpack
from airkernels.triton.product import product, product_float
from airkernels.triton.rows import convert

INTEGERS = [name for name, fmt in FORMATS.items() if isinstance(fmt, BlockFormat)]
OTHERS = [name for name in INTEGERS if name not in ("Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K")]
FLOATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
TOLERANCE = {"q8": 2e-6, "q16": 2e-6, "f32": 2e-6, "f16": 2e-3}


def n_cols_of(name: str) -> int:
    return 3 * FORMATS[name].block


def n_rows_of(name: str, small: int, large: int) -> int:
    """Fewer rows of blocks that take the interpreter long."""
    return large if FORMATS[name].block == 256 else small


def groups_of(name: str) -> int:
    fmt = FORMATS[name]
    assert isinstance(fmt, BlockFormat)
    return fmt.block // fmt.group


def relative(got: np.ndarray, want: np.ndarray) -> float:
    assert np.isfinite(got).all()
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("name", INTEGERS)
def test_unpacked_matrix(machine: Machine, name: str) -> None:  # noqa: F811
    rng, n_rows, n_cols = fresh_rng(), n_rows_of(name, 5, 3), n_cols_of(name)
    raw, values = random_weights(rng, name, n_rows, n_cols)
    planes = put_planes(machine, name, raw, n_cols)
    places = padded(planes.layout.n_blocks)
    out = machine.poisoned(4 * n_rows * planes.layout.unpacked_cols, "fp32")
    machine.run(
        unpack, (-(-n_rows * places // 16), groups_of(name)), planes.words, planes.halves, out,
        FORMAT=name, N_ROWS=n_rows, PLACES=places, TILE=16,
    )  # fmt: skip
    got = machine.get(out, np.float32, n_rows, FORMATS[name].block, places).transpose(0, 2, 1)
    np.testing.assert_allclose(got.reshape(n_rows, -1)[:, :n_cols], values, rtol=1e-6, atol=1e-7)
    assert not got.reshape(n_rows, -1)[:, n_cols:].any()


@pytest.mark.parametrize("name", INTEGERS)
def test_gathered_rows(machine: Machine, name: str) -> None:  # noqa: F811
    rng, n_cols = fresh_rng(), n_cols_of(name)
    raw, values = random_weights(rng, name, 7, n_cols)
    planes = put_planes(machine, name, raw, n_cols)
    n_tokens = n_rows_of(name, 3, 2)
    ids = rng.integers(0, 7, n_tokens).astype(np.int32)
    stride = n_cols + 16
    out = machine.poisoned(4 * n_tokens * stride, "fp32")
    machine.run(
        gather, (n_tokens, 1, groups_of(name)), planes.words, planes.halves, machine.put(ids), out,
        FORMAT=name, N_BLOCKS=planes.layout.n_blocks, PLACES=padded(planes.layout.n_blocks), OUT_STRIDE=stride, TILE=4,
    )  # fmt: skip
    got = machine.get(out, np.float32, n_tokens, stride)
    np.testing.assert_allclose(got[:, :n_cols], values[ids], rtol=1e-6, atol=1e-7)
    assert (got[:, n_cols:].view(np.uint32) == 0xA5A5A5A5).all()


@pytest.mark.parametrize("name", FLOATS)
def test_gathered_float_rows(machine: Machine, name: str) -> None:  # noqa: F811
    rng, n_cols = fresh_rng(), 75
    raw, values = random_weights(rng, name, 7, n_cols)
    ids = rng.integers(0, 7, 3).astype(np.int32)
    out = machine.poisoned(4 * 3 * n_cols, "fp32")
    table = machine.put(raw).at(0, FLOATS[name])
    machine.run(gather_float, (3, 2), table, machine.put(ids), out, N_COLS=n_cols, OUT_STRIDE=n_cols, TILE=64)
    assert (machine.get(out, np.float32, 3, n_cols) == values[ids]).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if kind == "q16" or name == "Q4_0" else [pytest.mark.slow])
        for name in INTEGERS
        for kind in ("q8", "q16", "f32")
    ],
)
def test_product_of_few_rows(machine: Machine, name: str, kind: str) -> None:  # noqa: F811
    rng, n_rows, n_cols, n_tokens = fresh_rng(), n_rows_of(name, 11, 3), n_cols_of(name), 2
    raw, values = random_weights(rng, name, n_rows, n_cols)
    planes = put_planes(machine, name, raw, n_cols)
    layout = RowLayout(kind, n_cols, FORMATS[name].block)
    x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
    rows = machine.poisoned(n_tokens * layout.nbytes, "u32")
    machine.run(
        convert, (n_tokens, 1), machine.put(x), rows, N=n_cols, IN_STRIDE=n_cols, OUT_STRIDE=layout.nbytes // 4,
        KIND=kind, BLOCK=layout.block, PLACES=layout.places, BLOCKS=layout.places,
    )  # fmt: skip
    rounded = decode_rows(machine.get(rows, np.uint8, n_tokens, layout.nbytes), layout)
    start, bias = rng.standard_normal((2, n_tokens, n_rows)).astype(np.float32)
    out = machine.put(start)
    tile = 32 if machine.parallel else 4
    machine.run(
        product, (-(-n_rows // tile),), planes.words, planes.halves, rows, machine.put(bias[0]), out, warps=1,
        FORMAT=name, N_ROWS=n_rows, N_COLS=n_cols, TOKENS=n_tokens, KIND=kind, X_STRIDE=layout.nbytes // 4,
        OUT_STRIDE=n_rows, ACCUMULATE=True, BIAS=True, ROWS=2, TILE=tile, COLUMNS=2,
        UNROLL=name == "Q4_0",
    )  # fmt: skip
    want = rounded @ values.T + start + bias[0]
    assert relative(machine.get(out, np.float32, n_tokens, n_rows), want) < TOLERANCE[kind]


@pytest.mark.parametrize("name", FLOATS)
def test_float_product_of_few_rows(machine: Machine, name: str) -> None:  # noqa: F811
    rng, n_rows, n_cols, n_tokens = fresh_rng(), 7, 75, 2
    raw, values = random_weights(rng, name, n_rows, n_cols)
    x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
    out = machine.poisoned(4 * n_tokens * n_rows, "fp32")
    weights = machine.put(raw).at(0, FLOATS[name])
    machine.run(
        product_float, (2,), weights, machine.put(x), out, out,
        N_ROWS=n_rows, N_COLS=n_cols, TOKENS=n_tokens, X_STRIDE=n_cols, OUT_STRIDE=n_rows, ACCUMULATE=False,
        BIAS=False, ROWS=4, COLUMNS=32,
    )  # fmt: skip
    assert relative(machine.get(out, np.float32, n_tokens, n_rows), x @ values.T) < 1e-6


@pytest.mark.parametrize(("kind", "k"), [("f16", 96), ("f32", 96), ("f16", 75)])
def test_product_of_many_rows(machine: Machine, kind: str, k: int) -> None:  # noqa: F811
    rng, n_rows, n_tokens = fresh_rng(), 37, 21
    layout = RowLayout(kind, k, 1)
    x = (rng.standard_normal((n_tokens, k)) * 1e6).astype(np.float32)
    weights = rng.standard_normal((n_rows, k)).astype({"f16": np.float16, "f32": np.float32}[kind])
    rows = machine.poisoned(n_tokens * layout.nbytes, "u32")
    machine.run(
        convert, (n_tokens, 1), machine.put(x), rows, N=k, IN_STRIDE=k, OUT_STRIDE=layout.nbytes // 4,
        KIND=kind, BLOCK=32, PLACES=0, BLOCKS=4,
    )  # fmt: skip
    rounded = decode_rows(machine.get(rows, np.uint8, n_tokens, layout.nbytes), layout)
    np.testing.assert_allclose(rounded, x, rtol=1e-3 if kind == "f16" else 0, atol=1e-3)
    bias = rng.standard_normal(n_rows).astype(np.float32)
    start = rng.standard_normal((n_tokens, n_rows)).astype(np.float32)
    out = machine.put(start)
    itemsize = weights.itemsize
    machine.run(
        gemm, (2 * 3,), machine.put(weights), rows.at(0, f"fp{8 * itemsize}"), machine.put(bias), out, n_tokens,
        N_ROWS=n_rows, K=k, X_STRIDE=layout.nbytes // itemsize, OUT_STRIDE=n_rows,
        SCALE_AT=layout.elements // 2 if kind == "f16" else -1, ACCUMULATE=True, BIAS=True,
        TOKENS=16, ROWS=16, DEPTH=32, BAND=2,
    )  # fmt: skip
    want = rounded @ weights.astype(np.float64).T + start + bias
    assert relative(machine.get(out, np.float32, n_tokens, n_rows), want) < 2e-6


def test_row_blocks_are_whole_groups() -> None:
    assert row_block("Q4_0") == (32, 32) and row_block("Q6_K") == (256, 256) and row_block("F16") == (32, 1)
