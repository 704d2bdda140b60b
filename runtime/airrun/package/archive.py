"""The archive of a package: a tar file under zstandard, written the same way every time, read in bounded memory.

Of tar only what a package needs is read: plain files, and GNU's long names before them. Python's own reader would
follow every extension, and keep whatever they say in memory.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from airrun.errors import PackageError
from airrun.plan.checks import show

CHUNK = 1 << 20
"""Bytes that are held at a time."""

_BLOCK = tarfile.BLOCKSIZE
_MAX_LONG_NAME = 4096
_WINDOW_LOG = 23  # 8 MiB: what every decompressor must have, RFC 8878 section 3.1.1.1.2
_LEVEL = 1  # weights hardly compress: higher ones take twice the time for a thousandth
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


@dataclass(frozen=True)
class Member:
    """A file of an archive; `read` gives its content once, in chunks, before the next member is asked for."""

    name: str
    nbytes: int
    read: Callable[[], Iterator[bytes]]


def write_archive(stream: BinaryIO, files: Sequence[tuple[str, int, BinaryIO]]) -> None:
    """Write files (name, bytes, content) in their order.

    Nothing of the machine goes in: no times, owners or modes, and one setting of the compressor.
    """
    zstd = _zstd()
    options = {zstd.CompressionParameter.compression_level: _LEVEL, zstd.CompressionParameter.checksum_flag: 1}
    options[zstd.CompressionParameter.window_log] = _WINDOW_LOG
    with (
        zstd.ZstdFile(stream, "wb", options=options) as compressed,
        tarfile.TarFile(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT, copybufsize=CHUNK) as archive,
    ):
        for name, nbytes, content in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = nbytes, 0o644, 0
            archive.addfile(entry, content)


def read_archive(stream: BinaryIO) -> Iterator[Member]:
    """The members of an archive, in order.

    Raises
    ------
    PackageError
        Not an archive of plain files, cut off, or damaged.
    """
    source = _Inflated(stream)
    name = ""
    while (block := source.exactly(_BLOCK)) != bytes(_BLOCK):
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, ValueError):
            raise PackageError("is damaged: where a file should begin there is none") from None
        if header.type == tarfile.GNUTYPE_LONGNAME and not name:
            name = _long_name(source, header.size)
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise PackageError(f"holds {_KINDS.get(header.type, 'something unknown')}: {show(name or header.name)}")
        if header.size < 0:
            raise PackageError(f"is damaged: {show(name or header.name)} has {header.size} bytes")
        content = _Content(source, header.size)
        yield Member(name or header.name, header.size, content.chunks)
        content.finish()
        name = ""
    _end(source)


def _long_name(source: _Inflated, nbytes: int) -> str:
    if not 0 < nbytes <= _MAX_LONG_NAME:
        raise PackageError(f"has a name of {nbytes} bytes")
    try:
        return source.exactly(-(-nbytes // _BLOCK) * _BLOCK)[:nbytes].rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise PackageError("has a name that is not UTF-8") from None


def _end(source: _Inflated) -> None:
    """After the first block of zeros: zeros to the end of the writer's record."""
    left = tarfile.RECORDSIZE
    while rest := source.some(left):
        left -= len(rest)
        if any(rest) or left <= 0:
            raise PackageError("is damaged: something follows its last file")


class _Content:
    """The bytes of one member, and the padding after them."""

    def __init__(self, source: _Inflated, nbytes: int) -> None:
        self._source, self._left, self._padding = source, nbytes, -nbytes % _BLOCK

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            data = self._source.some(min(self._left, CHUNK))
            if not data:
                raise PackageError("is cut off")
            self._left -= len(data)
            yield data

    def finish(self) -> None:
        """Pass over what was not read, and the padding."""
        for _ in self.chunks():
            pass
        if self._padding and any(self._source.exactly(self._padding)):
            raise PackageError("is damaged: there is something between two files")


class _Inflated:
    """One zstandard frame, decompressed a little at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        zstd = _zstd()
        self._stream = stream
        self._error: type[Exception] = zstd.ZstdError
        self._decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})

    def some(self, most: int) -> bytes:
        """1 to `most` bytes; none at the end."""
        while not self._decompressor.eof:
            data = self._stream.read(CHUNK) if self._decompressor.needs_input else b""
            if self._decompressor.needs_input and not data:
                raise PackageError("is cut off")
            try:
                found: bytes = self._decompressor.decompress(data, most)
            except self._error:
                raise PackageError("is damaged, or no zstandard file") from None
            if found:
                return found
        if self._decompressor.unused_data or self._stream.read(1):
            raise PackageError("is followed by other data")
        return b""

    def exactly(self, nbytes: int) -> bytes:
        """The next `nbytes`, which are few."""
        found = bytearray()
        while len(found) < nbytes:
            data = self.some(nbytes - len(found))
            if not data:
                raise PackageError("is cut off")
            found += data
        return bytes(found)


def _zstd() -> ModuleType:
    """Python's own module, or what brings it to versions before 3.14."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise PackageError('needs zstandard, which is not installed: pip install "backports.zstd"') from None
    module: ModuleType = zstd
    return module


def is_archive(path: Path) -> bool:
    """Whether a file begins like one."""
    with path.open("rb") as file:
        return file.read(4) == b"\x28\xb5\x2f\xfd"
