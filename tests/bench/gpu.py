"""Everything about a GPU, on a machine with one, and one short table at the end: ``python tests/bench/gpu.py``.

    tests     the tests marked `gpu` (which need Triton)
    speed     decode, greedy and by the default sampler, prefill and loading, in each format (`gpu_speed.py`)
    accuracy  logits beside the processor's (`gpu_accuracy.py`)
    sampling  draws: the same as the host's, and what they cost (`gpu_sampling.py`)
    start     a cold process's first token (`gpu_first_token.py`)
    streams   weights that do not fit (`gpu_streams.py`), the last format

Models are synthetic, of the shape of an 8B llama unless told otherwise, and written anew. Plans come from ``--plans
DIR``, named ``8b_q4_0.plan.bin`` (built anywhere by ``aircompile build 8b_q4_0.gguf --target h200`` of the file that
``synthetic.py --empty`` makes), or are built here. All but speed and streams is measured in the first format.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthetic import SHAPES, write_model

from airrun.commands.explain_text import show_table

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("tests", "speed", "accuracy", "sampling", "start", "streams")
_KINDS = {"q4_k": "Q4_K", "q6_k": "Q6_K"}

Row = tuple[str, str, str]
"""What was measured, the value, and what it is to be compared with."""


@dataclass
class Report:
    """What was found: JSON by part, rows of the table, and parts that failed."""

    found: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, part: str, found: Any, rows: list[Row]) -> None:
        self.found[part] = found
        self.rows += rows

    def fail(self, part: str, reason: str) -> None:
        self.failed.append(part)
        self.rows.append((part, "FAILED", reason))


def call(report: Report, part: str, script: str, *arguments: object) -> list[str] | None:
    """Run a script of this folder in a process of its own; the lines it printed, or None after a failure."""
    command = [sys.executable, str(ROOT / "tests" / "bench" / script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        report.fail(part, f"{script} ended with {done.returncode}")
    return done.stdout.splitlines() if done.returncode == 0 or part == "sampling" else None


def tests(report: Report) -> None:
    """The suite, and its last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests" / "unit")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    last = (done.stdout.splitlines() or ["nothing was printed"])[-1]
    if done.returncode:
        print(done.stdout)
        report.fail("tests", last)
    else:
        report.add("tests", last, [("tests on the device", last, "")])


def speed(report: Report, fmt: str, plan: Path, model: Path) -> None:
    lines = call(report, f"speed {fmt}", "gpu_speed.py", plan, model)
    if lines is None:
        return
    found = json.loads("\n".join(lines))
    greedy, copied = found["greedy_tokens_per_s"], found["copy_bytes_per_s"]
    share = f"{found['weight_bytes_per_s'] / copied:.0%} of a device copy's {copied / 1e12:.2f} TB/s"
    drawn = found["sampled_tokens_per_s"]
    report.add(f"speed {fmt}", found, [
        (f"{fmt}: decode, greedy", f"{greedy:.1f} tokens/s", share),
        (f"{fmt}: decode, default sampler", f"{drawn:.1f} tokens/s", f"{1e6 / drawn - 1e6 / greedy:+.0f} us a token"),
        (f"{fmt}: prefill of 2048", f"{found['prefill_tokens_per_s']:.0f} tokens/s", ""),
        (f"{fmt}: loading", f"{found['load_bytes_per_s'] / 1e9:.1f} GB/s", found["gpu"]),
    ])  # fmt: skip


def accuracy(report: Report, fmt: str, plan: Path, model: Path) -> None:
    lines = call(report, "accuracy", "gpu_accuracy.py", plan, model)
    if lines is not None:
        found = json.loads("\n".join(lines))
        rows = []
        for phase, each in found.items():
            agree = f"the best token is the same in {each['same_best']:.0%}"
            rows.append((f"{fmt}: {phase} and the processor's", f"mean KL {each['mean_kl']:.2g}", agree))
        report.add("accuracy", found, rows)


