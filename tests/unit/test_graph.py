"""The graph: order, bookkeeping of rewrites, and that `check` finds every way to break it."""

from __future__ import annotations

import dataclasses

import pytest
from small_models import empty_graph, program, tensor

from aircompile.graph import Graph, GraphError, Operator, Value
from aircompile.operators import (
    Activation,
    Add,
    Attention,
    GatedActivation,
    Gather,
    MatMul,
    Multiply,
    Norm,
    Op,
    Quantize,
    Rope,
    RopeStore,
    Scale,
    SelectRows,
    Slice,
)

TABLE = tensor("table", (10, 32), "F16")
SQUARE = tensor("square", (32, 32), "Q8_0")
OTHER = tensor("other", (32, 32), "F16")
GAIN = tensor("gain", (32,))


def small() -> Graph:
    """x = table[ids]; out = x + square(norm(x))."""
    graph = empty_graph(TABLE, SQUARE, GAIN)
    graph.add(Gather("table"), (), ("x",), phase="embed")
    graph.add(Norm("gain", 1e-5), ("x",), ("n",), layer=0)
    graph.add(MatMul(("square",), (None,)), ("n",), ("m",), layer=0)
    graph.add(Add(), ("x", "m"), ("out",), name="sum", layer=0)
    return graph


def names(graph: Graph) -> list[str]:
    return [operator.name for operator in graph.operators()]


def test_values_are_typed_by_their_operators() -> None:
    graph = small()
    graph.check()
    assert graph.values["x"] == Value("x", 32, "tokens", "float32")
    graph.add(SelectRows(), ("m",), ("selected",))
    graph.add(Quantize(), ("selected",), ("rounded",))
    assert graph.values["rounded"] == Value("rounded", 32, "outputs", "q8")


def test_dump() -> None:
    assert program(small()) == [
        "embed  x  Gather(table=table:F16)  -> x float32[tokens, 32]",
        "layer 0  n  Norm(weight=gain:F32, eps=1e-05)  x -> n float32[tokens, 32]",
        "layer 0  m  MatMul(weights=square:Q8_0)  n -> m float32[tokens, 32]",
        "layer 0  sum  Add()  x, m -> out float32[tokens, 32]",
    ]


def test_producers_and_consumers() -> None:
    graph = small()
    assert graph.producer("out") == Operator("sum", Add(), ("x", "m"), ("out",), 0, "layer")
    assert graph.producer("nothing") is None
    assert [reader.name for reader in graph.consumers("x")] == ["n", "sum"]
    assert graph.only_consumer("x") is None
    assert graph.only_consumer("m") == graph.operator("sum")
    assert graph.only_consumer("out") is None
    assert graph.ancestors("m") == {"x", "n"}


def test_ready_operators_run_in_insertion_order() -> None:
    graph = small()
    for name in ("c", "a", "b"):
        graph.add(Activation("silu"), ("x",), (name,))
    assert names(graph) == ["x", "n", "m", "sum", "c", "a", "b"]
    # what replaces an operator stands where it stood, whatever came since
    new = [Operator(name, Activation("silu"), ("x",), (name,), -1, "layer") for name in ("z", "y")]
    graph.replace(["c"], new)
    assert names(graph) == ["x", "n", "m", "sum", "z", "y", "a", "b"]
    graph.replace(["y"], [dataclasses.replace(new[1], name="y2")])
    assert names(graph) == ["x", "n", "m", "sum", "z", "y2", "a", "b"]


def test_order_follows_dependencies_after_a_rewrite() -> None:
    graph = small()
    graph.add(Activation("silu"), ("m",), ("late",))
    graph.replace(["n"], [dataclasses.replace(graph.operator("n"), inputs=("x",))])
    moved = dataclasses.replace(graph.operator("sum"), inputs=("x", "late"))
    graph.replace(["sum"], [moved])
    assert names(graph) == ["x", "n", "m", "late", "sum"]
    graph.check()


def test_replace_drops_what_nothing_refers_to() -> None:
    graph = small()
    graph.replace(["m", "n"], [Operator("m", Activation("silu"), ("x",), ("m",), 0, "layer")])
    assert graph.values.keys() == {"x", "m", "out"}
    assert graph.weights.keys() == {"table"}
    graph.check()


def test_remove_leaves_a_hole_that_can_be_filled() -> None:
    graph = small()
    graph.remove("n")
    with pytest.raises(GraphError, match="nothing produces n"):
        graph.check()
    graph.add(Activation("silu"), ("x",), ("n",))
    graph.check()
    assert names(graph) == ["x", "n", "m", "sum"]


