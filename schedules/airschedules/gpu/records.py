"""Tuning records of GPU products: the fastest configuration measured, by architecture and shape.

Records that ship are the files of folder ``measured``; what `aircompile tune` finds goes to the cache and wins.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from airrun.paths import cache_dir, ensure_dir, write_atomic

_SHIPPED = Path(__file__).parent / "measured"
_LOCAL = "gpu-tuning-records.json"


@dataclass(frozen=True)
class ProductRecord:
    """A measured configuration, and on what it was measured."""

    rows: int
    tile: int
    columns: int
    microseconds: float
    baseline: float
    device: str


def find_record(key: str) -> ProductRecord | None:
    """The record of a product, if there is one."""
    entry = _all_records().get(key)
    return None if entry is None else ProductRecord(**entry)


def add_records(found: dict[str, ProductRecord], path: Path | None = None) -> Path:
    """Add to the records of a file, by default this machine's, and return the file."""
    path = path or ensure_dir(cache_dir()) / _LOCAL
    entries = _read(path) | {key: asdict(record) for key, record in found.items()}
    write_atomic(path, json.dumps(entries, indent=1, sort_keys=True).encode())
    _all_records.cache_clear()
    return path


@lru_cache(maxsize=1)
def _all_records() -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in [*sorted(_SHIPPED.glob("*.json")), cache_dir() / _LOCAL]:
        merged |= _read(path)
    return merged


def _read(path: Path) -> dict[str, Any]:
    """Records of a file; a missing or damaged one counts as empty, for records only ever save time."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
