"""Where this product keeps files of its own, and where it last saw a weight file."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from airrun.errors import UsageError

_INDEX = "weights.json"
_MAX_ENTRIES = 1000  # the oldest are forgotten first; an index of this size is read in 1 ms


def cache_dir() -> Path:
    """``$AIRCOMPILE_HOME``, else ``$XDG_CACHE_HOME/aircompile``, else ``~/.cache/aircompile``; may not exist yet."""
    if home := os.environ.get("AIRCOMPILE_HOME"):
        return Path(home).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification says that relative paths are to be ignored
    base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    return base / "aircompile"


def host_profile_path() -> Path:
    """Where `probe` leaves the profile of this machine unless told otherwise."""
    return cache_dir() / "host.toml"


def ensure_dir(folder: Path) -> Path:
    """Create a folder and its parents; UsageError naming it where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot create this folder: {error.strerror or error}") from error
    return folder


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing between.

    Raises
    ------
    UsageError
        The folder cannot be written to, or the disk is full; the old content is still there.
    """
    with replacing(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """`write_atomic` piece by piece: what is written takes the place of the file when the block ends without an error.

    Raises
    ------
    UsageError
        The folder cannot be written to, or the disk is full; the old content is still there.
    """
    ensure_dir(path.parent)
    # not tempfile: its files are for their owner only, and a profile is for whoever may read the folder
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        # Ctrl-C too leaves nothing behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise UsageError(f"{path}: cannot write this file: {error.strerror or error}") from error
        raise


def remember_weights(fingerprint: str, path: str | Path) -> None:
    """Note that the weight file with `fingerprint` is at `path`, for plans that are run elsewhere."""
    index = cache_dir() / _INDEX
    ensure_dir(index.parent)
    with _locked(index):
        entries = _read_index(index)
        entries.pop(fingerprint, None)
        entries[fingerprint] = str(Path(path).absolute())
        recent = dict(list(entries.items())[-_MAX_ENTRIES:])
        write_atomic(index, json.dumps(recent, indent=1).encode())


def find_weights(fingerprint: str) -> Path | None:
    """Where the weight file with `fingerprint` was last seen, if a file is still there; its content is not checked."""
    known = _read_index(cache_dir() / _INDEX).get(fingerprint)
    if known is None:
        return None
    path = Path(known)
    return path if path.is_file() else None


def _read_index(index: Path) -> dict[str, str]:
    """The entries; a damaged index counts as empty, since the next write rebuilds it and nothing else is lost."""
    try:
        entries = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {key: value for key, value in entries.items() if isinstance(value, str)}


@contextlib.contextmanager
def _locked(index: Path) -> Iterator[None]:
    """Keep two processes from losing each other's entry; where locks do not exist, the last one wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = index.with_suffix(".lock")
    try:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
