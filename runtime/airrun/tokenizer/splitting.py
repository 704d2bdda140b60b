"""Steps that cut a text into the words within which BPE merges; several steps refine each other's cuts."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property, lru_cache

from airrun.tokenizer.unicode_classes import CLASS_MEMBERS, to_classes, with_ascii_spaces


class SplitText:
    """A text and the forms of it that patterns look at, each made when first needed; all have its length."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def classes(self) -> str:
        """Stand-ins for Unicode classes, for patterns with `\\p{..}`."""
        return to_classes(self.text)

    @cached_property
    def spaced(self) -> str:
        """The characters themselves but ASCII white space only, for patterns without `\\p{..}`."""
        return with_ascii_spaces(self.text)


# A step takes the text and the ascending end offsets of its pieces and returns finer end offsets.
Step = Callable[[SplitText, list[int]], list[int]]


@lru_cache(maxsize=64)
def _compile(pattern: str) -> re.Pattern[str]:
    for name, members in CLASS_MEMBERS.items():
        pattern = pattern.replace(name, members)
    return re.compile(pattern, re.ASCII)


def matches_isolated(pattern: str) -> Step:
    """Step that makes every match of `pattern`, and every stretch between matches, a piece of its own.

    Parameters
    ----------
    pattern : str
        A `re` expression in which `\\p{..}` (see `CLASS_MEMBERS`) may stand inside brackets. Look-ahead sees the
        end of a piece as the end of the text.
    """
    by_class = r"\p{" in pattern

    def step(split: SplitText, ends: list[int]) -> list[int]:
        find = _compile(pattern).finditer
        text = split.classes if by_class else split.spaced
        out: list[int] = []
        start = 0
        for end in ends:
            done = start
            for match in find(text, start, end):
                first, last = match.span()
                if first > done:
                    out.append(first)
                out.append(last)
                done = last
            if done < end:
                out.append(end)
            start = end
        return out

    return step


def digits_in_threes(split: SplitText, ends: list[int]) -> list[int]:
    """Step that groups runs of digits (any script) by three from the right.

    The first group of a run stays joined to the text before it, as in llama.cpp; later steps separate them.
    """
    find = _compile(r"[\p{N}]+").finditer
    out: list[int] = []
    start = 0
    for end in ends:
        done = start
        for match in find(split.classes, start, end):
            first, done = match.span()
            out.extend(range(first + ((done - first) % 3 or 3), done + 1, 3))
        if done < end:
            out.append(end)
        start = end
    return out


def before_each_three_digits(split: SplitText, ends: list[int]) -> list[int]:
    """Step that cuts before every position from which a multiple of three ASCII digits follows.

    Equals the expression `(?=(\\d{3})+(?!\\d))`, which would take quadratic time.
    """
    find = _compile(r"[0-9]{3,}").finditer
    out: list[int] = []
    start = 0
    for end in ends:
        for match in find(split.spaced, start, end):
            first, last = match.span()
            cut = first + (last - first) % 3
            out.extend(range(cut if cut > start else cut + 3, last, 3))
        out.append(end)
        start = end
    return out
