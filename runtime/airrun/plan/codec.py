"""Dataclasses to JSON and back, strictly: the index of a plan.

The document is ``{"classes": ..., "pools": ..., "plan": ...}``. `classes` lists the fields of every class as
[name, type] in order; an object is an array of its fields in that order. A type is ``str``, ``int``, ``float``,
``bool``, a class, ``[T]`` for an array of T, or ``@C`` for a number: an index into ``pools["C"]``, where objects
that recur a lot are written once. That is all a reader in another language needs to know.

Everything works on columns (all values that one field has anywhere), so that types and ranges are checked by a
few calls of C functions a field rather than a few lines of Python a value; the offender is looked for only when
there is one.
"""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, fields, is_dataclass
from itertools import chain, islice
from typing import Any, Generic, NoReturn, TypeVar

from airrun.errors import PlanError
from airrun.plan.checks import fail, show
from airrun.plan.schema import Operand, Plan
from airrun.records import instances, record

MAX_ITEMS = 1 << 20
"""Entries of one array; the largest model known needs a few thousand."""

MAX_TEXT = 1 << 16
"""Characters of one string."""

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
# Every string is a name or one line of text: nothing in it may split a message or steer a terminal.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

T = TypeVar("T")
Where = Callable[[int], str]
"""The path of entry `i` of a column, for messages."""


@record(frozen=False)
class _Pools:
    """The pools of one document: decoded entries by class; when encoding, rows and where each was put."""

    rows: dict[str, list[Any]]
    objects: dict[str, list[Any]] = field(default_factory=dict)
    places: dict[str, dict[str, int]] = field(default_factory=dict)


class _Kind:
    """A type of the schema: how a column of it is checked, written and read."""

    name: str

    def encode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        """JSON-able values of objects."""
        raise NotImplementedError

    def decode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        """Objects of JSON values, or PlanError naming the first wrong one."""
        raise NotImplementedError


class _Scalar(_Kind):
    """A value that JSON has as well; `fault` says what is wrong with one, `sound` finds whole columns good."""

    def __init__(
        self, kind: type, noun: str, sound: Callable[[Sequence[Any]], bool], fault: Callable[[Any], str | None]
    ) -> None:
        self.name, self.kind, self.noun, self.sound, self.fault = kind.__name__, kind, noun, sound, fault

    def encode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        _require(column, self.kind, self.noun, where)
        if not self.sound(column):
            for i, value in enumerate(column):
                reason = self.fault(value)
                if reason is not None:
                    fail(where(i), reason)
        return column

    decode = encode


def _text_fault(value: str) -> str | None:
    if len(value) > MAX_TEXT:
        return f"is text of {len(value)} characters, at most {MAX_TEXT} are allowed"
    return f"is text with a control character: {show(value)}" if _UNPRINTABLE.search(value) else None


def _text_sound(column: Sequence[str]) -> bool:
    return max(map(len, column), default=0) <= MAX_TEXT and not _UNPRINTABLE.search("".join(column))


def _int_fault(value: int) -> str | None:
    return None if _INT_MIN <= value <= _INT_MAX else f"is {show(value)}, which does not fit 64 bits"


def _int_sound(column: Sequence[int]) -> bool:
    return not column or (min(column) >= _INT_MIN and max(column) <= _INT_MAX)


def _float_fault(value: float) -> str | None:
    return None if math.isfinite(value) else f"is {value}, not a finite number"


_SCALARS: dict[type, _Scalar] = {
    str: _Scalar(str, "text", _text_sound, _text_fault),
    int: _Scalar(int, "an integer", _int_sound, _int_fault),
    float: _Scalar(float, "a number with a fraction", lambda column: all(map(math.isfinite, column)), _float_fault),
    bool: _Scalar(bool, "true or false", lambda column: True, lambda value: None),
}


