"""The order of rows by expert: how rows of tokens that chose the same expert are put together.

Of `n` tokens with `n_used` experts each, row t * n_used + s is slot s of token t. Sorted rows are those of expert 0,
then those of expert 1, and so on; within one, the order of rows stays. The order is int32 words in the room of n rows
of `n_words` each: parts follow each other as they are listed, the first in whole vectors, the others without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_VECTOR = 16

Expr = Any
"""A number of tokens or a word: an integer, or an expression of a kernel."""


@dataclass(frozen=True)
class RowOrder:
    """Where the parts of an order begin, in words."""

    n_experts: int
    n_used: int

    @property
    def starts(self) -> int:
        """Of [n_experts + 1]: the first sorted row of each expert, then the number of rows."""
        return 0

    def experts(self, n_tokens: Expr) -> Expr:
        """Of [n * n_used]: the expert of each sorted row."""
        return self._starts_words

    def sources(self, n_tokens: Expr) -> Expr:
        """Of [n * n_used]: the row that each sorted row was."""
        return self._starts_words + n_tokens * self.n_used

    def places(self, n_tokens: Expr) -> Expr:
        """Of [n * n_used]: the sorted row that each row became."""
        return self._starts_words + n_tokens * (2 * self.n_used)

    @property
    def n_words(self) -> int:
        """Words per token that hold an order of any number of tokens."""
        return self._starts_words + 3 * self.n_used

    @property
    def _starts_words(self) -> int:
        return -(-(self.n_experts + 1) // _VECTOR) * _VECTOR
