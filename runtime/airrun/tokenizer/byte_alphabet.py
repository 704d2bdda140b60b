"""GPT-2's printable alphabet for bytes, in which the tokens of byte-level BPE are written."""

from __future__ import annotations

from typing import Final

_PRINTABLE: Final = frozenset([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
_REST: Final = [b for b in range(256) if b not in _PRINTABLE]

# Bytes that print are themselves; the others take the code points from U+0100 on, in order.
CHAR_OF_BYTE: Final = "".join(chr(b) if b in _PRINTABLE else chr(0x100 + _REST.index(b)) for b in range(256))
_BYTE_OF_CHAR: Final = {char: byte for byte, char in enumerate(CHAR_OF_BYTE)}


def spell(data: bytes) -> str:
    """`data` in the printable alphabet, one character per byte."""
    return "".join([CHAR_OF_BYTE[b] for b in data])


def unspell(text: str) -> bytes:
    """Inverse of `spell`; a character outside the alphabet stands for its own UTF-8."""
    try:
        return bytes([_BYTE_OF_CHAR[c] for c in text])
    except KeyError:
        parts = [
            bytes([_BYTE_OF_CHAR[c]]) if c in _BYTE_OF_CHAR else c.encode("utf-8", "surrogateescape") for c in text
        ]
        return b"".join(parts)
