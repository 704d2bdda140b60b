"""How a row of activations is rounded to integers for integer dot products, and where its parts lie.

Each 32 elements share a scale. With one digit the largest becomes +-127 (as GGML's Q8_0, but with the scale in
float32); with two it becomes +-16256, and an element is 128 * high + low, a byte each: where a few elements are
much larger than the rest of their group, one digit leaves the rest little. The sums let a kernel account for zero
points and minima with one operation a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP = 32
"""Elements per scale."""

HALF_GROUP = 16
"""Elements per sum of the finer kind, for formats whose groups are 16."""


DIGIT = 128
"""Weight of the high digit, where there are two."""


def largest_code(digits: int) -> int:
    """What the largest element of a group becomes."""
    return 127 if digits == 1 else 127 * DIGIT


@dataclass(frozen=True)
class QuantizedRow:
    """Byte offsets inside one quantized row of `n` elements.

    Digits int8 [digits, n], the high one first; scale float32 [n/32]; negative sums of the integers int32 [n/32];
    scaled sums (scale * sum) float32 [n/32]; negative sums int32 [n/16]; scaled sums float32 [n/16].
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
    def nbytes(self) -> int:
        """Bytes of a row: whole cache lines, so that rows never share one."""
        return -(-(self.scaled_half_sum + 4 * (self.n // HALF_GROUP)) // 64) * 64


def quantize_rows(x: npt.NDArray[np.float32], digits: int = 1) -> npt.NDArray[np.uint8]:
    """Reference of the quantizer: float32 [n_rows, n] to uint8 [n_rows, QuantizedRow(n, digits).nbytes]."""
    n_rows, n = x.shape
    row = QuantizedRow(n, digits)
    most = largest_code(digits)
    groups = x.astype(np.float32).reshape(n_rows, n // GROUP, GROUP)
    largest = np.abs(groups).max(axis=2)
    scale = largest * np.float32(1 / most)
    inverse = np.divide(np.float32(most), largest, out=np.zeros_like(largest), where=largest > 0)
    integers = np.rint(groups * inverse[..., None]).astype(np.int32)
    sums = integers.sum(axis=2, dtype=np.int32)
    half_sums = integers.reshape(n_rows, -1, HALF_GROUP).sum(axis=2, dtype=np.int32)
    out = np.zeros((n_rows, row.nbytes), np.uint8)

    def put(at: int, values: npt.NDArray[np.generic]) -> None:
        raw = np.ascontiguousarray(values.reshape(n_rows, -1)).view(np.uint8)
        out[:, at : at + raw.shape[1]] = raw

    if digits == 1:
        put(0, integers.astype(np.int8))
    else:
        high = (integers + DIGIT // 2) >> 7
        put(0, high.astype(np.int8))
        put(n, (integers - DIGIT * high).astype(np.int8))
    put(row.scale, scale)
    put(row.negative_sum, -sums)
    put(row.scaled_sum, scale * sums.astype(np.float32))
    put(row.negative_half_sum, -half_sums)
    put(row.scaled_half_sum, np.repeat(scale, GROUP // HALF_GROUP, axis=1) * half_sums.astype(np.float32))
    return out
