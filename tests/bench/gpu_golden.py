"""SmolLM2 on a GPU beside exact golden logits: ``python tests/bench/gpu_golden.py PLAN MODEL FOLDER`` prints JSON.

FOLDER holds `HF_F32.npz` (transformers in float32 on the same weights), `Q4_1.npz` (llama.cpp's processor) and
`golden.json`. Printed are mean KL divergences from the exact logits, and how many of the golden greedy tokens follow
from those before them, wherever they won by more than 0.01.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))

from measures import Logits, divergence
from test_smollm2 import PROMPTS

from airrun import Engine

_MARGIN = 0.01


def evaluate(engine: Engine, ids: list[int], *, one_by_one: bool) -> Logits:
    """Logits [len(ids), n_vocab] of a text, as a prompt or token by token."""
    if not one_by_one:
        return engine.logits(ids)
    session = engine.new_session()
    try:
        return np.stack([session.eval([token])[0].copy() for token in ids])
    finally:
        session.reset()


def measure(engine: Engine, gold: dict[str, Any], *, one_by_one: bool) -> dict[str, float]:
    """What is printed of decode (`one_by_one`) or prefill."""
    kl = []
    for i, prompt in enumerate(PROMPTS):
        logits = evaluate(engine, engine.tokenize(prompt), one_by_one=one_by_one)
        kl += [
            divergence(gold["exact"][f"p{i}_{place}"], row)
            for place, row in (("first", logits[0]), ("last", logits[-1]))
        ]
    text = evaluate(engine, gold["lcpp"]["text_tokens"].tolist(), one_by_one=one_by_one)
    kl.append(divergence(gold["exact"]["text_last"], text[-1]))
    same = clear = 0
    for entry in gold["greedy"]:
        ids, greedy = entry["tokens"], np.array(entry["greedy"])
        logits = evaluate(engine, ids + entry["greedy"][:-1], one_by_one=one_by_one)[len(ids) - 1 :]
        won = np.array(entry["margins"]) > _MARGIN
        clear += int(won.sum())
        same += int((logits.argmax(1) == greedy)[won].sum())
    return {"mean_kl": float(np.mean(kl)), "clear_tokens": clear, "same": same / clear}


def main() -> None:
    """Print what a plan is worth on the GPU and, for comparison, on the processor and in llama.cpp."""
    plan, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    exact, lcpp = (dict(np.load(folder / f"{name}.npz")) for name in ("HF_F32", "Q4_1"))
    gold = {"exact": exact, "lcpp": lcpp, "greedy": json.loads((folder / "golden.json").read_text())["F32"]["greedy"]}
    names = [name for name in exact if name.endswith(("_first", "_last"))]
    found: dict[str, Any] = {"llama.cpp": float(np.mean([divergence(exact[name], lcpp[name]) for name in names]))}
    for device in ("cuda", "cpu"):
        with Engine.from_plan(plan, model, device=device) as engine:
            for phase, one_by_one in (("decode", True), ("prefill", False)):
                found[f"{device} {phase}"] = measure(engine, gold, one_by_one=one_by_one)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
