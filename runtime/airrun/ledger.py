"""Sizes: every byte a run takes beside its files, from the plan and the options alone.

The engine allocates what is computed here and `explain` prints it, so the two cannot disagree. A memory budget is bound
here too: what a run needs in any case comes first, then the largest batch that leaves most of the rest to the weights,
then as many of the weights as fit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from airrun.errors import BudgetError, UsageError
from airrun.plan.schema import INPUTS, KvCache, Library, Plan
from airrun.records import record
from airrun.requirements import choose_library
from airrun.weights.residency import Residency, keep, matrix_span_nbytes, nothing_kept, resident

MAX_THREADS = 1024

_LINE = 64

_INTERPRETER_NBYTES = 36 << 20
_NBYTES_PER_TOKEN = 300
"""What Python, numpy and this package take, and a tokenizer per entry of its vocabulary; measured, see FINDINGS.md."""

_NBYTES_PER_CHUNK = 1024
"""Of the tables that describe a streamed chunk."""

_NBYTES_PER_EXPERT = 64
"""Of the tables that describe a slot of the cache of experts."""

_OUTPUTS, _STREAMED_OUTPUTS = 128, 8
"""Most rows of logits of one step; where weights stream there is less room, but enough to verify a draft."""

_SMALLEST_BATCH = 8
"""Tokens; a prompt takes a pass over the weights per batch."""

_BATCH_SHARE = 4
"""The activations of a batch take at most one part in so many of what a budget leaves to them and the weights."""

_FREE_SHARE = 0.9
"""Of the memory that is available, what a run without a budget takes at most before it streams weights instead."""


@record
class InputArray:
    """One of `schema.INPUTS`: element type, shape, and place in the region of inputs."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@record
class Sizes:
    """What a run allocates, in bytes unless it says otherwise.

    Attributes
    ----------
    library
        The native code that runs.
    threads, ctx_size, parallel
        Workers, tokens of a session, sessions that can be full at once.
    max_tokens
        Largest batch.
    max_outputs
        Most rows of logits of one step.
    budget
        Bytes that the whole process may take; None where everything fits what is available.
    residency
        What is kept of the weights.
    interpreter
        Python, its libraries and the tokenizer: an estimate.
    pinned, rows
        Tensors that are always in memory, and rows of those that are read row by row.
    experts
        Matrices of experts that are not kept, and buffers to read them into.
    tables
        What describes the chunks that are streamed.
    arena, scratch, constants
        Activations of the largest batch, working memory of all workers, the plan's constants.
    panels
        Room for a panel of each worker, where weights are streamed.
    inputs
        Arrays of `schema.INPUTS`, by name.
    logits
        Of one output row.
    kv_blocks, ring_blocks
        Blocks of the cache, and of the part of it that layers with windows go round in.
    kv, windows
        Bytes of the cache over all layers, taken page by page as the context fills; and of that part.
    state_slots, states
        Sequences that states are kept of, and bytes of all their states: one more than can be full at once, so that
        logits of another text can be had beside them.
    """

    library: Library
    threads: int
    ctx_size: int
    parallel: int
    max_tokens: int
    max_outputs: int
    budget: int | None
    residency: Residency
    interpreter: int
    pinned: int
    rows: int
    experts: int
    tables: int
    arena: int
    scratch: int
    panels: int
    constants: int
    inputs: dict[str, InputArray]
    logits: int
    kv_blocks: int
    ring_blocks: int
    kv: int
    windows: int
    state_slots: int
    states: int

    @property
    def inputs_nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(array.nbytes for array in self.inputs.values())

    @property
    def entries(self) -> dict[str, int]:
        """Everything by what it is for."""
        threads = f"{self.threads} worker{'s' if self.threads > 1 else ''}"
        found = {
            "interpreter and tokenizer": self.interpreter,
            "weights kept in panels": self.residency.kept_nbytes,
            f"cache of {self.residency.expert_slots} matrices of experts": self.experts,
            "buffers of streamed weights": self.residency.ring_nbytes + self.panels + self.tables,
            "tensors always in memory": self.pinned,
            "rows of embeddings": self.rows,
            f"KV cache, {self.ctx_size} tokens": self.kv - self.windows,
            "KV cache of layers with windows": self.windows,
            f"states of {self.state_slots} sequences": self.states,
            f"activations, {self.max_tokens} tokens": self.arena,
            f"scratch, {threads}": self.scratch,
            "inputs": self.inputs_nbytes,
            "constants": self.constants,
            "logits": self.logits * (self.max_outputs if self.residency.streams else self.parallel),
        }
        return {name: nbytes for name, nbytes in found.items() if nbytes}

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return sum(self.entries.values())


