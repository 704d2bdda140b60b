"""A second digit goes to what feeds attention and to what a gate made, and only under 'auto'."""

from __future__ import annotations

import pytest
from small_models import llama_model

from aircompile.architectures import build_graph
from aircompile.graph import Graph
from aircompile.operators import MatMul
from aircompile.passes import PASSES
from aircompile.passes.options import Activations, PassOptions
from aircompile.passes.widen_activations import widen_activations


def quantized(activations: Activations) -> Graph:
    graph = build_graph(llama_model())
    for name, rewrite in PASSES:
        if name == "widen_activations":
            return graph
        graph = rewrite(graph, PassOptions(activations))
    raise AssertionError("no such pass")


def inputs_of_products(graph: Graph) -> dict[str, str]:
    """Type of the input of every product of layer 0 and the head, by the product's name."""
    products = [o for o in graph.operators() if isinstance(o.op, MatMul) and o.layer <= 0]
    return {o.name: graph.values[o.inputs[0]].dtype for o in products}


def test_auto_widens_by_what_reads_or_made_the_value() -> None:
    before = quantized("auto")
    assert set(inputs_of_products(before).values()) == {"q8"}
    after = widen_activations(before, PassOptions("auto"))
    after.check()
    assert inputs_of_products(after) == {
        "layers.0.q+k+v": "q16",
        "layers.0.attn_output": "q8",
        "layers.0.gate+up": "q8",
        "layers.0.down": "q16",
        "logits": "q8",
    }


@pytest.mark.parametrize("activations", ["q8", "f32"])
def test_other_choices_stay_as_they_are(activations: Activations) -> None:
    before = quantized(activations)
    assert widen_activations(before, PassOptions(activations)).dump() == before.dump()
