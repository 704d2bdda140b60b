"""A real model, SmolLM2-135M-Instruct in Q4_1, against transformers and llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measures import Logits, OpenEngine, argmax_where_clear, divergence, log_softmax, same_bits

from aircompile.demo import fetch_smollm2
from airrun.engine import Engine
from airrun.errors import ModelFileError
from airrun.generation.generate import GenerateConfig, GenerateResult, generate_tokens
from airrun.generation.speculate import PassTimes

CHUNK = 512
EXACT_PERPLEXITY = 15.232
# what HF_F32.npz and Q4_1.npz hold as p0 to p3
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "def fibonacci(n):\n    ",
    "The three laws of motion are:",
]


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return fetch_smollm2(print)
    except ModelFileError as error:
        pytest.skip(f"the model is neither cached nor to be had: {error}")


@pytest.fixture(scope="module")
def gold(zoo: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((zoo / "smollm2" / "golden.json").read_text())
    data["hf"] = dict(np.load(zoo / "smollm2" / "HF_F32.npz"))
    data["lcpp"] = dict(np.load(zoo / "smollm2" / "Q4_1.npz"))
    return data


@pytest.fixture(scope="module")
def exact(model: Path, open_engine: OpenEngine) -> Engine:
    return open_engine(model, "f32", threads=2)


@pytest.fixture(scope="module")
def shipped(model: Path, open_engine: OpenEngine) -> Engine:
    return open_engine(model, "auto", threads=2)


def golden_positions(engine: Engine, gold: dict[str, Any]) -> dict[str, Logits]:
    """Our logits where transformers' are kept: the ends of four prompts, and of a text of 256 tokens."""
    found: dict[str, Logits] = {}
    for i, prompt in enumerate(PROMPTS):
        logits = engine.logits(engine.tokenize(prompt))
        found[f"p{i}_first"], found[f"p{i}_last"] = logits[0], logits[-1]
    found["text"] = engine.logits(gold["lcpp"]["text_tokens"].tolist())
    found["text_last"] = found["text"][-1]
    return found


def mean_divergence(gold: dict[str, Any], ours: dict[str, Logits]) -> float:
    names = [name for name in gold["hf"] if name.endswith(("_first", "_last"))]
    assert len(names) == 9
    return float(np.mean([divergence(gold["hf"][name], ours[name]) for name in names]))


def test_prompts_have_the_golden_tokens(exact: Engine, gold: dict[str, Any]) -> None:
    for entry in gold["F32"]["greedy"]:
        assert exact.tokenize(entry["prompt"]) == entry["tokens"]


def test_float_activations_are_exact(exact: Engine, gold: dict[str, Any]) -> None:
    ours, hf = golden_positions(exact, gold), gold["hf"]
    for name in (n for n in hf if n.endswith(("_first", "_last"))):
        assert np.abs(ours[name] - hf[name]).max() < 5e-4, name
        assert divergence(hf[name], ours[name]) < 1e-7, name
    assert np.array_equal(ours["text"].argmax(1), hf["text_argmax"])
    following = gold["lcpp"]["text_tokens"][1:]
    log_probabilities = log_softmax(ours["text"])[np.arange(255), following]
    assert np.abs(log_probabilities - hf["text_logprob_next"]).max() < 1e-4


def test_greedy_continuations_with_float_activations(exact: Engine, gold: dict[str, Any]) -> None:
    """Every golden token follows from those before it (evaluated at once: steps give the same bits)."""
    for entry in gold["F32"]["greedy"]:
        logits = exact.logits(entry["tokens"] + entry["greedy"][:-1])[len(entry["tokens"]) - 1 :]
        argmax_where_clear(logits, entry["greedy"], entry["margins"], 1e-3)


def test_greedy_decoding_step_by_step(exact: Engine, gold: dict[str, Any]) -> None:
    entry = gold["F32"]["greedy"][0]
    session = exact.new_session()
    logits, found = session.eval(entry["tokens"]), []
    for _ in range(24):
        found.append(int(logits[0].argmax()))
        logits = session.eval(found[-1:])
    session.reset()
    assert found == entry["greedy"][:24]


