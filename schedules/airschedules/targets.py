"""Targets by name: the hardware profiles that ship with this package, this machine, or a file of the user's."""

from __future__ import annotations

from pathlib import Path

from airrun.errors import UsageError
from airrun.machine.profile import Profile, load_profile
from airrun.machine.system import detect
from airrun.paths import host_profile_path

HOST = "host"
_FOLDER = Path(__file__).parent / "profiles"


def list_targets() -> list[str]:
    """Names that `load_target` knows: ``host``, then those of the shipped profiles."""
    return [HOST, *sorted(path.stem for path in _FOLDER.glob("*.toml"))]


def load_target(target: str | Path) -> Profile:
    """The profile of a target.

    Parameters
    ----------
    target
        A name of `list_targets`, or the path of a TOML file (a name with a slash or the suffix ``.toml``), which may
        inherit from a shipped profile or one beside it. ``host`` is what ``probe`` measured here, else what can be
        known without measuring, with bandwidths of 0.

    Raises
    ------
    UsageError
        Unknown name, or a profile that cannot be read; names it.
    """
    name = str(target)
    if isinstance(target, Path) or name.endswith(".toml") or "/" in name:
        path = Path(target)
        return load_profile(path, lambda parent: _beside_or_shipped(path, parent))
    if name == HOST:
        return _host()
    return load_profile(_shipped(name), _shipped)


def _host() -> Profile:
    found = detect()
    path = host_profile_path()
    if not path.is_file():
        return found
    measured = load_profile(path, _shipped)
    # a cache folder may be shared between machines, or outlive a change of this one
    return measured if measured.cpu == found.cpu else found


def _shipped(name: str) -> Path:
    path = _FOLDER / f"{name}.toml"
    if name not in list_targets() or name == HOST:
        raise UsageError(f"unknown target {name!r} (known: {', '.join(list_targets())}, or a path of a .toml file)")
    return path


def _beside_or_shipped(path: Path, name: str) -> Path:
    beside = path.with_name(f"{name}.toml")
    # a file of the user's named like a shipped profile may inherit from that one; it is not its own parent
    return beside if beside.is_file() and beside != path else _shipped(name)
