"""Each pass: the program before and after, and where it must not apply."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from small_models import empty_graph, llama_model, llama_tensors, program, tensor

from aircompile.architectures import build_graph
from aircompile.frontends.gguf import GGUFModel
from aircompile.graph import Graph, GraphError
from aircompile.operators import (
    Activation,
    Add,
    Attention,
    GatedActivation,
    Gather,
    MatMul,
    Multiply,
    Norm,
    Rope,
    RopeStore,
)
from aircompile.passes.fold_constants import fold_constants
from aircompile.passes.fuse_gated_activation import fuse_gated_activation
from aircompile.passes.fuse_projections import fuse_projections
from aircompile.passes.fuse_residual import fuse_residual
from aircompile.passes.fuse_rope_store import fuse_rope_store
from aircompile.passes.options import PassOptions
from aircompile.passes.select_outputs import select_outputs
from airrun.errors import ModelFileError

AUTO = PassOptions()


def products(n: int, *, kind: str = "Q8_0", rows: int = 32, source: str = "table") -> Graph:
    """A table's rows x, and values p0, p1, ... = matrix_i(x)."""
    matrices = [tensor(f"w{i}", (rows, 32), kind) for i in range(n)]
    graph = empty_graph(tensor(source, (10, 32), "F16"), *matrices)
    graph.add(Gather(source), (), ("x",), phase="embed")
    for i in range(n):
        graph.add(MatMul((f"w{i}",), (None,)), ("x",), (f"p{i}",))
    return graph


# fold_constants


def model_with_factors(path: Path, factors: Sequence[float], nbytes: int = 32) -> GGUFModel:
    path.write_bytes(b"\0" * 64 + np.array(factors, "<f4").tobytes()[:nbytes])
    tensors = llama_tensors(rope_factors=True)
    tensors["rope_freqs.weight"] = tensor("rope_freqs.weight", (8,), offset=64)
    return llama_model(tensors=tensors, path=path)


def test_factors_are_folded_into_the_rope_table(tmp_path: Path) -> None:
    factors = [1, 1, 2, 4, 8, 8, 8, 8]
    graph = build_graph(model_with_factors(tmp_path / "model.gguf", factors))
    folded = fold_constants(graph, AUTO)
    folded.check()
    expected = [10000.0 ** (-i / 8) / factor for i, factor in enumerate(factors)]
    np.testing.assert_allclose(folded.hyper.ropes[0].inverse_frequency, expected, rtol=1e-14)
    assert folded.constants["rope.inverse_frequency"].tolist() == folded.hyper.ropes[0].inverse_frequency.tolist()
    assert folded.constants["rope.inverse_frequency"].dtype == np.float64
    assert folded.constants["rope.axis"].tolist() == [0] * 8
    assert folded.constants["rope.magnitude"].tolist() == [1.0] * 8
    assert "rope_freqs.weight" not in folded.weights
    line = "Rope(n_heads=4, head_dim=16, dim=16, mode=normal, factors=rope_freqs.weight:F32)"
    before, after = program(graph), program(folded)
    assert [text.replace(line, "Rope(n_heads=4, head_dim=16, dim=16, mode=normal)") for text in before] != after
    assert [text.replace(", factors=rope_freqs.weight:F32", "") for text in before] == after
    # the graph before is as it was
    assert graph.hyper.ropes[0].inverse_frequency[3] == 10000.0 ** (-3 / 8)
    graph.check()


