"""Speculation: the text is that without it, whatever is guessed, and guesses are made where they pay."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import BOS, EOS, N_VOCAB, FakeEngine, FakeSession, NoisyEngine, continuing
from hypothesis import given, settings
from hypothesis import strategies as st

from airrun.errors import UsageError
from airrun.generation.generate import GenerateConfig, GenerateResult, TextStream, generate_tokens, make_sampler
from airrun.generation.parallel import ParallelStream
from airrun.generation.speculate import Lookup, Odds, PassTimes, Speculator

REPETITION = [BOS, *b"one two three, one two three, one two"]


RELATIVE = PassTimes.relative


class ForgetfulEngine(NoisyEngine):
    """Noise of the last two tokens alone: its text soon repeats, and guesses are right for a while."""

    def logits_of(self, ids: list[int]) -> Any:
        return super().logits_of([i % 8 for i in ids[-2:]])


@pytest.fixture(autouse=True)
def passes_of_any_length_take_the_same() -> Iterator[None]:
    """So that what is guessed does not depend on a clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassTimes, "relative", lambda self, n_tokens: 1.0)
        yield


def run(engine: Any, ids: list[int], speculate: str, **config: Any) -> tuple[list[int], GenerateResult]:
    result = GenerateResult()
    settings = GenerateConfig(**{"temperature": 0.0, "speculate": speculate, **config})
    tokens = list(generate_tokens(engine.session, ids, settings, result=result))
    assert tokens == result.tokens
    assert engine.session.ids == [*ids, *tokens][: engine.session.n_past]
    return tokens, result


@pytest.mark.parametrize("model", [FakeEngine, NoisyEngine, ForgetfulEngine])
@pytest.mark.parametrize(
    "config",
    [
        {"max_tokens": 60},
        {"max_tokens": 1},
        {"max_tokens": 0},
        {},
        {"temperature": 0.9, "seed": 5, "max_tokens": 60},
        {"temperature": 2.0, "seed": 6, "max_tokens": 60, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"max_tokens": 60, "repeat_penalty": 1.3, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"max_tokens": 60, "logit_bias": {32: 5.0}},
    ],
)
def test_everything_is_as_without(model: Any, config: dict[str, Any]) -> None:
    make = (
        (lambda: FakeEngine(continuing(REPETITION, " three, one two, one two three" * 9), 200))
        if (model is FakeEngine)
        else (lambda: model(200))
    )
    plain, guessing = make(), make()
    tokens, result = run(plain, REPETITION, "none", **config)
    speculated, faster = run(guessing, REPETITION, "ngram", **config)
    assert speculated == tokens
    assert faster.finish_reason == result.finish_reason
    assert guessing.session.ids == plain.session.ids
    assert faster.passes + faster.accepted == result.passes
    assert guessing.accepted == faster.accepted <= faster.drafted
    if model is not NoisyEngine and len(tokens) > 20 and "temperature" not in config and len(config) == 1:
        assert faster.passes < 0.6 * result.passes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(40, 60), st.sampled_from([0.0, 0.7, 1.5]))
def test_any_guesses_give_the_same_text(seed: int, max_tokens: int, n_ctx: int, temperature: float) -> None:
    """Guesses of any number, right for a random while: full context, end of tokens and of text inside them."""
    rng = random.Random(seed)
    plain, guessing = ForgetfulEngine(n_ctx), ForgetfulEngine(n_ctx)
    config = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed % 1000, "logit_bias": {EOS: 10.5}}
    tokens, result = run(plain, REPETITION, "none", **config)

    def choose(self: Speculator, most: int) -> list[int]:
        room = min(most, guessing.max_outputs - 1, n_ctx - self._session.n_past - 1)
        at = self.n_past + 1 - len(REPETITION)
        true = [*tokens, EOS, *b"abcdefghij"][at : at + rng.randrange(8)]
        return [*true, rng.randrange(N_VOCAB)][: max(0, room)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Speculator, "_choose", choose)
        speculated, faster = run(guessing, REPETITION, "ngram", **config)
    assert speculated == tokens
    assert (faster.finish_reason, guessing.session.ids) == (result.finish_reason, plain.session.ids)


