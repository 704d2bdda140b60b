"""GPU kernels that work element by element, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from activation_samples import random_activations
from block_samples import fresh_rng
from reference_functions import activation as exact_activation
from reference_functions import gate as exact_gate
from triton_harness import Machine, decode_rows, machine  # noqa: F401  (a fixture)

from airkernels.triton.elementwise import activation, add, gated, multiply, scale_by_position
from airkernels.triton.layout import RowLayout

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
GATES: dict[str, tuple[float, ...]] = {"silu": (), "gelu_tanh": (), "relu2": (), "swiglu_oai": (1.702, 7.0)}
LARGE = np.array([-86, 86, 0, -1e4, 1e4, 87, -87, 1e-3, -1e-3, 1e-7], np.float32)
KINDS = [("f32", 1, 93), ("f32", 32, 96), ("f16", 256, 768), ("q8", 32, 96), ("q16", 256, 768)]
STEP = {"f32": 0.0, "f16": 2.0**-11, "q8": 0.51 / 127, "q16": 0.51 / 16256}
"""Largest error of rounding, of the largest element of its group."""


def function(kind: str, parameters: tuple[float, ...]) -> dict[str, str | float]:
    return {"FUNCTION": kind, **dict(zip("ABCD", (*parameters, 0.0, 0.0, 0.0, 0.0), strict=False))}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions(machine: Machine, kind: str) -> None:  # noqa: F811
    rng, n, n_rows, stride = fresh_rng(), 75, 3, 80
    x = (rng.standard_normal((n_rows, stride)) * 4).astype(np.float32)
    x[1, : len(LARGE)] = np.clip(LARGE, -86, 86) if kind == "exp" else LARGE
    layout = RowLayout("f32", n, 1)
    out = machine.poisoned(n_rows * layout.nbytes, "u32")
    machine.run(
        activation, (n_rows, 2), machine.put(x), out, N=n, IN_STRIDE=stride, OUT_STRIDE=layout.nbytes // 4,
        KIND="f32", BLOCK=32, PLACES=0, BLOCKS=2, **function(kind, FUNCTIONS[kind]),
    )  # fmt: skip
    got = machine.get(out, np.float32, n_rows, layout.nbytes // 4)
    x = x[:, :n].astype(np.float64)
    want = exact_activation(kind, FUNCTIONS[kind], x)
    # an exponential loses what its argument lost, and a GELU is a difference from 0 far out
    np.testing.assert_allclose(
        got[:, :n], want, rtol=2e-6 + (2e-7 * np.abs(x).max() if kind == "exp" else 0), atol=1e-6
    )
    assert (got[:, n : -(-n // 4) * 4] == 0).all()


@pytest.mark.parametrize(("row", "block", "n"), KINDS)
@pytest.mark.parametrize("kind", GATES)
def test_gates(machine: Machine, kind: str, row: str, block: int, n: int) -> None:  # noqa: F811
    rng, n_rows = fresh_rng(), 3
    layout = RowLayout(row, n, block)
    both = (rng.standard_normal((n_rows, 2 * n)) * 4).astype(np.float32)
    both[1, : len(LARGE)] = LARGE
    out = machine.poisoned(n_rows * layout.nbytes, "u32")
    tile, covered = max(block, 32), layout.places if block > 1 else -(-n // 32)
    whole = 1 << (covered - 1).bit_length()
    blocks = whole if row == "f16" else min(2, whole)
    memory = machine.put(both)
    machine.run(
        gated, (n_rows, -(-whole // blocks)), memory, memory.at(4 * n), out,
        N=n, GATE_STRIDE=2 * n, UP_STRIDE=2 * n, OUT_STRIDE=layout.nbytes // 4, KIND=row, BLOCK=tile,
        PLACES=layout.places if block > 1 else 0, BLOCKS=blocks, **function(kind, GATES[kind]),
    )  # fmt: skip
    got = decode_rows(machine.get(out, np.uint8, n_rows, layout.nbytes), layout)
    want = exact_gate(kind, GATES[kind], *np.split(both.astype(np.float64), 2, 1))
    size = np.abs(want).max(1, keepdims=True)
    if row[0] == "q":
        size = np.repeat(np.abs(want.reshape(n_rows, -1, 32)).max(2), 32, 1)
    elif row == "f16":
        # of the element, but what is far below the largest keeps fewer digits
        size = np.maximum(np.abs(want), size * 2.0**-13)
    assert (np.abs(got - want) <= STEP[row] * size + 4e-6 * np.abs(want) + 1e-6).all()


@pytest.mark.parametrize("scale", [1.0, 0.22])
@pytest.mark.parametrize("vector", [False, True])
def test_sums(machine: Machine, vector: bool, scale: float) -> None:  # noqa: F811
    rng, n, n_rows = fresh_rng(), 75, 4
    a, b = random_activations(rng, n_rows, 80), random_activations(rng, n_rows, 84)
    memory = machine.put(a)  # the result takes its place
    machine.run(
        add, (n_rows, 2), memory, machine.put(b), memory,
        SCALE=scale, N=n, A_STRIDE=80, B_STRIDE=0 if vector else 84, OUT_STRIDE=80, TILE=64,
    )  # fmt: skip
    got = machine.get(memory, np.float32, n_rows, 80)
    want = a[:, :n] + np.float64(scale) * (b[:1] if vector else b)[:, :n]
    np.testing.assert_allclose(got[:, :n], want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    assert (got[:, n:] == a[:, n:]).all()


@pytest.mark.parametrize("group", [1, 5, 75])
@pytest.mark.parametrize("vector", [False, True])
def test_products(machine: Machine, vector: bool, group: int) -> None:  # noqa: F811
    rng, n, n_rows = fresh_rng(), 75, 4
    a, b = (rng.standard_normal((n_rows, stride)).astype(np.float32) for stride in (80, 84))
    out = machine.poisoned(4 * n_rows * 76, "fp32")
    machine.run(
        multiply, (n_rows, 2), machine.put(a), machine.put(b), out,
        GROUP=group, N=n, A_STRIDE=80, B_STRIDE=0 if vector else 84, OUT_STRIDE=76, TILE=64,
    )  # fmt: skip
    factors = np.repeat((b[:1] if vector else b)[:, : n // group], group, 1).astype(np.float64)
    got = machine.get(out, np.float32, n_rows, 76)
    np.testing.assert_allclose(got[:, :n], a[:, :n] * factors, rtol=1e-6)


def test_scale_by_position(machine: Machine) -> None:  # noqa: F811
    rng, n, period, strength = fresh_rng(), 75, 7, 0.1
    x = random_activations(rng, 5, 80)
    cells = np.array([0, 6, 7, 5000, 13], np.int32)
    out = machine.poisoned(4 * 5 * 80, "fp32")
    machine.run(
        scale_by_position, (5, 2), machine.put(x), machine.put(cells), out,
        PERIOD=period, STRENGTH=strength, N=n, IN_STRIDE=80, OUT_STRIDE=80, TILE=64,
    )  # fmt: skip
    factor = 1 + strength * np.log(1 + np.floor((cells + 1) / period))
    np.testing.assert_allclose(machine.get(out, np.float32, 5, 80)[:, :n], x[:, :n] * factor[:, None], rtol=1e-6)
