"""GPU kernels over residual streams and statistics of rows, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from block_samples import fresh_rng
from triton_harness import Machine, machine  # noqa: F401  (a fixture)

from airkernels.triton.streams import combine_streams, cut_off, match_size

N, N_ROWS = 75, 3


@pytest.mark.parametrize("n_streams", [1, 3, 4])
def test_combined_streams(machine: Machine, n_streams: int) -> None:  # noqa: F811
    rng = fresh_rng()
    base, *streams = (rng.standard_normal((N_ROWS, stride)).astype(np.float32) for stride in (80, 76, 77, 78, 79))
    coefficients = rng.standard_normal((N_ROWS, 9)).astype(np.float32)
    out = machine.poisoned(4 * N_ROWS * 84, "fp32")
    given = [machine.put(x) for x in streams]
    machine.run(
        combine_streams, (N_ROWS, 2), machine.put(base), machine.put(coefficients), *given, out,
        N=N, N_STREAMS=n_streams, FIRST=2, OFFSET=1.0, BASE_STRIDE=80, COEFFICIENT_STRIDE=9, STRIDE_0=76, STRIDE_1=77,
        STRIDE_2=78, STRIDE_3=79, OUT_STRIDE=84, TILE=64,
    )  # fmt: skip
    factors = coefficients.astype(np.float64) + 1
    want = base[:, :N] + sum(factors[:, 2 + j, None] * streams[j][:, :N] for j in range(n_streams))
    got = machine.get(out, np.float32, N_ROWS, 84)
    np.testing.assert_allclose(got[:, :N], want, rtol=1e-5, atol=1e-5)
    assert (got[:, N:].view(np.uint32) == 0xA5A5A5A5).all()


def test_matched_size(machine: Machine) -> None:  # noqa: F811
    rng = fresh_rng()
    x, target = (rng.standard_normal((N_ROWS, stride)).astype(np.float32) for stride in (80, 76))
    x[1] *= np.float32(1e-4)  # less than what counts as least
    out = machine.poisoned(4 * N_ROWS * 84, "fp32")
    machine.run(
        match_size, (N_ROWS,), machine.put(x), machine.put(target), out,
        N=N, LEAST=1e-5, IN_STRIDE=80, TARGET_STRIDE=76, OUT_STRIDE=84, WIDTH=128,
    )  # fmt: skip
    size, wanted = ((v[:, :N].astype(np.float64) ** 2).mean(1, keepdims=True) for v in (x, target))
    want = x[:, :N] * np.sqrt(wanted / np.maximum(size, 1e-5))
    np.testing.assert_allclose(machine.get(out, np.float32, N_ROWS, 84)[:, :N], want, rtol=2e-6)


def test_cut_off(machine: Machine) -> None:  # noqa: F811
    x = fresh_rng().standard_normal((N_ROWS, 80)).astype(np.float32)
    out = machine.poisoned(4 * N_ROWS * 84, "fp32")
    machine.run(cut_off, (N_ROWS,), machine.put(x), out, N=N, DEVIATIONS=0.7, IN_STRIDE=80, OUT_STRIDE=84, WIDTH=128)
    wide = x[:, :N].astype(np.float64)
    want = np.maximum(wide - wide.mean(1, keepdims=True) - 0.7 * wide.std(1, keepdims=True), 0)
    got = machine.get(out, np.float32, N_ROWS, 84)[:, :N]
    assert 0.1 < (got > 0).mean() < 0.4
    np.testing.assert_allclose(got, want, atol=2e-6)