def sizes_of(
    plan: Plan,
    *,
    threads: int | None = None,
    ctx_size: int | None = None,
    parallel: int = 1,
    library: Library | None = None,
    ram: int | None = None,
) -> Sizes:
    """Sizes of a run of a plan on this machine.

    Parameters
    ----------
    threads
        Workers; by default what the plan was built for, at most this machine's processors.
    ctx_size
        Most tokens of a session; by default the plan's.
    parallel
        Sessions that can be full at the same time.
    library
        One of the plan's libraries; by default the best that this processor runs.
    ram
        Bytes that the whole process may take; by default the plan's budget, else what is available now.

    Raises
    ------
    UsageError
        A number out of range.
    PlanError
        The plan has no native code for this processor.
    BudgetError
        The budget is too small even if no weight is kept; names the smallest that works.
    """
    if library is None:
        library = choose_library(plan)
    cores = processors()
    threads = min(plan.choice.threads or cores, cores) if threads is None else threads
    ctx_size = plan.choice.ctx_size if ctx_size is None else ctx_size
    most = plan.kv.max_blocks * plan.kv.block_cells
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads: must be 1 to {MAX_THREADS}")
    if not 1 <= ctx_size <= most:
        raise UsageError(f"context of {ctx_size} tokens: this plan allows 1 to {most}")
    if parallel < 1:
        raise UsageError(f"{parallel} parallel sessions: must be 1 or more")
    run = _Run(plan, library, threads, ctx_size, parallel)
    whole = run.sizes(plan.programs[-1].max_tokens, resident(plan), None)
    budget = ram or plan.choice.ram_nbytes or _available(whole)
    return whole if budget is None or whole.total <= budget else run.within(budget)


def _available(whole: Sizes) -> int | None:
    """The budget where none was given: None if everything fits what is free."""
    from airrun.ram import available_ram

    available = available_ram()
    # a context may never fill, so that its cache alone is no reason to stream
    return None if not available or whole.total - whole.kv <= available else int(_FREE_SHARE * available)


