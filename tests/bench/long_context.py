"""Decoding far into a long context: memory against the ledger, and speed beside llama.cpp.

    python tests/bench/long_context.py MODEL.gguf --kv-type q8_0 -c 131072 --depth 4096,32768 [--peer-python PY]

The model's cache is filled with random cells rather than by a prompt, which would take hours at the deepest: how
long a token takes does not depend on what it looks at. Both engines decode in processes of their own, by turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_GGML = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2}
_SALT = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--plan", type=Path, help="use this plan instead of building one")
    parser.add_argument("--kv-type", default="f16", choices=list(_GGML))
    parser.add_argument("-c", "--ctx-size", type=int, default=131072)
    parser.add_argument("--depth", default="4096,32768", help="tokens in the context, separated by commas")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-n", type=int, default=4, help="tokens per round")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--peer-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--worker", choices=("air", "llama"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        {"air": air, "llama": llama}[args.worker](args)
        return
    with tempfile.TemporaryDirectory() as folder:
        plan = args.plan or build(args, Path(folder) / "plan.bin")
        workers = {"air": start(args, plan, "air", sys.executable)}
        if args.peer_python:
            workers["llama"] = start(args, plan, "llama", args.peer_python)
        for depth in map(int, args.depth.split(",")):
            rounds = [{name: ask(worker, depth) for name, worker in workers.items()} for _ in range(args.rounds + 1)]
            found = {name: statistics.median(r[name] for r in rounds[1:]) for name in workers}
            line = "  ".join(f"{name} {1e3 * seconds:.1f} ms a token" for name, seconds in found.items())
            ratio = f"  ratio {found['llama'] / found['air']:.2f}" if "llama" in found else ""
            print(f"{args.model.name} {args.kv_type} {args.threads} threads, {depth} tokens before: {line}{ratio}")
        for worker in workers.values():
            worker.stdin.close()
            sys.stdout.write(worker.stdout.read())


def build(args: argparse.Namespace, out: Path) -> Path:
    command = [sys.executable, "-m", "aircompile", "build", str(args.model), "-o", str(out), "--quiet"]
    subprocess.run([*command, "--kv-type", args.kv_type, "--ctx-size", str(args.ctx_size)], check=True)
    return out


def start(args: argparse.Namespace, plan: Path, kind: str, python: str) -> subprocess.Popen[str]:
    options = ["--kv-type", args.kv_type, "-c", str(args.ctx_size), "-t", str(args.threads), "-n", str(args.n)]
    command = [python, __file__, str(args.model), "--plan", str(plan), "--worker", kind, *options]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def ask(worker: subprocess.Popen[str], depth: int) -> float:
    worker.stdin.write(f"{depth}\n")
    worker.stdin.flush()
    return float(json.loads(worker.stdout.readline()))


def air(args: argparse.Namespace) -> None:
    """Answer depths with seconds a token; at the end report memory."""
    from airrun import Engine

    with Engine.from_plan(args.plan, args.model, threads=args.threads) as engine:
        session, rng = engine.new_session(), np.random.default_rng(_SALT)
        filled, n_cells, spec = 0, engine.plan.kv.block_cells, engine.plan.kv
        cells = [random_cells(layer.block_nbytes, spec.keys, rng) for layer in spec.layers]
        for line in sys.stdin:
            depth = int(line)
            session.truncate(0)
            session._memory.reserve(depth)
            session.ids = [7] * depth
            for block in session._memory.blocks[filled:]:
                for layer, noise in enumerate(cells):
                    engine.pool.contents(layer, block)[:] = noise
            filled = max(filled, len(session._memory.blocks))
            started = time.perf_counter()
            for i in range(args.n):
                session.eval([7 + i])
            print((time.perf_counter() - started) / args.n, flush=True)
        status = Path("/proc/self/status").read_text().split()
        resident = int(status[status.index("RssAnon:") + 1]) >> 10
        sizes = engine.sizes
        touched = sizes.total - sizes.kv + sizes.kv * filled // sizes.kv_blocks
        print(f"memory of its own {resident} MiB; ledger {touched >> 20} MiB with {filled * n_cells} tokens, "
              f"{sizes.total >> 20} MiB in all, of which the cache is {sizes.kv >> 20}")  # fmt: skip


def random_cells(nbytes: int, fmt: str, rng: np.random.Generator) -> np.ndarray:
    """A block of random cells, all of moderate size: any two bytes that may be an element or a scale are a half."""
    if fmt == "F32":
        return rng.standard_normal(nbytes // 4, np.float32).view(np.uint8)
    return rng.integers(0x2000, 0x3000, nbytes // 2, np.uint16).view(np.uint8)


def llama(args: argparse.Namespace) -> None:
    import llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(args.model).encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = args.ctx_size, 2048, 512
    params.n_threads = params.n_threads_batch = args.threads
    params.type_k = params.type_v = _GGML[args.kv_type]
    params.flash_attn_type = 1
    context = lib.llama_init_from_model(model, params)
    memory, filled = lib.llama_get_memory(context), 0

    def evaluate(tokens: list[int]) -> None:
        array = (lib.llama_token * len(tokens))(*tokens)
        if lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        lib.llama_synchronize(context)

    for line in sys.stdin:
        depth = int(line)
        lib.llama_memory_seq_rm(memory, 0, depth, -1)
        while filled < depth:
            n = min(2048, depth - filled)
            evaluate([7] * n)
            filled += n
        started = time.perf_counter()
        for i in range(args.n):
            evaluate([7 + i])
        print((time.perf_counter() - started) / args.n, flush=True)


if __name__ == "__main__":
    main()
