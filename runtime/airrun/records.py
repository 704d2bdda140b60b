"""Immutable records that are cheap to declare.

A frozen dataclass compiles five methods of its own, for half a millisecond: the classes of the plan format alone were
a twentieth of the time to the first token. These are dataclasses too (`fields`, `replace` and `asdict` work), but
share their methods. Fields have no defaults, and values are not coerced.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(eq_default=True, frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make a class with annotated fields a frozen dataclass whose instances compare and hash by value."""
    for name, method in _METHODS.items():
        setattr(cls, name, method)
    return dataclass(init=False, repr=False, eq=False)(cls)


def _init(self: Any, *args: Any, **named: Any) -> None:
    names = self.__match_args__
    if named or len(args) != len(names):
        given = dict(zip(names, args, strict=False))
        if len(args) > len(names) or given.keys() & named.keys() or {*given, *named} != {*names}:
            raise TypeError(f"{type(self).__name__} takes exactly the fields {', '.join(names)}")
        args = tuple({**given, **named}[name] for name in names)
    self.__dict__.update(zip(names, args, strict=True))


def _repr(self: Any) -> str:
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def _eq(self: Any, other: object) -> Any:
    return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(tuple(self.__dict__.values()))


def _setattr(self: Any, name: str, _value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


_METHODS = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _setattr,
    "__delattr__": _delattr,
}
