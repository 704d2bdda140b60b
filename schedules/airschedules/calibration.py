"""What kernels cost: rates measured one kernel at a time, from which the compiler predicts whole models.

`calibration.toml` has a table for each instruction set and maker of processors that were measured. Others of the same
instruction set differ by their clock and caches, so predictions for them are rougher. Kernels that were not measured
are taken to be like others of their class, and are named as estimates.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

from airkernels.formats import FORMATS, FloatFormat
from airrun.plan.blocks import BLOCKS

_FILE = Path(__file__).parent / "calibration.toml"

ACTIVATIONS = ("f32", "q8", "q16")
"""By their digits."""

_LIKE = {
    "attention": ("linearattention", "convolution", "groupdot"),
    "select": ("groupslice", "tokenshift"),
}
_LIKE_OF = {op: model for model, ops in _LIKE.items() for op in ops}
_ELEMENTWISE = "gated"
"""Stands for whatever else was not measured: some arithmetic and an exponential function for every element."""


class Rate(NamedTuple):
    """A rate, and whether it is that of the kernel itself."""

    value: float
    measured: bool


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
    other
        Rates of another maker's processors, for what is not among these.
    """

    machine: str
    sync: float
    decode: dict[str, float]
    prefill: dict[str, float]
    element_decode: dict[str, float]
    element_prefill: dict[str, float]
    other: Calibration | None = None

    def product(self, phase: str, weights: str, digits: int) -> Rate:
        """Rate of a product.

        One that was not measured decodes and multiplies as many weights per second as those whose formats are
        described in the same way (`airkernels.formats`: K-quants, codebooks, grids, ...). Where there is none, what was
        measured on processors of another maker counts, and after that all integer formats, or all of floats.
        """
        table, key = getattr(self, phase), f"{weights}/{ACTIVATIONS[digits]}"
        try:
            return Rate(table[key], True)
        except KeyError:
            pass

        def weights_per_unit(name: str) -> float:
            """Weights in what the rates count."""
            return BLOCKS[name].block / BLOCKS[name].nbytes if phase == "decode" else 1.0

        found: dict[str, float] = {}
        for activations in (ACTIVATIONS[digits], "q16", "q8", "f32"):
            for each, rate in table.items():
                name, _, its = each.partition("/")
                if its == activations and isinstance(FORMATS[name], FloatFormat) == (weights in _FLOATS):
                    found.setdefault(name, rate * weights_per_unit(name))
            if found:
                break
        akin = [rate for name, rate in found.items() if _kind(name) == _kind(weights)]
        if not akin and self.other is not None and key in getattr(self.other, phase):
            return Rate(getattr(self.other, phase)[key], False)
        akin = akin or list(found.values())
        return Rate(geometric_mean(akin) / weights_per_unit(weights), False)

    def element(self, phase: str, op: str) -> Rate:
        """Seconds per element of another kernel; one that was not measured is taken for the most similar that was."""
        table = self.element_decode if phase == "decode" else self.element_prefill
        try:
            return Rate(table[op], True)
        except KeyError:
            return Rate(table[_LIKE_OF.get(op, _ELEMENTWISE)], False)


_FLOATS = frozenset(name for name, form in FORMATS.items() if isinstance(form, FloatFormat))


def _kind(name: str) -> str:
    """The module that describes a format: those of one decode in the same way."""
    return type(FORMATS[name]).__module__


@lru_cache(maxsize=8)
def load_calibration(isa: str, maker: str = "", path: Path = _FILE) -> Calibration | None:
    """The rates of an instruction set, first those of processors of `maker`; None if it never was measured."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    names = [name for name in tables if name.partition("/")[0] == isa]
    names.sort(key=lambda name: name.partition("/")[2] != maker)
    found = None
    for name in reversed(names):
        found = Calibration(**tables[name], other=found)
    return found
