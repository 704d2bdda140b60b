"""Rotary frequencies from the `rope.*` keys, with the scaling that stretches a model's context.

Sources: Su et al. 2021 (RoPE); Chen et al. 2023 (linear interpolation); Peng et al. 2023 (YaRN). Which keys count, and
how they combine, follows ``llama_context`` and ``ggml_rope_yarn_corr_dims`` of llama.cpp.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from aircompile.architectures.toolkit.hyperparameters import Hyperparameters
from aircompile.architectures.toolkit.limits import MAX_CONTEXT
from aircompile.graph import RopeInfo
from airkernels import exact

_MAX_FACTOR = 1e6


def plain_rope(dim: int, base: float) -> RopeInfo:
    """Frequencies of the `dim` rotating elements of a head, as they were trained."""
    frequency = np.array([exact.power(base, -i / dim) for i in range(0, dim, 2)])
    return RopeInfo(dim, frequency, np.zeros(dim // 2, np.int32), 1, 1.0)


def read_base(hyper: Hyperparameters, key: str, default: float) -> float:
    """A frequency base."""
    return hyper.number(key, 1.0 + 1e-6, 1e30, default)


def read_rope(hyper: Hyperparameters, dim: int, n_ctx_train: int, alpha: float = 0.0) -> RopeInfo:
    """Frequencies of the `dim` rotating elements of a head, without the tensor of factors, which divides them later.

    `alpha`, where it is not 0, stretches the slowest of them by that much and leaves the fastest (NTK-aware scaling).

    Raises ModelFileError or UnsupportedError naming the key.
    """
    base = read_base(hyper, "rope.freq_base", 10000.0)
    if alpha and dim > 2:
        base *= exact.power(alpha, dim / (dim - 2))
    kind = hyper.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise hyper.unsupported("rope.scaling.type", f"is {kind!r:.80}; supported: none, linear, yarn, longrope")
    # 0 stands for no scaling; the second key is the older name of the first
    factor = hyper.number("rope.scale_linear", 0.0, _MAX_FACTOR, 0.0)
    factor = hyper.number("rope.scaling.factor", 0.0, _MAX_FACTOR, factor)
    magnitude = hyper.number("rope.scaling.attn_factor", 1e-6, _MAX_FACTOR, 1.0)
    n_ctx_original = hyper.integer("rope.scaling.original_context_length", MAX_CONTEXT, default=n_ctx_train)
    if kind in ("none", "longrope") or factor == 0.0:
        factor = 1.0

    rope = plain_rope(dim, base)
    frequency = rope.inverse_frequency
    if kind == "yarn":
        frequency, stretch = _yarn(hyper, frequency, base, factor, n_ctx_original)
        magnitude *= stretch
    else:
        frequency = frequency / factor
    return dataclasses.replace(rope, inverse_frequency=frequency, magnitude=magnitude)


def _yarn(
    hyper: Hyperparameters,
    frequency: npt.NDArray[np.float64],
    base: float,
    factor: float,
    n_ctx_original: int,
) -> tuple[npt.NDArray[np.float64], float]:
    """Frequencies between interpolated (slow pairs) and untouched (fast pairs), and the magnitude of the result."""
    beta_fast = hyper.number("rope.scaling.yarn_beta_fast", 1e-6, _MAX_FACTOR, 32.0)
    beta_slow = hyper.number("rope.scaling.yarn_beta_slow", 1e-6, _MAX_FACTOR, 1.0)
    log_multiplier = hyper.number("rope.scaling.yarn_log_multiplier", 0.0, _MAX_FACTOR, 0.0)
    # negative stands for the default of full strength
    strength = hyper.number("rope.scaling.yarn_ext_factor", -1.0, 1.0, -1.0)
    strength = 1.0 if strength < 0 else strength
    if strength == 0.0:
        return frequency / factor, 1.0
    dim = 2 * len(frequency)

    def pair_of(turns: float) -> float:
        """The pair (as a fraction) that makes `turns` full turns within the original context."""
        return dim * exact.log(n_ctx_original / (turns * 2 * math.pi)) / (2 * exact.log(base))

    low = max(0.0, math.floor(pair_of(beta_fast)))
    high = min(dim - 1.0, math.ceil(pair_of(beta_slow)))
    ramp = (np.arange(dim // 2, dtype=np.float64) - low) / max(0.001, high - low)
    untouched = (1.0 - np.clip(ramp, 0.0, 1.0)) * strength
    mixed = frequency / factor * (1.0 - untouched) + frequency * untouched
    stretch = _magnitude(factor, 1.0)
    if log_multiplier:
        stretch /= _magnitude(factor, log_multiplier)
    return mixed, stretch


def _magnitude(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * multiplier * exact.log(factor) + 1.0
