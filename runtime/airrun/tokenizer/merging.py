"""The greedy merge that BPE and SPM share, and exact cuts that keep its input short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Keys = NDArray[np.uint64]

S = TypeVar("S")

NO_MERGE: Final = (1 << 31) - 1
"""Above all ranks."""
_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_STALE = -1


def merge_symbols(symbols: list[S], combine: Callable[[S, S], tuple[int, S] | None]) -> list[S]:
    """Merge neighbours, lowest rank first and leftmost among equals, until no pair combines.

    Parameters
    ----------
    symbols : list
        The spelling of one word; modified.
    combine : callable
        (left, right) -> (rank, merged) or None where the pair does not merge. 0 <= rank < 2**31.

    Returns
    -------
    list
        The merged symbols, left to right. O(n log n).
    """
    n = len(symbols)
    if n < 2:
        return symbols
    following = list(range(1, n + 1))
    preceding = list(range(-1, n - 1))
    # rank under which the pair starting at a position waits in the heap; entries that disagree are stale
    pending = [_STALE] * n
    results = list(symbols)
    heap: list[int] = []

    for i in range(n - 1):
        found = combine(symbols[i], symbols[i + 1])
        if found is not None:
            pending[i], results[i] = found
            heap.append(pending[i] << _POSITION_BITS | i)
    heapify(heap)

    while heap:
        top = heappop(heap)
        i = top & _POSITION_MASK
        if pending[i] != top >> _POSITION_BITS:
            continue
        gone = following[i]
        symbols[i] = results[i]
        pending[gone] = pending[i] = _STALE
        following[i] = after = following[gone]
        if after < n:
            preceding[after] = i
            found = combine(symbols[i], symbols[after])
            if found is not None:
                pending[i], results[i] = found
                heappush(heap, pending[i] << _POSITION_BITS | i)
        before = preceding[i]
        if before >= 0:
            pending[before] = _STALE
            found = combine(symbols[before], symbols[i])
            if found is not None:
                pending[before], results[before] = found
                heappush(heap, pending[before] << _POSITION_BITS | before)

    out: list[S] = []
    i = 0
    while i < n:
        out.append(symbols[i])
        i = following[i]
    return out


def pair_keys(first: NDArray[Any], second: NDArray[Any]) -> Keys:
    """Pairs of code points or ids as single numbers, uint64 [n]."""
    return first.astype(np.uint64) << np.uint64(32) | second.astype(np.uint64)


def code_points(text: str) -> NDArray[np.uint32]:
    """Code points of `text`, uint32 [len(text)]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def inner_pairs(texts: Sequence[str]) -> Keys:
    """Keys (`pair_keys`) of the neighbouring characters inside some text, uint64 [m], ascending."""
    points = code_points("".join(texts))
    keys = pair_keys(points[:-1], points[1:])
    ends = np.cumsum([len(t) for t in texts], dtype=np.int64)[:-1]
    return np.unique(np.delete(keys, ends - 1))


def cut_where_nothing_joins(text: str, joinable: Keys) -> list[str]:
    """Cut `text` between neighbours that no merge can ever join.

    Merging the pieces one by one gives exactly what merging the whole would: a cut is made only where no
    possible symbol spans it, and separate pieces do not influence each other's merges.

    Parameters
    ----------
    joinable : uint64 [m], ascending
        Keys (`pair_keys`) of all neighbouring characters that some merge can join.
    """
    points = code_points(text)
    keys = pair_keys(points[:-1], points[1:])
    at = np.searchsorted(joinable, keys)
    at[at == len(joinable)] = 0
    loose = joinable[at] != keys if len(joinable) else np.ones(len(keys), np.bool_)
    cuts = (np.flatnonzero(loose) + 1).tolist()
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
