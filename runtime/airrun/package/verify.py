"""Checks a package against its manifest: an archive while it streams by, or the folder that it was unpacked to.

What is held in memory is bounded whatever a package says: a chunk, the manifest and the plan. Nothing is written but
files that the manifest names, and each only once its digest was right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from airrun.errors import AirError, PackageError
from airrun.package.archive import CHUNK, Member, is_archive, read_archive
from airrun.package.manifest import MANIFEST, MAX_NBYTES, Manifest, PackedFile, PackedWeights, parse_manifest
from airrun.paths import ensure_dir, replacing, write_atomic
from airrun.plan.checks import show
from airrun.plan.container import LoadedPlan, decode_plan

Checked = Callable[[PackedFile], None]
"""Called with every file whose digest was right."""

Approve = Callable[[LoadedPlan], None]
"""Called with the plan; an `AirError` refuses the package."""

_MAX_PLAN_NBYTES = 256 << 20
_MAX_RATIO, _SLACK = 1000, 1 << 20
"""Weights hardly compress: an archive that says to hold a thousand times its bytes is made to fill a disk."""


def verify_package(
    path: Path,
    into: Path | None = None,
    checked: Checked = lambda _: None,
    approve: Approve = lambda _: None,
) -> Manifest:
    """Check every digest of a package, and that its plan is one, and for its weights.

    Parameters
    ----------
    path
        An archive, or a folder with its files.
    into
        Folder to unpack an archive to; its manifest is written last.
    checked
        Is told of every file.
    approve
        Is asked about the plan, before it is unpacked, and refuses it by an error.

    Raises
    ------
    PackageError
        Names the package, and what is wrong with it.
    """
    try:
        if path.is_dir():
            if into is not None:
                raise PackageError("is a folder, and so unpacked already")
            return _verify_folder(path, checked, approve)
        if not is_archive(path):
            raise PackageError("is no package: neither a folder nor a .tar.zst archive")
        return _verify_archive(path, into, checked, approve)
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from None
    except OSError as error:
        raise PackageError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None


def _verify_archive(path: Path, into: Path | None, checked: Checked, approve: Approve) -> Manifest:
    with path.open("rb") as file:
        members = read_archive(file)
        first = next(members, None)
        if first is None or first.name != MANIFEST:
            raise PackageError(f"is no package: it does not begin with {MANIFEST}")
        if first.nbytes > MAX_NBYTES:
            raise PackageError(f"{MANIFEST} has {first.nbytes} bytes, expected at most {MAX_NBYTES}")
        data = b"".join(first.read())
        manifest = parse_manifest(data)
        _check_room(manifest, os.fstat(file.fileno()).st_size, into)
        for wanted in manifest.included:
            _verify_member(wanted, next(members, None), manifest, into, approve)
            checked(wanted)
        if (more := next(members, None)) is not None:
            raise PackageError(f"holds {show(more.name)}, which its manifest does not name")
    if into is not None:
        write_atomic(into / MANIFEST, data)
    return manifest


def _check_room(manifest: Manifest, nbytes: int, into: Path | None) -> None:
    total = sum(each.nbytes for each in manifest.included)
    if total > _MAX_RATIO * nbytes + _SLACK:
        raise PackageError(f"has {nbytes} bytes and says to hold {total}: no package shrinks like that")
    if into is not None:
        free = shutil.disk_usage(ensure_dir(into)).free
        if total > free:
            raise PackageError(f"holds {total} bytes, {into} has room for {free}")


def _verify_member(
    wanted: PackedFile, member: Member | None, manifest: Manifest, into: Path | None, approve: Approve
) -> None:
    if member is None:
        raise PackageError(f"does not hold {show(wanted.name)}, which its manifest names")
    if (member.name, member.nbytes) != (wanted.name, wanted.nbytes):
        raise PackageError(
            f"holds {show(member.name)} of {member.nbytes} bytes where its manifest has "
            f"{show(wanted.name)} of {wanted.nbytes}"
        )
    if into is None:
        _check(wanted, member.read(), manifest, None, approve)
        return
    with replacing(into / wanted.name) as out:
        _check(wanted, member.read(), manifest, out, approve)


def _verify_folder(folder: Path, checked: Checked, approve: Approve) -> Manifest:
    with _opened(folder / MANIFEST) as file:
        data = file.read(MAX_NBYTES + 1)
    if len(data) > MAX_NBYTES:
        raise PackageError(f"{MANIFEST} has more than {MAX_NBYTES} bytes")
    manifest = parse_manifest(data)
    for wanted in sorted((manifest.plan, *manifest.weights), key=lambda each: each.name):
        path = folder / wanted.name
        if isinstance(wanted, PackedWeights) and not wanted.included and not os.path.lexists(path):
            continue
        with _opened(path) as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes != wanted.nbytes:
                raise PackageError(f"{wanted.name} has {nbytes} bytes, its manifest says {wanted.nbytes}")
            _check(wanted, iter(lambda file=file: file.read(CHUNK), b""), manifest, None, approve)  # type: ignore[misc]
        checked(wanted)
    return manifest


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file that is one itself: no link, which could lead anywhere, and no pipe, which would never end."""
    if path.is_symlink():
        raise PackageError(f"{path.name} is a symbolic link")
    # the flags hold where it became one meanwhile, and for a pipe, whose other end would be waited for
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PackageError(f"{path.name} is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _check(
    wanted: PackedFile, chunks: Iterable[bytes], manifest: Manifest, out: BinaryIO | None, approve: Approve
) -> None:
    """Digest a file while it is read, and copied; what the plan says of weights must be what the manifest says."""
    whole, head = hashlib.sha256(), hashlib.sha256()
    kept, seen = bytearray(), 0
    header_nbytes = wanted.header_nbytes if isinstance(wanted, PackedWeights) else 0
    is_plan = wanted is manifest.plan
    if is_plan and wanted.nbytes > _MAX_PLAN_NBYTES:
        raise PackageError(f"{wanted.name} has {wanted.nbytes} bytes, expected at most {_MAX_PLAN_NBYTES}")
    for chunk in chunks:
        whole.update(chunk)
        head.update(chunk[: max(0, header_nbytes - seen)])
        seen += len(chunk)
        if is_plan:
            kept += chunk
        if out is not None:
            out.write(chunk)
    if whole.hexdigest() != wanted.sha256:
        raise PackageError(f"{wanted.name} is damaged: its digest is not that of the manifest")
    if isinstance(wanted, PackedWeights) and head.hexdigest() != wanted.header_sha256:
        raise PackageError(f"{wanted.name} has another fingerprint than the manifest says")
    if is_plan:
        _check_plan(bytes(kept), manifest, approve)


def _check_plan(data: bytes, manifest: Manifest, approve: Approve) -> None:
    try:
        loaded = decode_plan(data, Path(manifest.plan.name))
        approve(loaded)
    except AirError as error:
        raise PackageError(str(error)) from None
    planned = [(each.name, each.nbytes, each.header_nbytes, each.header_sha256) for each in loaded.plan.files]
    packed = [(each.name, each.nbytes, each.header_nbytes, each.header_sha256) for each in manifest.weights]
    if planned != packed:
        raise PackageError(f"{manifest.plan.name} is for other weights than the manifest names")
