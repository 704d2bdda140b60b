"""Decode and prefill beside llama.cpp: same model, same threads, alternating rounds, ratios of medians.

    python tests/bench/vs_llama_cpp.py MODEL.gguf [-t 1,2] [-r 7] [-n 64] [-p 512] [--isa x86-64-v3]

Needs llama-cpp-python, here or in the interpreter given with --peer-python. Prints a table, and one JSON
line per row with --json. Ratios above 1 mean that this engine is faster.

With --isa, kernels are those of a lesser instruction set of this processor. Let llama.cpp be limited likewise:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" \\
        pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36

and -DGGML_AVX_VNNI=ON for x86-64-v3+avxvnni.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from workers import Worker

from airrun.machine.isa import LEVELS
from airschedules.targets import HOST, load_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--plan", type=Path, help="use this plan instead of building one")
    parser.add_argument("--isa", choices=LEVELS, help="instruction set to build for; by default this machine's best")
    parser.add_argument("-t", "--threads", default="1,2", help="thread counts, separated by commas")
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument("-n", type=int, default=64, help="tokens decoded per round")
    parser.add_argument("-p", type=int, default=512, help="tokens prefilled per round")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the context beforehand")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has llama-cpp-python")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = args.plan or build(args.model, Path(folder) / "bench.plan.bin", args.isa)
        for threads in map(int, args.threads.split(",")):
            compare(args, plan, threads)


def build(model: Path, out: Path, isa: str | None) -> Path:
    target = HOST
    if isa:
        host = load_target(HOST)
        target = str(out.with_name("host.toml"))
        Path(target).write_text(replace(host, cpu=replace(host.cpu, isa=(isa,))).to_toml())
    command = [sys.executable, "-m", "aircompile", "build", str(model), "--target", target, "-o", str(out), "--quiet"]
    subprocess.run(command, check=True)
    return out


def compare(args: argparse.Namespace, plan: Path, threads: int) -> None:
    air = Worker("air", plan, args.model, threads)
    llama = Worker("llama", plan, args.model, threads, args.peer_python)
    try:
        for job, n in (("decode", args.n), ("prefill", args.p)):
            for worker in (air, llama):
                worker.run(job, n, args.depth)
            rounds = [(air.run(job, n, args.depth), llama.run(job, n, args.depth)) for _ in range(args.rounds)]
            ours, theirs = (statistics.median(n / r[i] for r in rounds) for i in (0, 1))
            best = [n / min(r[i] for r in rounds) for i in (0, 1)]
            row = {
                "model": args.model.name,
                "threads": threads,
                "job": job,
                "n": n,
                "tokens_per_second": round(ours, 2),
                "llama_cpp": round(theirs, 2),
                "ratio_of_medians": round(ours / theirs, 3),
                "ratio_of_best": round(best[0] / best[1], 3),
            }
            if args.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{row['model']:40} {threads} threads  {job:8} {ours:9.1f} tok/s   llama.cpp {theirs:9.1f}"
                    f"   ratio {row['ratio_of_medians']:.2f} (best rounds {row['ratio_of_best']:.2f})",
                    flush=True,
                )
    finally:
        air.close()
        llama.close()


if __name__ == "__main__":
    main()
