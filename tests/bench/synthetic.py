"""Models of a real size with random weights: ``python tests/bench/synthetic.py OUT.gguf --shape 8b --format q4_0``.

In models with experts, tokens differ by embeddings that outweigh what the layers add, and routers are random matrices
some of whose rows are longer: experts are chosen by token, some more often than others.

With ``--empty`` the weights are a hole in the file: enough to build a plan for it on a machine without room for it; the
fingerprint of the real file is the same.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from airrun.plan.blocks import BLOCKS

_REPEATED = 32 << 20
"""Bytes of random weights that fill a file over and over."""

_SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
"""Offsets of the half-precision scales in a block."""

_ROUTER = "ffn_gate_inp.weight"

_EMBEDDING_SIZE = 40.0
"""Times the size of other weights: elements of about 0.2, where a layer adds about 0.05."""

_SKEW = 0.3
"""Standard deviation of the logarithm of a router's rows' lengths."""


Metadata = dict[str, "int | float | list[int]"]

Tensors = dict[str, tuple[tuple[int, ...], str]]
"""Dimensions and formats by name, in the order of the file."""


@dataclass(frozen=True)
class Shape:
    """Hyperparameters of a llama; with experts, `n_ff` is their width."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    n_experts: int = 0
    n_used: int = 0


SHAPES = {
    "tiny": Shape(2, 512, 1536, 8, 2, 1024),
    "1b": Shape(16, 2048, 8192, 32, 8, 32000),
    "8b": Shape(32, 4096, 14336, 32, 8, 128256),
    "7b-a1b": Shape(16, 2048, 1024, 16, 16, 50304, 64, 8),
    "30b-a3b": Shape(48, 2048, 768, 32, 4, 151936, 128, 8),
    "70b": Shape(80, 8192, 28672, 64, 8, 128256),
}


def write_model(path: Path, shape: Shape, fmt: str, *, empty: bool = False, seed: int = 0) -> None:
    """Write a model whose matrices are all in one format (the head of a Q4_K model in Q6_K, as is usual)."""
    metadata: Metadata = {
        "context_length": 8192,
        "embedding_length": shape.n_embd,
        "block_count": shape.n_layers,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
    }
    if shape.n_experts:
        metadata |= {"expert_count": shape.n_experts, "expert_used_count": shape.n_used}
    write_file(path, "llama", metadata, _tensors(shape, fmt), shape.n_vocab, empty=empty, seed=seed)


