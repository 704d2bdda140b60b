"""The native half: loading a plan's library, and the team of threads that runs its kernels."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from airrun.errors import PlanError
from airrun.plan.schema import POINTERS_PER_STEP
from airrun.replay.memory import Region

CALL = struct.Struct(f"<Q{POINTERS_PER_STEP}Q4i2Q24x")
"""`struct air_call` of replay.h: kernel, pointers, n_rows, n_tasks, sync, first_task, fetch, demand; the rest is the
loop's."""

FETCH = struct.Struct("<Q2q2i32x")
"""`struct air_fetch`: pack, skew, panel_nbytes, chunk, n_rows; the rest is the loop's own."""

TABLE = struct.Struct("<Q2qQi28x")
"""`struct air_table`: read, offset, row_nbytes, failure, file."""

_WORD, _WORDS, _LONGS = struct.Struct("<i"), struct.Struct("<QQ"), struct.Struct("<Qq")
_N_WORKERS_AT, _STREAM_AT, _PANELS_AT, _CANCELLED_AT = 12, 16, 32, 80
"""Offsets in `struct air_team`."""
_TEAM_NBYTES = 256
_LINE = 64


class Fetch(NamedTuple):
    """How a call gets streamed rows: see `struct air_fetch` of replay.h."""

    pack: int
    skew: int
    panel_nbytes: int
    chunk: int
    n_rows: int


class Call(NamedTuple):
    """One native call: address of the kernel, its pointers (those not given are null), and how it is spread; for what
    is not there when it begins, a fetch or the address of a demand (`struct air_demand` of replay.h)."""

    kernel: int
    pointers: Sequence[int]
    n_rows: int
    n_tasks: int
    sync: bool
    first_task: int = 0
    fetch: Fetch | None = None
    demand: int = 0


