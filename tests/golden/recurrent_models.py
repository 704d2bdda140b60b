"""Small models with recurrent states, of which the golden data has none."""

from __future__ import annotations

from typing import Any

import numpy as np
from family_model import (
    EXPERT,
    EXPERTS,
    GATED,
    HEAD_DIM,
    HEAD_NORMS,
    N_EMBD,
    N_EXPERTS,
    N_FF_EXPERT,
    N_KV_HEADS,
    N_LAYERS,
    NORMS,
    RMS,
    SPLIT,
    FamilyModel,
    Shapes,
    metadata,
    shapes,
    shared_expert,
)

N_INNER, N_STATES, KERNEL, RANK, SSM_HEADS, N_GROUPS = 2 * N_EMBD, 16, 4, 4, 8, 2
MIXED = N_INNER + 2 * N_GROUPS * N_STATES

MAMBA: Shapes = {
    "ssm_in.weight": (2 * N_INNER, N_EMBD),
    "ssm_conv1d.weight": (N_INNER, KERNEL),
    "ssm_conv1d.bias": (N_INNER,),
    "ssm_x.weight": (RANK + 2 * N_STATES, N_INNER),
    "ssm_dt.weight": (N_INNER, RANK),
    "ssm_dt.bias": (N_INNER,),
    "ssm_a": (N_INNER, N_STATES),
    "ssm_d": (N_INNER,),
    "ssm_out.weight": (N_EMBD, N_INNER),
}
MAMBA_2: Shapes = {
    "ssm_in.weight": (N_INNER + MIXED + SSM_HEADS, N_EMBD),
    "ssm_conv1d.weight": (MIXED, KERNEL),
    "ssm_conv1d.bias": (MIXED,),
    "ssm_dt.bias": (SSM_HEADS,),
    "ssm_a": (SSM_HEADS, 1),
    "ssm_d": (SSM_HEADS, 1),
    "ssm_norm.weight": (N_GROUPS, N_INNER // N_GROUPS),
    "ssm_out.weight": (N_EMBD, N_INNER),
}
SSM: dict[str, Any] = {
    "ssm__conv_kernel": KERNEL,
    "ssm__inner_size": N_INNER,
    "ssm__state_size": N_STATES,
    "ssm__time_step_rank": SSM_HEADS,
    "ssm__group_count": N_GROUPS,
}
GRANITE: dict[str, Any] = {
    "logit_scale": 3.0,
    "residual_scale": 0.4,
    "embedding_scale": 6.0,
    "attention__scale": 0.1,
    "rope__scaling__finetuned": False,
}


def weights(parts: Shapes) -> Shapes:
    return {f"{name}.weight": shape for name, shape in parts.items()}


def model(architecture: str, keys: dict[str, Any], *layers: Shapes) -> FamilyModel:
    """A model of these layers, whose states decay."""
    found = shapes({}, n_layers=0)
    if architecture == "lfm2moe":  # which calls its last norm so
        found["token_embd_norm.weight"] = found.pop("output_norm.weight")
    for i, parts in enumerate(layers):
        found |= {f"blk.{i}.{name}": shape for name, shape in parts.items()}
    decays = {
        name: -np.exp(np.linspace(-2, 1, int(np.prod(shape)), dtype=np.float32)).reshape(shape)
        for name, shape in found.items()
        if name.endswith(".ssm_a")
    }
    return FamilyModel(architecture, keys, found, decays)


ATTENTION = {**weights(SPLIT), **weights(NORMS)}
PARALLEL = {**weights(SPLIT), **MAMBA_2, **weights(GATED), "attn_norm.weight": (N_EMBD,), "ffn_norm": (N_EMBD,)}
SHORT = {
    "shortconv.conv.weight": (N_EMBD, 3),
    "shortconv.in_proj.weight": (3 * N_EMBD, N_EMBD),
    "shortconv.out_proj.weight": (N_EMBD, N_EMBD),
    **weights(NORMS),
}
SPARSE = weights({**EXPERT, **shared_expert(N_FF_EXPERT)})

RECURRENT: dict[str, FamilyModel] = {
    "falcon_mamba": model(
        "mamba",
        metadata(
            **RMS,
            **(SSM | {"ssm__time_step_rank": RANK, "ssm__group_count": None}),
            ssm__dt_b_c_rms=True,
            feed_forward_length=0,
            attention__head_count=0,
            attention__head_count_kv=None,
        ),
        *[{**MAMBA, "attn_norm.weight": (N_EMBD,)}] * N_LAYERS,
    ),
    "falcon_h1": model(
        "falcon-h1",
        metadata(**RMS, **SSM, attention__key_length=HEAD_DIM, attention__value_length=HEAD_DIM),
        *[PARALLEL] * N_LAYERS,
    ),
    "lfm2_experts": model(
        "lfm2moe",
        metadata(
            **RMS,
            **EXPERTS,
            attention__head_count_kv=[0, N_KV_HEADS, 0],
            shortconv__l_cache=3,
            leading_dense_block_count=1,
            expert_feed_forward_length=N_FF_EXPERT,
            expert_gating_func=2,
        ),
        {**SHORT, **weights(GATED)},
        {**ATTENTION, **weights(HEAD_NORMS), **weights(EXPERT), "exp_probs_b.bias": (N_EXPERTS,)},
        {**SHORT, **weights(EXPERT), "exp_probs_b.bias": (N_EXPERTS,)},
    ),
    "granite_hybrid": model(
        "granitehybrid",
        metadata(**RMS, **SSM, **GRANITE, attention__head_count_kv=[0, N_KV_HEADS, 0]),
        {**MAMBA_2, **weights(NORMS), **weights(GATED)},
        {**ATTENTION, **weights(GATED)},
        {**MAMBA_2, **weights(NORMS), **weights(GATED)},
    ),
    "granite_hybrid_experts": model(
        "granitehybrid",
        metadata(
            **RMS,
            **SSM,
            **GRANITE,
            **EXPERTS,
            attention__head_count_kv=[0, N_KV_HEADS, 0],
            feed_forward_length=N_FF_EXPERT,
            expert_shared_feed_forward_length=N_FF_EXPERT,
        ),
        {**MAMBA_2, **weights(NORMS), **SPARSE},
        {**ATTENTION, **SPARSE},
        {**MAMBA_2, **weights(NORMS), **SPARSE},
    ),
}
