"""The generation loop: ends, stop strings, context, prefix reuse, and what it costs per token."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_engine import BOS, EOS, N_VOCAB, FakeEngine, NoisyEngine, continuing
from hypothesis import given
from hypothesis import strategies as st

from airrun.errors import UsageError
from airrun.generation.generate import (
    GenerateConfig,
    GenerateResult,
    TextStream,
    generate_text,
    generate_tokens,
    make_sampler,
    stream_text,
)
from airrun.generation.stopping import StopFilter

PROMPT = [BOS, *b"Hello"]


def run(engine: Any, ids: list[int], **config: Any) -> tuple[list[int], GenerateResult]:
    result = GenerateResult()
    config.setdefault("temperature", 0.0)
    tokens = list(generate_tokens(engine.session, ids, GenerateConfig(**config), result=result))
    assert tokens == result.tokens
    return tokens, result


def test_ends_at_the_end_of_generation() -> None:
    engine = FakeEngine(continuing(PROMPT, " world"))
    tokens, result = run(engine, PROMPT)
    assert bytes(tokens) == b" world"
    assert (result.finish_reason, result.prompt_tokens, result.completion_tokens) == ("eos", 6, 6)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_ends_after_max_tokens_without_a_useless_evaluation(n: int) -> None:
    engine = FakeEngine(continuing(PROMPT, " world"))
    tokens, result = run(engine, PROMPT, max_tokens=n)
    assert bytes(tokens) == b" world"[:n]
    assert result.finish_reason == "length"
    assert engine.session.evaluated == len(PROMPT) + max(n - 1, 0)


def test_ends_when_the_context_is_full() -> None:
    engine = FakeEngine(continuing(PROMPT, "x" * 100), n_ctx=10)
    tokens, result = run(engine, PROMPT)
    assert result.finish_reason == "context"
    assert engine.session.n_past == 10
    assert len(tokens) == 5  # four that fill the context, and one more that it predicts


def test_a_prompt_may_fill_the_context_but_not_exceed_it() -> None:
    engine = FakeEngine(continuing(PROMPT, "x" * 100), n_ctx=len(PROMPT))
    assert run(engine, PROMPT)[1].finish_reason == "context"
    with pytest.raises(UsageError, match="7 tokens, but the context holds 6"):
        run(engine, [*PROMPT, 33])


def test_ignore_eos_goes_on_with_the_next_best_token() -> None:
    engine = FakeEngine(continuing(PROMPT, "ab"))
    tokens, result = run(engine, PROMPT, ignore_eos=True, max_tokens=5)
    assert tokens[:2] == list(b"ab")
    assert EOS not in tokens
    assert result.finish_reason == "length"


def test_the_empty_prompt_is_bos_or_an_error() -> None:
    assert generate_text(FakeEngine(continuing([BOS], "ok")).session, "", GenerateConfig(temperature=0.0)) == "ok"
    with pytest.raises(UsageError, match="empty"):
        generate_text(FakeEngine(continuing([], "ok"), bos=False).session, "")


def test_a_common_prefix_is_reused_and_changes_nothing() -> None:
    texts = [[*PROMPT], [*PROMPT, *b" you"], [*PROMPT, *b" there"], [*PROMPT], [BOS, 65]]
    shared = NoisyEngine()
    for ids in texts:
        fresh = NoisyEngine()
        before = list(shared.session.ids)
        common = max(n for n in range(len(ids) + 1) if before[:n] == ids[:n])
        tokens, result = run(shared, ids, max_tokens=5)
        assert tokens == run(fresh, ids, max_tokens=5)[0]
        assert result.reused_tokens == min(common, len(ids) - 1)
        assert shared.session.ids == ids + tokens[:-1]


def test_same_seed_same_text_and_one_sampler_goes_on() -> None:
    def text(seed: int) -> list[int]:
        return run(NoisyEngine(), PROMPT, temperature=1.0, seed=seed, max_tokens=20)[0]

    assert text(3) == text(3)
    assert text(3) != text(4)
    engine = NoisyEngine()
    config = GenerateConfig(temperature=1.0, seed=3, max_tokens=20)
    sampler = make_sampler(engine, config)
    first = list(generate_tokens(engine.session, PROMPT, config, sampler=sampler))
    second = list(generate_tokens(engine.session, PROMPT, config, sampler=sampler))
    assert first == text(3)
    assert second != first
    assert run(engine, PROMPT, temperature=1.0, max_tokens=1)[1].seed != 3


def test_penalties_see_the_prompt() -> None:
    engine = FakeEngine(lambda ids: 65)
    assert run(engine, PROMPT, max_tokens=2)[0] == [65, 65]
    assert run(engine, [BOS, 65], max_tokens=1, presence_penalty=40.0)[0] != [65]


def test_cancel_ends_decoding_and_long_prompts() -> None:
    engine = FakeEngine(lambda ids: 65)
    asked = iter([False, False, True])
    stream = TextStream(engine.session, PROMPT, GenerateConfig(), cancel=lambda: next(asked))
    assert "".join(stream) == "A"  # asked before the prompt, before the first token, before the second
    assert stream.result.finish_reason == "cancelled"
    asked = iter([False, False, True])
    stream = TextStream(engine.session, [66] * 3000, GenerateConfig(), cancel=lambda: next(asked))
    assert "".join(stream) == ""
    assert stream.result.finish_reason == "cancelled"
    assert 0 < engine.session.n_past < 3000


TEXT = "one two — three four"


@pytest.mark.parametrize(
    ("stop", "expected", "reason"),
    [
        ((), TEXT, "eos"),
        ("two", "one ", "stop"),
        (("three", "tw"), "one ", "stop"),
        (("—",), "one two ", "stop"),
        (("four!",), TEXT, "eos"),
        (("r", "four"), "one two — th", "stop"),
        ((TEXT,), "", "stop"),
    ],
)
def test_stop_strings(stop: Any, expected: str, reason: str) -> None:
    stream = stream_text(FakeEngine(continuing(PROMPT, TEXT)).session, PROMPT, GenerateConfig(stop=stop, temperature=0))
    pieces = list(stream)
    assert "".join(pieces) == expected
    assert "" not in pieces
    assert stream.result.finish_reason == reason
    assert stream.result.decode_seconds > 0


def test_text_held_back_for_a_stop_is_given_out_at_the_end() -> None:
    stream = stream_text(
        FakeEngine(continuing(PROMPT, "abcab")).session, PROMPT, GenerateConfig(stop="abd", max_tokens=5, temperature=0)
    )
    assert "".join(stream) == "abcab"
    assert stream.result.finish_reason == "length"


def test_a_character_cut_by_the_limit_is_replaced_not_lost() -> None:
    session = FakeEngine(continuing(PROMPT, "a—")).session
    assert generate_text(session, PROMPT, GenerateConfig(max_tokens=3, temperature=0.0)) == "a\ufffd"


@given(text=st.text("ab", max_size=30), stop=st.text("ab", min_size=1, max_size=5), cuts=st.lists(st.integers(0, 30)))
def test_stop_filter_against_split(text: str, stop: str, cuts: list[int]) -> None:
    bounds = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    stops = StopFilter([stop])
    out = "".join(stops.push(text[a:b]) for a, b in pairwise(bounds)) + stops.flush()
    assert out == text.split(stop)[0]
    assert stops.hit == (stop if stop in text else None)


@given(text=st.text("ab", max_size=30), stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1))
def test_stop_filter_with_several(text: str, stops: list[str]) -> None:
    found = StopFilter(stops)
    out = "".join(found.push(c) for c in text) + found.flush()
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    assert out == text if found.hit is None else text[len(out) :].startswith(found.hit)


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"max_tokens": -2}, "max_tokens"), ({"stop": ["a", ""]}, "empty string"), ({"top_p": 7.0}, "top_p")],
)
def test_bad_settings_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GenerateConfig(**bad)


def test_cost_of_the_loop_per_token() -> None:
    row = np.zeros((1, N_VOCAB), np.float32)
    tokenizer = SimpleNamespace(spec=SimpleNamespace(eog_ids={EOS}))
    session: Any = SimpleNamespace(
        engine=SimpleNamespace(tokenizer=tokenizer, n_vocab=N_VOCAB, chooses=False), n_ctx=10**6, n_past=1, ids=[],
        eval=lambda ids: row, truncate=lambda n: None,
        keepable=lambda n: n,
    )  # fmt: skip
    best = float("inf")
    for _ in range(5):
        result = GenerateResult()
        start = time.perf_counter()
        for _token in generate_tokens(session, [1], GenerateConfig(max_tokens=2000, temperature=0.0), result=result):
            pass
        best = min(best, (time.perf_counter() - start) / 2000)
    assert best < 30e-6
