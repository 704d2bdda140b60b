"""The kinds of tokenizers beside BPE and SPM, on vocabularies small enough to work out by hand; damaged ones."""

from __future__ import annotations

import struct
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tokenizer_spec import bpe_metadata, make, texts

from airrun.errors import AirError, ModelFileError
from airrun.tokenizer import Tokenizer
from airrun.tokenizer.charsmap import Charsmap
from airrun.tokenizer.rwkv import unescape

BYTES = [f"<0x{b:02X}>" for b in range(256)]


def charsmap(rule: bytes, replacement: bytes) -> list[int]:
    """A character map of one rule; every node has its child in a block of its own."""
    nodes = [0] * (256 * (len(rule) + 2))
    at = 0
    for depth, byte in enumerate(rule, start=1):
        nodes[at] |= (at ^ 256 * depth) << 10
        at = 256 * depth ^ byte
        nodes[at] = byte
    end = 256 * (len(rule) + 1)
    nodes[at] |= (at ^ end) << 10 | 1 << 8
    nodes[end] = 1 << 31
    return list(struct.pack(f"<I{len(nodes)}I", 4 * len(nodes), *nodes) + replacement + b"\0")


def metadata(model: str, tokens: list[Any], types: dict[int, int], **more: Any) -> dict[str, Any]:
    values = {"model": model, "tokens": tokens, "token_type": [types.get(i, 1) for i in range(len(tokens))]} | more
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def wpm(**changes: Any) -> dict[str, Any]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "aff", "able", "▁u", "▁,", "▁你", "▁été", "▁ete", "▁ABLE"]
    ids = {"unknown_token_id": 1, "bos_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0}
    return metadata("bert", tokens, {0: 3, 1: 2, 2: 3, 3: 3}, **(ids | changes))


def ugm(**changes: Any) -> dict[str, Any]:
    tokens = ["<pad>", "</s>", "<unk>", "▁", "▁a", "b", "ab", "▁ab", "c", "bc", "<x>", "▁abc"]
    scores = [0, 0, 0, -2, -3, -2, -5, -6, -1.5, -2.5, -9, -20]
    flags = {"add_space_prefix": True, "remove_extra_whitespaces": True}
    types = {0: 3, 1: 3, 2: 2, 10: 4, 11: 5}
    return metadata("t5", tokens, types, **({"scores": scores} | flags | changes))


def rwkv(**changes: Any) -> dict[str, Any]:
    tokens = ["<s>", *(rf"\x{b:02x}" for b in range(256)), "ab", "abcd", "\\n\\n", "\\\\n", r"\xe4\xbd"]
    return metadata("rwkv", tokens, {0: 3}, **({"bos_token_id": 0, "eos_token_id": 0} | changes))


def plamo2(**changes: Any) -> dict[str, Any]:
    tokens = ["<|plamo:unk|>", *BYTES, "a", "b", "ab", "abc", "c", "bc", "你"]
    scores = [0.0] * 257 + [-3.0, -3.0, -4.0, -9.0, -3.0, -4.0, -5.0]
    types = {0: 2} | dict.fromkeys(range(1, 257), 6)
    return metadata("plamo2", tokens, types, **({"scores": scores} | changes))


def dna(**changes: Any) -> dict[str, Any]:
    base = bpe_metadata()
    tokens = [*base["tokenizer.ggml.tokens"], "<dna>", "</dna>", "<oov>", "ACGTAC\ue000", "AAAAAA\ue000"]
    types = [*base["tokenizer.ggml.token_type"], 1, 1, 1, 1, 1]
    return bpe_metadata(model="hybriddna", tokens=tokens, token_type=types, **changes)


KINDS = {"bert": wpm, "t5": ugm, "rwkv": rwkv, "plamo2": plamo2, "hybriddna": dna}
OPENED: dict[str, Tokenizer] = {}


def setup_module() -> None:
    OPENED.update({kind: make(small()) for kind, small in KINDS.items()})


def encoded(data: dict[str, Any], text: str, **options: bool) -> list[str]:
    tokenizer = make(data)
    return texts(tokenizer, tokenizer.encode(text, **options))


def test_wpm_takes_the_longest_token_and_gives_up_on_words() -> None:
    assert encoded(wpm(), "UNAFFable, zz 你,") == "[CLS] ▁un aff able ▁, [UNK] ▁你 ▁, [SEP]".split(" ")
    assert encoded(wpm(), "  \n\u200d\ufffd\x00 ", add_special=False) == []
    assert encoded(wpm(), "[SEP]Été\u00a0été", add_special=False) == ["[SEP]", "▁ete", "▁ete"]
    assert encoded(wpm(), "[SEP]", add_special=False, parse_special=False) == ["[UNK]"] * 3
    cased = wpm() | {"tokenizer.ggml.normalizer.lowercase": False}
    assert encoded(cased, "ABLE été able", add_special=False) == ["▁ABLE", "▁été", "[UNK]"]
    tokenizer = make(wpm())
    assert tokenizer.decode(tokenizer.encode("unaffable, 你")) == "unaffable , 你"


def test_ugm_maximizes_the_score() -> None:
    # "▁a" + "bc" = -5.5 beats "▁ab" + "c" = -7.5 and "▁abc" = -20
    assert encoded(ugm(), " abc  ab") == ["▁a", "bc", "▁a", "b", "</s>"]
    assert encoded(ugm(), "zzz c", add_special=False) == ["▁", "<unk>", "▁", "c"]
    assert encoded(ugm(), "b<x>c</s>", add_special=False) == ["▁", "b", "<x>", "▁", "c", "</s>"]
    plain = ugm(add_space_prefix=False, remove_extra_whitespaces=False, add_eos_token=False)
    assert encoded(plain, "b  c") == ["b", "▁", "▁", "c"]
    assert encoded(plain | {"tokenizer.ggml.add_space_prefix": True}, " b") == ["▁", "▁", "b"]
    assert make(ugm()).decode(make(ugm()).encode("abc ab c")) == "abc ab c"


def test_ugm_rewrites_the_text_first() -> None:
    mapped = ugm(precompiled_charsmap=charsmap("é\u0301".encode(), b"a"))
    assert encoded(mapped, "é\u0301bc", add_special=False) == ["▁a", "bc"]
    assert encoded(mapped, "ébc", add_special=False) == ["▁", "<unk>", "bc"]
    spaces = ugm(precompiled_charsmap=[v - 256 * (v > 127) for v in charsmap(b"zb", b"  ")])  # int8 in some files
    assert encoded(spaces, "czbzc", add_special=False) == ["▁", "c", "▁", "<unk>", "c"]


def test_rwkv_takes_the_longest_bytes() -> None:
    assert encoded(rwkv(), "abcabcd") == ["ab", r"\x63", "abcd"]
    assert encoded(rwkv(), "\n\n\\n<s>") == ["\\n\\n", "\\\\n", "<s>"]
    assert encoded(rwkv(), "你") == [r"\xe4\xbd", r"\xa0"]
    assert make(rwkv()).decode(make(rwkv()).encode("你\n\n\\na")) == "你\n\n\\na"
    with pytest.raises(ModelFileError, match="no token for byte 0x62"):
        make(metadata("rwkv", ["<s>", "a"], {0: 3})).encode("ab")


def test_rwkv_escapes() -> None:
    assert unescape(rb"\t\n\r\x00\xFFa\\x41\'") == b"\t\n\r\x00\xffa\\x41'"
    assert unescape("é\\".encode()) == "é\\".encode()
    for broken in (rb"\x", rb"\x1", rb"\xzz", rb"\x+1"):
        with pytest.raises(ModelFileError, match="broken escape"):
            unescape(broken)


def test_plamo2_maximizes_the_score_from_the_end() -> None:
    # "a" + "bc" and "ab" + "c" are equal: the longer one first
    assert encoded(plamo2(), "abc") == ["ab", "c"]
    assert encoded(plamo2(), "\ufeffaé你") == ["a", "<0xC3>", "<0xA9>", "你"]
    assert make(plamo2()).decode(make(plamo2()).encode("aé你\n")) == "aé你\n"


def test_dna_goes_by_six_bases() -> None:
    shown = encoded(dna(), "hello<dna>acgtacTTTTTT</dna>hello<dna>A")
    assert shown == ["hello", "<dna>", "ACGTAC\ue000", "<oov>", "</dna>", "hello", "<dna>", "AAAAAA\ue000"]
    tokenizer = make(dna())
    assert tokenizer.decode(tokenizer.encode("<dna>acgtac</dna>")) == "<dna>ACGTAC</dna>"


def test_whitespace_models_drop_it() -> None:
    assert encoded(bpe_metadata(model="whitespace"), "HE \u3000llo") == ["he", "ll", "o"]
    kept = bpe_metadata(model="whitespace") | {"tokenizer.ggml.normalizer.lowercase": False}
    assert encoded(kept, "HE he") == ["H", "E", "he"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.text(max_size=60) | st.text("abc你é \n<dna>", max_size=60), st.booleans())
def test_any_text_streams_as_it_decodes(kind: str, text: str, skip: bool) -> None:
    tokenizer = OPENED[kind]
    ids = tokenizer.encode(text)
    stream = tokenizer.stream(skip)
    shown = [stream.push(i) for i in ids]
    assert "".join([*shown, stream.flush()]) == tokenizer.decode(ids, skip)
    if kind in ("rwkv", "plamo2"):
        assert tokenizer.decode(ids, skip_special=False) == text.removeprefix("\ufeff" if kind == "plamo2" else "")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_character_maps_give_clean_errors(data: st.DataObject) -> None:
    blob = bytearray(charsmap(b"abc", b"xyz"))
    for _ in range(data.draw(st.integers(1, 6))):
        # most of the trie is empty: hit its nodes, its length or the replacement
        at = data.draw(st.sampled_from([*range(8), len(blob) - 1, *(i for i, v in enumerate(blob) if v)]))
        blob[at] = data.draw(st.integers(0, 255))
    del blob[data.draw(st.integers(0, len(blob)) | st.just(len(blob))) :]
    try:
        rules = Charsmap(bytes(blob))
        for text in product(b"abc\x00\xff", repeat=3):
            if rules and rules.touches(bytes(text[:2])):
                rules.match(bytes(text), 0)
    except AirError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    key=st.sampled_from(
        "tokens scores token_type add_bos_token add_eos_token bos_token_id eos_token_id unknown_token_id merges pre "
        "precompiled_charsmap add_space_prefix remove_extra_whitespaces normalizer.lowercase model".split(" ")
    ),
    value=st.none() | st.booleans() | st.integers(-2, 300) | st.binary(max_size=8) | st.lists(st.integers(-300, 300)),
)
@example(kind="t5", key="token_type", value=[0] * 12)  # no token left to compare pairs with
def test_hostile_metadata_gives_clean_errors(kind: str, key: str, value: object) -> None:
    try:
        tokenizer = make(KINDS[kind]() | {f"tokenizer.ggml.{key}": value})
        tokenizer.decode(tokenizer.encode("abc 你 <dna>ACG</dna> <x>\n"))
    except AirError as error:
        assert "\n" not in str(error)
