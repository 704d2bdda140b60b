"""The llama family: llama 1 to 3.3, mistral, and everything else that is stored as `llama`.

Pre-norm decoder: RMS norm, grouped-query attention with rotary positions, RMS norm, SwiGLU, residual adds. Biases,
untied output matrices and rope factors are used where the file has them. Mistral's sliding window is not part of
the graph: llama.cpp, the reference for this format, ignores it for this architecture.

Sources: Touvron et al. 2023; tensor and key names from the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from aircompile.architectures.hyperparameters import Hyperparameters
from aircompile.architectures.rope import read_rope
from aircompile.architectures.tensors import TensorTable
from aircompile.frontends.gguf import GGUFModel
from aircompile.graph import Graph, ModelInfo, Phase
from aircompile.operators import Activation, Add, Attention, Gather, MatMul, Multiply, Norm, Op, Rope
from airrun.errors import ModelFileError

# Far above what real models have, and low enough that products of two stay within 64 bits.
_MAX_LAYERS = 1024
_MAX_WIDTH = 1 << 20
_MAX_HEADS = 1 << 16
_MAX_VOCAB = 1 << 24
_MAX_NAME = 200
_MAX_CONTEXT = (1 << 31) - 1

_UNUSED_KEYS = frozenset(
    (
        "attention.layer_norm_epsilon",  # of the other kind of norm
        "attention.sliding_window",
        "rope.scaling.finetuned",
        # read where the type is yarn
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
        "tensor_data_layout",
        "vocab_size",  # read where there is no vocabulary
    )
)
_NO_SCALE = (0, 1)
_NEUTRAL_KEYS: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": _NO_SCALE,
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": _NO_SCALE,
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": _NO_SCALE,
    "rope.scaling.alpha": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (-1, 0),
    "use_parallel_residual": (False,),
}
# Angles that old converters stored; they follow from the frequency base.
_UNUSED_TENSORS = re.compile(r"blk\.\d+\.attn[._]rot_embd(\.weight)?")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Shape:
    """Hyperparameters of the layers."""

    n_ff: int
    eps: float
    scale: float


def build(model: GGUFModel) -> Graph:
    """Build the unfused graph of a model of this family; see ``architectures.build_graph`` for errors."""
    hyper = Hyperparameters(model, "llama")
    tensors = TensorTable(model)
    info, shape = _read_hyperparameters(model, hyper)
    weights = _Weights(tensors, info, shape)
    tensors.finish(_UNUSED_TENSORS)
    return _build_graph(model, info, shape, weights, tensors)


def _read_hyperparameters(model: GGUFModel, hyper: Hyperparameters) -> tuple[ModelInfo, _Shape]:
    n_experts = hyper.integer("expert_count", _MAX_WIDTH, low=0, default=0)
    if n_experts > 0:
        raise hyper.unsupported("expert_count", f"is {n_experts}: mixtures of experts are not supported")
    n_layers = hyper.integer("block_count", _MAX_LAYERS)
    n_embd = hyper.integer("embedding_length", _MAX_WIDTH)
    n_ctx_train = hyper.integer("context_length", _MAX_CONTEXT)
    n_ff = hyper.uniform_integer("feed_forward_length", _MAX_WIDTH, n_layers)
    n_heads = hyper.uniform_integer("attention.head_count", _MAX_HEADS, n_layers)
    n_kv_heads = hyper.uniform_integer("attention.head_count_kv", _MAX_HEADS, n_layers, default=n_heads)
    if n_embd % n_heads and not hyper.has("attention.key_length"):
        raise hyper.error("attention.head_count", f"is {n_heads}, which does not divide the width {n_embd}")
    if n_heads % n_kv_heads:
        raise hyper.error("attention.head_count_kv", f"is {n_kv_heads}, which does not divide {n_heads} heads")
    head_dim = hyper.integer("attention.key_length", _MAX_WIDTH, default=max(1, n_embd // n_heads))
    if head_dim % 2:
        raise hyper.error("attention.key_length", f"is {head_dim}: rotary positions need an even number")
    v_dim = hyper.integer("attention.value_length", _MAX_WIDTH, default=head_dim)
    if v_dim != head_dim:
        raise hyper.unsupported("attention.value_length", f"is {v_dim}, but attention.key_length is {head_dim}")
    dim = hyper.integer("rope.dimension_count", _MAX_WIDTH, default=head_dim)
    if dim != head_dim:
        raise hyper.error("rope.dimension_count", f"is {dim}, but heads have {head_dim} elements, all of which rotate")
    eps = hyper.number("attention.layer_norm_rms_epsilon", 1e-30, 1.0)
    # 0 stands for the usual scale
    scale = hyper.number("attention.scale", 0.0, 1e6, 0.0) or 1.0 / math.sqrt(head_dim)
    rope = read_rope(hyper, dim, n_ctx_train, "normal")
    n_vocab = _vocabulary_size(model, hyper)
    hyper.finish(_NEUTRAL_KEYS, _UNUSED_KEYS)

    n_params = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    info = ModelInfo(
        name=_model_name(model),
        architecture="llama",
        n_vocab=n_vocab,
        n_embd=n_embd,
        n_layers=n_layers,
        n_ctx_train=n_ctx_train,
        n_params=n_params,
        rope=rope,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
    )
    return info, _Shape(n_ff, eps, scale)


def _model_name(model: GGUFModel) -> str:
    """The name the file gives itself, fit to be printed on a line; else the file's."""
    name = model.metadata.get("general.name")
    if not isinstance(name, str) or not name.strip():
        return model.files[0].path.stem
    return "".join(c if c.isprintable() else " " for c in name[:_MAX_NAME])


