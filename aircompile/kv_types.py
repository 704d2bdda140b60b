"""What a KV cache holds, as the command line spells it."""

from __future__ import annotations

from airrun.errors import UsageError
from airrun.plan.schema import KV_FORMATS

_TYPES = {name.lower(): name for name in KV_FORMATS}


def parse_kv_type(text: str) -> tuple[str, str]:
    """Formats of keys and values: one name for both, or two with a comma between.

    Raises
    ------
    UsageError
        A name that is unknown.
    """
    names = text.split(",")
    if len(names) > 2 or not set(names) <= set(_TYPES):
        raise UsageError(f"{text!r} is no type of a KV cache: {', '.join(_TYPES)}, or KEYS,VALUES of these")
    return _TYPES[names[0]], _TYPES[names[-1]]
