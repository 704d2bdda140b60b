"""What there is to tune on a GPU: the products of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aircompile.architectures import build_graph
from aircompile.frontends.gguf import read_gguf
from aircompile.gpu.calls import DECODE
from aircompile.gpu.operators import lower_for_device
from aircompile.lowering import plan_caches
from aircompile.passes import run_passes
from aircompile.passes.options import PassOptions
from airschedules.gpu.rules import ProductTask
from airschedules.gpu.specs import ProductSpec


def product_tasks(models: Sequence[Path]) -> list[ProductTask]:
    """The products that decoding takes, each shape once."""
    found: dict[ProductTask, None] = {}
    for path in models:
        graph = run_passes(build_graph(read_gguf(path)), PassOptions("auto"))
        low = lower_for_device(graph, plan_caches(graph, "f16", graph.hyper.n_ctx_train), exact=False)[DECODE]
        for call in low.calls:
            if isinstance(call.spec, ProductSpec):
                found[ProductTask(call.spec.weights, call.spec.kind, call.spec.n_rows, call.spec.n_cols)] = None
    return list(found)
