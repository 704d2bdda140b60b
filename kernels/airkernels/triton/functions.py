"""Functions of single elements, in float32; which there are, and their parameters: ``airkernels.cpu.functions``."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from airkernels import approximations
from airkernels.triton.tiles import device

_TANH_LIMIT = tl.constexpr(approximations.TANH_LIMIT)
_ERF_LIMIT = tl.constexpr(approximations.ERF_LIMIT)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_GELU = tl.constexpr(1.5957691216057308)
"""2 sqrt(2 / pi)."""


@triton.jit
def apply(x, FUNCTION: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """A function by name, with parameters `A` to `D`, as many as it has."""
    if FUNCTION == "silu":
        y = _sigmoid_times(x, x)
    elif FUNCTION == "gelu":
        # far below 0, what rounding leaves of the last factor must not be made large
        y = 0.5 * tl.maximum(x, -2.0 * _ERF_LIMIT) * (1.0 + _erf(x * _SQRT_HALF))
    elif FUNCTION == "gelu_tanh":
        y = _sigmoid_times(x, x * (1.0 + 0.044715 * x * x) * _GELU)
    elif FUNCTION == "gelu_quick":
        y = _sigmoid_times(x, 1.702 * x)
    elif FUNCTION == "relu":
        y = tl.maximum(x, 0.0)
    elif FUNCTION == "relu2":
        y = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif FUNCTION == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-x))
    elif FUNCTION == "tanh":
        y = tanh(x)
    elif FUNCTION == "exp":
        y = tl.exp(x)
    elif FUNCTION == "softplus":
        y = _softplus(x)
    elif FUNCTION == "scale":
        y = x * A
    elif FUNCTION == "clamp":
        y = tl.minimum(tl.maximum(x, A), B)
    elif FUNCTION == "softcap":
        y = softcap(x, A)
    else:
        tl.static_assert(FUNCTION == "xielu", "unknown function")
        y = _xielu(x, A, B, C, D)
    return y


@triton.jit
def gate(x, up, FUNCTION: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """A gated activation by name: a function of the gate times `up`, unless it is one of its own."""
    if FUNCTION == "swiglu_oai":
        low = tl.minimum(x, B)
        y = _sigmoid_times(low, A * low) * (tl.minimum(tl.maximum(up, -B), B) + 1.0)
    else:
        y = apply(x, FUNCTION, A, B, C, D) * up
    return y


@triton.jit
def softcap(x, CAP: tl.constexpr):
    """``CAP * tanh(x / CAP)``."""
    return CAP * tanh(x * (1.0 / CAP))


@triton.jit
def tanh(x):
    x = tl.minimum(tl.maximum(x, -_TANH_LIMIT), _TANH_LIMIT)
    return x * _polynomial(x * x, "TANH_NUMERATOR") / _polynomial(x * x, "TANH_DENOMINATOR")


@triton.jit
def _erf(x):
    x = tl.minimum(tl.maximum(x, -_ERF_LIMIT), _ERF_LIMIT)
    return x * _polynomial(x * x, "ERF_NUMERATOR") / _polynomial(x * x, "ERF_DENOMINATOR")


@triton.jit
def _sigmoid_times(x, inner):
    """``x / (1 + exp(-inner))``."""
    return x / (1.0 + tl.exp(-inner))


@triton.jit
def _softplus(x):
    """``max(x, 0) + log(1 + u)`` with u = e^-|x| and log(1 + u) = 2 atanh(u / (2 + u))."""
    u = tl.exp(-tl.abs(x))
    s = u / (2.0 + u)
    return tl.maximum(x, 0.0) + 2.0 * s * _polynomial(s * s, "ATANH")


@triton.jit
def _xielu(x, ALPHA_P: tl.constexpr, ALPHA_N: tl.constexpr, BETA: tl.constexpr, EPS: tl.constexpr):
    low = tl.minimum(x, EPS)
    near = low * low * _polynomial(low, "SMALL_EXPONENT") + (low - x)
    bend = tl.where(low > -0.5, near, tl.exp(low) - 1.0 - x)
    return tl.where(x > 0, ALPHA_P * x * x, ALPHA_N * bend) + BETA * x


@device
def _polynomial(x: Any, coefficients: str, _semantic: Any = None) -> Any:
    """A polynomial by the name of its coefficients in `airkernels.approximations`."""
    first, *rest = getattr(approximations, coefficients)
    value = _semantic.full(x.shape, first, tl.float32)
    for coefficient in rest:
        constant = _semantic.scalar_constant(coefficient, tl.float32)
        value = _semantic.add(_semantic.mul(value, x, False), constant, False)
    return value
