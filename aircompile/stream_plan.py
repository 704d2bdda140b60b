"""Stream plan: how each matrix is accessed, and what to keep first when memory is short."""

from __future__ import annotations

from collections.abc import Sequence


def keep_order(layers: Sequence[int]) -> tuple[int, ...]:
    """The order in which weights are worth keeping resident.

    A token visits all weights once, in order, over and over, so no weight is used sooner than another and
    only spacing matters: kept layers should stand evenly between streamed ones, so that reading never
    pauses. Weights outside the layers come first; layers follow in bit-reversed order, which spreads any
    prefix of it evenly.

    Parameters
    ----------
    layers
        Layer of every weight, -1 outside the layers.

    Returns
    -------
    A permutation of the indices of `layers`.
    """
    bits = max(max(layers, default=0), 1).bit_length()

    def rank(index: int) -> tuple[int, int]:
        layer = layers[index]
        spread = -1 if layer < 0 else int(f"{layer:0{bits}b}"[::-1], 2)
        return spread, index

    return tuple(sorted(range(len(layers)), key=rank))
