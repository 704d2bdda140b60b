"""The Walsh-Hadamard transform of heads, before keys and values are rounded for the cache.

A head with a few large elements leaves little of its others in blocks of one scale. Multiplied by an orthonormal matrix
that spreads every element evenly, a head has no large elements any more (QuaRot, Ashkboos et al. 2024). Products of
queries and keys stay as they are if both are transformed, and so do outputs if they are transformed back; the matrix is
its own inverse.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Region, bits, const, let, loop, splat

_MOST = 64


def group_of(n: int) -> int:
    """Elements that are spread over each other, in heads of n: a power of two."""
    return math.gcd(n, _MOST)


def spread_rows(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Reference of `spread`: float32 [..., n] to the same, bit by bit."""
    n, group = x.shape[-1], group_of(x.shape[-1])
    out = x.astype(np.float32).reshape(-1, n)
    step = 1
    while step < group:
        pairs = out.reshape(-1, 2, step)
        out = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
        step *= 2
    return (out * np.float32(group**-0.5)).reshape(x.shape)


def spread(x: Region, at: Expr, out: Region, n: int, isa: VectorIsa, factor: Expr | None = None) -> None:
    """Transform n elements of `x`, from `at` on, into the first of `out`, in groups; times a factor, if there is one.

    Neighbours are added and subtracted, then pairs of them, and so on: within vectors first, then whole vectors.
    """
    group = group_of(n)
    lanes = min(isa.lanes, group)
    scale = const(group**-0.5, "float32")
    scale = splat(scale if factor is None else let(scale * factor), lanes)
    with loop(n // group) as i:
        vectors = [let(x.load(at + i * group + first, lanes)) for first in range(0, group, lanes)]
        step = 1
        while step < lanes:
            vectors = [let(_within(vector, step, lanes)) for vector in vectors]
            step *= 2
        apart = 1
        while apart < len(vectors):
            for first in range(0, len(vectors), 2 * apart):
                for j in range(first, first + apart):
                    a, b = vectors[j], vectors[j + apart]
                    vectors[j], vectors[j + apart] = let(a + b), let(a - b)
            apart *= 2
        for j, vector in enumerate(vectors):
            out.store(i * group + j * lanes, vector * scale)


def _within(vector: Expr, step: int, lanes: int) -> Expr:
    """Sums of elements `step` apart in a vector in place of the first, their differences in place of the second."""
    others = tirx.Shuffle([vector], [const(lane ^ step, "int32") for lane in range(lanes)])
    signs = [const(1 << 31 if lane & step else 0, "uint32") for lane in range(lanes)]
    sign = tirx.Shuffle(signs, [const(lane, "int32") for lane in range(lanes)])
    return others + bits(bits(vector, f"uint32x{lanes}") ^ sign, f"float32x{lanes}")
