"""Functions of elements and slopes of heads in float64, from their papers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    return np.asarray(np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))))


def _xielu(x: Array, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Array:
    negative = alpha_n * (np.expm1(np.minimum(x, eps)) - x) + beta * x
    return np.where(x > 0, alpha_p * x * x + beta * x, negative)


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    # (1 + tanh(u)) / 2 = sigmoid(2 u), which keeps its precision where the sum on the left cancels
    "gelu_tanh": lambda x: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "gelu_quick": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "exp": lambda x: np.exp(np.clip(x, -87, 88)),  # beyond which a float32 ends
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "scale": lambda x, factor: x * factor,
    "clamp": lambda x, low, high: np.clip(x, low, high),
    "softcap": lambda x, cap: cap * np.tanh(x / cap),
    "xielu": _xielu,
}


def activation(kind: str, parameters: tuple[float, ...], x: Array) -> Array:
    return _FUNCTIONS[kind](x, *parameters)


def gate(kind: str, parameters: tuple[float, ...], x: Array, up: Array) -> Array:
    if kind == "swiglu_oai":
        alpha, limit = parameters
        x, up = np.minimum(x, limit), np.clip(up, -limit, limit)
        return x * sigmoid(alpha * x) * (up + 1)
    return activation(kind, parameters, x) * up


def alibi_slopes(n_heads: int, bias: float) -> Array:
    """As in ALiBi's reference code: a geometric sequence, and every other of the next finer one for the rest."""

    def powers_of_two(n: int) -> list[float]:
        start = 2 ** (-bias / n)
        return [start ** (i + 1) for i in range(n)]

    closest = 2 ** math.floor(math.log2(n_heads))
    rest = powers_of_two(2 * closest)[0::2][: n_heads - closest]
    return np.array(powers_of_two(closest) + rest)