def test_a_stop_string_or_a_dropped_stream_leaves_no_guess_behind() -> None:
    text = " three, one two three, STOP one two three"
    for speculate in ("none", "ngram"):
        engine = FakeEngine(continuing(REPETITION, text))
        config = GenerateConfig(temperature=0.0, stop="STOP", speculate=speculate)  # type: ignore[arg-type]
        stream = TextStream(engine.session, REPETITION, config)
        assert "".join(stream) == text[: text.index("STOP")]
        assert bytes(engine.session.ids[len(REPETITION) :]) == text[: text.index("P ")].encode()
    engine = FakeEngine(continuing(REPETITION, text))
    tokens = generate_tokens(engine.session, REPETITION, GenerateConfig(temperature=0.0, speculate="ngram"))
    assert bytes(next(tokens) for _ in range(10)) == text[:10].encode()
    tokens.close()
    assert bytes(engine.session.ids[len(REPETITION) :]) == text[:9].encode()


def test_one_sampler_goes_on_after_a_guess_was_left() -> None:
    """The next turn draws as it would have: nothing is drawn ahead."""
    config = {"temperature": 1.0, "seed": 3, "max_tokens": 25}
    texts = []
    for speculate in ("none", "ngram"):
        engine = ForgetfulEngine()
        settings = GenerateConfig(**config, speculate=speculate)  # type: ignore[arg-type]
        sampler = make_sampler(engine, settings)  # type: ignore[arg-type]
        turns = [
            list(generate_tokens(engine.session, REPETITION, settings, sampler=sampler))  # type: ignore[arg-type]
            for _ in range(3)
        ]
        texts.append(turns)
    assert texts[0] == texts[1]


def test_a_full_cache_is_no_reason_to_fail() -> None:
    plain, guessing = FakeEngine(continuing(REPETITION, "x" * 50)), FakeEngine(continuing(REPETITION, "x" * 50))

    def full(ids: list[int]) -> Any:
        raise UsageError("the KV cache is full")

    guessing.session.verify = full  # type: ignore[method-assign]
    tokens, result = run(guessing, REPETITION, "ngram")
    assert tokens == run(plain, REPETITION, "none")[0]
    assert result.drafted == 0


def test_unknown_kinds_and_parallel_texts_are_refused() -> None:
    with pytest.raises(UsageError, match="speculate must be one of none, ngram, not 'draft'"):
        GenerateConfig(speculate="draft")  # type: ignore[arg-type]
    engine: Any = FakeEngine(continuing(REPETITION, "x"))
    engine.parallel = 2
    with pytest.raises(UsageError, match="one text at a time"):
        ParallelStream(engine, ["a", "b"], GenerateConfig(speculate="ngram"))
    engine.states = SimpleNamespace(specs=(1,))
    with pytest.raises(UsageError, match="recurrent"):
        next(generate_tokens(engine.session, REPETITION, GenerateConfig(speculate="ngram")))
    engine.device = "cuda"
    with pytest.raises(UsageError, match="for the CPU"):
        next(generate_tokens(engine.session, REPETITION, GenerateConfig(speculate="ngram")))
    assert engine.session.evaluated == 0


def test_lookup_follows_the_longest_match() -> None:
    lookup = Lookup(list(b"abcdX  bcdY  abcd"))
    assert (bytes(lookup.guess(3)), lookup.matched) == (b"X  ", 4)
    lookup.push(ord("Y"))  # seen only after "bcd"
    assert (bytes(lookup.guess(3)), lookup.matched) == (b"  a", 4)
    lookup.push(ord("!"))
    assert (lookup.guess(3), lookup.matched) == ([], 0)
    assert bytes(Lookup(list(b"abab")).guess(5)) == b"ababa"
    assert Lookup([]).guess(2) == Lookup([1]).guess(2) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60))
