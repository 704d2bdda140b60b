"""Tuning records on disk: what ships with the package, and what a tuner found on this machine, which wins."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from airrun.paths import cache_dir, ensure_dir, write_atomic


class RecordStore:
    """JSON objects by key.

    Parameters
    ----------
    shipped
        Folder of files that come with the package.
    local
        Name of the file in the cache that a tuner adds to.
    """

    def __init__(self, shipped: Path, local: str) -> None:
        self._shipped = shipped
        self._local = local

    def find(self, key: str) -> dict[str, Any] | None:
        """The record of a key, if there is one."""
        return self._merged.get(key)

    def add(self, entries: dict[str, Any], path: Path | None = None) -> Path:
        """Add to the records of a file, by default this machine's, and return the file."""
        path = path or ensure_dir(cache_dir()) / self._local
        write_atomic(path, json.dumps(_read(path) | entries, indent=1, sort_keys=True).encode())
        self.forget()
        return path

    def forget(self) -> None:
        """Read the files again when next asked."""
        self.__dict__.pop("_merged", None)

    @cached_property
    def _merged(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for path in [*sorted(self._shipped.glob("*.json")), cache_dir() / self._local]:
            merged |= _read(path)
        return merged


def _read(path: Path) -> dict[str, Any]:
    """Records of a file; a missing or damaged one counts as empty, for records only ever save time."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
