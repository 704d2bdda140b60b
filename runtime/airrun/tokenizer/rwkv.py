"""RWKV's tokenizer: the longest token that the text goes on with, over bytes."""

from __future__ import annotations

import re
from functools import cached_property

from airrun.errors import ModelFileError
from airrun.tokenizer.spec import TokenizerSpec

_HEX = re.compile(rb"[0-9A-Fa-f]{2}")
_ESCAPES = {ord("t"): b"\t", ord("n"): b"\n", ord("r"): b"\r"}


def unescape(text: bytes) -> bytes:
    r"""Bytes that a token is written for: `\t`, `\n`, `\r`, `\xNN`, and `\` before any other character for itself.

    Raises
    ------
    ModelFileError
        `\x` without two hexadecimal digits.
    """
    first, *rest = text.split(b"\\")
    out = [first]
    parts = iter(rest)
    for part in parts:
        if not part:  # two backslashes: the next part is literal
            out += [b"\\", next(parts, b"")]
        elif part[0] == ord("x"):
            if not _HEX.fullmatch(part[1:3]):
                raise ModelFileError(f"token {text!r} of the vocabulary has a broken escape")
            out += [bytes([int(part[1:3], 16)]), part[3:]]
        else:
            out += [_ESCAPES.get(part[0], part[:1]), part[1:]]
    return b"".join(out)


class RwkvModel:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec

    @cached_property
    def _index(self) -> dict[bytes, int]:
        tokens = self._spec.tokens
        return {unescape(tokens.raw(i)): i for i in range(len(tokens))}

    @cached_property
    def _lengths(self) -> dict[bytes, list[int]]:
        """Lengths of the tokens that start with the same two bytes, longest first."""
        lengths: dict[bytes, set[int]] = {}
        for data in self._index:
            lengths.setdefault(data[:2], set()).add(len(data))
        return {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally.

        Raises
        ------
        ModelFileError
            The vocabulary lacks a byte that the text needs.
        """
        data = text.encode("utf-8")
        index, lengths = self._index, self._lengths
        out: list[int] = []
        at = 0
        while at < len(data):
            for length in lengths.get(data[at : at + 2], ()):
                token = index.get(data[at : at + length])
                if token is not None and at + length <= len(data):
                    break
            else:
                length, token = 1, index.get(data[at : at + 1])
                if token is None:
                    raise ModelFileError(f"the vocabulary has no token for byte 0x{data[at]:02X}")
            out.append(token)
            at += length
        return out

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        return unescape(self._spec.tokens.raw(token))
