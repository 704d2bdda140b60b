"""Several texts at once are the texts that each would be alone."""

from __future__ import annotations

import pytest
from streamed_model import Open

from airrun.engine import Engine
from airrun.errors import UsageError
from airrun.generation.generate import GenerateConfig, TextStream
from airrun.generation.parallel import ParallelStream, generate_many

PROMPTS = ["abba", "b", "a long prompt that takes more than one batch of the plan that is used here", "ab"]


@pytest.mark.parametrize(
    "config",
    [
        GenerateConfig(max_tokens=12, temperature=0.0),
        GenerateConfig(max_tokens=12, temperature=1.5, seed=5, repeat_penalty=1.3),
        GenerateConfig(max_tokens=40, temperature=1.5, seed=7, stop=("a", "1"), ignore_eos=True),
    ],
)
def test_texts_do_not_depend_on_each_other(resident: Engine, open_streamed: Open, config: GenerateConfig) -> None:
    engine = open_streamed(0.2, parallel=len(PROMPTS))
    found = generate_many(engine, PROMPTS, config)
    for i, prompt in enumerate(PROMPTS):
        seeded = config if config.seed is None else GenerateConfig(**{**vars(config), "seed": config.seed + i})
        session = resident.new_session()
        stream = TextStream(session, resident.tokenize(prompt), seeded)
        assert found[i] == "".join(stream)
        session.reset()
    # all room in the cache was given back
    assert generate_many(engine, PROMPTS, config) == found


def test_every_text_ends_for_its_own_reason(open_streamed: Open) -> None:
    engine = open_streamed(1.5, parallel=2, ctx_size=64)
    stream = ParallelStream(engine, [[5] * 60, [7] * 3], GenerateConfig(max_tokens=9, ignore_eos=True, seed=1))
    list(stream)
    assert [result.finish_reason for result in stream.results] == ["context", "length"]
    assert [result.completion_tokens for result in stream.results] == [5, 9]
    assert [result.prompt_tokens for result in stream.results] == [60, 3]


def test_more_texts_than_sessions_are_refused(open_streamed: Open) -> None:
    engine = open_streamed(1.5, parallel=2, ctx_size=32)
    with pytest.raises(UsageError, match="3 texts at once, but the engine was opened for 2"):
        ParallelStream(engine, ["a", "b", "c"], GenerateConfig())
    with pytest.raises(UsageError, match="the prompt has 33 tokens, but the context holds 32"):
        ParallelStream(engine, ["a", [5] * 33], GenerateConfig())
    assert engine.generate_many(["a", "b"], GenerateConfig(max_tokens=1, ignore_eos=True, temperature=0.0))
