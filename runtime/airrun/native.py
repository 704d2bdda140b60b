"""The native half: loading a plan's library, and the team of threads that runs its kernels."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
import weakref

import numpy as np
import numpy.typing as npt

from airrun.errors import PlanError
from airrun.memory import Region
from airrun.plan.schema import POINTERS_PER_STEP

CALL = np.dtype(
    {
        "names": ["kernel", "pointers", "n_rows", "n_tasks", "sync", "next"],
        "formats": ["<u8", ("<u8", POINTERS_PER_STEP), "<i4", "<i4", "<i4", "<i4"],
        "offsets": [0, 8, 72, 76, 80, 84],
        "itemsize": 128,
    }
)
"""`struct air_call` of replay.h."""

Calls = npt.NDArray[np.void]

_TEAM_NBYTES = 256
_N_WORKERS_AT = 12
"""Offset of `n_workers` in `struct air_team`."""


class Library:
    """A shared object that a plan carries, loaded from memory."""

    def __init__(self, image: bytes | memoryview, label: str) -> None:
        self.label = label
        try:
            self._so = _load(image)
        except OSError as e:
            raise PlanError(f"{label}: cannot load its native code: {e}") from e
        self.run = self.function("air_run", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        self.worker = self.function("air_worker", ctypes.c_void_p, ctypes.c_int32)
        self.stop = self.function("air_stop", ctypes.c_void_p)

    def function(self, symbol: str, *argtypes: type) -> ctypes._NamedFuncPointer:
        try:
            f = getattr(self._so, symbol)
        except AttributeError:
            raise PlanError(f"{self.label}: its native code lacks {symbol}") from None
        f.argtypes, f.restype = argtypes, None
        return f

    def address(self, symbol: str) -> int:
        return ctypes.cast(self.function(symbol), ctypes.c_void_p).value or 0


def _load(image: bytes | memoryview) -> ctypes.CDLL:
    """dlopen bytes: through an anonymous file where the kernel has them, else a temporary one."""
    if hasattr(os, "memfd_create"):
        # Never closed: the loader knows libraries by path, and under a reused number it would hand out the old one.
        # The library itself stays for the life of the process too.
        fd = os.memfd_create("airrun-kernels")
        _write_all(fd, image)
        return ctypes.CDLL(f"/proc/self/fd/{fd}")
    with tempfile.NamedTemporaryFile(suffix=".so") as f:
        _write_all(f.fileno(), image)
        return ctypes.CDLL(f.name)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Team:
    """Worker threads of one engine. The calling thread is worker 0; the others live in native code."""

    def __init__(self, library: Library, n_workers: int) -> None:
        self.n_workers = n_workers
        self._library = library
        self._state = Region(_TEAM_NBYTES)
        self._state.array("<i4", (1,), _N_WORKERS_AT)[0] = n_workers
        self._lock = threading.Lock()
        threads = [
            threading.Thread(target=library.worker, args=(self._state.address, i), name=f"airrun-{i}", daemon=True)
            for i in range(1, n_workers)
        ]
        # Workers know their state by address only: it must not be freed, and its address not used again, before
        # they have ended, also where an engine is dropped without being closed.
        self._finalizer = weakref.finalize(self, _end, library, self._state, threads)
        for thread in threads:
            thread.start()

    def run(self, calls_address: int, n_calls: int) -> None:
        """Run `n_calls` entries of an array of `CALL` to the end."""
        with self._lock:
            if not self._finalizer.alive:
                raise PlanError("the engine is closed")
            self._library.run(self._state.address, calls_address, n_calls)

    def close(self) -> None:
        """End the workers; idempotent."""
        with self._lock:
            self._finalizer()


def _end(library: Library, state: Region, threads: list[threading.Thread]) -> None:
    library.stop(state.address)
    for thread in threads:
        thread.join()
