"""Small dense models of families, or of variants, of which the golden data has none."""

from __future__ import annotations

import math

from family_model import (
    EACH_HEAD_NORMS,
    EQUAL,
    FUSED,
    GATED,
    HEAD_DIM,
    HEAD_NORMS,
    KV,
    LAYER,
    N_EMBD,
    N_FF,
    N_LAYERS,
    N_VOCAB,
    NORMS,
    PLAIN,
    POSITIONS,
    POST_NORMS,
    RMS,
    SHARED,
    SPLIT,
    FamilyModel,
    Q,
    Shapes,
    metadata,
    shapes,
)


def _unbiased(found: Shapes, *names: str) -> Shapes:
    return {
        name: shape for name, shape in found.items() if not (name.endswith(".bias") and any(n in name for n in names))
    }


def _apertus() -> FamilyModel:
    bends = {"alpha_p": [0.3, -0.4, 1.2], "alpha_n": [0.7, 0.1, -1.0], "beta": [0.5] * 3, "eps": [-1e-6] * 3}
    keys = metadata(**RMS, **{f"xielu__{key}": value for key, value in bends.items()})
    return FamilyModel("apertus", keys, shapes({**SPLIT, **NORMS, **HEAD_NORMS, **PLAIN}))


def _gemma3n() -> FamilyModel:
    """What llama.cpp takes as given (widths, sparse layers) is so here; it divides by n - 1 for the deviation."""
    n_low, n_rank, n_streams = 256, 64, 4
    keys = metadata(
        **RMS,
        block_count=5,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        attention__sliding_window=12,
        attention__sliding_window_pattern=[True, True, False, True, False],
        attention__shared_kv_layers=0,
        rope__freq_base=1e6,
        rope__freq_base_swa=1e4,
        embedding_length_per_layer_input=n_low,
        altup__num_inputs=n_streams,
        altup__active_idx=0,
        activation_sparsity_scale=[1.6448533535003662 * math.sqrt(N_FF / (N_FF - 1))] * 5,
        final_logit_softcapping=30.0,
    )
    parts = {
        **SPLIT, **NORMS, **POST_NORMS, **HEAD_NORMS, **GATED,
        "inp_gate": (n_low, N_EMBD), "proj": (N_EMBD, n_low), "post_norm": (N_EMBD,),
        "altup_correct_coef": (n_streams, n_streams), "altup_correct_scale": (N_EMBD,),
        "altup_predict_coef": (n_streams**2, n_streams), "altup_router": (n_streams, N_EMBD),
        "altup_router_norm": (N_EMBD,), "laurel_l": (n_rank, N_EMBD), "laurel_r": (N_EMBD, n_rank),
        "laurel_post_norm": (N_EMBD,),
    }  # fmt: skip
    top = {
        "altup_proj.weight": (n_streams - 1, N_EMBD, N_EMBD),
        "altup_unembd_proj.weight": (n_streams - 1, N_EMBD, N_EMBD),
        "per_layer_token_embd.weight": (N_VOCAB, n_low * 5),
        "per_layer_model_proj.weight": (n_low * 5, N_EMBD),
        "per_layer_proj_norm.weight": (n_low,),
    }
    return FamilyModel("gemma3n", keys, shapes(parts, n_layers=5, tied=True) | top)


