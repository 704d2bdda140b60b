"""An ARM machine for tests: Python and numpy for aarch64, as Debian and PyPI have them, under QEMU's emulation.

Nothing is installed and nothing needs root; without network or Debian's tools, tests skip. Processors are those that
QEMU emulates: instructions that one does not have end the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from debian import RELEASE, emulator, kept, run, unpacked

# what Python and numpy are linked to; libraries of modules that nothing here imports are left away
_PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1"),
)
# only older ones can have pages that this machine does not have
_EMULATOR_OF_PAGES = f"qemu-user-static:amd64/{RELEASE}"
_WHEELS = ("numpy", "jinja2", "backports.zstd")

PROCESSORS = {"armv8-a": "cortex-a53", "armv8-a+dotprod": "cortex-a76", "armv8-a+i8mm": "neoverse-v1"}
"""For every level a processor of QEMU that has it and nothing better."""

_RUNTIME = Path(__file__).resolve().parents[1] / "runtime"


def emulator_command(processor: str, page_nbytes: int = 0) -> list[str]:
    """What runs a program on a processor of QEMU, put before it; with this machine's pages, or of another size."""
    if not page_nbytes:
        return [str(emulator("aarch64")), "-cpu", processor]
    older = unpacked(_EMULATOR_OF_PAGES, release=RELEASE) / "usr" / "bin" / "qemu-aarch64-static"
    return [str(older), "-cpu", processor, "-p", str(page_nbytes)]


def python(
    processor: str, *arguments: str, environment: Mapping[str, str], timeout: float, page_nbytes: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` on a processor of QEMU, with the runtime on the path and nothing of the compiler."""
    root = unpacked(*(f"{name}:arm64" for name in _PACKAGES), release=RELEASE)
    path = os.pathsep.join([str(_RUNTIME), str(kept("-".join(("aarch64", *_WHEELS)), _install))])
    command = [*emulator_command(processor, page_nbytes), "-L", str(root), str(root / "usr/bin/python3.11"), *arguments]
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _install(folder: Path) -> None:
    """Unpack the wheels that the runtime needs, without any scripts of theirs."""
    platforms = [part for name in ("manylinux2014", "manylinux_2_28") for part in ("--platform", f"{name}_aarch64")]
    wanted = ["--only-binary", ":all:", "--python-version", "3.11", *platforms, *_WHEELS]
    run([sys.executable, "-m", "pip", "download", "--quiet", "--dest", "wheels", *wanted], str(folder))
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()
