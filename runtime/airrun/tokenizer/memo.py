"""Dictionaries that fill themselves and never outgrow their bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MAX_REMEMBERED: Final = 1 << 16
# Words beyond this hardly come again.
_MAX_WORD_LENGTH: Final = 48


class Memo(dict[K, V]):
    """Key -> `compute(key)`, computed when first asked for; forgets everything when it is full."""

    def __init__(self, compute: Callable[[K], V]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, key: K) -> V:
        value = self._compute(key)
        if len(self) >= _MAX_REMEMBERED:
            self.clear()
        self[key] = value
        return value


class Words:
    """Token ids of words that do not depend on each other.

    Parameters
    ----------
    encode : callable
        Token ids of each of some distinct words.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]) -> None:
        self._encode = encode
        self._remembered: dict[str, list[int]] = {}

    def encode(self, words: list[str]) -> list[int]:
        """Token ids of all `words`, one after the other."""
        known = {word: self._remembered.get(word) for word in words}
        new = [word for word, ids in known.items() if ids is None]
        if new:
            found = dict(zip(new, self._encode(new), strict=True))
            known.update(found)
            if len(self._remembered) + len(found) > _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered.update((word, ids) for word, ids in found.items() if len(word) <= _MAX_WORD_LENGTH)
        out: list[int] = []
        for word in words:
            out += known[word] or ()
        return out
