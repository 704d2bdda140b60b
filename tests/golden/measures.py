"""How far logits are from golden ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from airrun.engine import Engine

OpenEngine = Callable[..., Engine]
"""The fixture `open_engine`."""

Logits = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def log_softmax(logits: Logits) -> Doubles:
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def divergence(exact: Logits, other: Logits) -> Doubles:
    """KL(exact || other) in nats, row by row."""
    p, q = log_softmax(exact), log_softmax(other)
    return np.asarray((np.exp(p) * (p - q)).sum(-1))


def same_bits(a: Logits, b: Logits) -> bool:
    return bool(a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def argmax_where_clear(logits: Logits, ids: npt.NDArray[Any], margins: npt.NDArray[Any], margin: float) -> None:
    """Assert that the best ids are the golden ones wherever those won by more than `margin`."""
    clear = np.asarray(margins) > margin
    assert clear.any()
    assert np.array_equal(logits.argmax(-1)[clear], np.asarray(ids)[clear])
