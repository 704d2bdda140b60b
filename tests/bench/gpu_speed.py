"""Rates of a plan on a GPU: ``python tests/bench/gpu_speed.py PLAN MODEL`` prints them as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from airrun import Engine, GenerateConfig
from airrun.cuda.engine import CudaEngine
from airrun.generation.generate import generate_tokens
from airrun.session import Session

PROMPT, DECODE, ROUNDS = 2048, 200, 3
_CONTEXT = 128
"""Tokens before those that are decoded."""


def measure(plan: Path, model: Path) -> dict[str, Any]:
    """Load, decode and prefill rates of a plan on the GPU; the default sampler's beside the greedy one's."""
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
        sampled.append(_drawn(session, prompt[:_CONTEXT]))
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


def _drawn(session: Session, prompt: list[int]) -> float:
    """Tokens per second that the default sampler draws."""
    config = GenerateConfig(max_tokens=DECODE, seed=7, ignore_eos=True)
    times = [time.perf_counter() for _token in generate_tokens(session, prompt, config)]
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2])), indent=1))
