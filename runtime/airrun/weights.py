"""Weights in memory: files mapped, and matrices interleaved into panels as the plan says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from airrun.ledger import Sizes
from airrun.memory import MappedFile, Region
from airrun.native import CALL, Library, Team
from airrun.plan.schema import Plan, Weight

_PACK_AT_ONCE = 16 << 20
"""Raw bytes interleaved between two releases of their pages: bounds what is resident twice."""


class Weights:
    """Addresses of every tensor and weight of a plan.

    Attributes
    ----------
    tensor_addresses
        Address of each `plan.tensors` entry in its mapped file.
    weight_addresses
        Address of each `plan.weights` entry: its panels, or its raw bytes.
    """

    def __init__(self, plan: Plan, paths: Sequence[Path], sizes: Sizes, library: Library, team: Team) -> None:
        self._files = [MappedFile(path) for path in paths]
        self.tensor_addresses = [self._files[t.file].address + t.offset for t in plan.tensors]
        self._panels = Region(sizes.panels, huge=True)
        self.weight_addresses = [
            self._panels.address + offset if offset >= 0 else self.tensor_addresses[weight.parts[0].tensor]
            for weight, offset in zip(plan.weights, sizes.panel_offsets, strict=True)
        ]
        self._interleave(plan, library, team)

    def _interleave(self, plan: Plan, library: Library, team: Team) -> None:
        """Make all panels, a few matrices at a time, and drop the raw pages of each as soon as it is done."""
        pending: list[tuple[Weight, int]] = []
        size = 0
        for weight, address in zip(plan.weights, self.weight_addresses, strict=True):
            if weight.layout != "panels":
                continue
            pending.append((weight, address))
            size += weight.nbytes
            if size >= _PACK_AT_ONCE:
                self._pack(plan, pending, library, team)
                pending, size = [], 0
        self._pack(plan, pending, library, team)

    def _pack(self, plan: Plan, weights: list[tuple[Weight, int]], library: Library, team: Team) -> None:
        parts = [(weight, address, part) for weight, address in weights for part in weight.parts]
        calls = np.zeros(len(parts), CALL)
        for call, (weight, address, part) in zip(calls, parts, strict=True):
            n_rows = plan.tensors[part.tensor].shape[0]
            call["kernel"] = library.address(weight.pack)
            call["pointers"][0] = self.tensor_addresses[part.tensor]
            call["pointers"][1] = address + part.first_panel * weight.panel_nbytes
            call["n_rows"] = n_rows
            call["n_tasks"] = -(-n_rows // 16)
        team.run(calls.ctypes.data, len(calls))
        for _weight, _address, part in parts:
            tensor = plan.tensors[part.tensor]
            self._files[tensor.file].release(tensor.offset, tensor.nbytes)
