"""Draws from the leaders of a row are those from the whole row, token by token, with the same random numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from block_samples import fresh_rng
from leaders_of import Floats, leaders_of

from airrun.errors import AirError
from airrun.generation.leaders import Leaders
from airrun.generation.sampling import Sampler, SamplerConfig

N_VOCAB, PARTS, BEST = 5000, 64, 16
OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 0.9}
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "top_k": {**OFF, "top_k": 100},
    "top_k and top_p": {**OFF, "top_k": 30, "top_p": 0.7},
    "top_p over the vocabulary": {**OFF, "top_p": 0.9},
    "top_p and min_p": {**OFF, "top_p": 0.999, "min_p": 0.02},
    "top_p 0": {**OFF, "top_p": 0.0},
    "min_p": {**OFF, "min_p": 0.05},
    "hot": {"temperature": 5.0},
    "nearly greedy": {"temperature": 1e-3},
    "penalties": {"repeat_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.4},
    "penalties over the vocabulary": {**OFF, "top_p": 0.8, "repeat_penalty": 1.5, "repeat_last_n": -1},
    "rewards": {"presence_penalty": -6.0, "frequency_penalty": -0.5},
    "bias": {"logit_bias": {4321: 30.0, 7: -math.inf, 11: -3.0}},
    "bias, top_p": {**OFF, "top_p": 0.9, "logit_bias": {4321: 9.0, 7: -math.inf}},
    "greedy with penalties": {"temperature": 0.0, "repeat_penalty": 2.0, "logit_bias": {17: 8.0}},
    "everything": {"repeat_penalty": 1.1, "frequency_penalty": 0.1, "logit_bias": {3: 1.0}, "temperature": 1.2},
}


def rows(peaked: float) -> list[Floats]:
    """Rows like a model's, one with many equal logits, one that is nearly flat, and one that excludes most tokens."""
    rng = fresh_rng()
    plain = [(rng.standard_normal(N_VOCAB) * peaked).astype(np.float32) for _ in range(25)]
    some = (rng.standard_normal(N_VOCAB) * 3).astype(np.float32)
    some[rng.random(N_VOCAB) < 0.98] = -np.inf
    return [
        *plain, np.round(plain[0] * 2) / 2, rng.integers(0, 2, N_VOCAB).astype(np.float32), plain[1] / 1000, some,
    ]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("peaked", [1.5, 4.0])
def test_same_tokens_as_from_the_whole_row(name: str, peaked: float) -> None:
    config = SamplerConfig(**CONFIGS[name], seed=3)
    whole, few = Sampler(config, N_VOCAB, forbidden=[9]), Sampler(config, N_VOCAB, forbidden=[9])
    assert few.narrows
    prompt = fresh_rng().integers(0, N_VOCAB, 100).tolist()
    whole.begin(prompt)
    few.begin(prompt)
    fetched = 0
    for row in rows(peaked):
        leaders = leaders_of(row, PARTS, BEST, watched=few.watched)

        def fetch(row: Floats = row) -> Floats:
            nonlocal fetched
            fetched += 1
            return row

        want = whole.sample(row)
        assert few.sample(leaders._replace(row=fetch)) == want
        whole.accept(want)
        few.accept(want)
    # the odd rows may need all of it; rows like a model's hardly ever do
    if peaked == 4.0:
        assert fetched <= 4


def test_candidates_are_the_same_to_the_bit() -> None:
    """Not only the draw: the ids and their weights."""
    for name in ("defaults", "penalties", "top_p over the vocabulary", "min_p"):
        sampler = Sampler(SamplerConfig(**CONFIGS[name]), N_VOCAB)
        sampler.begin(range(50))
        row = rows(4.0)[0]
        found = sampler._lead(leaders_of(row, PARTS, BEST, watched=sampler.watched))
        assert found is not None
        ids, weights = sampler._weigh(row)
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_array_equal(found[1], weights)


def test_a_flat_row_is_fetched_for_top_p() -> None:
    row = np.zeros(N_VOCAB, np.float32)
    row[::2] = 0.5
    sampler = Sampler(SamplerConfig(**CONFIGS["top_p over the vocabulary"]), N_VOCAB)
    assert sampler._lead(leaders_of(row, PARTS, BEST)) is None


def test_doubt_about_the_mass_fetches_the_row() -> None:
    """Where a rounding error of the device could move the edge of top-p, the row decides."""
    row = np.full(64, -30.0, np.float32)
    row[:4] = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    leaders = leaders_of(row, 4, 8, chunk=1)
    share = math.exp(float(row[0])) / np.exp(row.astype(np.float64)).sum()
    for distance, decided in ((1e-6, False), (1e-4, True)):
        for top_p in (share - distance, share + distance):
            sampler = Sampler(SamplerConfig(**{**OFF, "top_p": top_p}), 64)
            found = sampler._lead(leaders)
            assert (found is not None) == decided
            if found is not None:
                np.testing.assert_array_equal(found[0], sampler._weigh(row)[0])


def test_without_a_cut_the_leaders_are_not_asked() -> None:
    assert not Sampler(SamplerConfig(**OFF), N_VOCAB).narrows
    assert not Sampler(SamplerConfig(**{**OFF, "top_k": N_VOCAB}), N_VOCAB).narrows
    assert Sampler(SamplerConfig(**{**OFF, "temperature": 0.0}), N_VOCAB).narrows


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unusable_logits_are_the_same_error(bad: float, temperature: float) -> None:
    row = fresh_rng().standard_normal(300).astype(np.float32)
    row[77 if bad != -math.inf else slice(None)] = bad
    leaders: Leaders = leaders_of(np.nan_to_num(row, nan=0.0, posinf=np.inf, neginf=-np.inf), 4, 16)
    if bad != -math.inf:
        leaders = replace_sums(leaders)
    sampler = Sampler(replace(SamplerConfig(), temperature=temperature, logit_bias={5: 1.0}), 300)
    leaders = leaders._replace(watched=sampler.watched, seen=row[sampler.watched], row=lambda: row)
    with pytest.raises(AirError, match="nan for token 77|inf for token 77|every logit is -inf"):
        sampler.sample(leaders)


def replace_sums(leaders: Leaders) -> Leaders:
    """The sum over a part with a NaN or an infinity is a NaN, on the device too."""
    sums = leaders.sums.copy()
    sums[77 // 8 % 4] = np.nan
    return leaders._replace(sums=sums)


def test_a_bias_far_from_the_rest() -> None:
    """Forbidding what had all the probability leaves no use for the sum over the row: it is fetched."""
    row = fresh_rng().standard_normal(N_VOCAB).astype(np.float32)
    row[5] = 2000.0
    sampler = Sampler(SamplerConfig(**{**OFF, "top_p": 0.9, "min_p": 0.01, "logit_bias": {5: -math.inf}}), N_VOCAB)
    assert sampler._lead(leaders_of(row, PARTS, BEST, watched=sampler.watched)) is None
