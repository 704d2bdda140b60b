"""Binding: a plan's steps become arrays of native calls with real addresses.

A step that reads a weight becomes a call for each segment of it: kept panels are read where they are, streamed chunks
are waited for and made into panels on the way. A step that reads single rows of a table is preceded by a call that
reads them from the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from airrun.plan.chunks import is_bank
from airrun.plan.schema import POINTERS_PER_STEP, Operand, Plan, Program, Step
from airrun.records import record
from airrun.replay.native import CALL, Call, Library, pack_calls
from airrun.weights.resident import Weights, fetch_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from airrun.replay.expert_calls import Part
    from airrun.weights.expert_cache import ExpertCache
    from airrun.weights.residency import Residency, Segment

    Calls = npt.NDArray[np.void]

_CALL = np.dtype(
    [("kernel", "<u8"), ("pointers", "<u8", POINTERS_PER_STEP)]
    + [(name, "<i4") for name in ("n_rows", "n_tasks", "sync", "first_task")]
    + [("reserved", f"V{CALL.size - 8 * (POINTERS_PER_STEP + 1) - 16}")]
)
"""`native.CALL` for numpy."""


Addresses = Mapping[str, Sequence[int]]
"""Address of every entry of every operand space but the weights."""


@record(frozen=False, eq=False)
class BoundProgram:
    """The calls of one program, ready to run.

    Attributes
    ----------
    calls, address
        What native code walks, and where it stands.
    first_after_embed, first_head
        Calls [0, first_after_embed) embed token ids; calls [first_head, end) compute logits.
    sections
        Bounds of the calls of each layer, and of what is before and after the layers.
    streamed
        Chunks that are streamed, in the order of their use.
    tail
        How many of `streamed` are used before the head.
    logits
        Pointers to the logits: (call, pointer, offset).
    """

    name: str
    max_tokens: int
    calls: Calls
    address: int
    first_after_embed: int
    first_head: int
    sections: Sequence[int]
    streamed: Sequence[int]
    tail: int
    logits: Sequence[tuple[int, int, int]]
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

    def move_logits(self, address: int) -> None:
        """Give the logits a new address."""
        for call, pointer, offset in self.logits:
            self.calls[call]["pointers"][pointer] = address + offset


class _Bound(NamedTuple):
    """A call and the step it is part of."""

    call: Call
    step: Step
    tokens_per_task: int


class Binder:
    """Binds the programs of a plan to one set of addresses."""

    def __init__(
        self,
        plan: Plan,
        library: Library,
        weights: Weights,
        residency: Residency,
        addresses: Addresses,
        row_numbers: int,
        experts: ExpertCache | None = None,
    ) -> None:
        self._plan, self._library, self._weights, self._residency = plan, library, weights, residency
        self._addresses, self._row_numbers = dict(addresses), row_numbers
        self._experts = experts
        self._segments = residency.segments()
        self._pointers: dict[int, int] = {}

    def bind(self, program: Program) -> BoundProgram:
        """Resolve every operand of a program."""
        streamed: list[int] = []
        bound: list[_Bound] = []
        tail = None
        chosen = self._chosen(program)
        for i, step in enumerate(program.steps):
            if step.phase == "head" and tail is None:
                tail = len(streamed)
            bound.extend(self._by_expert(step, chosen[i]) if i in chosen else self._step(step, streamed))
        packed = pack_calls([each.call for each in bound])
        steps = [each.step for each in bound]
        phases = [step.phase for step in steps]
        changes = [i for i, (a, b) in enumerate(pairwise(steps), 1) if (a.phase, a.layer) != (b.phase, b.layer)]
        return BoundProgram(
            program.name,
            program.max_tokens,
            np.frombuffer(packed.memory, _CALL),
            packed.address,
            first_after_embed=phases.count("embed"),
            first_head=len(steps) - phases.count("head"),
            sections=[0, *changes, len(steps)],
            streamed=streamed,
            tail=len(streamed) if tail is None else tail,
            logits=[
                (i, j, operand.offset)
                for i, step in enumerate(steps)
                for j, operand in enumerate(step.operands)
                if operand.space == "logits"
            ],
            tasks=np.array([each.call.n_tasks for each in bound], np.int64),
            tokens_per_task=np.array([each.tokens_per_task for each in bound], np.int64),
            output_rows=np.array([step.rows == "outputs" for step in steps], np.bool_),
        )

    def move_logits(self, address: int) -> None:
        """Give the logits a new address in what is bound from now on."""
        self._addresses["logits"] = [address]
        self._pointers.clear()

    def _step(self, step: Step, streamed: list[int]) -> Iterator[_Bound]:
        first = step.operands[0]
        if first.space == "weight" and not is_bank(self._plan, self._plan.weights[first.index]):
            yield from self._product(step, first, streamed)
            return
        pointers = [self._pointer(operand) for operand in step.operands]
        if first.space == "tensor" and first.index in self._weights.tables:
            table = self._weights.tables[first.index]
            read = self._library.address("air_read_rows")
            yield _Bound(Call(read, (table, pointers[1], pointers[0]), 0, 1, sync=True), step, 1)
            pointers[1] = self._row_numbers  # the rows stand in order now
        kernel = self._library.address(self._plan.kernels[step.kernel].symbol)
        yield _Bound(Call(kernel, pointers, 0, step.tasks, step.sync), step, step.tokens_per_task)

    def _chosen(self, program: Program) -> dict[int, list[Part]]:
        """The parts of steps on banks that are not kept."""
        if self._experts is None:
            return {}
        from airrun.replay.expert_calls import parts_of

        return parts_of(self._plan, program, self._experts, lambda step: self._pointer(step.operands[4]))

    def _by_expert(self, step: Step, parts: Sequence[Part]) -> Iterator[_Bound]:
        """A step on a bank, in parts."""
        kernel = self._library.address(self._plan.kernels[step.kernel].symbol)
        pointers = [self._pointer(operand) for operand in step.operands]
        n_panels = self._plan.weights[step.operands[0].index].chunk_panels
        for part in parts:
            yield from (_Bound(request, step, 0) for request in part.requests)
            # before the next request, all that was requested long ago must be done with
            sync = step.sync or step.tokens_per_task == 0
            tasks = step.tasks if step.tokens_per_task else part.n_matrices * n_panels
            call = Call(kernel, pointers, 0, tasks, sync, demand=part.demand)
            yield _Bound(call, step, step.tokens_per_task)

    def _product(self, step: Step, operand: Operand, streamed: list[int]) -> Iterator[_Bound]:
        """A call per segment. Its tasks are numbered from the step's first, as are outputs and biases."""
        weight = self._plan.weights[operand.index]
        kernel = self._library.address(self._plan.kernels[step.kernel].symbol)
        pack = self._library.address(weight.pack)
        rest = [self._pointer(other) for other in step.operands[1:]]
        origin = operand.offset // weight.panel_nbytes
        parts = list(_within(self._segments[operand.index], origin, step.tasks, weight.panel_nbytes))
        for segment in parts:
            sync = step.sync and segment is parts[-1]
            if segment.offset >= 0:
                panels = self._weights.address + segment.offset + (origin - segment.first_panel) * weight.panel_nbytes
                call = Call(kernel, (panels, *rest), 0, segment.n_panels, sync, segment.first_panel - origin)
            else:
                fetch = fetch_of(self._residency.chunks[segment.chunk], weight, len(streamed), pack, origin)
                call = Call(kernel, (0, *rest), 0, segment.n_panels, sync, segment.first_panel - origin, fetch)
                streamed.append(segment.chunk)
            yield _Bound(call, step, 0)

    def _pointer(self, operand: Operand) -> int:
        # a plan writes an operand that recurs once, so that each is one object
        found = self._pointers.get(id(operand))
        if found is None:
            found = 0 if operand.space == "none" else self._entry(operand) + operand.offset
            self._pointers[id(operand)] = found
        return found

    def _entry(self, operand: Operand) -> int:
        """Address of the entry that an operand points into; a weight that is named here is a bank."""
        if operand.space != "weight":
            return self._addresses[operand.space][operand.index]
        if self._experts is not None:
            return self._experts.pool
        (whole,) = self._segments[operand.index]
        return self._weights.address + whole.offset


def _within(segments: Sequence[Segment], first: int, n: int, panel_nbytes: int) -> Iterator[Segment]:
    """The segments of panels [first, first + n), cut to them."""
    for segment in segments:
        begin = max(segment.first_panel, first)
        end = min(segment.first_panel + segment.n_panels, first + n)
        if begin < end:
            kept = segment.offset >= 0
            offset = segment.offset + (begin - segment.first_panel) * panel_nbytes if kept else -1
            yield segment._replace(first_panel=begin, n_panels=end - begin, offset=offset)
