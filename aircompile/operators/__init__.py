"""The vocabulary of the graph: what an operator computes, and which values it accepts and makes.

Operators are general (a product, a norm, attention), so that every frontend lowers to the same ones. Each states its
typing rule once, in `infer`; the graph uses it both to type new operators and to check old ones.
"""

from __future__ import annotations

from aircompile.operators.attention import Attention, Rope, RopeStore, ScaleByPosition
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
    Function,
    Gate,
    GatedActivation,
    Multiply,
    Scale,
    Slice,
)
from aircompile.operators.experts import Dispatch, ExpertMatMul, Route, Scores, SortByExpert, SumExperts
from aircompile.operators.groups import GroupDot, GroupSlice
from aircompile.operators.products import HeadMatMul, MatMul, Product
from aircompile.operators.recurrence import (
    CausalConvolution,
    LinearAttention,
    Rule,
    SelectiveScan,
    Stateful,
    TokenShift,
)
from aircompile.operators.rows import Gather, Norm, NormKind, Quantize, SelectRows
from aircompile.operators.slots import Join, Split
from aircompile.operators.streams import Combine, CutOff, MatchSize

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "Bias",
    "CausalConvolution",
    "Combine",
    "CutOff",
    "Dispatch",
    "Dtype",
    "ExpertMatMul",
    "Function",
    "Gate",
    "GatedActivation",
    "Gather",
    "GroupDot",
    "GroupSlice",
    "HeadMatMul",
    "Join",
    "Kind",
    "LinearAttention",
    "MatMul",
    "MatchSize",
    "Multiply",
    "Norm",
    "NormKind",
    "Op",
    "Product",
    "Quantize",
    "Rope",
    "RopeMode",
    "RopeStore",
    "Rounding",
    "Route",
    "Rows",
    "Rule",
    "Scale",
    "ScaleByPosition",
    "Scores",
    "SelectRows",
    "SelectiveScan",
    "Slice",
    "SortByExpert",
    "Split",
    "Stateful",
    "SumExperts",
    "TokenShift",
    "Value",
    "Weights",
    "is_integer_format",
    "quantized_dtype",
]
