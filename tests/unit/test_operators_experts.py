"""Typing rules of mixtures of experts and of heads: what fits is typed, and misfits are refused by name."""

from __future__ import annotations

import pytest
from small_models import empty_graph, tensor

from aircompile.graph import Graph, GraphError
from aircompile.operators import (
    Dispatch,
    ExpertMatMul,
    Gather,
    HeadMatMul,
    Join,
    MatMul,
    Op,
    Quantize,
    Route,
    SelectRows,
    Slice,
    SortByExpert,
    Split,
    SumExperts,
)

N, N_USED = 6, 2
TENSORS = (
    tensor("table", (10, 64), "F16"),
    tensor("router", (N, 64), "F32"),
    tensor("bank", (N, 48, 64), "Q8_0"),
    tensor("plain", (N, 48, 64), "F16"),
    tensor("heads", (4, 32, 16), "F16"),
    tensor("biases", (N, 48)),
    tensor("bias", (N,)),
    tensor("flat", (48, 64), "Q8_0"),
    tensor("narrow", (48, 22), "F16"),
)


def routed() -> Graph:
    """x [tokens, 64], its route, order and dispatched rows, rounded or not, and products."""
    graph = empty_graph(*TENSORS)
    graph.add(Gather("table"), (), ("x",))
    graph.add(MatMul(("router",), (None,)), ("x",), ("logits",))
    graph.add(Route(N_USED, "softmax", True), ("logits",), ("numbers", "weights"))
    graph.add(SortByExpert(N), ("numbers",), ("order",))
    graph.add(Dispatch(N, N_USED), ("x", "order"), ("rows",))
    graph.add(Quantize(), ("x",), ("x8",))
    graph.add(Dispatch(N, N_USED), ("x8", "order"), ("rows8",))
    graph.add(ExpertMatMul("bank", N, "biases"), ("rows8", "order"), ("y",))
    graph.add(SelectRows(), ("x",), ("few",))
    return graph


def test_rows_per_token_are_part_of_the_type() -> None:
    graph = routed()
    graph.add(SumExperts(N), ("y", "order", "weights"), ("sum",))
    graph.add(Split(4), ("x",), ("split",))
    graph.add(HeadMatMul("heads"), ("split",), ("per_head",))
    graph.add(Slice(0, 8), ("split",), ("part",))
    graph.add(Join(), ("part", "per_head"), ("joined",))
    graph.add(Join(), ("x", "part"), ("repeated",))
    shapes = {name: f"{value.dtype}{value.shape}" for name, value in graph.values.items()}
    assert shapes["numbers"] == "int32[tokens, 2]" and shapes["weights"] == "float32[tokens, 2]"
    assert shapes["rows"] == "float32[tokens x 2, 64]" and shapes["rows8"] == "q8[tokens x 2, 64]"
    assert shapes["y"] == "float32[tokens x 2, 48]" and shapes["sum"] == "float32[tokens, 48]"
    assert shapes["split"] == "float32[tokens x 4, 16]" and shapes["per_head"] == "float32[tokens x 4, 32]"
    assert shapes["joined"] == "float32[tokens x 4, 40]" and shapes["repeated"] == "float32[tokens x 4, 72]"


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        (Route(7, "softmax", False), ["logits"], "7 of 6 experts"),
        (Route(0, "softmax", False), ["logits"], "0 of 6 experts"),
        (Route(3, "sigmoid", False, n_groups=3, n_groups_used=1), ["logits"], "3 of 2 experts"),
        (Route(2, "sigmoid", False, n_groups=4, n_groups_used=1), ["logits"], "1 of 4 groups of 6 experts"),
        (Route(2, "sigmoid", False, n_groups=3, n_groups_used=4), ["logits"], "4 of 3 groups"),
        (Route(2, "sigmoid", False, n_groups=3, group_best=3), ["logits"], "groups of 6 experts"),
        (Route(2, "sigmoid", False, bias="biases"), ["logits"], "biases of shape (6, 48) is no vector of 6"),
        (Route(2, "softmax", False), ["numbers"], "numbers is int32, not float32"),
        (SortByExpert(N), ["weights"], "weights is float32, not int32"),
        (Dispatch(N, 3), ["x", "order"], "order is [tokens, 22], not [tokens, 25]"),
        (Dispatch(N, N_USED), ["x"], "1 inputs instead of 2"),
        (Dispatch(N, N_USED), ["few", "order"], "order is [tokens, 22], not [outputs, 22]"),
        (Dispatch(N, N_USED), ["x8", "order", "weights"], "x8 is q8, not float32"),
        (Dispatch(N, N_USED), ["rows", "order"], "rows is [tokens x 2, 64], not [tokens, 64]"),
        (ExpertMatMul("flat", N), ["rows8", "order"], "flat of shape (48, 64) is not 6 matrices"),
        (ExpertMatMul("bank", 5), ["rows8", "order"], "bank of shape (6, 48, 64) is not 5 matrices"),
        (ExpertMatMul("plain", N), ["rows8", "order"], "quantized rows (rows8) with a matrix in F16"),
        (ExpertMatMul("bank", N), ["y", "order"], "bank has 64 columns for rows of 48 (y)"),
        (ExpertMatMul("bank", N), ["x8", "order"], "order is [tokens, 22], not [tokens, 19]"),
        (ExpertMatMul("bank", N, "bias"), ["rows", "order"], "bias of shape (6,) is not 6 rows of 48"),
        (MatMul(("flat",), (None,)), ["rows8"], "rows8 has 2 rows per token, not one"),
        (MatMul(("narrow",), (None,)), ["order"], "order is int32: no matrix takes that"),
        (SelectRows(), ["rows"], "rows has 2 rows per token, not one"),
        (SumExperts(N), ["x", "order"], "order is [tokens, 22], not [tokens, 19]"),
        (SumExperts(N), ["y", "order", "logits"], "logits is [tokens, 6], not [tokens, 2]"),
        (HeadMatMul("heads"), ["x"], "heads of shape (4, 32, 16) is not 1 matrices"),
        (Split(5), ["x"], "64 columns (x) are not 5 equal parts"),
        (Split(4), ["x8"], "x8 is q8, not float32"),
        (Join(), ["x", "few"], "few is [outputs, 64], not [tokens, 64]"),
        (Join(), ["x", "x", "x"], "3 inputs instead of 2"),
    ],
)
def test_misfits_are_refused(op: Op, inputs: list[str], reason: str) -> None:
    outputs = ("a", "b") if isinstance(op, Route) else ("a",)
    with pytest.raises(GraphError) as caught:
        routed().add(op, inputs, outputs)
    assert reason in str(caught.value)
