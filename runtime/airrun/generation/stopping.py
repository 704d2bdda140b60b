"""Stop strings in streamed text: what comes before a stop is passed on, nothing of the stop ever is."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Holds back the end of the text as long as it may turn out to be the beginning of a stop string.

    Attributes
    ----------
    hit : str or None
        The stop string that was found; from then on all text is swallowed.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """Take new text and return what is now certain to lie before any stop."""
        if not self._stops:
            return text
        if self.hit is not None:
            return ""
        text = self._held + text
        found = min(((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self._held, self.hit = "", found[1]
            return text[: found[0]]
        cut = len(text) - self._ambiguous(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """Return what was held back, once no more text can complete a stop."""
        held, self._held = self._held, ""
        return held

    def _ambiguous(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:n]):
                    longest = n
                    break
        return longest
