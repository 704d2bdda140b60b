"""Many strings in one buffer: opening a vocabulary must not create one Python object per token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Offsets = NDArray[np.int64]

SPACE_MARK: Final = "\u2581"
"""What SentencePiece and its relatives write for a space inside tokens."""


def spaces_for_marks(data: bytes) -> bytes:
    """Bytes of a token text with U+2581 turned back into spaces."""
    return data.replace(b"\xe2\x96\x81", b" ")


def encode_text(text: str) -> bytes:
    """UTF-8 of `text`; bytes that were invalid UTF-8 in the file come back unchanged (surrogateescape)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that no escaped byte stands for
        return text.encode("utf-8", "surrogatepass")


def decode_text(data: bytes) -> str:
    """Inverse of `encode_text`; never fails."""
    return data.decode("utf-8", "surrogateescape")


def utf8_length(first: int) -> int:
    """Length in bytes of a character that starts with byte `first`; 1 for a byte that starts none."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


class PackedStrings(Sequence[str]):
    """Immutable list of strings kept as one UTF-8 buffer and the end offset of each.

    Parameters
    ----------
    data : bytes
        The concatenated UTF-8 of all strings.
    ends : int64 [n]
        End offset of each string in bytes; ascending, the last equals `len(data)`.
    """

    __slots__ = ("_data", "_ends")

    def __init__(self, data: bytes, ends: Offsets) -> None:
        self._data = data
        self._ends = ends

    @classmethod
    def pack(cls, strings: Iterable[bytes]) -> PackedStrings:
        """Pack byte strings."""
        parts = list(strings)
        return cls(b"".join(parts), np.cumsum([len(p) for p in parts], dtype=np.int64))

    @property
    def data(self) -> bytes:
        """The concatenated UTF-8."""
        return self._data

    @property
    def lengths(self) -> Offsets:
        """Length of each string in bytes, int64 [n]."""
        return np.diff(self._ends, prepend=np.int64(0))

    def raw(self, index: int) -> bytes:
        """Bytes of one string; `index` must not be negative."""
        start = int(self._ends[index - 1]) if index else 0
        return self._data[start : int(self._ends[index])]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [decode_text(self.raw(i)) for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return decode_text(self.raw(index))

    def __iter__(self) -> Iterator[str]:
        data, start = self._data, 0
        for end in self._ends.tolist():
            yield data[start:end].decode("utf-8", "surrogateescape")
            start = end
