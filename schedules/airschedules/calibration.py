"""What kernels cost: rates measured one kernel at a time, from which the compiler predicts whole models.

`calibration.toml` names the machine that a level was measured on. Other processors of the same instruction set differ
by their clock and caches, so predictions for them are rougher.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FILE = Path(__file__).parent / "calibration.toml"


@dataclass(frozen=True)
class Calibration:
    """Rates of one instruction set, on one thread with data in the cache.

    Attributes
    ----------
    machine
        Where they were measured.
    sync
        Seconds that several threads lose at a barrier.
    decode
        Bytes of weights per second of a product with one token, by 'FORMAT/activations'.
    prefill
        Multiplications per second of a product with many tokens, likewise.
    element_decode, element_prefill
        Seconds per element and token of the other kernels, by operation; of attention per element, head and cell.
    """

    machine: str
    sync: float
    decode: dict[str, float]
    prefill: dict[str, float]
    element_decode: dict[str, float]
    element_prefill: dict[str, float]


@lru_cache(maxsize=4)
def load_calibration(isa: str, path: Path = _FILE) -> Calibration | None:
    """The rates of an instruction set; None where it was never measured."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return Calibration(**tables[isa]) if isa in tables else None
