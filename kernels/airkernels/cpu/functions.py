"""Functions of single elements, in float32 to within a few units in the last place.

GELU with tanh is computed as ``x / (1 + exp(-2u))``, which it equals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx

from airkernels.approximations import (
    ATANH,
    ERF_DENOMINATOR,
    ERF_LIMIT,
    ERF_NUMERATOR,
    SMALL_EXPONENT,
    TANH_DENOMINATOR,
    TANH_LIMIT,
    TANH_NUMERATOR,
)
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, bits, cast, const, lanes_of, let, splat
from airkernels.cpu.vectors import exp

Parameters = tuple[float, ...]

_ARTANH = (2 / 13, 2 / 11, 2 / 9, 2 / 7, 2 / 5, 2 / 3, 2)
"""2 artanh(x) / x in powers of x^2, highest first."""
_SQRT_HALF_BITS = 0x3F3504F3


def _constant(value: float, like: Expr) -> Expr:
    return splat(const(value, "float32"), lanes_of(like))


def _polynomial(x: Expr, coefficients: Sequence[float], isa: VectorIsa) -> Expr:
    value = _constant(coefficients[0], x)
    for coefficient in coefficients[1:]:
        value = isa.fused_multiply_add(value, x, _constant(coefficient, x))
    return value


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return tirx.max(tirx.min(x, _constant(high, x)), _constant(low, x))


def _rational(x: Expr, limit: float, numerator: Sequence[float], denominator: Sequence[float], isa: VectorIsa) -> Expr:
    """x P(x^2) / Q(x^2), with x clamped to +-limit."""
    x = let(_clamp(x, -limit, limit))
    square = let(x * x)
    return x * _polynomial(square, numerator, isa) / _polynomial(square, denominator, isa)


def tanh(x: Expr, isa: VectorIsa) -> Expr:
    return _rational(x, TANH_LIMIT, TANH_NUMERATOR, TANH_DENOMINATOR, isa)


def sigmoid(x: Expr, isa: VectorIsa) -> Expr:
    """1 / (1 + e^-x)."""
    one = _constant(1.0, x)
    return one / (one + exp(_constant(0.0, x) - x, isa))


def silu(x: Expr, isa: VectorIsa) -> Expr:
    """x / (1 + e^-x) (Elfwing et al. 2017)."""
    return _sigmoid_times(let(x), lambda x: x, isa)


def gelu(x: Expr, isa: VectorIsa) -> Expr:
    """x Phi(x) (Hendrycks & Gimpel 2016)."""
    x = let(x)
    erf = _rational(x * _constant(math.sqrt(0.5), x), ERF_LIMIT, ERF_NUMERATOR, ERF_DENOMINATOR, isa)
    return _constant(0.5, x) * x * (_constant(1.0, x) + erf)


def gelu_tanh(x: Expr, isa: VectorIsa) -> Expr:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, the approximation of `gelu`."""

    def twice_inner(x: Expr) -> Expr:
        cubic = isa.fused_multiply_add(x * x, _constant(0.044715, x), _constant(1.0, x))
        return x * cubic * _constant(2 * math.sqrt(2 / math.pi), x)

    return _sigmoid_times(let(x), twice_inner, isa)


def gelu_quick(x: Expr, isa: VectorIsa) -> Expr:
    """x sigmoid(1.702 x)."""
    return _sigmoid_times(let(x), lambda x: x * _constant(1.702, x), isa)


def _sigmoid_times(x: Expr, inner: Callable[[Expr], Expr], isa: VectorIsa) -> Expr:
    """x / (1 + exp(-inner(x)))."""
    return x / (_constant(1.0, x) + exp(_constant(0.0, x) - inner(x), isa))


def relu(x: Expr) -> Expr:
    return tirx.max(x, _constant(0.0, x))


def relu_squared(x: Expr) -> Expr:
    """max(x, 0)^2 (So et al. 2021)."""
    positive = let(relu(x))
    return positive * positive


def softcap(x: Expr, cap: float, isa: VectorIsa) -> Expr:
    """cap tanh(x / cap): within +-cap (Gemma 2)."""
    return _constant(cap, x) * tanh(x * _constant(1 / cap, x), isa)


