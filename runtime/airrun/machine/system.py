"""What the operating system says of this machine without measuring: memory, processors, caches."""

from __future__ import annotations

import os
from pathlib import Path

from airrun.machine import isa
from airrun.machine.profile import Cpu, Disk, Profile, Tier, Tiers, parse_bytes
from airrun.ram import available_ram, read_text, total_ram

_CPU_ROOT = Path("/sys/devices/system/cpu")
_CACHES = 4


def detect() -> Profile:
    """The profile ``host`` with everything that needs no measurement; all bandwidths are 0 (unknown)."""
    return Profile(
        name="host",
        description=f"this machine: {cpu_name()}",
        cpu=detect_cpu(),
        tiers=Tiers(ram=Tier(size=total_ram()), disk=Disk()),
    )


def detect_cpu() -> Cpu:
    """Architecture, instruction sets, and the cores and caches this process may use."""
    allowed = allowed_cpus()
    cores = {
        (
            read_text(_CPU_ROOT / f"cpu{n}/topology/physical_package_id"),
            read_text(_CPU_ROOT / f"cpu{n}/topology/core_id") or n,
        )
        for n in allowed
    }
    caches = _caches(min(allowed))
    return Cpu(
        arch=isa.machine(),
        isa=tuple(isa.host_levels()),
        cores=len(cores),
        threads=len(allowed),
        l1d=caches.get("l1d", 0),
        l2=caches.get("l2", 0),
        l3=caches.get("l3", 0),
        line=caches.get("line", 64),
        prefetch=_prefetch_distance(),
        vendor=_cpuinfo("vendor_id"),
    )


def _prefetch_distance() -> int:
    """How far ahead kernels should prefetch weights, by measurements on one processor of each maker.

    An Intel server core that also computes reads memory at two thirds of what it could without prefetches; those of
    a Zen 4 only made it slower.
    """
    return 8192 if _cpuinfo("vendor_id") == "GenuineIntel" else 0


def uncached_nbytes(at_least: int) -> int:
    """Size of a buffer whose reading measures memory: four times the largest cache, at most half of what is free."""
    cpu = detect_cpu()
    return min(max(at_least, _CACHES * max(cpu.l2, cpu.l3)), available_ram() // 2)


def allowed_cpus() -> list[int]:
    """Numbers of the logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """The processor's name as it gives it, else its architecture."""
    return _cpuinfo("model name") or isa.machine()


def _cpuinfo(wanted: str) -> str:
    """A value of the first processor in /proc/cpuinfo; empty if it is not there."""
    for line in read_text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return value.strip()
    return ""


def _caches(cpu: int) -> dict[str, int]:
    """Sizes in bytes of the data caches of a processor, and the line size."""
    found: dict[str, int] = {}
    for index in sorted(_CPU_ROOT.glob(f"cpu{cpu}/cache/index*")):
        level, size = read_text(index / "level"), read_text(index / "size")
        if read_text(index / "type") == "Instruction" or not level or not size:
            continue
        # the kernel writes 32K for 32 KiB
        found["l1d" if level == "1" else f"l{level}"] = parse_bytes(size.removesuffix("K") + "KiB")
        if (line := read_text(index / "coherency_line_size")).isdigit():
            found["line"] = int(line)
    return found