def _vocabulary_size(model: GGUFModel, hyper: Hyperparameters) -> int:
    """The length of the vocabulary; a file without one says it in a key, or shows it by the embedding."""
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None:
        if not isinstance(tokens, list) or not 0 < len(tokens) <= _MAX_VOCAB:
            raise ModelFileError(f"{hyper.path}: tokenizer.ggml.tokens is not a list of 1 to {_MAX_VOCAB} texts")
        return len(tokens)
    embedding = model.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None
    return hyper.integer("vocab_size", _MAX_VOCAB, default=rows)


class _Weights:
    """Names of the tensors, each taken from the table under its expected shape."""

    def __init__(self, tensors: TensorTable, info: ModelInfo, shape: _Shape) -> None:
        self.embedding = tensors.matrix("token_embd.weight", info.n_vocab, info.n_embd)
        self.output_norm = tensors.vector("output_norm.weight", info.n_embd)
        tied = not tensors.has("output.weight")
        self.output = self.embedding if tied else tensors.matrix("output.weight", info.n_vocab, info.n_embd)
        self.rope_factors = tensors.optional_vector(_ROPE_FACTORS, info.rope.dim // 2)
        q, kv = info.n_heads * info.head_dim, info.n_kv_heads * info.head_dim
        shapes = {
            "attn_q": (q, info.n_embd),
            "attn_k": (kv, info.n_embd),
            "attn_v": (kv, info.n_embd),
            "attn_output": (info.n_embd, q),
            "ffn_gate": (shape.n_ff, info.n_embd),
            "ffn_up": (shape.n_ff, info.n_embd),
            "ffn_down": (info.n_embd, shape.n_ff),
        }
        self._products: dict[str, MatMul] = {}
        self._norms: dict[str, Norm] = {}
        for i in range(info.n_layers):
            for part, (n_rows, n_cols) in shapes.items():
                name = f"blk.{i}.{part}"
                weight = tensors.matrix(f"{name}.weight", n_rows, n_cols)
                self._products[name] = MatMul((weight,), (tensors.optional_vector(f"{name}.bias", n_rows),))
            for part in ("attn_norm", "ffn_norm"):
                name = f"blk.{i}.{part}"
                self._norms[name] = Norm(tensors.vector(f"{name}.weight", info.n_embd), shape.eps)

    def product(self, layer: int, part: str) -> MatMul:
        return self._products[f"blk.{layer}.{part}"]

    def norm(self, layer: int, part: str) -> Norm:
        return self._norms[f"blk.{layer}.{part}"]


def _build_graph(model: GGUFModel, info: ModelInfo, shape: _Shape, weights: _Weights, tensors: TensorTable) -> Graph:
    graph = Graph(info, tensors.taken, ("logits",), model.files)
    layer = -1
    phase: Phase = "embed"

    def add(output: str, op: Op, *inputs: str) -> str:
        name = f"layers.{layer}.{output}" if layer >= 0 else output
        graph.add(op, inputs, (name,), layer=layer, phase=phase)
        return name

    def rope(n_heads: int) -> Rope:
        return Rope(n_heads, info.head_dim, info.rope.dim, info.rope.mode, weights.rope_factors)

    hidden = add("embedding", Gather(weights.embedding))
    phase = "layer"
    for layer in range(info.n_layers):
        x = add("attn_norm", weights.norm(layer, "attn_norm"), hidden)
        q = add("q", weights.product(layer, "attn_q"), x)
        k = add("k", weights.product(layer, "attn_k"), x)
        v = add("v", weights.product(layer, "attn_v"), x)
        q = add("rope_q", rope(info.n_heads), q)
        k = add("rope_k", rope(info.n_kv_heads), k)
        x = add("attention", Attention(info.n_heads, info.n_kv_heads, info.head_dim, shape.scale), q, k, v)
        x = add("attn_output", weights.product(layer, "attn_output"), x)
        hidden = add("attn_residual", Add(), hidden, x)

        x = add("ffn_norm", weights.norm(layer, "ffn_norm"), hidden)
        gate = add("gate", weights.product(layer, "ffn_gate"), x)
        up = add("up", weights.product(layer, "ffn_up"), x)
        x = add("gate_activation", Activation("silu"), gate)
        x = add("gated", Multiply(), x, up)
        x = add("down", weights.product(layer, "ffn_down"), x)
        hidden = add("ffn_residual", Add(), hidden, x)
    layer, phase = -1, "head"
    x = add("output_norm", Norm(weights.output_norm, shape.eps), hidden)
    add("logits", MatMul((weights.output,), (None,)), x)
    return graph
