"""What the kernel tells every process of an ARM processor, in ``/proc/self/auxv``.

``/proc/cpuinfo`` has the same names, but is that of the host where a process is emulated.
"""

from __future__ import annotations

import struct

_AT_HWCAP, _AT_HWCAP2 = 16, 26
# name -> type of the entry and bit in it (arch/arm64/include/uapi/asm/hwcap.h)
_HWCAPS = {"fp": (_AT_HWCAP, 0), "asimd": (_AT_HWCAP, 1), "asimddp": (_AT_HWCAP, 20), "i8mm": (_AT_HWCAP2, 13)}


def parse_auxiliary_vector(raw: bytes) -> frozenset[str]:
    """The features that kernels ask for, of pairs of 64-bit numbers, a type and a value."""
    values = dict(struct.iter_unpack("<QQ", raw[: len(raw) // 16 * 16]))
    return frozenset(name for name, (kind, bit) in _HWCAPS.items() if values.get(kind, 0) >> bit & 1)
