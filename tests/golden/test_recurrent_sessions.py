"""Sessions of models with recurrent states, which cannot drop tokens from their end as a KV cache can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from measures import OpenEngine, same_bits
from zoo_folder import zoo_folder

from airrun.engine import Engine
from airrun.errors import UsageError
from airrun.generation.generate import GenerateConfig, GenerateResult, generate_tokens
from airrun.replay.batch import Batch
from airrun.session_file import load_session, save_session

ZOO = zoo_folder() / "models"
MODELS = ("mamba", "rwkv7", "qwen35")
RNG = np.random.default_rng()


def ids(n: int) -> list[int]:
    return [int(i) for i in RNG.integers(3, 250, n)]


@pytest.fixture(params=MODELS)
def engine(request: pytest.FixtureRequest, zoo: Path, open_engine: OpenEngine) -> Engine:
    return open_engine(ZOO / request.param / "model.gguf", "f32", threads=2, parallel=3)


def test_taken_back_tokens_leave_no_trace(engine: Engine) -> None:
    text = ids(90)
    whole = engine.logits(text)
    session = engine.new_session()
    for keep in (0, 1, 40, 89):
        session.eval(text[:keep] + ids(30))
        session.truncate(keep)
        assert session.ids == text[:keep]
        assert same_bits(session.eval(text[keep:], all_logits=True), whole[keep:])
        session.truncate(keep)
        assert same_bits(session.eval([text[keep]]).copy(), whole[keep : keep + 1])
        session.reset()


def test_an_evaluation_broken_off_leaves_no_trace(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ids(20)
    whole = engine.logits(text)
    session = engine.new_session()
    session.eval(text[:10])

    def broken(*args: object) -> None:
        engine._executor.run(Batch([session.extend(ids(5), [])]))
        raise KeyboardInterrupt

    for n in (1, 7):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Engine, "decode", property(lambda _: broken))
            patch.setattr(Engine, "run", broken)
            session.eval(text[10 : 10 + n])
        session.truncate(10)
        assert session.ids == text[:10]
    assert same_bits(session.eval(text[10:], all_logits=True), whole[10:])
    session.reset()


def test_several_sequences_in_one_batch(engine: Engine) -> None:
    texts = [ids(n) for n in (40, 1, 65)]
    sessions = [engine.new_session() for _ in texts]
    sessions[0].eval(texts[0][:7])
    begun = (7, 0, 0)
    parts = [
        session.extend(text[first:], range(len(text) - first))
        for session, text, first in zip(sessions, texts, begun, strict=True)
    ]
    together = engine.run(Batch(parts)).copy()
    for session in sessions:
        session.reset()
    alone = [engine.logits(text)[first:] for text, first in zip(texts, begun, strict=True)]
    assert same_bits(together, np.concatenate(alone))


def test_states_are_saved(engine: Engine, tmp_path: Path) -> None:
    text, path = ids(50), tmp_path / "session"
    whole = engine.logits(text)
    session = engine.new_session()
    for spare in (0, 9):
        session.eval(text[:30] + ids(spare))
        session.truncate(30)
        save_session(path, session, "plan")
        session.reset()
        session.eval(ids(20))
        load_session(path, session, "plan")
        assert same_bits(session.eval(text[30:], all_logits=True), whole[30:])
        session.reset()


def test_what_is_reused_is_what_the_state_has_seen(engine: Engine) -> None:
    text, session, config = ids(30), engine.new_session(), GenerateConfig(max_tokens=1, temperature=0.0)
    for prompt, reused in ((text, 0), ([*text, 5], 30), ([*text[:20], 7, 8], 0), ([*text[:20], 7, 8, 9], 22)):
        result = GenerateResult()
        (token,) = generate_tokens(session, prompt, config, result=result)
        assert (result.reused_tokens, token) == (reused, engine.logits(prompt)[-1].argmax())
    session.reset()


def test_states_are_for_so_many_sequences(engine: Engine) -> None:
    sessions = [engine.new_session() for _ in range(5)]
    for session in sessions[:4]:
        session.eval(ids(3))
    with pytest.raises(UsageError, match="all 4 are in use"):
        sessions[4].eval(ids(3))
    sessions[0].reset()
    sessions[4].eval(ids(3))
    for session in sessions:
        session.reset()
    assert engine.sizes.states == 4 * sum(state.nbytes for state in engine.plan.states)
    assert engine.sizes.entries["states of 4 sequences"] == engine.sizes.states
