"""Replay of a program whose weights are streamed: a pass over the stream, layer by layer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

from airrun.errors import WeightFileError
from airrun.ledger import gathered
from airrun.plan.schema import Plan
from airrun.replay.bind import BoundProgram
from airrun.replay.native import CALL, Team
from airrun.weights import stream
from airrun.weights.files import WeightFiles

Progress = Callable[[int, int], None]
"""Called with how many of a pass's sections (layers, and what is around them) are done, and how many there are."""


class StreamedReplay:
    """Runs programs on a team that takes weights from a stream.

    Attributes
    ----------
    source
        The stream.
    passes
        Passes that were used to their end.
    progress
        Called as layers are done.
    """

    def __init__(self, plan: Plan, team: Team, source: stream.Stream, files: WeightFiles) -> None:
        self.source, self.passes = source, 0
        self.progress: Progress | None = None
        self._plan, self._team, self._files = plan, team, files

    def run(self, program: BoundProgram, first: int, last: int) -> None:
        """Run calls [first, last) of a program; layer by layer, so that a slow pass can be watched and interrupted.

        Raises
        ------
        WeightFileError
            A weight file cannot be read, or was changed: nothing that was computed may be used.
        """
        source, team = self.source, self._team
        short = last <= program.first_head
        source.begin_pass(short=short)
        try:
            team.use_stream(source.address, source.pass_number)
            bounds = [first, *(at for at in program.sections if first < at < last), last]
            for i, (begin, end) in enumerate(pairwise(bounds), 1):
                run = self._run_bounded if begin < program.first_after_embed else team.run
                run(program.address + begin * CALL.size, end - begin)
                source.check()
                if self.progress is not None:
                    self.progress(i, len(bounds) - 1)
            if short:
                team.skip_tail()
                source.check()
            self._files.check()
        except BaseException:
            source.abandon_pass()
            raise
        source.end_pass()
        self.passes += 1

    def _run_bounded(self, address: int, n_calls: int) -> None:
        """Run calls that read rows themselves: no reader does that for them, whom they could wait for only so long."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self._team.run(address, n_calls)
            except BaseException as error:  # handed over to the thread that waits
                errors.append(error)

        running = threading.Thread(target=run, daemon=True)
        running.start()
        running.join(stream.TIMEOUT_S)
        if running.is_alive():
            table = self._plan.tensors[next(gathered(self._plan))]
            path = self._files.paths[table.file]
            raise WeightFileError(f"{path}: the disk did not answer within {stream.TIMEOUT_S} s for rows of a table")
        if errors:
            raise errors[0]

    def metrics(self, running: float) -> dict[str, float]:
        """What was read, in `running` seconds, and how long workers waited for it."""
        read = self.source.counters
        stalled = read["stalled_seconds"] / self._team.n_workers
        return {
            "streamed_passes": self.passes,
            "streamed_bytes": read["nbytes"],
            "streamed_bytes_per_second": read["nbytes"] / running if running else 0.0,
            "stalled_seconds": stalled,
            "stalled_share": stalled / running if running else 0.0,
        }
