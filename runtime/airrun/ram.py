"""How much memory this process may use, and how much is free.

Apart from the rest of what the system says of a machine: every run asks this before it loads weights.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def total_ram() -> int:
    """Bytes of RAM this process may use: the machine's, or the limit of its memory cgroup if that is lower."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        installed = 0
    return min([installed, *_cgroup_limits()])


def available_ram() -> int:
    """Bytes that can be allocated now without swapping; `total_ram` where the system does not say."""
    total = total_ram()
    for line in read_text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return min(total, int(line.split()[1]) * 1024)
    return total


def _cgroup_limits() -> list[int]:
    """Memory limits of this process's control groups and of those above them, versions 1 and 2."""
    limits = []
    for line in read_text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUP_ROOT, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUP_ROOT / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            text = read_text(folder / name)
            if text.isdigit():
                limits.append(int(text))
            if folder == root:
                break
    return limits


def read_text(path: Path) -> str:
    """What the system says in a file, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
