"""Block formats of weight matrices, by their GGML name."""

from __future__ import annotations

from airkernels.formats.base import AnyFormat, BlockFormat, Field, FloatFormat
from airkernels.formats.floats import BF16, F16, F32
from airkernels.formats.kquants import Q4_K, Q6_K
from airkernels.formats.legacy import Q4_0, Q4_1, Q8_0

FORMATS: dict[str, AnyFormat] = {f.name: f for f in (F32(), F16(), BF16(), Q4_0(), Q4_1(), Q8_0(), Q4_K(), Q6_K())}

__all__ = ["FORMATS", "AnyFormat", "BlockFormat", "Field", "FloatFormat"]
