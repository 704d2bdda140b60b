"""A llama in every block format against exact arithmetic: with float activations, with rounded ones, and bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measures import Logits, OpenEngine, divergence, same_bits
from zoo_folder import zoo_folder

from airrun.engine import Engine
from airrun.replay.batch import Batch

SAMPLE = ["Q4_1", "Q4_K_M", "pure_q5_0", "pure_q2_K", "pure_iq4_xs", "pure_mxfp4", "pure_iq1_m", "pure_iq2_xs"]
"""Quantized models that are always tested, one of every kind of format; the others are slow tests."""

LENGTHS = (1, 17, 300)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`quantized`: every quantized model of the zoo, so that a new one is tested by being there."""
    if "quantized" in metafunc.fixturenames:
        names = sorted(file.stem for file in (zoo_folder() / "quant").glob("*.gguf"))
        marks = {name: [] if name in SAMPLE else [pytest.mark.slow] for name in names}
        metafunc.parametrize("quantized", [pytest.param(name, marks=marks[name]) for name in names])


def golden(zoo: Path, model: str) -> dict[str, Any]:
    return dict(np.load(zoo / "models" / model / "golden.npz"))


def logits_of(engine: Engine, gold: dict[str, Any], length: int) -> Logits:
    return engine.logits(gold[f"seq{length}"].tolist())


def kept(logits: Logits, gold: dict[str, Any], length: int) -> Logits:
    """The positions of which golden logits are kept."""
    return logits[gold["rows300"]] if length == 300 else logits


def test_float_activations_on_quantized_weights_are_exact(zoo: Path, open_engine: OpenEngine, quantized: str) -> None:
    gold, exact = golden(zoo, "quant_base"), np.load(zoo / "quant" / f"{quantized}.npz")
    engine = open_engine(zoo / "quant" / f"{quantized}.gguf", "f32")
    for length in LENGTHS:
        ours = kept(logits_of(engine, gold, length), gold, length)
        assert divergence(exact[f"dequant_f32_{length}"], ours).max() < 1e-6


def test_rounding_activations_costs_no_more_than_in_llama_cpp(
    zoo: Path, open_engine: OpenEngine, quantized: str
) -> None:
    """Mean distance from exact arithmetic over all positions, against llama.cpp's own over the same ones.

    Golden logits are kept of some positions only, so the exact ones are our own with float activations, which
    the test above ties to the golden ones.
    """
    gold = golden(zoo, "quant_base")
    entries = {e["tag"]: e for e in json.loads((zoo / "quant" / "index.json").read_text())}
    model = zoo / "quant" / f"{quantized}.gguf"
    exact, ours = open_engine(model, "f32"), open_engine(model, "auto")
    distances = [divergence(logits_of(exact, gold, n), logits_of(ours, gold, n)) for n in LENGTHS]
    mean, theirs = np.concatenate(distances).mean(), entries[quantized]["q8act_vs_dequant_f32"]["mean_kl"]
    print(f"{quantized}: mean KL {mean:.4e}, llama.cpp {theirs:.4e}, ratio {mean / theirs:.3f}")
    assert mean <= theirs


ENGINES = [("models/llama/model.gguf", "f32"), ("quant/Q4_K_M.gguf", "auto"), ("quant/pure_q4_1.gguf", "auto")]


@pytest.mark.parametrize(("file", "activations"), ENGINES)
def test_any_split_of_a_prompt_gives_the_same_bits(
    zoo: Path, open_engine: OpenEngine, file: str, activations: str
) -> None:
    """Token by token, in batches of k, and at once; on one thread and on two."""
    ids = golden(zoo, "quant_base")["seq300"][:150].tolist()
    whole = open_engine(zoo / file, activations).logits(ids)
    for threads in (1, 2):
        engine = open_engine(zoo / file, activations, threads=threads)
        assert same_bits(engine.logits(ids), whole)
        session = engine.new_session()
        for k in (1, 2, 3, 7, 8, 9, 64, 65, 149):
            rows = [session.eval(ids[i : i + k], all_logits=True) for i in range(0, len(ids), k)]
            assert same_bits(np.concatenate(rows), whole), f"{threads} threads, {k} tokens at a time"
            session.reset()
        # only the last logits, which takes another path through the head
        assert same_bits(session.eval(ids), whole[-1:])
        session.reset()


@pytest.mark.parametrize(("file", "activations"), ENGINES)
def test_sequences_in_a_batch_do_not_see_each_other(
    zoo: Path, open_engine: OpenEngine, file: str, activations: str
) -> None:
    ids = golden(zoo, "quant_base")["seq300"].tolist()
    prompts = [ids[:70], ids[100:101], ids[30:95], ids[200:217]]
    nexts = [ids[70:72], ids[101:104], ids[95:96], ids[217:225]]
    alone = open_engine(zoo / file, activations)
    expected = [alone.logits(p + n) for p, n in zip(prompts, nexts, strict=True)]
    for threads in (1, 2):
        engine = open_engine(zoo / file, activations, threads=threads, parallel=len(prompts))
        sessions = [engine.new_session() for _ in prompts]
        first = engine.run(Batch([s.extend(p, range(len(p))) for s, p in zip(sessions, prompts, strict=True)])).copy()
        # the second step comes in another order, and asks one sequence for its last logits only
        order = [2, 0, 3, 1]
        wanted = [range(len(nexts[i])) if i else [len(nexts[i]) - 1] for i in range(len(nexts))]
        second = engine.run(Batch([sessions[i].extend(nexts[i], wanted[i]) for i in order])).copy()
        at = 0
        for prompt, whole in zip(prompts, expected, strict=True):
            assert same_bits(first[at : at + len(prompt)], whole[: len(prompt)])
            at += len(prompt)
        at = 0
        for i in order:
            rows = second[at : at + len(wanted[i])]
            whole_rows = expected[i][len(prompts[i]) :][list(wanted[i])]
            assert same_bits(rows, whole_rows)
            at += len(wanted[i])
        for session in sessions:
            session.reset()


def test_tokens_that_want_no_logits_still_count(zoo: Path, open_engine: OpenEngine) -> None:
    ids = golden(zoo, "quant_base")["seq17"].tolist()
    engine = open_engine(zoo / "quant" / "pure_q4_1.gguf", "auto")
    session = engine.new_session()
    assert engine.run(Batch([session.extend(ids[:-1], [])])).shape == (0, engine.n_vocab)
    last = session.eval(ids[-1:]).copy()
    assert same_bits(last, engine.logits(ids)[-1:])
    session.reset()
