"""Weights that do not fit a GPU: ``python tests/bench/gpu_streams.py --shape 8b --format q8_0 --vram 3GiB``.

Decodes on a machine with a GPU with everything there (if it fits), and under a budget; from the host's memory, and with
``--disk DIR`` from that disk too. Prints the rate of the bus and of the disk, by copying and reading alone, beside what
decoding takes of them. The texts must be the same. Plans as for ``gpu.py``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import SHAPES, write_model

from airrun import Engine
from airrun.cuda.engine import CudaEngine
from airrun.cuda.tiers import DISK, HOST
from airrun.weights.files import WeightFiles

_PROMPT = [1, 40, 77, 5, 200]
_PIECE = 32 << 20


def open_engine(plan: Path, model: Path, **options: Any) -> CudaEngine:
    """The plan on the GPU."""
    engine = Engine.from_plan(plan, model, device="cuda", **options)
    assert isinstance(engine, CudaEngine)
    return engine


def bus_rate(engine: CudaEngine) -> float:
    """Bytes per second from pinned memory of the host to the device."""
    gpu, n = engine.gpu, 32
    source, target = gpu.allocate_pinned(_PIECE), gpu.allocate(_PIECE)
    first, last = gpu.event(), gpu.event()
    found = []
    for _ in range(3):
        gpu.record(first)
        for _ in range(n):
            gpu.upload(target, ctypes.addressof(source), _PIECE)
        gpu.record(last)
        gpu.wait(last)
        found.append(n * _PIECE / gpu.milliseconds(first, last) * 1e3)
    gpu.free(target)
    gpu.free_pinned(source)
    return max(found)


def disk_rate(engine: CudaEngine, model: Path, threads: int, nbytes: int = 6 << 30) -> float:
    """Bytes per second of reading the model as the run reads it, and doing nothing with it."""
    files = WeightFiles(engine.plan, [model])
    files.open_streams("auto")
    buffers = [engine.gpu.allocate_pinned(_PIECE) for _ in range(threads)]
    pieces = range(0, min(nbytes, model.stat().st_size - _PIECE), _PIECE)

    def read(i: int) -> None:
        for offset in pieces[i::threads]:
            os.preadv(files.streams[0], [memoryview(buffers[i]).cast("B")], offset)

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    rate = len(pieces) * _PIECE / (time.perf_counter() - started)
    for buffer in buffers:
        engine.gpu.free_pinned(buffer)
    files.close()
    return rate


def decode(engine: CudaEngine, n: int) -> tuple[list[int], Any, float]:
    """Tokens chosen after a prompt, the logits after them, and seconds per token (the first does not count)."""
    session = engine.session
    token = int(session.eval(_PROMPT)[0].argmax())
    chosen = [session.choose(token)]
    started = time.perf_counter()
    for _ in range(n):
        chosen.append(session.choose(chosen[-1]))
    seconds = (time.perf_counter() - started) / n
    return chosen, session.eval([chosen[-1]])[0].copy(), seconds


def streamed(plan: Path, model: Path, n: int, want: Any, **budgets: Any) -> dict[str, Any]:
    """Decode under budgets, and compare with what came out without."""
    started = time.perf_counter()
    engine = open_engine(plan, model, **budgets)
    load = time.perf_counter() - started
    tiers = engine.device_sizes.tiers
    chosen, logits, seconds = decode(engine, n)
    bus, disk = tiers.raw_nbytes(HOST, DISK), tiers.raw_nbytes(DISK)
    found = {
        "budgets": {name: str(value) for name, value in budgets.items()},
        "load_seconds": load,
        "tokens_per_s": 1 / seconds,
        "bus_bytes": bus,
        "bus_rate": bus_rate(engine),
        "bus_share": bus / seconds,
        "pinned_bytes": tiers.raw_nbytes(HOST),
        "device_bytes": engine.device_sizes.total,
    }
    found["bus_share"] /= found["bus_rate"]
    if disk:
        found["disk_bytes"] = disk
        found["disk_rate"] = disk_rate(engine, model, max(engine.plan.stream.readers, 2))
        found["disk_share"] = disk / seconds / found["disk_rate"]
    found["threads"] = engine.plan.stream.readers
    if want is not None:
        found["same_tokens"] = chosen[: len(want[0])] == want[0][: len(chosen)]
        if len(chosen) == len(want[0]):
            found["same_bits"] = bool((np.asarray(logits) == want[1]).all())
    engine.close()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 if a text differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--format", default="q8_0")
    parser.add_argument("--vram", default="3GiB")
    parser.add_argument("--ram", help="of the run from the host's memory (default: what is there)")
    parser.add_argument("--disk", type=Path, help="folder on the disk to stream from too")
    parser.add_argument("--disk-ram", default="2GiB", help="memory of the process while it streams from disk")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--no-resident", action="store_true", help="everything does not fit")
    args = parser.parse_args(arguments)
    model = args.work / f"{args.shape}_{args.format}.gguf"
    plan = args.plans / f"{args.shape}_{args.format}.plan.bin"
    kind = args.format.upper()
    if not model.exists():
        write_model(model, SHAPES[args.shape], kind)
    found, want = {}, None
    if not args.no_resident:
        engine = open_engine(plan, model)
        want = decode(engine, args.tokens)
        engine.close()
    found["ram"] = streamed(plan, model, args.tokens, want, vram=args.vram, ram=args.ram)
    model.unlink()
    if args.disk is not None:
        model = args.disk / model.name
        write_model(model, SHAPES[args.shape], kind)
        os.sync()
        with model.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        few = max(args.tokens // 4, 2)
        found["disk"] = streamed(plan, model, few, want, vram=args.vram, ram=args.disk_ram)
        model.unlink()
    for name, row in found.items():
        print(name, json.dumps(row))
        tier = "disk" if "disk_share" in row else "bus"
        share = f"{row[f'{tier}_share']:.0%} of the {tier}'s {row[f'{tier}_rate'] / 1e9:.1f} GB/s"
        print(f"  {row['tokens_per_s']:.3f} tokens/s, {share}")
    return 0 if all(row.get("same_tokens", True) for row in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