def sampling(report: Report, fmt: str, plan: Path, model: Path) -> None:
    lines = call(report, "sampling", "gpu_sampling.py", plan, model)
    if not lines:
        return
    found = json.loads("\n".join(lines))
    kinds = {name: each for name, each in found.items() if isinstance(each, dict)}
    report.add("sampling", found, [
        (f"{fmt}: draws, {name}", f"{each['us']:.0f} us a token",
         f"{each['us_copying_all']:.0f} copying all logits; tokens {'the same' if each['same'] else 'DIFFER'}")
        for name, each in kinds.items()
    ])  # fmt: skip


def start(report: Report, fmt: str, plan: Path, model: Path) -> None:
    lines = call(report, "start", "gpu_first_token.py", plan, model)
    if lines is not None:
        found = json.loads(lines[-1])
        seconds, context = found["first_token_seconds"], found["context_seconds"]
        against = f"{found['share']:.0%} of reads and copies alone; context {context:.2f} s"
        report.add("start", found, [(f"{fmt}: first token after the context", f"{seconds:.2f} s", against)])


def streams(report: Report, fmt: str, args: argparse.Namespace) -> None:
    options: list[object] = [
        "--shape",
        args.shape,
        "--format",
        fmt,
        "--vram",
        args.vram,
        "--plans",
        args.plans or args.work,
    ]
    options += ["--work", args.work, *(["--disk", args.disk] if args.disk else [])]
    lines = call(report, "streams", "gpu_streams.py", *options)
    for line in lines or []:
        tier, _, data = line.partition(" ")
        if not data.startswith("{"):
            continue
        found = json.loads(data)
        limit = "disk" if "disk_share" in found else "bus"
        share = f"{found[f'{limit}_share']:.0%} of the {limit}'s {found[f'{limit}_rate'] / 1e9:.1f} GB/s"
        what = f"{fmt}: decode in {args.vram}, rest from {tier}"
        report.add(f"streams {tier}", found, [(what, f"{found['tokens_per_s']:.2f} tokens/s", share)])


EACH: dict[str, Callable[[Report, str, Path, Path], None]] = {
    "accuracy": accuracy, "sampling": sampling, "start": start,
}  # fmt: skip


def models(args: argparse.Namespace) -> Iterator[tuple[str, Path, Path]]:
    """Formats with plan and model, which is there until the next one."""
    for fmt in args.formats.split(","):
        model = args.work / f"{args.shape}_{fmt}.gguf"
        write_model(model, SHAPES[args.shape], _KINDS.get(fmt.lower(), fmt.upper()))
        plan = (args.plans or args.work) / f"{args.shape}_{fmt}.plan.bin"
        try:
            if not plan.exists():
                command = ["build", str(model), "--target", args.target, "-c", "4096", "-o", str(plan), "--quiet"]
                subprocess.check_call([sys.executable, "-m", "aircompile", *command])
            yield fmt, plan, model
        finally:
            model.unlink(missing_ok=True)


def main() -> int:
    """Run what is wanted and print the table; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)} (default: all)")
    parser.add_argument("--formats", default="q4_0,q4_K,q8_0")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--target", default="h200", help="what plans are built for, where they are built here")
    parser.add_argument("--plans", type=Path, help="folder of plans; by default they are built here")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"), help="folder for the models (default: /dev/shm)")
    parser.add_argument("--vram", default="3GiB", help="budget of the part `streams`")
    parser.add_argument("--disk", type=Path, help="folder on a disk, from which to stream too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    wanted = args.only.split(",")
    unknown = set(wanted) - set(PARTS)
    if unknown:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    report, formats = Report(), args.formats.split(",")
    if "tests" in wanted:
        tests(report)
    for fmt, plan, model in models(args) if set(wanted) - {"tests"} else ():
        if "speed" in wanted:
            speed(report, fmt, plan, model)
        for part, measure in EACH.items():
            if part in wanted and fmt == formats[0]:
                measure(report, fmt, plan, model)
        if "streams" in wanted and fmt == formats[-1]:
            streams(report, fmt, args)
    if args.json is not None:
        args.json.write_text(json.dumps(report.found, indent=1))
    show_table("GPU", ["measured", "value", "beside"], report.rows)
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
