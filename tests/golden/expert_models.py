"""Small mixtures of experts, of which the golden data has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from family_model import (
    EXPERT,
    EXPERTS,
    GATED,
    HEAD_DIM,
    N_EMBD,
    N_EXPERTS,
    N_FF_EXPERT,
    N_HEADS,
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


def _layers(parts: Callable[[int], Shapes], n_layers: int) -> Shapes:
    """Tensors of layers that differ; a part that names its own suffix keeps it."""
    found = shapes({}, n_layers=0)
    for layer in range(n_layers):
        for part, shape in parts(layer).items():
            found[f"blk.{layer}.{part}" + ("" if part.endswith(".bias") else ".weight")] = shape
    return found


def _glm4_experts() -> Shapes:
    """One dense layer, two with experts, and one that predicts the token after next."""
    norms: Shapes = {"attn_norm": (N_EMBD,), "post_attention_norm": (N_EMBD,)}
    sparse: Shapes = {**EXPERT, **shared_expert(N_FF_EXPERT), "exp_probs_b.bias": (N_EXPERTS,)}
    extra: Shapes = {"nextn.eh_proj": (N_EMBD, 2 * N_EMBD), "nextn.enorm": (N_EMBD,), "nextn.hnorm": (N_EMBD,)}

    def parts(layer: int) -> Shapes:
        return {**SPLIT, **norms, **(GATED if layer == 0 else sparse), **(extra if layer == 3 else {})}

    return _layers(parts, 4)


LATENT: dict[str, Any] = {
    "expert_feed_forward_length": N_FF_EXPERT,
    "expert_shared_count": 2,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "leading_dense_block_count": 1,
    "attention__head_count_kv": 1,
    "attention__q_lora_rank": 48,
    "attention__kv_lora_rank": 32,
    "attention__key_length": 48,
    "attention__value_length": 32,
    "attention__key_length_mla": 32,
    "attention__value_length_mla": 16,
    "rope__dimension_count": 16,
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 32,
    "rope__scaling__yarn_log_multiplier": 0.0707,
}


def _deepseek(own: Shapes, *, bias: bool) -> Shapes:
    attention: Shapes = {
        "attn_q_a": (48, N_EMBD),
        "attn_q_a_norm": (48,),
        "attn_q_b": (N_HEADS * 32, 48),
        "attn_kv_a_mqa": (48, N_EMBD),
        "attn_kv_a_norm": (32,),
        "attn_output": (N_EMBD, N_HEADS * 16),
        **own,
    }
    sparse: Shapes = {**EXPERT, **shared_expert(2 * N_FF_EXPERT)}
    sparse |= {"exp_probs_b.bias": (N_EXPERTS,)} if bias else {}
    return _layers(lambda layer: {**attention, **NORMS, **(GATED if layer == 0 else sparse)}, N_LAYERS)


SPARSE: dict[str, FamilyModel] = {
    "granite_shared_expert": FamilyModel(
        "granitemoe",
        metadata(
            **RMS,
            **EXPERTS,
            feed_forward_length=N_FF_EXPERT,
            expert_shared_feed_forward_length=64,
            logit_scale=3.0,
            embedding_scale=2.0,
            residual_scale=0.5,
            rope__dimension_count=16,
        ),
        shapes({**SPLIT, **NORMS, **EXPERT, **shared_expert(64)}, tied=True),
    ),
    "glm4_experts": FamilyModel(
        "glm4moe",
        metadata(
            **RMS,
            **EXPERTS,
            block_count=4,
            nextn_predict_layers=1,
            expert_feed_forward_length=N_FF_EXPERT,
            expert_shared_count=1,
            expert_weights_norm=True,
            expert_weights_scale=1.5,
            expert_gating_func=2,
            leading_dense_block_count=1,
            rope__dimension_count=8,
            attention__key_length=HEAD_DIM,
            attention__value_length=HEAD_DIM,
        ),
        _glm4_experts(),
    ),
    "deepseek_groups_and_yarn": FamilyModel(
        "deepseek2",
        metadata(**RMS, **EXPERTS, **LATENT, expert_gating_func=2, expert_weights_norm=True, expert_weights_scale=2.5),
        _deepseek({"attn_k_b": (N_HEADS, 32, 16), "attn_v_b": (N_HEADS, 16, 32)}, bias=True),
    ),
    "deepseek_spelled_out": FamilyModel(
        "deepseek2",
        metadata(
            **RMS,
            **EXPERTS,
            **{key: value for key, value in LATENT.items() if not key.endswith("_mla") and "group" not in key},
        )
        | {"attention.key_length": 32, "attention.value_length": 16, "attention.head_count_kv": N_HEADS},
        _deepseek({"attn_kv_b": (N_HEADS * 32, 32)}, bias=False),
    ),
}
