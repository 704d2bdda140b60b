"""A dictionary that fills itself and never outgrows its bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MAX_REMEMBERED: Final = 1 << 16

# Words and pieces beyond this length hardly come again: they are not worth remembering.
MAX_REMEMBERED_LENGTH: Final = 48


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
