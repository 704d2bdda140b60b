"""Schedule rules: an ordered list; the first that answers decides, and the last one always does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.matmul_int import MatmulSchedule
from airschedules.records import MatmulTask, find_record

Phase = str
"""'decode' (1 token) or 'prefill' (any number)."""


@dataclass(frozen=True)
class Decision:
    """A schedule and why it was chosen."""

    schedule: MatmulSchedule
    reason: str


Rule = Callable[[MatmulTask, VectorIsa], Decision | None]


def tuned(task: MatmulTask, isa: VectorIsa) -> Decision | None:
    """What was measured to be fastest."""
    record = find_record(task, isa.name)
    if record is None:
        return None
    schedule = replace(untuned(task, isa).schedule, tile=record.tile)
    return Decision(schedule, f"tuning record: {record.gops:.0f} GOP/s (rules: {record.baseline:.0f})")


def float_activations(task: MatmulTask, isa: VectorIsa) -> Decision | None:
    """Float products keep two partial sums per token, so their tile is half as many tokens."""
    if task.digits:
        return None
    tile = 1 if task.phase == "decode" else isa.registers // 4
    return Decision(MatmulSchedule(tile=tile), "float activations: two partial sums a token")


def decode_in_registers(task: MatmulTask, isa: VectorIsa) -> Decision | None:
    """One token reads every weight once: decoding into scratch would only add traffic."""
    if task.phase != "decode":
        return None
    return Decision(MatmulSchedule(tile=1), "one token: weights are decoded in registers")


def unpacked_panels(task: MatmulTask, isa: VectorIsa) -> Decision | None:
    """Many tokens: integer sums fill the registers that codes, digits and adding leave; float sums are used rarely.

    On ARM, where a sum takes four registers, they stay there too: loads and stores of them cost more than codes do.
    More than ten tokens gain nothing. Few tiles do not repay the detour through scratch: with tiles of eight tokens or
    more it costs time up to 32 tokens, with small ones up to 8.
    """
    n_vectors = PANEL // isa.lanes
    if isa.arch == "aarch64":
        n_sums = isa.registers // 4
    else:
        n_sums = isa.registers - n_vectors - 2 if isa.dot.in_one else isa.registers // 2
    tile = min(10, n_sums // n_vectors)
    return Decision(MatmulSchedule(tile, unpack_from=33 if tile >= 8 else 9), "many tokens share an unpacked panel")


RULES: list[Rule] = [float_activations, decode_in_registers, unpacked_panels]


def schedule_matmul(task: MatmulTask, isa: VectorIsa) -> Decision:
    """The schedule of a product on an instruction set."""
    return tuned(task, isa) or untuned(task, isa)


def untuned(task: MatmulTask, isa: VectorIsa) -> Decision:
    """What the rules choose without records."""
    for rule in RULES:
        decision = rule(task, isa)
        if decision is not None:
            return decision
    raise AssertionError("the last rule always applies")
