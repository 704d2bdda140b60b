"""Engines under test, each in a process of its own that runs one job at a time on request.

    python workers.py air   PLAN MODEL THREADS
    python workers.py llama PLAN MODEL THREADS        (needs llama-cpp-python)

Jobs come as JSON lines on standard input, {"job": "decode" | "prefill", "n": N, "depth": D}, and are
answered with {"seconds": S}. Idle workers use no CPU, so jobs of two workers can alternate.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Job = Callable[[int, int], float]
"""(number of tokens, tokens already in the context) -> seconds."""


def air_jobs(plan: str, model: str, threads: int) -> dict[str, Job]:
    from airrun.engine import Engine

    engine = Engine.from_plan(plan, model, threads=threads)
    session = engine.session

    def decode(n: int, depth: int) -> float:
        session.reset()
        session.eval(_tokens(max(depth, 1), engine.n_vocab))
        started = time.perf_counter()
        token = 7
        for _ in range(n):
            token = int(session.eval([token])[0].argmax())
        return time.perf_counter() - started

    def prefill(n: int, depth: int) -> float:
        session.reset()
        if depth:
            session.eval(_tokens(depth, engine.n_vocab))
        started = time.perf_counter()
        session.eval(_tokens(n, engine.n_vocab))
        return time.perf_counter() - started

    return {"decode": decode, "prefill": prefill}


def llama_jobs(_plan: str, model: str, threads: int) -> dict[str, Job]:
    import llama_cpp as lib
    import numpy as np

    lib.llama_backend_init()
    handle = lib.llama_model_load_from_file(model.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 2048, 2048, 512
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(handle, params)
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(handle))

    def evaluate(tokens: list[int]) -> None:
        array = (lib.llama_token * len(tokens))(*tokens)
        if lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        lib.llama_synchronize(context)

    def last_token() -> int:
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,))
        return int(logits.argmax())

    def start(depth: int) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        if depth:
            evaluate(_tokens(depth, n_vocab))

    def decode(n: int, depth: int) -> float:
        start(max(depth, 1))
        started = time.perf_counter()
        token = 7
        for _ in range(n):
            evaluate([token])
            token = last_token()
        return time.perf_counter() - started

    def prefill(n: int, depth: int) -> float:
        start(depth)
        started = time.perf_counter()
        evaluate(_tokens(n, n_vocab))
        return time.perf_counter() - started

    return {"decode": decode, "prefill": prefill}


def _tokens(n: int, n_vocab: int) -> list[int]:
    return [(i * 7919 + 11) % min(n_vocab, 30000) for i in range(n)]


class Worker:
    """A worker process, from the side of the benchmark."""

    def __init__(
        self, kind: str, plan: Path | str, model: Path | str, threads: int, python: str = sys.executable
    ) -> None:
        command = [python, __file__, kind, str(plan), str(model), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.name = kind
        self._answer()

    def run(self, job: str, n: int, depth: int = 0) -> float:
        """Seconds that a job took inside the worker."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"job": job, "n": n, "depth": depth}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.name} worker died: exit status {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    kind, plan, model, threads = sys.argv[1:]
    jobs = {"air": air_jobs, "llama": llama_jobs}[kind](plan, model, int(threads))
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({"seconds": jobs[request["job"]](request["n"], request["depth"])}), flush=True)


if __name__ == "__main__":
    main()
