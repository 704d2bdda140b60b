"""Which plans were built on this machine: a plan is a program, and one from elsewhere is announced as such."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from airrun.errors import UsageError
from airrun.paths import cache_dir, ensure_dir, write_atomic

_REGISTRY = "plans.txt"
_MAX_NBYTES = 1 << 18  # four thousand plans; then the older half is forgotten
_HEADER_NBYTES_AT = 12
_DIGEST_NBYTES = 32


def remember_plan(digest: str) -> None:
    """Note that the plan with this digest (hex) was built here.

    Raises
    ------
    UsageError
        The cache folder cannot be written to.
    """
    path = ensure_dir(cache_dir()) / _REGISTRY
    try:
        # one short append is whole even when two builds end together
        with open(path, "ab") as stream:
            stream.write(digest.encode() + b"\n")
            nbytes = stream.tell()
    except OSError as error:
        raise UsageError(f"{path}: cannot write this file: {error.strerror or error}") from error
    if nbytes > _MAX_NBYTES:
        lines = path.read_bytes().splitlines(keepends=True)
        write_atomic(path, b"".join(lines[len(lines) // 2 :]))


def was_built_here(digest: str) -> bool:
    """Whether `remember_plan` was called with this digest."""
    try:
        return digest.encode() in (cache_dir() / _REGISTRY).read_bytes().splitlines()
    except OSError:
        return False


def claimed_digest(path: str | os.PathLike[str]) -> str | None:
    """The digest in a plan's header, unchecked; None for anything that is too short to have one."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(256)
    except OSError:
        return None
    if len(head) < _HEADER_NBYTES_AT + 4:
        return None
    # the digest ends the header, see `airrun.plan.container`
    (end,) = struct.unpack_from("<I", head, _HEADER_NBYTES_AT)
    return head[end - _DIGEST_NBYTES : end].hex() if 16 + _DIGEST_NBYTES <= end <= len(head) else None
