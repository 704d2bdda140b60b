"""How a row of activations is rounded to integers for integer dot products, and where its parts lie.

Each 32 elements share a scale, and the largest of them becomes +-127 (as GGML's Q8_0, but with the scale in float32).
Where one element is much larger than the others, that leaves the others little. Rows with two digits round such groups
more finely: the largest becomes +-16256, and an element is low + 128 * high, a byte each. All other groups have high
digits of 0, which a flag lets kernels pass over. The sums let a kernel account for zero points and minima with one
operation a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Value = Any
"""A float32 array or a TVM expression."""

GROUP = 32
"""Elements per scale."""

HALF_GROUP = 16
"""Elements per sum of the finer kind, for formats whose groups are 16."""

SHIFT = 7
DIGIT = 1 << SHIFT
"""Weight of the high digit, where there are two."""

MOST = 127
"""What the largest element of a group becomes; in a group with high digits, that times `DIGIT`."""

OUTLIER = 6.0
"""A group has high digits if its largest element exceeds this many times the mean magnitude of the group.

Among 32 normally distributed elements one in 10^4 groups gets there; tests/bench/FINDINGS.md has other values.
"""


def has_outlier(largest: Value, total: Value) -> Value:
    """Whether a group gets high digits, from its largest magnitude and the sum of all."""
    return largest * np.float32(GROUP / OUTLIER) > total


@dataclass(frozen=True)
class QuantizedRow:
    """Byte offsets inside one quantized row of `n` elements.

    Digits int8 [digits, n], the low one first; scale float32 [n/32]; negative sums of the integers int32 [n/32];
    scaled sums (scale * sum) float32 [n/32]; negative sums int32 [n/16]; scaled sums float32 [n/16]; with two digits,
    whether a group has high ones, int32 [n/32].
    """

    n: int
    digits: int = 1

    @property
    def scale(self) -> int:
        return self.n * self.digits

    @property
    def negative_sum(self) -> int:
        return self.scale + 4 * (self.n // GROUP)

    @property
    def scaled_sum(self) -> int:
        return self.negative_sum + 4 * (self.n // GROUP)

    @property
    def negative_half_sum(self) -> int:
        return self.scaled_sum + 4 * (self.n // GROUP)

    @property
    def scaled_half_sum(self) -> int:
        return self.negative_half_sum + 4 * (self.n // HALF_GROUP)

    @property
    def has_high(self) -> int:
        return self.scaled_half_sum + 4 * (self.n // HALF_GROUP)

    @property
    def nbytes(self) -> int:
        """Bytes of a row: whole cache lines, so that rows never share one."""
        end = self.has_high + (4 * (self.n // GROUP) if self.digits > 1 else 0)
        return -(-end // 64) * 64


def quantize_rows(x: npt.NDArray[np.float32], digits: int = 1) -> npt.NDArray[np.uint8]:
    """Reference of the quantizer: float32 [n_rows, n] to uint8 [n_rows, QuantizedRow(n, digits).nbytes]."""
    n_rows, n = x.shape
    row = QuantizedRow(n, digits)
    groups = x.astype(np.float32).reshape(n_rows, n // GROUP, GROUP)
    magnitudes = np.abs(groups)
    largest = magnitudes.max(axis=2)
    has_high = has_outlier(largest, magnitudes.sum(axis=2)) & (digits == 2)
    most = np.where(has_high, np.float32(MOST * DIGIT), np.float32(MOST))
    inverse = np.divide(most, largest, out=np.zeros_like(largest), where=largest > 0)
    integers = np.rint(groups * inverse[..., None]).astype(np.int32)
    scale = largest * np.where(has_high, np.float32(1 / (MOST * DIGIT)), np.float32(1 / MOST))
    sums = integers.sum(axis=2, dtype=np.int32)
    half_sums = integers.reshape(n_rows, -1, HALF_GROUP).sum(axis=2, dtype=np.int32)
    out = np.zeros((n_rows, row.nbytes), np.uint8)

    def put(at: int, values: npt.NDArray[np.generic]) -> None:
        raw = np.ascontiguousarray(values.reshape(n_rows, -1)).view(np.uint8)
        out[:, at : at + raw.shape[1]] = raw

    high = np.where(has_high[..., None], (integers + DIGIT // 2) >> SHIFT, 0)
    put(0, (integers - (high << SHIFT)).astype(np.int8))
    if digits == 2:
        put(n, high.astype(np.int8))
        put(row.has_high, has_high.astype(np.int32))
    put(row.scale, scale)
    put(row.negative_sum, -sums)
    put(row.scaled_sum, scale * sums.astype(np.float32))
    put(row.negative_half_sum, -half_sums)
    put(row.scaled_half_sum, np.repeat(scale, GROUP // HALF_GROUP, axis=1) * half_sums.astype(np.float32))
    return out
