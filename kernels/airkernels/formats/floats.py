"""Unquantized element types."""

from __future__ import annotations

from airkernels.formats.base import FloatFormat


class F32(FloatFormat):
    name = "F32"
    dtype = "float32"


class F16(FloatFormat):
    name = "F16"
    dtype = "float16"


class BF16(FloatFormat):
    name = "BF16"
    dtype = "bfloat16"
