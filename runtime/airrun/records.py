"""Dataclasses that are cheap to declare.

A dataclass compiles methods of its own, for half a millisecond to a whole one: the twenty that a start of the runtime
needs were a tenth of the time to the first token. These are dataclasses too (`fields`, `replace` and `asdict` work),
but share their methods. Values are not coerced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")


@overload
def record(cls: type[T], /) -> type[T]: ...
@overload
def record(*, frozen: bool = True, eq: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(eq_default=True, frozen_default=True, field_specifiers=(field,))
def record(cls: type[T] | None = None, /, *, frozen: bool = True, eq: bool = True, kw_only: bool = False) -> Any:
    """Make a class with annotated fields a dataclass; its parameters are those of `dataclasses.dataclass`."""
    if cls is None:
        return lambda cls: _record(cls, frozen, eq, kw_only)
    return _record(cls, frozen, eq, kw_only)


def instances(cls: type[T], rows: Iterable[tuple[Any, ...]]) -> list[T]:
    """Records of rows that have a value for every field, in order; `__post_init__` has no part in it."""
    names = tuple(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    made, new = [], cls.__new__
    for row in rows:
        instance = new(cls)
        instance.__dict__.update(zip(names, row, strict=True))
        made.append(instance)
    return made


def _record(cls: type[T], frozen: bool, eq: bool, kw_only: bool) -> type[T]:
    methods: dict[str, Any] = {"__init__": _init, "__repr__": _repr}
    if eq:
        methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    if frozen:
        methods |= {"__setattr__": _setattr, "__delattr__": _delattr}
    for name, method in methods.items():
        setattr(cls, name, method)
    return dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)


def _init(self: Any, *args: Any, **named: Any) -> None:
    fields: dict[str, Field[Any]] = self.__dataclass_fields__
    if named or len(args) != len(fields):
        args = _all_values(type(self), fields, args, named)
    self.__dict__.update(zip(fields, args, strict=True))
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _all_values(
    cls: type, fields: dict[str, Field[Any]], args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, ...]:
    """Values of all fields, from arguments and defaults."""
    positional: tuple[str, ...] = cls.__match_args__  # type: ignore[attr-defined]
    given = dict(zip(positional, args, strict=False))
    if len(args) > len(positional) or given.keys() & named.keys() or not fields.keys() >= named.keys():
        raise TypeError(f"{cls.__name__} takes each of the fields {', '.join(fields)} once")
    given |= named
    for name, its in fields.items():
        if name not in given:
            given[name] = its.default if its.default_factory is MISSING else its.default_factory()
            if given[name] is MISSING:
                raise TypeError(f"{cls.__name__} lacks {name} of the fields {', '.join(fields)}")
    return tuple(given[name] for name in fields)


def _repr(self: Any) -> str:
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
    return f"{type(self).__qualname__}({values})"


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _setattr(self: Any, name: str, _value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__dataclass_fields__])
