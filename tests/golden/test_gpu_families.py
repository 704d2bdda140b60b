"""Which families GPUs run; and that their plans compute on one what they compute on a processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is not installed")

from fake_gpu import use_fake_gpu
from family_model import (
    EQUAL,
    EXPERT,
    EXPERTS,
    GATED,
    HEAD_DIM,
    HEAD_NORMS,
    KV,
    LAYER,
    N_EMBD,
    N_EXPERTS,
    N_FF_EXPERT,
    N_HEADS,
    NORMS,
    PLAIN,
    POST_NORMS,
    RMS,
    SPLIT,
    TOKENS,
    FamilyModel,
    Q,
    metadata,
    shapes,
)
from family_models import MODELS
from tiny_model import measured_host

from aircompile.architectures import build_graph
from aircompile.frontends.gguf import read_gguf
from aircompile.gpu.operators import lower_for_device
from aircompile.lowering import plan_caches
from aircompile.passes import run_passes
from aircompile.passes.options import PassOptions
from aircompile.pipeline import BuildOptions, build
from airrun import Engine
from airrun.errors import UnsupportedError
from airrun.machine.profile import Gpu
from airrun.plan.device import DeviceTarget

Plans = tuple[Path, Path]
"""A plan and its model."""

REFUSED = {
    "deepseek_groups_and_yarn": "Split",
    "deepseek_spelled_out": "Split",
    "falcon_mamba": "CausalConvolution",
    "falcon_h1": "CausalConvolution",
    "lfm2_experts": "CausalConvolution",
    "granite_hybrid": "CausalConvolution",
    "granite_hybrid_experts": "CausalConvolution",
}
"""Models that GPUs do not run, and the first operator that they lack."""


@pytest.mark.parametrize("name", MODELS)
def test_families_are_lowered_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    MODELS[name].write(path)
    graph = run_passes(build_graph(read_gguf(path)), PassOptions("auto"))
    cells = plan_caches(graph, "f16", 128)
    if name in REFUSED:
        with pytest.raises(UnsupportedError, match=f"GPUs have no kernel for {REFUSED[name]} yet"):
            lower_for_device(graph, cells, exact=False)
        return
    for phase, low in lower_for_device(graph, cells, exact=False).items():
        assert len(low.calls) > 10, phase


def test_parts_of_rows_are_copied_for_float_products(tmp_path: Path) -> None:
    """The low-rank product of gemma 3n is part of the rows of one that was fused, and the next one's input."""
    path = tmp_path / "model.gguf"
    MODELS["gemma3n"].write(path)
    graph = run_passes(build_graph(read_gguf(path)), PassOptions("f32"))
    for low in lower_for_device(graph, plan_caches(graph, "f32", 128), exact=True).values():
        assert {f"layers.{i}.laurel_l.f32.1" for i in range(5)} <= set(low.converted)


HEADS = {"attention__key_length": HEAD_DIM, "attention__value_length": HEAD_DIM}
BIASES = {
    "attn_q": (Q,),
    "attn_k": (KV,),
    "attn_v": (KV,),
    "attn_output": (N_EMBD,),
    "ffn_gate_inp": (N_EXPERTS,),
    "ffn_gate_exps": (N_EXPERTS, N_FF_EXPERT),
    "ffn_up_exps": (N_EXPERTS, N_FF_EXPERT),
    "ffn_down_exps": (N_EXPERTS, N_EMBD),
}
SMALL = {
    # norms of heads and after sub-layers, GELU, scaled embeddings, capped logits
    "gemma3": FamilyModel(
        "gemma3",
        metadata(**RMS, **HEADS, block_count=1, final_logit_softcapping=20.0),
        shapes({**SPLIT, **NORMS, **POST_NORMS, **HEAD_NORMS, **GATED}, n_layers=1, tied=True),
    ),
    # layer norms with biases, sub-layers side by side, no gate
    "gptneox": FamilyModel(
        "gptneox",
        metadata(**LAYER, block_count=1, attention__head_count_kv=None, rope__dimension_count=8),
        shapes({**EQUAL, **NORMS, **PLAIN}, n_layers=1, bias=True),
    ),
    # a window, sinks, experts with biases and a bounded gate
    "gpt-oss": FamilyModel(
        "gpt-oss",
        metadata(
            **RMS,
            **EXPERTS,
            **HEADS,
            block_count=1,
            expert_feed_forward_length=N_FF_EXPERT,
            attention__sliding_window=6,
            attention__sliding_window_pattern=0,
        ),
        {
            **shapes({**SPLIT, **EXPERT, "attn_norm": (N_EMBD,), "post_attention_norm": (N_EMBD,)}, n_layers=1),
            **{f"blk.0.{part}.bias": shape for part, shape in BIASES.items()},
            "blk.0.attn_sinks.weight": (N_HEADS,),
        },
    ),
}


@pytest.fixture
def plans(tmp_path: Path, compiler_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Plans]:
    """`plans(name, ctx_size)` writes a small model and builds its plan for this processor and a GPU that it plays."""
    use_fake_gpu(monkeypatch)
    monkeypatch.setenv("AIRCOMPILE_HOME", str(compiler_home))

    def build_one(name: str, ctx_size: int) -> Plans:
        model, plan, profile = tmp_path / "model.gguf", tmp_path / "plan.bin", measured_host()
        SMALL[name].write(model)
        best = dataclasses.replace(profile.cpu, isa=profile.cpu.isa[:1])
        gpus = (DeviceTarget("a", "sm_90", 1 << 30, 1e12, 2e10),)
        profile = dataclasses.replace(profile, gpu=Gpu("sm_90"), cpu=best)
        build(model, plan, BuildOptions(profile, ctx_size=ctx_size, activations="f32", gpus=gpus))
        return plan, model

    return build_one


@pytest.mark.parametrize("name", ["gemma3", pytest.param("gptneox", marks=pytest.mark.slow), "gpt-oss"])
def test_same_logits_as_on_the_processor(plans: Callable[[str, int], Plans], name: str) -> None:
    """A batch, and a token after it."""
    ids, files = TOKENS[:10], plans(name, 64)
    with Engine.from_plan(*files, device="cpu") as cpu, Engine.from_plan(*files, device="cuda") as gpu:
        want = cpu.logits(ids)[[3, 8, 9]]
        batch = gpu.session.eval(ids[:9], all_logits=True)[[3, 8]].copy()
        got = np.concatenate([batch, gpu.session.eval(ids[9:])])
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_batches_leave_room_in_a_ring(plans: Callable[[str, int], Plans]) -> None:
    """Layers with windows go round in few blocks on a GPU too, which bound what a batch may write."""
    with Engine.from_plan(*plans("gpt-oss", 1024), device="cuda") as gpu:
        ring, layer = gpu.plan.kv.ring_blocks, gpu.plan.kv.layers[0]
        # wherever a batch begins in a block, it and the window before it touch no more blocks than there are
        assert gpu.max_batch == (ring - 1) * 64 + 2 - 6 < gpu.n_ctx
        assert layer.ring and gpu.device_sizes.kv == 2 * ring * layer.block_nbytes
