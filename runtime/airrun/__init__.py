"""Runtime of compiled language models: replays a plan over memory-mapped weights.

The names below are loaded when first used, so that ``import airrun`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airrun.engine import Engine
    from airrun.errors import AirError
    from airrun.generation.generate import GenerateConfig

__version__ = "0.1.0"
__all__ = ["AirError", "Engine", "GenerateConfig", "__version__"]

_HOMES = {"AirError": "airrun.errors", "Engine": "airrun.engine", "GenerateConfig": "airrun.generation.generate"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
