"""From a row of logits to one token id: bias, penalties, top-k, top-p, min-p, temperature, draw.

The order, the meaning and the defaults are those of llama.cpp's default sampler chain, with the members that this
version does not offer left out. Penalties see the raw logits; temperature comes last, so that top-p and min-p cut the
model's own distribution and a high temperature only reshuffles what they kept.

Where the row lies on a device, its leaders nearly always decide all of that: what the stages keep is then among them,
and the draw comes out as from the whole row, bit for bit. Where they do not, the row is fetched.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import AirError, UsageError
from airrun.generation.leaders import MASS_ERROR, Leaders
from airrun.generation.sampler_config import SamplerConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Weights = tuple[NDArray[np.intp], NDArray[np.float64]]
    """Ids, and their unnormalised probabilities."""

_FEW = 1024  # ids that are ranked first in the search for those of top-p
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
        self._is_watched = np.zeros(n_vocab if self._edits else 0, np.bool_)
        self._window: deque[int] = deque()
        self._counts: dict[int, int] = {}

    @property
    def is_argmax(self) -> bool:
        """Whether the most likely token is always taken, as the logits are."""
        return self._random is None and not self._edits

    @property
    def narrows(self) -> bool:
        """Whether a stage cuts unlikely tokens away, so that the likely ones can decide."""
        config = self.config
        limited = 0 < config.top_k < self.n_vocab
        return self._random is None or limited or config.top_p < 1.0 or config.min_p > 0.0

    @property
    def watched(self) -> NDArray[np.int32]:
        """Tokens that the next sample corrects the logits of; `Leaders` must come with them, in this order."""
        ids = self._counts.keys() | set(self._bias_ids.tolist())
        return np.fromiter(ids, np.int32, len(ids))

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

    def sample(self, logits: NDArray[np.float32] | Leaders) -> int:
        """Choose a token.

        Parameters
        ----------
        logits : float32 [n_vocab], or the leaders of such a row
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
        drawn = self._lead(logits) if isinstance(logits, Leaders) else self._weigh(logits)
        if drawn is None:
            assert isinstance(logits, Leaders)
            drawn = self._weigh(logits.row())
        ids, weights = drawn
        if self._random is None:
            return int(ids[0])
        cumulative = weights.cumsum()
        place = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    def candidates(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Ids that could be drawn from ``logits``, and their probabilities (float64, sum 1), after every stage."""
        ids, weights = self._weigh(logits)
        return ids, weights / weights.sum()

    def _weigh(self, logits: NDArray[np.float32]) -> _Weights:
        """What can be drawn from a row."""
        if self._edits:
            np.copyto(self._scratch, logits)
            self._edit(self._scratch)
            logits = self._scratch
        best, peak = _peak(logits)
        if self._random is None:
            return np.array([best]), np.ones(1)
        ids = _top_k(logits, self.config.top_k)
        return self._cut(ids, logits[ids], peak)

    def _edit(self, row: NDArray[np.float32]) -> None:
        """Apply bias and penalties to a row, of which only the tokens `watched` are looked at."""
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self._counts:
            config = self.config
            ids = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            seen = row[ids]
            seen = np.where(seen <= 0, seen * config.repeat_penalty, seen / config.repeat_penalty)
            row[ids] = seen - (counts * config.frequency_penalty + config.presence_penalty)

    def _cut(self, ids: NDArray[np.intp], logits: NDArray[np.float32], peak: float) -> _Weights:
        """Of the ids that top-k kept, and their logits, what survives the other stages."""
        config = self.config
        values = logits.astype(np.float64) - peak
        if config.top_p < 1.0:
            ids, values = _nucleus(ids, values, config.top_p)
        return self._temper(ids, values)

    def _temper(self, ids: NDArray[np.intp], values: NDArray[np.float64]) -> _Weights:
        """The last stages: min-p and temperature."""
        config = self.config
        if config.min_p > 0.0:
            likely = values >= math.log(config.min_p)
            ids, values = ids[likely], values[likely]
        with np.errstate(over="ignore"):  # a temperature near 0 sends every other token to -inf, as it should
            weights = np.exp(values / config.temperature)
        possible = weights > 0.0  # excluded tokens must not be drawn even where the draw falls on the last edge
        return ids[possible], weights[possible]

    def _lead(self, leaders: Leaders) -> _Weights | None:
        """`_weigh` of the row that these are the leaders of; None where they do not decide it."""
        k = self.config.top_k
        limited = 0 < k < self.n_vocab
        ids, logits = self._known(leaders, leaders.floor(k + len(leaders.watched) if limited else 0))
        if not (len(ids) and leaders.sound):
            return None
        order = np.argsort(ids)
        ids, logits = ids[order], logits[order]
        best = int(logits.argmax())
        if self._random is None:
            return ids[[best]], np.ones(1)
        peak = float(logits[best])
        if (limited and len(ids) >= k) or leaders.bound == -math.inf:
            kept = _top_k(logits, k)
            return self._cut(ids[kept], logits[kept], peak)
        if limited and self.config.top_p < 1.0:
            return None
        return self._lead_by_mass(leaders, ids, logits, peak)

    def _known(self, leaders: Leaders, floor: np.float32) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """All tokens whose logits, corrected, reach the floor, and these logits."""
        above = leaders.best >= floor
        ids, logits = leaders.tokens[above].astype(np.intp), leaders.best[above]
        if self._edits:
            watched = leaders.watched
            self._is_watched[watched] = True
            others = ~self._is_watched[ids]
            self._is_watched[watched] = False
            self._scratch[watched] = leaders.seen
            self._edit(self._scratch)
            corrected = self._scratch[watched]
            above = corrected >= floor
            ids = np.concatenate((ids[others], watched[above].astype(np.intp)))
            logits = np.concatenate((logits[others], corrected[above]))
        return ids, logits

    def _lead_by_mass(
        self, leaders: Leaders, ids: NDArray[np.intp], logits: NDArray[np.float32], peak: float
    ) -> _Weights | None:
        """`_lead` where top-k does not decide: by how much of the whole mass the tokens have, and by min-p."""
        config, n = self.config, len(ids)
        values = logits.astype(np.float64) - peak
        least = most = n + 1  # bounds of how many are kept; n + 1 is any number that the leaders do not tell
        if config.top_p < 1.0:
            ids, values, cumulative = _ranked(ids, values)
            before = after = 0.0
            if self._edits:
                corrected = self._scratch[leaders.watched]
                with np.errstate(over="ignore"):
                    before, after = (
                        float(np.exp(x.astype(np.float64) - peak).sum()) for x in (leaders.seen, corrected)
                    )
            mass = leaders.mass(peak)
            total, doubt = mass - before + after, MASS_ERROR * (mass + after)
            if not math.isfinite(total):  # what a bias forbids was all there was
                return None
            least, most = (int(cumulative.searchsorted(config.top_p * (total + d))) + 1 for d in (-doubt, doubt))
        if config.min_p > 0.0 and leaders.bound - peak < math.log(config.min_p):
            likely = int(np.count_nonzero(values >= math.log(config.min_p)))
            least, most = min(least, likely), min(most, likely)
        if least < most or most > n:
            return None
        return self._temper(ids[:most], values[:most]) if config.top_p < 1.0 else self._temper(ids, values)


def _nucleus(
    ids: NDArray[np.intp], values: NDArray[np.float64], share: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The smallest set of most likely ids that have a share of the probability, the most likely first.

    Only as many as are needed are put in order, in rising numbers: of a whole vocabulary nearly always a few.
    """
    n, few = len(ids), _FEW
    if n <= few:
        first, ranked, cumulative = _ranked(ids, values)
        kept = int(cumulative.searchsorted(share * cumulative[-1])) + 1
        return first[:kept], ranked[:kept]
    wanted = share * float(np.exp(values).sum())
    while few < n:
        near = values >= np.partition(values, n - few)[n - few]
        first, ranked, cumulative = _ranked(ids[near], values[near])
        if cumulative[-1] >= wanted:
            break
        few *= 8
    else:
        first, ranked, cumulative = _ranked(ids, values)
    kept = int(cumulative.searchsorted(wanted)) + 1
    return first[:kept], ranked[:kept]


def _ranked(
    ids: NDArray[np.intp], values: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Ids and values, the most likely first, and the running sums of their probabilities."""
    order = np.argsort(-values, kind="stable")
    ids, values = ids[order], values[order]
    return ids, values, np.exp(values).cumsum()


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
