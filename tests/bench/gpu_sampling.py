"""Draws on a GPU: ``python tests/bench/gpu_sampling.py PLAN MODEL`` prints, as JSON, whether they are those of the host
and what they cost.

For each of several samplers the tokens after a prompt are drawn twice with one seed: with the likely tokens found by
the device, and with all logits copied. They must be the same, and the leaders of single steps those of their rows.
Times are microseconds a token, generation as a user has it, beside the greedy one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from leaders_of import leaders_of

from airrun import Engine, GenerateConfig
from airrun.cuda.engine import CudaEngine
from airrun.generation.generate import generate_tokens
from airrun.generation.leaders import MASS_ERROR, Leaders

SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "defaults": {},
    "top_k 100": {"top_k": 100, "top_p": 1.0, "min_p": 0.0},
    "top_p 0.9 of all": {"top_k": 0, "top_p": 0.9, "min_p": 0.0},
    "min_p 0.05 of all": {"top_k": 0, "top_p": 1.0, "min_p": 0.05},
    "penalties": {"repeat_penalty": 1.1, "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": {7: 1.0}},
}
PROMPT = [1, 40, 77, 5, 200]
ROUNDS = 3


@contextmanager
def copying_all() -> Iterator[None]:
    """Without leaders: every draw is from the whole row."""
    most = CudaEngine.max_watched
    CudaEngine.max_watched = -1
    try:
        yield
    finally:
        CudaEngine.max_watched = most


def draw(engine: CudaEngine, n: int, options: dict[str, Any]) -> tuple[list[int], float]:
    """Tokens, and microseconds a token after the first."""
    engine.session.reset()
    config = GenerateConfig(max_tokens=n, seed=7, ignore_eos=options.get("temperature") != 0.0, **options)
    tokens, times = [], []
    for token in generate_tokens(engine.session, PROMPT, config):
        tokens.append(token)
        times.append(time.perf_counter())
    return tokens, 1e6 * (times[-1] - times[0]) / max(len(times) - 1, 1)


def check_leaders(engine: CudaEngine, n: int) -> int:
    """Steps whose leaders differ from those of their rows."""
    engine.session.reset()
    wrong, watched = 0, np.array([0, 5, engine.n_vocab - 1], np.int32)
    for i in range(n):
        found: Leaders = engine.session.leaders((7919 * i + 11) % engine.n_vocab, watched)
        want = leaders_of(found.row().copy(), *found.best.shape, watched=watched)
        same = [(a == b).all() for a, b in zip(found[:2], want[:2], strict=True)] + [(found.seen == want.seen).all()]
        wrong += not (all(same) and np.allclose(found.sums, want.sums, rtol=MASS_ERROR / 4))
    return wrong


def measure(engine: CudaEngine, n: int) -> dict[str, Any]:
    """Everything that the script prints."""
    found: dict[str, Any] = {
        "gpu": engine.gpu.name,
        "n_vocab": engine.n_vocab,
        "wrong_leaders": check_leaders(engine, 8),
    }
    for name, options in SAMPLERS.items():
        few, whole = [], []
        for _ in range(ROUNDS):
            tokens, seconds = draw(engine, n, options)
            few.append(seconds)
            with copying_all():
                others, seconds = draw(engine, n, options)
            whole.append(seconds)
        row = {"us": median(few), "us_copying_all": median(whole), "tokens": len(tokens), "same": tokens == others}
        found[name] = {key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()}
    return found


def main() -> int:
    """Measure; 1 if a token differs."""
    engine = Engine.from_plan(sys.argv[1], sys.argv[2], device="cuda")
    assert isinstance(engine, CudaEngine)
    found = measure(engine, min(200, engine.n_ctx - len(PROMPT)))
    engine.close()
    print(json.dumps(found, indent=1))
    return int(found["wrong_leaders"] > 0 or not all(found[name]["same"] for name in SAMPLERS))


if __name__ == "__main__":
    sys.exit(main())
