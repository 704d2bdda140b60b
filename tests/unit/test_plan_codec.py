"""Dataclasses to JSON and back: exact, deterministic, strict."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_sample import sample

from airrun.errors import PlanError
from airrun.plan.codec import MAX_ITEMS, MAX_TEXT, PLAN_CODEC, Codec
from airrun.plan.schema import Operand


@dataclass(frozen=True)
class Point:
    x: int
    name: str


@dataclass(frozen=True)
class Leaf:
    weight: float
    on: bool
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Tree:
    title: str
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    grid: tuple[tuple[int, ...], ...]
    point: Point


PLAIN, POOLED = Codec(Tree), Codec(Tree, pooled=(Point,))

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8)
POINTS = st.builds(Point, st.integers(-(2**63), 2**63 - 1), TEXT)
LEAVES = st.builds(Leaf, st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.lists(POINTS).map(tuple))
GRIDS = st.lists(st.lists(st.integers(-5, 5), max_size=3).map(tuple), max_size=4).map(tuple)
TREES = st.builds(Tree, TEXT, LEAVES, st.lists(LEAVES, max_size=4).map(tuple), GRIDS, POINTS)
TREE = Tree("t", Leaf(1.5, True, (Point(1, "a"), Point(2, "b"))), (), ((1,), (2, 3)), Point(1, "a"))


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_roundtrip(tree: Tree) -> None:
    for codec in (PLAIN, POOLED):
        data = codec.dumps(tree)
        again = codec.loads(data)
        # repr tells 0.0 from -0.0 and 1 from True, which == does not
        assert repr(again) == repr(tree)
        assert codec.dumps(again) == data
        assert json.loads(data)  # any JSON reader will do


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(TREES, st.data())
def test_a_document_with_a_foreign_part_is_refused_or_means_what_it_says(tree: Tree, data: st.DataObject) -> None:
    document = json.loads(POOLED.dumps(tree))
    parent: Any = document
    key: Any = data.draw(st.sampled_from(["pools", "plan"]))
    while isinstance(parent[key], list | dict) and parent[key] and data.draw(st.integers(0, 4)):
        parent = parent[key]
        key = data.draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
    parent[key] = data.draw(JSON)
    try:
        accepted = POOLED.decode(document)
    except PlanError:
        return
    assert repr(POOLED.loads(POOLED.dumps(accepted))) == repr(accepted)
    assert repr(PLAIN.decode(PLAIN.encode(accepted))) == repr(accepted)


def test_the_document_describes_itself() -> None:
    document = POOLED.encode(TREE)
    assert document["classes"] == {
        "Point": [["x", "int"], ["name", "str"]],
        "Leaf": [["weight", "float"], ["on", "bool"], ["points", "[@Point]"]],
        "Tree": [["title", "str"], ["leaf", "Leaf"], ["leaves", "[Leaf]"], ["grid", "[[int]]"], ["point", "@Point"]],
    }
    assert document["pools"] == {"Point": [[1, "a"], [2, "b"]]}
    assert document["plan"] == ["t", [1.5, True, [0, 1]], [], [[1], [2, 3]], 0]


def test_equal_objects_of_a_pool_are_written_once_and_become_one() -> None:
    tree = replace(TREE, leaf=Leaf(0.0, False, tuple(Point(n % 3, "p") for n in range(30))))
    again = POOLED.loads(POOLED.dumps(tree))
    assert again == tree
    assert len({id(point) for point in again.leaf.points}) == 3


def test_sample_plan_roundtrip() -> None:
    plan, _ = sample()
    again = PLAN_CODEC.loads(PLAN_CODEC.dumps(plan))
    assert repr(again) == repr(plan)
    operands = [operand for program in again.programs for step in program.steps for operand in step.operands]
    assert len({id(operand) for operand in operands}) == len(set(operands))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (replace(TREE, title=1), "title is 1, expected text"),
        (replace(TREE, title="a" * (MAX_TEXT + 1)), f"title is text of {MAX_TEXT + 1} characters"),
        (replace(TREE, title="a\nb"), "title is text with a control character"),
        (replace(TREE, title="\ud800"), "title is text with a control character"),
        (replace(TREE, grid=((1,), (2, True))), r"grid\[1\]\[1\] is True, expected an integer"),
        (replace(TREE, grid=((1,), [2])), r"grid\[1\] is an array of 1, expected a tuple"),
        (replace(TREE, grid=((), (2**63,))), r"grid\[1\]\[0\] is 9223372036854775808, which does not fit"),
        (replace(TREE, grid=((-(2**63) - 1,),)), r"grid\[0\]\[0\] is -9223372036854775809, which does not fit"),
        (replace(TREE, grid=((10**400,),)), r"grid\[0\]\[0\] is an integer of 1329 bits, which does not fit"),
        (replace(TREE, leaf=Leaf(1, True, ())), r"leaf\.weight is 1, expected a number with a fraction"),
        (replace(TREE, leaf=Leaf(math.inf, True, ())), r"leaf\.weight is inf, not a finite number"),
        (replace(TREE, leaf=Leaf(0.5, 1, ())), r"leaf\.on is 1, expected true or false"),
        (
            replace(TREE, leaf=Leaf(0.5, True, (Point(0, ""), None))),
            r"leaf\.points\[1\] is None, expected an object of P",
        ),
        (
            replace(TREE, leaf=Leaf(0.5, True, (Point(0, ""), Point(0, 0)))),
            r"leaf\.points\[1\]\.name is 0, expected text",
        ),
        (replace(TREE, grid=((0,) * (MAX_ITEMS + 1),)), r"grid\[0\] has 1048577 entries, at most 1048576"),
        (None, "plan is None, expected an object of Tree"),
    ],
)
def test_values_of_the_wrong_type_are_not_written(tree: Any, message: str) -> None:
    for codec in (PLAIN, POOLED):
        with pytest.raises(PlanError, match="^" + message):
            codec.encode(tree)


def test_errors_name_the_first_use_of_a_pooled_object() -> None:
    document = json.loads(PLAN_CODEC.dumps(sample()[0]))
    operands = document["plan"][[name for name, _ in document["classes"]["Plan"]].index("programs")][0][2][3][11]
    document["pools"]["Operand"][operands[1]][1] = "x"
    with pytest.raises(
        PlanError, match=r"^programs\[0\]\.steps\[\d\]\.operands\[\d\]\.index is 'x', expected an integer$"
    ):
        PLAN_CODEC.decode(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("plan", 4), -1, "point is place -1 of the pool of Point, which has 2"),
        (("plan", 4), 2, "point is place 2 of the pool of Point, which has 2"),
        (("plan", 4), False, "point is False, expected an integer, a place in the pool"),
        (("plan", 1, 2, 1), 10**9, r"leaf\.points\[1\] is place 1000000000 of the pool"),
        (("plan", 1), [1.5, True], "leaf has 2 fields, Leaf has 3"),
        (("plan", 1), [1.5, True, [], 0], "leaf has 4 fields, Leaf has 3"),
        (("plan", 1), {"weight": 1.5}, "leaf is an object of 1, expected an array, the fields of Leaf"),
        (("plan", 3, 1), None, r"grid\[1\] is None, expected an array"),
        (("plan",), None, "plan is None, expected an array"),
        (("pools",), {}, "pools is not an object of Point"),
        (("pools",), {"Point": [[1, "a"], [2, "b"]], "More": []}, "pools is not an object of Point"),
        (("pools", "Point"), None, r"pools\.Point is not an array"),
        (("pools", "Point"), [[1, "a"], [2, "b"], [3]], r"pools\.Point\[2\] has 1 fields, Point has 2"),
        (("pools", "Point", 1), [2], r"leaf\.points\[1\] has 1 fields, Point has 2"),
        (("classes", "Point", 0, 0), "y", "classes describes another Point"),
        (("classes", "More"), [], "classes describes other classes"),
        (("classes",), [], "classes describes other classes"),
        (("more",), 0, "index is not an object of classes, pools and plan"),
    ],
)
def test_documents_of_the_wrong_shape_are_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    document = json.loads(POOLED.dumps(TREE))
    assert POOLED.decode(document) == TREE
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(PlanError, match="^" + message):
        POOLED.decode(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{",
        b"[" * 100_000,
        b'{"classes":' + b"1" * 5000 + b"}",
        b'{"classes":NaN,"pools":{},"plan":[]}',
        b'{"plan":0,"classes":0,"pools":0,"plan":0}',
        b'{"classes":0,"pools":0,"plan":0} x',
    ],
)
def test_what_is_not_json_is_refused_in_one_short_line(data: bytes) -> None:
    with pytest.raises(PlanError, match="^index is not JSON: ") as caught:
        POOLED.loads(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


def test_every_document_must_be_an_object() -> None:
    for data in (b"0", b"[]", b"{}", b'"plan"', b'{"plan":0,"pools":0,"classes":0}'):
        with pytest.raises(PlanError, match="^index is not an object"):
            POOLED.loads(data)


def test_numbers_that_are_whole_stay_what_they_were() -> None:
    data = POOLED.dumps(TREE).replace(b"1.5", b"2")
    with pytest.raises(PlanError, match=r"^leaf\.weight is 2, expected a number with a fraction"):
        POOLED.loads(data)
    with pytest.raises(PlanError, match=r"^leaf\.weight is inf, not a finite number"):
        POOLED.loads(POOLED.dumps(TREE).replace(b"1.5", b"1e999"))


def test_a_type_that_plans_cannot_have_is_a_mistake_in_the_schema() -> None:
    @dataclass(frozen=True)
    class Bad:
        table: dict[str, int]

    with pytest.raises(TypeError, match="cannot be the type of a field"):
        Codec(Bad)


def test_operands_are_pooled() -> None:
    document = PLAN_CODEC.encode(sample()[0])
    assert list(document["pools"]) == ["Operand"]
    assert [name for name, _ in document["classes"]["Operand"]] == list(Operand.__dataclass_fields__)
