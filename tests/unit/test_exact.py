"""Functions that round alike everywhere, against the C library and numpy, which are right to a few last bits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from airkernels import exact

CASES = [0.0, 1.0, -1.0, 1e-300, -1e-300, 20.0, -45.0, -41.0]


def test_against_the_c_library() -> None:
    for x in [*np.random.default_rng().uniform(-700, 700, 100).tolist(), *CASES]:
        base, positive = 1.0 + abs(x), math.ldexp(1.0 + abs(x), round(x) % 200 - 100)
        assert exact.power(base, x / 100) == pytest.approx(base ** (x / 100), rel=1e-15), x
        assert exact.log(positive) == pytest.approx(math.log(positive), rel=1e-15, abs=1e-300), x
        assert exact.softplus(x) == pytest.approx(float(np.logaddexp(0.0, x)), rel=1e-14), x


def test_results_are_rounded_from_what_they_are() -> None:
    """Roots of squares are whole, and a power is the nearest float to the true one, found by whole numbers."""
    for n in range(2, 200):
        assert exact.power(float(n * n), 0.5) == n
        found, half_an_ulp = exact.power(float(n), -0.5), Fraction(math.ulp(exact.power(float(n), -0.5))) / 2
        low, high = Fraction(found) - half_an_ulp, Fraction(found) + half_an_ulp
        assert low * low * n <= 1 <= high * high * n
    assert exact.log(1.0) == 0.0 and exact.log(math.e) == 1.0
    assert exact.power(10.0, -1e6) == 0.0
