"""The GPU suite and a benchmark, on a machine with a GPU: ``python tests/bench/gpu.py [--formats q4_0,q4_K,q8_0]``.

Runs the tests marked `gpu` (which need Triton), then synthetic models of the shape of an 8B llama, and prints a table.
Plans come from ``--plans DIR`` (built anywhere by ``aircompile build 8b_q4_0.gguf --target h200`` of the file that
``synthetic.py --empty`` makes, named ``8b_q4_0.plan.bin``) or are built here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from synthetic import SHAPES, write_model

from airrun import Engine
from airrun.cuda.engine import CudaEngine

ROOT = Path(__file__).resolve().parents[2]
PROMPT, DECODE, ROUNDS = 2048, 200, 3
_CONTEXT = 128
"""Tokens before those that are decoded."""


def measure(plan: Path, model: Path) -> dict[str, Any]:
    """Load, decode and prefill rates of a plan on the GPU."""
    started = time.perf_counter()
    engine = Engine.from_plan(plan, model, device="cuda")
    assert isinstance(engine, CudaEngine)
    load = time.perf_counter() - started
    session = engine.session
    prompt = [(7919 * i + 11) % engine.n_vocab for i in range(PROMPT)]
    session.eval(prompt[:_CONTEXT])
    greedy, sampled, prefill = [], [], []
    for _ in range(ROUNDS + 1):  # the first does not count
        session.truncate(_CONTEXT)
        token, begun = 5, time.perf_counter()
        for _ in range(DECODE):
            token = session.choose(token)
        greedy.append(DECODE / (time.perf_counter() - begun))
        session.truncate(_CONTEXT)
        begun = time.perf_counter()
        for _ in range(DECODE // 2):
            session.eval([7])
        sampled.append(DECODE // 2 / (time.perf_counter() - begun))
        other = engine.new_session()
        begun = time.perf_counter()
        other.eval(prompt)
        prefill.append(PROMPT / (time.perf_counter() - begun))
        other.reset()
    nbytes, copied, name = engine.plan.cost.weight_nbytes_per_token, engine.copy_rate(), engine.gpu.name
    engine.close()
    rate = median(greedy[1:])
    return {
        "gpu": name,
        "copy_bytes_per_s": copied,
        "greedy_tokens_per_s": rate,
        "sampled_tokens_per_s": median(sampled[1:]),
        "prefill_tokens_per_s": median(prefill[1:]),
        "weight_bytes_per_s": rate * nbytes,
        "load_bytes_per_s": model.stat().st_size / load,
    }


def main() -> int:
    """Run the suite and print the table; 1 if a test fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="q4_0,q4_K,q8_0")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--plans", type=Path, help="folder of plans; by default they are built here")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="folder for the models (default: /dev/shm)")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    failed = 0
    if not args.no_tests:
        failed = subprocess.call([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests" / "unit")])
    found: dict[str, Any] = {}
    for fmt in args.formats.split(","):
        model = args.work / f"{args.shape}_{fmt}.gguf"
        names = {"q4_k": "Q4_K", "q6_k": "Q6_K"}
        write_model(model, SHAPES[args.shape], names.get(fmt.lower(), fmt.upper()))
        plan = (args.plans or args.work) / f"{args.shape}_{fmt}.plan.bin"
        try:
            if not plan.exists():
                command = ["build", str(model), "--target", "h200", "-c", "8192", "-o", str(plan), "--quiet"]
                subprocess.check_call([sys.executable, "-m", "aircompile", *command])
            found[fmt] = measure(plan, model)
        finally:
            model.unlink()
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    return 1 if failed else 0


def _show(found: dict[str, dict[str, Any]]) -> None:
    print("format  greedy tok/s  with sampler  weights TB/s  of copy  prefill tok/s  load GB/s")
    for fmt, row in found.items():
        share = row["weight_bytes_per_s"] / row["copy_bytes_per_s"]
        print(
            f"{fmt:7} {row['greedy_tokens_per_s']:12.1f} {row['sampled_tokens_per_s']:13.1f} "
            f"{row['weight_bytes_per_s'] / 1e12:13.2f} {share:8.0%} {row['prefill_tokens_per_s']:14.0f} "
            f"{row['load_bytes_per_s'] / 1e9:10.1f}"
        )
        print(f"        {row['gpu']}, device copy {row['copy_bytes_per_s'] / 1e12:.2f} TB/s (read and written)")


if __name__ == "__main__":
    sys.exit(main())
