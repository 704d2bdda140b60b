"""Coefficients of functions that float arithmetic has to approximate, on whatever device.

Error function and hyperbolic tangent are the rational approximations that Eigen uses (``generic_fast_erf_float``,
``generic_fast_tanh_float``): ``x P(x^2) / Q(x^2)`` for x within the limit. Powers are listed highest first.
"""

from __future__ import annotations

TANH_LIMIT = 7.90531110763549805
TANH_NUMERATOR = (
    *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
    *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
)
TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)

ERF_LIMIT = 4.0
ERF_NUMERATOR = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
ERF_DENOMINATOR = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
    *(-7.37332916720468e-03, -1.42647390514189e-02),
)

SMALL_EXPONENT = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2)
"""(exp(x) - 1 - x) / x^2 for |x| < 1/2."""

ATANH = tuple(1 / (2 * i + 1) for i in range(8, -1, -1))
"""atanh(s) / s in powers of s^2 for |s| <= 1/3."""
