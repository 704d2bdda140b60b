"""SentencePiece's compiled normalization rules (`precompiled_charsmap`): the longest matching rule rewrites a text.

The blob is the length of a trie in bytes (uint32), the trie, and the replacements, each ended by a zero byte. The
trie is a double array as Darts-clone writes it: a node is 32 bits wide, bits 0-7 the byte that leads to it, bit 8 says
that a rule ends here, bits 10-30 (shifted by 8 if bit 9 is set) the base of its children, which are found at
`position ^ base ^ byte`; the node of a rule has bit 31 set and holds the offset of its replacement.
"""

from __future__ import annotations

import struct
import sys
from array import array

from airrun.errors import ModelFileError
from airrun.tokenizer.memo import Memo

_BYTE_AND_RULE_BIT = 1 << 31 | 0xFF
_HAS_RULE = 1 << 8


def _base(node: int) -> int:
    return (node >> 10 & 0x1FFFFF) << (8 if node & 1 << 9 else 0)


def _damaged(reason: str) -> ModelFileError:
    return ModelFileError(f"the character map of the tokenizer is damaged: {reason}")


class Charsmap:
    """Rules that rewrite bytes of a text.

    Parameters
    ----------
    data : bytes
        The blob; empty for no rules.

    Raises
    ------
    ModelFileError
        The trie does not fit into the blob.
    """

    def __init__(self, data: bytes) -> None:
        self._nodes = array("I")
        self._replacements = b""
        if not data:
            return
        size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else len(data)
        if size % 4 or 4 + size >= len(data) or not size:
            raise _damaged(f"a trie of {size} bytes in {len(data)}")
        self._nodes.frombytes(data[4 : 4 + size])
        if sys.byteorder == "big":
            self._nodes.byteswap()
        self._replacements = data[4 + size :]
        self._goes_on = Memo(self._is_touched)

    def __bool__(self) -> bool:
        """Whether there are rules."""
        return bool(self._nodes)

    def _node(self, position: int) -> int:
        if position >= len(self._nodes):
            raise _damaged("a child is outside of the trie")
        return self._nodes[position]

    def match(self, text: bytes, start: int) -> tuple[int, bytes] | None:
        """Length and replacement of the longest rule for `text` from `start` on, or None.

        Raises
        ------
        ModelFileError
            The trie or a replacement is damaged.
        """
        found = None
        position = _base(self._node(0))
        for at in range(start, len(text)):
            byte = text[at]
            position ^= byte
            node = self._node(position)
            if node & _BYTE_AND_RULE_BIT != byte or not byte:
                break
            position ^= _base(node)
            if node & _HAS_RULE:
                found = at + 1 - start, self._node(position) & ~(1 << 31)
        if found is None:
            return None
        length, offset = found
        end = self._replacements.find(b"\0", offset)
        if end < 0:
            raise _damaged("a replacement has no end")
        return length, self._replacements[offset:end]

    def touches(self, two: bytes) -> bool:
        """Whether any rule could apply where a text goes on with these two bytes."""
        return self._goes_on[two]

    def _is_touched(self, two: bytes) -> bool:
        position = _base(self._node(0))
        for byte in two:
            position ^= byte
            node = self._node(position)
            if node & _BYTE_AND_RULE_BIT != byte:
                return False
            if node & _HAS_RULE:
                return True
            position ^= _base(node)
        return True
