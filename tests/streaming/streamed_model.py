"""Plans whose weights are cut into small chunks, budgets for them, and a disk that fails on purpose."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airrun.engine import Engine
from airrun.errors import BudgetError
from airrun.ledger import sizes_of
from airrun.plan.chunks import is_bank, n_chunks
from airrun.plan.container import encode_plan, read_plan
from airrun.plan.schema import Plan, Stream
from airrun.weights import expert_cache, resident, stream

IDS = [3 + (7 * i + i * i) % 250 for i in range(60)]
Open = Callable[..., Engine]


def rechunked(plan: Path, out: Path, panels: int, readers: int = 2, slots: int = 4, batch: int = 24) -> Path:
    """The plan with chunks of so many panels, kept in a random order, and a largest batch that prompts exceed."""
    loaded = read_plan(plan)
    segments = [bytes(loaded.segment(i)) for i in range(len(loaded.plan.segments))]
    changed = replace(
        loaded.plan,
        weights=tuple(
            weight if is_bank(loaded.plan, weight) else replace(weight, chunk_panels=panels)
            for weight in loaded.plan.weights
        ),
        stream=Stream(readers, slots),
        programs=(loaded.plan.programs[0], replace(loaded.plan.programs[1], max_tokens=batch)),
    )
    rng = np.random.default_rng(panels)
    changed = replace(changed, keep_order=tuple(rng.permutation(n_chunks(changed)).tolist()))
    out.write_bytes(encode_plan(changed, segments))
    return out


def budget(plan: Plan, share: float, **options: Any) -> int:
    """Bytes that keep about a share of the weights, beside what the smallest budget that works is for."""
    options.pop("load_mode", None)
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        try:
            sizes_of(plan, ram=middle, **options)
            high = middle
        except BudgetError:
            low = middle + 1
    return low + int(share * sum(weight.nbytes for weight in plan.weights))


class FaultyDisk:
    """Stands in for pread: counts reads, and does what it is told at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reads, self.fail_at, self.result = 0, -1, 0
        self.before: Callable[[], object] = lambda: None
        libc = ctypes.CDLL(None, use_errno=True)
        libc.pread.restype = ctypes.c_ssize_t
        libc.pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)

        def read(fd: int, to: int, nbytes: int, offset: int) -> int:
            self.reads += 1
            if self.reads == self.fail_at:
                self.before()
                if self.result:
                    return self.result
            n: int = libc.pread(fd, to, nbytes, offset)
            return n if n >= 0 else -ctypes.get_errno()

        kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64)
        self._function = kind(read)
        address = ctypes.cast(self._function, ctypes.c_void_p).value
        for module in (stream, resident, expert_cache):
            patch.setattr(module, "read_function", lambda _library: address)

    def fail_next(self, result: int = 0, before: Callable[[], object] = lambda: None, after: int = 1) -> None:
        """At the read that comes `after` this moment: call `before`, then give `result` unless that is 0."""
        self.fail_at, self.result, self.before = self.reads + after, result, before
