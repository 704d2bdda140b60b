"""What an interrupted evaluation or load leaves behind: nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tiny_model import N_CTX, shared_home, tiny_plan, use_home

from airrun.engine import Engine
from airrun.errors import PlanError, UsageError
from airrun.replay.executor import Executor
from airrun.weights import resident

IDS = [3 + (7 * i) % 250 for i in range(150)]


@pytest.fixture
def plan(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    home = shared_home(tmp_path_factory)
    use_home(monkeypatch, home)
    return str(tiny_plan(home))


@pytest.fixture
def engine(plan: str) -> Iterator[Engine]:
    with Engine.from_plan(plan, threads=2, parallel=2) as opened:
        yield opened


def breaking(real: Callable[..., Any], at: int, after: bool) -> Callable[..., Any]:
    """The function, but its call number `at` is broken off by Ctrl-C, before or after the work is done."""
    count = 0

    def broken(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == at and not after:
            raise KeyboardInterrupt
        result = real(*args)
        if count == at:
            raise KeyboardInterrupt
        return result

    return broken


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("n_past", "n_new", "all_logits", "method", "at"),
    [
        (0, 1, False, "decode", 1),
        (10, 1, False, "decode", 1),
        (64, 1, False, "decode", 1),  # the first token of a block
        (0, 10, False, "run", 1),
        (60, 90, False, "run", 1),
        (10, 1, True, "run", 1),
        (5, 140, True, "run", 1),
        (5, 140, True, "run", 2),  # in two pieces, the second of which is broken off
    ],
)
def test_a_broken_off_evaluation_leaves_the_session_as_it_was(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    n_past: int,
    n_new: int,
    all_logits: bool,
    method: str,
    at: int,
    after: bool,
) -> None:
    whole = engine.logits(IDS)
    session = engine.session
    if n_past:
        session.eval(IDS[:n_past])
    free = len(engine.pool.blocks._free)
    with monkeypatch.context() as patch:
        patch.setattr(Executor, method, breaking(getattr(Executor, method), at, after))
        with pytest.raises(KeyboardInterrupt):
            session.eval([200] * n_new, all_logits=all_logits)
    assert session.ids == IDS[:n_past]
    session.truncate(n_past)
    assert len(engine.pool.blocks._free) == free
    got = session.eval(IDS[n_past:], all_logits=True)
    assert np.array_equal(got.view("u4"), whole[n_past:].view("u4"))


def test_a_full_pool_leaves_the_session_as_it_was(plan: str) -> None:
    with Engine.from_plan(plan, parallel=1) as engine:
        first, second = engine.new_session(), engine.new_session()
        second.eval(IDS[:10])
        first.eval([5] * (N_CTX - 64))
        free = len(engine.pool.blocks._free)
        with pytest.raises(UsageError, match="KV cache is full"):
            second.eval([7] * 100)
        assert second.ids == IDS[:10] and len(engine.pool.blocks._free) == free


def test_one_token_at_a_time_is_the_same_to_the_bit(engine: Engine) -> None:
    """Decoding takes rotary angles from a table that is filled ahead, wherever it starts and jumps to."""
    whole = engine.logits(IDS)
    session = engine.session
    for start, stop in ((0, 5), (100, 150), (3, 70), (64, 66), (127, 129)):
        session.reset()
        if start:
            session.eval(IDS[:start])
        for i in range(start, stop):
            assert np.array_equal(session.eval([IDS[i]]).view("u4"), whole[i : i + 1].view("u4")), i


def test_two_sessions_take_turns(engine: Engine) -> None:
    whole = engine.logits(IDS)
    sessions = [engine.new_session(), engine.new_session()]
    for session, n in zip(sessions, (20, 61), strict=True):
        session.eval(IDS[:n])
    for _ in range(10):
        for session in sessions:
            n = session.n_past
            assert np.array_equal(session.eval([IDS[n]]).view("u4"), whole[n : n + 1].view("u4"))


@pytest.mark.parametrize("at_once", [1, 1000, 5000])
def test_weights_are_interleaved_in_pieces_of_any_size(
    plan: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole = engine.logits(IDS)
    monkeypatch.setattr(resident, "_AT_ONCE", at_once)
    for threads in (1, 2):
        with Engine.from_plan(plan, threads=threads) as other:
            assert np.array_equal(other.logits(IDS).view("u4"), whole.view("u4"))


def test_an_engine_can_be_closed_while_it_loads(plan: str) -> None:
    for threads in (1, 2, 3):
        engine = Engine.from_plan(plan, threads=threads)
        engine.close()
        with pytest.raises(PlanError, match="closed"):
            engine.session.eval([5])
    assert not [thread for thread in threading.enumerate() if thread.name == "airrun_load"]


def test_the_time_to_load_is_known_as_soon_as_it_is_asked_for(plan: str) -> None:
    with Engine.from_plan(plan, threads=1) as engine:
        metrics = engine.metrics()
        assert 0 < metrics["load_seconds"] < 60
        assert metrics["decode_tokens"] == metrics["prefill_tokens"] == 0
        engine.session.eval(IDS)
        for i in range(3):
            engine.session.eval([i + 5])
        metrics = engine.metrics()
        assert (metrics["prefill_tokens"], metrics["decode_tokens"]) == (len(IDS), 3)
        spent = metrics["prefill_seconds"] + metrics["decode_seconds"]
        assert 0 < metrics["native_seconds"] < spent
