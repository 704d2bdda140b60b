"""The little that is read of a shared object before it is loaded."""

from __future__ import annotations

import struct

from airrun.errors import PlanError

_MAGIC = b"\x7fELF\x02\x01"  # of 64 bits, little endian
_HEADER = struct.Struct("<32xQ14x2H")
"""Offset of the program headers, their size and number; ELF specification, figure 1-3 of the 64-bit format."""
_SEGMENT = struct.Struct("<I44xQ")
"""Type and alignment of a segment."""
_LOAD = 1


def largest_page(image: bytes | memoryview) -> int:
    """Largest page size on which a shared object can be loaded: the least alignment of its loaded segments.

    Raises
    ------
    PlanError
        No shared object of 64 bits, or one that ends within its headers.
    """
    if len(image) < _HEADER.size or bytes(image[: len(_MAGIC)]) != _MAGIC:
        raise PlanError("native code is not a 64-bit ELF file")
    at, nbytes, n = _HEADER.unpack_from(image)
    if nbytes != 56 or at + n * nbytes > len(image):
        raise PlanError("native code ends within its headers")
    segments = (_SEGMENT.unpack_from(image, at + i * nbytes) for i in range(n))
    alignments = [alignment for kind, alignment in segments if kind == _LOAD]
    if not alignments:
        raise PlanError("native code has nothing to load")
    return int(min(alignments))
