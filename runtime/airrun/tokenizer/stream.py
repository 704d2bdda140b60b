"""Token by token decoding that never shows half a character."""

from __future__ import annotations

import codecs
from typing import Protocol


class _Source(Protocol):
    def shown_bytes(self, token: int, skip_special: bool) -> bytes: ...


class StreamDecoder:
    """Turns tokens into text as they come; made by `Tokenizer.stream`.

    Bytes of an unfinished UTF-8 character are held back until it is complete or `flush` is called.
    """

    def __init__(self, source: _Source, skip_special: bool, strip_space: bool) -> None:
        self._source = source
        self._skip_special = skip_special
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._unfinished = False

    def push(self, token: int) -> str:
        """Add a token; return the text that is now complete, possibly none.

        Raises
        ------
        UsageError
            The id is outside the vocabulary.
        """
        data = self._source.shown_bytes(token, self._skip_special)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        if not self._unfinished and data.isascii():
            return data.decode("ascii")
        text = self._utf8.decode(data)
        self._unfinished = bool(self._utf8.getstate()[0])
        return text

    def flush(self) -> str:
        """End the text: return U+FFFD for a character that was left unfinished, else nothing."""
        self._unfinished = False
        return self._utf8.decode(b"", final=True)
