"""Recurrent models of a real size, for `synthetic.py`: gated delta nets as of Qwen 3.5, and Mamba 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synthetic import Metadata, Tensors, write_file

_KERNEL, _N_VOCAB = 4, 32000


@dataclass(frozen=True)
class DeltaNet:
    """Every fourth layer has attention, with two key heads; the others have states of `head_dim` squared a head."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_key_heads: int
    head_dim: int
    n_attention_heads: int

    architecture = "qwen35"

    def metadata(self) -> Metadata:
        quarter = self.head_dim // 16
        return {
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_attention_heads,
            "attention.head_count_kv": 2,
            "attention.key_length": 2 * self.head_dim,
            "attention.value_length": 2 * self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.dimension_count": 4 * quarter,
            "rope.dimension_sections": [quarter, quarter // 2, quarter // 2, 0],
            "rope.freq_base": 1e7,
            "full_attention_interval": 4,
            "ssm.conv_kernel": _KERNEL,
            "ssm.state_size": self.head_dim,
            "ssm.group_count": self.n_key_heads,
            "ssm.time_step_rank": self.n_heads,
            "ssm.inner_size": self.n_heads * self.head_dim,
        }

    def layer(self, i: int, fmt: str) -> Tensors:
        n_inner, n_mixed = self.n_heads * self.head_dim, (2 * self.n_key_heads + self.n_heads) * self.head_dim
        n_query, n_kv = 2 * self.n_attention_heads * self.head_dim, 4 * self.head_dim
        found: Tensors = {
            "attn_norm.weight": ((self.n_embd,), "F32"),
            "post_attention_norm.weight": ((self.n_embd,), "F32"),
            "ffn_gate.weight": ((self.n_ff, self.n_embd), fmt),
            "ffn_up.weight": ((self.n_ff, self.n_embd), fmt),
            "ffn_down.weight": ((self.n_embd, self.n_ff), fmt),
        }
        if i % 4 == 3:
            return found | {
                "attn_q.weight": ((2 * n_query, self.n_embd), fmt),
                "attn_k.weight": ((n_kv, self.n_embd), fmt),
                "attn_v.weight": ((n_kv, self.n_embd), fmt),
                "attn_output.weight": ((self.n_embd, n_query), fmt),
                "attn_q_norm.weight": ((2 * self.head_dim,), "F32"),
                "attn_k_norm.weight": ((2 * self.head_dim,), "F32"),
            }
        return found | {
            "attn_qkv.weight": ((n_mixed, self.n_embd), fmt),
            "attn_gate.weight": ((n_inner, self.n_embd), fmt),
            "ssm_out.weight": ((self.n_embd, n_inner), fmt),
            "ssm_alpha.weight": ((self.n_heads, self.n_embd), fmt),
            "ssm_beta.weight": ((self.n_heads, self.n_embd), fmt),
            "ssm_conv1d.weight": ((n_mixed, _KERNEL), "F32"),
            "ssm_norm.weight": ((self.head_dim,), "F32"),
            "ssm_dt.bias": ((self.n_heads,), "F32"),
            "ssm_a": ((self.n_heads,), "F32"),
        }


@dataclass(frozen=True)
class Mamba2:
    """States of `n_states` by the width of a head."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_states: int

    architecture = "mamba2"

    def metadata(self) -> Metadata:
        return {
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "ssm.conv_kernel": _KERNEL,
            "ssm.inner_size": 2 * self.n_embd,
            "ssm.state_size": self.n_states,
            "ssm.time_step_rank": self.n_heads,
            "ssm.group_count": 1,
        }

    def layer(self, i: int, fmt: str) -> Tensors:
        n_inner = 2 * self.n_embd
        n_mixed = n_inner + 2 * self.n_states
        return {
            "attn_norm.weight": ((self.n_embd,), "F32"),
            "ssm_in.weight": ((n_inner + n_mixed + self.n_heads, self.n_embd), fmt),
            "ssm_out.weight": ((self.n_embd, n_inner), fmt),
            "ssm_conv1d.weight": ((n_mixed, _KERNEL), "F32"),
            "ssm_conv1d.bias": ((n_mixed,), "F32"),
            "ssm_norm.weight": ((1, n_inner), "F32"),
            "ssm_dt.bias": ((self.n_heads,), "F32"),
            "ssm_a": ((self.n_heads, 1), "F32"),
            "ssm_d": ((self.n_heads, 1), "F32"),
        }


RECURRENT = {
    "qwen35-1b": DeltaNet(24, 1024, 3584, 16, 16, 128, 8),
    "mamba2-1.3b": Mamba2(48, 2048, 64, 128),
}


def write_recurrent(path: Path, shape: DeltaNet | Mamba2, fmt: str, *, empty: bool = False) -> None:
    """Write a model whose matrices are all in one format."""
    metadata: Metadata = {
        "context_length": 8192,
        "embedding_length": shape.n_embd,
        "block_count": shape.n_layers,
        **shape.metadata(),
    }
    tensors: Tensors = {
        "token_embd.weight": ((_N_VOCAB, shape.n_embd), fmt),
        "output_norm.weight": ((shape.n_embd,), "F32"),
        "output.weight": ((_N_VOCAB, shape.n_embd), fmt),
    }
    for i in range(shape.n_layers):
        tensors |= {f"blk.{i}.{name}": found for name, found in shape.layer(i, fmt).items()}
    write_file(path, shape.architecture, metadata, tensors, _N_VOCAB, empty=empty)
