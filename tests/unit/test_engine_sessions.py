"""The life of a session on a real engine: evaluated, truncated, saved, beside others, from ids or embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from engine_checks import TEXT, one_line, same
from tiny_model import N_CTX, N_EMBD

from airrun.engine import Engine
from airrun.errors import AirError, ModelFileError, UsageError
from airrun.replay.batch import Batch, BatchSequence
from airrun.replay.kv_cache import SequenceMemory
from airrun.session_file import load_session, save_session


def test_truncated_and_reset_sessions_are_as_good_as_new(engine: Engine) -> None:
    ids = [3 + (7 * i) % 250 for i in range(140)]
    whole = engine.logits(ids)
    session = engine.session
    for keep in (0, 1, 63, 64, 65, 128, 139):
        session.eval([200] * 150)
        session.reset()
        session.eval(ids[:keep] + [9] * 30)
        session.truncate(keep)
        assert session.ids == ids[:keep]
        assert same(session.eval(ids[keep:], all_logits=True), whole[keep:]), keep
        session.reset()


def test_a_truncated_session_keeps_the_block_it_still_uses(plan: Path, model: Path) -> None:
    ids = [3 + (7 * i) % 250 for i in range(140)]
    with Engine.from_plan(plan, model, parallel=2) as engine:
        first, second = engine.new_session(), engine.new_session()
        first.eval(ids)
        first.truncate(70)
        second.eval([9] * 200)
        got = first.eval(ids[70:], all_logits=True)
        first.reset()
        second.reset()
        assert same(got, engine.logits(ids)[70:])


def test_truncation_is_bounded(engine: Engine) -> None:
    engine.session.eval(TEXT)
    for n in (-1, len(TEXT) + 1):
        with pytest.raises(UsageError):
            engine.session.truncate(n)
    assert engine.session.ids == TEXT


def test_logits_leave_the_default_session_alone(plan: Path, model: Path) -> None:
    # the pool has room for both only if it was made for both
    with Engine.from_plan(plan, model, parallel=2) as engine:
        engine.session.eval(TEXT[:4])
        engine.logits([9] * 100)
        assert engine.session.ids == TEXT[:4]
        assert same(engine.session.eval(TEXT[4:]).copy(), engine.logits(TEXT)[-1:])


def test_all_logits_end_with_the_last_logits(engine: Engine) -> None:
    ids = [3 + i % 250 for i in range(200)]
    every = engine.logits(ids)
    assert every.shape == (200, engine.n_vocab)
    assert same(engine.session.eval(ids).copy(), every[-1:])


def test_a_full_cache_is_refused_and_freed_again(plan: Path, model: Path) -> None:
    with Engine.from_plan(plan, model, parallel=1) as engine:
        first, second = engine.new_session(), engine.new_session()
        ids = [3 + i % 250 for i in range(N_CTX)]
        first.eval(ids[:200])
        with pytest.raises(UsageError) as error:
            second.eval(ids[:100])
        assert "KV cache is full" in one_line(error)
        assert second.n_past == 0
        # what the failed request took must not be lost
        second.reset()
        first.reset()
        expected = engine.logits(ids)[-1:]
        assert same(second.eval(ids).copy(), expected)


def test_blocks_of_a_dropped_session_can_be_used_again(plan: Path, model: Path) -> None:
    with Engine.from_plan(plan, model, parallel=2) as engine:
        sessions = [engine.new_session() for _ in range(2)]
        for _ in range(5):
            for session in sessions:
                session.eval([5] * N_CTX)
            for session in sessions:
                session.reset()
        assert same(sessions[1].eval(TEXT, all_logits=True), engine.logits(TEXT))


def test_a_saved_session_goes_on_as_if_nothing_had_happened(
    engine: Engine, plan: Path, model: Path, tmp_path: Path
) -> None:
    ids = [3 + (5 * i) % 250 for i in range(150)]
    session = engine.session
    session.eval(ids[:100])
    path = tmp_path / "chat.session"
    save_session(path, session, "digest", {"turn": 3})
    expected = session.eval(ids[100:], all_logits=True)
    with Engine.from_plan(plan, model, threads=1, parallel=2) as other:
        occupied = other.new_session()
        occupied.eval([9] * 70)  # so that the blocks get other numbers
        restored = other.new_session()
        restored.eval(TEXT)
        assert load_session(path, restored, "digest") == {"turn": 3}
        assert restored.ids == ids[:100]
        assert same(restored.eval(ids[100:], all_logits=True), expected)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda meta: meta | {"ids": []},
        lambda meta: meta | {"ids": [1 << 40]},
        lambda meta: meta | {"ids": "abc"},
        lambda meta: meta | {"n_blocks": 7},
        lambda meta: meta | {"block_nbytes": [64]},
        lambda meta: meta | {"ids": meta["ids"] + [5] * 100},
        lambda meta: {},
    ],
)
def test_a_state_of_another_model_is_refused(engine: Engine, spoil: Callable[[dict[str, Any]], Any]) -> None:
    session = engine.session
    session.eval(TEXT)
    meta, parts = session.save_state()
    payload = memoryview(b"".join(bytes(part) for part in parts))
    with pytest.raises(UsageError) as error:
        session.load_state(spoil(meta), payload)
    one_line(error)
    assert same(session.eval(TEXT, all_logits=True), engine.logits(TEXT))


def test_a_session_of_another_plan_is_refused(engine: Engine, tmp_path: Path) -> None:
    engine.session.eval(TEXT)
    save_session(tmp_path / "s", engine.session, "one plan")
    with pytest.raises(ModelFileError, match="another plan"):
        load_session(tmp_path / "s", engine.session, "another plan")
    assert engine.session.ids == TEXT


def embedding_rows(model: Path, ids: list[int]) -> Any:
    tensor = next(t for t in gguf.GGUFReader(model).tensors if t.name == "token_embd.weight")
    return gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1, N_EMBD)[ids].astype(np.float32)


def batch_sequence(engine: Engine, n: int, **inputs: Any) -> BatchSequence:
    memory = SequenceMemory(engine.pool, engine.states)
    memory.reserve(n)
    return BatchSequence(memory, 0, outputs=range(n), **inputs)


@pytest.mark.parametrize("n", [1, 5, 11])
def test_embeddings_do_as_well_as_ids(engine: Engine, model: Path, n: int) -> None:
    expected = engine.logits(TEXT[:n])
    given = batch_sequence(engine, n, token_ids=None, embeddings=embedding_rows(model, TEXT[:n]))
    assert same(engine.run(Batch([given])).copy(), expected)
    given.memory.keep(0)


def test_embeddings_and_ids_do_not_mix(plan: Path, model: Path) -> None:
    with Engine.from_plan(plan, model, parallel=2) as engine:
        rows = batch_sequence(engine, 2, token_ids=None, embeddings=embedding_rows(model, TEXT[:2]))
        with pytest.raises(AirError):
            engine.run(Batch([rows, engine.session.extend(TEXT, [])]))


def test_positions_are_cell_numbers_unless_given(engine: Engine) -> None:
    n = len(TEXT)
    expected = engine.logits(TEXT)
    for shift, equal in ((0, True), (1000, False)):
        positions = np.arange(shift, shift + n)[None]
        given = batch_sequence(engine, n, token_ids=TEXT, positions=positions)
        got = engine.run(Batch([given])).copy()
        given.memory.keep(0)
        assert same(got, expected) == equal
        # rotary positions are relative: a shift of all of them changes rounding only
        assert np.abs(got - expected).max() < 0.2