def test_lookup_agrees_with_the_text(ids: list[int]) -> None:
    lookup = Lookup(ids[:10])
    for i in range(min(10, len(ids)), len(ids) + 1):
        past = ids[:i]
        guess = lookup.guess(1)
        pairs = {tuple(past[j : j + 2]) for j in range(len(past) - 2)}
        assert bool(guess) == (tuple(past[-2:]) in pairs and len(past) > 2)
        if guess:
            end = past[-lookup.matched :]
            assert any(past[j : j + lookup.matched] == end and past[j + lookup.matched] == guess[0] for j in range(i))
        if i < len(ids):
            lookup.push(ids[i])


def test_odds_are_learnt() -> None:
    odds = Odds()
    assert odds.expected(8, 3)[0] == 1.0
    for _ in range(50):
        odds.learn(2, False)
        odds.learn(20, True)
    assert odds.expected(2, 4)[-1] < 1.1
    assert odds.expected(20, 4)[-1] > 4.8


def test_pass_times_are_a_line() -> None:
    times = PassTimes()
    times.learn(1, 0.010)
    assert not times.known
    times.learn(4, 0.016)
    assert times.known and RELATIVE(times, 4) == pytest.approx(1.6) and RELATIVE(times, 7) == pytest.approx(2.2)
    for n in (2, 8, 3, 12, 2, 8):
        times.learn(n, 0.012 + 0.001 * n)
    assert RELATIVE(times, 10) == pytest.approx(2.2, abs=0.1)
    times = PassTimes()
    times.learn(4, 0.001)
    times.learn(1, 0.010)
    assert RELATIVE(times, 8) == 1.0


class TimedSession(FakeSession):
    """Has a clock: a pass takes 1, and `cost` for every further token."""

    def __init__(self, engine: FakeEngine, cost: float) -> None:
        super().__init__(engine, 4096)
        self.now, self.cost = 0.0, cost

    def eval(self, ids: Sequence[int], *, all_logits: bool = False) -> Any:
        self.now += 1.0 + self.cost * (len(ids) - 1)
        return super().eval(ids)

    def verify(self, ids: Sequence[int]) -> Any:
        self.now += self.cost * (len(ids) - 1) - (len(ids) - 1)
        return super().verify(ids)


@pytest.mark.parametrize(("cost", "least_speed", "most_speed"), [(0.01, 5.0, 8.0), (0.5, 1.2, 2.0), (2.0, 0.95, 1.0)])
def test_guesses_are_made_where_they_pay(
    cost: float, least_speed: float, most_speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"one two three, four five six, " * 40
    session = TimedSession(FakeEngine(lambda ids: text[len(ids) - 1]), cost)
    session.ids = [BOS]
    monkeypatch.setattr(PassTimes, "relative", RELATIVE)
    monkeypatch.setattr("airrun.generation.speculate.time.perf_counter", lambda: session.now)
    speculator = Speculator(session, [BOS])  # type: ignore[arg-type]
    for token in text[:900]:
        speculator.eval(token, 1000)
    assert least_speed < 900 / session.now <= most_speed


@pytest.mark.parametrize("cost", [0.0, 0.3, 2.0])
def test_text_that_does_not_repeat_is_as_fast_as_without(cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random letters, of which pairs occur again and again, but not what follows them."""
    rng = random.Random(1)
    session = TimedSession(NoisyEngine(), cost)
    session.ids = [BOS]
    monkeypatch.setattr(PassTimes, "relative", RELATIVE)
    monkeypatch.setattr("airrun.generation.speculate.time.perf_counter", lambda: session.now)
    speculator = Speculator(session, [BOS])  # type: ignore[arg-type]
    for _ in range(2000):
        speculator.eval(rng.randrange(16), 1000)
    assert 2000 / session.now > 0.97
