"""One conversation: its tokens and their place in the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from airrun.errors import UsageError
from airrun.ledger import kv_nbytes
from airrun.replay.batch import Batch, BatchSequence
from airrun.replay.kv_cache import SequenceMemory

if TYPE_CHECKING:
    import numpy.typing as npt

    from airrun.engine import Engine
    from airrun.generation.leaders import Leaders

T = TypeVar("T")


class Session:
    """State of one conversation of an engine.

    Keys and values of tokens can be dropped from the end. The states of recurrent models cannot go back, and layers
    with windows not further than a batch: where more, but not all tokens are taken from such a session, what is left is
    evaluated again before anything is added to it.

    Attributes
    ----------
    ids
        Tokens of the context.
    n_ctx
        Most tokens it can hold.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids: list[int] = []
        self.n_ctx = engine.n_ctx
        self._memory = SequenceMemory(engine.pool, engine.states)
        self._lost = False  # the memory is not that after `ids`

    @property
    def _recurrent(self) -> bool:
        return bool(self.engine.states.specs)

    def keepable(self, n: int) -> int:
        """How many of the first `n` tokens `truncate` keeps without having to evaluate them again."""
        return n if not self._lost and (n == len(self.ids) or self._can_return(n)) else 0

    def _can_return(self, n: int) -> bool:
        """Whether the memory after the first `n` tokens is still there."""
        return n == 0 or (not self._recurrent and self._memory.intact(n))

    @property
    def n_past(self) -> int:
        return len(self.ids)

    def eval(self, ids: Sequence[int], *, all_logits: bool = False) -> npt.NDArray[np.float32]:
        """Append tokens and compute logits.

        Parameters
        ----------
        ids
            Token ids, at least one.
        all_logits
            Logits of every new token rather than of the last.

        Returns
        -------
        float32 [1 or len(ids), n_vocab]; with one row a view that the next evaluation overwrites.

        Raises
        ------
        UsageError
            An empty list, an id out of range, or more tokens than the context holds.

        Whatever is raised, also by Ctrl-C half-way, leaves the session as it was.
        """
        if len(ids) == 1 and not all_logits:
            return self._eval_one(ids[0])
        self._check(ids)
        n_past = len(self.ids)
        try:
            return self._eval_pieces(ids, all_logits)
        except BaseException:
            self.truncate(n_past)
            raise

    def verify(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """`eval` with all logits, for a token and guesses of what follows it, at most the engine's `max_outputs`.

        Returns
        -------
        float32 [len(ids), n_vocab], the caller's own.
        """
        n_past = len(self.ids)
        try:
            batch = Batch([self.extend(ids, range(len(ids)))], guesses=len(ids) - 1)
            return self.engine.run(batch).copy()
        except BaseException:
            self.truncate(n_past)
            raise

    def _eval_one(self, token: int) -> npt.NDArray[np.float32]:
        return self._append(token, self.engine.decode)

    def choose(self, token: int) -> int:
        """Append a token and return the most likely one after it, where the engine `chooses`; raises as `eval` does."""
        return self._append(token, self.engine.choose)

    def leaders(self, token: int, watched: npt.NDArray[np.int32]) -> Leaders:
        """Append a token and return the most likely ones after it, and the logits of the at most `MAX_WATCHED` tokens
        that are `watched`, where the engine `chooses`; raises as `eval` does. The next evaluation overwrites them."""
        return self._append(token, partial(self.engine.leaders, watched=watched))

    def _append(self, token: int, run: Callable[[SequenceMemory, int, int], T]) -> T:
        n_past = len(self.ids)
        if not 0 <= token < self.engine.n_vocab or n_past >= self.n_ctx:
            self._check([token])
        if self._lost:
            self._evaluate_again()
        if n_past >= self._memory.n_cells:
            self._memory.reserve(n_past + 1)
        try:
            result = run(self._memory, n_past, token)
        except BaseException:
            self._lost = self._recurrent and n_past > 0
            raise
        self.ids.append(token)  # not before: it is no part of the context if the evaluation was broken off
        return result

    def _eval_pieces(self, ids: Sequence[int], all_logits: bool) -> npt.NDArray[np.float32]:
        limit = self.engine.max_outputs if all_logits else self.engine.max_batch
        pieces = [ids[i : i + limit] for i in range(0, len(ids), limit)]
        rows: list[npt.NDArray[np.float32]] = []
        for i, piece in enumerate(pieces):
            last = [len(piece) - 1] if i == len(pieces) - 1 else []
            logits = self.engine.run(Batch([self.extend(piece, range(len(piece)) if all_logits else last)]))
            if all_logits:
                rows.append(logits.copy())
        return np.concatenate(rows) if all_logits else logits

    def extend(self, ids: Sequence[int], outputs: Sequence[int]) -> BatchSequence:
        """Take room for new tokens and describe them for a batch, which the engine must then run.

        They count as part of the session at once: where the run fails, `truncate` takes them back.
        """
        self._check(ids)
        if self._lost:
            self._evaluate_again()
        first = len(self.ids)
        self._memory.reserve(first + len(ids))
        self.ids.extend(ids)
        return BatchSequence(self._memory, first, ids, outputs)

    def _evaluate_again(self) -> None:
        """Bring the memory to where `ids` are."""
        ids, self.ids, self._lost = self.ids, [], False
        self._memory.keep(0)
        try:
            for i in range(0, len(ids), self.engine.max_batch):
                self.engine.run(Batch([self.extend(ids[i : i + self.engine.max_batch], [])]))
        except BaseException:
            self.ids, self._lost = ids, True
            raise

    def _check(self, ids: Sequence[int]) -> None:
        if not len(ids):
            raise UsageError("nothing to evaluate: the list of tokens is empty")
        if len(self.ids) + len(ids) > self.n_ctx:
            total = len(self.ids) + len(ids)
            raise UsageError(f"{total} tokens do not fit the context of {self.n_ctx}; raise it with -c/--ctx-size")
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= self.engine.n_vocab:
            bad = lowest if lowest < 0 else highest
            raise UsageError(f"token id {bad} is out of range: the vocabulary has {self.engine.n_vocab} entries")

    def truncate(self, n: int) -> None:
        """Keep the first `n` tokens."""
        if not 0 <= n <= len(self.ids):
            raise UsageError(f"cannot keep {n} of {len(self.ids)} tokens")
        if n < len(self.ids):
            self._lost = not self._can_return(n)
        del self.ids[n:]
        self._memory.keep(n)

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def save_state(self) -> tuple[dict[str, Any], list[memoryview]]:
        """The session's memory: a description, and the bytes of each block, layer by layer, and of each state."""
        if self._lost:
            self._evaluate_again()
        meta = {
            "n_blocks": len(self._memory.blocks),
            "written": self._memory.written,
            "block_nbytes": [layer.block_nbytes for layer in self.engine.pool.spec.layers],
            "state_nbytes": [state.nbytes for state in self.engine.states.specs],
            "layout": self.engine.pool.layout,
            "ids": list(self.ids),
        }
        return meta, [part.data for part in self._contents()]

    def load_state(self, meta: dict[str, Any], payload: memoryview) -> None:
        """Restore what `save_state` gave.

        Raises
        ------
        UsageError
            If it does not fit this engine; the session is then empty.
        """
        spec = self.engine.pool.spec
        ids = meta.get("ids")
        self.reset()
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids) or not ids:
            raise UsageError("the saved session has no tokens")
        self._check(ids)
        n_blocks, written = -(-len(ids) // spec.block_cells), meta.get("written")
        sizes = [layer.block_nbytes for layer in spec.layers]
        states = [state.nbytes for state in self.engine.states.specs]
        found = tuple(meta.get(name) for name in ("n_blocks", "block_nbytes", "state_nbytes", "layout"))
        if found != (n_blocks, sizes, states, self.engine.pool.layout):
            raise UsageError("the saved session belongs to another model, cache type or device")
        nbytes = kv_nbytes(spec, n_blocks, min(n_blocks, spec.ring_blocks)) + sum(states)
        if len(payload) != nbytes or type(written) is not int or written < len(ids):
            raise UsageError("the saved session is incomplete")
        self._memory.reserve(len(ids))
        self._memory.written = written
        data, at = np.frombuffer(payload, np.uint8), 0
        for layer, block in self._memory.parts():
            self.engine.pool.write(layer, block, data[at : at + sizes[layer]])
            at += sizes[layer]
        for i, nbytes in enumerate(states):
            self.engine.states.contents(i, self._memory.slot)[:] = data[at : at + nbytes]
            at += nbytes
        self.ids = list(ids)

    def _contents(self) -> list[npt.NDArray[np.uint8]]:
        """The memory of the session: its blocks, cache by cache, then its states."""
        pool, states, memory = self.engine.pool, self.engine.states, self._memory
        blocks = [pool.contents(layer, block) for layer, block in memory.parts()]
        return blocks + [states.contents(i, memory.slot) for i in range(len(states.specs)) if memory.slot >= 0]
