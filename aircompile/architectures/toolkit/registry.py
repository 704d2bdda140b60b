"""The table of families."""

from __future__ import annotations

from collections.abc import Callable

from aircompile.architectures.toolkit.builder import Builder

Family = Callable[[Builder], None]
"""Adds the operators of a model; what it does not read of the file's keys and tensors is refused afterwards."""

FAMILIES: dict[str, Family] = {}
"""Families by `general.architecture`."""


def family(*names: str) -> Callable[[Family], Family]:
    """Register a family under the architecture names that it builds."""

    def register(build: Family) -> Family:
        for name in names:
            assert name not in FAMILIES, name
            FAMILIES[name] = build
        return build

    return register
