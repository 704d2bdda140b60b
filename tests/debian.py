"""Programs and libraries from Debian's archive, unpacked for tests without being installed.

Nothing here needs root, only `apt-get` with its lists, `dpkg` and the network; where one is missing, tests skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

_SECONDS = 300


@lru_cache
def unpacked(*packages: str) -> Path:
    """Root folder of packages (``name`` or ``name:architecture``), which is kept in the user's cache for later runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aircompile-tests"
    root = cache / "+".join(packages).replace(":", "-")
    if root.is_dir():
        return root
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("no apt-get to fetch packages of Debian with")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _run(["apt-get", "download", *packages], folder)
        for archive in sorted(Path(folder).glob("*.deb")):
            _run(["dpkg", "-x", str(archive), "root"], folder)
        try:
            (Path(folder) / "root").rename(root)
        except OSError:
            assert root.is_dir(), "only another process may have been faster"
    return root


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(command)} took longer than {_SECONDS} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{' '.join(command)} failed: {last}")


def emulator(machine: str) -> Path:
    """QEMU's emulator of Linux programs for a machine (`x86_64`, `aarch64`)."""
    name = f"qemu-{machine}-static"
    found = shutil.which(name)
    return Path(found) if found else unpacked("qemu-user-static") / "usr" / "bin" / name
