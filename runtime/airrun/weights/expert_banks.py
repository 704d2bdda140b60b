"""Banks of experts in a plan: what there is to cache, and how much of it a step needs at once."""

from __future__ import annotations

from collections.abc import Sequence

from airrun.plan.chunks import Chunk, chunks_of, is_bank, n_matrices
from airrun.plan.schema import Plan, Program
from airrun.records import record


@record
class Bank:
    """A bank: its number in `plan.weights`, its matrices, and the chunk that is the first of them.

    Attributes
    ----------
    matrix_nbytes, n_rows, n_panels
        Of one matrix.
    """

    weight: int
    n_experts: int
    matrix_nbytes: int
    n_rows: int
    n_panels: int
    first_chunk: int
    chunk: Chunk


def banks_of(plan: Plan) -> list[Bank]:
    """All banks, in the order of the weights."""
    found: dict[int, Bank] = {}
    for number, chunk in enumerate(chunks_of(plan)):
        weight = plan.weights[chunk.weight]
        if chunk.weight not in found and is_bank(plan, weight):
            n = n_matrices(plan, weight)
            found[chunk.weight] = Bank(
                chunk.weight, n, weight.nbytes // n, weight.n_rows // n, chunk.n_panels, number, chunk
            )
    return list(found.values())


@record
class Need:
    """What a step of a program needs of a bank.

    Attributes
    ----------
    step, weight
        Numbers of the step and of the bank.
    by_row
        Whether it works on rows of chosen experts, one after another; else on all experts, as far as they have rows.
    most
        Rows, or experts, that it works on at most.
    """

    step: int
    weight: int
    by_row: bool
    most: int


def needs_of(plan: Plan, program: Program) -> list[list[Need]]:
    """What the steps of a program need of the banks: together, what is known at the same time (by an order of rows)."""
    found: dict[tuple[int, int, bool], list[Need]] = {}
    for i, step in enumerate(program.steps):
        operand = step.operands[0]
        if operand.space != "weight" or not is_bank(plan, plan.weights[operand.index]):
            continue
        weight, by_row = plan.weights[operand.index], step.tokens_per_task > 0
        most = step.tasks // weight.chunk_panels * (program.max_tokens if by_row else 1)
        known = found.setdefault((step.layer, step.operands[4].index, by_row), [])
        known.append(Need(i, operand.index, by_row, most))
    return list(found.values())


def _least_together(plan: Plan, needs: Sequence[Need]) -> int:
    """Matrices in memory at once that will do: all that are chosen, or one in use and one that is read meanwhile."""
    if not needs[0].by_row:
        return 2
    return sum(min(need.most, n_matrices(plan, plan.weights[need.weight])) for need in needs)


def least_slots(plan: Plan) -> int:
    """Matrices that must be in memory at once."""
    return max(
        (_least_together(plan, needs) for program in plan.programs for needs in needs_of(plan, program)), default=0
    )


def slot_nbytes(banks: Sequence[Bank]) -> int:
    """Bytes of a slot that takes any matrix."""
    return -(-max((bank.matrix_nbytes for bank in banks), default=0) // 64) * 64


def chosen_nbytes(plan: Plan) -> int:
    """Bytes of the matrices that a token uses."""
    sizes = {bank.weight: bank.matrix_nbytes for bank in banks_of(plan)}
    program = plan.programs[0]
    return sum(
        need.most // program.max_tokens * sizes[need.weight] for needs in needs_of(plan, program) for need in needs
    )
