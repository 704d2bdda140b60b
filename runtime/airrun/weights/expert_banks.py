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


def demands(plan: Plan, program: Program) -> dict[int, list[tuple[int, int]]]:
    """What the steps of a program need of the banks: (weight, most matrices), by number of the first step.

    Steps that work on the rows of chosen experts only, by the same order of rows, need theirs together: all is known
    when the first begins. Others need all matrices of a bank one after another, and any number at once.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    together: dict[tuple[int, int], int] = {}
    for i, step in enumerate(program.steps):
        operand = step.operands[0]
        if operand.space != "weight" or not is_bank(plan, plan.weights[operand.index]):
            continue
        weight = plan.weights[operand.index]
        if step.tokens_per_task == 0:
            found[i] = [(operand.index, 1)]
            continue
        most = min(step.tasks // weight.chunk_panels * program.max_tokens, n_matrices(plan, weight))
        first = together.setdefault((step.layer, step.operands[4].index), i)
        found.setdefault(first, []).append((operand.index, most))
    return found


def least_slots(plan: Plan) -> int:
    """Matrices that must be in memory at once."""
    needs = [sum(most for _, most in need) for program in plan.programs for need in demands(plan, program).values()]
    return max(needs, default=0)


def slot_nbytes(banks: Sequence[Bank]) -> int:
    """Bytes of a slot that takes any matrix."""
    return -(-max((bank.matrix_nbytes for bank in banks), default=0) // 64) * 64


def chosen_nbytes(plan: Plan) -> int:
    """Bytes of the matrices that a token uses."""
    sizes = {bank.weight: bank.matrix_nbytes for bank in banks_of(plan)}
    needs = demands(plan, plan.programs[0]).values()
    return sum(most * sizes[weight] for need in needs for weight, most in need)
