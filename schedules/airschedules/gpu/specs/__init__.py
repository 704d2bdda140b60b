"""Every kernel that a plan for a GPU can name."""

from __future__ import annotations

from airschedules.gpu.specs.attention import CELLS, CombineSpec, FlashSpec, Heads, RopeStoreSpec, SplitSpec
from airschedules.gpu.specs.products import GatherSpec, GemmSpec, PackSpec, ProductSpec, UnpackSpec
from airschedules.gpu.specs.rows import (
    LEADERS,
    AdvanceSpec,
    ArgmaxSpec,
    ConvertSpec,
    GatedSpec,
    LeadersSpec,
    NormSpec,
    RowKind,
    SelectSpec,
    argmax_parts,
    leader_parts,
)

__all__ = [
    "CELLS",
    "LEADERS",
    "AdvanceSpec",
    "ArgmaxSpec",
    "CombineSpec",
    "ConvertSpec",
    "FlashSpec",
    "GatedSpec",
    "GatherSpec",
    "GemmSpec",
    "Heads",
    "LeadersSpec",
    "NormSpec",
    "PackSpec",
    "ProductSpec",
    "RopeStoreSpec",
    "RowKind",
    "SelectSpec",
    "SplitSpec",
    "UnpackSpec",
    "argmax_parts",
    "leader_parts",
]
