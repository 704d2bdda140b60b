"""Progress of a build on stderr: a bar in a terminal, a line a phase elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aircompile.pipeline import Report

if TYPE_CHECKING:
    from rich.progress import Progress


class LineReport(Report):
    """A line a phase, for logs."""

    def phase(self, name: str) -> None:
        print(f"aircompile: {name}", file=sys.stderr, flush=True)


class BarReport(Report):
    """One bar that names the phase and what it works on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._phase = ""

    def phase(self, name: str) -> None:
        self._phase = name
        self._progress.reset(self._task, total=None, description=name)

    def step(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total, description=f"{self._phase}: {what}")


@contextmanager
def reporting(quiet: bool) -> Iterator[Report]:
    """The report that suits stderr; the bar is gone when the build ends."""
    if quiet:
        yield Report()
        return
    if not sys.stderr.isatty():
        yield LineReport()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield LineReport()
        return
    columns = (TimeElapsedColumn(), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield BarReport(progress)
