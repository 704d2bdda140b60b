"""Calls of steps on banks that are not kept: requests for what was chosen, and products that wait for each matrix.

Of single tokens, all that a layer needs is requested at once. A prompt may need more than there is room for: its steps
work on some experts at a time, and those of the next part are requested before a part is worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from airrun.plan.schema import Plan, Program, Step
from airrun.weights.expert_banks import Need, needs_of

if TYPE_CHECKING:
    from airrun.replay.native import Call
    from airrun.weights.expert_cache import ExpertCache


class Part(NamedTuple):
    """Part of a step: requests that come before it, address of its demand, and how many matrices its tasks are of."""

    requests: Sequence[Call]
    demand: int
    n_matrices: int


def parts_of(
    plan: Plan, program: Program, cache: ExpertCache, order_of: Callable[[Step], int]
) -> dict[int, list[Part]]:
    """The parts of each step on a bank, by its number; `order_of` is the address of the order of its rows."""
    found: dict[int, list[Part]] = {}
    for needs in needs_of(plan, program):
        order = order_of(program.steps[needs[0].step])
        if needs[0].by_row:
            _at_once(plan, cache, needs, order, found)
        else:
            _in_turn(cache, needs, order, found)
    return found


def _at_once(plan: Plan, cache: ExpertCache, needs: Sequence[Need], order: int, found: dict[int, list[Part]]) -> None:
    n_experts = [plan.tensors[plan.weights[need.weight].parts[0].tensor].shape[0] for need in needs]
    demands = [
        cache.demand(need.weight, 0, n, by_row=True, most=need.most) for need, n in zip(needs, n_experts, strict=True)
    ]
    requests = [cache.request(demands, order, ahead=0)]
    for need, demand in zip(needs, demands, strict=True):
        found[need.step] = [Part(requests, demand, need.most)]
        requests = []


def _in_turn(cache: ExpertCache, needs: Sequence[Need], order: int, found: dict[int, list[Part]]) -> None:
    at_once = cache.n_slots // 2
    steps, demands, sizes = [], [], []
    for need in needs:
        for first in range(0, need.most, at_once):
            n = min(at_once, need.most - first)
            demands.append(cache.demand(need.weight, first, first + n, by_row=False, most=n))
            steps.append(need.step)
            sizes.append(n)
    requests = [cache.request([demand], order, ahead=min(i, 1)) for i, demand in enumerate(demands)]
    for i, step in enumerate(steps):
        before = requests[:2] if i == 0 else requests[i + 1 : i + 2]
        found.setdefault(step, []).append(Part(before, demands[i], sizes[i]))
