"""What each type of KV cache costs in accuracy: KL divergence from a float32 cache and perplexity, beside llama.cpp.

    python tests/bench/kv_types.py MODEL.gguf TEXT [--activations auto] [--peer-python PY]

The text is cut into chunks of --ctx-size tokens. Each engine is compared with itself: what its own cache of float32
gives is the truth, so that only the cache counts. llama.cpp runs with flash attention, which rounded values need there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

TYPES = ("f32", "f16", "q8_0", "q4_0")
_GGML = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2}

Chunks = list[list[int]]
Evaluate = Callable[[list[int]], "np.ndarray"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--activations", default="auto")
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--peer-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--llama", help=argparse.SUPPRESS)  # the chunks: this is the process of the peer
    args = parser.parse_args()
    if args.llama:
        report("llama.cpp", json.loads(args.llama), lambda kind: llama(args.model, args.ctx_size, kind))
        return
    from airrun import Engine

    with tempfile.TemporaryDirectory() as folder:
        plans = {kind: build(args, kind, Path(folder)) for kind in TYPES}
        with Engine.from_plan(plans["f32"], args.model) as engine:
            ids = engine.tokenize(args.text.read_text(), add_special=False)
        chunks = [ids[at : at + args.ctx_size] for at in range(0, len(ids) - 1, args.ctx_size)]

        def ours(kind: str) -> Iterator[Evaluate]:
            with Engine.from_plan(plans[kind], args.model) as engine:
                yield engine.logits

        report("aircompile", chunks, ours)
    if args.peer_python:
        command = [args.peer_python, __file__, str(args.model), str(args.text), "-c", str(args.ctx_size)]
        subprocess.run([*command, "--llama", json.dumps(chunks)], check=True, stderr=subprocess.DEVNULL)


def build(args: argparse.Namespace, kind: str, folder: Path) -> Path:
    out = folder / f"{kind}.plan.bin"
    command = [sys.executable, "-m", "aircompile", "build", str(args.model), "-o", str(out), "--quiet"]
    options = ["--kv-type", kind, "--activations", args.activations, "--ctx-size", str(args.ctx_size)]
    subprocess.run([*command, *options], check=True)
    return out


def llama(model: Path, n_ctx: int, kind: str) -> Iterator[Evaluate]:
    from llama_cpp import Llama

    options = {"type_k": _GGML[kind], "type_v": _GGML[kind], "flash_attn": True, "n_threads": 2, "n_threads_batch": 2}
    engine = Llama(str(model), n_ctx=n_ctx, n_batch=512, logits_all=True, verbose=False, **options)

    def evaluate(ids: list[int]) -> np.ndarray:
        engine.reset()
        engine.eval(ids)
        return np.array(engine.scores[: len(ids)], np.float32)

    yield evaluate


def report(name: str, chunks: Chunks, engines: Callable[[str], Iterator[Evaluate]]) -> None:
    """Print a line per type: mean KL(float32 || type) in nats over all positions, and perplexity."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            divergences, likelihoods = [], []
            for evaluate in engines(kind):
                for i, ids in enumerate(chunks):
                    found, path = evaluate(ids), Path(folder) / f"{i}.npy"
                    if kind == "f32":
                        np.save(path, found)
                    p, q = log_softmax(np.load(path)), log_softmax(found)
                    divergences.append((np.exp(p) * (p - q)).sum(1))
                    likelihoods.append(q[np.arange(len(ids) - 1), ids[1:]])
            kl, perplexity = np.concatenate(divergences).mean(), np.exp(-np.concatenate(likelihoods).mean())
            print(f"{name:12} {kind:5} KL {max(kl, 0.0):.2e}  perplexity {perplexity:.4f}", flush=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


if __name__ == "__main__":
    main()
