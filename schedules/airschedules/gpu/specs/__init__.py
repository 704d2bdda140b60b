"""Every kernel that a plan for a GPU can name."""

from __future__ import annotations

from airschedules.gpu.specs.attention import CELLS, CombineSpec, FlashSpec, Heads, RopeStoreSpec, SplitSpec
from airschedules.gpu.specs.products import GatherSpec, GemmSpec, PackSpec, ProductSpec, UnpackSpec
from airschedules.gpu.specs.rows import (
    AdvanceSpec,
    ArgmaxSpec,
    ConvertSpec,
    GatedSpec,
    NormSpec,
    RowKind,
    SelectSpec,
    argmax_parts,
)

__all__ = [
    "CELLS",
    "AdvanceSpec",
    "ArgmaxSpec",
    "CombineSpec",
    "ConvertSpec",
    "FlashSpec",
    "GatedSpec",
    "GatherSpec",
    "GemmSpec",
    "Heads",
    "NormSpec",
    "PackSpec",
    "ProductSpec",
    "RopeStoreSpec",
    "RowKind",
    "SelectSpec",
    "SplitSpec",
    "UnpackSpec",
    "argmax_parts",
]
