"""Programs and libraries from Debian's archive, unpacked for tests without being installed.

Nothing here needs root, only `apt-get` with its lists, `dpkg` and the network; where one is missing, tests skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aircompile-tests"
"""What is fetched once and kept for later runs."""

RELEASE = "bookworm"
"""Of Debian, whose packages tests rely on."""

_SECONDS = 300
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache; `make` fills a new one, which becomes the folder when it is whole."""
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            (new := Path(temporary) / "new").mkdir()
            make(new)
            try:
                new.rename(folder)
            except OSError:
                assert folder.is_dir(), "only another process may have been faster"
    return folder


@lru_cache
def unpacked(*packages: str, release: str = "") -> Path:
    """Root folder of packages: ``name``, ``name:architecture``, ``name:architecture/suite``.

    They are those that this system knows, or of a release of Debian and its backports, of amd64 and arm64.
    """

    def unpack(root: Path) -> None:
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            pytest.skip("no apt-get to fetch packages of Debian with")
        environment = {"APT_CONFIG": str(_lists(release) / "apt.conf")} if release else {}
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            run(["apt-get", "download", *packages], folder, environment)
            for archive in sorted(Path(folder).glob("*.deb")):
                run(["dpkg", "-x", str(archive), str(root)], folder)

    return kept("+".join(packages).replace(":", "-").replace("/", "-"), unpack)


def _lists(release: str) -> Path:
    """A folder with a configuration of apt and the lists of a release."""
    folder = CACHE / f"apt-{release}"
    if not (folder / "apt.conf").is_file():
        if not _KEYS.is_file():
            pytest.skip(f"no keys of Debian to check packages of {release} with")
        for each in ("lists/partial", "cache/archives/partial"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        suites = "".join(
            f"deb [signed-by={_KEYS}] http://deb.debian.org/debian {suite} main\n"
            for suite in (release, f"{release}-backports")
        )
        (folder / "sources.list").write_text(suites)
        places = {"State": "", "State::status": "status", "Cache": "cache", "Etc::sourcelist": "sources.list"}
        settings = [f'Dir::{key} "{folder / place}";' for key, place in places.items()]
        settings += ['Dir::Etc::sourceparts "-";', 'APT::Architectures { "amd64"; "arm64"; };']
        (new := folder / "new.conf").write_text("\n".join(settings))
        run(["apt-get", "update"], str(folder), {"APT_CONFIG": str(new)})
        new.rename(folder / "apt.conf")
    return folder


def run(command: list[str], folder: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a command that fetches or unpacks; tests skip if it fails."""
    environment = {**os.environ, **environment}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(command)} took longer than {_SECONDS} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{' '.join(command)} failed: {last}")


def emulator(machine: str) -> Path:
    """QEMU's emulator of Linux programs for a machine (`x86_64`, `aarch64`).

    Not the one that a system may have: QEMU 7.2 computes some AVX2 kernels wrongly (those with grids, see FINDINGS.md),
    knows no Neoverse V1, and shows programs the /proc/cpuinfo of the host.
    """
    return unpacked(f"qemu-user:amd64/{RELEASE}-backports", release=RELEASE) / "usr" / "bin" / f"qemu-{machine}"
