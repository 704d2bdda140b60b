"""The leaders of a row of logits by numpy, as `airkernels.triton.sample.leaders` finds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from airrun.generation.leaders import Leaders

Floats = npt.NDArray[np.float32]


def leaders_of(row: Floats, parts: int, best: int, chunk: int = 8, watched: npt.ArrayLike = ()) -> Leaders:
    """The `best` largest of each part; chunks of a row are dealt to the parts in turn."""
    part_of = np.arange(len(row)) // chunk % parts
    values, tokens = np.full((parts, best), -np.inf, np.float32), np.full((parts, best), 2**31 - 1, np.int32)
    sums = np.zeros(parts, np.float32)
    for part in range(parts):
        ids = np.flatnonzero(part_of == part)
        ranked = ids[np.argsort(-row[ids], kind="stable")]
        if len(ids) and row[ranked[0]] > -np.inf:
            with np.errstate(invalid="ignore"):  # inf - inf
                sums[part] = np.exp(row[ids].astype(np.float64) - row[ranked[0]]).sum()
        ranked = ranked[row[ranked] > -np.inf][:best]
        values[part, : len(ranked)], tokens[part, : len(ranked)] = row[ranked], ranked
    seen = np.asarray(watched, np.int32)
    return Leaders(values, tokens, sums, seen, row[seen], lambda: row)
