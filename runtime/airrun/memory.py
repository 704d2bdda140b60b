"""Memory by the page: what the kernels write to, and the weight files they read from."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airrun.errors import PlanError

Bytes = npt.NDArray[np.uint8]

_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
_HUGE = 2 << 20


class Region:
    """Zeroed, page-aligned, private memory; pages are taken when they are first touched."""

    def __init__(self, nbytes: int, *, huge: bool = False) -> None:
        self.nbytes = max(nbytes, 1)
        self._map = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge and _MADV_HUGEPAGE is not None and nbytes >= _HUGE:
            self._map.madvise(_MADV_HUGEPAGE)
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)
        self.address: int = self.bytes.ctypes.data

    def array(self, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0) -> npt.NDArray[Any]:
        """A view of part of the region."""
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)


class MappedFile:
    """A weight file mapped read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as f:
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise PlanError(f"{path}: cannot map: {e}") from e
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)
        self.address: int = self.bytes.ctypes.data

    def release(self, offset: int, nbytes: int) -> None:
        """Let go of the pages wholly inside a range; they come back from the file when touched again."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def resident_nbytes() -> int:
    """Bytes of this process that are in RAM now; its highest so far where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
