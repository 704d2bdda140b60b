"""Activations are rounded by the operator that makes them where all readers agree, and apart from it elsewhere."""

from __future__ import annotations

import pytest
from small_models import empty_graph, llama_model, llama_tensors, program, tensor

from aircompile.architectures import build_graph
from aircompile.graph import Graph
from aircompile.operators import (
    Gather,
    MatMul,
    Norm,
)
from aircompile.passes import PASSES, run_passes
from aircompile.passes.options import Activations, PassOptions
from aircompile.passes.quantize_activations import quantize_activations
from airrun.errors import UnsupportedError

AUTO = PassOptions()
BEFORE = PASSES[: [name for name, _ in PASSES].index("quantize_activations")]


@pytest.mark.parametrize("activations", ["auto", "q8"])
def test_quantized_by_their_producer_or_alone(activations: Activations) -> None:
    graph = build_graph(llama_model())
    for _, rewrite in BEFORE:
        graph = rewrite(graph, AUTO)
    after = quantize_activations(graph, PassOptions(activations))
    after.check()
    digits, dtype = (", digits=2", "q16") if activations == "auto" else ("", "q8")
    assert program(after) == [
        "embed  embedding  Gather(table=token_embd.weight:Q8_0)  -> embedding float32[tokens, 64]",
        f"layer 0  layers.0.attn_norm  Norm(weight=blk.0.attn_norm.weight:F32, eps=1e-05, quantize=True{digits})  "
        f"embedding -> layers.0.attn_norm {dtype}[tokens, 64]",
        "layer 0  layers.0.q+k+v  "
        "MatMul(weights=blk.0.attn_q.weight:Q8_0+blk.0.attn_k.weight:Q8_0+blk.0.attn_v.weight:Q8_0)  "
        "layers.0.attn_norm -> layers.0.q+k+v float32[tokens, 128]",
        "layer 0  layers.0.q  Slice(first=0, width=64)  layers.0.q+k+v -> layers.0.q float32[tokens, 64]",
        "layer 0  layers.0.k  Slice(first=64, width=32)  layers.0.q+k+v -> layers.0.k float32[tokens, 32]",
        "layer 0  layers.0.v  Slice(first=96, width=32)  layers.0.q+k+v -> layers.0.v float32[tokens, 32]",
        "layer 0  layers.0.rope_q+rope_k  "
        "RopeStore(n_heads=4, n_kv_heads=2, head_dim=16, v_dim=16, dim=16, mode=normal)  "
        "layers.0.q, layers.0.k, layers.0.v -> layers.0.rope_q float32[tokens, 64]",
        "layer 0  layers.0.attention  Attention(n_heads=4, n_kv_heads=2, head_dim=16, v_dim=16, scale=0.25, slot=0)  "
        "layers.0.rope_q -> layers.0.attention float32[tokens, 64]",
        f"layer 0  layers.0.attention.q8  Quantize({digits[2:]})  "
        f"layers.0.attention -> layers.0.attention.q8 {dtype}[tokens, 64]",
        "layer 0  layers.0.attn_output  MatMul(weights=blk.0.attn_output.weight:Q8_0, accumulate=True)  "
        "layers.0.attention.q8, embedding -> layers.0.attn_residual float32[tokens, 64]",
        f"layer 0  layers.0.ffn_norm  Norm(weight=blk.0.ffn_norm.weight:F32, eps=1e-05, quantize=True{digits})  "
        f"layers.0.attn_residual -> layers.0.ffn_norm {dtype}[tokens, 64]",
        "layer 0  layers.0.gate+up  MatMul(weights=blk.0.ffn_gate.weight:Q8_0+blk.0.ffn_up.weight:Q8_0)  "
        "layers.0.ffn_norm -> layers.0.gate+up float32[tokens, 192]",
        "layer 0  layers.0.gate  Slice(first=0, width=96)  layers.0.gate+up -> layers.0.gate float32[tokens, 96]",
        "layer 0  layers.0.up  Slice(first=96, width=96)  layers.0.gate+up -> layers.0.up float32[tokens, 96]",
        f"layer 0  layers.0.gated  GatedActivation(kind=silu, quantize=True{digits})  "
        f"layers.0.gate, layers.0.up -> layers.0.gated {dtype}[tokens, 96]",
        "layer 0  layers.0.down  MatMul(weights=blk.0.ffn_down.weight:Q8_0, accumulate=True)  "
        "layers.0.gated, layers.0.attn_residual -> layers.0.ffn_residual float32[tokens, 64]",
        "head  layers.0.ffn_residual.selected  SelectRows()  "
        "layers.0.ffn_residual -> layers.0.ffn_residual.selected float32[outputs, 64]",
        f"head  output_norm  Norm(weight=output_norm.weight:F32, eps=1e-05, quantize=True{digits})  "
        f"layers.0.ffn_residual.selected -> output_norm {dtype}[outputs, 64]",
        "head  logits  MatMul(weights=output.weight:Q8_0)  output_norm -> logits float32[outputs, 40]",
    ]


