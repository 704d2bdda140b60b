"""One conversation: its tokens and their place in the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from airrun.batch import Batch, BatchSequence
from airrun.errors import UsageError
from airrun.kv_cache import BlockList

if TYPE_CHECKING:
    import numpy.typing as npt

    from airrun.engine import Engine


class Session:
    """State of one conversation of an engine.

    Attributes
    ----------
    ids
        Tokens whose keys and values are in the cache.
    n_ctx
        Most tokens it can hold.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids: list[int] = []
        self.n_ctx = engine.n_ctx
        self._blocks = BlockList(engine.pool)

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

    def _eval_one(self, token: int) -> npt.NDArray[np.float32]:
        n_past = len(self.ids)
        if not 0 <= token < self.engine.n_vocab or n_past >= self.n_ctx:
            self._check([token])
        if n_past >= self._blocks.n_cells:
            self._blocks.reserve(n_past + 1)
        logits = self.engine.decode(self._blocks, n_past, token)
        self.ids.append(token)  # not before: it is no part of the context if the evaluation was broken off
        return logits

    def choose(self, token: int) -> int:
        """Append a token and return the most likely one after it, where the engine `chooses`; raises as `eval` does."""
        n_past = len(self.ids)
        if not 0 <= token < self.engine.n_vocab or n_past >= self.n_ctx:
            self._check([token])
        if n_past >= self._blocks.n_cells:
            self._blocks.reserve(n_past + 1)
        chosen = self.engine.choose(self._blocks, n_past, token)
        self.ids.append(token)
        return chosen

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
        first = len(self.ids)
        self._blocks.reserve(first + len(ids))
        self.ids.extend(ids)
        return BatchSequence(self._blocks, first, ids, outputs)

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
        del self.ids[n:]
        self._blocks.keep(n)

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def save_state(self) -> tuple[dict[str, Any], list[memoryview]]:
        """The cache's contents: a description, and the bytes of each block, layer by layer."""
        spec = self.engine.pool.spec
        meta = {
            "n_blocks": len(self._blocks.blocks),
            "block_nbytes": [layer.block_nbytes for layer in spec.layers],
            "layout": self.engine.pool.layout,
            "ids": list(self.ids),
        }
        parts = [
            self.engine.pool.contents(layer, block).data
            for layer in range(len(spec.layers))
            for block in self._blocks.blocks
        ]
        return meta, parts

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
        n_blocks = -(-len(ids) // spec.block_cells)
        sizes = [layer.block_nbytes for layer in spec.layers]
        layout = self.engine.pool.layout
        if (meta.get("block_nbytes"), meta.get("n_blocks"), meta.get("layout")) != (sizes, n_blocks, layout):
            raise UsageError("the saved session belongs to another model, cache type or device")
        if len(payload) != n_blocks * sum(sizes):
            raise UsageError("the saved session is incomplete")
        self._blocks.reserve(len(ids))
        data, at = np.frombuffer(payload, np.uint8), 0
        for layer, nbytes in enumerate(sizes):
            for block in self._blocks.blocks:
                self.engine.pool.write(layer, block, data[at : at + nbytes])
                at += nbytes
        self.ids = list(ids)
