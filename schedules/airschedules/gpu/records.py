"""Tuning records of GPU products: the fastest configuration measured, by architecture and shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from airschedules.record_store import RecordStore

STORE = RecordStore(Path(__file__).parent / "measured", "gpu-tuning-records.json")


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
    entry = STORE.find(key)
    return None if entry is None else ProductRecord(**entry)


def add_records(found: dict[str, ProductRecord], path: Path | None = None) -> Path:
    """Add to the records of a file, by default this machine's, and return the file."""
    return STORE.add({key: asdict(record) for key, record in found.items()}, path)
