"""Weights in memory: files mapped, and matrices interleaved into panels as the plan says."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

from airrun.ledger import Sizes
from airrun.memory import MappedFile, Region, inner_pages
from airrun.native import Call, Library
from airrun.plan.schema import PANEL_ROWS, Plan, Weight

_AT_ONCE = 8 << 20
"""Raw bytes interleaved between two releases of their pages: bounds what is resident twice."""


class Weights:
    """Addresses of every tensor and weight of a plan. Panels are filled by the calls of `interleaving`.

    Attributes
    ----------
    tensor_addresses
        Address of each `plan.tensors` entry in its mapped file.
    weight_addresses
        Address of each `plan.weights` entry: its panels, or its raw bytes.
    """

    def __init__(self, plan: Plan, paths: Sequence[Path], sizes: Sizes) -> None:
        self._plan = plan
        self._files = [MappedFile(path) for path in paths]
        self.tensor_addresses = [self._files[t.file].address + t.offset for t in plan.tensors]
        self._panels = Region(sizes.panels, huge=True)
        self.weight_addresses = [
            self._panels.address + offset if offset >= 0 else self.tensor_addresses[weight.parts[0].tensor]
            for weight, offset in zip(plan.weights, sizes.panel_offsets, strict=True)
        ]

    def interleaving(self, library: Library) -> list[Call]:
        """Native calls that make all panels, a few megabytes at a time, each followed by letting go of the raw pages.

        A native call is a C function of a few words, and `madvise` is one: so all is done in one parallel region, in
        which no worker waits for the interpreter.
        """
        madvise = ctypes.cast(ctypes.CDLL(None).madvise, ctypes.c_void_p).value or 0
        packs = {w.pack: library.address(w.pack) for w in self._plan.weights if w.layout == "panels"}
        calls: list[Call] = []
        releases: list[Call] = []
        size = 0
        for weight, source, nbytes, target, n_rows in self._pieces():
            n_tasks = -(-n_rows // PANEL_ROWS)
            calls.append(Call(packs[weight.pack], (source, target), n_rows, n_tasks, sync=False))
            first, length = inner_pages(source, nbytes)
            if length:
                releases.append(Call(madvise, (first, length, mmap.MADV_DONTNEED), 0, 1, sync=False))
            size += nbytes
            if size >= _AT_ONCE:
                calls[-1] = calls[-1]._replace(sync=True)
                calls += releases
                releases, size = [], 0
        if calls:
            calls[-1] = calls[-1]._replace(sync=True)
        return calls + releases

    def _pieces(self) -> Iterator[tuple[Weight, int, int, int, int]]:
        """Parts of weights, cut at `_AT_ONCE`: weight, address and bytes of the raw rows, address of panels, rows."""
        for weight, address in zip(self._plan.weights, self.weight_addresses, strict=True):
            for part in weight.parts if weight.layout == "panels" else ():
                tensor = self._plan.tensors[part.tensor]
                n_rows, source = tensor.shape[0], self.tensor_addresses[part.tensor]
                row_nbytes = tensor.nbytes // n_rows
                step = max(_AT_ONCE // row_nbytes // PANEL_ROWS, 1)
                for panel in range(0, -(-n_rows // PANEL_ROWS), step):
                    first = panel * PANEL_ROWS
                    rows = min(step * PANEL_ROWS, n_rows - first)
                    target = address + (part.first_panel + panel) * weight.panel_nbytes
                    yield weight, source + first * row_nbytes, rows * row_nbytes, target, rows
