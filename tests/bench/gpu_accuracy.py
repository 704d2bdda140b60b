"""Logits of a GPU beside those of the processor: ``python tests/bench/gpu_accuracy.py PLAN MODEL`` prints, as JSON, the
mean KL divergence of each from the other's plan on pseudo-random tokens, and how often the best tokens agree.

Where the plan rounds activations both sides do, each by its own rules: a plan built with ``--activations f32`` tells
whether they compute the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))

from measures import Logits, divergence

from airrun import Engine

TOKENS = 48


def logits(plan: str, model: str, device: str, *, one_by_one: bool) -> Logits:
    """Logits [TOKENS, n_vocab] of a fixed text, as a prompt or token by token."""
    with Engine.from_plan(plan, model, device=device) as engine:
        ids = [(7919 * i + 11) % engine.n_vocab for i in range(TOKENS)]
        if not one_by_one:
            return engine.logits(ids)
        return np.stack([engine.session.eval([token])[0].copy() for token in ids])


def measure(plan: str, model: str) -> dict[str, Any]:
    """Everything that the script prints."""
    want = logits(plan, model, "cpu", one_by_one=False)
    found: dict[str, Any] = {}
    for name, one_by_one in (("decode", True), ("prefill", False)):
        got = logits(plan, model, "cuda", one_by_one=one_by_one)
        found[name] = {
            "mean_kl": float(divergence(want, got).mean()),
            "same_best": float((want.argmax(1) == got.argmax(1)).mean()),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2]), indent=1))
