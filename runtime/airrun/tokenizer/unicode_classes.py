"""Unicode classes as one-byte stand-ins, so that Python's `re` can match `\\p{L}` and friends.

llama.cpp replaces every character above U+007F by a stand-in for its general category before it matches a
pre-tokenizer's expression. Doing the same keeps token boundaries equal to its, and the text becomes a
one-byte-per-character string that `re` scans fast.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from typing import Final

from airrun.tokenizer.memo import Memo

# Stand-ins. White space becomes a vertical tab, which `\s` matches with re.ASCII.
_SPACE: Final = "\x0b"
_OTHER: Final = "\xd0"
_HAN_LETTER: Final = "\xd6"
_HAN_OTHER: Final = "\xd7"
_BY_CATEGORY: Final = {"N": "\xd1", "L": "\xd2", "P": "\xd3", "M": "\xd4", "S": "\xd5"}

# What `\p{..}` inside a bracket of a pattern stands for: its ASCII members and its stand-ins.
CLASS_MEMBERS: Final = {
    r"\p{N}": "0-9\xd1",
    r"\p{L}": "A-Za-z\xd2\xd6",
    r"\p{nonASCII L}": "\xd2\xd6",
    r"\p{L not Han}": "A-Za-z\xd2",
    r"\p{Han}": "\xd6\xd7",
    r"\p{P}": "!-#%-*,\\-./:;?@\\[\\\\\\]_{}\xd3",
    r"\p{M}": "\xd4",
    r"\p{S}": "$+<=>`|~\\^\xd5",
}

_WHITE_SPACE: Final = frozenset(
    [0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000],
)

_HAN_RANGES: Final = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2CEB0, 0x2EBEF),
    (0x2F800, 0x2FA1F),
)

# Characters of Unicode 15.0 and 15.1 that Python 3.11 (Unicode 14.0) does not know: first, last, category.
# With them a plan tokenizes the same under every supported Python.
_SINCE_UNICODE_14: Final = (
    (0x0CF3, 0x0CF3, "M"),
    (0x0ECE, 0x0ECE, "M"),
    (0x2FFC, 0x2FFF, "S"),
    (0x31EF, 0x31EF, "S"),
    (0x10EFD, 0x10EFF, "M"),
    (0x1123F, 0x11240, "L"),
    (0x11241, 0x11241, "M"),
    (0x11B00, 0x11B09, "P"),
    (0x11F00, 0x11F01, "M"),
    (0x11F02, 0x11F02, "L"),
    (0x11F03, 0x11F03, "M"),
    (0x11F04, 0x11F10, "L"),
    (0x11F12, 0x11F33, "L"),
    (0x11F34, 0x11F3A, "M"),
    (0x11F3E, 0x11F42, "M"),
    (0x11F43, 0x11F4F, "P"),
    (0x11F50, 0x11F59, "N"),
    (0x1342F, 0x1342F, "L"),
    (0x13440, 0x13440, "M"),
    (0x13441, 0x13446, "L"),
    (0x13447, 0x13455, "M"),
    (0x1B132, 0x1B132, "L"),
    (0x1B155, 0x1B155, "L"),
    (0x1D2C0, 0x1D2D3, "N"),
    (0x1DF25, 0x1DF2A, "L"),
    (0x1E030, 0x1E06D, "L"),
    (0x1E08F, 0x1E08F, "M"),
    (0x1E4D0, 0x1E4EB, "L"),
    (0x1E4EC, 0x1E4EF, "M"),
    (0x1E4F0, 0x1E4F9, "N"),
    (0x1F6DC, 0x1F6DC, "S"),
    (0x1F774, 0x1F776, "S"),
    (0x1F77B, 0x1F77F, "S"),
    (0x1F7D9, 0x1F7D9, "S"),
    (0x1FA75, 0x1FA77, "S"),
    (0x1FA87, 0x1FA88, "S"),
    (0x1FAAD, 0x1FAAF, "S"),
    (0x1FABB, 0x1FABD, "S"),
    (0x1FABF, 0x1FABF, "S"),
    (0x1FACE, 0x1FACF, "S"),
    (0x1FADA, 0x1FADB, "S"),
    (0x1FAE8, 0x1FAE8, "S"),
    (0x1FAF7, 0x1FAF8, "S"),
    (0x2B739, 0x2B739, "L"),
    (0x2EBF0, 0x2EE5D, "L"),
    (0x31350, 0x323AF, "L"),
)
_SINCE_STARTS: Final = [first for first, _, _ in _SINCE_UNICODE_14]


def category(code: int) -> str:
    """Major general category (Unicode 15.1) of a code point, one letter; none where it is not assigned."""
    at = bisect_right(_SINCE_STARTS, code) - 1
    if at >= 0:
        _, last, since = _SINCE_UNICODE_14[at]
        if code <= last:
            return since
    found = unicodedata.category(chr(code))
    return "" if found == "Cn" else found[0]


def is_white_space(code: int) -> bool:
    """Whether a code point is white space (Unicode property White_Space)."""
    return code in _WHITE_SPACE or code == 0x20 or 0x09 <= code <= 0x0D


def _stand_in(code: int) -> str:
    if code < 0x80:
        return chr(code)
    if code in _WHITE_SPACE:
        return _SPACE
    kind = category(code)
    if any(first <= code <= last for first, last in _HAN_RANGES):
        return _HAN_LETTER if kind == "L" else _HAN_OTHER
    return _BY_CATEGORY.get(kind, _OTHER)


_STAND_INS: Final = Memo(_stand_in)
_ASCII_SPACES: Final = dict.fromkeys(_WHITE_SPACE, _SPACE)


def to_classes(text: str) -> str:
    """`text` with every character above U+007F replaced by the stand-in of its class; same length."""
    return text if text.isascii() else text.translate(_STAND_INS)


def with_ascii_spaces(text: str) -> str:
    """`text` with every white space above U+007F replaced by a vertical tab; same length."""
    return text if text.isascii() else text.translate(_ASCII_SPACES)
