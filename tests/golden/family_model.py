"""How small models of random weights are described and written, and the parts that they share.

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
