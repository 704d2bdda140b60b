"""Random rows of activations that kernels are tested on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def random_activations(rng: np.random.Generator, n_rows: int, n_cols: int) -> Floats:
    """Rows of mixed magnitudes: ordinary ones, zeros, huge, tiny, one with a single outlier, and ones with several."""
    x = rng.standard_normal((n_rows, n_cols)).astype(np.float32)
    for row, factor in ((1, 0.0), (2, 1e25), (3, 1e-25)):
        if row < n_rows:
            x[row] *= np.float32(factor)
    if n_rows > 4:
        x[4, rng.integers(n_cols)] = 1000.0
        x[5:] *= np.where(rng.random(x[5:].shape) < 0.01, np.float32(40), np.float32(1))
    return x