@record
class _Run:
    """A plan and the numbers of a run that are settled before its budget is."""

    plan: Plan
    library: Library
    threads: int
    ctx_size: int
    parallel: int

    def sizes(self, max_tokens: int, residency: Residency, budget: int | None) -> Sizes:
        plan, streams = self.plan, residency.streams
        blocks = self.parallel * -(-self.ctx_size // plan.kv.block_cells)
        # of another text, while all sessions are full
        ring = (self.parallel + 1) * min(plan.kv.ring_blocks, -(-self.ctx_size // plan.kv.block_cells))
        slots = self.parallel + 1 if plan.states else 0
        panel = max((weight.panel_nbytes for weight in plan.weights), default=0)
        return Sizes(
            library=self.library,
            threads=self.threads,
            ctx_size=self.ctx_size,
            parallel=self.parallel,
            max_tokens=max_tokens,
            max_outputs=min(max_tokens, max(self.parallel, _STREAMED_OUTPUTS) if streams else _OUTPUTS),
            budget=budget,
            residency=residency,
            interpreter=interpreter_nbytes(plan),
            pinned=sum(_lines(t.nbytes) for t in plan.tensors if t.access == "pinned"),
            rows=sum(_lines(row_nbytes(plan, i) * max_tokens) for i in gathered(plan)),
            experts=residency.expert_slots * (residency.expert_slot_nbytes + _NBYTES_PER_EXPERT)
            + (matrix_span_nbytes(plan) * plan.stream.readers if residency.expert_slots else 0),
            tables=_NBYTES_PER_CHUNK * len(plan.keep_order) if streams else 0,
            arena=plan.arena_nbytes * max_tokens,
            scratch=self.library.scratch_nbytes * self.threads,
            panels=_lines(panel) * self.threads if streams else 0,
            constants=plan.segments[plan.constants_segment].nbytes,
            inputs=_inputs(plan, max_tokens, self.parallel),
            logits=4 * plan.model.logits_stride,
            kv_blocks=blocks,
            ring_blocks=ring,
            kv=kv_nbytes(plan.kv, blocks, ring),
            windows=kv_nbytes(plan.kv, 0, ring),
            state_slots=slots,
            states=slots * sum(state.nbytes for state in plan.states),
        )

    def within(self, budget: int) -> Sizes:
        """The largest batch and the most weights that a budget has room for."""
        plan = self.plan
        bare = nothing_kept(plan, plan.stream.slots)
        for max_tokens in self._batches():
            room = budget - self.sizes(max_tokens, bare, budget).total
            if room < 0 or (max_tokens > _SMALLEST_BATCH and plan.arena_nbytes * max_tokens * _BATCH_SHARE > room):
                continue
            return self.sizes(max_tokens, keep(bare, room), budget)
        smallest = self.sizes(max_tokens, bare, budget).total
        raise BudgetError(
            f"{budget >> 20} MiB are not enough for a context of {self.ctx_size} tokens on {self.threads} threads: "
            f"the smallest budget that works is {-(-smallest // (1 << 20))} MiB"
        )

    def _batches(self) -> list[int]:
        """Batch sizes to try, largest first."""
        n = self.plan.programs[-1].max_tokens
        halves = [n >> i for i in range(n.bit_length()) if n >> i >= _SMALLEST_BATCH]
        return halves or [n]


def gathered(plan: Plan) -> Iterator[int]:
    """Indices of the tensors that are read row by row."""
    return (i for i, tensor in enumerate(plan.tensors) if tensor.access == "row_gather")


def row_nbytes(plan: Plan, tensor: int) -> int:
    """Bytes of a row of a tensor."""
    found = plan.tensors[tensor]
    return found.nbytes // math.prod(found.shape[:-1])


def interpreter_nbytes(plan: Plan) -> int:
    """Resident bytes of a process that runs a plan, beside everything it allocates for that."""
    return _INTERPRETER_NBYTES + _NBYTES_PER_TOKEN * plan.model.n_vocab


def kv_nbytes(spec: KvCache, n_blocks: int, n_ring_blocks: int) -> int:
    """Bytes of a cache of `n_blocks` blocks, over all layers; those with windows have `n_ring_blocks`."""
    return sum((n_ring_blocks if layer.ring else n_blocks) * layer.block_nbytes for layer in spec.layers)


def table_row(spec: KvCache) -> int:
    """Entries of a row of the block table."""
    return spec.max_blocks + spec.ring_blocks


def processors() -> int:
    """Logical processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE


def _inputs(plan: Plan, n: int, max_sequences: int) -> dict[str, InputArray]:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_ids": ("<i4", (n,)),
        "cells": ("<i4", (n,)),
        "sequences": ("<i4", (n,)),
        "output_rows": ("<i4", (n,)),
        "rope": ("<f4", (n, 2, plan.rope.n_pairs)),
        "block_table": ("<i4", (max_sequences, table_row(plan.kv))),
        "state_slots": ("<i4", (n,)),
    }
    arrays, at = {}, 0
    for name in INPUTS:
        dtype, shape = shapes[name]
        nbytes = _lines(math.prod(shape) * 4)
        arrays[name] = InputArray(dtype, shape, at, nbytes)
        at += nbytes
    return arrays
