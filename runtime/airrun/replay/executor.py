"""Replay: fills the inputs of a step and runs the program that fits it."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import PlanError
from airrun.ledger import Sizes, table_row
from airrun.plan.container import LoadedPlan
from airrun.plan.schema import INPUTS, Plan
from airrun.replay.batch import Batch
from airrun.replay.bind import Binder, BoundProgram
from airrun.replay.kv_cache import BlockPool, SequenceMemory, StatePool
from airrun.replay.memory import Region
from airrun.replay.native import CALL, Library, Team
from airrun.replay.streamed import StreamedReplay
from airrun.weights.expert_cache import ExpertCache
from airrun.weights.files import LoadMode, WeightFiles
from airrun.weights.loading import Loading
from airrun.weights.resident import Weights
from airrun.weights.stream import Ring, Stream

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]


class Executor:
    """A plan bound to memory. Not thread-safe: one batch at a time.

    Parameters
    ----------
    loaded
        The plan.
    library
        Its native code for this CPU.
    sizes
        How much of everything to allocate, and what is kept of the weights.
    load_mode
        How streamed weights are read.

    Attributes
    ----------
    streamed
        Runs programs whose weights are not all kept; None where all are.
    """

    def __init__(
        self,
        loaded: LoadedPlan,
        library: Library,
        sizes: Sizes,
        team: Team,
        weights: Weights,
        files: WeightFiles,
        memory: tuple[BlockPool, StatePool],
        loading: Loading,
        load_mode: LoadMode,
    ) -> None:
        plan = loaded.plan
        # The native calls hold bare addresses: what they point into must live as long as they do.
        self.plan, self._team, self._memory, self._weights, self._library = plan, team, memory, weights, library
        self._files = files
        self._loading: Loading | None = loading
        self.max_tokens, self.max_sequences = sizes.max_tokens, sizes.parallel
        n = self.max_tokens
        self._arena = Region(sizes.arena)
        self._scratch = Region(sizes.scratch)
        segment = loaded.segment(plan.constants_segment)
        self._constants = Region(sizes.constants)
        self._constants.bytes[: len(segment)] = np.frombuffer(segment, np.uint8)
        self._inputs = _Inputs(plan, self._constants, sizes)
        self._logits_nbytes = sizes.logits
        self._logits = Region(sizes.logits)
        self._max_outputs = 1
        self._row = self._logits_view(1)
        addresses = {
            "tensor": weights.tensor_addresses,
            "experts": weights.expert_tables,
            "buffer": [self._arena.address + b.offset * n for b in plan.buffers],
            "constant": [self._constants.address + c.offset for c in plan.constants],
            "input": self._inputs.addresses,
            "kv": memory[0].addresses,
            "state": memory[1].addresses,
            "logits": [self._logits.address],
            "scratch": [self._scratch.address],
        }
        self.experts = self._open_experts(sizes, load_mode)
        row_numbers = self._inputs.row_numbers
        self._binder = Binder(plan, library, weights, sizes.residency, addresses, row_numbers, self.experts)
        self._bound: dict[int, BoundProgram] = {}
        hidden = plan.buffers[plan.model.hidden]
        rows = self._arena.array("<f4", (n, hidden.nbytes // 4), hidden.offset * n)
        self._hidden = rows[:, : plan.model.n_embd]
        self.streamed = self._open_stream(sizes, load_mode)
        self.work: dict[str, float] = {
            "prefill_tokens": 0,
            "decode_tokens": 0,
            "prefill_seconds": 0.0,
            "decode_seconds": 0.0,
            "native_seconds": 0.0,
        }

    def _open_experts(self, sizes: Sizes, mode: LoadMode) -> ExpertCache | None:
        """The cache of experts that are not kept."""
        if not sizes.residency.expert_slots:
            return None
        tables, residency = self._weights.expert_tables, sizes.residency
        return ExpertCache(self.plan, self._library, self._files, residency, tables, drop_cache=mode != "direct")

    def _open_stream(self, sizes: Sizes, mode: LoadMode) -> StreamedReplay | None:
        """The stream of what is not kept. All programs use it in the same order, of which the plan was verified."""
        residency = sizes.residency
        if not residency.streams or not self._program(0).streamed:
            return None
        numbers = self._program(0).streamed
        source = Stream(
            self._library,
            self._files,
            [residency.chunks[number] for number in numbers],
            Ring(residency.n_slots, residency.slot_nbytes),
            mode=mode,
            readers=self.plan.stream.readers,
            tail=self._program(0).tail,
        )
        return StreamedReplay(self.plan, self._team, source, self._files)

    def decode(self, memory: SequenceMemory, cell: int, token: int) -> Logits:
        """`run` for one token of one sequence, whose logits are wanted.

        Between two tokens the weights have passed through all caches, so that every line of code and data that is
        touched here comes from memory: what `run` does takes ten times as long as it would in a loop of its own.
        """
        started = perf_counter()
        program = self._program(0)
        if program.rows != (1, 1):
            program.set_rows(1, 1)
        self._inputs.write_one(memory, cell, token)
        filled = perf_counter()
        self._replay(program, 0, program.n_calls)
        ended = perf_counter()
        work = self.work
        work["decode_tokens"] += 1
        work["decode_seconds"] += ended - started
        work["native_seconds"] += ended - filled
        return self._row

    def run(self, batch: Batch) -> Logits:
        """Evaluate a batch of at most `max_tokens` tokens and `max_sequences` sequences.

        Returns
        -------
        float32 [n_outputs, n_vocab], a view that the next call overwrites.
        """
        if self._loading is not None:
            self._finish_loading(self._loading)
        started = perf_counter()
        n_tokens, n_outputs = batch.n_tokens, batch.n_outputs
        assert 0 < n_tokens <= self.max_tokens and len(batch.sequences) <= self.max_sequences
        self._room_for_outputs(n_outputs)
        program = self._program(next(i for i, p in enumerate(self.plan.programs) if n_tokens <= p.max_tokens))
        embedded = self._fill(batch)
        program.set_rows(n_tokens, n_outputs)
        first = program.first_after_embed if embedded else 0
        last = len(program.calls) if n_outputs else program.first_head
        filled = perf_counter()
        self._replay(program, first, last)
        ended = perf_counter()
        n_counted = n_tokens - batch.guesses
        kind = "decode" if n_counted <= len(batch.sequences) else "prefill"
        self.work[f"{kind}_tokens"] += n_counted
        if batch.guesses:
            self.work["drafted"] = self.work.get("drafted", 0) + batch.guesses
            self.work["draft_passes"] = self.work.get("draft_passes", 0) + 1
        self.work[f"{kind}_seconds"] += ended - started
        self.work["native_seconds"] += ended - filled
        return self._logits_view(n_outputs)

    def _replay(self, program: BoundProgram, first: int, last: int) -> None:
        """Run calls [first, last) of a program.

        Raises
        ------
        WeightFileError
            A weight file cannot be read, or was changed: nothing that was computed may be used.
        """
        if self._loading is not None:
            self._finish_loading(self._loading)
        try:
            if self.experts is not None:
                self.experts.begin()
            if self.streamed is None:
                self._team.run(program.address + first * CALL.size, last - first)
            else:
                self.streamed.run(program, first, last)
            if self.experts is not None:
                self.experts.check()
                self._files.check()
        except BaseException:
            if self.experts is not None:
                self.experts.forget()
            raise
        self._weights.check_rows()

    def _finish_loading(self, loading: Loading) -> None:
        loading.finish(self._team)
        self._loading = None

    def _program(self, index: int) -> BoundProgram:
        """A program of the plan, bound when it is used first: few runs need all, and a first token needs one."""
        found = self._bound.get(index)
        if found is None:
            found = self._bound[index] = self._binder.bind(self.plan.programs[index])
            self._team.adopt(found.calls)
        return found

    def count_accepted(self) -> None:
        """Count a guess that was right as a decoded token."""
        self.work["accepted"] = self.work.get("accepted", 0) + 1
        self.work["decode_tokens"] += 1

    def metrics(self) -> dict[str, float]:
        """Seconds and tokens of what was done, and what was read of streamed weights."""
        running = self.work["prefill_seconds"] + self.work["decode_seconds"]
        found = dict(self.work)
        if self.experts is not None:
            found |= self.experts.metrics(running, self._team.n_workers)
        if self.streamed is not None:
            found |= self.streamed.metrics(running)
        return found

    def close(self) -> None:
        """End the threads that read weights."""
        if self.experts is not None:
            self.experts.close()
        if self.streamed is not None:
            self.streamed.source.close()

    def _logits_view(self, n: int) -> Logits:
        model = self.plan.model
        rows = self._logits.array("<f4", (n, model.logits_stride))
        return rows[:, : model.n_vocab]

    def _fill(self, batch: Batch) -> bool:
        """Write the inputs; true if embeddings took the place of token ids."""
        embedded = [s.embeddings is not None for s in batch.sequences]
        if any(embedded) and not all(embedded):
            raise PlanError("a batch holds either token ids or embeddings")
        at = out = 0
        for row, sequence in enumerate(batch.sequences):
            n = sequence.n
            self._inputs.write(row, at, n, sequence.first_cell, sequence.positions)
            self._inputs.write_memory(row, at, n, sequence.first_cell, sequence.memory)
            if sequence.embeddings is not None:
                self._hidden[at : at + n] = sequence.embeddings
            else:
                self._inputs.token_ids[at : at + n] = sequence.token_ids
            for index in sequence.outputs:
                self._inputs.output_rows[out] = at + index
                out += 1
            at += n
        return any(embedded)

    def _room_for_outputs(self, n: int) -> None:
        if n <= self._max_outputs:
            return
        self._max_outputs = n
        self._logits = Region(self._logits_nbytes * n)
        self._binder.move_logits(self._logits.address)
        for program in self._bound.values():
            program.move_logits(self._logits.address)
        self._row = self._logits_view(1)


_OF_A_TOKEN = ("token_ids", "cells", "sequences", "output_rows", "state_slots")
"""Inputs with one number per token."""

_AHEAD = 64
"""Positions whose rotary angles are computed together while single tokens are decoded."""


class _Inputs:
    """The arrays of `schema.INPUTS`, in one region."""

    def __init__(self, plan: Plan, constants: Region, sizes: Sizes) -> None:
        rope = plan.rope
        self._region = Region(sizes.inputs_nbytes)
        self._numbers = Region(4 * sizes.max_tokens)
        self._numbers.array("<i4", (sizes.max_tokens,))[:] = np.arange(sizes.max_tokens)
        self.row_numbers = self._numbers.address
        self.addresses = [self._region.address + sizes.inputs[name].offset for name in INPUTS]
        arrays = {name: self._region.array(i.dtype, i.shape, i.offset) for name, i in sizes.inputs.items()}
        self.token_ids, self.cells, self.sequences = arrays["token_ids"], arrays["cells"], arrays["sequences"]
        self.output_rows, self.rope, self.block_table = arrays["output_rows"], arrays["rope"], arrays["block_table"]
        self.state_slots = arrays["state_slots"]
        frequency, axis, magnitude = (plan.constants[i] for i in (rope.inverse_frequency, rope.axis, rope.magnitude))
        self._frequency = constants.array("<f8", frequency.shape, frequency.offset)
        self._axis = constants.array("<i4", axis.shape, axis.offset)
        self._one_axis = rope.n_axes == 1
        self._magnitude = constants.array("<f8", magnitude.shape, magnitude.offset)
        self._scaled = bool((self._magnitude != 1.0).any())
        # the first entry of each once more, in the form that is cheapest to write to, and the angles of positions ahead
        memory = memoryview(self._region.memory)

        def words(name: str, n: int) -> memoryview:
            offset = sizes.inputs[name].offset
            return memory[offset : offset + 4 * n].cast("i")

        self._one = [words(name, 1) for name in _OF_A_TOKEN]
        self._one_table = words("block_table", table_row(plan.kv))
        self._one_rope = words("rope", 2 * rope.n_pairs)
        self._ahead, self._ahead_from = self._one_rope, -_AHEAD

    def write_one(self, memory: SequenceMemory, cell: int, token: int) -> None:
        """`write` for a batch of one token, at position `cell`."""
        token_id, its_cell, sequence, output_row, state_slot = self._one
        token_id[0], its_cell[0], sequence[0], output_row[0] = token, cell, 0, 0
        state_slot[0] = memory.slot if cell else -1 - memory.slot
        self._one_table[:] = memory.row
        ahead = cell - self._ahead_from
        if not 0 <= ahead < _AHEAD:
            rows = np.empty((_AHEAD, *self.rope.shape[1:]), np.float32)
            self._rotate(np.arange(cell, cell + _AHEAD)[:, None], rows)
            self._ahead, self._ahead_from, ahead = rows.reshape(-1).view(np.int32).data, cell, 0
        n = len(self._one_rope)
        self._one_rope[:] = self._ahead[ahead * n : ahead * n + n]

    def write(self, row: int, at: int, n: int, first_cell: int, positions: npt.NDArray[np.int64] | None) -> None:
        """Describe `n` tokens from index `at` on: row `row` of the block table, cells from `first_cell` on."""
        cells = np.arange(first_cell, first_cell + n)
        self.cells[at : at + n] = cells
        self.sequences[at : at + n] = row
        if positions is None or self._one_axis:
            place = (cells if positions is None else positions[0])[:, None]
        else:
            place = positions[self._axis].T
        self._rotate(place, self.rope[at : at + n])

    def write_memory(self, row: int, at: int, n: int, first_cell: int, memory: SequenceMemory) -> None:
        """Say where the cache and the states of these tokens are."""
        self.block_table[row] = memory.table
        self.state_slots[at : at + n] = memory.slot
        if first_cell == 0:
            self.state_slots[at] = -1 - memory.slot

    def _rotate(self, place: npt.NDArray[np.int64], rope: npt.NDArray[np.float32]) -> None:
        """Cosines and sines, float32 [n, 2, pairs], of positions [n, pairs or 1]."""
        angles = place * self._frequency
        np.cos(angles, out=rope[:, 0], casting="same_kind")
        np.sin(angles, out=rope[:, 1], casting="same_kind")
        if self._scaled:
            rope *= self._magnitude
