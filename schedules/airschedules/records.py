"""Tuning records: the fastest schedule measured for a product on an instruction set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from airschedules.record_store import RecordStore

STORE = RecordStore(Path(__file__).parent / "records", "tuning-records.json")


@dataclass(frozen=True)
class MatmulTask:
    """A product to be scheduled: what its best schedule depends on. `digits`: of the activations, 0 for float32.

    Not on the number of rows: panels of 16 rows are computed one after another.
    """

    fmt: str
    n_cols: int
    phase: str
    digits: int

    def key(self, isa: str) -> str:
        activations = ("f32", "q8", "q16")[self.digits]
        return f"{isa}/{self.fmt}/{activations}/{self.n_cols}/{self.phase}"


@dataclass(frozen=True)
class Record:
    """The fastest tile that was measured: 10^9 operations per second on one thread, and those of the rules' choice."""

    tile: int
    gops: float
    baseline: float


def find_record(task: MatmulTask, isa: str) -> Record | None:
    """The record of a product, if there is one."""
    entry = STORE.find(task.key(isa))
    return None if entry is None else Record(**entry)


def add_records(found: dict[str, Record]) -> Path:
    """Add to this machine's records and return their file."""
    return STORE.add({key: asdict(record) for key, record in found.items()})
