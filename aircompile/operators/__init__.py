"""The vocabulary of the graph: what an operator computes, and which values it accepts and makes.

Operators are general (a product, a norm, attention), so that every frontend lowers to the same ones. Each states its
typing rule once, in `infer`; the graph uses it both to type new operators and to check old ones.
"""

from __future__ import annotations

from aircompile.operators.attention import Attention, Rope, RopeStore
from aircompile.operators.base import (
    Dtype,
    Kind,
    Op,
    RopeMode,
    Rows,
    Value,
    Weights,
    is_integer_format,
    quantized_dtype,
)
from aircompile.operators.elementwise import Activation, Add, GatedActivation, Multiply
from aircompile.operators.parted import Columns, Parted
from aircompile.operators.products import MatMul
from aircompile.operators.rows import Gather, Norm, Quantize, SelectRows

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "Columns",
    "Dtype",
    "GatedActivation",
    "Gather",
    "Kind",
    "MatMul",
    "Multiply",
    "Norm",
    "Op",
    "Parted",
    "Quantize",
    "Rope",
    "RopeMode",
    "RopeStore",
    "Rows",
    "SelectRows",
    "Value",
    "Weights",
    "is_integer_format",
    "quantized_dtype",
]
