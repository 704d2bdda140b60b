"""Prompt-lookup speculation: guess the next tokens from earlier text and verify them in one pass over the weights.

What follows an earlier occurrence of the last few tokens often follows again: quotes, code that is edited, lists. The
guesses are evaluated together with the token they come after, and as long as the token that is then chosen is the one
that was guessed, its logits are there already. Rows of a batch do not depend on each other, so the logits, the state of
the sampler and the text are those of generation one by one.

A pass over more tokens takes longer, so that guessing pays only if enough of it is right. Both are measured: how often
a guess was right by how much of the text before it matched, which costs no evaluation to learn, and how long passes
took by their length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from airrun.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from airrun.session import Session

_LONGEST_GUESS: Final = 15
# Lengths of the ends of the text that are looked up, the longer one first.
_KEYS: Final = (4, 2)
_LONGEST_MATCH: Final = 32
# A guess must promise this much more than generation one by one.
_WORTHWHILE: Final = 1.2
# Where that many tokens are expected of a pass, guesses of so many are tried although passes seem slow: at first, and
# after so many times that it was not done, each time twice as many.
_PROMISING: Final = 2.0
_TRIED: Final = 3
_PATIENCE: Final = 128


class Lookup:
    """Finds what followed the last tokens where they occurred before.

    Attributes
    ----------
    matched
        How many of the last tokens agree with those before the place that was found, at most `_LONGEST_MATCH`; 0 if
        there is none.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}
        self._place = 0
        self.matched = 0
        for token in ids:
            self._append(token)
        self._find()

    def push(self, token: int) -> None:
        """Add a token to the text and find its new end."""
        if self.matched and self._ids[self._place] == token:
            self._append(token)
            self._place += 1
            self.matched = min(self.matched + 1, _LONGEST_MATCH)
        else:
            self._append(token)
            self._find()

    def guess(self, n: int) -> list[int]:
        """The `n` tokens that followed there; past the end of the text they repeat what came from it."""
        if not self.matched:
            return []
        at, ids = self._place, self._ids
        period = len(ids) - at
        return [ids[at + i % period] for i in range(n)]

    def _append(self, token: int) -> None:
        # what a key leads to is known once something follows it
        ids = self._ids
        for n in _KEYS:
            if len(ids) >= n:
                self._followed[tuple(ids[-n:])] = len(ids)
        ids.append(token)

    def _find(self) -> None:
        ids = self._ids
        self.matched = 0
        for n in _KEYS:
            place = self._followed.get(tuple(ids[-n:])) if len(ids) >= n else None
            if place is not None:
                longest = min(place, _LONGEST_MATCH)
                self.matched = next((i for i in range(n, longest) if ids[place - 1 - i] != ids[-1 - i]), longest)
                self._place = place
                return


class Odds:
    """How often a guessed token was right, by how much before it matched."""

    def __init__(self) -> None:
        # begun with a belief that a few observations outweigh
        self._right = [0.1 + 0.1 * min(n, 8) for n in range(_LONGEST_MATCH + 1)]
        self._all = [1.0] * (_LONGEST_MATCH + 1)

    def learn(self, matched: int, right: bool) -> None:
        """Note one guess."""
        bucket = _bucket(matched)
        self._right[bucket] = 0.95 * self._right[bucket] + right
        self._all[bucket] = 0.95 * self._all[bucket] + 1.0

    def expected(self, matched: int, most: int) -> list[float]:
        """Tokens that a pass gives on average with 0, 1, ..., `most` guesses."""
        tokens, likely = [1.0], 1.0
        for i in range(most):
            bucket = _bucket(matched + i)
            likely *= self._right[bucket] / self._all[bucket]
            tokens.append(tokens[-1] + likely)
        return tokens


def _bucket(matched: int) -> int:
    """Matches of similar length are counted together: 1, 2, 3, 4, 5-8, 9-16, more."""
    return min(matched if matched <= 4 else 8 if matched <= 8 else 16, _LONGEST_MATCH)


