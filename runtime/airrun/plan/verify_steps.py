"""Whether the steps of a plan stay inside its tables; part of `airrun.plan.verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from airrun.errors import PlanError
from airrun.plan.checks import fail, index, one_of, within
from airrun.plan.chunks import is_bank, n_matrices
from airrun.plan.schema import DEVICES, INPUTS, PHASES, POINTERS_PER_STEP, ROWS, SPACES, STEP_KINDS, Operand, Plan, Step

MAX_PROGRAMS = 8
MAX_BATCH = 1 << 20
"""Tokens of one batch."""
MAX_TASKS = (1 << 31) - 1
"""Kernels count tasks in int32."""
MAX_STREAMS = 64

T = TypeVar("T")


def verify_programs(plan: Plan) -> None:
    """Check programs, steps and operands against the tables, which must have been verified before.

    Raises
    ------
    PlanError
        The first inconsistency, with its path.
    """
    within("number of programs", len(plan.programs), 1, MAX_PROGRAMS)
    smallest = 1
    for i, program in enumerate(plan.programs):
        within(f"programs[{i}].max_tokens", program.max_tokens, smallest, MAX_BATCH)
        smallest = program.max_tokens + 1
        if not program.steps:
            fail(f"programs[{i}].steps", "is empty")
    _steps(plan)
    _operands(plan)
    _weight_order(plan)
    _gathers(plan)


def _steps(plan: Plan) -> None:
    """Field by field, and every distinct value once: there are thousands of steps and few different values."""
    steps = [step for program in plan.programs for step in program.steps]

    def each(values: Iterable[T], check: Callable[[T], None]) -> None:
        column = list(values)
        for value in dict.fromkeys(column):
            try:
                check(value)
            except PlanError as error:
                raise PlanError(f"{_step_path(plan, column.index(value))}{error}") from None

    each((step.kind for step in steps), lambda kind: one_of(".kind", kind, STEP_KINDS))
    each((step.device for step in steps), lambda device: one_of(".device", device, DEVICES))
    each((step.phase for step in steps), lambda phase: one_of(".phase", phase, PHASES))
    each((step.rows for step in steps), lambda rows: one_of(".rows", rows, ROWS))
    each((step.stream for step in steps), lambda stream: within(".stream", stream, 0, MAX_STREAMS - 1))
    each((step.kernel for step in steps), lambda kernel: index(".kernel", kernel, plan.kernels, "kernels"))
    each(
        ((step.layer, step.phase == "layer") for step in steps),
        lambda pair: within(".layer", pair[0], 0 if pair[1] else -1, plan.model.n_layers - 1),
    )
    each(
        (len(step.operands) for step in steps),
        lambda n: within(".operands", n, POINTERS_PER_STEP, POINTERS_PER_STEP, "operands"),
    )
    each((step.tasks for step in steps), lambda tasks: within(".tasks", tasks, 1, MAX_TASKS))
    each((step.tokens_per_task for step in steps), lambda n: within(".tokens_per_task", n, 0, MAX_BATCH))

    def groups(task: tuple[int, int, int]) -> None:
        tasks, tokens_per_task, n_tokens = task
        total = tasks * -(-n_tokens // tokens_per_task) if tokens_per_task else tasks
        within(".tasks", total, 1, MAX_TASKS, "for the largest batch")

    each(((s.tasks, s.tokens_per_task, program.max_tokens) for program in plan.programs for s in program.steps), groups)


def _operands(plan: Plan) -> None:
    """Every distinct operand once for each number of rows it is used with; loading makes equal ones identical."""
    check = _operand_checks(plan)
    for rows in ROWS:
        used = {
            id(operand): operand
            for program in plan.programs
            for step in program.steps
            if step.rows == rows
            for operand in step.operands
        }
        for operand in used.values():
            try:
                check(operand, rows)
            except PlanError as error:
                raise PlanError(f"{_operand_path(plan, operand, rows)}{error}") from None


def _weight_order(plan: Plan) -> None:
    """Steps read whole panels that exist, and all programs read the same ones in the same order."""
    found = []
    for i, program in enumerate(plan.programs):
        order = []
        for j, step in enumerate(program.steps):
            for k, operand in enumerate(step.operands):
                if operand.space != "weight":
                    continue
                path = f"programs[{i}].steps[{j}]"
                weight = plan.weights[operand.index]
                if is_bank(plan, weight):
                    _bank_step(path, plan, step, k)
                    continue
                first, rest = divmod(operand.offset, weight.panel_nbytes)
                if k or rest or step.tokens_per_task:
                    fail(path, "reads a weight otherwise than by tasks of a panel, as its operand 0")
                within(f"{path}.tasks", step.tasks, 1, weight.nbytes // weight.panel_nbytes - first, "panels")
                order.append((operand.index, first, step.tasks))
        found.append(order)
    for i, order in enumerate(found):
        if order != found[0]:
            fail(f"programs[{i}]", "does not read the weights in the order of programs[0]")


def _bank_step(path: str, plan: Plan, step: Step, place: int) -> None:
    """A step on a bank of experts, which is its operand `place`."""
    operands, weight = step.operands, plan.weights[step.operands[place].index]
    if place or operands[0].offset or operands[5] != Operand("experts", operands[0].index, 0):
        fail(path, "reads a bank of experts otherwise than whole, as its operand 0, by the table in its operand 5")
    if operands[4].space != "buffer" or step.rows != "tokens":
        fail(path, "reads a bank of experts without the order of its rows in operand 4")
    n_panels = weight.nbytes // weight.panel_nbytes
    if step.tokens_per_task not in (0, 1) or (step.tokens_per_task == 0 and step.tasks != n_panels):
        fail(f"{path}.tasks", f"is {step.tasks}, neither panels of chosen experts nor all {n_panels}")
    if step.tokens_per_task == 1:
        within(f"{path}.tasks", step.tasks, weight.chunk_panels, n_panels, "panels of a token's experts")
        if step.tasks % weight.chunk_panels:
            fail(f"{path}.tasks", f"is {step.tasks}, not whole matrices of {weight.chunk_panels} panels")


def _gathers(plan: Plan) -> None:
    """Tensors are read as their access says."""
    per_token = [INPUTS.index(name) for name in ("token_ids", "cells")]
    used = {
        (k, operand, step.operands[1])
        for program in plan.programs
        for step in program.steps
        for k, operand in enumerate(step.operands)
        if operand.space == "tensor"
    }
    for k, operand, rows in used:
        tensor = plan.tensors[operand.index]
        path = f"tensors[{operand.index}].access"
        if tensor.access in ("weight", "experts"):
            fail(path, f"is '{tensor.access}', but a step reads the tensor itself")
        if tensor.access == "row_gather" and (k, operand.offset, rows.space, rows.offset, rows.index in per_token) != (
            0, 0, "input", 0, True,
        ):  # fmt: skip
            fail(path, "is 'row_gather', but a step does not read it by row numbers")


def _operand_checks(plan: Plan) -> Callable[[Operand, str], None]:
    """Bytes that each entry of each space surely has; an operand points inside them.

    Of what grows with the batch, that is what one token has.
    """
    inputs = dict.fromkeys(INPUTS, 4) | {"rope": 8 * plan.rope.n_pairs}
    room: dict[str, Sequence[int]] = {
        "none": (1,),
        "weight": [weight.nbytes for weight in plan.weights],
        "experts": [8 * n_matrices(plan, weight) for weight in plan.weights],
        "tensor": [tensor.nbytes for tensor in plan.tensors],
        "buffer": [buffer.nbytes for buffer in plan.buffers],
        "constant": [constant.nbytes for constant in plan.constants],
        "input": [inputs[name] for name in INPUTS],
        "kv": [layer.block_nbytes for layer in plan.kv.layers],
        "state": [state.nbytes for state in plan.states],
        "logits": (4 * plan.model.logits_stride,),
        "scratch": (min(library.scratch_nbytes for library in plan.libraries),),
    }
    output_rows = INPUTS.index("output_rows")

    def check(operand: Operand, rows: str) -> None:
        one_of(".space", operand.space, SPACES)
        entries = room[operand.space]
        index(".index", operand.index, entries, f"space {operand.space}")
        if entries[operand.index] == 0:
            fail(".index", f"points into {operand.space}, which has 0 bytes")
        within(".offset", operand.offset, 0, entries[operand.index] - 1)
        if rows != "outputs" and (
            operand.space == "logits" or (operand.space, operand.index) == ("input", output_rows)
        ):
            fail(".space", f"has a row per output, but the step counts {rows}")

    return check


def _step_path(plan: Plan, number: int) -> str:
    """The path of step `number` of all programs together."""
    program = 0
    while number >= len(plan.programs[program].steps):
        number -= len(plan.programs[program].steps)
        program += 1
    return f"programs[{program}].steps[{number}]"


def _operand_path(plan: Plan, operand: Operand, rows: str) -> str:
    """Where `operand` is used first."""
    return next(
        f"programs[{i}].steps[{j}].operands[{k}]"
        for i, program in enumerate(plan.programs)
        for j, step in enumerate(program.steps)
        if step.rows == rows
        for k, other in enumerate(step.operands)
        if other is operand
    )
