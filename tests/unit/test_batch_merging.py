"""Merging many symbols at once against merging them one by one."""

from __future__ import annotations

import random
from itertools import product

import pytest
from test_tokenizer_spec import bpe_metadata, make, spm_metadata

from airrun.tokenizer.batch_merging import merge_words
from airrun.tokenizer.byte_alphabet import CHAR_OF_BYTE
from airrun.tokenizer.merging import merge_symbols
from airrun.tokenizer.pairs import Pairs, TablePairs, TextPairs


def trained(rng: random.Random, n_merges: int, letters: str = "abc") -> Pairs:
    """Merges as training makes them: of tokens that exist, so that ranks rise."""
    tokens, merges = list(letters), []
    while len(merges) < n_merges:
        left, right = rng.choice(tokens), rng.choice(tokens)
        if left + right not in tokens and len(left + right) < 40:
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    return pairs_of(merges, tokens)


def pairs_of(merges: list[str], tokens: list[str]) -> Pairs:
    spelled = [*CHAR_OF_BYTE, *(t for t in tokens if len(t) > 1)]
    metadata = bpe_metadata(
        tokens=spelled, token_type=[1] * len(spelled), merges=merges, bos_token_id=0, eos_token_id=0
    )
    return TablePairs(make(metadata).spec.merges)


def words(rng: random.Random, letters: str = "abc") -> list[list[int]]:
    texts = ["".join(rng.choices(letters, k=rng.choice([1, 2, 100, 128, 129, 700]))) for _ in range(8)]
    texts += ["a" * 1000, "ab" * 501, "".join(rng.choices(letters, k=7)) * 150, "a" * 640 + "b" + "a" * 640]
    return [[ord(c) for c in text] for text in texts]


@pytest.mark.parametrize("seed", range(12))
def test_trained_merges(seed: int) -> None:
    rng = random.Random(seed)
    pairs = trained(rng, rng.choice([3, 10, 40]))
    found = merge_words(words(rng), pairs.many)
    rng.seed(seed)
    pairs = trained(rng, rng.choice([3, 10, 40]))
    expected = [merge_symbols(word, pairs.one) for word in words(rng)]
    decided = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None]
    assert len(decided) >= 10
    assert all(a == b for a, b in decided)


@pytest.mark.parametrize("seed", range(12))
def test_merges_in_any_order(seed: int) -> None:
    """Later merges may have to go first: words are right or left undecided, and short ones always right."""
    rng = random.Random(seed)
    made = ["".join(p) for n in (2, 3, 4) for p in product("ab", repeat=n)]
    rng.shuffle(made)
    pairs = pairs_of([f"{t[:cut]} {t[cut:]}" for t in made for cut in (rng.randrange(1, len(t)),)], made)
    texts = words(rng, "ab")
    found = merge_words([list(word) for word in texts], pairs.many)
    for word, ids in zip(texts, found, strict=True):
        if len(word) <= 128 or ids is not None:
            assert ids == merge_symbols(list(word), pairs.one)


def test_pairs_by_text() -> None:
    texts = ["<unk>", "a", "b", "ab", "aba", "bb", "aa"]
    index = {text: i for i, text in enumerate(texts)}
    pairs = TextPairs(texts, index, [9, 8, 8, 1, 2, 1, 3])
    rng = random.Random(1)
    long = [[rng.choice([1, 2]) for _ in range(n)] for n in (5, 300, 3000)] + [[1] * 999]
    assert merge_words([list(word) for word in long], pairs.many) == [merge_symbols(list(w), pairs.one) for w in long]


@pytest.mark.parametrize("unit", ["a", "aab", "aaaabaab"])
def test_endless_words_take_the_fast_way(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = unit * (20_000 // len(unit))
    merges = ["a a", "aa aa", "b a", "aa b", "ba aa"]
    tokens = [*CHAR_OF_BYTE, *(merge.replace(" ", "") for merge in merges)]
    bpe = bpe_metadata(
        tokens=tokens, token_type=[1] * len(tokens), merges=merges, bos_token_id=0, eos_token_id=0, pre="gpt-2"
    )
    base = spm_metadata()
    n = len(base["tokenizer.ggml.tokens"])
    spm = spm_metadata(
        tokens=[*base["tokenizer.ggml.tokens"], "aa", "aaaa", "ba", "aab"],
        token_type=[*base["tokenizer.ggml.token_type"], 1, 1, 1, 1],
        scores=[*base["tokenizer.ggml.scores"][:n], -4.0, -5.0, -6.0, -7.0],
    )
    for metadata in (bpe, spm):
        with monkeypatch.context() as patch:
            patch.setattr("airrun.tokenizer.pairs.merge_symbols", None)
            fast = make(metadata).encode(text)
        with monkeypatch.context() as patch:
            patch.setattr("airrun.tokenizer.pairs._MANY_SYMBOLS", 1 << 40)
            assert make(metadata).encode(text) == fast
