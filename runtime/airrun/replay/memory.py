"""Memory by the page: what the kernels write to, and the weight files they read from.

Addresses come from ctypes, and numpy is imported where an array is asked for: weights are loaded before it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airrun.errors import PlanError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

_HUGE = 2 << 20


class Region:
    """Zeroed, page-aligned, private memory; pages are taken when they are first touched.

    Attributes
    ----------
    memory
        The memory as a buffer, for `struct` and slices.
    """

    def __init__(self, nbytes: int, *, huge: bool = False) -> None:
        self.nbytes = max(nbytes, 1)
        huge = huge and nbytes >= _HUGE
        # The kernel aligns whole numbers of huge pages to them; of any other length, both ends would be small pages.
        length = -(-nbytes // _HUGE) * _HUGE if huge else self.nbytes
        self.memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            # kernels are built without huge pages, or without advice
            with contextlib.suppress(OSError):
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    @cached_property
    def bytes(self) -> Bytes:
        """All of the region."""
        array: Bytes = self.array("u1", (self.nbytes,))
        return array

    def array(self, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0) -> npt.NDArray[Any]:
        """A view of part of the region."""
        import numpy as np

        return np.frombuffer(self.memory, dtype, math.prod(shape), offset).reshape(shape)


class MappedFile:
    """A weight file mapped read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as f:
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise PlanError(f"{path}: cannot map: {e}") from e
        self.address = _address_of(self._map)


def inner_pages(address: int, nbytes: int) -> tuple[int, int]:
    """Address and bytes of the pages that lie wholly inside a range of memory; no bytes where there is none."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return first, max(last - first, 0)


class _Buffer(ctypes.Structure):
    """`Py_buffer` of the C API."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("pointers", ctypes.c_void_p * 4),
    )


def _address_of(mapping: mmap.mmap) -> int:
    """Where a mapping starts; `from_buffer` refuses one that is read-only."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), ctypes.byref(buffer), 0)
    address: int | None = buffer.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    assert address is not None
    return address


def peak_resident_nbytes() -> int:
    """Most bytes of this process that were in RAM at one time, mapped file pages included."""
    try:
        status = Path("/proc/self/status").read_text()
        # not getrusage: what that reports begins with the peak of the process this one was forked from
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_nbytes() -> int:
    """Bytes of this process that are in RAM now; its highest so far where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
