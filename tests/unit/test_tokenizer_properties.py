"""Properties that hold for every text: round trips, streaming, merging against a naive reference."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer_spec import bpe_metadata, make, spm_metadata, texts

from airrun.tokenizer.byte_alphabet import CHAR_OF_BYTE
from airrun.tokenizer.pretokenizers import PRE_TOKENIZERS, find_pre_tokenizer

TEXT = st.text(max_size=80) | st.text("hel o<|im_end|>1234567'sé你\n\r\t", max_size=80)
BPE, SPM = make(bpe_metadata()), make(spm_metadata())


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_byte_level_bpe_keeps_every_byte(text: str) -> None:
    ids = BPE.encode(text, parse_special=False)
    assert b"".join(BPE.token_bytes(i) for i in ids) == text.encode()
    assert BPE.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(TEXT.filter(lambda t: "\u2581" not in t))
def test_spm_round_trip(text: str) -> None:
    assert SPM.decode(SPM.encode(text, parse_special=False)) == text


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 265), max_size=40), st.booleans(), st.booleans(), st.booleans())
def test_stream_equals_decode(ids: list[int], use_spm: bool, skip_special: bool, continuation: bool) -> None:
    tokenizer = SPM if use_spm else BPE
    stream = tokenizer.stream(skip_special, continuation)
    shown = [stream.push(i) for i in ids]
    assert "".join([*shown, stream.flush()]) == tokenizer.decode(ids, skip_special, continuation)


def test_stream_holds_back_unfinished_characters() -> None:
    stream = BPE.stream()
    assert [stream.push(b) for b in "a🦙".encode()] == ["a", "", "", "", "🦙"]
    assert [stream.push(0xF0), stream.flush(), stream.flush()] == ["", "\ufffd", ""]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_pre_tokenizers_lose_nothing(name: str) -> None:
    rng = random.Random(name)
    alphabet = (
        "aZ'sT0123456789 \t\r\n.,!/_-$+<\u00e9\u0301\u4f60\u3042\ud55c\u0e01\u0e31\u3000\u0085\u2167\U0001f680\x00"
    )
    for _ in range(50):
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 60)))
        words = find_pre_tokenizer(name).split(text)
        assert "".join(words) == text and all(words)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "Hello  world's 123\n\n x", ["Hello", " ", " world", "'s", " 123", "\n\n", " x"]),
        ("llama-bpe", "I'LL pay 12345\r\n\n ok", ["I", "'LL", " pay", " ", "123", "45", "\r\n\n", " ok"]),
        ("qwen2", "v2.10!\n", ["v", "2", ".", "1", "0", "!\n"]),
        ("smollm", "a12 34", ["a", "1", "2", " ", "3", "4"]),
        ("falcon", "12345 (ok)", ["123", "45", " ", "(", "ok", ")"]),
        ("deepseek-coder", "ab 你好 1", ["ab", " ", "你好", " ", "1"]),
        ("gpt-4o", "HTTPServer isn't", ["HTTPServer", " isn't"]),
        ("superbpe", "x1234567", ["x", "1", "234", "567"]),
        ("tiny_aya", "1234567 12", ["1", "234", "567", " ", "12"]),
        ("kimi-k2", "你好abc'S 1234", ["你好", "abc'S", " ", "123", "4"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ],
)
def test_pre_tokenizer_words(name: str, text: str, words: list[str]) -> None:
    assert find_pre_tokenizer(name).split(text) == words


def merge_naively(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    parts = list(word)
    while True:
        found = [(ranks[pair], i) for i in range(len(parts) - 1) if (pair := (parts[i], parts[i + 1])) in ranks]
        if not found:
            return parts
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abc", min_size=2, max_size=5), unique=True, max_size=30), st.randoms(use_true_random=False))
def test_merging_equals_the_naive_algorithm(made: list[str], rng: random.Random) -> None:
    """Merges in random order (later ones may have to go first), short words and long ones, which are cut."""
    pairs = [(t[:cut], t[cut:]) for t in made for cut in (rng.randrange(1, len(t)),)]
    spelled = sorted({*made, *(side for pair in pairs for side in pair)} - set(CHAR_OF_BYTE))
    tokens = [*CHAR_OF_BYTE, *spelled]
    tokenizer = make(
        bpe_metadata(
            tokens=tokens,
            token_type=[1] * len(tokens),
            merges=[f"{left} {right}" for left, right in pairs],
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    for length in (7, 40, 120):
        word = "".join(rng.choices("abcd", k=length))
        assert texts(tokenizer, tokenizer.encode(word)) == merge_naively(word, ranks)


def test_merges_through_text_that_is_no_token() -> None:
    """ "xy" is no token: it merges on to "xyz", and where it stays it is written by bytes."""
    tokens = [*CHAR_OF_BYTE, "xyz"]
    metadata = bpe_metadata(tokens=tokens, token_type=[1] * 257, merges=["x y", "xy z"], bos_token_id=0, eos_token_id=0)
    tokenizer = make(metadata)
    assert texts(tokenizer, tokenizer.encode("xyz")) == ["xyz"]
    assert texts(tokenizer, tokenizer.encode("xya")) == ["x", "y", "a"]


def test_odd_characters() -> None:
    assert BPE.decode(BPE.encode("a\x00b")) == "a\x00b"
    assert BPE.decode(BPE.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert BPE.decode(BPE.encode("\ud83e\udd99")) == "🦙"
    assert SPM.decode(SPM.encode("\ud800")) == "\ufffd"


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
@pytest.mark.parametrize("unit", ["hello wor, ab 12\n", "a", "7", " ", "你"])
def test_long_texts(tokenizer: object, unit: str) -> None:
    text = unit * (100_000 // len(unit))
    assert tokenizer.decode(tokenizer.encode(text)) == text  # type: ignore[attr-defined]
