"""Measures this machine: read bandwidth of RAM and disk, beside what ``airrun.machine.system`` finds without measuring.

RAM is read by ``np.maximum.reduce`` over bytes, without the interpreter lock. It compiles to one vector load and one
maximum per 64 bytes, and so runs at the speed of memory: against a C loop of 64-byte loads it reached 102% on one
thread of a Zen 4 server core with a 256 MiB buffer, and 110% inside the cache, where it is far above any memory.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from airrun.errors import UsageError
from airrun.machine.profile import Disk, Profile, Tier
from airrun.machine.system import detect, uncached_nbytes
from airrun.paths import cache_dir, ensure_dir, host_profile_path, write_atomic

Report = Callable[[str], None]
Task = Callable[[], int]
_MIB = 1 << 20
_LARGEST = 16 * _MIB  # chunk of a read; the test file is a multiple of it
_SLICE = 4 * _MIB  # of RAM per call: 150 us, a hundred times the cost of a call
_CACHED = 64 * _MIB


@dataclass(frozen=True)
class Effort:
    """How long to measure: least bytes of memory, seconds per setting, rounds, and what is tried on the disk."""

    buffer: int
    seconds: float
    rounds: int
    file: int
    readers: tuple[int, ...]
    chunks: tuple[int, ...]


FULL = Effort(256 * _MIB, 0.5, 5, 1024 * _MIB, readers=(1, 2, 4), chunks=(1 * _MIB, 4 * _MIB, _LARGEST))
QUICK = Effort(256 * _MIB, 0.1, 2, 128 * _MIB, readers=(1, 2), chunks=(4 * _MIB,))


def probe(quick: bool = False, path: Path | None = None, disk: Path | None = None, progress: bool = True) -> Profile:
    """Measure this machine and write its profile.

    Parameters
    ----------
    quick
        About 2 s instead of 20 s, with a larger error.
    path
        The TOML file to write; by default ``host.toml`` in the cache folder, where the target ``host`` looks. Another
        file is for another machine to build for: the profile is named like it, and has the best instruction set only.
    disk
        A folder on the disk to measure; by default that of the cache. The temporary file in it has no name, so that
        nothing stays behind even if the process is killed.
    progress
        Say on stderr what is measured.

    Raises
    ------
    UsageError
        `path` or `disk` cannot be written to, or the disk has no room for the temporary file.
    """
    target = path or host_profile_path()
    effort = QUICK if quick else FULL
    # both folders are tried first, rather than after half a minute of measuring
    ensure_dir(target.parent)
    folder = ensure_dir(disk or cache_dir())
    with _reporting(progress) as report:
        found = detect()
        one, best = measure_ram(found.cpu.threads, effort, report)
        ram = Tier(size=found.tiers.ram.size, bandwidth=best, bandwidth_1=one)
        profile = replace(found, tiers=replace(found.tiers, ram=ram, disk=measure_disk(folder, effort, report)))
    if target.absolute() != host_profile_path():
        profile = replace(profile, name=target.stem, cpu=replace(profile.cpu, isa=profile.cpu.isa[:1]))
    write_atomic(target, profile.to_toml().encode())
    return profile


def measure_ram(n_threads: int, effort: Effort, report: Report) -> tuple[int, int]:
    """Read bandwidth in bytes/s on one thread, and the best over 1, 2, 4, ... `n_threads`.

    The best round of each counts: it is a ceiling that is asked for, and a neighbour can only lower it.
    """
    counts = sorted({*(1 << i for i in range(n_threads.bit_length()) if 1 << i < n_threads), n_threads})
    n_slices = max(n_threads, uncached_nbytes(effort.buffer) // _SLICE)
    # written, not just allocated: pages never written to are all the same page of zeros
    slices = np.ones((n_slices, _SLICE), np.uint8)
    rates: dict[int, int] = {}
    for _ in range(effort.rounds):
        for count in counts:
            report(f"RAM, {count} thread{'s' if count > 1 else ''}")
            rate = read_rate([slices[i::count] for i in range(count)], effort.seconds)
            rates[count] = max(rates.get(count, 0), rate)
    return rates[1], max(rates.values())


def read_rate(buffers: Sequence[npt.NDArray[np.uint8]], seconds: float) -> int:
    """Bytes/s at which as many threads read one buffer each, [n, bytes of a few MiB], for `seconds`."""
    return _rate([_scanner(buffer) for buffer in buffers], seconds)


def _scanner(buffer: npt.NDArray[np.uint8]) -> Task:
    """A task that reads the next row of a buffer, round and round."""
    rows = itertools.cycle(buffer)

    def scan() -> int:
        np.maximum.reduce(next(rows))
        return _SLICE

    return scan


def measure_disk(folder: Path, effort: Effort, report: Report) -> Disk:
    """Sequential read rate of the disk under `folder`, past the page cache, and the gentlest setting that reaches it.

    Raises
    ------
    UsageError
        The folder cannot be written to, has no room, or the system has no ``preadv``.
    """
    if not hasattr(os, "preadv"):
        raise UsageError("measuring a disk needs preadv, which this system does not have")
    try:
        system = os.statvfs(folder)
        nbytes = min(effort.file, system.f_bavail * system.f_frsize // 2) // _LARGEST * _LARGEST
        if nbytes == 0:
            raise UsageError(f"{folder}: no room for a temporary file of {2 * _LARGEST >> 20} MiB to measure the disk")
        # it has no name, so nothing stays behind even if this process is killed
        with tempfile.TemporaryFile(dir=folder, buffering=0) as stream:
            report(f"disk, writing {nbytes >> 20} MiB")
            file = _TestFile(stream.fileno(), nbytes)
            direct = file.write()
            rates = {}
            for readers, chunk in itertools.product(effort.readers, effort.chunks):
                report(f"disk, {readers} reader{'s' if readers > 1 else ''} of {chunk >> 20} MiB")
                file.forget()
                rates[readers, chunk] = _rate([file.reader(chunk) for _ in range(readers)], effort.seconds)
            report("page cache")
            file.set_direct(False)
            cached = file.cached_rate(effort.seconds)
    except OSError as error:
        raise UsageError(f"{folder}: cannot measure this disk: {error.strerror or error}") from error
    best = max(rates.values())
    # fewest readers first, then smallest chunks: they cost memory and a core, and 3% is within the noise
    readers, chunk = next(setting for setting in sorted(rates) if rates[setting] >= 0.97 * best)
    one = max(rate for (count, _), rate in rates.items() if count == 1)
    size = system.f_blocks * system.f_frsize
    return Disk(size, best, one, chunk=chunk, readers=readers, direct=direct, cached=cached)


class _TestFile:
    """A file of incompressible bytes, read by several threads from a common position, round and round."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.descriptor = descriptor
        self.nbytes = nbytes
        self.position = 0
        self.lock = threading.Lock()

    def set_direct(self, on: bool) -> bool:
        """Switch O_DIRECT; False where the system or the file system has no such thing."""
        flag = getattr(os, "O_DIRECT", 0)
        if not flag:
            return False
        import fcntl

        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def write(self) -> bool:
        """Fill the file and bring it to the disk; whether reads will pass the page cache by O_DIRECT."""
        block = memoryview(os.urandom(_LARGEST))
        for offset in range(0, self.nbytes, _LARGEST):
            written = 0
            while written < _LARGEST:
                written += os.pwrite(self.descriptor, block[written:], offset + written)
        os.fsync(self.descriptor)
        self.forget()
        return self.set_direct(True)

    def forget(self) -> None:
        """Drop the file from the page cache, which O_DIRECT alone does not do, and go on at a multiple of any chunk."""
        self.position = self.position // _LARGEST * _LARGEST
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def reader(self, chunk: int) -> Task:
        """A task that reads the next chunk of the file into a page-aligned buffer of its own."""
        buffer = mmap.mmap(-1, chunk)

        def read() -> int:
            with self.lock:
                offset = self.position
                self.position = (offset + chunk) % self.nbytes
            nbytes = os.preadv(self.descriptor, [buffer], offset)
            if nbytes != chunk:
                raise UsageError(f"the temporary file gave {nbytes} of {chunk} bytes at offset {offset}")
            return nbytes

        return read

    def cached_rate(self, seconds: float) -> int:
        """Bytes/s that one thread copies out of the page cache."""
        self.nbytes = min(self.nbytes, _CACHED)
        self.position = 0
        read = self.reader(4 * _MIB)
        for _ in range(self.nbytes // (4 * _MIB)):
            read()
        return _rate([read], seconds)


def _rate(tasks: list[Task], seconds: float) -> int:
    """Repeat tasks, each on a thread of its own, for `seconds`; bytes/s of all of them together.

    A task returns the bytes it read. Tasks take a few milliseconds, so that the tail, in which some threads have
    stopped and others not, is short.
    """
    barrier = threading.Barrier(len(tasks) + 1)
    done = [0] * len(tasks)
    errors: list[BaseException] = []

    def work(i: int) -> None:
        barrier.wait()
        end = time.perf_counter() + seconds
        try:
            while time.perf_counter() < end:
                done[i] += tasks[i]()
        except BaseException as error:  # handed over to the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return round(sum(done) / (time.perf_counter() - start))


@contextmanager
def _reporting(progress: bool) -> Iterator[Report]:
    """A function that shows what is being measured: in place with rich, else line by line on stderr."""
    if not progress:
        yield lambda _: None
        return
    try:
        from rich.console import Console
    except ImportError:
        yield lambda what: print(f"probe: {what}", file=sys.stderr)
        return
    with Console(stderr=True).status("probe") as status:
        yield lambda what: status.update(f"probe: {what}")
