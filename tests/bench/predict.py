"""Predicted and measured speed side by side, on this machine as it is now.

    python tests/bench/predict.py MODEL.gguf ... [-t 1,2] [-r 5] [--limit 0.15]

The machine's read rates are probed first, since on shared machines they change by the hour. With --limit the exit
status is 1 if a prediction is further off than that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from workers import Worker

from aircompile.pipeline import BuildOptions, build
from airrun.machine.probe import probe
from airrun.machine.profile import Profile
from airrun.predict import CONTEXT, predict

DECODED = 32
PROMPT = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("-t", "--threads", default="1,2", help="thread counts, separated by commas")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, help="largest error that is no failure, as a share")
    args = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            for threads in map(int, args.threads.split(",")):
                machine = probe(quick=True, path=Path(folder) / "host.toml", progress=False)
                worst = max(worst, compare(model, threads, machine, Path(folder) / "plan.bin", args.rounds))
    return int(args.limit is not None and worst > args.limit)


def compare(model: Path, threads: int, machine: Profile, plan_path: Path, rounds: int) -> float:
    """Print two lines; the larger error, as a share of what was measured."""
    profile = replace(machine, cpu=replace(machine.cpu, isa=machine.cpu.isa[:1]))
    plan = build(model, plan_path, BuildOptions(profile, threads=threads))
    found = predict(plan)
    worker = Worker("air", plan_path, model, threads)
    errors = []
    try:
        for job, predicted, bound, n, depth in (
            ("decode", found.decode_tokens_per_second, found.decode_bound, DECODED, CONTEXT - DECODED // 2),
            ("prefill", found.prefill_tokens_per_second, found.prefill_bound, PROMPT, 0),
        ):
            assert predicted is not None, "run calibrate.py first"
            worker.run(job, n, depth)
            measured = statistics.median(n / worker.run(job, n, depth) for _ in range(rounds))
            errors.append(predicted / measured - 1)
            print(
                f"{model.name:40} {threads} threads  {job:8} predicted {predicted:8.1f} tok/s ({bound})"
                f"   measured {measured:8.1f}   {errors[-1]:+.0%}",
                flush=True,
            )
    finally:
        worker.close()
    rates = machine.tiers.ram
    print(f"  read rates {rates.bandwidth_1 / 1e9:.1f} GB/s on one thread, {rates.bandwidth / 1e9:.1f} on all")
    return max(map(abs, errors))


if __name__ == "__main__":
    sys.exit(main())
