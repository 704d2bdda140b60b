"""One step's input: tokens of one or several sequences, and which of their logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from airrun.records import record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from airrun.replay.kv_cache import SequenceMemory

    Positions = npt.NDArray[np.int64]
    Embeddings = npt.NDArray[np.float32]


@record(frozen=False)
class BatchSequence:
    """What one sequence adds to a batch.

    Attributes
    ----------
    memory
        Its place in the KV cache and among the states, with room for the new cells.
    first_cell
        Cells it already has: the first new token goes there.
    token_ids
        New tokens, or None where `embeddings` float32 [n, n_embd] stand in for them.
    positions
        int64 [n_axes, n]; by default the cell numbers on every axis.
    outputs
        Indices into the new tokens whose logits are wanted.
    """

    memory: SequenceMemory
    first_cell: int
    token_ids: Sequence[int] | None
    outputs: Sequence[int] = ()
    embeddings: Embeddings | None = None
    positions: Positions | None = None

    @property
    def n(self) -> int:
        if self.token_ids is not None:
            return len(self.token_ids)
        assert self.embeddings is not None
        return len(self.embeddings)


@record(frozen=False)
class Batch:
    """Sequences evaluated together, in order; tokens of a sequence are neighbours.

    Attributes
    ----------
    guesses
        How many of the tokens are only guessed: the work counts as that for the others.
    """

    sequences: list[BatchSequence] = field(default_factory=list)
    guesses: int = 0

    @property
    def n_tokens(self) -> int:
        return sum(s.n for s in self.sequences)

    @property
    def n_outputs(self) -> int:
        return sum(len(s.outputs) for s in self.sequences)
