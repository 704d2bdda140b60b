"""From a row of logits to one token id: bias, penalties, top-k, top-p, min-p, temperature, draw.

The order, the meaning and the defaults are those of llama.cpp's default sampler chain, with the members that this
version does not offer left out. Penalties see the raw logits; temperature comes last, so that top-p and min-p cut the
model's own distribution and a high temperature only reshuffles what they kept.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import AirError, UsageError
from airrun.generation.sampler_config import SamplerConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GROUP = 64  # logits per group in the search for the top k


class Sampler:
    """Draws token ids; holds the random state and the window of recent tokens of one conversation.

    Parameters
    ----------
    config : SamplerConfig
    n_vocab : int
        Length of every row of logits that will be given.
    forbidden : iterable of int
        Token ids that are never chosen (how ``ignore_eos`` is done).
    """

    def __init__(self, config: SamplerConfig, n_vocab: int, forbidden: Iterable[int] = ()) -> None:
        bias = dict(config.logit_bias) | dict.fromkeys(forbidden, -math.inf)
        for token in bias:
            if token >= n_vocab:
                raise UsageError(f"logit_bias names token {token}, but the vocabulary ends at {n_vocab - 1}")
        self.config = config
        self.n_vocab = n_vocab
        self.seed = int.from_bytes(os.urandom(4), "little") if config.seed is None else config.seed
        # Greedy decoding never pays for importing numpy.random, which is a visible part of the start.
        self._random = None if config.temperature <= 0.0 else np.random.Generator(np.random.PCG64(self.seed))
        self._bias_ids = np.fromiter(bias.keys(), np.intp, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._penalizes = config.penalizes
        self._edits = bool(bias) or self._penalizes
        self._scratch = np.empty(n_vocab if self._edits else 0, np.float32)
        self._window: deque[int] = deque()
        self._counts: dict[int, int] = {}

    @property
    def is_argmax(self) -> bool:
        """Whether the most likely token is always taken, as the logits are."""
        return self._random is None and not self._edits

    def begin(self, ids: Iterable[int]) -> None:
        """Make ``ids`` (a prompt) the window that the penalties look at; the random state goes on."""
        self._window.clear()
        self._counts.clear()
        for token in ids if self._penalizes else ():
            self.accept(token)

    def accept(self, token: int) -> None:
        """Add a chosen token to the window of the penalties."""
        if not self._penalizes:
            return
        self._window.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if 0 <= self.config.repeat_last_n < len(self._window):
            oldest = self._window.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Choose a token.

        Parameters
        ----------
        logits : float32 [n_vocab]
            Left unchanged. ``-inf`` excludes a token.

        Returns
        -------
        int
            The token id. It is not added to the window: see `accept`.

        Raises
        ------
        AirError
            If a logit is NaN or +inf, or if every token is excluded.
        """
        if self._edits:
            logits = self._edited(logits)
        best, peak = _peak(logits)
        if self._random is None:
            return best
        ids, weights = self._weights(logits, peak)
        cumulative = weights.cumsum()
        place = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    def candidates(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Ids that could be drawn from ``logits``, and their probabilities (float64, sum 1), after every stage."""
        if self._edits:
            logits = self._edited(logits)
        best, peak = _peak(logits)
        if self._random is None:
            return np.array([best]), np.ones(1)
        ids, weights = self._weights(logits, peak)
        return ids, weights / weights.sum()

    def _edited(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits with bias and penalties, in the scratch row."""
        row = self._scratch
        np.copyto(row, logits)
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self._counts:
            config = self.config
            ids = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            seen = row[ids]
            seen = np.where(seen <= 0, seen * config.repeat_penalty, seen / config.repeat_penalty)
            row[ids] = seen - (counts * config.frequency_penalty + config.presence_penalty)
        return row

    def _weights(self, logits: NDArray[np.float32], peak: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Ids that survive top-k, top-p and min-p, and their unnormalised probabilities at the temperature."""
        config = self.config
        ids = _top_k(logits, config.top_k)
        values = logits[ids].astype(np.float64) - peak
        if config.top_p < 1.0:
            order = np.argsort(-values, kind="stable")
            ids, values = ids[order], values[order]
            cumulative = np.exp(values).cumsum()
            kept = int(cumulative.searchsorted(config.top_p * cumulative[-1])) + 1
            ids, values = ids[:kept], values[:kept]
        if config.min_p > 0.0:
            likely = values >= math.log(config.min_p)
            ids, values = ids[likely], values[likely]
        with np.errstate(over="ignore"):  # a temperature near 0 sends every other token to -inf, as it should
            weights = np.exp(values / config.temperature)
        possible = weights > 0.0  # excluded tokens must not be drawn even where the draw falls on the last edge
        return ids[possible], weights[possible]


def _top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Ids of the ``k`` largest logits in ascending order; among equals at the edge, the lowest ids.

    The row is dealt into groups and the k-th largest group maximum is found: k elements at least reach it, and hardly
    more do, so that the exact selection runs over a handful. This is a tenth of a partition of the whole row, and the
    choice among equal logits is left to their ids and not to the order in which a partition happens to swap them.
    """
    n = len(logits)
    if k <= 0 or k >= n:
        return np.arange(n, dtype=np.intp)
    n_groups = n // _GROUP
    if n_groups <= k:
        ids = np.arange(n, dtype=np.intp)
    else:
        peaks = logits[: n_groups * _GROUP].reshape(_GROUP, n_groups).max(axis=0)
        ids = np.flatnonzero(logits >= np.partition(peaks, n_groups - k)[n_groups - k])
    values = logits[ids]
    edge = np.partition(values, len(ids) - k)[len(ids) - k]
    above, equal = ids[values > edge], ids[values == edge]
    return np.sort(np.concatenate((above, equal[: k - len(above)])))


def _peak(logits: NDArray[np.float32]) -> tuple[int, float]:
    """Id and value of the largest logit, which also checks the row: argmax stops at a NaN, and +inf wins."""
    best = int(logits.argmax())
    peak: float = logits.item(best)
    if math.isfinite(peak):
        return best, peak
    if peak == -math.inf:
        raise AirError("no token can be chosen: every logit is -inf (a logit bias or the model excludes all)")
    raise AirError(f"the model gave a logit of {peak} for token {best}: the weights or the plan are damaged")
