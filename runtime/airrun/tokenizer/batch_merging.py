"""The greedy merge for many symbols at once: stretches of words, called rows, are merged side by side with numpy.

Why the rows of a long word put together are what merging the word gives: call a run of merges tame if the ranks it
merges never fall. Two neighbouring stretches with tame runs merge, as parts of the whole, in the order of their ranks;
so whether a merge crosses their border depends only on the histories of the two symbols at it, which are those of
merging just these two. Hence: if every border between rows stays when the two symbols at it are merged alone, the rows
hold the symbols of the word. A border that does not stay is moved to the left and the row to its right merged again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from airrun.tokenizer.merging import NO_MERGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Ranks = NDArray[np.int32]
    LookUp = Callable[[Ids, Ids], tuple[Ranks, Ids]]
    """(left, right), symbols >= 0, int64 [n] -> rank, int32 [n], or `NO_MERGE`, and result, int64 [n]."""

_PADDING: Final = -1
_SYMBOLS_AT_ONCE: Final = 1 << 20
# A power of two: symbols double in a run of one character, so that borders fall between them.
_ROW_LENGTH: Final = 128
_BORDER_STEP: Final = 4
# Moving borders all at once settles all but those of repetitions, where a row depends on the one to its left.
_ROUNDS: Final = 6
_ROWS_ONE_BY_ONE: Final = 64


class _UndecidedError(Exception):
    """A run is not tame, or borders do not settle: nothing is known about rows put together."""


class _Merged(NamedTuple):
    """What merging a row gives: symbols, the offset of each in the row, and whether the run was tame."""

    symbols: list[int]
    offsets: list[int]
    tame: bool


@dataclass(slots=True)
class _Row:
    """A stretch of a word, from `start` to `end` in the array of all; its symbols and where each of them starts."""

    start: int
    end: int
    symbols: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


def merge_words(words: list[list[int]], look_up: LookUp) -> list[list[int] | None]:
    """Like `merging.merge_symbols` for each word, and much faster for many or long ones.

    Parameters
    ----------
    words : list of list of int
        Symbols, >= 0; no word is empty.
    look_up : callable
        See `LookUp`.

    Returns
    -------
    list of list of int or None
        None for a word that must be merged as a whole, as may be where ranks fall.
    """
    pool = _Pool(np.array([symbol for word in words for symbol in word], np.int64), look_up)
    ends = np.cumsum([len(word) for word in words]).tolist()
    rows = [
        [_Row(at, min(at + _ROW_LENGTH, end)) for at in range(start, end, _ROW_LENGTH)]
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    pool.merge([row for word in rows for row in word])
    try:
        pool.settle([word for word in rows if len(word) > 1])
    except _UndecidedError:
        rows = [word if len(word) == 1 else [] for word in rows]
    return [[symbol for row in word for symbol in row.symbols] or None for word in rows]


class _Pool:
    """Merges rows, each text and each border once."""

    def __init__(self, symbols: Ids, look_up: LookUp) -> None:
        self._symbols = symbols
        self._look_up = look_up
        self._merged: dict[bytes, _Merged] = {}
        self._stays: dict[tuple[int, int], bool] = {}

    def merge(self, rows: list[_Row]) -> bool:
        """Fill in the symbols of the rows; whether all runs were tame."""
        merged = self._merge([self._symbols[row.start : row.end].tobytes() for row in rows])
        for row, (symbols, offsets, _) in zip(rows, merged, strict=True):
            row.symbols, row.starts = symbols, [row.start + offset for offset in offsets]
        return all(row.tame for row in merged)

    def settle(self, words: list[list[_Row]]) -> None:
        """Move the borders inside each word to where they stay.

        Raises
        ------
        _UndecidedError
        """
        self._merge_tame([row for word in words for row in word])
        for _ in range(_ROUNDS):
            borders = [border for word in words for border in pairwise(word)]
            self._check(borders)
            loose = [border for border in borders if not self._holds(*border)]
            if not loose:
                return
            for left, right in loose:
                _move_border(left, right)
            self._merge_tame([right for _, right in loose])
            for word in words:
                word[:] = [row for row in word if row.symbols]
        most = len(self._merged) + _ROWS_ONE_BY_ONE
        for word in words:
            settled = word[:1]
            for row in word[1:]:
                while settled and not self._holds(settled[-1], row):
                    _move_border(settled[-1], row)
                    self._merge_tame([row])
                    if not settled[-1].symbols:
                        settled.pop()
                    if len(self._merged) > most:
                        raise _UndecidedError
                settled.append(row)
            word[:] = settled

    def _merge_tame(self, rows: list[_Row]) -> None:
        if not self.merge(rows):
            raise _UndecidedError

    def _holds(self, left: _Row, right: _Row) -> bool:
        pair = left.symbols[-1], right.symbols[0]
        if pair not in self._stays:
            self._check([(left, right)])
        return self._stays[pair]

    def _check(self, borders: Iterable[tuple[_Row, _Row]]) -> None:
        """Fill `_stays` for the symbols at these borders."""
        asked: dict[tuple[int, int], bytes] = {}
        for left, right in borders:
            pair = left.symbols[-1], right.symbols[0]
            if pair not in self._stays and pair not in asked:
                end = right.starts[1] if len(right.starts) > 1 else right.end
                asked[pair] = self._symbols[left.starts[-1] : end].tobytes()
        for pair, merged in zip(asked, self._merge(list(asked.values())), strict=True):
            if not merged.tame:
                raise _UndecidedError
            self._stays[pair] = merged.symbols == [*pair]

    def _merge(self, texts: list[bytes]) -> list[_Merged]:
        new = list({text for text in texts if text not in self._merged})
        rows = [np.frombuffer(text, np.int64) for text in new]
        for batch in _batches(rows):
            merged = _merge_side_by_side([rows[i] for i in batch], self._look_up)
            self._merged.update(zip([new[i] for i in batch], merged, strict=True))
        return [self._merged[text] for text in texts]


def _move_border(left: _Row, right: _Row) -> None:
    """Give the last symbols of `left` to `right`, which must be merged again; `left` stays as it is up to there."""
    kept = max(0, len(left.symbols) - _BORDER_STEP)
    right.start = left.end = left.starts[kept]
    left.symbols, left.starts = left.symbols[:kept], left.starts[:kept]


def _batches(rows: Sequence[Sized]) -> Iterator[list[int]]:
    """Indices of the rows, those of similar length together, as many as fit into a table of bounded size."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if (len(batch) + 1) * len(rows[i]) > _SYMBOLS_AT_ONCE and batch:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _merge_side_by_side(rows: list[Ids], look_up: LookUp) -> list[_Merged]:
    """Merge rows of similar length, one merge in each at a time."""
    lengths = np.array([len(row) for row in rows])
    n, width = len(rows), int(lengths.max()) + 2
    column = np.arange(width)
    # one column of padding before each row and at least one behind
    there = (column >= 1) & (column <= lengths[:, None])
    symbols = np.full(n * width, _PADDING, np.int64)
    symbols[there.reshape(-1)] = np.concatenate(rows)
    there = there.reshape(-1)
    following, preceding = np.arange(1, n * width + 1), np.arange(-1, n * width - 1)
    ranks, results = np.full(n * width, NO_MERGE, np.int32), np.zeros(n * width, np.int64)

    def look_up_pairs(first: Ids) -> None:
        left, right = symbols[first], symbols[following[first]]
        paired = (left >= 0) & (right >= 0)
        ranks[first] = NO_MERGE
        ranks[first[paired]], results[first[paired]] = look_up(left[paired], right[paired])

    look_up_pairs(np.flatnonzero(there))
    merging, last, tame = np.arange(n), np.zeros(n, np.int32), np.ones(n, np.bool_)
    while True:
        table = ranks.reshape(n, width)
        at = (table if len(merging) == n else table[merging]).argmin(axis=1) + merging * width
        rank = ranks[at]
        goes_on = rank != NO_MERGE
        merging, at, rank = merging[goes_on], at[goes_on], rank[goes_on]
        if not len(at):
            break
        tame[merging] &= rank >= last[merging]
        last[merging] = rank
        gone = following[at]
        after = following[gone]
        symbols[at] = results[at]
        there[gone], ranks[gone] = False, NO_MERGE
        following[at], preceding[after] = after, at
        look_up_pairs(np.concatenate([preceding[at], at]))

    left_over = np.flatnonzero(there)
    ends = np.cumsum(np.bincount(left_over // width, minlength=n)).tolist()
    values, offsets = symbols[left_over].tolist(), (left_over % width - 1).tolist()
    return [
        _Merged(values[i:j], offsets[i:j], is_tame)
        for i, j, is_tame in zip([0, *ends], ends, tame.tolist(), strict=False)
    ]
