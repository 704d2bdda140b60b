"""Selection: every operator of the graph becomes kernel calls.

One file per group of operators, one function per operator type. A call names its kernel by spec and its pointers by
what they point to; addresses of values are filled in by the memory plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from aircompile.graph import Graph
from aircompile.lowering import (  # noqa: F401  (they register their operators)
    attention,
    elementwise,
    experts,
    groups,
    products,
    recurrence,
    rows,
    slots,
    streams,
)
from aircompile.lowering.caches import Caches, plan_caches
from aircompile.lowering.calls import NOTHING, PHASES, Call, PanelWeight, Phase, Pointer, stride
from aircompile.lowering.lowering import Lowering
from airschedules.specs import KernelSpec, ReadProbeSpec

__all__ = [
    "NOTHING",
    "PHASES",
    "Caches",
    "Call",
    "Lowering",
    "PanelWeight",
    "Phase",
    "Pointer",
    "lower",
    "plan_caches",
    "specs_of",
    "stride",
]


def lower(graph: Graph, caches: Caches) -> list[tuple[Phase, Lowering]]:
    """Lower the graph for every phase."""
    lowered = []
    for phase in PHASES:
        low = Lowering(graph, caches, phase.name)
        low.run()
        lowered.append((phase, low))
    return lowered


def specs_of(lowered: Sequence[tuple[Phase, Lowering]]) -> list[KernelSpec]:
    """Every kernel that a plan carries, once: those of the programs in order of first use, then those of the loader."""
    calls = [call.spec for _phase, low in lowered for call in low.calls]
    packs = [weight.pack for _phase, low in lowered for weight in low.weights.values()]
    return [*dict.fromkeys([*calls, *packs]), ReadProbeSpec()]
