"""Binding: a plan's steps become arrays of native calls with real addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from airrun.native import CALL, Calls, Library
from airrun.plan.schema import Operand, Plan, Program

Addresses = Mapping[str, Sequence[int]]
"""Address of every entry of every operand space."""


@dataclass
class BoundProgram:
    """The calls of one program, ready to run.

    Calls [0, first_after_embed) embed token ids; calls [first_head, end) compute logits.
    """

    name: str
    max_tokens: int
    calls: Calls
    first_after_embed: int
    first_head: int
    tasks: npt.NDArray[np.int64]
    tokens_per_task: npt.NDArray[np.int64]
    output_rows: npt.NDArray[np.bool_]
    rows: tuple[int, int] = (-1, -1)

    def set_rows(self, n_tokens: int, n_outputs: int) -> None:
        """Set row and task counts for a batch; free when they are as before."""
        if self.rows == (n_tokens, n_outputs):
            return
        rows = np.where(self.output_rows, n_outputs, n_tokens)
        groups = np.where(self.tokens_per_task > 0, -(-rows // np.maximum(self.tokens_per_task, 1)), rows > 0)
        self.calls["n_rows"] = rows
        self.calls["n_tasks"] = self.tasks * groups
        self.rows = (n_tokens, n_outputs)

    def repoint(self, pointer_places: Sequence[tuple[int, int, int]], base: int) -> None:
        """Give pointers new addresses: places are (call, pointer, offset from base)."""
        for call, pointer, offset in pointer_places:
            self.calls[call]["pointers"][pointer] = base + offset


def bind_program(plan: Plan, program: Program, library: Library, addresses: Addresses) -> BoundProgram:
    """Resolve every operand of a program; `addresses` has one entry per space."""
    steps = program.steps
    calls = np.zeros(len(steps), CALL)
    kernels = [0] * len(plan.kernels)
    for call, step in zip(calls, steps, strict=True):
        if not kernels[step.kernel]:
            kernels[step.kernel] = library.address(plan.kernels[step.kernel].symbol)
        call["kernel"] = kernels[step.kernel]
        call["pointers"] = [0 if o.space == "none" else addresses[o.space][o.index] + o.offset for o in step.operands]
        call["sync"] = step.sync
    phases = [s.phase for s in steps]
    return BoundProgram(
        program.name,
        program.max_tokens,
        calls,
        first_after_embed=phases.count("embed"),
        first_head=len(steps) - phases.count("head"),
        tasks=np.array([s.tasks for s in steps], np.int64),
        tokens_per_task=np.array([s.tokens_per_task for s in steps], np.int64),
        output_rows=np.array([s.rows == "outputs" for s in steps], np.bool_),
    )


def places_of(program: Program, space: str) -> list[tuple[int, int, int]]:
    """Where a program's calls point into a space: (call, pointer, offset)."""

    def inside(operand: Operand) -> bool:
        return operand.space == space

    return [
        (i, j, operand.offset)
        for i, step in enumerate(program.steps)
        for j, operand in enumerate(step.operands)
        if inside(operand)
    ]
