"""Kernels of a llama-shaped model compiled for GPUs that this machine does not have."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from airkernels.cpu.row_order import RowOrder
from airschedules.gpu.schedule import DeviceSpec
from airschedules.gpu.specs import (
    ActivationSpec,
    AddSpec,
    AdvanceSpec,
    ArgmaxSpec,
    CombineSpec,
    CombineStreamsSpec,
    ConvertSpec,
    CutOffSpec,
    DispatchSpec,
    ExpertGemmSpec,
    ExpertProductSpec,
    FlashSpec,
    FunctionOf,
    GatedSpec,
    GatherSpec,
    GemmSpec,
    Heads,
    LeadersSpec,
    MatchSizeSpec,
    MultiplySpec,
    NormSpec,
    PackSpec,
    PositionScaleSpec,
    ProductSpec,
    RopeSpec,
    RopeStoreSpec,
    Rotation,
    RouteSpec,
    RowKind,
    Seen,
    SelectSpec,
    SortByExpertSpec,
    SplitSpec,
    SumExpertsSpec,
    UnpackSpec,
)

HEADS = Heads(8, 2, 64, 16, "float16")
GEMM = GemmSpec("f16", 1024, 512, RowKind("f16", 512, 32).layout.nbytes, 1024, False, False)
NORM = NormSpec(RowKind("q16", 512, 32), 512, 1e-5, "rms", 1, 512)
WIDE, FLOATS = Heads(16, 8, 256, 26, "float16", ring=10), Heads(8, 1, 512, 16, "float32")
ALL, BENT = Seen(0.125), Seen(0.0625, window=512, softcap=50.0)
FUNCTIONS = ("gelu", "gelu_tanh", "relu2", "sigmoid", "softplus", "xielu", "scale", "clamp", "softcap")
TURN = Rotation(64, False, 32)
SPECS: list[DeviceSpec] = [
    ProductSpec("Q4_0", 1024, 512, "q16", 1024, False, False),
    ProductSpec("Q8_0", 1000, 576, "q8", 1024, True, False),
    ProductSpec("Q4_K", 512, 1024, "q8", 512, True, True),
    ProductSpec("MXFP4", 512, 1024, "q8", 512, False, False),
    ProductSpec("IQ3_S", 512, 1024, "q16", 512, False, False),
    ProductSpec("IQ1_M", 512, 1024, "q8", 512, False, False),
    ProductSpec("F16", 512, 512, "f32", 512, False, False),
    GEMM,
    GemmSpec("f32", 512, 512, RowKind("f32", 512, 1).layout.nbytes, 512, True, True),
    PackSpec("Q4_K", 1024),
    PackSpec("IQ2_XS", 1024),
    UnpackSpec("Q4_0", 1024, 512, "f16"),
    UnpackSpec("BF16", 512, 512, "f32"),
    GatherSpec("Q8_0", 512, 512),
    GatherSpec("F16", 512, 512),
    GatherSpec("IQ4_XS", 512, 512),
    NORM,
    NormSpec(RowKind("f16", 512, 256), 512, 1e-5, "layer", 1, 512, 512),
    NormSpec(RowKind("f32", 512, 1), 768, 1e-6, "rms", 8, 64),
    GatedSpec(RowKind("q16", 1408, 32), FunctionOf("silu"), 2816, 2816),
    GatedSpec(RowKind("f16", 1408, 32), FunctionOf("swiglu_oai", (1.702, 7.0)), 2816, 2816),
    *(ActivationSpec(RowKind("q16", 1408, 32), FunctionOf(kind, (0.5, 1.0)), 1408) for kind in FUNCTIONS),
    AddSpec(512, (512, 512, 512), 0.22),
    MultiplySpec(512, (512, 0, 512), 64),
    PositionScaleSpec(512, 8192, 0.1, 512, 512),
    ConvertSpec(RowKind("q8", 512, 256), 512),
    SelectSpec(512),
    RopeSpec(Rotation(32, True, 32), 64, 768, 768),
    RopeStoreSpec(HEADS, TURN, (768, 768, 768)),
    RopeStoreSpec(WIDE, Rotation(0, False, 0), (8192, 8192, 8192)),
    SplitSpec(HEADS, ALL, 768),
    SplitSpec(WIDE, BENT, 8192),
    SplitSpec(FLOATS, ALL, 4096),
    CombineSpec(RowKind("q8", 512, 32), 64, HEADS.splits),
    CombineSpec(RowKind("q8", 512, 32), 64, HEADS.splits, True),
    FlashSpec(HEADS, ALL, 768, 512),
    FlashSpec(HEADS, Seen(0.125, chunk=8192, alibi=8.0), 768, 512, True),
    FlashSpec(WIDE, BENT, 8192, 4096),
    FlashSpec(FLOATS, ALL, 4096, 4096),
    RouteSpec(256, 8, False, True, 2.5, True, False, 8, 4, 2, (256, 16, 16)),
    SortByExpertSpec(RowOrder(128, 8), 16),
    DispatchSpec(8, 700, 0),
    DispatchSpec(1, 512, 16),
    SumExpertsSpec(8, 512, 512, 16, 512),
    ExpertProductSpec("Q4_K", 768, 1024, "q8", 768, False, True),
    ExpertProductSpec("F16", 768, 512, "f32", 768, False, False),
    ExpertGemmSpec("f16", 64, 768, 1024, RowKind("f16", 1024, 256).layout.nbytes, 768, True),
    ExpertGemmSpec("f32", 0, 768, 512, RowKind("f32", 512, 1).layout.nbytes, 768, False),
    CombineStreamsSpec(512, 4, 1.0, 512, 16, (512, 512, 512, 512), 512),
    MatchSizeSpec(512, 1e-5, (512, 512, 512)),
    CutOffSpec(8192, 1.64, 8192, 8192),
    ArgmaxSpec(32000),
    AdvanceSpec(32000),
    LeadersSpec(32000),
]


def test_symbols_differ() -> None:
    symbols = [spec.symbol for spec in SPECS]
    assert len(set(symbols)) == len(symbols) and all(symbol.isidentifier() for symbol in symbols)


@pytest.mark.parametrize("arch", ["sm_90", pytest.param("sm_86", marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.symbol)
def test_kernel_compiles(spec: DeviceSpec, arch: str) -> None:
    schedule = spec.schedule(arch)
    binary = schedule.compile(arch)
    assert binary.image[:4] == b"\x7fELF" and binary.entry == schedule.kernel.__name__
    assert binary.threads == 32 * schedule.warps
    # the largest a block may have: 99 KB of shared memory before Hopper, 227 KB there
    assert binary.shared_nbytes <= {"sm_86": 99 << 10, "sm_90": 227 << 10}[arch]
    assert binary.pdl == (arch == "sm_90" and "PDL" in schedule.kernel.arg_names)


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
@pytest.mark.parametrize("spec", [*SPECS[:1], *SPECS[3:6], GEMM, NORM], ids=lambda spec: spec.symbol)
def test_kernel_compiles_for_amd(spec: DeviceSpec, arch: str) -> None:
    binary = spec.schedule(arch).compile(arch)
    assert binary.image[:4] == b"\x7fELF" and binary.threads == spec.schedule(arch).warps * (
        64 if arch == "gfx942" else 32
    )
