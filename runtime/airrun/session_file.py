"""The state of a conversation in a file: token ids, KV contents, and what the command line wants to remember.

Layout, little endian: magic (8 bytes), version u32, header length u32, payload offset u64, total length u64, SHA-256 of
all that follows (32 bytes); then the header as JSON, zeros up to the 64-byte aligned payload, and the KV contents.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airrun.errors import AirError, ModelFileError, UsageError

if TYPE_CHECKING:
    from airrun.session import Session

_MAGIC = b"AIRSESS\0"
_VERSION = 1
_FIXED = struct.Struct("<8sIIQQ32s")
_ALIGN = 64
_BLOCK = 1 << 24


def save_session(path: str | Path, session: Session, plan_digest: str, extra: dict[str, Any] | None = None) -> None:
    """Write a session to a file, replacing it in one step: a crash leaves the old file or the new one.

    Parameters
    ----------
    path : path
    session : Session
    plan_digest : str
        Identity of the plan; only the same plan can restore the file.
    extra : dict, optional
        JSON data handed back by `load_session`.

    Raises
    ------
    AirError
        If the file cannot be written.
    """
    state, buffers = session.save_state()
    payload = [memoryview(buffer).cast("B") for buffer in buffers]
    header = json.dumps(
        {"plan": plan_digest, "state": {**state, "ids": list(session.ids)}, "extra": extra or {}}, separators=(",", ":")
    ).encode()
    offset = _aligned(_FIXED.size + len(header))
    header_padded = header.ljust(offset - _FIXED.size, b"\0")
    total = offset + sum(len(part) for part in payload)
    fixed = _FIXED.pack(_MAGIC, _VERSION, len(header), offset, total, _digest([header_padded, *payload]))
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        try:
            with open(partial, "wb") as file:
                file.write(fixed + header_padded)
                file.writelines(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise AirError(f"{path}: the session cannot be saved: {error.strerror}") from None


def load_session(path: str | Path, session: Session, plan_digest: str) -> dict[str, Any]:
    """Restore a session from a file.

    Parameters
    ----------
    path : path
    session : Session
        Unchanged where the file is refused.
    plan_digest : str
        Identity of the plan that runs now.

    Returns
    -------
    dict
        The ``extra`` given to `save_session`.

    Raises
    ------
    ModelFileError
        If the file is not a session, is damaged, or belongs to another plan.
    UsageError
        If it holds more tokens than the context.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # how mmap refuses an empty file
        raise ModelFileError(f"{path}: not a session file: it is empty") from None
    except OSError as error:
        raise ModelFileError(f"{path}: the session cannot be read: {error.strerror}") from None
    view = memoryview(data)
    header, offset = _checked_header(path, view)
    if header["plan"] != plan_digest:
        raise ModelFileError(f"{path}: the session was saved by another plan or model")
    ids = header["state"]["ids"]
    if len(ids) > session.n_ctx:
        raise UsageError(
            f"{path}: the session holds {len(ids)} tokens, but the context {session.n_ctx}: raise --ctx-size"
        )
    session.reset()
    if ids:
        session.load_state(header["state"], view[offset:])
    extra: dict[str, Any] = header["extra"]
    return extra


def _checked_header(path: str | Path, view: memoryview) -> tuple[dict[str, Any], int]:
    if len(view) < _FIXED.size or bytes(view[:8]) != _MAGIC:
        raise ModelFileError(f"{path}: not a session file: it does not begin with {_MAGIC[:7].decode()}")
    _, version, header_length, offset, total, digest = _FIXED.unpack(view[: _FIXED.size])
    if version != _VERSION:
        raise ModelFileError(f"{path}: session format {version} is not supported, only {_VERSION}")
    if total != len(view) or offset != _aligned(_FIXED.size + header_length) or offset > total:
        raise ModelFileError(f"{path}: the session is truncated or damaged: {len(view)} bytes instead of {total}")
    if _digest([view[_FIXED.size :]]) != digest:
        raise ModelFileError(f"{path}: the session is damaged: its digest does not match")
    try:
        header = json.loads(bytes(view[_FIXED.size : _FIXED.size + header_length]))
        types = (("plan", str), ("state", dict), ("extra", dict))
        valid = all(isinstance(header[key], kind) for key, kind in types)
        valid = valid and all(type(i) is int for i in header["state"]["ids"])
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise ModelFileError(f"{path}: the session is damaged: its header is malformed")
    return header, offset


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


def _digest(parts: Iterable[bytes | memoryview]) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        for at in range(0, len(part), _BLOCK):
            hasher.update(part[at : at + _BLOCK])
    return hasher.digest()
