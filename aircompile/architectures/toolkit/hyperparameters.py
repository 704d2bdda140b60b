"""Hyperparameters of a model file: typed, bounded, and none overlooked."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from aircompile.frontends.gguf import GGUFModel
from airrun.errors import ModelFileError, UnsupportedError

UNUSED = frozenset(
    (
        # of the norm that the family does not have
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "rope.scaling.finetuned",
        # read where the type is yarn
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
        "tensor_data_layout",
        "vocab_size",  # read where there is no vocabulary
    )
)
"""Keys that change nothing in a family that does not read them."""

_NO_SCALE = (0, 1)
NEUTRAL: dict[str, Collection[object]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": _NO_SCALE,
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": _NO_SCALE,
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": _NO_SCALE,
    "rope.scaling.alpha": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (-1, 0),
    "use_parallel_residual": (False,),
}
"""Keys of features, with the values that turn them off for a family that does not read them."""


class Hyperparameters:
    """The metadata under one prefix. What is read is remembered, so that `finish` finds what was not."""

    def __init__(self, model: GGUFModel, prefix: str) -> None:
        self.path = model.files[0].path
        self._prefix = prefix + "."
        self._metadata = model.metadata
        self._read: set[str] = set()
        self._unused: set[str] = set()

    def error(self, key: str, reason: str) -> ModelFileError:
        """An error that names the file and a key."""
        return ModelFileError(f"{self.path}: {self._prefix}{key} {reason}")

    def unsupported(self, key: str, reason: str) -> UnsupportedError:
        """The same for a valid value that is not implemented."""
        return UnsupportedError(f"{self.path}: {self._prefix}{key} {reason}")

    def integer(self, key: str, high: int, *, low: int = 1, default: int | None = None) -> int:
        """A whole number within `low` to `high`; a missing key is an error unless there is a default."""
        return self._whole(key, self._get(key, default), low, high)

    def integers(self, key: str, high: int, n: int, *, low: int = 1, default: int | None = None) -> tuple[int, ...]:
        """`n` numbers, one per layer, which may be stored as one for all."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            return (self._whole(key, value, low, high),) * n
        if value.shape != (n,):
            raise self.error(key, f"has {len(value)} entries for {n} layers")
        entries = value.astype(np.int64) if value.dtype == np.bool_ else value
        return tuple(self._whole(key, entry, low, high) for entry in entries.tolist())

    def uniform_integer(self, key: str, high: int, n_layers: int, *, default: int | None = None) -> int:
        """A number that may be stored once per layer, but has to be the same in all."""
        each = self.integers(key, high, n_layers, default=default)
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

    def numbers(self, key: str, low: float, high: float, n: int) -> tuple[float, ...]:
        """`n` numbers within `low` to `high`, one per layer, which may be stored as one for all."""
        if not self.is_array(key):
            return (self.number(key, low, high),) * n
        value = np.asarray(self._get(key, None), np.float64)
        if value.shape != (n,):
            raise self.error(key, f"has {len(value)} entries for {n} layers")
        if not ((value >= low) & (value <= high)).all():
            raise self.error(key, f"has an entry that is not within {low:g} to {high:g}")
        return tuple(value.tolist())

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "is not a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "is not a truth value")
        return value

    def is_array(self, key: str) -> bool:
        return isinstance(self._metadata.get(self._prefix + key), np.ndarray)

    def has(self, key: str) -> bool:
        return self._prefix + key in self._metadata

    def ignore(self, *keys: str) -> None:
        """Accept keys that do not change what this family computes."""
        self._unused.update(keys)

    def finish(self) -> None:
        """Account for every key: those that nothing read must be without effect."""
        for full, value in self._metadata.items():
            key = full.removeprefix(self._prefix)
            if key == full or key in self._read or key in self._unused or key in UNUSED:
                continue
            if key not in NEUTRAL:
                raise self.error(repr(key)[1:-1][:80], "is not understood, and may change what the model computes")
            if isinstance(value, np.ndarray) or value not in NEUTRAL[key]:
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
