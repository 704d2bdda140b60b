"""Rewrites of the graph: one pass, one file, each a function from graph to graph that preserves what is computed.

Passes match operators and their attributes, never names.
"""

from __future__ import annotations

from collections.abc import Callable

from aircompile.graph import Graph
from aircompile.passes.fold_constants import fold_constants
from aircompile.passes.fuse_gated_activation import fuse_gated_activation
from aircompile.passes.fuse_projections import fuse_projections
from aircompile.passes.fuse_residual import fuse_residual
from aircompile.passes.fuse_rope_store import fuse_rope_store
from aircompile.passes.options import PassOptions
from aircompile.passes.quantize_activations import quantize_activations
from aircompile.passes.select_outputs import select_outputs

Pass = Callable[[Graph, PassOptions], Graph]

PASSES: list[tuple[str, Pass]] = [
    ("fold_constants", fold_constants),
    ("select_outputs", select_outputs),
    ("fuse_rope_store", fuse_rope_store),
    ("fuse_gated_activation", fuse_gated_activation),
    ("fuse_projections", fuse_projections),
    ("fuse_residual", fuse_residual),
    ("quantize_activations", quantize_activations),
]
"""Every pass, in order."""


def run_passes(graph: Graph, options: PassOptions) -> Graph:
    """Run all passes, checking the invariants after each."""
    for _, rewrite in PASSES:
        graph = rewrite(graph, options)
        graph.check()
    return graph
