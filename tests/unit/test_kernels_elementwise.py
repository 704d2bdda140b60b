"""Functions of elements and kernels over pairs of values, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from kernel_harness import EPS, LEVELS, Doubles, Floats, Kernels, Memory, vector_isa
from reference_functions import activation, gate

from airkernels.cpu.elementwise import RowShape, add, gated, join, multiply, scale_by_position
from airkernels.cpu.elementwise import activation as activation_kernel

pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernels for this processor")

N_ROWS, CHUNK = 5, 64
# divisible by every vector, and odd: whole vectors and a tail in each chunk
WIDTHS = (192, 75)
FUNCTIONS: dict[str, tuple[float, ...]] = {
    "silu": (),
    "gelu": (),
    "gelu_tanh": (),
    "gelu_quick": (),
    "relu": (),
    "relu2": (),
    "sigmoid": (),
    "tanh": (),
    "exp": (),
    "softplus": (),
    "xielu": (0.9, 1.3, 0.5, -1e-6),
    "scale": (0.37,),
    "clamp": (-1.5, 2.0),
    "softcap": (30.0,),
}
GATES: dict[str, tuple[float, ...]] = {"gelu_tanh": (), "relu2": (), "swiglu_oai": (1.702, 7.0)}
SCALES = (1.0, 0.22)
PERIODS = (1, 7, 8192)


def stride(n: int) -> int:
    return n + 3


@pytest.fixture(
    scope="module", params=[pytest.param(level, marks=[pytest.mark.slow] * (i > 0)) for i, level in enumerate(LEVELS)]
)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    isa, programs = vector_isa(request.param), dict[str, Any]()
    for n in WIDTHS:
        one, two = RowShape(n, (stride(n),), n + 1, CHUNK), RowShape(n, (stride(n), n + 7), n + 1, CHUNK)
        same = RowShape(n, (stride(n), 0), n + 1, CHUNK)
        for kind, parameters in FUNCTIONS.items():
            programs[f"{kind}{n}"] = activation_kernel(f"{kind}{n}", isa, one, kind, parameters)
        for kind, parameters in GATES.items():
            programs[f"gate_{kind}{n}"] = gated(f"gate_{kind}{n}", isa, two, kind, parameters)
        for i, factor in enumerate(SCALES):
            programs[f"add{i}_{n}"] = add(f"add{i}_{n}", isa, two, factor)
        programs[f"multiply{n}"] = multiply(f"multiply{n}", isa, two, 1)
        programs[f"vector{n}"] = multiply(f"vector{n}", isa, same, 1)
        for group in (n // 3, 3):
            programs[f"groups{group}_{n}"] = multiply(f"groups{group}_{n}", isa, two, group)
        for period in PERIODS:
            name = f"position{period}_{n}"
            programs[name] = scale_by_position(name, isa, one, period, 0.1)
        joined = RowShape(n + 40, (stride(n), 43), n + 41, n + 40)
        programs[f"join{n}"] = join(f"join{n}", isa, joined, (n, 40), (1, 5))
        programs[f"copy{n}"] = join(f"copy{n}", isa, RowShape(n, (stride(n),), n + 1, n), (n,), (1,))
        programs[f"single{n}"] = multiply(f"single{n}", isa, same, n)
    return Kernels(request.param, programs, tmp_path_factory.mktemp("kernels"))


def strided(rows: Floats, row_stride: int) -> Memory:
    padded = np.full((len(rows), row_stride), np.nan, np.float32)
    padded[:, : rows.shape[1]] = rows
    return Memory(padded.reshape(-1)[: padded.size - (row_stride - rows.shape[1])])


def run(kernels: Kernels, name: str, n: int, *inputs: Memory) -> Floats:
    """All rows at once, checked to be what each task alone makes."""
    tasks = N_ROWS * -(-n // CHUNK)
    places = (*inputs, *(None,) * (2 - len(inputs)))
    out, again = Memory(4 * N_ROWS * (n + 1)), Memory(4 * N_ROWS * (n + 1))
    kernels(name, *places, out, n=N_ROWS, end=tasks)
    for task in reversed(range(tasks)):
        kernels(name, *places, again, n=N_ROWS, begin=task, end=task + 1)
    assert np.array_equal(out.bytes, again.bytes)
    rows = out.view(np.float32, N_ROWS, n + 1)
    assert (rows[:, n].view(np.uint32) == 0xA5A5A5A5).all()
    return rows[:, :n].copy()


def samples(rng: np.random.Generator, n: int) -> Floats:
    """Ordinary values, small ones, the ends of functions, and values on a fine grid."""
    x = rng.standard_normal((N_ROWS, n)).astype(np.float32)
    x[1] *= np.float32(1e-4)
    x[2] *= np.float32(5)
    x[3] = rng.choice(np.array([-1e4, -90, -20, -9, -5, -0.5, -0.0, 0.0, 0.5, 4, 9, 20, 90, 1e4], np.float32), n)
    x[4] = np.linspace(-8, 8, n)
    return x


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_function(kernels: Kernels, kind: str, n: int) -> None:
    x = samples(fresh_rng(), n)
    exact = activation(kind, FUNCTIONS[kind], x.astype(np.float64))
    got = run(kernels, f"{kind}{n}", n, strided(x, stride(n)))
    error = np.abs(got - exact)
    room = relative_room(kind, x) * np.abs(exact) + 1e-30
    # these are a difference that vanishes beside their argument
    room += 4 * EPS * np.minimum(np.abs(x), 16.0) if kind in ("gelu", "xielu") else 0
    assert (error <= room).all(), (x[error > room], got[error > room], exact[error > room])


def relative_room(kind: str, x: Floats) -> Doubles:
    """Where an exponential is small, an error of its argument is one of as many units as that is large."""
    wide = np.abs(x.astype(np.float64))
    exponent = {"gelu_tanh": 1.6 * (wide + 0.045 * wide**3), "gelu_quick": 1.702 * wide, "swiglu_oai": 1.702 * wide}
    return np.asarray(EPS * (12 + 4 * np.minimum(exponent.get(kind, 0 * wide), 88)))


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("kind", GATES)
def test_gate(kernels: Kernels, kind: str, n: int) -> None:
    rng = fresh_rng()
    x, up = samples(rng, n), samples(rng, n)
    exact = gate(kind, GATES[kind], x.astype(np.float64), up.astype(np.float64))
    got = run(kernels, f"gate_{kind}{n}", n, strided(x, stride(n)), strided(up, n + 7))
    room = relative_room(kind, x) * np.abs(exact) + 1e-26
    # 1 is added to `up`
    room += 4 * EPS * np.abs(x) if kind == "swiglu_oai" else 0
    error = np.abs(got - exact)
    assert (error <= room).all(), (x[error > room], got[error > room], exact[error > room])


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("i", range(len(SCALES)))
def test_add(kernels: Kernels, i: int, n: int) -> None:
    rng = fresh_rng()
    a, b = samples(rng, n), samples(rng, n)
    scaled = np.float64(np.float32(SCALES[i])) * b
    got = run(kernels, f"add{i}_{n}", n, strided(a, stride(n)), strided(b, n + 7))
    assert (np.abs(got - (a + scaled)) <= 2 * EPS * (np.abs(a) + np.abs(scaled))).all()


@pytest.mark.parametrize("n", WIDTHS)
def test_products(kernels: Kernels, n: int) -> None:
    rng = fresh_rng()
    a, b = samples(rng, n), samples(rng, n)
    assert np.array_equal(run(kernels, f"multiply{n}", n, strided(a, stride(n)), strided(b, n + 7)), a * b)
    assert np.array_equal(run(kernels, f"vector{n}", n, strided(a, stride(n)), Memory(b[0])), a * b[0])
    assert np.array_equal(run(kernels, f"single{n}", n, strided(a, stride(n)), Memory(b[0, :1])), a * b[0, 0])
    for group in (n // 3, 3):
        few = np.ascontiguousarray(b[:, : n // group])
        got = run(kernels, f"groups{group}_{n}", n, strided(a, stride(n)), strided(few, n + 7))
        assert np.array_equal(got, a * np.repeat(few, group, axis=1))


def test_the_reference_itself() -> None:
    """Values anybody can look up."""
    x: Doubles = np.array([1.0, -1.0, 0.0])
    np.testing.assert_allclose(activation("gelu", (), x), [0.8413447460685429, -0.15865525393145707, 0], atol=1e-15)
    tanh = activation("gelu_tanh", (), x)
    np.testing.assert_allclose(tanh, [0.8411919906082768, -0.15880800939172324, 0], atol=1e-15)
    np.testing.assert_allclose(activation("silu", (), x), [0.7310585786300049, -0.2689414213699951, 0], atol=1e-15)


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("period", PERIODS)
def test_scale_by_position(kernels: Kernels, period: int, n: int) -> None:
    """Within the first period nothing changes; positions reach as far as contexts do."""
    rng = fresh_rng()
    x = samples(rng, n)
    cells = np.array([0, period - 1, 2 * period, 100_003, 10_000_000], np.int32)
    factor = 1 + np.float64(np.float32(0.1)) * np.log1p((cells.astype(np.int64) + 1) // period)
    got = run(kernels, f"position{period}_{n}", n, strided(x, stride(n)), Memory(cells))
    exact = x * factor[:, None]
    assert (np.abs(got - exact) <= 8 * EPS * np.abs(exact)).all()
    assert period < 3 or np.array_equal(got[0], x[0])


@pytest.mark.parametrize("n", WIDTHS)
def test_join(kernels: Kernels, n: int) -> None:
    """Columns side by side, of which the second input has a row for every five; and a copy."""
    rng = fresh_rng()
    a, b = samples(rng, n), rng.standard_normal((1, 40)).astype(np.float32)
    out = Memory(4 * N_ROWS * (n + 41))
    for first, last in ((2, N_ROWS), (0, 2)):
        kernels(f"join{n}", strided(a, stride(n)), strided(b, 43), out, n=N_ROWS, begin=first, end=last)
    rows = out.view(np.float32, N_ROWS, n + 41)
    assert np.array_equal(rows[:, :n], a) and np.array_equal(rows[:, n : n + 40], np.repeat(b, N_ROWS, axis=0))
    assert (rows[:, -1].view(np.uint32) == 0xA5A5A5A5).all()
    alone = Memory(4 * N_ROWS * (n + 1))
    kernels(f"copy{n}", strided(a, stride(n)), None, alone, n=N_ROWS, end=N_ROWS)
    assert np.array_equal(alone.view(np.float32, N_ROWS, n + 1)[:, :n], a)
