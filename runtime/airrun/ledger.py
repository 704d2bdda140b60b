"""Sizes: every byte a run takes beside its files, from the plan and the options alone.

The engine allocates what is computed here and `explain` prints it, so the two cannot disagree.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from airrun.errors import UsageError
from airrun.isa import select_level
from airrun.plan.schema import INPUTS, KvCache, Library, Plan, Weight

MAX_THREADS = 1024

_PAGE = 4096
_LINE = 64


@dataclass(frozen=True)
class InputArray:
    """One of `schema.INPUTS`: element type, shape, and place in the region of inputs."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
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
    panels
        Interleaved weights; `panel_offsets` has an entry per weight of the plan, -1 where it is read raw.
    arena, scratch, constants
        Activations of the largest batch, working memory of all workers, the plan's constants.
    inputs
        Arrays of `schema.INPUTS`, by name.
    logits
        Of one output row; a request for all logits takes this per row.
    kv_blocks, kv
        Blocks of the cache, and bytes over all layers; taken page by page as the context fills.
    """

    library: Library
    threads: int
    ctx_size: int
    parallel: int
    max_tokens: int
    panels: int
    panel_offsets: tuple[int, ...]
    arena: int
    scratch: int
    constants: int
    inputs: dict[str, InputArray]
    logits: int
    kv_blocks: int
    kv: int

    @property
    def inputs_nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(array.nbytes for array in self.inputs.values())


def sizes_of(
    plan: Plan,
    *,
    threads: int | None = None,
    ctx_size: int | None = None,
    parallel: int = 1,
    library: Library | None = None,
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

    Raises
    ------
    UsageError
        A number out of range.
    PlanError
        The plan has no native code for this processor.
    """
    if library is None:
        level = select_level([each.isa for each in plan.libraries])
        library = next(each for each in plan.libraries if each.isa == level)
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
    max_tokens = plan.programs[-1].max_tokens
    panels, offsets = _panels(plan.weights)
    blocks = parallel * -(-ctx_size // plan.kv.block_cells)
    return Sizes(
        library=library,
        threads=threads,
        ctx_size=ctx_size,
        parallel=parallel,
        max_tokens=max_tokens,
        panels=panels,
        panel_offsets=offsets,
        arena=plan.arena_nbytes * max_tokens,
        scratch=library.scratch_nbytes * threads,
        constants=plan.segments[plan.constants_segment].nbytes,
        inputs=_inputs(plan, max_tokens, parallel),
        logits=4 * plan.model.logits_stride,
        kv_blocks=blocks,
        kv=kv_nbytes(plan.kv, blocks),
    )


def kv_nbytes(spec: KvCache, n_blocks: int) -> int:
    """Bytes of a cache of `n_blocks` blocks, over all layers."""
    return n_blocks * sum(layer.block_nbytes for layer in spec.layers)


def processors() -> int:
    """Logical processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _panels(weights: Sequence[Weight]) -> tuple[int, tuple[int, ...]]:
    at, offsets = 0, []
    for weight in weights:
        panels = weight.layout == "panels"
        offsets.append(at if panels else -1)
        at += -(-weight.nbytes // _PAGE) * _PAGE if panels else 0
    return at, tuple(offsets)


def _inputs(plan: Plan, n: int, max_sequences: int) -> dict[str, InputArray]:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_ids": ("<i4", (n,)),
        "cells": ("<i4", (n,)),
        "sequences": ("<i4", (n,)),
        "output_rows": ("<i4", (n,)),
        "rope": ("<f4", (n, 2, plan.rope.n_pairs)),
        "block_table": ("<i4", (max_sequences, plan.kv.max_blocks)),
    }
    arrays, at = {}, 0
    for name in INPUTS:
        dtype, shape = shapes[name]
        nbytes = -(-math.prod(shape) * 4 // _LINE) * _LINE
        arrays[name] = InputArray(dtype, shape, at, nbytes)
        at += nbytes
    return arrays