DENSE: dict[str, FamilyModel] = {
    "gptneox": FamilyModel(
        "gptneox",
        metadata(**LAYER, attention__head_count_kv=None, use_parallel_residual=True, rope__dimension_count=8),
        shapes({**EQUAL, **NORMS, **PLAIN}, bias=True),
    ),
    "gptneox_sequential": FamilyModel(
        "gptneox",
        metadata(**LAYER, attention__head_count_kv=None, use_parallel_residual=False, rope__dimension_count=16),
        shapes({**EQUAL, **NORMS, **PLAIN}, bias=True),
    ),
    "bloom": FamilyModel(
        "bloom",
        metadata(**LAYER, attention__head_count=6, attention__head_count_kv=6, embedding_length=96),
        {
            name: tuple(96 if n == N_EMBD else n for n in shape)
            for name, shape in shapes(
                {"attn_qkv": (288, N_EMBD), "attn_output": (N_EMBD, N_EMBD), **NORMS, **PLAIN},
                bias=True,
                tied=True,
                token_embd_norm__weight=(N_EMBD,),
                token_embd_norm__bias=(N_EMBD,),
            ).items()
        },
    ),
    "mpt": FamilyModel(
        "mpt",
        metadata(**LAYER, attention__max_alibi_bias=8.0, attention__clamp_kqv=1.5, attention__head_count_kv=None),
        shapes({**EQUAL, **NORMS, **PLAIN}, tied=True),
    ),
    "mpt_positions": FamilyModel(
        "mpt",
        metadata(**LAYER, attention__head_count_kv=None),
        shapes(
            {**EQUAL, **NORMS, **PLAIN},
            bias=True,
            tied=True,
            position_embd__weight=POSITIONS,
        ),
    ),
    "starcoder": FamilyModel(
        "starcoder",
        metadata(**LAYER, attention__head_count_kv=1),
        shapes(
            {**SHARED, **NORMS, **PLAIN},
            bias=True,
            tied=True,
            position_embd__weight=POSITIONS,
        ),
    ),
    "olmo": FamilyModel(
        "olmo",
        metadata(**LAYER, attention__clamp_kqv=1.0),
        {k: v for k, v in shapes({**SPLIT, **GATED}, tied=True).items() if k != "output_norm.weight"},
    ),
    "olmo3": FamilyModel(
        "olmo2",
        metadata(
            **RMS,
            block_count=5,
            attention__sliding_window=12,
            rope__scaling__type="yarn",
            rope__scaling__factor=4.0,
            rope__scaling__original_context_length=32,
            rope__scaling__attn_factor=1.0,
        ),
        shapes({**SPLIT, **GATED, **POST_NORMS, "attn_q_norm": (Q,), "attn_k_norm": (KV,)}, n_layers=5),
    ),
    "nemotron": FamilyModel(
        "nemotron",
        metadata(**LAYER, rope__dimension_count=8),
        _unbiased(
            shapes({**SPLIT, **NORMS, **PLAIN}, bias=True),
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_up",
            "ffn_down",
        ),
    ),
    "exaone4": FamilyModel(
        "exaone4", metadata(**RMS), shapes({**SPLIT, **GATED, **POST_NORMS, **HEAD_NORMS}, tied=True)
    ),
    "ernie4_5": FamilyModel("ernie4_5", metadata(**RMS), shapes({**SPLIT, **NORMS, **GATED}, tied=True)),
    "hunyuan": FamilyModel(
        "hunyuan-dense",
        metadata(**RMS, rope__scaling__alpha=50.0),
        shapes({**SPLIT, **NORMS, **GATED, **HEAD_NORMS}, tied=True),
    ),
    "seed_oss": FamilyModel(
        "seed_oss",
        metadata(**RMS),
        shapes({**SPLIT, "attn_norm": (N_EMBD,), "post_attention_norm": (N_EMBD,), **GATED}),
    ),
    "apertus": _apertus(),
    "gemma3n": _gemma3n(),
    "arcee": FamilyModel("arcee", metadata(**RMS), shapes({**SPLIT, **NORMS, **PLAIN})),
    "stablelm_parallel": FamilyModel(
        "stablelm",
        metadata(**LAYER, rope__dimension_count=4, use_parallel_residual=True),
        {
            **shapes({**SPLIT, "attn_norm": (N_EMBD,), **GATED, **EACH_HEAD_NORMS}),
            "output_norm.bias": (N_EMBD,),
            **{f"blk.{i}.attn_norm.bias": (N_EMBD,) for i in range(N_LAYERS)},
        },
    ),
    "falcon_7b": FamilyModel(
        "falcon",
        metadata(**LAYER, attention__head_count_kv=1),
        _unbiased(
            shapes(
                {**SHARED, "attn_norm": (N_EMBD,), **PLAIN},
                bias=True,
            ),
            "attn_qkv",
            "attn_output",
            "ffn",
        ),
    ),
    "granite_without_positions": FamilyModel(
        "granite",
        metadata(**RMS, rope__scaling__finetuned=False, logit_scale=3.0, rope__dimension_count=16),
        shapes({**SPLIT, **NORMS, **GATED}),
    ),
    "qwen2vl": FamilyModel(
        "qwen2vl",
        # llama.cpp does not read the epsilon of this one
        metadata(attention__layer_norm_rms_epsilon=1e-8, rope__dimension_sections=[2, 3, 3, 0], rope__freq_base=1e6),
        {
            **shapes({**SPLIT, **NORMS, **GATED}),
            **{
                f"blk.{i}.attn_{part}.bias": (n,)
                for i in range(N_LAYERS)
                for part, n in (("q", Q), ("k", KV), ("v", KV))
            },
        },
    ),
    "qwen3vl": FamilyModel(
        "qwen3vl",
        metadata(
            **RMS,
            rope__dimension_sections=[3, 3, 2, 0],
            n_deepstack_layers=2,
            attention__key_length=HEAD_DIM,
            attention__value_length=HEAD_DIM,
        ),
        shapes({**SPLIT, **NORMS, **HEAD_NORMS, **GATED}, tied=True),
    ),
    "qwen2_fused": FamilyModel(
        "qwen2", metadata(**RMS, rope__freq_base=1e6), shapes({**FUSED, **NORMS, **GATED}, tied=True)
    ),
    "gemma3_without_window": FamilyModel(
        "gemma3",
        metadata(**RMS, attention__key_length=HEAD_DIM, attention__value_length=HEAD_DIM, final_logit_softcapping=20.0),
        shapes({**SPLIT, **NORMS, **POST_NORMS, **HEAD_NORMS, **GATED}, tied=True),
    ),
}
