"""Every model of the golden data against the engine that is right about it: a new folder is tested by being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measures import Doubles, Logits, OpenEngine, argmax_where_clear, divergence, same_bits
from zoo_folder import zoo_folder

from airrun.engine import Engine

ZOO = zoo_folder() / "models"
LENGTHS = (1, 17, 300)

LLAMA_CPP_IS_RIGHT = {
    "falcon": "transformers has GELU by erf; the format means that by tanh",
    "gptneox": "the same",
    "mpt": "the same",
    "mistral": "the file does not carry the window",
    "gptoss": "the file does not carry that YaRN is not truncated",
    "gptoss_mxfp4": "the same",
    "falcon_mamba": "the file lacks an epsilon",
}
"""Where the engines differ and transformers is not the one to follow; everywhere else it is."""

NEAR_TIES = ("deepseek2_lite", "gemma4moe")
"""Models with routers whose near ties are decided by rounding to half precision, here or in llama.cpp: from the first
such token on logits differ by other experts, and not by how well either computes."""

FLIP = 5e-4
"""KL of a token that has other experts."""

FOLDERS = sorted(path.parent.name for path in ZOO.glob("*/model.gguf"))


def golden(name: str) -> dict[str, Any]:
    return dict(np.load(ZOO / name / "golden.npz"))


def oracle_of(name: str) -> str:
    return "lcpp_f32" if name in LLAMA_CPP_IS_RIGHT else "hf"


def at_kept_positions(engine: Engine, gold: dict[str, Any]) -> dict[int, Logits]:
    """Our logits where golden ones are kept, by the length of the sequence."""
    found = {n: engine.logits(gold[f"seq{n}"].tolist()) for n in LENGTHS}
    return found | {300: found[300][gold["rows300"]]}


@pytest.mark.parametrize("name", FOLDERS)
def test_float_activations_are_exact(zoo: Path, open_engine: OpenEngine, name: str) -> None:
    """Logits, the greedy continuation, and the same bits step by step."""
    gold = golden(name)
    engine = open_engine(ZOO / name / "model.gguf", "f32")
    ours = at_kept_positions(engine, gold)
    for length in LENGTHS:
        kl = divergence(gold[f"{oracle_of(name)}_{length}"], ours[length]).max()
        assert kl < 1e-6, f"{length} tokens"

    session = engine.new_session()
    rows = [session.eval(gold["greedy_prompt"].tolist()).copy()]
    rows += [session.eval([int(id_)]).copy() for id_ in gold["greedy_ids"][:-1]]
    session.reset()
    margins = gold["greedy_top2"][:, 0] - gold["greedy_top2"][:, 1]
    argmax_where_clear(np.concatenate(rows), gold["greedy_ids"], margins, 1e-3)

    ids = [*gold["greedy_prompt"].tolist(), *gold["greedy_ids"].tolist()]
    at_once = engine.logits(ids)[len(gold["greedy_prompt"]) - 1 : -1]
    assert same_bits(np.concatenate(rows), at_once)


def before_a_flip(ours: Doubles, theirs: Doubles) -> int:
    """How many positions come before one where either has other experts."""
    flips = np.flatnonzero(np.maximum(ours, theirs) > FLIP)
    return int(flips[0]) if len(flips) else len(ours)


@pytest.mark.parametrize("name", FOLDERS)
def test_as_shipped_is_not_further_from_exact_than_llama_cpp(zoo: Path, open_engine: OpenEngine, name: str) -> None:
    gold = golden(name)
    engine = open_engine(ZOO / name / "model.gguf", "auto")
    logits = at_kept_positions(engine, gold)
    ours, theirs = [], []
    for length in LENGTHS:
        exact = gold[f"{oracle_of(name)}_{length}"]
        pair = divergence(exact, logits[length]), divergence(exact, gold[f"lcpp_f16_{length}"])
        n = before_a_flip(*pair) if name in NEAR_TIES else length
        ours.append(pair[0][:n])
        theirs.append(pair[1][:n])
    mean, limit = np.concatenate(ours).mean(), np.concatenate(theirs).mean()
    print(f"{name}: mean KL {mean:.2e}, llama.cpp {limit:.2e}")
    assert mean <= 1.1 * limit + 1e-4
    ids = gold["seq300"][:70].tolist()
    session = engine.new_session()
    rows = [session.eval(ids[i : i + n], all_logits=True) for i, n in ((0, 1), (1, 64), (65, 5))]
    session.reset()
    assert same_bits(np.concatenate(rows), engine.logits(ids))


def test_every_folder_is_a_model(zoo: Path) -> None:
    assert set(FOLDERS) == {path.name for path in ZOO.iterdir() if path.is_dir()}
