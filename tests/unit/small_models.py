"""Small models as the GGUF reader would describe them, without a file behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from aircompile.frontends.gguf import GGUFModel, TensorInfo, WeightFile
from aircompile.graph import Graph, ModelInfo, RopeInfo
from airrun.plan.blocks import BLOCKS

PATH = Path("small.gguf")
VECTORS = ("norm.weight", ".bias", "rope_freqs.weight")


def tensor(name: str, shape: tuple[int, ...], kind: str = "F32", offset: int = 0) -> TensorInfo:
    block = BLOCKS[kind]
    return TensorInfo(name, 0, offset, math.prod(shape) // block.block * block.nbytes, kind, shape)


def llama_metadata(**changes: object) -> dict[str, object]:
    """Metadata of a model of width 64; keys of `changes` are without prefix, `__` for a dot, None removes."""
    metadata: dict[str, object] = {
        "block_count": 1,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "vocab_size": 40,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    found = {f"llama.{key}": value for key, value in metadata.items() if value is not None}
    return {"general.architecture": "llama", "general.name": "Small"} | found


def llama_tensors(
    *,
    n_layers: int = 1,
    formats: Mapping[str, str] | None = None,
    default: str = "Q8_0",
    biases: Collection[str] = (),
    tied: bool = False,
    rope_factors: bool = False,
) -> dict[str, TensorInfo]:
    """Tensors that fit `llama_metadata`; `formats` by the part of the name between 'blk.N.' and '.weight'."""
    parts: dict[str, tuple[int, ...]] = {
        "attn_q": (64, 64),
        "attn_k": (32, 64),
        "attn_v": (32, 64),
        "attn_output": (64, 64),
        "ffn_gate": (96, 64),
        "ffn_up": (96, 64),
        "ffn_down": (64, 96),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (40, 64), "output_norm.weight": (64,)}
    if not tied:
        shapes["output.weight"] = (40, 64)
    if rope_factors:
        shapes["rope_freqs.weight"] = (8,)
    for i in range(n_layers):
        for part, shape in parts.items():
            shapes[f"blk.{i}.{part}.weight"] = shape
            if part in biases:
                shapes[f"blk.{i}.{part}.bias"] = shape[:1]
        shapes |= {f"blk.{i}.attn_norm.weight": (64,), f"blk.{i}.ffn_norm.weight": (64,)}
    found = {}
    for name, shape in shapes.items():
        part = re.sub(r"^blk\.\d+\.|\.weight$", "", name)
        kind = "F32" if name.endswith(VECTORS) else (formats or {}).get(part, default)
        found[name] = tensor(name, shape, kind)
    return found


def llama_model(
    metadata: dict[str, object] | None = None, tensors: dict[str, TensorInfo] | None = None, path: Path = PATH
) -> GGUFModel:
    metadata = llama_metadata() if metadata is None else metadata
    tensors = llama_tensors() if tensors is None else tensors
    return GGUFModel((WeightFile(path, 1 << 20, 64),), metadata, tensors)


def empty_graph(*weights: TensorInfo, outputs: tuple[str, ...] = ("out",)) -> Graph:
    """A graph without operators, whose model has heads of 8 elements."""
    rope = RopeInfo(8, 10000.0 ** (-np.arange(0, 8, 2) / 8), np.zeros(4, np.int32), 1, 1.0)
    hyper = ModelInfo("tiny", "none", 10, 32, 1, 64, 0, ropes=(rope,))
    return Graph(hyper, {weight.name: weight for weight in weights}, outputs)


def program(graph: Graph) -> list[str]:
    """The graph's dump by lines, without alignment."""
    return [re.sub(" {2,}", "  ", line) for line in graph.dump().splitlines()]
