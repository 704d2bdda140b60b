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
    Rounding,
    Rows,
    Value,
    Weights,
    is_integer_format,
    quantized_dtype,
)
from aircompile.operators.elementwise import (
    Activation,
    Add,
    Bias,
    Concat,
    Function,
    Gate,
    GatedActivation,
    Multiply,
    Scale,
    Slice,
)
from aircompile.operators.products import MatMul
from aircompile.operators.recurrence import (
    CausalConvolution,
    LinearAttention,
    Rule,
    SelectiveScan,
    Stateful,
    TokenShift,
)
from aircompile.operators.rows import Gather, Norm, NormKind, Quantize, SelectRows
from aircompile.operators.streams import Combine, CutOff, MatchSize

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "Bias",
    "CausalConvolution",
    "Combine",
    "Concat",
    "CutOff",
    "Dtype",
    "Function",
    "Gate",
    "GatedActivation",
    "Gather",
    "Kind",
    "LinearAttention",
    "MatMul",
    "MatchSize",
    "Multiply",
    "Norm",
    "NormKind",
    "Op",
    "Quantize",
    "Rope",
    "RopeMode",
    "RopeStore",
    "Rounding",
    "Rows",
    "Rule",
    "Scale",
    "SelectRows",
    "SelectiveScan",
    "Slice",
    "Stateful",
    "TokenShift",
    "Value",
    "Weights",
    "is_integer_format",
    "quantized_dtype",
]