def test_f32_quantizes_nothing() -> None:
    graph = run_passes(build_graph(llama_model()), PassOptions("f32"))
    assert {value.dtype for value in graph.values.values()} == {"float32"}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_matrices_take_floats(kind: str) -> None:
    graph = build_graph(llama_model(tensors=llama_tensors(default=kind)))
    assert quantize_activations(graph, AUTO).dump() == graph.dump()
    with pytest.raises(UnsupportedError, match=r"^activations q8: Small has no matrix in an integer block format"):
        quantize_activations(graph, PassOptions("q8"))


def test_a_value_that_a_float_matrix_reads_too_is_kept_beside() -> None:
    tensors = llama_tensors(formats={"attn_v": "F16"})
    graph = run_passes(build_graph(llama_model(tensors=tensors)), AUTO)
    lines = [line for line in program(graph) if "layers.0.attn_norm" in line]
    assert lines == [
        "layer 0  layers.0.attn_norm  Norm(weight=blk.0.attn_norm.weight:F32, eps=1e-05)  "
        "embedding -> layers.0.attn_norm float32[tokens, 64]",
        "layer 0  layers.0.attn_norm.q8  Quantize(digits=2)  "
        "layers.0.attn_norm -> layers.0.attn_norm.q8 q16[tokens, 64]",
        "layer 0  layers.0.q+k  MatMul(weights=blk.0.attn_q.weight:Q8_0+blk.0.attn_k.weight:Q8_0)  "
        "layers.0.attn_norm.q8 -> layers.0.q+k float32[tokens, 96]",
        "layer 0  layers.0.v  MatMul(weights=blk.0.attn_v.weight:F16)  "
        "layers.0.attn_norm -> layers.0.v float32[tokens, 32]",
    ]


def test_products_in_different_integer_formats_share_one_quantized_input() -> None:
    tensors = llama_tensors(formats={"attn_v": "Q4_0"})
    graph = run_passes(build_graph(llama_model(tensors=tensors)), AUTO)
    norm = graph.producer("layers.0.attn_norm")
    assert norm is not None and isinstance(norm.op, Norm) and norm.op.quantize
    assert [reader.name for reader in graph.consumers("layers.0.attn_norm")] == ["layers.0.q+k", "layers.0.v"]


def normed() -> Graph:
    """n = norm(x); p0 = w0(n); the caller of this adds the readers."""
    graph = empty_graph(tensor("table", (10, 32), "F16"), tensor("gain", (32,)), tensor("w0", (32, 32), "Q8_0"))
    graph.add(Gather("table"), (), ("x",), phase="embed")
    graph.add(Norm("gain", 1e-5), ("x",), ("n",))
    return graph


def test_an_output_of_the_graph_stays_float() -> None:
    graph = normed()
    graph.outputs = ("out", "n")
    graph.add(MatMul(("w0",), (None,)), ("n",), ("out",))
    after = quantize_activations(graph, AUTO)
    after.check()
    assert program(after)[1:] == [
        "layer  n  Norm(weight=gain:F32, eps=1e-05)  x -> n float32[tokens, 32]",
        "layer  n.q8  Quantize(digits=2)  n -> n.q8 q16[tokens, 32]",
        "layer  out  MatMul(weights=w0:Q8_0)  n.q8 -> out float32[tokens, 32]",
    ]


def test_a_residual_stays_float() -> None:
    graph = normed()
    graph.weights["w1"] = tensor("w1", (32, 32), "Q8_0")
    graph.add(MatMul(("w0",), (None,)), ("n",), ("p0",))
    graph.add(MatMul(("w1",), (None,), accumulate=True), ("p0", "n"), ("out",))
    after = quantize_activations(graph, AUTO)
    after.check()
    assert program(after)[1:] == [
        "layer  n  Norm(weight=gain:F32, eps=1e-05)  x -> n float32[tokens, 32]",
        "layer  n.q8  Quantize(digits=2)  n -> n.q8 q16[tokens, 32]",
        "layer  p0  MatMul(weights=w0:Q8_0)  n.q8 -> p0 float32[tokens, 32]",
        "layer  p0.q8  Quantize(digits=2)  p0 -> p0.q8 q16[tokens, 32]",
        "layer  out  MatMul(weights=w1:Q8_0, accumulate=True)  p0.q8, n -> out float32[tokens, 32]",
    ]
