"""The most likely tokens of a row of logits that lies elsewhere, and what is known of the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MASS_ERROR = 1e-5
"""Largest relative error of `Leaders.mass`: of a device's exponential and of sums in float32, ten times over."""


class Leaders(NamedTuple):
    """The largest logits of each of several parts of a row; see `airrun.plan.device.DeviceLeaders`.

    Attributes
    ----------
    best
        Float32 [parts, n], largest first; -inf where a part has no more.
    tokens
        Int32 [parts, n], whose they are; anything beside -inf.
    sums
        Float32 [parts], of exp(logit - the part's largest).
    watched, seen
        Int32 and float32: tokens that were asked for, and their logits.
    row
        Fetches the whole row, float32 [n_vocab], as long as nothing else was evaluated.
    """

    best: NDArray[np.float32]
    tokens: NDArray[np.int32]
    sums: NDArray[np.float32]
    watched: NDArray[np.int32]
    seen: NDArray[np.float32]
    row: Callable[[], NDArray[np.float32]]

    @property
    def bound(self) -> float:
        """No token that is missing here has a larger logit; -inf where none is missing."""
        return float(self.best[:, -1].max())

    @property
    def sound(self) -> bool:
        """Whether no logit is NaN or +inf: either makes the sum of its part NaN."""
        return math.isfinite(self.sums.sum())

    def floor(self, n: int) -> np.float32:
        """A logit such that all tokens that reach it are here.

        At least `n` of them do if that is at most the number of parts and they are known at all; 0 asks for all known.
        """
        floor: np.float32 = np.nextafter(np.float32(self.bound), np.float32(math.inf))
        firsts = self.best[:, 0]
        if not 0 < n <= len(firsts):
            return floor
        # so many parts have a token that reaches it
        enough: np.float32 = np.partition(firsts, len(firsts) - n)[len(firsts) - n]
        return max(floor, enough)

    def mass(self, peak: float) -> float:
        """Sum of exp(logit - peak) over the row."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float((np.exp(self.best[:, 0].astype(np.float64) - peak) * self.sums).sum())