def test_without_factors_the_table_is_that_of_the_metadata() -> None:
    folded = fold_constants(build_graph(llama_model()), AUTO)
    np.testing.assert_allclose(folded.constants["rope.inverse_frequency"], [10000.0 ** (-i / 8) for i in range(8)])


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_absurd_factors(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "model.gguf"
    graph = build_graph(model_with_factors(path, [1, 1, 1, bad, 1, 1, 1, 1]))
    with pytest.raises(ModelFileError, match=rf"^{path}: at offset 64: tensor 'rope_freqs.weight' holds factors that"):
        fold_constants(graph, AUTO)


def test_truncated_or_vanished_factors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    graph = build_graph(model_with_factors(path, [1] * 8, nbytes=20))
    with pytest.raises(ModelFileError, match=rf"^{path}: at offset 64: .* ends after 20 of 32 bytes"):
        fold_constants(graph, AUTO)
    path.unlink()
    with pytest.raises(ModelFileError, match=rf"^{path}: cannot be read: No such file"):
        fold_constants(graph, AUTO)


def test_different_factors_are_a_defect() -> None:
    graph = attention(factors="factors")
    k = graph.operator("rk")
    graph.replace(["rk"], [dataclasses.replace(k, op=Rope(2, 8, 8, "normal"))])
    with pytest.raises(GraphError, match="rotary positions with different factors"):
        fold_constants(graph, AUTO)


# select_outputs


def test_head_runs_on_the_output_rows() -> None:
    graph = build_graph(llama_model())
    after = select_outputs(graph, AUTO)
    after.check()
    assert program(after)[:-3] == program(graph)[:-2]
    assert program(after)[-3:] == [
        "head  layers.0.ffn_residual.selected  SelectRows()  "
        "layers.0.ffn_residual -> layers.0.ffn_residual.selected float32[outputs, 64]",
        "head  output_norm  Norm(weight=output_norm.weight:F32, eps=1e-05)  "
        "layers.0.ffn_residual.selected -> output_norm float32[outputs, 64]",
        "head  logits  MatMul(weights=output.weight:Q8_0)  output_norm -> logits float32[outputs, 40]",
    ]
    assert select_outputs(after, AUTO).dump() == after.dump()


def test_a_value_that_enters_the_head_twice_is_selected_once() -> None:
    graph = products(0, source="table")
    graph.add(Activation("silu"), ("x",), ("a",), phase="head")
    graph.add(Add(), ("x", "a"), ("out",), phase="head")
    after = select_outputs(graph, AUTO)
    after.check()
    assert program(after)[1:] == [
        "head  x.selected  SelectRows()  x -> x.selected float32[outputs, 32]",
        "head  a  Activation(kind=silu)  x.selected -> a float32[outputs, 32]",
        "head  out  Add()  x.selected, a -> out float32[outputs, 32]",
    ]


# fuse_rope_store


def attention(*, k_dim: int = 8, extra: bool = False, factors: str | None = None) -> Graph:
    """q, k, v of one input, rotated, attended."""
    graph = empty_graph(
        tensor("table", (10, 32), "F16"),
        tensor("q", (32, 32), "Q8_0"),
        tensor("k", (16, 32), "Q8_0"),
        tensor("v", (16, 32), "Q8_0"),
        tensor("factors", (4,)),
    )
    graph.add(Gather("table"), (), ("x",), phase="embed")
    for name in "qkv":
        graph.add(MatMul((name,), (None,)), ("x",), (name,), layer=0)
    graph.add(Rope(4, 8, 8, "normal", factors=factors), ("q",), ("rq",), layer=0)
    graph.add(Rope(2, 8, k_dim, "normal", factors=factors), ("k",), ("rk",), layer=0)
    graph.add(Attention(4, 2, 8, 8, 0.5), ("rq", "rk", "v"), ("a" if extra else "out",), layer=0)
    if extra:
        graph.add(Add(), ("a", "rq"), ("out",), layer=0)
    if factors is None:
        del graph.weights["factors"]
    return graph


def test_rotation_and_store() -> None:
    after = fuse_rope_store(attention(), AUTO)
    after.check()
    assert program(after)[4:] == [
        "layer 0  rq+rk  RopeStore(n_heads=4, n_kv_heads=2, head_dim=8, v_dim=8, dim=8, mode=normal)  "
        "q, k, v -> rq float32[tokens, 32]",
        "layer 0  out  Attention(n_heads=4, n_kv_heads=2, head_dim=8, v_dim=8, scale=0.5, slot=0)  "
        "rq -> out float32[tokens, 32]",
    ]


@pytest.mark.parametrize(
    "graph",
    [attention(k_dim=6), attention(extra=True), attention(factors="factors")],
    ids=["different rotations", "rotated q read elsewhere", "factors not folded"],
)
def test_rotations_that_stay(graph: Graph) -> None:
    graph.check()
    after = fuse_rope_store(graph, AUTO)
    after.check()
    assert [after.operator(name).op for name in ("rq", "rk")] == [graph.operator(name).op for name in ("rq", "rk")]
    (store,) = [operator for operator in after.operators() if isinstance(operator.op, RopeStore)]
    assert store.inputs == ("rq", "rk", "v") and store.op == RopeStore(4, 2, 8, 8, 0, "normal")


def test_attention_over_the_same_keys_and_values_shares_a_cache() -> None:
    graph = attention(extra=True)
    graph.replace(["out"], [])
    graph.add(Rope(4, 8, 8, "normal"), ("a",), ("rq2",), layer=1)
    graph.add(Attention(4, 2, 8, 8, 0.25), ("rq2", "rk", "v"), ("out",), layer=1)
    graph.check()
    after = fuse_rope_store(graph, AUTO)
    after.check()
    assert program(after)[4:] == [
        "layer 0  rq+rk  RopeStore(n_heads=4, n_kv_heads=2, head_dim=8, v_dim=8, dim=8, mode=normal)  "
        "q, k, v -> rq float32[tokens, 32]",
        "layer 0  a  Attention(n_heads=4, n_kv_heads=2, head_dim=8, v_dim=8, scale=0.5, slot=0)  "
        "rq -> a float32[tokens, 32]",
        "layer 1  rq2  Rope(n_heads=4, head_dim=8, dim=8, mode=normal)  a -> rq2 float32[tokens, 32]",
        "layer 1  out  Attention(n_heads=4, n_kv_heads=2, head_dim=8, v_dim=8, scale=0.25, slot=0)  "
        "rq2 -> out float32[tokens, 32]",
    ]


# fuse_gated_activation


@pytest.mark.parametrize("inputs", [("a", "p1"), ("p1", "a")])
def test_gated_activation(inputs: tuple[str, str]) -> None:
    graph = products(2)
    graph.add(Activation("silu"), ("p0",), ("a",))
    graph.add(Multiply(), inputs, ("out",))
    after = fuse_gated_activation(graph, AUTO)
    after.check()
    assert program(after)[3:] == ["layer  out  GatedActivation(kind=silu)  p0, p1 -> out float32[tokens, 32]"]


def test_an_activation_that_is_read_elsewhere_stays() -> None:
    graph = products(2)
    graph.add(Activation("silu"), ("p0",), ("a",))
    graph.add(Multiply(), ("a", "p1"), ("m",))
    graph.add(Add(), ("m", "a"), ("out",))
    assert fuse_gated_activation(graph, AUTO).dump() == graph.dump()


def test_a_square_of_an_activation_stays() -> None:
    graph = products(1)
    graph.add(Activation("silu"), ("p0",), ("a",))
    graph.add(Multiply(), ("a", "a"), ("out",))
    assert fuse_gated_activation(graph, AUTO).dump() == graph.dump()


# fuse_projections


def gated(graph: Graph, gate: str, up: str) -> Graph:
    graph.add(GatedActivation("silu"), (gate, up), ("out",))
    return graph


def test_two_projections_of_one_input() -> None:
    after = fuse_projections(gated(products(2), "p1", "p0"), AUTO)
    after.check()
    assert program(after)[1:] == [
        "layer  p0+p1  MatMul(weights=w0:Q8_0+w1:Q8_0)  x -> p0+p1 float32[tokens, 64]",
        "layer  p0  Slice(first=0, width=32)  p0+p1 -> p0 float32[tokens, 32]",
        "layer  p1  Slice(first=32, width=32)  p0+p1 -> p1 float32[tokens, 32]",
        "layer  out  GatedActivation(kind=silu)  p1, p0 -> out float32[tokens, 32]",
    ]


def test_three_formats_of_qkv() -> None:
    def fused(**formats: str) -> list[str]:
        tensors = llama_tensors(formats=formats, biases=("attn_k",))
        after = fuse_projections(build_graph(llama_model(tensors=tensors)), AUTO)
        after.check()
        lines = [line for line in program(after) if " layers.0.attn_norm ->" in line or "Slice" in line]
        lines = [line for line in lines if "gate" not in line]
        return [re.sub(r"blk\.0\.attn_|layers\.0\.|layer 0  | float32.*", "", line) for line in lines]

    bias = "biases=None+k.bias:F32+None"
    assert fused() == [
        f"q+k+v  MatMul(weights=q.weight:Q8_0+k.weight:Q8_0+v.weight:Q8_0, {bias})  attn_norm -> q+k+v",
        "q  Slice(first=0, width=64)  q+k+v -> q",
        "k  Slice(first=64, width=32)  q+k+v -> k",
        "v  Slice(first=96, width=32)  q+k+v -> v",
    ]
    assert fused(attn_k="Q4_0") == [
        "q+v  MatMul(weights=q.weight:Q8_0+v.weight:Q8_0)  attn_norm -> q+v",
        "q  Slice(first=0, width=64)  q+v -> q",
        "v  Slice(first=64, width=32)  q+v -> v",
        "k  MatMul(weights=k.weight:Q4_0, biases=k.bias:F32)  attn_norm -> k",
    ]
    assert [line.split()[0] for line in fused(attn_k="Q4_0", attn_v="F16")] == ["q", "k", "v"]


def of_other_input() -> Graph:
    graph = products(1)
    graph.add(Activation("silu"), ("x",), ("y",))
    graph.weights["w1"] = tensor("w1", (32, 32), "Q8_0")
    graph.add(MatMul(("w1",), (None,)), ("y",), ("p1",))
    return gated(graph, "p0", "p1")


def added_to_a_residual() -> Graph:
    graph = products(2)
    graph.add(GatedActivation("silu"), ("p0", "p0"), ("g",))
    graph.add(Add(), ("g", "p1"), ("out",))
    return graph


@pytest.mark.parametrize(
    "graph",
    [gated(products(2, rows=24), "p0", "p1"), of_other_input(), added_to_a_residual(), gated(products(1), "p0", "p0")],
    ids=["rows not of whole panels", "different inputs", "added to a residual", "one product twice"],
)
def test_projections_that_stay(graph: Graph) -> None:
    graph.check()
    assert fuse_projections(graph, AUTO).dump() == graph.dump()


# fuse_residual


@pytest.mark.parametrize("inputs", [("x", "p0"), ("p0", "x")])
def test_residual(inputs: tuple[str, str]) -> None:
    graph = empty_graph(tensor("table", (10, 32), "F16"), tensor("gain", (32,)), tensor("w0", (32, 32), "Q8_0"))
    graph.add(Gather("table"), (), ("x",), phase="embed")
    graph.add(Norm("gain", 1e-5), ("x",), ("n",))
    graph.add(MatMul(("w0",), (None,)), ("n",), ("p0",))
    graph.add(Add(), inputs, ("out",))
    after = fuse_residual(graph, AUTO)
    after.check()
    assert program(after)[1:] == [
        "layer  n  Norm(weight=gain:F32, eps=1e-05)  x -> n float32[tokens, 32]",
        "layer  p0  MatMul(weights=w0:Q8_0, accumulate=True)  n, x -> out float32[tokens, 32]",
    ]


def test_two_products_on_one_residual() -> None:
    graph = products(2)
    graph.add(Activation("silu"), ("x",), ("r",))
    graph.add(Add(), ("p0", "p1"), ("s",))
    graph.add(Add(), ("r", "s"), ("out",))
    after = fuse_residual(graph, AUTO)
    after.check()
    # p1 is added onto p0, and the sum, being a product itself now, cannot be added onto a third
    assert program(after)[1:] == [
        "layer  p0  MatMul(weights=w0:Q8_0)  x -> p0 float32[tokens, 32]",
        "layer  p1  MatMul(weights=w1:Q8_0, accumulate=True)  x, p0 -> s float32[tokens, 32]",
        "layer  r  Activation(kind=silu)  x -> r float32[tokens, 32]",
        "layer  out  Add()  r, s -> out float32[tokens, 32]",
    ]


def residual_read_later() -> Graph:
    graph = products(1)
    graph.add(Activation("silu"), ("x",), ("r",))
    graph.add(Add(), ("r", "p0"), ("s",))
    graph.add(Add(), ("s", "r"), ("out",))
    return graph


def product_read_elsewhere() -> Graph:
    graph = products(1)
    graph.add(Activation("silu"), ("x",), ("r",))
    graph.add(Add(), ("r", "p0"), ("s",))
    graph.add(Multiply(), ("s", "p0"), ("out",))
    return graph


def residual_is_the_input() -> Graph:
    graph = products(1)
    graph.add(Add(), ("x", "p0"), ("out",))
    return graph


def parallel_branch() -> Graph:
    """x + p0(x'), where another branch may read x after the sum."""
    graph = products(1)
    graph.add(Activation("silu"), ("x",), ("r",))
    graph.add(Activation("silu"), ("r",), ("branch",))
    graph.add(Add(), ("r", "p0"), ("s",))
    graph.add(Multiply(), ("s", "branch"), ("out",))
    return graph


@pytest.mark.parametrize(
    "make",
    [residual_read_later, product_read_elsewhere, residual_is_the_input, parallel_branch],
)
def test_sums_that_stay(make: Callable[[], Graph]) -> None:
    graph = make()
    graph.check()
    assert fuse_residual(graph, AUTO).dump() == graph.dump()
