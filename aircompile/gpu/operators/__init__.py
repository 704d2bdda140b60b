"""Selection for a GPU: every operator becomes launches.

One file per group of operators, one function per operator type, as for processors (`aircompile.lowering`).
"""

from __future__ import annotations

from aircompile.gpu.calls import MAX_TOKENS
from aircompile.gpu.lowering import DeviceLowering
from aircompile.gpu.narrow_activations import narrow_activations
from aircompile.gpu.operators import (  # noqa: F401  (they register their operators)
    attention,
    elementwise,
    experts,
    products,
    rows,
    streams,
)
from aircompile.graph import Graph
from aircompile.lowering import Caches


def lower_for_device(graph: Graph, caches: Caches, exact: bool) -> dict[str, DeviceLowering]:
    """Lower the graph for every program, by name."""
    graph = narrow_activations(graph)
    lowered = {}
    for phase in MAX_TOKENS:
        lowered[phase] = low = DeviceLowering(graph, caches, phase, exact)
        low.run()
    return lowered