class CallArray:
    """Packed calls: the array that the native loop walks, each on cache lines of its own.

    Attributes
    ----------
    address, memory
        Where it stands, and the same as a buffer.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        fetches = [call.fetch for call in calls if call.fetch is not None]
        end = CALL.size * len(calls)
        buffer = ctypes.create_string_buffer(end + FETCH.size * len(fetches) + _LINE)
        skew = -ctypes.addressof(buffer) % _LINE
        self.address = ctypes.addressof(buffer) + skew
        self.memory = memoryview(buffer)[skew : skew + end]
        whole = memoryview(buffer)[skew:]  # whoever holds the calls holds what they point to
        for i, fetch in enumerate(fetches):
            FETCH.pack_into(whole, end + i * FETCH.size, *fetch)
        at = self.address + end
        for i, call in enumerate(calls):
            pointers = (*call.pointers, *[0] * (POINTERS_PER_STEP - len(call.pointers)))
            how = (call.n_rows, call.n_tasks, call.sync, call.first_task, at if call.fetch else 0, call.demand)
            CALL.pack_into(whole, i * CALL.size, call.kernel, *pointers, *how)
            at += FETCH.size if call.fetch else 0


def pack_calls(calls: Sequence[Call]) -> CallArray:
    """Calls as the native loop wants them."""
    return CallArray(calls)


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
        self.reader = self.function("air_reader", ctypes.c_void_p)
        self.stream_stop = self.function("air_stream_stop", ctypes.c_void_p)
        self.stream_skip_tail = self.function("air_stream_skip_tail", ctypes.c_void_p)

    def function(self, symbol: str, *argtypes: type) -> ctypes._NamedFuncPointer:
        try:
            f: ctypes._NamedFuncPointer = getattr(self._so, symbol)
        except AttributeError:
            raise PlanError(f"{self.label}: its native code lacks {symbol}") from None
        f.argtypes, f.restype = argtypes, None
        return f

    def address(self, symbol: str) -> int:
        return ctypes.cast(self.function(symbol), ctypes.c_void_p).value or 0


def _load(image: bytes | memoryview) -> ctypes.CDLL:
    """dlopen bytes: through an anonymous file where the kernel has them and allows it, else a temporary one."""
    with contextlib.suppress(OSError, AttributeError):
        # Never closed: the loader knows libraries by path, and under a reused number it would hand out the old one.
        # The library itself stays for the life of the process too.
        fd = os.memfd_create("airrun-kernels")
        _write_all(fd, image)
        return ctypes.CDLL(f"/proc/self/fd/{fd}")
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".so") as f:
        _write_all(f.fileno(), image)
        return ctypes.CDLL(f.name)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Team:
    """Worker threads of one engine. The calling thread is worker 0; the others live in native code.

    Attributes
    ----------
    n_workers
        Threads, the calling one included.
    library
        The native code they run.

    `panel_nbytes` is the room of each worker for a panel of streamed rows.
    """

    def __init__(self, library: Library, n_workers: int, panel_nbytes: int = 0) -> None:
        self.n_workers = n_workers
        self.library = library
        self._state = Region(_TEAM_NBYTES)
        _WORD.pack_into(self._state.memory, _N_WORKERS_AT, n_workers)
        self._panels = Region(panel_nbytes * n_workers)
        _LONGS.pack_into(self._state.memory, _PANELS_AT, self._panels.address, panel_nbytes)
        self._lock = threading.Lock()
        self._background: tuple[CallArray, int] | None = None
        self._closed = False
        threads = [
            threading.Thread(target=library.worker, args=(self._state.address, i), name=f"airrun-{i}", daemon=True)
            for i in range(1, n_workers)
        ]
        # Workers know their state and their calls by address only: neither must be freed, nor its address used
        # again, before they have ended, also where an engine is dropped without being closed.
        self._calls: list[object] = []
        self._finalizer = weakref.finalize(self, _end, library, self._state, threads, (self._calls, self._panels))
        for thread in threads:
            thread.start()

    def adopt(self, calls: object) -> None:
        """Keep an array of calls, or what owns it, as long as the workers: one that lost its core may look late."""
        self._calls.append(calls)

    def run(self, calls_address: int, n_calls: int) -> None:
        """Run `n_calls` entries of an adopted array of `CALL` to the end."""
        with self._lock:
            if self._closed:
                raise PlanError("the engine is closed")
            self.library.run(self._state.address, calls_address, n_calls)

    def use_stream(self, address: int, pass_number: int) -> None:
        """Take streamed rows from a stream's pass from now on; not while anything runs."""
        _WORDS.pack_into(self._state.memory, _STREAM_AT, address, pass_number)
        _WORD.pack_into(self._state.memory, _CANCELLED_AT, 0)

    def skip_tail(self) -> None:
        """End the stream's pass without its tail."""
        with self._lock:
            self.library.stream_skip_tail(self._state.address)

    def start(self, calls: Sequence[Call], done: Callable[[], None]) -> None:
        """Run calls on the team and a further thread, then call `done`; `run` and `wait` wait for the end of it."""
        self._lock.acquire()
        self._background = pack_calls(calls), len(calls)
        self.adopt(self._background[0])
        # The thread must not outlive its last use of the team as its owner, or a dropped engine would linger.
        threading.Thread(target=_run_and_release, args=([self], done), name="airrun_load", daemon=True).start()

    def wait(self) -> None:
        """Return when what `start` began is done."""
        with self._lock:
            pass

    def close(self) -> None:
        """End the workers, and what they do in the background at its next call; idempotent."""
        if self._background is not None:
            _WORD.pack_into(self._state.memory, _CANCELLED_AT, 1)
        with self._lock:
            self._closed = True
            self._finalizer()


def _run_and_release(owner: list[Team], done: Callable[[], None]) -> None:
    team = owner.pop()
    lock = team._lock
    assert team._background is not None
    calls, n_calls = team._background
    team.library.run(team._state.address, calls.address, n_calls)
    team._background = None
    done()
    del team
    lock.release()


def _end(library: Library, state: Region, threads: list[threading.Thread], _keep: object) -> None:
    library.stop(state.address)
    for thread in threads:
        thread.join()
