"""Bounded reading of GGUF values: the part of the reader that touches bytes.

The header is read by ``read`` calls into a growing buffer; a map would deliver SIGBUS instead of an error if the file
were truncated meanwhile. Every count and length is checked against a cap and the file size first.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import NoReturn

import numpy as np

from airrun.errors import ModelFileError

# Caps. Each is far above what real files hold and low enough that a hostile header costs little time and memory.
MAX_HEADER_BYTES = 256 << 20  # the largest vocabularies in use (262,144 tokens with merges and scores) need 16 MB
MAX_STRING_BYTES = 64 << 20  # chat templates and licences are the longest, under 1 MB
MAX_STRINGS = 1 << 22  # strings of one array; vocabularies have up to 262,144, their merges twice that
MAX_NESTING = 4  # arrays within arrays: allowed by the specification, used by nobody
MAX_NESTED_ITEMS = 1 << 16  # inner arrays of one value: each costs ten times its bytes in Python objects

_FIRST_READ = 1 << 16
_BOOL, _STRING, _ARRAY = 7, 8, 9
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in _CODES.items()}
_DTYPES = {kind: np.dtype("<" + code) for kind, code in _CODES.items()}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


class Cursor:
    """A position in the header of one file; every read is checked against the file size and the header cap."""

    def __init__(self, stream: io.FileIO, path: Path, size: int) -> None:
        self.stream = stream
        self.path = path
        self.size = size
        self.buffer = b""
        self.pos = 0
        self.nested = 0

    def fail(self, reason: str, at: int | None = None) -> NoReturn:
        raise ModelFileError(f"{self.path}: at offset {self.pos if at is None else at}: {reason}")

    def need(self, nbytes: int, what: str) -> None:
        """Make sure that the next `nbytes` are in the buffer."""
        end = self.pos + nbytes
        if end <= len(self.buffer):
            return
        if end > self.size:
            self.fail(f"{what} needs {nbytes} bytes, the file has {self.size - self.pos} left (truncated?)")
        if end > MAX_HEADER_BYTES:
            self.fail(f"{what} would end {end} bytes into the file, past the limit of {MAX_HEADER_BYTES} for a header")
        # growing by a factor keeps the copies linear; what is read too much is at most three headers
        goal = min(self.size, MAX_HEADER_BYTES, max(end, 4 * len(self.buffer), _FIRST_READ))
        while len(self.buffer) < goal:
            chunk = self.stream.read(goal - len(self.buffer))
            if not chunk:
                self.fail(f"the file ended while it was being read ({self.size} bytes expected)", len(self.buffer))
            self.buffer += chunk

    def number(self, layout: struct.Struct, what: str) -> int | float:
        self.need(layout.size, what)
        value: int | float = layout.unpack_from(self.buffer, self.pos)[0]
        self.pos += layout.size
        return value

    def u32(self, what: str) -> int:
        return int(self.number(_U32, what))

    def u64(self, what: str) -> int:
        return int(self.number(_U64, what))

    def raw(self, limit: int, what: str) -> bytes:
        """A length-prefixed byte string of at most `limit` bytes."""
        at = self.pos
        length = self.u64(f"the length of {what}")
        if length > limit:
            self.fail(f"{what} has {length} bytes, more than {limit}", at)
        self.need(length, what)
        value = self.buffer[self.pos : self.pos + length]
        self.pos += length
        return value

    def name(self, limit: int, what: str) -> str:
        """A non-empty UTF-8 string."""
        at = self.pos
        value = self.raw(limit, what)
        if not value:
            self.fail(f"{what} is empty", at)
        try:
            return value.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8: {value[:40]!r}", at)

    def strings(self, count: int, what: str) -> list[str | bytes]:
        """The strings of an array. The loop is inlined: vocabularies have 10^5 entries and every start waits for it."""
        pieces: list[bytes] = []
        append, unpack = pieces.append, _U64.unpack_from
        buffer, pos = self.buffer, self.pos
        while len(pieces) < count:
            try:
                for _ in range(count - len(pieces)):
                    start = pos + 8
                    end = start + unpack(buffer, pos)[0]
                    if end > len(buffer):
                        break
                    append(buffer[start:end])
                    pos = end
                else:
                    break
            except struct.error:
                pass  # not even the length is in the buffer: the slow path below reads on, or says what is wrong
            self.pos = pos
            append(self.raw(MAX_STRING_BYTES, f"{what}[{len(pieces)}]"))
            buffer, pos = self.buffer, self.pos
        self.pos = pos
        return [_text(piece) for piece in pieces]

    def value(self, kind: int, what: str, depth: int = 0) -> object:
        """A metadata value of GGUF type `kind`."""
        at = self.pos
        if kind == _STRING:
            return _text(self.raw(MAX_STRING_BYTES, what))
        if kind == _ARRAY:
            return self.array(what, depth)
        layout = _SCALARS.get(kind)
        if layout is None:
            self.fail(f"{what} has unknown type {kind}", at)
        value = self.number(layout, what)
        if kind != _BOOL:
            return value
        if value not in (0, 1):
            self.fail(f"{what} is a bool of value {value}", at)
        return value == 1

    def array(self, what: str, depth: int) -> object:
        at = self.pos
        kind = self.u32(f"the type of {what}")
        count = self.u64(f"the length of {what}")
        if kind == _STRING:
            # eight bytes of length each is the least they can take
            self.check_count(count, MAX_STRINGS, 8, what, at)
            return self.strings(count, what)
        if kind == _ARRAY:
            if depth + 1 >= MAX_NESTING:
                self.fail(f"{what} has arrays nested deeper than {MAX_NESTING}", at)
            self.nested += count
            self.check_count(self.nested, MAX_NESTED_ITEMS, 0, f"{what} (with all nested arrays)", at)
            self.check_count(count, MAX_NESTED_ITEMS, 12, what, at)
            return [self.array(f"{what}[{i}]", depth + 1) for i in range(count)]
        dtype = _DTYPES.get(kind)
        if dtype is None:
            self.fail(f"{what} has elements of unknown type {kind}", at)
        self.check_count(count, MAX_HEADER_BYTES, dtype.itemsize, what, at)
        nbytes = count * dtype.itemsize
        self.need(nbytes, what)
        # a copy, so that a small array does not keep the whole header alive
        numbers = np.frombuffer(self.buffer, dtype, count, self.pos).copy()
        if kind == _BOOL:
            if count and int(numbers.max()) > 1:
                self.fail(f"{what} holds a bool of value {int(numbers.max())}", self.pos)
            numbers = numbers.view(np.bool_)
        self.pos += nbytes
        return numbers

    def check_count(self, count: int, limit: int, least_bytes: int, what: str, at: int) -> None:
        """Refuse a count before anything is allocated for it: above its cap, or more than the file can hold."""
        if count > limit:
            self.fail(f"{what} has {count} entries, more than {limit}", at)
        if count * least_bytes > self.size - self.pos:
            self.fail(
                f"{what} has {count} entries, more than fit in the {self.size - self.pos} bytes left (truncated?)", at
            )


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
