"""Tuning records: the fastest schedule measured for a product on an instruction set.

Records that ship with the package are JSON files beside this module; what a tuner finds on this machine
goes to the cache and wins over them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from airkernels.cpu.matmul_int import MatmulSchedule
from airrun.paths import cache_dir, ensure_dir, write_atomic

_SHIPPED = Path(__file__).parent / "records"
_LOCAL = "tuning-records.json"


@dataclass(frozen=True)
class MatmulTask:
    """A product to be scheduled: what its best schedule depends on. `digits`: of the activations, 0 for float32."""

    fmt: str
    n_rows: int
    n_cols: int
    phase: str
    digits: int

    def key(self, isa: str) -> str:
        activations = ("f32", "q8", "q16")[self.digits]
        return f"{isa}/{self.fmt}/{activations}/{self.n_rows}x{self.n_cols}/{self.phase}"


@dataclass(frozen=True)
class Record:
    """A measured schedule: 10^9 operations per second on one thread, and those of the rules' choice."""

    schedule: MatmulSchedule
    gops: float
    baseline: float


def find_record(task: MatmulTask, isa: str) -> Record | None:
    """The record of a product, if there is one."""
    entry = _all_records().get(task.key(isa))
    return None if entry is None else Record(MatmulSchedule(**entry["schedule"]), entry["gops"], entry["baseline"])


def add_records(found: dict[str, Record]) -> Path:
    """Add to this machine's records and return their file."""
    path = ensure_dir(cache_dir()) / _LOCAL
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
