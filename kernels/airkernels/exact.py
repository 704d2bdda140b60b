"""Functions whose last bit is the same on every machine.

What a plan carries is computed once, where it is built. The C library and numpy choose among implementations by
processor, and these differ in the last bit; what Python's decimal arithmetic gives is rounded from 40 digits instead.
"""

from __future__ import annotations

from decimal import Context, Decimal

_CONTEXT = Context(prec=40, Emin=-999_999, Emax=999_999)


def power(base: float, exponent: float) -> float:
    """`base` to the power of `exponent`, for a positive base."""
    return float(_CONTEXT.power(Decimal(base), Decimal(exponent)))


def log(x: float) -> float:
    """The natural logarithm of a positive number."""
    return float(_CONTEXT.ln(Decimal(x)))


def softplus(x: float) -> float:
    """``log(1 + exp(x))``."""
    e = _CONTEXT.exp(Decimal(x))
    # the sum would lose what is left of the exponential, whose square no longer counts
    return float(e if e < Decimal("1e-18") else _CONTEXT.ln(_CONTEXT.add(e, Decimal(1))))
