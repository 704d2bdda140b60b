"""Block formats of weight matrices, by their GGML name."""

from __future__ import annotations

from airkernels.formats.base import AnyFormat, BlockFormat, Field, FloatFormat, RoundedFormat
from airkernels.formats.codebooks import IQ4_NL, IQ4_XS, MXFP4, NVFP4
from airkernels.formats.floats import BF16, F16, F32
from airkernels.formats.grids import IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS
from airkernels.formats.kquants import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from airkernels.formats.legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from airkernels.formats.ternary import Q1_0, Q2_0, TQ1_0, TQ2_0

_FLOATS = (F32, F16, BF16)
_LEGACY = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)
_K_QUANTS = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)
_CODEBOOKS = (IQ4_NL, IQ4_XS, MXFP4, NVFP4)
_GRIDS = (IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S)
_TERNARY = (TQ1_0, TQ2_0, Q1_0, Q2_0)

FORMATS: dict[str, AnyFormat] = {
    fmt.name: fmt() for fmt in (*_FLOATS, *_LEGACY, *_K_QUANTS, *_CODEBOOKS, *_GRIDS, *_TERNARY)
}

__all__ = ["FORMATS", "AnyFormat", "BlockFormat", "Field", "FloatFormat", "RoundedFormat"]
