"""Calls of the Linux kernel that native code makes: whether this kernel takes them, found by making each harmlessly.

A version number would not tell: kernels are configured without some calls, and sandboxes refuse others.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from typing import NamedTuple

from airrun.machine import isa

_FUTEX_WAKE_PRIVATE = 129
_CLOCK_MONOTONIC = 1
_NO_FILE = -1
_REFUSED = (errno.ENOSYS, errno.EPERM)


class KernelCall(NamedTuple):
    """A call: its number on each architecture, and arguments with which it does nothing.

    An argument of `None` is the address of 16 bytes of zeros.
    """

    numbers: dict[str, int]
    arguments: tuple[int | None, ...]


KERNEL_CALLS = {
    "clock_gettime": KernelCall({"x86_64": 228, "aarch64": 113}, (_CLOCK_MONOTONIC, None)),
    "futex": KernelCall({"x86_64": 202, "aarch64": 98}, (None, _FUTEX_WAKE_PRIVATE, 1, 0)),
    "pread64": KernelCall({"x86_64": 17, "aarch64": 67}, (_NO_FILE, 0, 0, 0)),
}
"""Calls that plans may need, by their names in the kernel's tables (``arch/*/tables/syscall*.tbl``)."""


def missing_calls(names: Sequence[str]) -> list[str]:
    """Those of the calls that this kernel does not take, or that this version does not know."""
    return [name for name in names if name not in KERNEL_CALLS or not _takes(KERNEL_CALLS[name])]


def _takes(call: KernelCall) -> bool:
    number = call.numbers.get(isa.machine())
    if number is None:
        return False
    zeros = ctypes.create_string_buffer(16)
    arguments = [ctypes.addressof(zeros) if each is None else each for each in call.arguments]
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return result != -1 or ctypes.get_errno() not in _REFUSED
