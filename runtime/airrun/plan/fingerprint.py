"""Weight files are known by what they hold, not by where they are."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from airrun.errors import PlanError
from airrun.paths import find_weights
from airrun.plan.schema import Plan, WeightFile

_CHUNK = 1 << 20


def fingerprint(path: str | os.PathLike[str], header_nbytes: int) -> str:
    """SHA-256, in hex, of the first `header_nbytes` bytes: names, shapes and places of all tensors.

    Raises
    ------
    PlanError
        A file that cannot be read or is shorter than that.
    """
    digest = hashlib.sha256()
    left = header_nbytes
    try:
        with Path(path).open("rb") as file:
            while left:
                data = file.read(min(left, _CHUNK))
                if not data:
                    raise PlanError(f"{path}: ends after {header_nbytes - left} of {header_nbytes} header bytes")
                digest.update(data)
                left -= len(data)
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return digest.hexdigest()


def matches(file: WeightFile, path: str | os.PathLike[str]) -> str | None:
    """None if `path` is `file`, else the reason why it is not."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != file.nbytes:
        return f"has {status.st_size} bytes, the plan was built from {file.name!r} of {file.nbytes} bytes"
    try:
        found = fingerprint(path, file.header_nbytes)
    except PlanError as error:
        return str(error).removeprefix(f"{path}: ")
    if found != file.header_sha256:
        return f"has other tensors or metadata than {file.name!r}, from which the plan was built"
    return None


def locate(plan: Plan, plan_path: str | os.PathLike[str], given: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Find the weight files of a plan, in the order of ``plan.files``.

    A file is looked for among `given` (in any order), then beside the plan under the name it had, then among all
    ``*.gguf`` beside the plan, then in the index of files that were built from on this machine.

    Raises
    ------
    PlanError
        A given file that is none of the plan's, or a file that is nowhere.
    """
    found: dict[int, Path] = {}
    for path in map(Path, given):
        reasons = [matches(file, path) for file in plan.files]
        if None not in reasons:
            several = f"is none of the {len(reasons)} files that the plan was built from"
            raise PlanError(f"{path}: {reasons[0] if len(reasons) == 1 else several}")
        found.setdefault(reasons.index(None), path)
    folder = Path(plan_path).parent
    return [found[i] if i in found else _search(file, folder) for i, file in enumerate(plan.files)]


def _search(file: WeightFile, folder: Path) -> Path:
    named = folder / file.name
    reason = matches(file, named)
    if reason is None:
        return named
    for path in sorted(folder.glob("*.gguf")):
        if matches(file, path) is None:
            return path
    known = find_weights(file.header_sha256)
    if known is not None and matches(file, known) is None:
        return known
    # A file of the right name but other contents is the likeliest mistake, so it is told.
    hint = f" ({named} {reason})" if named.exists() else ""
    raise PlanError(f"weight file {file.name!r} of {file.nbytes} bytes not found{hint}; name it with --model FILE")
