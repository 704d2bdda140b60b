"""Sampling against a naive float64 transcription of each stage, and the drawn distribution by chi-square."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from airrun.errors import AirError, UsageError
from airrun.generation.sampling import Sampler, SamplerConfig


def reference(logits: NDArray[np.float32], config: SamplerConfig, window: list[int]) -> dict[int, float]:
    """Probabilities by the definition of each stage, on plain Python lists of (logit, id), best first."""
    row = [float(x) for x in logits]
    for token, bias in config.logit_bias.items():
        row[token] += bias
    recent = window if config.repeat_last_n == -1 else window[len(window) - min(config.repeat_last_n, len(window)) :]
    for token, count in Counter(recent).items():
        row[token] = row[token] * config.repeat_penalty if row[token] <= 0 else row[token] / config.repeat_penalty
        row[token] -= count * config.frequency_penalty + config.presence_penalty
    ranked = sorted(((-x, i) for i, x in enumerate(row)))
    if config.top_k > 0:
        ranked = ranked[: config.top_k]
    if config.top_p < 1.0:
        weights = [math.exp(ranked[0][0] - x) for x, _ in ranked]
        total, reached = sum(weights), 0.0
        for n, weight in enumerate(weights):
            reached += weight / total
            if reached >= config.top_p:
                ranked = ranked[: n + 1]
                break
    if config.min_p > 0.0:
        ranked = [(x, i) for x, i in ranked if math.exp(ranked[0][0] - x) >= config.min_p]
    if config.temperature <= 0:
        return {ranked[0][1]: 1.0}
    weights = [math.exp((ranked[0][0] - x) / config.temperature) for x, _ in ranked]
    return {i: w / sum(weights) for (_, i), w in zip(ranked, weights, strict=True) if w > 0}


ALL_OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
STAGES = {
    "off": {},
    "top_k": {"top_k": 7},
    "top_k over the vocabulary": {"top_k": 10_000},
    "top_p": {"top_p": 0.7},
    "top_p 0 keeps the best": {"top_p": 0.0},
    "min_p": {"min_p": 0.1},
    "min_p 1 keeps the best": {"min_p": 1.0},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 3.0},
    "greedy": {"temperature": 0.0},
    "negative temperature is greedy": {"temperature": -1.0},
    "repeat": {"repeat_penalty": 1.7},
    "repeat below one": {"repeat_penalty": 0.6},
    "repeat, short window": {"repeat_penalty": 1.7, "repeat_last_n": 3},
    "repeat, whole context": {"repeat_penalty": 1.7, "repeat_last_n": -1},
    "repeat, no window": {"repeat_penalty": 1.7, "repeat_last_n": 0},
    "frequency": {"frequency_penalty": 0.8},
    "presence": {"presence_penalty": 0.8},
    "negative presence": {"presence_penalty": -0.8},
    "bias": {"logit_bias": {3: 4.0, 5: -2.0, 9: -math.inf}},
    "bias and greedy": {"logit_bias": {299: 50.0}, "temperature": 0.0},
    "everything": {
        "temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "repeat_penalty": 1.1,
        "frequency_penalty": 0.2, "presence_penalty": 0.1, "logit_bias": {1: 1.0}, "repeat_last_n": 20,
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_agrees_with_its_definition(stage: str) -> None:
    config = SamplerConfig(**{**ALL_OFF, **STAGES[stage]})
    random = np.random.default_rng(11)
    for n_vocab in (300, 5000):
        logits = (random.standard_normal(n_vocab) * 3).astype(np.float32)
        untouched = logits.copy()
        window = [int(t) for t in random.integers(0, 40, 90)]
        sampler = Sampler(config, n_vocab)
        sampler.begin(window[:50])
        for token in window[50:]:
            sampler.accept(token)
        ids, probabilities = sampler.candidates(logits)
        expected = reference(logits, config, window)
        assert set(ids.tolist()) == set(expected)
        np.testing.assert_allclose(probabilities, [expected[i] for i in ids.tolist()], rtol=2e-5)
        np.testing.assert_array_equal(logits, untouched)


@settings(max_examples=80, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=400),
    top_k=st.integers(-1, 410),
)
def test_top_k_with_equal_logits_keeps_the_lowest_ids(logits: list[float], top_k: int) -> None:
    config = SamplerConfig(**{**ALL_OFF, "top_k": top_k})
    row = np.array(logits, np.float32)
    ids, _ = Sampler(config, len(row)).candidates(row)
    assert set(ids.tolist()) == set(reference(row, config, []))


def test_drawn_tokens_follow_the_distribution() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))
    config = SamplerConfig(**{**ALL_OFF, "temperature": 0.8, "seed": 5})
    sampler = Sampler(config, 5)
    n = 20_000
    drawn = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=5)
    expected = np.array([reference(logits, config, [])[i] for i in range(5)]) * n
    assert ((drawn - expected) ** 2 / expected).sum() < 18.47  # 0.999 quantile of chi-square with 4 degrees


def test_same_seed_same_ids_and_another_seed_other_ids() -> None:
    logits = np.zeros((30, 1000), np.float32)

    def ids(seed: int | None) -> list[int]:
        sampler = Sampler(SamplerConfig(seed=seed), 1000)
        return [sampler.sample(row) for row in logits]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert ids(None) != ids(None)
    told = Sampler(SamplerConfig(), 1000).seed
    assert ids(told) == ids(told)


def test_forbidden_and_excluded_tokens_never_appear() -> None:
    logits = np.array([5.0, 4.0, -math.inf, 3.0], np.float32)
    assert Sampler(SamplerConfig(temperature=0.0), 4, forbidden=[0]).sample(logits) == 1
    sampler = Sampler(SamplerConfig(**{**ALL_OFF, "temperature": 100.0, "seed": 0}), 4, forbidden=[0])
    assert {sampler.sample(logits) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, math.nan, 2.0], "nan for token 1"), ([1.0, math.inf, 2.0], "inf for token 1"), ([-math.inf] * 3, "-inf")],
)
def test_unusable_logits_are_an_error(values: list[float], message: str, temperature: float) -> None:
    with pytest.raises(AirError, match=message):
        Sampler(SamplerConfig(temperature=temperature), 3).sample(np.array(values, np.float32))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": math.nan}, {"top_p": 1.5}, {"top_p": -0.1}, {"min_p": 2.0}, {"min_p": math.nan},
        {"repeat_penalty": 0.0}, {"repeat_last_n": -2}, {"frequency_penalty": math.inf}, {"seed": -1},
        {"logit_bias": {-1: 0.0}}, {"logit_bias": {1: math.nan}}, {"logit_bias": {1: math.inf}},
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        SamplerConfig(**bad)  # type: ignore[arg-type]


def test_bias_beyond_the_vocabulary_is_named() -> None:
    with pytest.raises(UsageError, match="token 10, but the vocabulary ends at 9"):
        Sampler(SamplerConfig(logit_bias={10: 1.0}), 10)


def test_a_very_low_temperature_is_greedy_without_warnings() -> None:
    logits = np.array([1.0, 2.0, 1.999], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert Sampler(SamplerConfig(temperature=1e-310), 3).sample(logits) == 1


@pytest.mark.parametrize(("config", "n_vocab", "limit"), [({"temperature": 0.0}, 49_152, 2e-5), ({}, 128_256, 1e-3)])
def test_cost_per_token(config: dict[str, float], n_vocab: int, limit: float) -> None:
    logits = np.random.default_rng(0).standard_normal(n_vocab).astype(np.float32)
    sampler = Sampler(SamplerConfig(**config), n_vocab)  # type: ignore[arg-type]
    best = math.inf
    for _ in range(200):
        start = time.perf_counter()
        sampler.sample(logits)
        best = min(best, time.perf_counter() - start)
    assert best < limit


@pytest.mark.parametrize("spread", [0.0, 0.05, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1 - 1e-9])
def test_top_p_over_a_large_vocabulary(spread: float, top_p: float) -> None:
    """However many tokens it takes to reach the share, ties included."""
    row = np.round(np.random.default_rng(4).standard_normal(40_000) * spread, 2).astype(np.float32)
    ids, _ = Sampler(SamplerConfig(**{**ALL_OFF, "top_p": top_p}), len(row)).candidates(row)
    order = np.argsort(-row, kind="stable")
    weights = np.exp(row[order].astype(np.float64) - row.max())
    kept = int(np.searchsorted(weights.cumsum(), top_p * weights.sum())) + 1
    np.testing.assert_array_equal(ids, order[:kept])
