"""Small models of families of which the golden data has none, with random weights made from a seed.

Each is a file that llama.cpp loads: `record_families.py` has it compute their logits, which are kept in `families.npz`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_EMBD, N_FF, N_HEADS, N_KV_HEADS, HEAD_DIM, N_LAYERS, N_CTX = 64, 96, 4, 2, 16, 3, 128
N_VOCAB = 264
TOKENS = [(7 * i * i + 31 * i + 5) % 256 + 3 for i in range(60)]
"""The sequence that logits are kept of, longer than the windows below."""
KEPT = [0, 1, 20, 59]
"""Its positions of which they are kept."""

Shapes = dict[str, tuple[int, ...]]


@dataclass
class FamilyModel:
    """Metadata without prefix, and shapes of tensors; vectors end in 'norm.weight', '.bias', or are listed."""

    architecture: str
    metadata: dict[str, Any]
    shapes: Shapes
    given: dict[str, np.ndarray] = field(default_factory=dict)
    """Tensors that are not random."""

    def write(self, path: Path) -> None:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.metadata.items():
            _add(writer, key if key.startswith("xielu.") else f"{self.architecture}.{key}", value)
        writer.add_tokenizer_model("llama")
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "c", "▁a"]
        kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
        writer.add_token_list(pieces)
        writer.add_token_scores([-float(i) for i in range(N_VOCAB)])
        writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (N_VOCAB - len(kinds))])
        rng = np.random.default_rng(zlib.crc32(repr(sorted(self.shapes.items())).encode()))
        for name, shape in self.shapes.items():
            # norms near 1, biases small, products that keep the size of their input
            base = 1.0 if name.endswith(("norm.weight", "ffn_norm")) or "norm_2.weight" in name else 0.0
            size = 0.2 if len(shape) == 1 or base else 1.5 / math.sqrt(shape[-1])
            size = 0.3 if name.startswith(("token_embd.", "per_layer_token_embd")) else size
            data = (base + size * rng.standard_normal(shape)).astype(np.float32)
            writer.add_tensor(name, self.given.get(name, data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: list[tuple[type, Callable[[str, Any], None]]] = [
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        (list, writer.add_array),
    ]
    next(add for kind, add in kinds if isinstance(value, kind))(key, value)


def metadata(**changes: Any) -> dict[str, Any]:
    """Keys that all have, with `changes` (`__` for a dot; None removes)."""
    found = {
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": N_LAYERS,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": N_KV_HEADS,
    }
    found |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in found.items() if value is not None}


RMS: dict[str, Any] = {"attention__layer_norm_rms_epsilon": 1e-5}
LAYER: dict[str, Any] = {"attention__layer_norm_epsilon": 1e-5}


def shapes(
    parts: dict[str, tuple[int, ...]], *, n_layers: int = N_LAYERS, bias: bool = False, tied: bool = False, **top: Any
) -> Shapes:
    """Tensors of every layer by part, with biases where asked, and those outside the layers."""
    found: Shapes = {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,)}
    if bias:
        found["output_norm.bias"] = (N_EMBD,)
    if not tied:
        found["output.weight"] = (N_VOCAB, N_EMBD)
    found |= {name.replace("__", "."): shape for name, shape in top.items()}
    for layer in range(n_layers):
        for part, shape in parts.items():
            found[f"blk.{layer}.{part}.weight"] = shape
            if bias:
                found[f"blk.{layer}.{part}.bias"] = shape[:1]
    return found


Q, KV, QKV = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM, (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM
SPLIT: Shapes = {"attn_q": (Q, N_EMBD), "attn_k": (KV, N_EMBD), "attn_v": (KV, N_EMBD), "attn_output": (N_EMBD, Q)}
FUSED: Shapes = {"attn_qkv": (QKV, N_EMBD), "attn_output": (N_EMBD, Q)}
EQUAL: Shapes = {**FUSED, "attn_qkv": (3 * Q, N_EMBD)}
SHARED: Shapes = {**FUSED, "attn_qkv": (Q + 2 * HEAD_DIM, N_EMBD)}
NORMS: Shapes = {"attn_norm": (N_EMBD,), "ffn_norm": (N_EMBD,)}
POST_NORMS: Shapes = {"post_attention_norm": (N_EMBD,), "post_ffw_norm": (N_EMBD,)}
HEAD_NORMS: Shapes = {"attn_q_norm": (HEAD_DIM,), "attn_k_norm": (HEAD_DIM,)}
EACH_HEAD_NORMS: Shapes = {"attn_q_norm": (N_HEADS, HEAD_DIM), "attn_k_norm": (N_KV_HEADS, HEAD_DIM)}
PLAIN: Shapes = {"ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
GATED: Shapes = {"ffn_gate": (N_FF, N_EMBD), **PLAIN}
POSITIONS = (N_CTX, N_EMBD)


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


N_EXPERTS, N_FF_EXPERT = 8, 32
EXPERTS: dict[str, Any] = {"expert_count": N_EXPERTS, "expert_used_count": 3}
EXPERT: Shapes = {
    "ffn_gate_inp": (N_EXPERTS, N_EMBD),
    "ffn_gate_exps": (N_EXPERTS, N_FF_EXPERT, N_EMBD),
    "ffn_up_exps": (N_EXPERTS, N_FF_EXPERT, N_EMBD),
    "ffn_down_exps": (N_EXPERTS, N_EMBD, N_FF_EXPERT),
}


def shared_expert(n_ff: int) -> Shapes:
    return {"ffn_gate_shexp": (n_ff, N_EMBD), "ffn_up_shexp": (n_ff, N_EMBD), "ffn_down_shexp": (N_EMBD, n_ff)}


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


MODELS: dict[str, FamilyModel] = {
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
    "qwen2_fused": FamilyModel(
        "qwen2", metadata(**RMS, rope__freq_base=1e6), shapes({**FUSED, **NORMS, **GATED}, tied=True)
    ),
    "gemma3_without_window": FamilyModel(
        "gemma3",
        metadata(**RMS, attention__key_length=HEAD_DIM, attention__value_length=HEAD_DIM, final_logit_softcapping=20.0),
        shapes({**SPLIT, **NORMS, **POST_NORMS, **HEAD_NORMS, **GATED}, tied=True),
    ),
}
