"""Streams: chunks of weight files read ahead of their use by native threads, pass after pass."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Sequence

from airrun.errors import WeightFileError
from airrun.plan.chunks import Chunk
from airrun.replay.memory import Region
from airrun.replay.native import Library
from airrun.weights.files import LoadMode, WeightFiles
from airrun.weights.residency import span_of

TIMEOUT_S = 60
"""Longest wait for a chunk: a disk that does not answer for so long is taken for broken."""

_CHUNK = struct.Struct("<q4i")
_SLOT = struct.Struct("<2i56x")
_TRUNCATED = 0x7FFFFFFF


class _State(ctypes.Structure):
    """`struct air_stream` of replay.h."""

    _fields_ = (
        ("chunks", ctypes.c_uint64),
        ("slots", ctypes.c_uint64),
        ("buffers", ctypes.c_uint64),
        ("maps", ctypes.c_uint64),
        ("read", ctypes.c_uint64),
        ("slot_nbytes", ctypes.c_int64),
        ("n_chunks", ctypes.c_int32),
        ("n_slots", ctypes.c_int32),
        ("tail", ctypes.c_int32),
        ("drop_cache", ctypes.c_int32),
        ("timeout_s", ctypes.c_int32),
        ("page_nbytes", ctypes.c_int32),
        ("short_passes", ctypes.c_uint64),
        ("reserved1", ctypes.c_int64 * 6),
        ("next", ctypes.c_uint64),
        ("failure", ctypes.c_uint64),
        ("stop", ctypes.c_int32),
        ("reserved2", ctypes.c_int32 * 11),
        ("nbytes_read", ctypes.c_uint64),
        ("n_reads", ctypes.c_uint64),
        ("stalled_ns", ctypes.c_uint64),
        ("reserved3", ctypes.c_int64 * 5),
    )


class Ring:
    """Buffers that chunks are read into, in turn: `n_slots` of `slot_nbytes` whole pages each."""

    def __init__(self, n_slots: int, slot_nbytes: int) -> None:
        self.n_slots, self.slot_nbytes = n_slots, slot_nbytes
        self.memory = Region(n_slots * slot_nbytes)


class Stream:
    """A cyclic sequence of chunks and the threads that read it, through a ring of buffers.

    Parameters
    ----------
    chunks
        What a pass reads, in order.
    ring
        Where they are read to; unused where files are mapped.
    mode
        How the files are read; not 'auto'.
    tail
        Chunks from this one on are not used by short passes.
    drop_cache
        Keep what is read out of the page cache.

    Attributes
    ----------
    address
        Of the native struct.
    pass_number
        The pass that is used next, or now.
    """

    def __init__(
        self,
        library: Library,
        files: WeightFiles,
        chunks: Sequence[Chunk],
        ring: Ring,
        *,
        mode: LoadMode,
        readers: int,
        tail: int | None = None,
        drop_cache: bool = True,
    ) -> None:
        self._library, self._files, self._chunks, self._readers = library, files, chunks, readers
        self._memory = Region(ctypes.sizeof(_State))
        self.address = self._memory.address
        self._state = _State.from_buffer(self._memory.memory)
        self._slots = Region(_SLOT.size * ring.n_slots)
        table = b"".join(_CHUNK.pack(offset, nbytes, needed, fd, f) for offset, nbytes, needed, fd, f in self._spans())
        self._table = Region(len(table))
        self._table.memory[: len(table)] = table
        addresses = files.maps() if mode == "mmap" else []
        self._maps = (ctypes.c_uint64 * len(addresses))(*addresses)
        state = self._state
        state.chunks, state.slots, state.buffers = self._table.address, self._slots.address, ring.memory.address
        state.maps = ctypes.addressof(self._maps) if addresses else 0
        state.read = read_function(library)
        state.slot_nbytes, state.n_slots = ring.slot_nbytes, ring.n_slots
        state.n_chunks, state.tail = len(chunks), len(chunks) if tail is None else tail
        state.drop_cache, state.timeout_s = drop_cache and mode != "direct", TIMEOUT_S
        state.page_nbytes = mmap.PAGESIZE
        self._threads: list[threading.Thread] = []
        self._broken = False
        self.pass_number = 0
        # readers know what they use by address only: it must stay until they have ended
        keep = (ring, self._memory, self._slots, self._table, self._maps, files)
        self._finalizer = weakref.finalize(self, _end, library, self.address, self._threads, keep)
        self._rewind()

    def start(self) -> None:
        """Begin to read."""
        self._threads[:] = [
            threading.Thread(target=self._library.reader, args=(self.address,), name=f"airrun_read-{i}", daemon=True)
            for i in range(self._readers)
        ]
        for thread in self._threads:
            thread.start()

    def begin_pass(self, *, short: bool) -> None:
        """Say what the pass that is used next does without; begins to read, the first time and after a failure."""
        if self._broken:
            self._library.stream_stop(self.address)
            for thread in self._threads:
                thread.join()
            self._threads.clear()
            self._rewind()
        if not self._threads:
            self.start()
        bit = 1 << (self.pass_number & 63)
        self._state.short_passes = self._state.short_passes | bit if short else self._state.short_passes & ~bit

    def end_pass(self) -> None:
        """The pass was used to its end."""
        self.pass_number += 1

    def abandon_pass(self) -> None:
        """The pass was not used to its end: the next one begins anew."""
        self._broken = True

    def check(self) -> None:
        """Raise what went wrong with reading.

        Raises
        ------
        WeightFileError
            With file, offset and reason.
        """
        failure = self._state.failure
        if failure:
            chunk = self._chunks[failure >> 32]
            raise describe_failure(failure, self._files.paths[chunk.file], chunk.offset)

    @property
    def counters(self) -> dict[str, float]:
        """Bytes and chunks read so far, and seconds that workers waited for them, added up over the workers."""
        state = self._state
        return {"nbytes": state.nbytes_read, "reads": state.n_reads, "stalled_seconds": state.stalled_ns / 1e9}

    def close(self) -> None:
        """End the readers; idempotent."""
        self._finalizer()

    def _rewind(self) -> None:
        state, n = self._state, self._state.n_slots
        self._slots.memory[: n * _SLOT.size] = b"".join(_SLOT.pack(i, 0) for i in range(n))
        state.next, state.failure, state.stop, state.short_passes = 0, 0, 0, 0
        self.pass_number, self._broken = 0, False

    def _spans(self) -> list[tuple[int, int, int, int, int]]:
        """Of each chunk: offset and bytes of its pages, bytes up to its end, descriptor, file."""
        found = []
        for chunk in self._chunks:
            offset, nbytes = span_of(chunk)
            fd = self._files.streams[chunk.file]
            found.append((offset, nbytes, chunk.offset + chunk.nbytes - offset, fd, chunk.file))
        return found


def read_function(library: Library) -> int:
    """Address of what reads files: pread without a C library."""
    return library.address("air_pread")


def describe_failure(failure: int, path: object, offset: int) -> WeightFileError:
    """The error of a failed read, from the word that native code left."""
    reason = failure & 0xFFFFFFFF
    if reason == _TRUNCATED:
        return WeightFileError(f"{path}: ends before its weights do: nothing to read at offset {offset}")
    if reason == errno.ETIMEDOUT:
        return WeightFileError(f"{path}: the disk did not answer within {TIMEOUT_S} s at offset {offset}")
    return WeightFileError(f"{path}: cannot be read at offset {offset}: {os.strerror(reason)}")


def _end(library: Library, address: int, threads: list[threading.Thread], _keep: object) -> None:
    library.stream_stop(address)
    for thread in threads:
        thread.join(TIMEOUT_S)
