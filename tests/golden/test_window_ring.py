"""Layers with windows keep a few blocks, in which a sequence goes round: the same bits as with all of its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from measures import same_bits
from zoo_folder import zoo_folder

from aircompile.lowering import caches
from aircompile.pipeline import BuildOptions, build
from airrun.engine import Engine
from airrun.generation.generate import GenerateConfig, generate_tokens
from airrun.machine.system import detect
from airrun.replay.batch import Batch
from airrun.session_file import load_session, save_session

ZOO = zoo_folder() / "models"
# scores with a cap; sinks; caches that several layers read
MODELS = ("gemma2", "gptoss", "gemma4")
N_CTX, N_TEXT, BLOCK = 2560, 2300, 64
RNG = np.random.default_rng()


def ids(n: int) -> list[int]:
    return [int(i) for i in RNG.integers(3, 250, n)]


@pytest.fixture(scope="module", params=MODELS)
def engines(
    request: pytest.FixtureRequest, zoo: Path, compiler_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Engine]]:
    """A model whose windows go round, and the same with room for all tokens in every layer."""
    folder, model, profile = tmp_path_factory.mktemp("plans"), ZOO / request.param / "model.gguf", detect()
    best = dataclasses.replace(profile, cpu=dataclasses.replace(profile.cpu, isa=profile.cpu.isa[:1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRCOMPILE_HOME", str(compiler_home))
        options = BuildOptions(best, ctx_size=N_CTX, kv_type="q8_0" if request.param == "gptoss" else "auto")
        build(model, folder / "ring", options)
        patch.setattr(caches, "_ring_blocks", lambda window: N_CTX)
        build(model, folder / "whole", options)
        ring = Engine.from_plan(folder / "ring", model, threads=2, parallel=2)
        whole = Engine.from_plan(folder / "whole", model, threads=2, parallel=3)
    yield ring, whole
    ring.close()
    whole.close()


def test_less_memory_is_taken(engines: tuple[Engine, Engine]) -> None:
    ring, whole = engines
    spec = ring.plan.kv
    assert spec.window == BLOCK and spec.ring_blocks == 10 and whole.plan.kv.ring_blocks == 0
    windowed = sum(layer.block_nbytes for layer in spec.layers if layer.ring)
    assert 0 < windowed < sum(layer.block_nbytes for layer in spec.layers)
    # three sequences may go round
    assert ring.sizes.entries["KV cache of layers with windows"] == 3 * 10 * windowed
    per_context = N_CTX // BLOCK
    whole_block = sum(layer.block_nbytes for layer in spec.layers)
    assert whole.sizes.kv == 3 * per_context * whole_block
    assert ring.sizes.kv == 2 * per_context * (whole_block - windowed) + 3 * 10 * windowed


def test_the_whole_text_has_the_same_bits(engines: tuple[Engine, Engine]) -> None:
    """Three and a half turns, in chunks as long as a batch, of some tokens, and one by one."""
    ring, whole = engines
    text = ids(N_TEXT)
    expected = whole.logits(text)
    assert same_bits(ring.logits(text), expected)
    session, at = ring.new_session(), 0
    for n in (512, 512, 300, 1, 1, 511, 17, 300):
        assert same_bits(session.eval(text[at : at + n]).copy(), expected[at + n - 1 : at + n])
        at += n
    for i in range(at, N_TEXT):
        assert same_bits(session.eval([text[i]]).copy(), expected[i : i + 1])
    session.reset()


def test_sequences_go_round_apart(engines: tuple[Engine, Engine]) -> None:
    ring, whole = engines
    texts = [ids(1400), ids(900)]
    sessions = [ring.new_session() for _ in texts]
    for session, text in zip(sessions, texts, strict=True):
        session.eval(text[:-200])
    parts = [session.extend(text[-200:], [0, 199]) for session, text in zip(sessions, texts, strict=True)]
    together = ring.run(Batch(parts)).copy()
    for session in sessions:
        session.reset()
    expected = [whole.logits(text)[[-200, -1]] for text in texts]
    assert same_bits(together, np.concatenate(expected))


@pytest.mark.parametrize("taken", [1, 300, 549, 550, 1200])
def test_tokens_are_taken_back(engines: tuple[Engine, Engine], taken: int) -> None:
    """A few from what is still there, as speculation does; more by evaluating the rest again."""
    ring, whole = engines
    text, other = ids(1700), ids(60)
    session = ring.new_session()
    session.eval(text)
    keep = len(text) - taken
    assert session.keepable(keep) == (keep if taken <= 549 else 0)
    session.truncate(keep)
    assert session.keepable(keep) == (keep if taken <= 549 else 0)
    got = session.eval(other, all_logits=True)
    assert same_bits(got, whole.logits(text[:keep] + other)[keep:])
    # taken back further: what was overwritten before counts
    session.truncate(keep - 70)
    assert same_bits(session.eval(other).copy(), whole.logits(text[: keep - 70] + other)[-1:])
    session.reset()


def test_an_interrupted_evaluation_leaves_no_trace(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, whole = engines
    text, session, runs = ids(900), ring.new_session(), []
    session.eval(text[:800])

    def broken(batch: Batch) -> None:
        ring._executor.run(batch)
        runs.append(batch)
        if len(runs) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ring, "run", broken)
        session.eval(ids(1500))
    assert session.ids == text[:800]
    assert same_bits(session.eval(text[800:], all_logits=True), whole.logits(text)[800:])
    session.reset()


def test_a_session_file_holds_the_ring(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    ring, whole = engines
    text, session, path = ids(1500), ring.new_session(), tmp_path / "session"
    expected = whole.logits(text)
    session.eval(text[:1400] + ids(50))
    session.truncate(1400)
    save_session(path, session, "plan")
    assert path.stat().st_size < whole.sizes.kv / 3
    session.reset()
    session.eval(ids(700))
    load_session(path, session, "plan")
    # taken back as far as before the file was made, not further
    assert session.keepable(895) == 895 and session.keepable(894) == 0
    assert same_bits(session.eval(text[1400:], all_logits=True), expected[1400:])
    session.truncate(894)
    assert same_bits(session.eval(text[894:1200], all_logits=True), expected[894:1200])
    session.reset()


def test_guessed_tokens_change_nothing(engines: tuple[Engine, Engine]) -> None:
    ring, whole = engines
    prompt = ids(40) * 20
    config = GenerateConfig(max_tokens=60, temperature=0.0, ignore_eos=True)
    found = []
    for engine, how in ((whole, config), (ring, dataclasses.replace(config, speculate="ngram"))):
        session = engine.new_session()
        found.append(list(generate_tokens(session, prompt, how)))
        session.reset()
    assert found[0] == found[1]
