"""Every kernel that a plan for a GPU can name."""

from __future__ import annotations

from airschedules.gpu.specs.attention import (
    CELLS,
    CombineSpec,
    FlashSpec,
    Heads,
    RopeSpec,
    RopeStoreSpec,
    Rotation,
    Seen,
    SplitSpec,
)
from airschedules.gpu.specs.elementwise import (
    ActivationSpec,
    AddSpec,
    FunctionOf,
    GatedSpec,
    MultiplySpec,
    PositionScaleSpec,
)
from airschedules.gpu.specs.experts import (
    DispatchSpec,
    ExpertGemmSpec,
    ExpertProductSpec,
    RouteSpec,
    SortByExpertSpec,
    SumExpertsSpec,
)
from airschedules.gpu.specs.products import GatherSpec, GemmSpec, PackSpec, ProductSpec, UnpackSpec
from airschedules.gpu.specs.rows import (
    LEADERS,
    AdvanceSpec,
    ArgmaxSpec,
    ConvertSpec,
    LeadersSpec,
    NormSpec,
    RowKind,
    SelectSpec,
    argmax_parts,
    leader_parts,
)
from airschedules.gpu.specs.streams import CombineStreamsSpec, CutOffSpec, MatchSizeSpec

__all__ = [
    "CELLS",
    "LEADERS",
    "ActivationSpec",
    "AddSpec",
    "AdvanceSpec",
    "ArgmaxSpec",
    "CombineSpec",
    "CombineStreamsSpec",
    "ConvertSpec",
    "CutOffSpec",
    "DispatchSpec",
    "ExpertGemmSpec",
    "ExpertProductSpec",
    "FlashSpec",
    "FunctionOf",
    "GatedSpec",
    "GatherSpec",
    "GemmSpec",
    "Heads",
    "LeadersSpec",
    "MatchSizeSpec",
    "MultiplySpec",
    "NormSpec",
    "PackSpec",
    "PositionScaleSpec",
    "ProductSpec",
    "RopeSpec",
    "RopeStoreSpec",
    "Rotation",
    "RouteSpec",
    "RowKind",
    "Seen",
    "SelectSpec",
    "SortByExpertSpec",
    "SplitSpec",
    "SumExpertsSpec",
    "UnpackSpec",
    "argmax_parts",
    "leader_parts",
]