class _Array(_Kind):
    """``tuple[T, ...]``."""

    def __init__(self, item: _Kind) -> None:
        self.name, self.item = f"[{item.name}]", item

    def encode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        _require(column, tuple, "a tuple", where)
        return [list(values) for values in self._each(column, where, self.item.encode, pools)]

    def decode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        _require(column, list, "an array", where)
        return self._each(column, where, self.item.decode, pools)

    def _each(
        self, column: Sequence[Any], where: Where, convert: Callable[..., Sequence[Any]], pools: _Pools
    ) -> list[tuple[Any, ...]]:
        sizes = list(map(len, column))
        if max(sizes, default=0) > MAX_ITEMS:
            worst = max(range(len(sizes)), key=sizes.__getitem__)
            fail(where(worst), f"has {sizes[worst]} entries, at most {MAX_ITEMS} are allowed")

        def inside(i: int) -> str:
            row = 0
            while i >= sizes[row]:
                i -= sizes[row]
                row += 1
            return f"{where(row)}[{i}]"

        flat = iter(convert(list(chain.from_iterable(column)), inside, pools))
        if sizes and 0 < min(sizes) == max(sizes):  # as the operands of steps: three times faster
            return list(zip(*[flat] * sizes[0], strict=True))
        return [tuple(islice(flat, size)) for size in sizes]


