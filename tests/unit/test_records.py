"""Records against the frozen dataclasses they stand for."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace

import pytest

from airrun.records import instances, record


@record
class Point:
    x: int
    name: str


@record
class Other:
    x: int
    name: str


def frozen() -> type:
    @dataclass(frozen=True)
    class Point:
        x: int
        name: str

    Point.__qualname__ = "Point"
    return Point


def test_a_record_does_what_a_frozen_dataclass_does() -> None:
    expected, made = frozen()(3, "a"), Point(3, name="a")
    assert is_dataclass(Point) and [f.name for f in fields(Point)] == [f.name for f in fields(expected)]
    assert repr(made) == repr(expected)
    assert asdict(made) == asdict(expected) == {"x": 3, "name": "a"}
    assert hash(made) == hash(expected) == hash(Point(3, "a"))
    assert made == Point(name="a", x=3) and made != Point(4, "a") and made != Other(3, "a") and made != (3, "a")
    assert replace(made, x=5) == Point(5, "a") and made.x == 3
    assert pickle.loads(pickle.dumps(made)) == made
    match made:
        case Point(x, name):
            assert (x, name) == (3, "a")


def test_a_record_cannot_be_changed() -> None:
    made = Point(3, "a")
    with pytest.raises(FrozenInstanceError):
        made.x = 4  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del made.x
    with pytest.raises(FrozenInstanceError):
        made.z = 4  # type: ignore[attr-defined]
    assert made == Point(3, "a")


@pytest.mark.parametrize(
    ("args", "named"),
    [((1,), {}), ((1, "a", 2), {}), ((1, "a"), {"x": 1}), ((1,), {"x": 1}), ((1,), {"z": 1}), ((), {"x": 1})],
)
def test_fields_are_given_exactly_once(args: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="x, name"):
        Point(*args, **named)  # type: ignore[arg-type]


@record(frozen=False)
class Basket:
    name: str
    items: list[int] = field(default_factory=list)
    size: int = 3


@record(kw_only=True)
class Base:
    x: int = 1

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("negative")


@record(kw_only=True)
class Derived(Base):
    y: int = 2


def test_defaults_are_those_of_dataclasses() -> None:
    first, second = Basket("a"), Basket("b", size=4)
    first.items.append(1)
    first.size = 5
    assert (first, second) == (Basket("a", [1], 5), Basket("b", [], 4))
    with pytest.raises(TypeError, match="unhashable"):
        hash(first)
    with pytest.raises(TypeError, match="lacks name"):
        Basket(size=1)  # type: ignore[call-arg]


def test_fields_that_are_only_named_are_inherited_and_checked() -> None:
    assert (Derived(y=5).x, Derived(x=7).y, replace(Derived(y=5), x=3)) == (1, 2, Derived(x=3, y=5))
    with pytest.raises(TypeError, match="x, y"):
        Derived(1)  # type: ignore[misc]
    with pytest.raises(ValueError, match="negative"):
        Derived(x=-1)


def test_records_without_value_equality_are_themselves() -> None:
    @record(eq=False)
    class Thing:
        x: int

    thing = Thing(1)
    assert thing != Thing(1) and {thing: 1}[thing] == 1


def test_instances_of_rows() -> None:
    assert instances(Point, [(1, "a"), (2, "b")]) == [Point(1, "a"), Point(2, "b")]
    with pytest.raises(ValueError, match="zip"):
        instances(Point, [(1,)])
