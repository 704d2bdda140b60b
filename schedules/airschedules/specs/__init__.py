"""Every kernel that a plan for a processor can name."""

from __future__ import annotations

from airschedules.specs.attention import AttentionPartsSpec, AttentionSpec, MergePartsSpec, RopeSpec, RopeStoreSpec
from airschedules.specs.elementwise import (
    ActivationSpec,
    AddSpec,
    ElementwiseSpec,
    GatedSpec,
    JoinSpec,
    MultiplySpec,
    PositionScaleSpec,
)
from airschedules.specs.experts import DispatchSpec, ExpertMatmulSpec, RouteSpec, SortByExpertSpec, SumExpertsSpec
from airschedules.specs.groups import GroupDotSpec, GroupSliceSpec
from airschedules.specs.kernel import KernelSpec
from airschedules.specs.products import BankSpec, HeadMatmulSpec, MatmulSpec, PackSpec
from airschedules.specs.read_probe import ReadProbeSpec
from airschedules.specs.recurrence import ConvolutionSpec, LinearAttentionSpec, ScanSpec, TokenShiftSpec
from airschedules.specs.rows import GatherSpec, NormSpec, QuantizeSpec, SelectSpec
from airschedules.specs.streams import CombineSpec, CutOffSpec, MatchSizeSpec

__all__ = [
    "ActivationSpec",
    "AddSpec",
    "AttentionPartsSpec",
    "AttentionSpec",
    "BankSpec",
    "CombineSpec",
    "ConvolutionSpec",
    "CutOffSpec",
    "DispatchSpec",
    "ElementwiseSpec",
    "ExpertMatmulSpec",
    "GatedSpec",
    "GatherSpec",
    "GroupDotSpec",
    "GroupSliceSpec",
    "HeadMatmulSpec",
    "JoinSpec",
    "KernelSpec",
    "LinearAttentionSpec",
    "MatchSizeSpec",
    "MatmulSpec",
    "MergePartsSpec",
    "MultiplySpec",
    "NormSpec",
    "PackSpec",
    "PositionScaleSpec",
    "QuantizeSpec",
    "ReadProbeSpec",
    "RopeSpec",
    "RopeStoreSpec",
    "RouteSpec",
    "ScanSpec",
    "SelectSpec",
    "SortByExpertSpec",
    "SumExpertsSpec",
    "TokenShiftSpec",
]
