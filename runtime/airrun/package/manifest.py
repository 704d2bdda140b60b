"""The manifest of a package: what it holds, by name, length and digest. A file from elsewhere, so nothing is believed.

::

    {"format": 1, "generator": "aircompile 0.1.0",
     "plan": {"name": "smol.plan.bin", "nbytes": 1, "sha256": "..."},
     "weights": [{"name": "smol.gguf", "nbytes": 1, "sha256": "...",
                  "header_nbytes": 1, "header_sha256": "...", "included": true, "hint": ""}]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from airrun.errors import PackageError
from airrun.plan.checks import show

MANIFEST = "manifest.json"
"""Name of the manifest in a package."""

MAX_NBYTES = 1 << 20
"""Of a manifest: a thousand weight files take a third of it."""

FORMAT = 1

_MAX_FILE_NBYTES = 1 << 50
_MAX_NAME, _MAX_HINT = 255, 2000
_DIGEST = re.compile("[0-9a-f]{64}")
_T = TypeVar("_T", bound="PackedFile")


@dataclass(frozen=True)
class PackedFile:
    """A file of a package: `name` has no folders in it, `sha256` is of the whole file, in hex."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class PackedWeights(PackedFile):
    """A weight file: fingerprint as in the plan (`airrun.plan.schema.WeightFile`); where it is not `included`, `hint`
    says where it can be had."""

    header_nbytes: int
    header_sha256: str
    included: bool
    hint: str


@dataclass(frozen=True)
class Manifest:
    """What is in a package, and what made it."""

    generator: str
    plan: PackedFile
    weights: tuple[PackedWeights, ...]

    @property
    def included(self) -> list[PackedFile]:
        """The files of the package in their order, which is that of their names."""
        packed = [self.plan, *(each for each in self.weights if each.included)]
        return sorted(packed, key=lambda each: each.name)

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        document = {"format": FORMAT, **asdict(self)}
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises
    ------
    PackageError
        Anything that `Manifest.to_bytes` would not write.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise PackageError(f"{MANIFEST} is not JSON") from None
    if not isinstance(document, dict):
        raise PackageError(f"{MANIFEST} is no object")
    version = document.pop("format", None)
    if type(version) is int and version > FORMAT:
        raise PackageError(f"package format {show(version)} is newer than this airrun understands ({FORMAT})")
    if type(version) is not int or version != FORMAT:
        raise PackageError(f"{MANIFEST}: format is {show(version)}, expected {FORMAT}")
    _keys(document, ("generator", "plan", "weights"), "")
    weights = _typed(document["weights"], list, "weights")
    manifest = Manifest(
        generator=_text(document["generator"], _MAX_NAME, "generator"),
        plan=_file(PackedFile, document["plan"], "plan."),
        weights=tuple(_file(PackedWeights, each, f"weights[{i}].") for i, each in enumerate(weights)),
    )
    if not weights:
        raise PackageError(f"{MANIFEST}: weights is empty")
    names = [MANIFEST, manifest.plan.name, *(each.name for each in manifest.weights)]
    if len(set(names)) < len(names):
        raise PackageError(f"{MANIFEST}: two files have one name")
    return manifest


def _file(kind: type[_T], value: Any, path: str) -> _T:
    _typed(value, dict, path.rstrip("."))
    _keys(value, [each.name for each in fields(kind)], path)
    return kind(**{name: _field(name, item, f"{path}{name}") for name, item in value.items()})


def _field(name: str, value: Any, path: str) -> Any:
    if name == "name":
        return check_name(_text(value, _MAX_NAME, path), path)
    if name == "hint":
        return _text(value, _MAX_HINT, path, empty=True)
    if name == "included":
        return _typed(value, bool, path)
    if name in ("nbytes", "header_nbytes"):
        if not 0 < _typed(value, int, path) <= _MAX_FILE_NBYTES:
            raise PackageError(f"{MANIFEST}: {path} is {show(value)}, expected 1 to {_MAX_FILE_NBYTES}")
        return value
    if not _DIGEST.fullmatch(_typed(value, str, path)):
        raise PackageError(f"{MANIFEST}: {path} is {show(value)}, not a SHA-256 in hex")
    return value


def check_name(name: str, path: str = "name") -> str:
    """A file name that leads nowhere else: `name`, or an error.

    Raises
    ------
    PackageError
        A path, a name of a folder, or one that begins like an option.
    """
    if name in (".", "..") or name.startswith("-") or "/" in name or "\\" in name or len(name.encode()) > _MAX_NAME:
        raise PackageError(f"{MANIFEST}: {path} is {show(name)}, not a plain file name")
    return name


def _text(value: Any, most: int, path: str, *, empty: bool = False) -> str:
    text: str = _typed(value, str, path)
    if len(text) > most or not text.isprintable() or not (text or empty):
        raise PackageError(f"{MANIFEST}: {path} is {show(text)}, expected printable text of at most {most} characters")
    return text


def _typed(value: Any, kind: type, path: str) -> Any:
    if type(value) is not kind:
        raise PackageError(f"{MANIFEST}: {path} is {show(value)}, expected {_KINDS[kind]}")
    return value


_KINDS = {str: "a string", int: "a number", bool: "true or false", dict: "an object", list: "an array"}


def _keys(value: dict[str, Any], wanted: Any, path: str) -> None:
    if different := sorted(set(value) ^ set(wanted)):
        state = "unknown" if different[0] in value else "missing"
        raise PackageError(f"{MANIFEST}: key {show(path + different[0])} is {state}")


def describe(manifest: Manifest) -> Iterator[str]:
    """Lines about what is to be fetched."""
    for each in manifest.weights:
        if not each.included:
            where = f": get it from {each.hint}" if each.hint else ""
            yield f"{each.name} ({each.nbytes} bytes) is not in the package{where}"
