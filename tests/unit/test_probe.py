"""Measuring this machine: plausible figures, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airrun import ram
from airrun.errors import UsageError
from airrun.machine import isa, probe, system
from airrun.machine.profile import Cpu, load_profile
from airschedules.targets import load_target

MIB = 1 << 20
SHORT = replace(probe.QUICK, buffer=32 * MIB, seconds=0.03, rounds=1, file=32 * MIB)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Measurements of a few milliseconds, in a cache folder of the test's own."""
    monkeypatch.setattr(probe, "QUICK", SHORT)
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_probe_writes_what_it_returns_and_leaves_nothing(short: Path, capfd: pytest.CaptureFixture[str]) -> None:
    profile = probe.probe(quick=True, disk=short / "disk")
    path = short / "home" / "host.toml"
    assert load_profile(path) == profile
    assert [each for each in short.rglob("*") if each.is_file()] == [path]
    assert capfd.readouterr().out == ""
    assert profile.cpu == system.detect_cpu()
    ram, disk = profile.tiers.ram, profile.tiers.disk
    assert ram.size > 2**28 and 2**28 < ram.bandwidth_1 <= ram.bandwidth < 2**43
    assert 2**20 < disk.bandwidth_1 <= disk.bandwidth < 2**40 and disk.cached > 2**26
    assert disk.readers in SHORT.readers and disk.chunk in SHORT.chunks and disk.size > SHORT.file


def test_a_profile_for_another_machine_is_a_target_there(short: Path) -> None:
    """A box is measured without a compiler; the workstation builds for what the file says."""
    path = short / "attic.toml"
    profile = probe.probe(quick=True, path=path, disk=short)
    assert load_target(str(path)) == profile and profile.name == "attic"
    assert profile.cpu.isa == tuple(isa.host_levels()[:1]) and profile.cpu.arch == isa.machine()
    # written to where the target `host` looks, it is that
    found = probe.probe(quick=True, path=short / "home" / "host.toml", disk=short)
    assert (found.name, found.cpu) == ("host", system.detect_cpu()) and load_target("host") == found


def test_progress_is_on_stderr_without_rich(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    probe.probe(quick=True, path=short / "a" / "out.toml")
    output = capsys.readouterr()
    assert output.out == "" and "probe: RAM, 1 thread\n" in output.err and "probe: page cache\n" in output.err


def test_the_scan_reads_every_byte_at_the_pace_of_a_plain_loop() -> None:
    buffer = np.zeros((3, probe._SLICE), np.uint8)
    scan = probe._scanner(buffer)
    assert [scan() for _ in range(7)] == [probe._SLICE] * 7

    # an independent reader of the same bytes: 8 at a time; a scan by single bytes would be tens of times slower
    def seconds(run: object) -> float:
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            run()  # type: ignore[operator]
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(scan) < 3 * seconds(lambda: np.add.reduce(buffer[0].view(np.uint64)))


def test_a_rate_counts_all_threads() -> None:
    def task() -> int:
        time.sleep(0.002)
        return 1000

    one, three = probe._rate([task], 0.05), probe._rate([task] * 3, 0.05)
    assert 100_000 < one < 510_000 and 1.5 * one < three < 1_530_000


def test_an_error_of_a_reader_is_handed_on() -> None:
    def task() -> int:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        probe._rate([task, lambda: 1], 0.01)


def test_without_direct_reads_the_page_cache_is_dropped(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe._TestFile, "set_direct", lambda self, on: False)
    disk = probe.measure_disk(short, SHORT, lambda _: None)
    assert not disk.direct and disk.bandwidth > 0


def test_a_disk_that_fails_is_named(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UsageError, match=f"{short}.*: cannot measure this disk: No space left"):
        probe.probe(quick=True, disk=short, progress=False)
    assert [each for each in short.rglob("*") if each.is_file()] == []


def test_places_that_cannot_be_written_are_named(short: Path) -> None:
    (short / "file").write_text("")
    with pytest.raises(UsageError, match="file/sub: cannot create this folder"):
        probe.probe(quick=True, path=short / "file" / "sub" / "x.toml")


def test_memory_limits_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ram.total_ram()
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "memory.max").write_text("1048576\n")
    (tmp_path / "outer" / "inner" / "memory.max").write_text("max\n")
    real = ram.read_text
    monkeypatch.setattr(ram, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(
        ram, "read_text", lambda path: "0::/outer/inner" if path == Path("/proc/self/cgroup") else real(path)
    )
    assert ram.total_ram() == 1048576 < installed


def test_detection_agrees_with_the_system() -> None:
    found = system.detect()
    assert found.cpu.threads == len(os.sched_getaffinity(0))
    assert found.tiers.ram.size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.tiers.ram.bandwidth == 0


@pytest.mark.skipif(shutil.which("getconf") is None, reason="needs getconf")
def test_caches_agree_with_the_c_library() -> None:
    def size(name: str) -> int:
        text = subprocess.run(["getconf", name], capture_output=True, text=True).stdout.strip()
        return int(text) if text.isdigit() else 0

    if not size("LEVEL1_DCACHE_SIZE"):
        pytest.skip("the C library does not know the caches of this processor")
    cpu = system.detect_cpu()
    assert (cpu.l1d, cpu.l2) == (size("LEVEL1_DCACHE_SIZE"), size("LEVEL2_CACHE_SIZE"))


def test_memory_is_measured_beyond_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "available_ram", lambda: 1 << 34)
    for l2, l3, expected in ((1 << 20, 32 << 20, 1 << 28), (1 << 21, 260 << 20, 1040 << 20), (0, 0, 1 << 28)):
        monkeypatch.setattr(system, "detect_cpu", lambda l2=l2, l3=l3: Cpu(l2=l2, l3=l3))
        assert system.uncached_nbytes(1 << 28) == expected
    monkeypatch.setattr(system, "available_ram", lambda: 1 << 28)
    assert system.uncached_nbytes(1 << 28) == 1 << 27
