"""What tests of engines compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from airrun.errors import AirError

TEXT = [1, 70, 104, 104, 111, 35, 122, 114, 117, 111, 103]
"""Ids of some text of the tiny model's."""

Logits = Any


def same(a: Logits, b: Logits) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype == np.float32 and np.array_equal(a.view("u4"), b.view("u4"))


def one_line(error: pytest.ExceptionInfo[AirError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text
