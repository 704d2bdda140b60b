"""Binding: a plan's steps become arrays of native calls with real addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from airrun.native import CALL, Call, Library, pack_calls
from airrun.plan.schema import POINTERS_PER_STEP, Plan, Program

if TYPE_CHECKING:
    import numpy.typing as npt

    Calls = npt.NDArray[np.void]

_CALL = np.dtype(
    [("kernel", "<u8"), ("pointers", "<u8", POINTERS_PER_STEP)]
    + [(name, "<i4") for name in ("n_rows", "n_tasks", "sync")]
    + [("reserved", f"V{CALL.size - 8 * (POINTERS_PER_STEP + 1) - 12}")]
)
"""`native.CALL` for numpy."""


Addresses = Mapping[str, Sequence[int]]
"""Address of every entry of every operand space."""


@dataclass
class BoundProgram:
    """The calls of one program, ready to run.

    `calls` stand at `address`. Calls [0, first_after_embed) embed token ids; calls [first_head, end) compute logits.
    """

    name: str
    max_tokens: int
    calls: Calls
    address: int
    first_after_embed: int
    first_head: int
    tasks: npt.NDArray[np.int64]
    tokens_per_task: npt.NDArray[np.int64]
    output_rows: npt.NDArray[np.bool_]
    rows: tuple[int, int] = (-1, -1)

    @property
    def n_calls(self) -> int:
        return len(self.calls)

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
    kernels = {i: library.address(plan.kernels[i].symbol) for i in {step.kernel for step in steps}}
    # a plan writes an operand that recurs once, so that each is one object
    distinct = {id(o): o for step in steps for o in step.operands}
    pointers = {key: 0 if o.space == "none" else addresses[o.space][o.index] + o.offset for key, o in distinct.items()}
    packed = pack_calls(
        [Call(kernels[step.kernel], [pointers[id(o)] for o in step.operands], 0, 0, step.sync) for step in steps]
    )
    calls = np.frombuffer(packed.memory, _CALL)
    phases = [s.phase for s in steps]
    return BoundProgram(
        program.name,
        program.max_tokens,
        calls,
        packed.address,
        first_after_embed=phases.count("embed"),
        first_head=len(steps) - phases.count("head"),
        tasks=np.array([s.tasks for s in steps], np.int64),
        tokens_per_task=np.array([s.tokens_per_task for s in steps], np.int64),
        output_rows=np.array([s.rows == "outputs" for s in steps], np.bool_),
    )


def places_of(program: Program, space: str) -> list[tuple[int, int, int]]:
    """Where a program's calls point into a space: (call, pointer, offset)."""
    return [
        (i, j, operand.offset)
        for i, step in enumerate(program.steps)
        for j, operand in enumerate(step.operands)
        if operand.space == space
    ]
