"""The tuner: measures schedule candidates of a product on this machine and keeps the fastest.

Candidates run on random weights that exceed the caches for decode (which is bound by memory) and on a
slice of the rows for prefill (which is bound by arithmetic). Candidates of one product take turns, round by round,
so that a slow moment of a shared machine falls on all of them; the best round of each counts.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from airkernels.cpu.activations import quantize_rows
from airkernels.cpu.build import compile_kernels
from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.matmul_int import MatmulSchedule, MatmulShape, matmul_int, scratch_nbytes
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS, BlockFormat
from airrun.replay.memory import Region
from airschedules.records import MatmulTask, Record
from airschedules.rules import untuned

Progress = Callable[[str, int, int], None]

_PREFILL_TOKENS = 256
_PREFILL_WEIGHTS = 1 << 21
"""Weights of the slice that prefill candidates multiply."""

_FREEDOM = 3
"""Of the t distribution of activations: a fifth of its groups of 32 have outliers, about as in trained models."""

_DECODE_NBYTES = 96 << 20
"""Weight bytes that a decode candidate reads: more than the caches hold."""

_ROUNDS = {"fast": 3, "full": 7}

_KEEP = 1.02
"""A candidate replaces the rules' choice only if it is this much faster: less is noise."""


@dataclass(frozen=True)
class _Candidate:
    schedule: MatmulSchedule
    run: Callable[[], None]
    n_operations: float


def candidates(task: MatmulTask, isa: VectorIsa) -> list[MatmulSchedule]:
    """The schedules worth trying; the rules' choice comes first."""
    chosen = untuned(task, isa).schedule
    tiles = (4, 6, 8, 10, 12) if isa.registers >= 32 else (1, 2, 3, 4, 6)
    others = () if task.phase == "decode" else (replace(chosen, tile=tile) for tile in tiles)
    return [chosen, *(schedule for schedule in others if schedule != chosen)]


def tune_matmuls(
    tasks: Sequence[MatmulTask], isa: VectorIsa, effort: str, progress: Progress, deadline: float | None = None
) -> dict[str, Record]:
    """Measure every task that has more than one candidate.

    Parameters
    ----------
    effort
        'fast' or 'full'.
    deadline
        `time.monotonic()` after which no further task is begun.

    Returns
    -------
    Records by key, for `records.add_records`.
    """
    found: dict[str, Record] = {}
    todo = [t for t in tasks if t.digits and len(candidates(t, isa)) > 1]
    for i, task in enumerate(todo):
        if deadline is not None and time.monotonic() > deadline:
            break
        progress(task.key(isa.name), i, len(todo))
        found[task.key(isa.name)] = _tune(task, isa, effort)
    return found


def _tune(task: MatmulTask, isa: VectorIsa, effort: str) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        tried = _compile(task, isa, candidates(task, isa), Path(folder))
        best = [float("inf")] * len(tried)
        for _round in range(_ROUNDS[effort]):
            for i, candidate in enumerate(tried):
                started = time.perf_counter()
                candidate.run()
                best[i] = min(best[i], time.perf_counter() - started)
    rates = [c.n_operations / seconds / 1e9 for c, seconds in zip(tried, best, strict=True)]
    winner = max(range(len(rates)), key=rates.__getitem__)
    if rates[winner] < _KEEP * rates[0]:
        winner = 0
    return Record(tried[winner].schedule.tile, round(rates[winner], 1), round(rates[0], 1))


def _compile(task: MatmulTask, isa: VectorIsa, schedules: Iterable[MatmulSchedule], folder: Path) -> list[_Candidate]:
    fmt = FORMATS[task.fmt]
    assert isinstance(fmt, BlockFormat)
    n_tokens = 1 if task.phase == "decode" else _PREFILL_TOKENS
    n_rows = max(PANEL * 4, _PREFILL_WEIGHTS // task.n_cols // PANEL * PANEL)
    shape = MatmulShape(n_rows, task.n_cols, -(-n_rows // PANEL) * PANEL, digits=task.digits)
    schedules = list(schedules)
    programs = {f"candidate_{i}": matmul_int(f"candidate_{i}", isa, fmt, shape, s) for i, s in enumerate(schedules)}
    path = folder / "candidates.so"
    compile_kernels(programs, isa).export_library(str(path))
    library = ctypes.CDLL(str(path))
    data = _Data(task, shape, isa, fmt, n_tokens)
    return [
        _Candidate(schedule, data.caller(getattr(library, name)), data.n_operations)
        for schedule, name in zip(schedules, programs, strict=True)
    ]


class _Data:
    """Random operands of one product."""

    def __init__(self, task: MatmulTask, shape: MatmulShape, isa: VectorIsa, fmt: BlockFormat, n_tokens: int) -> None:
        rng = np.random.default_rng(0)
        layout = PanelLayout(fmt, task.n_cols)
        self.n_panels = -(-shape.n_rows // PANEL)
        self.nbytes = self.n_panels * layout.nbytes
        self.copies = max(1, _DECODE_NBYTES // self.nbytes) if task.phase == "decode" else 1
        self.weights = Region(self.nbytes * self.copies, huge=True)
        # Bytes of 1 decode to small finite numbers in every format: timing needs no more.
        self.weights.bytes[:] = 1
        rows = quantize_rows(rng.standard_t(_FREEDOM, (n_tokens, task.n_cols)).astype(np.float32), task.digits)
        self.x = Region(rows.nbytes)
        self.x.bytes[: rows.nbytes] = rows.reshape(-1)
        self.out = Region(4 * n_tokens * shape.out_stride)
        self.scratch = Region(scratch_nbytes(isa, fmt, task.n_cols))
        self.n_tokens = n_tokens
        self.n_operations = 2.0 * shape.n_rows * task.n_cols * n_tokens * self.copies

    def caller(self, kernel: Any) -> Callable[[], None]:
        kernel.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int32] * 4
        x, out, scratch = self.x.address, self.out.address, self.scratch.address

        def run() -> None:
            for copy in range(self.copies):
                at = self.weights.address + copy * self.nbytes
                kernel(at, x, out, None, None, None, None, scratch, self.n_tokens, 0, self.n_panels, 0)

        return run
