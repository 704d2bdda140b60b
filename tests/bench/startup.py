"""Process start to first token beside llama.cpp: same model, same short prompt, warm page cache, alternating runs.

    python tests/bench/startup.py MODEL.gguf --peer-lib DIR --peer-include DIR [-t 1,2] [-r 15]

The peer is the smallest C program on libllama that prints a token (llama_first_token.c, compiled here by cc);
DIR are the folders of libllama.so and llama.h, both of which the wheel of llama-cpp-python carries. Ours is
`python -m airrun` of this interpreter: run it where the package is installed, since Python searches every folder of a
source tree for every import. Times are to the first byte on standard output; ratios below 1 mean that this engine is
faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vs_llama_cpp import build

PROMPT = "The capital of France is"
CONTEXT = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--plan", type=Path, help="use this plan instead of building one")
    parser.add_argument("--peer-lib", type=Path, required=True, help="folder of libllama.so")
    parser.add_argument("--peer-include", type=Path, required=True, help="folder of llama.h")
    parser.add_argument("-t", "--threads", default="1,2", help="thread counts, separated by commas")
    parser.add_argument("-r", "--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = args.plan or build(args.model, Path(folder) / "startup.plan.bin")
        peer = compile_peer(args.peer_lib.resolve(), args.peer_include.resolve(), Path(folder) / "llama_first_token")
        for threads in args.threads.split(","):
            air = [sys.executable, "-m", "airrun", str(plan), "--model", str(args.model), "-t", threads]
            air += ["-c", str(CONTEXT), "-p", PROMPT, "-n", "1", "--temp", "0"]
            llama = [str(peer), str(args.model), PROMPT, threads, str(CONTEXT)]
            report(compare(air, llama, args.rounds) | {"model": args.model.name, "threads": int(threads)}, args.json)


def compile_peer(lib: Path, include: Path, out: Path) -> Path:
    """The peer's program, linked to the libraries in `lib`."""
    source = Path(__file__).with_name("llama_first_token.c")
    flags = [f"-I{include}", f"-L{lib}", f"-Wl,-rpath,{lib}", f"-Wl,-rpath-link,{lib}"]
    command = [os.environ.get("CC", "cc"), "-O2", "-o", str(out), str(source), *flags]
    subprocess.run([*command, "-lllama", "-lggml", "-lggml-base"], check=True)
    return out


def compare(air: list[str], llama: list[str], rounds: int) -> dict[str, float]:
    """Milliseconds to the first token of both, and megabytes at their peaks; one round before does not count."""
    seen = [(first_token(air), first_token(llama)) for _ in range(rounds + 1)][1:]
    ours, theirs = ([each[i][0] for each in seen] for i in (0, 1))
    return {
        "first_token_ms": round(statistics.median(ours), 1),
        "llama_cpp_ms": round(statistics.median(theirs), 1),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(theirs), 3),
        "ratio_of_best": round(min(ours) / min(theirs), 3),
        "peak_rss_mb": round(max(each[0][1] for each in seen), 1),
        "llama_cpp_peak_rss_mb": round(max(each[1][1] for each in seen), 1),
    }


def first_token(command: list[str]) -> tuple[float, float]:
    """Milliseconds from the start of a process to its first byte of output, and its peak RSS in megabytes."""
    # an installed package has its bytecode; a tree that may write none is compiled in every run
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    text = process.stdout.read(1)
    seconds = time.perf_counter() - started
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not text:
        raise SystemExit(f"error: exit status {process.returncode} of {' '.join(command)}")
    return 1e3 * seconds, usage.ru_maxrss * 1024 / 1e6


def report(row: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    print(
        f"{row['model']:40} {row['threads']} threads  first token {row['first_token_ms']:6} ms   llama.cpp "
        f"{row['llama_cpp_ms']:6} ms   ratio {row['ratio_of_medians']:.2f} (best {row['ratio_of_best']:.2f})   "
        f"peak RSS {row['peak_rss_mb']:.0f} MB, llama.cpp {row['llama_cpp_peak_rss_mb']:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
