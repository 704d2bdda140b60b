"""Kernels that work on single rows, against float64 and the gguf package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from activation_samples import random_activations
from block_samples import decoded, fresh_rng, random_weights
from kernel_harness import (
    EPS,
    LEVELS,
    Doubles,
    Floats,
    Kernels,
    Memory,
    has_outlier,
    quantize_reference,
    vector_isa,
)

from airkernels.cpu.activations import QuantizedRow, quantize_rows
from airkernels.cpu.elementwise import RowShape, gated
from airkernels.cpu.norms import NormShape, norm
from airkernels.cpu.rows import gather_rows, select_rows
from airkernels.cpu.rows import quantize_rows as quantize_kernel
from airkernels.formats import FORMATS

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N_TOKENS = 9
NORM_EPS = 1e-5
# divisible by every vector, by 32 but not by 64, and odd: no vector divides it
WIDTHS = (576, 96, 75)
QUANTIZED = (576, 96)
GATHERED = {name: 75 if fmt.block == 1 else max(2 * fmt.block, 96) for name, fmt in FORMATS.items()}
CHUNK = 64

DIGITS = (1, 2)


def in_stride(n: int) -> int:
    return n + 5


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    isa = vector_isa(request.param)
    programs: dict[str, Any] = {}
    for n in WIDTHS:
        s = in_stride(n)
        programs[f"norm{n}"] = norm(f"norm{n}", isa, NormShape("rms", n, 1, n, 0, NORM_EPS, s, n + 1, 0))
        programs[f"silu{n}"] = gated(f"silu{n}", isa, RowShape(n, (s, n + 7), n + 1, CHUNK), "silu", ())
        programs[f"select{n}"] = select_rows(f"select{n}", isa, n, s, n + 1)
    for n in QUANTIZED:
        s = in_stride(n)
        for d in DIGITS:
            programs[f"quantize{d}_{n}"] = quantize_kernel(f"quantize{d}_{n}", isa, n, s, d)
            programs[f"norm{d}_{n}"] = norm(f"norm{d}_{n}", isa, NormShape("rms", n, 1, n, 0, NORM_EPS, s, 0, d))
            programs[f"silu{d}_{n}"] = gated(f"silu{d}_{n}", isa, RowShape(n, (s, n + 7), 0, CHUNK, d), "silu", ())
    for name, n in GATHERED.items():
        programs[f"gather_{name}"] = gather_rows(f"gather_{name}", isa, FORMATS[name], n, n + 1)
    for name in ("F16", "BF16"):
        programs[f"convert_{name}"] = gather_rows(f"convert_{name}", isa, FORMATS[name], 64, 64)
    return Kernels(request.param, programs, tmp_path_factory.mktemp("kernels"))


def strided(rows: Floats, stride: int) -> Memory:
    """Rows with NaNs between them; the last ends where the forbidden page begins."""
    n_rows, n = rows.shape
    padded = np.full((n_rows, stride), np.nan, np.float32)
    padded[:, :n] = rows
    return Memory(padded.reshape(-1)[: n_rows * stride - (stride - n)])


def results(memory: Memory, n_rows: int, n: int, stride: int) -> Floats:
    """Rows of an output, whose gaps must be as `Memory` filled them."""
    whole = memory.view(np.uint32, n_rows, stride)
    assert (whole[:, n:] == 0xA5A5A5A5).all(), "a kernel wrote between rows"
    return np.ascontiguousarray(whole[:, :n]).view(np.float32)


def all_rows_alike(kernels: Kernels, name: str, out: Memory, *inputs: Memory, n_rows: int, tasks: int = 1) -> None:
    """Run a kernel task by task, last first, and compare with what it wrote in one go."""
    again = Memory(out.bytes.size)
    for task in reversed(range(n_rows * tasks)):
        kernels(name, *inputs, again, n=n_rows, begin=task, end=task + 1)
    assert np.array_equal(out.bytes, again.bytes)


def check_quantized(memory: Memory, exact: Doubles, slack: Doubles, digits: int) -> None:
    """Rows stand for `exact`, values known up to `slack`, as well as so many digits can; their sums are right."""
    n_rows, n = exact.shape
    layout = QuantizedRow(n, digits)
    raw = memory.view(np.uint8, n_rows, layout.nbytes)

    def part(at: int, dtype: Any, count: int) -> Any:
        size = count * np.dtype(dtype).itemsize
        return np.ascontiguousarray(raw[:, at : at + size]).view(dtype).reshape(n_rows, count)

    planes = [part(i * n, np.int8, n).reshape(n_rows, -1, 32).astype(np.int32) for i in range(digits)]
    fine = part(layout.has_high, np.int32, n // 32) if digits == 2 else np.zeros((n_rows, n // 32), np.int32)
    assert np.isin(fine, (0, 1)).all()
    if digits == 2:
        assert not planes[1][fine == 0].any(), "kernels multiply these too if another token of the tile has them"
    codes = planes[0] if digits == 1 else planes[0] + 128 * planes[1]
    most = np.where(fine, 127 * 128, 127)
    scale = part(layout.scale, np.float32, n // 32)
    sums = codes.sum(2)
    assert np.array_equal(part(layout.negative_sum, np.int32, n // 32), -sums)
    assert np.array_equal(part(layout.scaled_sum, np.float32, n // 32), scale * sums.astype(np.float32))
    halves = codes.reshape(n_rows, -1, 16).sum(2)
    assert np.array_equal(part(layout.negative_half_sum, np.int32, n // 16), -halves)

    groups, room = exact.reshape(codes.shape), slack.reshape(codes.shape)
    assert np.isfinite(scale).all()
    assert (np.abs(codes).max(2) <= most).all()
    step = np.abs(groups).max(2) / most
    # below this the scale has few bits or no reciprocal: such values count as nothing beside any other
    normal = step > 1.2e-38
    assert np.array_equal(fine[normal] == 1, has_outlier(groups[normal]) & (digits == 2))
    assert (np.abs(codes).max(2) > 0.98 * most)[normal].all()
    assert (np.abs(scale - step)[normal] <= 0.02 * step[normal] + room.max(2)[normal]).all()
    error = codes * scale[..., None].astype(np.float64) - groups
    assert (np.abs(error)[normal] <= (step[..., None] + room)[normal]).all()
    assert (np.abs(error)[~normal] <= 2e-34).all()
    # no worse than the scale that takes the largest value to 127
    best = np.rint(groups / np.where(step > 0, step, 1)[..., None]) * step[..., None] - groups
    usual, found = (np.sqrt((e[normal] ** 2).sum(1)) for e in (best, error))
    assert (found <= 1.001 * usual + np.sqrt((room[normal] ** 2).sum(1)) + 1e-3 * step[normal]).all()


def extreme_activations(rng: np.random.Generator, n: int) -> Floats:
    x = random_activations(rng, N_TOKENS, n)
    x[5] = np.float32(1e-42)  # subnormal
    x[6] *= np.float32(1e-36)
    x[7, : n // 2] = 0
    x[8] = np.float32(-3.0)
    return x


@pytest.mark.parametrize("n", WIDTHS)
def test_rms_norm(kernels: Kernels, n: int) -> None:
    rng = fresh_rng()
    x = random_activations(rng, N_TOKENS, n)
    x[2] *= np.float32(1e-8)  # its squares would not be floats
    weight = rng.standard_normal(n).astype(np.float32)
    out = Memory(4 * N_TOKENS * (n + 1))
    inputs = (strided(x, in_stride(n)), Memory(weight))
    kernels(f"norm{n}", *inputs, out, n=N_TOKENS, end=N_TOKENS)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + NORM_EPS) * weight
    assert (np.abs(results(out, N_TOKENS, n, n + 1) - exact) <= 24 * EPS * np.abs(exact)).all()
    all_rows_alike(kernels, f"norm{n}", out, *inputs, n_rows=N_TOKENS)


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("n", QUANTIZED)
def test_rms_norm_to_digits(kernels: Kernels, n: int, digits: int) -> None:
    rng = fresh_rng()
    x = random_activations(rng, N_TOKENS, n)
    x[2] *= np.float32(1e-8)
    weight = rng.standard_normal(n).astype(np.float32)
    out = Memory(N_TOKENS * QuantizedRow(n, digits).nbytes)
    inputs = (strided(x, in_stride(n)), Memory(weight))
    kernels(f"norm{digits}_{n}", *inputs, out, n=N_TOKENS, end=N_TOKENS)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + NORM_EPS) * weight
    check_quantized(out, exact, 24 * EPS * np.abs(exact), digits)
    all_rows_alike(kernels, f"norm{digits}_{n}", out, *inputs, n_rows=N_TOKENS)


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("n", QUANTIZED)
def test_quantize(kernels: Kernels, n: int, digits: int) -> None:
    x = extreme_activations(fresh_rng(), n)
    out = Memory(N_TOKENS * QuantizedRow(n, digits).nbytes)
    source = strided(x, in_stride(n))
    kernels(f"quantize{digits}_{n}", source, None, out, n=N_TOKENS, end=N_TOKENS)
    check_quantized(out, x.astype(np.float64), np.zeros(x.shape), digits)
    again = Memory(N_TOKENS * QuantizedRow(n, digits).nbytes)
    for row in range(N_TOKENS):
        kernels(f"quantize{digits}_{n}", source, None, again, n=N_TOKENS, begin=row, end=row + 1)
    assert np.array_equal(out.bytes, again.bytes)


@pytest.mark.parametrize("digits", DIGITS)
def test_quantize_is_the_same_on_every_machine(kernels: Kernels, digits: int) -> None:
    """Bytes and scales equal those of the numpy version, whatever the instruction set."""
    x = fresh_rng().standard_normal((N_TOKENS, 576)).astype(np.float32)
    out = Memory(N_TOKENS * QuantizedRow(576, digits).nbytes)
    kernels(f"quantize{digits}_576", strided(x, in_stride(576)), None, out, n=N_TOKENS, end=N_TOKENS)
    layout, got = QuantizedRow(576, digits), out.view(np.uint8, N_TOKENS, -1)
    expected = quantize_rows(x, digits)
    assert np.array_equal(got[:, : layout.scale], expected[:, : layout.scale])
    scales = [np.ascontiguousarray(a[:, layout.scale : layout.negative_sum]).view(np.float32) for a in (got, expected)]
    assert np.abs(scales[0] / scales[1] - 1).max() < 16 * EPS


@pytest.mark.parametrize("digits", DIGITS)
def test_the_numpy_quantizer_itself(digits: int) -> None:
    x = fresh_rng().standard_normal((5, 96)).astype(np.float32)
    for rows in (quantize_rows(x, digits), quantize_reference(x, digits)[0]):
        check_quantized(Memory(rows), x.astype(np.float64), np.zeros(x.shape), digits)


def gate_and_up(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, Doubles]:
    gate = (rng.standard_normal((N_TOKENS, n)) * 6).astype(np.float32)
    # both ends of the range of exp, and far beyond
    gate[1] = rng.choice(np.array([-1e4, -120, -88, -87, -20, 0, 20, 87, 88, 120, 1e4], np.float32), n)
    gate[2] *= np.float32(1e-30)
    up = random_activations(rng, N_TOKENS, n)
    up[2] *= np.float32(1e-25)
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        return gate, up, wide / (1 + np.exp(-wide)) * up


@pytest.mark.parametrize("n", WIDTHS)
def test_gated_silu(kernels: Kernels, n: int) -> None:
    gate, up, exact = gate_and_up(fresh_rng(), n)
    out = Memory(4 * N_TOKENS * (n + 1))
    inputs = (strided(gate, in_stride(n)), strided(up, n + 7))
    tasks = -(-n // CHUNK)
    kernels(f"silu{n}", *inputs, out, n=N_TOKENS, end=N_TOKENS * tasks)
    got = results(out, N_TOKENS, n, n + 1)
    # where the result vanishes beside its factors, absolute error is what matters
    assert (np.abs(got - exact) <= 6 * EPS * np.abs(exact) + 1e-30 * np.abs(up)).all()
    all_rows_alike(kernels, f"silu{n}", out, *inputs, n_rows=N_TOKENS, tasks=tasks)


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("n", QUANTIZED)
def test_gated_silu_to_digits(kernels: Kernels, n: int, digits: int) -> None:
    gate, up, exact = gate_and_up(fresh_rng(), n)
    out = Memory(N_TOKENS * QuantizedRow(n, digits).nbytes)
    inputs = (strided(gate, in_stride(n)), strided(up, n + 7))
    tasks = -(-n // CHUNK)
    kernels(f"silu{digits}_{n}", *inputs, out, n=N_TOKENS, end=N_TOKENS * tasks)
    check_quantized(out, exact, 6 * EPS * np.abs(exact) + 1e-30 * np.abs(up), digits)


@pytest.mark.parametrize("n", WIDTHS)
def test_select_rows(kernels: Kernels, n: int) -> None:
    rng = fresh_rng()
    x = rng.standard_normal((N_TOKENS, n)).astype(np.float32)
    rows = np.array([8, 0, 3, 3], np.int32)
    out = Memory(4 * len(rows) * (n + 1))
    inputs = (strided(x, in_stride(n)), Memory(rows))
    kernels(f"select{n}", *inputs, out, n=len(rows), end=len(rows))
    assert np.array_equal(results(out, len(rows), n, n + 1), x[rows])
    all_rows_alike(kernels, f"select{n}", out, *inputs, n_rows=len(rows))


@pytest.mark.parametrize("name", GATHERED)
def test_gather_rows(kernels: Kernels, name: str) -> None:
    rng = fresh_rng()
    n = GATHERED[name]
    raw, _ = random_weights(rng, name, 12, n)
    ids = np.array([11, 0, 5, 5, 1], np.int32)
    # the table ends with the file, and stands at an odd multiple of two bytes
    table = Memory(raw, skew=0 if raw.nbytes % 4 == 2 else 2)
    out = Memory(4 * len(ids) * (n + 1))
    inputs = (table, Memory(ids))
    kernels(f"gather_{name}", *inputs, out, n=len(ids), end=len(ids))
    expected = decoded(name, raw).reshape(12, n)[ids]
    assert np.array_equal(results(out, len(ids), n, n + 1).view(np.uint32), expected.view(np.uint32))
    all_rows_alike(kernels, f"gather_{name}", out, *inputs, n_rows=len(ids))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_short_float(kernels: Kernels, name: str) -> None:
    """All 65536 patterns: subnormals, both zeros, infinities; a NaN stays one."""
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(1024, 64)
    ids = np.arange(1024, dtype=np.int32)
    out = Memory(4 * patterns.size)
    kernels(f"convert_{name}", Memory(patterns), Memory(ids), out, n=1024, end=1024)
    got = out.view(np.float32, 1024, 64)
    wide = patterns.astype(np.uint32) << 16
    expected = patterns.view(np.float16).astype(np.float32) if name == "F16" else wide.view(np.float32)
    numbers = ~np.isnan(expected)
    assert np.array_equal(got[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(got[~numbers]).all()