def softplus(x: Expr, isa: VectorIsa) -> Expr:
    """log(1 + e^x), as max(x, 0) + log(1 + u) with u = e^-|x| and log(1 + u) = 2 atanh(u / (2 + u))."""
    x, zero = let(x), _constant(0.0, x)
    u = let(exp(tirx.min(x, zero - x), isa))
    s = let(u / (_constant(2.0, x) + u))
    return tirx.max(x, zero) + _constant(2.0, x) * s * _polynomial(let(s * s), ATANH, isa)


def xielu(x: Expr, isa: VectorIsa, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Expr:
    """alpha_p x^2 + beta x where x > 0, else alpha_n (exp(min(x, eps)) - 1 - x) + beta x (Huang & Schlag 2025)."""
    x = let(x)
    low = let(tirx.min(x, _constant(eps, x)))
    one, zero = _constant(1.0, x), _constant(0.0, x)
    near = low * low * _polynomial(low, SMALL_EXPONENT, isa) + (low - x)
    bend = tirx.Select(low > _constant(-0.5, x), near, exp(low, isa) - one - x)
    curve = tirx.Select(x > zero, _constant(alpha_p, x) * x * x, _constant(alpha_n, x) * bend)
    return curve + _constant(beta, x) * x


def swiglu_oai(gate: Expr, up: Expr, isa: VectorIsa, alpha: float, limit: float) -> Expr:
    """g sigmoid(alpha g) (u + 1) with g at most `limit` and u within +-limit (gpt-oss)."""
    gate = let(tirx.min(gate, _constant(limit, gate)))
    bounded = _clamp(up, -limit, limit)
    return _sigmoid_times(gate, lambda g: g * _constant(alpha, g), isa) * (bounded + _constant(1.0, gate))


def log(x: Expr, isa: VectorIsa) -> Expr:
    """Natural logarithm of a single positive normal number, to within a few units in the last place.

    ``log(m 2^e) = e log 2 + 2 artanh((m - 1) / (m + 1))`` with m within sqrt(1/2) and sqrt(2).
    """
    raw = let(bits(x, "int32") - _SQRT_HALF_BITS)
    exponent = let(raw >> 23)
    mantissa = let(bits((raw & 0x7FFFFF) + _SQRT_HALF_BITS, "float32"))
    one = _constant(1.0, x)
    ratio = let((mantissa - one) / (mantissa + one))
    series = _polynomial(let(ratio * ratio), _ARTANH, isa)
    return isa.fused_multiply_add(cast(exponent, "float32"), _constant(math.log(2), x), series * ratio)


def apply(kind: str, parameters: Parameters, x: Expr, isa: VectorIsa) -> Expr:
    """A function by name, with the parameters that its family of functions has."""
    plain: dict[str, Callable[[], Expr]] = {
        "silu": lambda: silu(x, isa),
        "gelu": lambda: gelu(x, isa),
        "gelu_tanh": lambda: gelu_tanh(x, isa),
        "gelu_quick": lambda: gelu_quick(x, isa),
        "relu": lambda: relu(x),
        "relu2": lambda: relu_squared(x),
        "sigmoid": lambda: sigmoid(x, isa),
        "tanh": lambda: tanh(x, isa),
        "exp": lambda: exp(x, isa),
        "softplus": lambda: softplus(x, isa),
        "scale": lambda: x * _constant(parameters[0], x),
        "clamp": lambda: _clamp(x, parameters[0], parameters[1]),
        "softcap": lambda: softcap(x, parameters[0], isa),
        "xielu": lambda: xielu(x, isa, *parameters),
    }
    return plain[kind]()


def gate(kind: str, parameters: Parameters, x: Expr, up: Expr, isa: VectorIsa) -> Expr:
    """A gated activation by name: a function of the gate times `up`, unless it is one of its own."""
    if kind == "swiglu_oai":
        return swiglu_oai(x, up, isa, *parameters)
    return apply(kind, parameters, x, isa) * up
