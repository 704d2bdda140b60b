"""Decode of a model that does not fit: tokens/s over memory budgets, beside the disk's own speed and llama.cpp.

    python tests/bench/streaming.py MODEL.gguf --ram 400MiB,600MiB [-c 512] [--peer-python PY] [--plot FILE.svg]

For each budget, round by round: the rate of a plain sequential O_DIRECT read of the same file, that of reading it as
the plan does, which the prediction is made with, then a run of ours, then one of llama.cpp (mmap, which is the mode of
it that survives), each in a process of its own under a hard limit of that many bytes, the page cache included. Needs
root for the limits; without, none is set and only ours is measured. How far the system reads ahead of a mapped file,
which is all that llama.cpp depends on, is printed with the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgroup import MemoryGroup

from airrun.machine.profile import parse_bytes
from airrun.plan.container import read_plan

_HERE = Path(__file__).parent
_READ_NBYTES, _PAGE = 16 << 20, 4096


@dataclass(frozen=True)
class Row:
    """What one budget gave; rates are medians over rounds."""

    budget: int
    disk: float
    ours: dict[str, Any]
    peak: int
    peer: float | None

    @property
    def limit(self) -> float:
        """Tokens/s if the disk never paused; 0 where nothing is read."""
        nbytes = self.ours["streamed_per_pass"]
        return self.disk / nbytes if nbytes else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", required=True, help="budgets, separated by commas; 0 for none")
    parser.add_argument("--plan", type=Path, help="use this plan instead of building one")
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("-n", type=int, default=8, help="tokens decoded per run")
    parser.add_argument("--warm", type=int, default=0, help="tokens decoded before, in each run, to fill caches")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--load-mode", default="auto")
    parser.add_argument("--peer-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--peer-tokens", type=int, default=3, help="tokens that llama.cpp decodes per run")
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw tokens/s over the budget into this SVG file (needs matplotlib)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = args.plan or build(args.model, Path(folder) / "bench.plan.bin", args.ctx_size)
        rows = [measure(args, plan, parse_bytes(budget)) for budget in args.ram.split(",")]
    if args.json:
        print(json.dumps([{**vars(row), "limit": row.limit} for row in rows], indent=1))
    else:
        show(args.model, rows)
    if args.plot:
        from plot import plot

        plot(args.model.stem, rows, args.plot)


def build(model: Path, out: Path, ctx_size: int) -> Path:
    command = [sys.executable, "-m", "aircompile", "build", str(model), "-c", str(ctx_size), "-o", str(out), "--quiet"]
    subprocess.run(command, check=True)
    return out


def measure(args: argparse.Namespace, plan: Path, budget: int) -> Row:
    found_plan = read_plan(plan).plan
    chunk = max(weight.chunk_panels * weight.panel_nbytes for weight in found_plan.weights) // _PAGE * _PAGE
    disk, ours, peaks, peer = [], [], [], []
    for i in range(args.rounds):
        disk.append(read_rate(args.model))
        as_planned = read_rate(args.model, chunk, found_plan.stream.readers)
        job = [sys.executable, str(_HERE / "stream_worker.py"), "air", str(plan), str(args.model)]
        job += [
            str(args.threads),
            str(args.warm),
            str(args.n),
            str(budget),
            args.load_mode,
            str(args.ctx_size),
            str(as_planned),
        ]
        found, peak = limited(job, budget)
        ours.append(found)
        peaks.append(peak)
        if args.peer_python and budget and i < args.peer_rounds:
            forget(args.model)
            job = [args.peer_python, str(_HERE / "stream_worker.py"), "llama", str(args.model), str(args.threads)]
            peer.append(limited([*job, str(args.warm), str(args.peer_tokens), str(args.ctx_size)], budget)[0])
    disk.append(read_rate(args.model))
    middle = sorted(ours, key=lambda each: each["tokens_per_second"])[len(ours) // 2]
    rates = [found["tokens_per_second"] for found in peer if found]
    return Row(budget, statistics.median(disk), middle, max(peaks), statistics.median(rates) if rates else None)


def read_rate(path: Path, chunk: int = _READ_NBYTES, readers: int = 1, seconds: float = 2.0) -> float:
    """Bytes/s of reading a file in order, past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = os.fstat(fd).st_size // chunk * chunk
    offsets = (i * chunk % size for i in itertools.count())
    lock = threading.Lock()
    total = [0] * readers
    started = time.perf_counter()

    def read(i: int) -> None:
        buffer = mmap.mmap(-1, chunk)
        while time.perf_counter() - started < seconds:
            with lock:
                offset = next(offsets)
            total[i] += os.preadv(fd, [buffer], offset)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    return sum(total) / (time.perf_counter() - started)


def forget(path: Path) -> None:
    """Drop a file from the page cache: pages that are there already are charged to nobody's limit."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # what was not written yet would stay
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def limited(command: list[str], limit: int) -> tuple[dict[str, Any], int]:
    """Run a worker under a memory limit (0: none): what it printed, nothing if it was killed, and the peak."""
    group = None
    if limit and os.geteuid() == 0:
        group = MemoryGroup(limit)
    try:
        done = subprocess.run(
            command, capture_output=True, preexec_fn=group.join if group else None, text=True, check=False
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode:
            print(f"{command[2]}: exit status {done.returncode}", *done.stderr.splitlines()[-1:], file=sys.stderr)
        return json.loads(lines[-1]) if done.returncode == 0 and lines else {}, group.peak if group else 0
    finally:
        if group is not None:
            group.close()


def show(model: Path, rows: list[Row]) -> None:
    from airrun.commands.explain_text import show_table

    header = ["budget", "peak", "read per token", "experts there", "disk", "decode", "of the limit", "stalled"]
    header += ["predicted", "llama.cpp"]
    table = []
    for row in rows:
        ours = row.ours
        rate, predicted = ours["tokens_per_second"], ours["predicted"]
        table.append(
            [
                f"{row.budget >> 20} MiB" if row.budget else "none",
                f"{row.peak >> 20} MiB",
                f"{ours['streamed_per_pass'] >> 20} MiB",
                f"{ours['expert_hit_share']:.0%}" if ours["expert_hit_share"] is not None else "-",
                f"{row.disk / 1e6:.0f} MB/s",
                f"{rate:.3f} tokens/s",
                f"{rate / row.limit:.0%} of {row.limit:.3f}" if row.limit else "nothing read",
                f"{ours['stalled_share']:.0%}",
                f"{predicted:.3f} ({predicted / rate - 1:+.0%})" if predicted else "unknown",
                f"{row.peer:.3f}: {rate / row.peer:.1f}x" if row.peer else "-",
            ]
        )
    show_table(f"{model.name}{read_ahead(model)}", header, table)


def read_ahead(path: Path) -> str:
    """How far the system reads ahead on the disk of a file, where it says so."""
    device = os.stat(path).st_dev
    knob = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    return f" (read ahead of mapped files: {knob.read_text().strip()} KiB)" if knob.is_file() else ""


if __name__ == "__main__":
    main()