class PassTimes:
    """Seconds of a pass by its number of tokens: of one, and a line for more."""

    def __init__(self) -> None:
        self._one: float | None = None
        # sums for a least-squares line; old passes count less and less
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, n_tokens: int, seconds: float) -> None:
        """Note one pass."""
        if n_tokens == 1:
            self._one = seconds if self._one is None else self._one + 0.1 * (seconds - self._one)
            return
        self._n, self._x, self._y, self._xx, self._xy = (
            0.9 * total + new
            for total, new in (
                (self._n, 1.0),
                (self._x, n_tokens),
                (self._y, seconds),
                (self._xx, n_tokens * n_tokens),
                (self._xy, n_tokens * seconds),
            )
        )

    @property
    def known(self) -> bool:
        """Whether passes of one token and of several have been seen."""
        return self._one is not None and self._n > 0.0

    def relative(self, n_tokens: int) -> float:
        """Seconds of a pass of `n_tokens` > 1 over those of one token; 1 while that is not known."""
        if not self._one or not self._n:
            return 1.0
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if spread > 0.25:
            slope = (self._xy / self._n - mean_x * mean_y) / spread
        else:
            slope = (mean_y - self._one) / (mean_x - 1.0)
        return max(1.0, (mean_y + max(0.0, slope) * (n_tokens - mean_x)) / self._one)


class Speculator:
    """Evaluates tokens of a session one by one, as `Session.eval` does, but mostly several in one pass.

    Until it is closed, the session may hold guesses behind its text.

    Parameters
    ----------
    session : Session
        Holds `ids`.
    ids : sequence of int
        The text so far.

    Attributes
    ----------
    drafted, accepted, passes
        Tokens guessed, how many of them were right, and passes over the weights.
    """

    def __init__(self, session: Session, ids: Sequence[int]) -> None:
        self._session = session
        self._lookup = Lookup(ids)
        self._odds = Odds()
        self._times = PassTimes()
        self._guesses: list[int] = []  # those that the session holds and that were not chosen yet
        self._rows: list[NDArray[np.float32]] = []  # the logits after each of them
        self._patience, self._passed_over = _PATIENCE, 0
        self.drafted = self.accepted = self.passes = 0

    @property
    def n_past(self) -> int:
        """Tokens of the session without guesses."""
        return self._session.n_past - len(self._guesses)

    def eval(self, token: int, most: int) -> NDArray[np.float32]:
        """Append a token and give the logits after it.

        Parameters
        ----------
        token : int
        most : int
            How many further tokens may be wanted at all.

        Returns
        -------
        float32 [n_vocab], valid until the next evaluation of the engine.
        """
        self._learn(token)
        if self._guesses and self._guesses[0] == token:
            del self._guesses[0]
            self.accepted += 1
            self._session.engine.count_accepted()
            return self._rows.pop(0)
        self.close()
        guesses = self._choose(most)
        started = time.perf_counter()
        row = self._evaluate(token, guesses)
        self._times.learn(1 + len(self._guesses), time.perf_counter() - started)
        self.passes += 1
        self.drafted += len(self._guesses)
        return row

    def close(self) -> None:
        """Take guesses that were not chosen out of the session."""
        if self._guesses:
            self._session.truncate(self.n_past)
            self._guesses, self._rows = [], []

    def _learn(self, token: int) -> None:
        matched, guess = self._lookup.matched, self._lookup.guess(1)
        if guess:
            self._odds.learn(matched, guess[0] == token)
        self._lookup.push(token)

    def _choose(self, most: int) -> list[int]:
        """As many guesses as promise the most tokens per second; none if that is hardly more than without."""
        session = self._session
        most = min(most, _LONGEST_GUESS, session.engine.max_outputs - 1, session.n_ctx - session.n_past - 1)
        if most < 1 or not self._lookup.matched:
            return []
        tokens = self._odds.expected(self._lookup.matched, most)
        gains = [tokens[n] / self._times.relative(1 + n) for n in range(1, most + 1)]
        n = 1 + max(range(most), key=gains.__getitem__)
        if not self._times.known:
            n, worthwhile = min(most, _TRIED), self.passes > 0 and tokens[-1] > _PROMISING
        else:
            worthwhile = gains[n - 1] > _WORTHWHILE
            if not worthwhile and tokens[-1] > _PROMISING:
                # passes may have been timed at a bad moment
                self._passed_over += 1
                if self._passed_over > self._patience:
                    n, worthwhile = min(most, _TRIED), True
                    self._passed_over, self._patience = 0, 2 * self._patience
        return self._lookup.guess(n) if worthwhile else []

    def _evaluate(self, token: int, guesses: list[int]) -> NDArray[np.float32]:
        if guesses:
            try:
                rows = self._session.verify([token, *guesses])
            except UsageError:
                pass  # the cache that sessions share has no room for guesses; it may have for the token
            else:
                self._guesses, self._rows = guesses, list(rows)
                return self._rows.pop(0)
        row: NDArray[np.float32] = self._session.eval((token,))[0]
        return row
