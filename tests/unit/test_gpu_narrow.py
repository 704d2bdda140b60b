"""On GPUs a second digit stays with what feeds attention and what a gate made, and goes elsewhere."""

from __future__ import annotations

import pytest
from small_models import llama_model

from aircompile.architectures import build_graph
from aircompile.gpu.narrow_activations import narrow_activations
from aircompile.graph import Graph
from aircompile.operators import MatMul
from aircompile.passes import run_passes
from aircompile.passes.options import Activations, PassOptions


def inputs_of_products(graph: Graph) -> dict[str, str]:
    """Type of the input of every product of layer 0 and the head, by the product's name."""
    products = [o for o in graph.operators() if isinstance(o.op, MatMul) and o.layer <= 0]
    return {o.name: graph.values[o.inputs[0]].dtype for o in products}


def test_two_digits_stay_by_what_reads_or_made_the_value() -> None:
    before = run_passes(build_graph(llama_model()), PassOptions("auto"))
    assert set(inputs_of_products(before).values()) == {"q16"}
    after = narrow_activations(before)
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
    before = run_passes(build_graph(llama_model()), PassOptions(activations))
    assert narrow_activations(before).dump() == before.dump()
