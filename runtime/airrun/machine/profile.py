"""Hardware profiles: what the compiler and ``bind`` know of a machine, as TOML files that may inherit.

A key that is not known is an error naming it: a misspelt ``bandwith`` must not leave a tier at zero unseen.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from airrun.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_UNITS["ti"] = 1 << 40
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Cpu:
    """Processor: `isa` are levels of ``airrun.machine.isa``, best first; caches in bytes, `l3` shared. Zero is unknown.

    `prefetch` is how many bytes ahead kernels should prefetch weights; 0 leaves that to the hardware. `vendor` is the
    maker as ``/proc/cpuinfo`` names it: it tells whose measured rates predictions are made from.
    """

    arch: str = "x86_64"
    isa: tuple[str, ...] = ()
    cores: int = 0
    threads: int = 0
    l1d: int = 0
    l2: int = 0
    l3: int = 0
    line: int = 64
    prefetch: int = 0
    vendor: str = ""


@dataclass(frozen=True)
class Tier:
    """A memory, disk or bus: `size` in bytes, `bandwidth` in bytes/s read by all threads, `bandwidth_1` by one.

    Zero is unknown (or, for the size of a bus, meaningless).
    """

    size: int = 0
    bandwidth: int = 0
    bandwidth_1: int = 0


@dataclass(frozen=True)
class Disk(Tier):
    """A disk: `bandwidth` is that of `readers` threads reading `chunk` bytes at a time past the page cache.

    `direct` says whether O_DIRECT was possible, `cached` is the rate of copying from the page cache with one thread.
    """

    chunk: int = 0
    readers: int = 0
    direct: bool = True
    cached: int = 0


@dataclass(frozen=True)
class Gpu:
    """An accelerator: `arch` as its compiler names it (``sm_86``, ``gfx1100``)."""

    arch: str


@dataclass(frozen=True)
class Tiers:
    """Where weights can lie. `bus` connects RAM and VRAM."""

    ram: Tier = field(default_factory=Tier)
    disk: Disk = field(default_factory=Disk)
    vram: Tier | None = None
    bus: Tier | None = None


@dataclass(frozen=True)
class Profile:
    """A machine. `inherits` names the profile whose values stand where the file gave none."""

    name: str
    inherits: str = ""
    description: str = ""
    cpu: Cpu = field(default_factory=Cpu)
    tiers: Tiers = field(default_factory=Tiers)
    gpu: Gpu | None = None

    def to_toml(self) -> str:
        """The profile as TOML, complete in itself: inherited values are written out and `inherits` is left away."""
        lines: list[str] = []
        _write(self, "", lines)
        return "\n".join(lines) + "\n"


def parse_bytes(value: str | int) -> int:
    """Bytes of a quantity such as ``1500MiB``, ``10 GB``, ``12G`` (decimal, as disks count) or a plain number.

    Raises
    ------
    UsageError
        Not a quantity, or negative.
    """
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise UsageError(f"{value!r} is not a number of bytes such as 1500MiB, 10GB or 4096")
    unit = _UNITS[(match[2] or "").lower()]
    # whole numbers stay exact; a float could not hold every count of bytes
    return round(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def load_profile(path: Path, find: Callable[[str], Path] | None = None) -> Profile:
    """Read a profile from a TOML file.

    Parameters
    ----------
    path
        The file. Its ``name`` defaults to the file's stem.
    find
        Gives the file of a profile by name, for ``inherits``; without it, it is looked for beside `path`.

    Raises
    ------
    UsageError
        Unreadable file, unknown key, value of a wrong type, or a circle of ``inherits``; names the file and the key.
    """
    lookup = find or (lambda name: path.with_name(f"{name}.toml"))
    values = _merged(path, lookup, ())
    values.setdefault("name", path.stem)
    profile = _build(Profile, values, str(path), "")
    if not profile.name:
        raise UsageError(f"{path}: name is empty")
    return profile


def _merged(path: Path, find: Callable[[str], Path], chain: tuple[Path, ...]) -> dict[str, Any]:
    """The file's values over those it inherits."""
    if path in chain:
        circle = " -> ".join(each.stem for each in (*chain[chain.index(path) :], path))
        raise UsageError(f"{path}: profiles inherit in a circle: {circle}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    parent = values.get("inherits", "")
    if not isinstance(parent, str):
        raise UsageError(f"{path}: inherits is {parent!r}, not the name of a profile")
    # what is checked here is this file alone, so that an error in a parent names the parent
    _build(Profile, {"name": path.stem, **values}, str(path), "", partial=True)
    if not parent:
        return values
    base = _merged(find(parent), find, (*chain, path))
    base.pop("name", None)
    base.pop("description", None)
    return _over(base, values)


def _over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _build(kind: type[_T], values: dict[str, Any], origin: str, prefix: str, partial: bool = False) -> _T:
    """A dataclass from TOML values; `partial` tolerates required keys that a parent may give."""
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        known = ", ".join(sorted(hints))
        raise UsageError(f"{origin}: unknown key {prefix}{unknown[0]} (known here: {known})")
    arguments: dict[str, Any] = {}
    for key, hint in hints.items():
        if key in values:
            arguments[key] = _convert(hint, values[key], origin, f"{prefix}{key}", partial)
        elif kind is Gpu:
            if not partial:
                raise UsageError(f"{origin}: key {prefix}{key} is missing")
            arguments[key] = ""
    return kind(**arguments)


def _convert(hint: Any, value: Any, origin: str, key: str, partial: bool) -> Any:
    options = [option for option in getattr(hint, "__args__", ()) if is_dataclass(option)]
    nested = options[0] if options else hint if is_dataclass(hint) else None
    if nested is not None:
        if not isinstance(value, dict):
            raise UsageError(f"{origin}: {key} is {value!r}, not a table")
        return _build(nested, value, origin, f"{key}.", partial)  # type: ignore[arg-type]
    if hint is int and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return parse_bytes(value)
        except UsageError as error:
            raise UsageError(f"{origin}: {key}: {error}") from error
    if hint == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint in (str, bool) and type(value) is hint:
        return value
    wanted = {int: "a number of bytes or a count", str: "a string", bool: "true or false"}.get(
        hint, "a list of strings"
    )
    raise UsageError(f"{origin}: {key} is {value!r}, not {wanted}")


def _write(value: Any, table: str, lines: list[str]) -> None:
    """Append the plain keys of a dataclass, then its tables; ``[tiers]`` has only tables and needs no header."""
    nested: list[tuple[str, Any]] = []
    for entry in fields(value):
        item = getattr(value, entry.name)
        if is_dataclass(item):
            nested.append((entry.name, item))
        elif item is not None and entry.name != "inherits":
            lines.append(f"{entry.name} = {_literal(item)}")
    for name, item in nested:
        path = f"{table}.{name}" if table else name
        if not isinstance(item, Tiers):
            lines.extend(["", f"[{path}]"])
        _write(item, path, lines)


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in text) + '"'
