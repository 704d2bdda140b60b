"""Which pairs of symbols merge: looked up one by one and remembered, or many at once.

A symbol is the id of a token, the id of a text that occurs in merges only, or a character that is neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from airrun.tokenizer.memo import Memo
from airrun.tokenizer.merging import NO_MERGE, merge_symbols, pair_keys
from airrun.tokenizer.spec import MergeTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airrun.tokenizer.batch_merging import Ids, Ranks

_UNKNOWN: Final = 1 << 31
# From here on numpy is faster than a loop.
_LONG_WORD: Final = 64
_MANY_SYMBOLS: Final = 4096


def unknown_symbol(char: str) -> int:
    """Symbol of a character that has no other: its code point above all ids."""
    return _UNKNOWN | ord(char)


def unknown_char(symbol: int) -> str:
    """Inverse of `unknown_symbol`."""
    return chr(symbol ^ _UNKNOWN)


class Pairs(ABC):
    """The pairs of a vocabulary."""

    @abstractmethod
    def one(self, left: int, right: int) -> tuple[int, int] | None:
        """Rank and merged symbol of a pair, None if it does not merge."""

    @abstractmethod
    def many(self, left: Ids, right: Ids) -> tuple[Ranks, Ids]:
        """The same for arrays of pairs, see `batch_merging.LookUp`."""

    def merge(self, words: list[list[int]]) -> list[list[int]]:
        """Merge the symbols of each word; `words` is modified."""
        long = [word for word in words if len(word) >= _LONG_WORD]
        if sum(map(len, long)) < _MANY_SYMBOLS:
            return [merge_symbols(word, self.one) for word in words]
        from airrun.tokenizer.batch_merging import merge_words  # few prompts have such words

        merged = iter(merge_words(long, self.many))
        found = [next(merged) if len(word) >= _LONG_WORD else None for word in words]
        return [ids or merge_symbols(word, self.one) for ids, word in zip(found, words, strict=True)]


class TablePairs(Pairs):
    """Pairs of a merge table, found by bisection and remembered."""

    def __init__(self, table: MergeTable) -> None:
        self._known = Memo(self._find)
        self._keys = array("Q", pair_keys(table.left, table.right).tobytes())
        self._ranks = table.rank
        self._results = table.result

    def one(self, left: int, right: int) -> tuple[int, int] | None:
        """See `Pairs.one`."""
        return self._known[left << 32 | right]

    def _find(self, key: int) -> tuple[int, int] | None:
        at = bisect_left(self._keys, key)
        if at < len(self._keys) and self._keys[at] == key:
            return int(self._ranks[at]), int(self._results[at])
        return None

    @cached_property
    def _padded(self) -> tuple[NDArray[np.uint64], Ranks, Ids]:
        """Keys, ranks and results with a last row that no key equals."""
        return (
            np.append(np.frombuffer(self._keys, np.uint64), np.uint64((1 << 64) - 1)),
            np.append(self._ranks, NO_MERGE).astype(np.int32),
            np.append(self._results, 0).astype(np.int64),
        )

    def many(self, left: Ids, right: Ids) -> tuple[Ranks, Ids]:
        """See `Pairs.many`."""
        keys, ranks, results = self._padded
        wanted = pair_keys(left, right)
        at = np.searchsorted(keys, wanted)
        return np.where(keys[at] == wanted, ranks[at], np.int32(NO_MERGE)), results[at]


class TextPairs(Pairs):
    """Pairs whose joined text is a token; its rank is the pair's.

    Parameters
    ----------
    texts : sequence of str
    index : mapping
        Token text -> id.
    ranks : sequence of int
    """

    def __init__(self, texts: Sequence[str], index: Mapping[str, int], ranks: Sequence[int]) -> None:
        self._texts = texts
        self._index = index
        self._ranks = ranks

    def _text(self, symbol: int) -> str:
        return self._texts[symbol] if symbol < len(self._texts) else unknown_char(symbol)

    def one(self, left: int, right: int) -> tuple[int, int] | None:
        """See `Pairs.one`."""
        token = self._index.get(self._text(left) + self._text(right))
        return None if token is None else (self._ranks[token], token)

    def many(self, left: Ids, right: Ids) -> tuple[Ranks, Ids]:
        """See `Pairs.many`."""
        keys, places = np.unique(pair_keys(left, right), return_inverse=True)
        found = [self.one(key >> 32, key & 0xFFFFFFFF) or (NO_MERGE, 0) for key in keys.tolist()]
        ranks, results = np.array(found, np.int64).reshape(-1, 2).T
        return ranks[places].astype(np.int32), results[places]
