"""How a row of activations is rounded to bytes for integer dot products, and where its parts lie.

Each 32 elements share a scale, chosen so that the largest becomes +-127 (as GGML's Q8_0, but with the
scale in float32). The sums let a kernel account for zero points and minima with one operation a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP = 32
"""Elements per scale."""

HALF_GROUP = 16
"""Elements per sum of the finer kind, for formats whose groups are 16."""


@dataclass(frozen=True)
class QuantizedRow:
    """Byte offsets inside one quantized row of `n` elements.

    codes int8 [n]; scale float32 [n/32]; negative sums of codes int32 [n/32] and [n/16];
    scaled sums (scale * sum) float32 [n/32].
    """

    n: int

    @property
    def scale(self) -> int:
        return self.n

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
    def nbytes(self) -> int:
        """Bytes of a row: whole cache lines, so that rows never share one."""
        return -(-(self.negative_half_sum + 4 * (self.n // HALF_GROUP)) // 64) * 64


def quantize_rows(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Reference of the quantizer: float32 [n_rows, n] to uint8 [n_rows, QuantizedRow(n).nbytes]."""
    n_rows, n = x.shape
    row = QuantizedRow(n)
    groups = x.astype(np.float32).reshape(n_rows, n // GROUP, GROUP)
    largest = np.abs(groups).max(axis=2)
    scale = largest * np.float32(1 / 127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(groups * inverse[..., None]).astype(np.int8)
    sums = codes.astype(np.int32).sum(axis=2, dtype=np.int32)
    half_sums = codes.astype(np.int32).reshape(n_rows, -1, HALF_GROUP).sum(axis=2, dtype=np.int32)
    out = np.zeros((n_rows, row.nbytes), np.uint8)

    def put(at: int, values: npt.NDArray[np.generic]) -> None:
        raw = np.ascontiguousarray(values.reshape(n_rows, -1)).view(np.uint8)
        out[:, at : at + raw.shape[1]] = raw

    put(0, codes)
    put(row.scale, scale)
    put(row.negative_sum, -sums)
    put(row.scaled_sum, scale * sums.astype(np.float32))
    put(row.negative_half_sum, -half_sums)
    return out
