"""How the next token is chosen, as data; `airrun.generation.sampling` does it.

Apart from that, since a command line checks its options before it imports numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field

from airrun.errors import UsageError
from airrun.records import record


@record(kw_only=True)
class SamplerConfig:
    """How the next token is chosen; defaults and semantics are llama.cpp's.

    Attributes
    ----------
    temperature : float
        Divides the logits before the draw; 0 or less takes the most likely token (greedy).
    top_k : int
        Keep the ``top_k`` most likely tokens; 0 or less keeps all.
    top_p : float
        Keep the smallest set of most likely tokens whose probability reaches ``top_p``; 1 keeps all.
    min_p : float
        Drop tokens less likely than ``min_p`` times the most likely one; 0 keeps all.
    repeat_penalty : float
        A token seen in the window has its positive logit divided, its negative one multiplied, by this; 1 is off.
    repeat_last_n : int
        Window of the three penalties in tokens, prompt included; 0 is off, -1 is the whole context.
    frequency_penalty, presence_penalty : float
        Subtracted per occurrence in the window, and once if the token occurs at all.
    logit_bias : Mapping[int, float]
        Added to the logit of a token id before everything else; ``-inf`` forbids the token.
    seed : int or None
        Of the draw; None takes a fresh one, which ``Sampler.seed`` then tells.

    Raises
    ------
    UsageError
        For a value outside its range, naming it.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} must be a finite number, not {getattr(self, name)}")
        for name in ("top_p", "min_p"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if not (math.isfinite(self.repeat_penalty) and self.repeat_penalty > 0.0):
            raise UsageError(f"repeat_penalty must be a positive number, not {self.repeat_penalty}")
        if self.repeat_last_n < -1:
            raise UsageError(f"repeat_last_n must be -1 or more, not {self.repeat_last_n}")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"seed must be 0 or more, or None, not {self.seed}")
        for token, bias in self.logit_bias.items():
            if token < 0:
                raise UsageError(f"logit_bias names token {token}, which is negative")
            if math.isnan(bias) or bias == math.inf:
                raise UsageError(f"logit_bias of token {token} must be finite or -inf, not {bias}")

    @property
    def penalizes(self) -> bool:
        """Whether any of the three penalties can change a logit."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        )