def test_a_copy_is_independent() -> None:
    graph = small()
    before = graph.dump()
    other = graph.copy()
    other.replace(["m", "n"], [Operator("m", Activation("silu"), ("x",), ("m",), 0, "layer")])
    assert graph.dump() == before
    assert [reader.name for reader in graph.consumers("x")] == ["n", "sum"]
    assert graph.weights.keys() == {"table", "square", "gain"}
    graph.check()
    graph.replace(["m", "n"], [Operator("m", Activation("silu"), ("x",), ("m",), 0, "layer")])
    graph.check()
    assert graph.dump() == other.dump()


def test_one_operator_reading_a_value_twice() -> None:
    graph = empty_graph(TABLE)
    graph.add(Gather("table"), (), ("x",))
    graph.add(Add(), ("x", "x"), ("out",))
    graph.check()
    assert graph.only_consumer("x") == graph.operator("out")


def test_refused_while_building() -> None:
    graph = small()
    with pytest.raises(GraphError, match="two operators named m"):
        graph.add(Activation("silu"), ("x",), ("y",), name="m")
    with pytest.raises(GraphError, match="twice and m both produce m"):
        graph.add(Activation("silu"), ("x",), ("m",), name="twice")
    with pytest.raises(GraphError, match="refers to nowhere"):
        graph.add(Activation("silu"), ("nowhere",), ("y",))
    with pytest.raises(GraphError, match="refers to unknown"):
        graph.add(Norm("unknown", 1e-5), ("x",), ("y",))
    with pytest.raises(GraphError, match="2 outputs instead of 1"):
        graph.add(Activation("silu"), ("x",), ("y", "z"))


def test_check_finds_a_circle() -> None:
    graph = small()
    graph.replace(["n"], [dataclasses.replace(graph.operator("n"), inputs=("out",))])
    with pytest.raises(GraphError, match="depend on each other in a circle"):
        graph.check()


def test_check_finds_an_unread_value() -> None:
    graph = small()
    graph.add(Activation("silu"), ("x",), ("extra",))
    with pytest.raises(GraphError, match="nothing reads extra"):
        graph.check()


def test_check_finds_a_missing_output() -> None:
    graph = empty_graph(TABLE, outputs=("x", "logits"))
    graph.add(Gather("table"), (), ("x",))
    with pytest.raises(GraphError, match="nothing produces the output logits"):
        graph.check()


def test_check_finds_an_unused_weight() -> None:
    graph = empty_graph(TABLE, GAIN, outputs=("x",))
    graph.add(Gather("table"), (), ("x",))
    with pytest.raises(GraphError, match="no operator refers to the weight gain"):
        graph.check()


def test_check_finds_a_type_that_no_longer_fits_its_reader() -> None:
    graph = small()
    selected = Operator("n", SelectRows(), ("x",), ("n",), 0, "layer")
    graph.replace(["n"], [selected])
    with pytest.raises(GraphError, match=r"m is Value.*'tokens'.*but m makes Kind.*'outputs'"):
        graph.check()


def test_check_finds_a_residual_that_is_read_after_it_was_overwritten() -> None:
    graph = small()
    fused = Operator("m", MatMul(("square",), (None,), accumulate=True), ("n", "x"), ("out",), 0, "layer")
    graph.replace(["m", "sum"], [fused])
    graph.check()
    graph.outputs = ("out", "x")
    with pytest.raises(GraphError, match="m accumulates onto x, which is read elsewhere"):
        graph.check()
    graph.outputs = ("out", "late")
    graph.add(Activation("silu"), ("x",), ("late",))
    with pytest.raises(GraphError, match=r"m accumulates onto x, which is read elsewhere \['late'\]"):
        graph.check()