@pytest.mark.parametrize("activations", ["f32", "auto"])
def test_steps_batches_and_prefill_give_the_same_bits(
    model: Path, open_engine: OpenEngine, gold: dict[str, Any], activations: str
) -> None:
    ids = gold["lcpp"]["text_tokens"][:80].tolist()
    whole = open_engine(model, activations, threads=2).logits(ids)
    for threads, k in ((1, 80), (1, 7), (2, 1), (2, 33)):
        session = open_engine(model, activations, threads=threads).new_session()
        rows = [session.eval(ids[i : i + k], all_logits=True) for i in range(0, len(ids), k)]
        session.reset()
        assert same_bits(np.concatenate(rows), whole), f"{threads} threads, {k} tokens at a time"


def test_as_shipped_is_not_further_from_exact_than_llama_cpp(shipped: Engine, gold: dict[str, Any]) -> None:
    ours = golden_positions(shipped, gold)
    mean, theirs = mean_divergence(gold, ours), mean_divergence(gold, gold["lcpp"])
    following, exact = gold["lcpp"]["text_tokens"][1:], gold["hf"]["text_logprob_next"]
    mine = log_softmax(ours["text"])[np.arange(255), following]
    error, their_error = (np.sqrt(np.mean((p - exact) ** 2)) for p in (mine, gold["lcpp"]["text_logprob_next"]))
    print(f"mean KL {mean:.5f}, llama.cpp {theirs:.5f}; log-probability {error:.4f}, llama.cpp {their_error:.4f}")
    assert mean <= theirs
    assert error <= their_error


def perplexity(engine: Engine, text: str) -> tuple[float, list[float]]:
    """As llama.cpp's `perplexity`: chunks of 512 tokens, each from an empty cache, the second half scored.

    Returns
    -------
    The perplexity, and what it was after each chunk.
    """
    ids = engine.tokenize(text)
    half, loss, count, running = CHUNK // 2, 0.0, 0, []
    session = engine.new_session()
    for start in range(0, len(ids) - CHUNK + 1, CHUNK):
        chunk = ids[start : start + CHUNK]
        session.eval(chunk[:half])
        logits = session.eval(chunk[half:-1], all_logits=True)
        session.reset()
        loss -= log_softmax(logits)[np.arange(half - 1), chunk[half + 1 :]].sum()
        count += half - 1
        running.append(float(np.exp(loss / count)))
    return running[-1], running


def test_perplexity_as_shipped(shipped: Engine, zoo: Path) -> None:
    found, _ = perplexity(shipped, (zoo / "smollm2" / "ppl.txt").read_text())
    print(f"perplexity {found:.4f}, {100 * (found / EXACT_PERPLEXITY - 1):+.2f}%")
    assert abs(found / EXACT_PERPLEXITY - 1) < 0.003


@pytest.mark.slow
def test_perplexity_with_float_activations(exact: Engine, gold: dict[str, Any], zoo: Path) -> None:
    _, running = perplexity(exact, (zoo / "smollm2" / "ppl.txt").read_text())
    theirs = gold["F32"]["perplexity_20k"]["chunks"]
    # llama.cpp keeps its cache in half precision even here
    assert np.abs(np.array(running) / np.array(theirs) - 1).max() < 3e-4


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_speculation_changes_no_token(shipped: Engine, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are verified in batches of up to 16 rows, whose logits are those of single tokens."""
    monkeypatch.setattr(PassTimes, "relative", lambda self, n_tokens: 1.0)
    code = "def area(width, height):\n    return width * height\n\n" * 3 + "def area(width, height):\n"
    saved = 0
    for prompt in (*PROMPTS, code):
        ids, found = shipped.tokenize(prompt), []
        for speculate in ("none", "ngram"):
            session, result = shipped.new_session(), GenerateResult()
            config = GenerateConfig(
                max_tokens=40, temperature=temperature, seed=11, ignore_eos=True, speculate=speculate
            )
            found.append((list(generate_tokens(session, ids, config, result=result)), session.ids[:]))
            session.reset()
        assert found[0] == found[1]
        saved += result.accepted
    assert saved > 5
