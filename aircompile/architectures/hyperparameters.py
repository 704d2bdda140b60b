"""Hyperparameters of a model file: typed, bounded, and none overlooked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from aircompile.frontends.gguf import GGUFModel
from airrun.errors import ModelFileError, UnsupportedError


class Hyperparameters:
    """The metadata under one prefix. What is read is remembered, so that `finish` finds what was not."""

    def __init__(self, model: GGUFModel, prefix: str) -> None:
        self.path = model.files[0].path
        self._prefix = prefix + "."
        self._metadata = model.metadata
        self._read: set[str] = set()

    def error(self, key: str, reason: str) -> ModelFileError:
        """An error that names the file and a key."""
        return ModelFileError(f"{self.path}: {self._prefix}{key} {reason}")

    def unsupported(self, key: str, reason: str) -> UnsupportedError:
        """The same for a valid value that is not implemented."""
        return UnsupportedError(f"{self.path}: {self._prefix}{key} {reason}")

    def integer(self, key: str, high: int, *, low: int = 1, default: int | None = None) -> int:
        """A whole number within `low` to `high`; a missing key is an error unless there is a default."""
        return self._whole(key, self._get(key, default), low, high)

    def uniform_integer(self, key: str, high: int, n_layers: int, *, default: int | None = None) -> int:
        """A number that may be stored once per layer, but has to be the same in all."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            return self._whole(key, value, 1, high)
        if value.shape != (n_layers,):
            raise self.error(key, f"has {len(value)} entries for {n_layers} layers")
        each = [self._whole(key, entry, 1, high) for entry in value.tolist()]
        if len(set(each)) > 1:
            raise self.unsupported(key, f"differs between layers ({min(each)} to {max(each)})")
        return each[0]

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number within `low` to `high`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "is not a number")
        if not (math.isfinite(value) and low <= value <= high):
            raise self.error(key, f"is {value:g}, not within {low:g} to {high:g}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "is not a text")
        return value

    def has(self, key: str) -> bool:
        return self._prefix + key in self._metadata

    def finish(self, neutral: Mapping[str, Collection[object]], unused: Collection[str]) -> None:
        """Account for every key that was not read.

        Parameters
        ----------
        neutral
            Keys of features that are not implemented, each with the values that turn the feature off.
        unused
            Keys that do not change what is computed.
        """
        for full in self._metadata:
            key = full.removeprefix(self._prefix)
            if key == full or key in self._read or key in unused:
                continue
            if key not in neutral:
                raise self.error(repr(key)[1:-1][:80], "is not understood, and may change what the model computes")
            value = self._metadata[full]
            if isinstance(value, np.ndarray) or value not in neutral[key]:
                shown = "an array" if isinstance(value, np.ndarray) else f"{value!r:.80}"
                raise self.unsupported(key, f"is {shown}: not supported")

    def _get(self, key: str, default: object) -> object:
        self._read.add(key)
        value = self._metadata.get(self._prefix + key, default)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def _whole(self, key: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, "is not a whole number")
        if not low <= value <= high:
            raise self.error(key, f"is {value}, not within {low} to {high}")
        return value
