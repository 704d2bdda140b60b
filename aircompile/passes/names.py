"""Names of fused operators."""

from __future__ import annotations

from collections.abc import Sequence


def joined(names: Sequence[str]) -> str:
    """One name for several: ``layers.0.q``, ``layers.0.k`` become ``layers.0.q+k``."""
    prefixes = {name.rpartition(".")[0] for name in names}
    if len(prefixes) > 1:
        return "+".join(names)
    prefix = prefixes.pop()
    return (prefix + "." if prefix else "") + "+".join(name.rpartition(".")[2] for name in names)