class _Record(_Kind):
    """A dataclass, as an array of its fields."""

    def __init__(self, cls: type, members: tuple[tuple[str, _Kind], ...]) -> None:
        self.name, self.cls, self.members = cls.__name__, cls, members

    def table(self) -> list[list[str]]:
        return [[name, kind.name] for name, kind in self.members]

    def encode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        _require(column, self.cls, f"an object of {self.name}", where)
        columns = [
            kind.encode([getattr(value, name) for value in column], _member(where, name), pools)
            for name, kind in self.members
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    def decode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        _require(column, list, f"an array, the fields of {self.name}", where)
        wanted = len(self.members)
        if set(map(len, column)) - {wanted}:
            i, row = next((i, row) for i, row in enumerate(column) if len(row) != wanted)
            fail(where(i), f"has {len(row)} fields, {self.name} has {wanted}")
        # Columns of no rows are visited too: a pool is read where it is first referred to.
        raw: Iterable[Sequence[Any]] = zip(*column, strict=True) if column else ((),) * wanted
        columns = [
            kind.decode(values, _member(where, name), pools)
            for (name, kind), values in zip(self.members, raw, strict=True)
        ]
        return instances(self.cls, zip(*columns, strict=True))


class _Pooled(_Kind):
    """A dataclass whose equal objects are written once, and become one object when they are read."""

    def __init__(self, record: _Record) -> None:
        self.name, self.record = f"@{record.name}", record

    def encode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        name = self.record.name
        places, rows = pools.places.setdefault(name, {}), pools.rows.setdefault(name, [])
        numbers = []
        for row in self.record.encode(column, where, pools):
            place = places.setdefault(repr(row), len(rows))
            if place == len(rows):
                rows.append(row)
            numbers.append(place)
        return numbers

    def decode(self, column: Sequence[Any], where: Where, pools: _Pools) -> Sequence[Any]:
        name = self.record.name
        _require(column, int, f"an integer, a place in the pool of {name}", where)
        rows = pools.rows[name]
        if column and not (min(column) >= 0 and max(column) < len(rows)):
            i, place = next((i, place) for i, place in enumerate(column) if not 0 <= place < len(rows))
            fail(where(i), f"is place {show(place)} of the pool of {name}, which has {len(rows)}")

        def first_use(place: int) -> str:
            return where(column.index(place)) if place in column else f"pools.{name}[{place}]"

        if name not in pools.objects:
            pools.objects[name] = list(self.record.decode(rows, first_use, pools))
        return list(map(pools.objects[name].__getitem__, column))


class Codec(Generic[T]):
    """Encoder and decoder of dataclass `cls` and everything in it; equal objects of the `pooled` classes are shared.

    Fields may be str, int, float, bool, dataclasses, and tuples of any length of one of these. Annotations must be
    types and not text: the modules that declare such classes do without ``from __future__ import annotations``.

    Raises
    ------
    TypeError
        For any other type of field: a mistake in the schema.
    """

    def __init__(self, cls: type[T], pooled: Iterable[type] = ()) -> None:
        self._records: dict[type, _Kind] = {}
        self._pooled = frozenset(pooled)
        self._root = self._kind(cls)
        records = [kind.record if isinstance(kind, _Pooled) else kind for kind in self._records.values()]
        self._classes = {kind.name: kind.table() for kind in records if isinstance(kind, _Record)}
        self._pool_names = sorted(cls.__name__ for cls in self._pooled)

    def _kind(self, annotation: Any) -> _Kind:
        if annotation in _SCALARS:
            return _SCALARS[annotation]
        arguments = typing.get_args(annotation)
        if typing.get_origin(annotation) is tuple and len(arguments) == 2 and arguments[1] is ...:
            return _Array(self._kind(arguments[0]))
        if not (isinstance(annotation, type) and is_dataclass(annotation)):
            raise TypeError(f"{annotation} cannot be the type of a field of a plan")
        if annotation not in self._records:
            kind = _Record(annotation, tuple((f.name, self._kind(f.type)) for f in fields(annotation)))
            self._records[annotation] = _Pooled(kind) if annotation in self._pooled else kind
        return self._records[annotation]

    def encode(self, value: T) -> dict[str, Any]:
        """The document of `value`; PlanError names a field whose value is not exactly of its declared type."""
        pools = _Pools({name: [] for name in self._pool_names})
        body = self._root.encode([value], _root, pools)[0]
        return {"classes": self._classes, "pools": pools.rows, "plan": body}

    def decode(self, document: Any) -> T:
        """The value of a document, whatever that may be; PlanError names the first thing wrong with it."""
        if type(document) is not dict or list(document) != ["classes", "pools", "plan"]:
            fail("index", "is not an object of classes, pools and plan")
        if document["classes"] != self._classes:
            fail("classes", self._difference(document["classes"]))
        pools = document["pools"]
        if type(pools) is not dict or list(pools) != self._pool_names:
            fail("pools", f"is not an object of {', '.join(self._pool_names) or 'nothing'}")
        for name, rows in pools.items():
            if type(rows) is not list or len(rows) > MAX_ITEMS:
                fail(f"pools.{name}", f"is not an array of at most {MAX_ITEMS} entries")
        value: T = self._root.decode([document["plan"]], _root, _Pools(pools))[0]
        return value

    def dumps(self, value: T) -> bytes:
        """`encode` as compact JSON in UTF-8; the same bytes for equal values."""
        return json.dumps(self.encode(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    def loads(self, data: bytes) -> T:
        """`decode` of JSON; PlanError also for what is not JSON."""
        try:
            document = json.loads(data.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise PlanError(f"index is not JSON: {show(str(error))}") from None
        return self.decode(document)

    def _difference(self, classes: Any) -> str:
        if type(classes) is dict:
            for name, members in self._classes.items():
                if classes.get(name) != members:
                    return f"describes another {name} than this airrun; build the plan and run it with one version"
        return "describes other classes than this airrun; build the plan and run it with one version"


PLAN_CODEC = Codec(Plan, pooled=(Operand,))


def _require(column: Sequence[Any], kind: type, noun: str, where: Where) -> None:
    """PlanError unless every value is exactly of type `kind` (bool is not int)."""
    if set(map(type, column)) - {kind}:
        i, value = next((i, value) for i, value in enumerate(column) if type(value) is not kind)
        fail(where(i), f"is {show(value)}, expected {noun}")


def _member(where: Where, name: str) -> Where:
    def path(i: int) -> str:
        outer = where(i)
        return f"{outer}.{name}" if outer else name

    return path


def _root(_: int) -> str:
    return ""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
