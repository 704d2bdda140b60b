"""Open weight files: how they are read, and whether they are still what they were.

Whole chunks and single rows are read through different descriptors: chunks past the page cache where the file system
takes that, rows through it, because they are not aligned to anything.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from airrun.errors import UsageError, WeightFileError
from airrun.plan.schema import Plan
from airrun.replay.memory import MappedFile
from airrun.weights.residency import PAGE

LoadMode = Literal["auto", "direct", "buffered", "mmap"]


class WeightFiles:
    """The weight files of a plan, open.

    Attributes
    ----------
    paths
        Where they are.
    descriptors
        For single rows and small tensors.
    nbytes_read
        About how much was read on the way to a GPU: several threads count it.
    """

    def __init__(self, plan: Plan, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.descriptors: list[int] = []
        self.nbytes_read = 0
        self._streams: list[int] = []
        self._maps: list[MappedFile] = []
        for path in paths:
            self.descriptors.append(self._open(path, os.O_RDONLY))
            # a row is a few kilobytes, and its neighbours are not wanted; not every system takes advice
            with contextlib.suppress(OSError, AttributeError):
                os.posix_fadvise(self.descriptors[-1], 0, 0, os.POSIX_FADV_RANDOM)
        self._finalizer = weakref.finalize(self, _close, self.descriptors, self._streams)
        self._states = [self._state(fd) for fd in self.descriptors]
        for file, path, state in zip(plan.files, paths, self._states, strict=True):
            if state[0] != file.nbytes:
                raise WeightFileError(f"{path}: has {state[0]} bytes, the plan was built for {file.nbytes}")

    def open_streams(self, mode: LoadMode) -> LoadMode:
        """Open the files once more, for reading whole chunks; returns the mode that 'auto' became.

        Raises
        ------
        UsageError
            'direct' on a file system that does not have it.
        """
        if mode in ("auto", "direct"):
            try:
                self._streams += [self._open_direct(path) for path in self.paths]
                return "direct"
            except OSError as error:
                if mode == "direct":
                    raise UsageError(
                        f"{error.filename}: this file system has no direct reads: {error.strerror}"
                    ) from None
            mode = "buffered"
        self._streams += [self._open(path, os.O_RDONLY) for path in self.paths]
        return mode

    @property
    def streams(self) -> Sequence[int]:
        """Descriptors for whole chunks."""
        return self._streams

    def maps(self) -> list[int]:
        """Addresses of the files, which are mapped until `unmap`."""
        if not self._maps:
            self._maps = [MappedFile(path) for path in self.paths]
        return [each.address for each in self._maps]

    def unmap(self) -> None:
        """Forget the maps; nothing may be reading them."""
        self._maps = []

    def read(self, file: int, offset: int, nbytes: int) -> bytes:
        """Bytes of a file.

        Raises
        ------
        WeightFileError
            They cannot be read.
        """
        try:
            data = os.pread(self.descriptors[file], nbytes, offset)
        except OSError as error:
            raise WeightFileError(f"{self.paths[file]}: cannot be read at {offset}: {error.strerror}") from None
        if len(data) != nbytes:
            raise WeightFileError(f"{self.paths[file]}: ends at {offset + len(data)}, within its weights")
        return data

    def check(self) -> None:
        """Find out whether a file was changed since it was opened.

        One that was replaced by another of its name is still the old one here, and closed ones cannot be told.

        Raises
        ------
        WeightFileError
            It was written to or cut off.
        """
        if not self._finalizer.alive:
            return
        for path, fd, state in zip(self.paths, self.descriptors, self._states, strict=True):
            if self._state(fd) != state:
                raise WeightFileError(f"{path}: was changed while the model was running")

    def close(self) -> None:
        """Close the files, which nothing may read any more; idempotent."""
        self._finalizer()

    @staticmethod
    def _state(fd: int) -> tuple[int, int]:
        status = os.fstat(fd)
        return status.st_size, status.st_mtime_ns

    @staticmethod
    def _open(path: Path, flags: int) -> int:
        try:
            return os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise WeightFileError(f"{path}: cannot be opened: {error.strerror}") from None

    @staticmethod
    def _open_direct(path: Path) -> int:
        """Open past the page cache, and try it: some file systems take the flag and then refuse to read."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            with mmap.mmap(-1, PAGE) as page:
                os.preadv(fd, [page], 0)
        except OSError as error:
            os.close(fd)
            error.filename = str(path)
            raise
        return fd


def _close(*descriptors: list[int]) -> None:
    for fd in (fd for some in descriptors for fd in some):
        os.close(fd)