HEADS = Attention(4, 2, 8, 8, 0.3)
STORE = RopeStore(4, 2, 8, 8, 8, "normal")


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        (Gather("table"), ["x"], "1 inputs instead of 0"),
        (Norm("square", 1e-5), ["x"], "square of shape (32, 32) is no vector of 32"),
        (Norm("gain", 1e-5), ["wide"], "gain of shape (32,) is no vector of 64"),
        (Norm("gain", 1e-5), ["q8"], "q8 is q8, not float32"),
        (MatMul(("gain",), (None,)), ["x"], "gain of shape (32,) is no matrix"),
        (MatMul(("square",), (None,)), ["wide"], "square has 32 columns for rows of 64 (wide)"),
        (MatMul(("square", "other"), (None, None)), ["x"], "other is in F16, the first member in Q8_0"),
        (MatMul(("other",), (None,)), ["q8"], "quantized rows (q8) with a matrix in F16"),
        (MatMul(("square",), ("square",)), ["x"], "square of shape (32, 32) is no vector of 32"),
        (MatMul(("square",), ()), ["x"], "1 weights with 0 biases"),
        (MatMul(("square",), (None,), accumulate=True), ["x"], "1 inputs instead of 2"),
        (MatMul(("square",), (None,), accumulate=True), ["x", "wide"], "wide is [tokens, 64], not [tokens, 32]"),
        (MatMul(("square",), (None,), accumulate=True), ["x", "few"], "few is [outputs, 32], not [tokens, 32]"),
        (Add(), ["x", "wide"], "wide is [tokens, 64], not [tokens, 32]"),
        (Multiply(), ["x", "few"], "few is [outputs, 32], not [tokens, 32]"),
        (Activation("silu"), ["q8"], "q8 is q8, not float32"),
        (Quantize(), ["q8"], "q8 is q8, not float32"),
        (SelectRows(), ["few"], "few already has the rows of the outputs"),
        (Rope(4, 8, 6, "normal"), ["wide"], "wide is [tokens, 64], not [tokens, 32]"),
        (Rope(4, 8, 7, "normal"), ["x"], "7 rotating elements in heads of 8"),
        (Rope(4, 8, 10, "normal"), ["x"], "10 rotating elements in heads of 8"),
        (Rope(4, 8, 8, "normal", factors="gain"), ["x"], "gain of shape (32,) is no vector of 4"),
        (Rope(4, 8, 8, "normal"), ["few"], "few is [outputs, 32], not [tokens, 32]"),
        (HEADS, ["x", "wide"], "2 inputs instead of 3"),
        (HEADS, ["x", "x", "x"], "x is [tokens, 32], not [tokens, 16]"),
        (Attention(4, 3, 8, 8, 0.3), ["x", "x", "x"], "4 heads do not divide over 3"),
        (dataclasses.replace(HEADS, slot=0), ["x", "x", "x"], "3 inputs instead of 1"),
        (dataclasses.replace(HEADS, sinks="gain"), ["x", "half", "half"], "gain of shape (32,) is no vector of 4"),
        (dataclasses.replace(HEADS, v_dim=4), ["x", "half", "half"], "half is [tokens, 16], not [tokens, 8]"),
        (STORE, ["x"], "1 inputs instead of 3"),
        (STORE, ["x", "x", "half"], "x is [tokens, 32], not [tokens, 16]"),
        (dataclasses.replace(STORE, dim=3), ["x", "half", "half"], "3 rotating elements in heads of 8"),
        (GatedActivation("silu"), ["x", "few"], "few is [outputs, 32], not [tokens, 32]"),
        (GatedActivation("silu"), ["x", "wide"], "wide is [tokens, 64], not [tokens, 32]"),
        (Norm("gain", 1e-5, groups=3), ["x"], "32 columns (x) are not 3 equal groups"),
        (Norm("gain", 1e-5, groups=2, quantize=True), ["x"], "groups of a row are not quantized"),
        (Scale("gain"), ["half"], "16 columns (half) are not 32 equal groups (gain)"),
        (Slice(24, 16), ["x"], "columns 24 to 40 of x, which has 32"),
        (Slice(0, 16), ["q8"], "q8 is q8, not float32"),
    ],
)
def test_misfits_are_refused(op: Op, inputs: list[str], reason: str) -> None:
    graph = empty_graph(TABLE, SQUARE, OTHER, GAIN, tensor("tall", (64, 32), "Q8_0"))
    graph.add(Gather("table"), (), ("x",))
    graph.add(MatMul(("tall",), (None,)), ("x",), ("wide",))
    graph.add(SelectRows(), ("x",), ("few",))
    graph.add(Slice(0, 16), ("x",), ("half",))
    graph.add(Quantize(), ("x",), ("q8",))
    with pytest.raises(GraphError) as caught:
        graph.add(op, inputs, ("y",))
    assert str(caught.value).startswith(f"y: {type(op).__name__}: ")
    assert reason in str(caught.value)
    assert "y" not in graph.values


def test_members_keep_their_names_and_columns() -> None:
    op = MatMul(("square", "tall"), (None, None))
    weights = {"square": SQUARE, "tall": tensor("tall", (64, 32), "Q8_0")}
    assert op.members(weights) == (("square", 0, 32), ("tall", 32, 96))
