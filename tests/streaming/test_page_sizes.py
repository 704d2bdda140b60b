"""Pages of memory of 16 and 64 KiB, as ARM machines have them: reads keep their units of 4 KiB, pages are let go of.

The page size that native code is told is not that of this machine. What it lets go of shows it all the same: the system
takes any number of its own pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from streamed_model import IDS, Open

from airrun.engine import Engine
from airrun.replay.memory import MappedFile
from airrun.weights import expert_cache
from airrun.weights import stream as stream_module
from airrun.weights.residency import PAGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the system which pages it holds")

PAGES = (1 << 14, 1 << 16)


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for module in (stream_module, expert_cache):
        monkeypatch.setattr(module, "mmap", SimpleNamespace(PAGESIZE=request.param))
    return int(request.param)


@pytest.mark.parametrize("mode", ["direct", "buffered", "mmap"])
def test_streamed_equals_resident(resident: Engine, open_streamed: Open, page: int, mode: str) -> None:
    engine = open_streamed(0.5, 1, load_mode=mode, threads=2)
    begins = {chunk.offset // PAGE * PAGE % page for chunk in engine.sizes.residency.chunks}
    assert len(begins) > 1, "chunks that begin within pages are what this is about"
    assert np.array_equal(engine.logits(IDS), resident.logits(IDS))


def test_mapped_weights_are_let_go_of(open_streamed: Open, page: int) -> None:
    """What stays is ahead of its use, or was mapped by the system around a page that was."""
    engine = open_streamed(panels=16, load_mode="mmap")
    path = engine._files.paths[0]
    engine.logits(IDS)
    assert 0 < mapped_nbytes(path) < path.stat().st_size / 2


def test_nothing_but_whole_pages_leaves_the_page_cache(open_streamed: Open, page: int) -> None:
    """The first page of the weights begins before them, with metadata, and goes with them; what is before it stays."""
    engine = open_streamed(panels=4, load_mode="buffered")
    path = engine._files.paths[0]
    first = min(chunk.offset for chunk in engine.sizes.residency.chunks) // PAGE * PAGE
    engine.logits(IDS)
    fill_page_cache(path)
    assert cached(path).all()
    engine.logits(IDS)
    held = cached(path)
    begin = first // page * page
    assert not held[begin // mmap.PAGESIZE : first // mmap.PAGESIZE].any()
    assert held[: begin // mmap.PAGESIZE].all()


def fill_page_cache(path: Path) -> None:
    """Page by page: several that are read at once may stay or go together only."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_RANDOM):
            os.posix_fadvise(file.fileno(), 0, 0, advice)
        while file.read(mmap.PAGESIZE):
            pass


def cached(path: Path) -> np.ndarray:
    """Of each page of a file, whether the page cache holds it: mincore(2)."""
    mapped = MappedFile(path)
    found = np.zeros(-(-path.stat().st_size // mmap.PAGESIZE), np.uint8)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert mincore(mapped.address, path.stat().st_size, found.ctypes.data) == 0, ctypes.get_errno()
    return (found & 1).astype(bool)


def mapped_nbytes(path: Path) -> int:
    """Bytes of a mapped file that are in this process."""
    inside, kib = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            kib += int(line.split()[1])
    return kib << 10
