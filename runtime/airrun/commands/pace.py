"""Slow runs: what is said beforehand, and a bar while a token is being computed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from airrun.engine import Engine

SLOW = 1.0
"""Tokens/s below which a run is announced."""

_WIDTH = 20
_AFTER_S = 0.3
"""A pass is shown once it has taken this long."""


def announcement(engine: Engine) -> str | None:
    """A line about the speed to expect, where it is below `SLOW` tokens/s."""
    from airrun.predict import predict

    found = predict(engine.plan, sizes=engine.sizes)
    rate = found.decode_tokens_per_second
    if rate is None or rate >= SLOW:
        return None
    nbytes = engine.sizes.residency.streamed_nbytes
    reads = f", reading {nbytes / 1e9:.1f} GB each" if nbytes else ""
    return f"note: expect {1 / rate:.1f} s per token{reads}, bound by {found.decode_bound}"


class LayerBar:
    """A bar behind the text, drawn as layers are done and taken away when a pass ends.

    It only goes forwards and backwards on its line, so that text can go on where it was.
    """

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out, self._drawn, self._started = out, "", 0.0

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` sections of a pass are done."""
        now = time.perf_counter()
        if done == 1:
            self._started = now
        filled = _WIDTH * done // total
        bar = f" [{'#' * filled}{'.' * (_WIDTH - filled)}]"
        if done == total:
            self._show("")
        elif now - self._started >= _AFTER_S and bar != self._drawn:
            self._show(bar)

    def _show(self, bar: str) -> None:
        """Put `bar` where the one before is; an empty one leaves nothing."""
        old = len(self._drawn)
        if old or bar:
            self._out.write("\b" * old + " " * old + "\b" * old + bar)
            self._out.flush()
        self._drawn = bar
