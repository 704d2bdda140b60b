"""Loading: what goes on in the background between the start of an engine and its first step."""

from __future__ import annotations

import time

from airrun.replay.native import Team
from airrun.weights.files import LoadMode, WeightFiles
from airrun.weights.resident import Weights


class Loading:
    """Fills the memory of kept weights on a team's threads, which do nothing else until `finish`.

    Attributes
    ----------
    seconds
        How long it took; 0 as long as it is not done.
    nbytes
        Bytes that were read into buffers; 0 where files were mapped.
    """

    def __init__(self, weights: Weights, files: WeightFiles, team: Team, mode: LoadMode, *, keep_maps: bool) -> None:
        self.seconds, self.nbytes = 0.0, 0
        self._started = time.perf_counter()
        self._files, self._keep_maps = files, keep_maps
        calls, self._stream = weights.loading(mode)
        if self._stream is not None:
            team.use_stream(self._stream.address, 0)
            self._stream.start()
        team.start(calls, self._done)

    def finish(self, team: Team) -> None:
        """Wait for the end.

        Raises
        ------
        WeightFileError
            A file could not be read.
        """
        team.wait()
        if self._stream is not None:
            self._stream.check()
        self._files.check()

    def _done(self) -> None:
        if self._stream is not None:
            self.nbytes = int(self._stream.counters["nbytes"])
            self._stream.close()
        if not self._keep_maps:
            self._files.unmap()
        self.seconds = time.perf_counter() - self._started