def write_file(
    path: Path,
    architecture: str,
    metadata: Metadata,
    tensors: Tensors,
    n_vocab: int,
    *,
    empty: bool = False,
    seed: int = 0,
) -> None:
    """Write a file of random weights; keys of the metadata are without the architecture's name."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("Synthetic")
    for key, value in metadata.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        (writer.add_array if isinstance(value, list) else add)(f"{architecture}.{key}", value)  # type: ignore[operator]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += [f"w{i}" for i in range(n_vocab - len(words))]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([float(-i) for i in range(len(words))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(words) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, (dims, kind) in tensors.items():
        elements = int(np.prod(dims))
        nbytes = elements // BLOCKS[kind].block * BLOCKS[kind].nbytes
        quantized = gguf.GGMLQuantizationType[kind]
        byte_shape = (*dims[:-1], nbytes // int(np.prod(dims[:-1], dtype=np.int64)))
        dtype = np.dtype(np.float32) if kind == "F32" else np.dtype(np.uint8)
        writer.add_tensor_info(name, dims if kind == "F32" else byte_shape, dtype, nbytes, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    _fill(path, tensors, np.random.default_rng(seed), empty)


def _tensors(shape: Shape, fmt: str) -> Tensors:
    head_dim = shape.n_embd // shape.n_heads
    kv = shape.n_kv_heads * head_dim
    head = "Q6_K" if fmt == "Q4_K" else fmt
    found: Tensors = {
        "token_embd.weight": ((shape.n_vocab, shape.n_embd), fmt),
        "output_norm.weight": ((shape.n_embd,), "F32"),
        "output.weight": ((shape.n_vocab, shape.n_embd), head),
    }
    for i in range(shape.n_layers):
        attention = {
            "attn_q": (shape.n_embd, shape.n_embd),
            "attn_k": (kv, shape.n_embd),
            "attn_v": (kv, shape.n_embd),
            "attn_output": (shape.n_embd, shape.n_embd),
        }
        matrices: dict[str, tuple[int, ...]] = dict(attention)
        bank, suffix = ((shape.n_experts,), "_exps") if shape.n_experts else ((), "")
        for part in ("gate", "up"):
            matrices[f"ffn_{part}{suffix}"] = (*bank, shape.n_ff, shape.n_embd)
        matrices[f"ffn_down{suffix}"] = (*bank, shape.n_embd, shape.n_ff)
        if shape.n_experts:
            found[f"blk.{i}.ffn_gate_inp.weight"] = ((shape.n_experts, shape.n_embd), "F32")
        found |= {f"blk.{i}.{name}.weight": (dims, fmt) for name, dims in matrices.items()}
        found |= {f"blk.{i}.{name}_norm.weight": ((shape.n_embd,), "F32") for name in ("attn", "ffn")}
    return found


def _fill(path: Path, tensors: Tensors, rng: np.random.Generator, empty: bool) -> None:
    """Put the tensors behind the header, each at a multiple of 32 bytes."""
    sparse = any(name.endswith(_ROUTER) for name in tensors)
    with path.open("r+b") as file:
        at = -(-file.seek(0, 2) // 32) * 32
        random: dict[tuple[str, float], bytes] = {}
        for name, (dims, kind) in tensors.items():
            elements = int(np.prod(dims))
            nbytes = elements // BLOCKS[kind].block * BLOCKS[kind].nbytes
            file.seek(at)
            if name.endswith(_ROUTER) and not empty:
                file.write(_router(dims, rng))
            elif name.endswith("ssm_a") and not empty:
                file.write((-np.ones(elements, "<f4")).tobytes())
            elif not empty:
                size = _EMBEDDING_SIZE if sparse and name.startswith("token_embd") else 1.0
                if (kind, size) not in random:
                    random[kind, size] = _random_blocks(kind, rng, size)
                _write_repeated(file, random[kind, size], nbytes)
            at += -(-nbytes // 32) * 32
        file.truncate(at)


def _router(dims: tuple[int, ...], rng: np.random.Generator) -> bytes:
    """Float32 rows whose lengths differ: the products with the longest are most often among the largest."""
    n_experts, n_embd = dims
    lengths = np.exp(_SKEW * rng.standard_normal((n_experts, 1))) / np.sqrt(n_embd)
    return (lengths * rng.standard_normal(dims)).astype("<f4").tobytes()


def _write_repeated(file: object, data: bytes, nbytes: int) -> None:
    view = memoryview(data)
    while nbytes > 0:
        nbytes -= file.write(view[:nbytes])  # type: ignore[attr-defined]


def _random_blocks(kind: str, rng: np.random.Generator, size: float = 1.0) -> bytes:
    """Whole blocks whose values are finite and small, so that activations stay so too; `size` multiplies them."""
    if kind == "F32":
        return np.ones(1 << 16, np.float32).tobytes()
    layout = BLOCKS[kind]
    blocks = rng.integers(0, 256, (_REPEATED // layout.nbytes, layout.nbytes), dtype=np.uint8)
    for offset in _SCALES[kind]:
        usual = size * (2e-5 if layout.block == 256 else 1e-3)
        scales = (rng.standard_normal(len(blocks)) * usual).astype(np.float16)
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    return blocks.tobytes()


def main() -> None:
    """Write the file that the arguments describe."""
    from synthetic_recurrent import RECURRENT, write_recurrent

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=[*SHAPES, *RECURRENT], default="8b")
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--empty", action="store_true")
    args = parser.parse_args()
    fmt = next(name for name in _SCALES if name.lower() == args.format.lower())
    if args.shape in RECURRENT:
        write_recurrent(args.out, RECURRENT[args.shape], fmt, empty=args.empty)
    else:
        write_model(args.out, SHAPES[args.shape], fmt, empty=args.empty)


if __name__ == "__main__":
    main()
