"""The pace of a run: what is said of it beforehand, and bars while weights load or a slow token is computed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from airrun.cuda.engine import CudaEngine
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


def device_announcement(engine: CudaEngine) -> str | None:
    """A line about the speed to expect of a GPU and the tier that bounds it; None where its rates are unknown."""
    from airrun.cuda.tiers import DISK, HOST

    found, tiers = engine.prediction, engine.device_sizes.tiers
    if found is None or found.tokens_per_second is None:
        return None
    rate = found.tokens_per_second
    bus, disk = tiers.raw_nbytes(HOST, DISK), tiers.raw_nbytes(DISK)
    ways = [f"{nbytes / 1e9:.1f} GB each over the {name}" for name, nbytes in (("bus", bus), ("disk", disk)) if nbytes]
    what = f"{rate:.{0 if rate >= 10 else 2}f} tokens/s"
    return f"note: expect {', '.join([what, *ways])}, bound by {found.bound} ({found.target})"


class LoadBar:
    """One line of what was read of the weights and how fast, rewritten as it goes, and taken away at the end."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out, self._width, self._started = out, 0, time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes are read."""
        seconds = time.perf_counter() - self._started
        if done < total and seconds >= _AFTER_S:
            line = f"loading {done / 1e9:.1f} of {total / 1e9:.1f} GB, {done / seconds / 1e9:.1f} GB/s"
            self._out.write(f"\r{line:<{self._width}}")
            self._width = len(line)
        elif self._width:
            self._out.write(f"\r{'':<{self._width}}\r")
            self._width = 0
        self._out.flush()


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
