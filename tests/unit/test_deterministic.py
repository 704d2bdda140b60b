"""The same model, target, version and records give the same plan bytes, wherever and by whomever it is built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import write_tiny

from airrun.machine import isa
from airrun.machine.system import detect_cpu
from airrun.paths import cache_dir
from airrun.plan.container import read_plan

MARK = "Xq7Zmark"
"""A word that every name of a folder has in it, and no plan."""

OTHER_PYTHON = os.environ.get("AIR_OTHER_PYTHON", "")
"""An interpreter of another version that has the packages of the extra `compile`."""

Build = Callable[..., bytes]


@pytest.fixture
def build(tmp_path: Path, home: Path) -> Build:
    """`build(target, python, **environment)`: the plan of the tiny model, built in a folder of its own."""
    counter = iter(range(100))

    def one(target: str, python: str = sys.executable, umask: int = 0o022, **environment: str) -> bytes:
        folder = tmp_path / f"{MARK}-{next(counter)} with spaces"
        folder.mkdir()
        write_tiny(folder / "tiny.gguf")
        (folder / "target.toml").write_text(target)
        command = [python, "-m", "aircompile", "build", "tiny.gguf", "--target", "target.toml", "-o", "p", "--quiet"]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | environment, umask=umask, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return (folder / "p").read_bytes()

    return one


def elsewhere(folder: Path) -> dict[str, str]:
    """An environment unlike this one: other folders, nothing cached, another locale, zone and order of sets, and the
    plainest variants of numpy's and the C library's functions."""
    import numpy._core._multiarray_umath as numpy_core

    for name in ("home", "tmp"):
        (folder / f"{MARK}-{name}").mkdir(exist_ok=True)
    features = [each for each in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__.get(each)]
    return {
        "AIRCOMPILE_HOME": str(folder / f"{MARK}-home" / "deep"),
        "HOME": str(folder / f"{MARK}-home"),
        "USER": MARK,
        "TMPDIR": str(folder / f"{MARK}-tmp"),
        "PYTHONHASHSEED": "12345",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "TZ": "Pacific/Kiritimati",
        "COLUMNS": "40",
        "NPY_DISABLE_CPU_FEATURES": " ".join(features),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F,-FMA4",
        "SOURCE_DATE_EPOCH": "1",
    }


def target(levels: tuple[str, ...], arch: str, prefetch: int = 0) -> str:
    names = ", ".join(f'"{level}"' for level in levels)
    return f'name = "box"\n[cpu]\narch = "{arch}"\nisa = [{names}]\nthreads = 4\nprefetch = {prefetch}\n' + (
        '[tiers.ram]\nbandwidth = "30GB"\nbandwidth_1 = "10GB"\n[tiers.disk]\nbandwidth = "1GB"\n'
    )


def contents(data: bytes, path: Path) -> list[bytes]:
    """The parts of a plan, with what is deflated inflated too."""
    path.write_bytes(data)
    loaded = read_plan(path)
    index = zlib.decompress(data[int.from_bytes(data[24:32], "little") :])
    return [data, index, *(bytes(loaded.segment(i)) for i in range(len(loaded.plan.segments)))]


def check_nothing_of_the_builder(parts: list[bytes]) -> None:
    names = [MARK, "site-packages", "tiny_model", "/usr/", "/root", "/home/", "/tmp/", str(cache_dir().parent)]
    for part in parts:
        for name in names:
            assert name.encode() not in part, name
        if part.startswith(b"\x7fELF"):
            for section in (b".debug", b".note.gnu.build-id", b".symtab", b".py", b".c\0"):
                assert section not in part, section


def test_a_fresh_build_elsewhere_gives_the_same_bytes(build: Build, tmp_path: Path) -> None:
    """One build from what is cached here, the other from nothing."""
    cpu = detect_cpu()
    text = target(cpu.isa[:1], cpu.arch, cpu.prefetch)
    here = build(text)
    there = build(text, umask=0o077, **elsewhere(tmp_path))
    assert here == there
    check_nothing_of_the_builder(contents(here, tmp_path / "p"))


def test_what_is_checked_for_would_be_found(tmp_path: Path, home: Path) -> None:
    for text in (b"a/" + MARK.encode(), b"\x7fELF.debug_info"):
        with pytest.raises(AssertionError):
            check_nothing_of_the_builder([text])
    # this machine itself is what the target host may say
    assert detect_cpu().isa[0] == isa.host_levels()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("levels", "arch"),
    [
        (("x86-64-v4", "x86-64-v3+avxvnni", "x86-64-v3", "x86-64-v2"), "x86_64"),
        (("armv8-a+i8mm", "armv8-a+dotprod", "armv8-a"), "aarch64"),
    ],
)
def test_every_instruction_set(build: Build, tmp_path: Path, levels: tuple[str, ...], arch: str) -> None:
    there = elsewhere(tmp_path)
    first = build(target(levels, arch), **there)
    shutil.rmtree(there["AIRCOMPILE_HOME"])
    assert build(target(levels, arch), PYTHONHASHSEED="0", AIRCOMPILE_HOME=str(tmp_path / f"{MARK}-2")) == first
    check_nothing_of_the_builder(contents(first, tmp_path / "p"))


@pytest.mark.slow
@pytest.mark.skipif(not OTHER_PYTHON, reason="no interpreter in AIR_OTHER_PYTHON")
@pytest.mark.parametrize(
    ("levels", "arch"), [(("x86-64-v4", "x86-64-v3"), "x86_64"), (("armv8-a+i8mm", "armv8-a+dotprod"), "aarch64")]
)
def test_another_python_gives_the_same_bytes(build: Build, tmp_path: Path, levels: tuple[str, ...], arch: str) -> None:
    ask = [OTHER_PYTHON, "-c", "import sys; print(sys.version_info[:2])"]
    assert subprocess.check_output(ask, text=True).strip() != str(sys.version_info[:2])
    text = target(levels, arch)
    assert build(text, OTHER_PYTHON, **elsewhere(tmp_path)) == build(text)
