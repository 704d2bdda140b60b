"""A plan on the wrong machine is refused in one line that says what it needs and what there is."""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aircompile.codegen import needed_calls
from airrun import requirements
from airrun.cli import main
from airrun.errors import PlanError
from airrun.machine import isa, kernel_calls
from airrun.plan.container import LoadedPlan, read_plan
from airrun.plan.elf import largest_page
from airrun.requirements import require

SYS_H = Path(__file__).resolve().parents[2] / "kernels/airkernels/native/sys.h"
V2 = "x86-64-v2"

KERNEL_CALLS, missing_calls = kernel_calls.KERNEL_CALLS, kernel_calls.missing_calls

Patch = Callable[[pytest.MonkeyPatch], object]


def on(module: object, name: str, value: object) -> Patch:
    return lambda patch: patch.setattr(module, name, value)


@pytest.mark.parametrize(
    ("change", "needs", "has"),
    [
        (on(requirements.sys, "platform", "darwin"), "Linux", "darwin"),
        (on(requirements.struct, "calcsize", lambda _: 4), "a 64-bit Python", r"a 32-bit Python [\d.]+"),
        (on(isa, "machine", lambda: "riscv64"), "architecture x86_64", "riscv64"),
        (on(isa, "host_features", lambda: isa.LEVELS[V2] - {"popcnt"}), "the instructions of .*",
         "a processor without .*popcnt.*"),
        (on(requirements.mmap, "PAGESIZE", 1 << 16), "memory pages of at most 4 KiB", "pages of 64 KiB"),
        (on(kernel_calls, "KERNEL_CALLS", {**KERNEL_CALLS, "futex": KERNEL_CALLS["futex"]._replace(numbers={})}),
         "the kernel calls .*futex.*", "Linux .* without futex"),
    ],
    ids=["system", "python", "processor", "instructions", "pages", "kernel"],
)  # fmt: skip
def test_what_this_machine_lacks(
    plan: Path, change: Patch, needs: str, has: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = read_plan(plan)
    require(loaded)
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        line = f"{re.escape(str(plan))}: the plan needs {needs}; this machine has {has}"
        with pytest.raises(PlanError, match=f"^{line}$"):
            require(loaded)
        assert main([str(plan), "-p", "a", "-n", "1"]) == 1
    assert re.fullmatch(f"error: {line}\n", capsys.readouterr().err)


def test_the_nearest_level_is_told(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several levels, the one that lacks least is worth naming."""
    loaded = read_plan(plan)
    best = loaded.plan.libraries[0]
    worst = replace(best, isa=V2, features=("cx16", "popcnt"))
    two = replace(loaded, plan=replace(loaded.plan, libraries=(best, worst)))
    monkeypatch.setattr(isa, "host_features", lambda: frozenset({"cx16"}))
    with pytest.raises(PlanError, match="without popcnt$"):
        require(two)


def test_calls_are_those_of_the_native_code() -> None:
    text = SYS_H.read_text()
    for arch in ("x86_64", "aarch64"):
        section = text.split(f"defined(__{arch}__)")[1].split("#e")[0]
        needed = re.search(r"enum needed_calls \{(.*)\}", section)
        assert needed is not None
        declared = {name.lower(): int(number) for name, number in re.findall(r"SYS_(\w+) = (\d+)", needed[1])}
        assert declared == {name: KERNEL_CALLS[name].numbers[arch] for name in needed_calls()}


def test_missing_calls_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_calls([*KERNEL_CALLS]) == []
    assert missing_calls(["futex", "io_uring_enter"]) == ["io_uring_enter"]
    # a number that no kernel has
    unused = KERNEL_CALLS["futex"]._replace(numbers={isa.machine(): 10_000})
    monkeypatch.setitem(KERNEL_CALLS, "futex", unused)
    assert missing_calls(["futex", "pread64"]) == ["futex"]


@pytest.mark.skipif(sys.platform != "linux" or isa.machine() != "x86_64", reason="a filter of x86-64 Linux")
def test_a_call_that_a_sandbox_refuses() -> None:
    """A real filter of system calls, in a process of its own: it cannot be taken back."""
    done = subprocess.run([sys.executable, "-c", _SANDBOXED], capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("this system has no filters of system calls")
    assert done.stdout.split() == ["pread64"], done.stderr


_SANDBOXED = """
import ctypes, struct, sys
from airrun.machine import isa, kernel_calls
KERNEL_CALLS, missing_calls = kernel_calls.KERNEL_CALLS, kernel_calls.missing_calls
assert missing_calls([*KERNEL_CALLS]) == []
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 17), (6, 0, 0, 0x50000 | 38), (6, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *each) for each in code))
fprog = ctypes.create_string_buffer(struct.pack("<H6xQ", len(code), ctypes.addressof(program)))
prctl = ctypes.CDLL(None).prctl
prctl.argtypes = [ctypes.c_int] + 4 * [ctypes.c_ulong]
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.addressof(fprog), 0, 0):
    sys.exit(77)
print(*missing_calls([*KERNEL_CALLS]))
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    import _ctypes

    yield Path(_ctypes.__file__).read_bytes()


def test_page_size_of_a_shared_object(image: bytes) -> None:
    assert largest_page(image) % mmap.PAGESIZE == 0
    at = struct.unpack_from("<Q", image, 32)[0]
    loaded = [i for i in range(image[56]) if struct.unpack_from("<I", image, at + 56 * i) == (1,)]
    changed = bytearray(image)
    for i, alignment in zip(loaded, (1 << 16, 1 << 14, *[1 << 16] * 8), strict=False):
        struct.pack_into("<Q", changed, at + 56 * i + 48, alignment)
    assert largest_page(bytes(changed)) == 1 << 14


@given(st.binary(max_size=200), st.booleans())
def test_no_shared_object(data: bytes, starts_well: bool) -> None:
    data = b"\x7fELF\x02\x01" + data if starts_well else data
    try:
        assert largest_page(data) >= 0
    except PlanError as error:
        assert str(error).startswith("native code")


def test_a_plan_whose_code_is_no_shared_object(plan: Path) -> None:
    loaded = read_plan(plan)

    class Damaged(LoadedPlan):
        def segment(self, index: int) -> memoryview:
            return memoryview(b"no code")

    with pytest.raises(PlanError, match="not a 64-bit ELF file"):
        require(Damaged(loaded.plan, loaded.digest, loaded.path, b"", memoryview(b"")))
