"""On a GPU beside llama.cpp with CUDA: ``python tests/bench/gpu_vs_llama_cpp.py --llama-bench PATH --plans DIR``.

PATH is llama.cpp's own benchmark, built with ``-DGGML_CUDA=ON``; it runs with and without flash attention, and the
better counts. Rounds alternate; a line of JSON is printed for each, and the table of medians at the end. Plans as for
`gpu.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from gpu_speed import PROMPT, measure
from synthetic import SHAPES, write_model

_KINDS = {"q4_k": "Q4_K", "q6_k": "Q6_K"}


def peer(program: Path, model: Path, tokens: int) -> dict[str, float]:
    """Tokens per second of llama.cpp's decode and prefill."""
    options = ["-ngl", "99", "-fa", "0,1", "-p", str(PROMPT), "-n", str(tokens), "-r", "2", "-o", "json"]
    # its libraries lie beside it
    found = subprocess.run(
        [program, "-m", model, *options],
        env={**os.environ, "LD_LIBRARY_PATH": str(program.parent)},
        check=True,
        capture_output=True,
        text=True,
    )
    runs: list[dict[str, Any]] = json.loads(found.stdout)
    return {
        "decode": max(run["avg_ts"] for run in runs if run["n_gen"]),
        "prefill": max(run["avg_ts"] for run in runs if run["n_prompt"]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-bench", type=Path, required=True, metavar="PATH")
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--formats", default="q4_0,q4_K,q8_0")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="folder for the models (default: /dev/shm)")
    args = parser.parse_args()
    table = []
    for fmt in args.formats.split(","):
        model = args.work / f"{args.shape}_{fmt}.gguf"
        write_model(model, SHAPES[args.shape], _KINDS.get(fmt.lower(), fmt.upper()))
        ours, theirs = [], []
        try:
            for _ in range(args.rounds):
                ours.append(measure(args.plans / f"{args.shape}_{fmt}.plan.bin", model))
                theirs.append(peer(args.llama_bench, model, 200))
                print(fmt, json.dumps({"here": ours[-1], "llama.cpp": theirs[-1]}), flush=True)
        finally:
            model.unlink()
        decode = [median(row["greedy_tokens_per_s"] for row in ours), median(row["decode"] for row in theirs)]
        prefill = [median(row["prefill_tokens_per_s"] for row in ours), median(row["prefill"] for row in theirs)]
        table.append((fmt, *decode, decode[0] / decode[1], *prefill, prefill[0] / prefill[1]))
    print("format    decode  llama.cpp  ratio   prefill  llama.cpp  ratio")
    for fmt, *row in table:
        print("{:7} {:8.1f} {:10.1f} {:5.2f}x {:9.0f} {:10.0f} {:5.2f}x".format(fmt, *row))


if __name__ == "__main__":
    main()
