"""A hard memory limit for a command: a control group of its own (Linux, needs root). The page cache counts too."""

from __future__ import annotations

import os
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class MemoryGroup:
    """A group that processes join by `join`, usually as the `preexec_fn` of one that is started.

    Raises
    ------
    OSError
        Where groups cannot be made: not root, or not Linux.
    """

    def __init__(self, limit: int) -> None:
        v1 = _V1.is_dir()
        self.path = (_V1 if v1 else _V2) / f"aircompile-bench.{os.getpid()}"
        self._peak = "memory.max_usage_in_bytes" if v1 else "memory.peak"
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))

    def join(self) -> None:
        """Put this process into the group."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def peak(self) -> int:
        """Most bytes that were charged to the group at one time."""
        return int((self.path / self._peak).read_text())

    def close(self) -> None:
        """Remove the group, whose processes must have ended."""
        self.path.rmdir()
