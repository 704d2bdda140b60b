"""Decode and prefill far into a context, beside llama.cpp, and against what memory allows.

    python tests/bench/long_context.py MODEL.gguf --kv-type q8_0 -c 20480 --depth 1024,16384 --prefill 0,8192 \\
        [--peer-python PY]

Caches are filled with random cells, llama.cpp's with the cells of one prompt over and over, rather than by prompts that
would take hours at the deepest: how long a token takes does not depend on what it looks at. Nothing is evaluated again
between rounds. All engines run in processes of their own, by turns, after a round that does not count; llama.cpp twice
where it can, with flash attention and without.

The limit of decode is the time in which memory is read that a token needs: all weights but the embedding, and the cells
of the cache that it sees. What memory gives is measured in the same run, on as many threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_GGML = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2}
_SALT = 5
_PROMPT = 512

Job = Callable[[int, int, bool], float]
"""(number of tokens, tokens in the context before them, whether they come together) -> seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--plan", type=Path, help="use this plan instead of building one")
    parser.add_argument("--kv-type", default="f16", choices=list(_GGML))
    parser.add_argument("-c", "--ctx-size", type=int, default=131072)
    parser.add_argument("--depth", default="1024,16384", help="tokens before those decoded, separated by commas")
    parser.add_argument("--prefill", default="", help="tokens before a prompt of -p, separated by commas")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-n", type=int, default=4, help="tokens decoded per round")
    parser.add_argument("-p", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--peer-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--peer-attention", choices=("both", "flash", "plain"), default="both")
    parser.add_argument("--worker", choices=("air", "flash", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(*(air(args) if args.worker == "air" else llama(args, flash=args.worker == "flash")))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.plan = args.plan or build(args, Path(folder) / "plan.bin")
        compare(args)


def build(args: argparse.Namespace, out: Path) -> Path:
    command = [sys.executable, "-m", "aircompile", "build", str(args.model), "-o", str(out), "--quiet"]
    subprocess.run([*command, "--kv-type", args.kv_type, "--ctx-size", str(args.ctx_size)], check=True)
    return out


def compare(args: argparse.Namespace) -> None:
    from airrun.machine.probe import FULL, measure_ram

    _one, bandwidth = measure_ram(args.threads, FULL, lambda _what: None)
    workers = {"air": start(args, "air", sys.executable)}
    if args.peer_python:
        # values that are not transposed can only be rounded with flash attention
        kinds = ["flash", "plain"] if args.kv_type in ("f16", "f32") else ["flash"]
        workers |= {
            kind: start(args, kind, args.peer_python) for kind in kinds if args.peer_attention in (kind, "both")
        }
    print(f"{args.model.name}, cache {args.kv_type}, {args.threads} threads, memory {bandwidth / 1e9:.1f} GB/s")
    jobs = [("decode", int(depth), args.n, args.rounds) for depth in args.depth.split(",") if depth]
    jobs += [("prefill", int(depth), args.p, 1) for depth in args.prefill.split(",") if depth]
    for job, depth, n, rounds in jobs:
        warm = 1 if job == "decode" else 0
        each = [{k: ask(w, job, n, depth) for k, w in workers.items()} for _ in range(rounds + warm)][warm:]
        seconds = {kind: statistics.median(found[kind] for found in each) / n for kind in workers}
        if job == "decode":
            limit = decode_nbytes(args.plan, depth) / bandwidth
            line = [f"{kind} {1e3 * s:.1f} ms" for kind, s in seconds.items()]
            line.append(f"limit {1e3 * limit:.1f} ms ({limit / seconds['air']:.0%} reached)")
        else:
            line = [f"{kind} {1 / s:.1f} tokens/s" for kind, s in seconds.items()]
        peers = [s for kind, s in seconds.items() if kind != "air"]
        ratio = f"  ratio {min(peers) / seconds['air']:.2f}" if peers else ""
        print(f"  {job} {n} after {depth}: {'  '.join(line)}{ratio}", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        sys.stdout.write(worker.stdout.read())


def decode_nbytes(path: Path, depth: int) -> int:
    """Bytes of memory that a token reads after so many others."""
    from airrun.plan.container import read_plan

    plan = read_plan(path).plan
    cells = sum(
        layer.block_nbytes * (min(depth, plan.kv.window) if layer.ring else depth) // plan.kv.block_cells
        for layer in plan.kv.layers
    )
    return plan.cost.weight_nbytes_per_token + cells


def start(args: argparse.Namespace, kind: str, python: str) -> subprocess.Popen[str]:
    options = ["--kv-type", args.kv_type, "-c", str(args.ctx_size), "-t", str(args.threads)]
    command = [python, __file__, str(args.model), "--plan", str(args.plan), "--worker", kind, *options]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def ask(worker: subprocess.Popen[str], job: str, n: int, depth: int) -> float:
    worker.stdin.write(json.dumps([job, n, depth]) + "\n")
    worker.stdin.flush()
    return float(json.loads(worker.stdout.readline()))


def serve(job: Job, finish: Callable[[], None]) -> None:
    for line in sys.stdin:
        kind, n, depth = json.loads(line)
        print(job(n, depth, kind == "prefill"), flush=True)
    finish()


def tokens(n: int) -> list[int]:
    return [(i * 7919 + 11) % 30000 for i in range(n)]


def air(args: argparse.Namespace) -> tuple[Job, Callable[[], None]]:
    """What answers requests with seconds, and what reports memory at the end."""
    from airrun import Engine

    engine = Engine.from_plan(args.plan, args.model, threads=args.threads)
    session, rng, spec = engine.new_session(), np.random.default_rng(_SALT), engine.plan.kv
    cells = [random_cells(layer.block_nbytes, spec.keys, rng) for layer in spec.layers]
    filled: set[int] = set()

    def job(n: int, depth: int, together: bool) -> float:
        session.truncate(0)
        session._memory.reserve(depth)
        session.ids = [7] * depth
        for block in set(session._memory.blocks) - filled:
            for layer, noise in enumerate(cells):
                engine.pool.contents(layer, block)[:] = noise
            filled.add(block)
        started = time.perf_counter()
        for batch in [tokens(n)] if together else [[token] for token in tokens(n)]:
            session.eval(batch)
        return time.perf_counter() - started

    def finish() -> None:
        status = Path("/proc/self/status").read_text().split()
        resident = int(status[status.index("RssAnon:") + 1]) >> 10
        sizes = engine.sizes
        touched = sizes.total - sizes.kv + sizes.kv * len(filled) // sizes.kv_blocks
        print(f"  memory of its own {resident} MiB; ledger {touched >> 20} MiB with {len(filled) * spec.block_cells} "
              f"tokens, {sizes.total >> 20} MiB in all, of which the cache is {sizes.kv >> 20}")  # fmt: skip
        engine.close()

    return job, finish


def random_cells(nbytes: int, fmt: str, rng: np.random.Generator) -> np.ndarray:
    """A block of random cells, all of moderate size: any two bytes that may be an element or a scale are a half."""
    if fmt == "F32":
        return rng.standard_normal(nbytes // 4, np.float32).view(np.uint8)
    return rng.integers(0x2000, 0x3000, nbytes // 2, np.uint16).view(np.uint8)


def llama(args: argparse.Namespace, *, flash: bool) -> tuple[Job, Callable[[], None]]:
    import llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(args.model).encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = args.ctx_size, 2048, 512
    params.n_threads = params.n_threads_batch = args.threads
    params.type_k = params.type_v = _GGML[args.kv_type]
    params.flash_attn_type = int(flash)
    context = lib.llama_init_from_model(model, params)
    memory, filled = lib.llama_get_memory(context), 0

    def evaluate(ids: list[int]) -> None:
        array = (lib.llama_token * len(ids))(*ids)
        if lib.llama_decode(context, lib.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        lib.llama_synchronize(context)

    def fill(depth: int) -> None:
        nonlocal filled
        if filled < depth:
            lib.llama_memory_clear(memory, True)
            evaluate(tokens(_PROMPT))
            state = np.empty(lib.llama_state_seq_get_size(context, 0), np.uint8)
            pointer = (lib.ctypes.c_uint8 * state.size).from_buffer(state)
            lib.llama_state_seq_get_data(context, pointer, state.size, 0)
            longer = repeated(state, depth)
            pointer = (lib.ctypes.c_uint8 * longer.size).from_buffer(longer)
            if lib.llama_state_seq_set_data(context, pointer, longer.size, 0) != longer.size:
                raise RuntimeError("llama.cpp does not take the state")
            filled = depth
        lib.llama_memory_seq_rm(memory, 0, depth, -1)
        filled = depth
        if lib.llama_memory_seq_pos_max(memory, 0) != depth - 1:
            raise RuntimeError("llama.cpp does not have as many cells as it should")

    def job(n: int, depth: int, together: bool) -> float:
        fill(depth)
        started = time.perf_counter()
        for batch in [tokens(n)] if together else [[token] for token in tokens(n)]:
            evaluate(batch)
        return time.perf_counter() - started

    return job, lambda: None


def repeated(state: np.ndarray, n_cells: int) -> np.ndarray:
    """The state of a sequence in llama.cpp (llama_kv_cache::state_write) with its cells over and over.

    Magic number, sequence, streams (one) and cells; for each cell its place, the number of its sequences (one) and the
    sequence; whether values are transposed, and layers. Then of each layer the type, bytes of a row and rows of keys,
    and likewise of values; these, where transposed, as type, bytes of an element, elements, and a row for each element.
    """
    at, out = 0, []

    def take(dtype: str, n: int = 1) -> Any:
        nonlocal at
        found = state[at : at + n * np.dtype(dtype).itemsize].view(dtype)
        at += found.nbytes
        return found

    magic, sequence, streams, cells = take("<i4", 4)
    places = take("<i4", 3 * cells).reshape(-1, 3)
    if streams != 1 or not np.array_equal(places[:, 0], np.arange(cells)) or not (places[:, 1] == 1).all():
        raise RuntimeError("llama.cpp's state is not of the form that is known")
    which = np.arange(n_cells) % cells
    out.append(np.array([magic, sequence, streams, n_cells], "<i4"))
    out.append(np.stack([np.arange(n_cells), places[which, 1], places[which, 2]], 1).astype("<i4"))
    transposed, layers = take("<u4", 2)
    out.append(np.array([transposed, layers], "<u4"))
    for part in ("keys", "values"):
        for _ in range(layers):
            if part == "values" and transposed:
                header = take("<u4", 3)
                elements = take("u1", int(header[1] * header[2] * cells)).reshape(header[2], cells, header[1])
                out += [header, elements[:, which]]
            else:
                header = take("<i4", 3)  # the type, and the bytes of a row as 64 bits
                out += [header, take("u1", int(header[1]) * cells).reshape(cells, -1)[which]]
    if at != state.size:
        raise RuntimeError("llama.cpp's state is not of the form that is known")
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in out])


if __name__ == "__main__":
    main()
