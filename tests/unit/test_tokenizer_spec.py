"""Special tokens, defaults, and what damaged metadata or bytes do."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airrun.errors import AirError, ModelFileError, PlanError, UnsupportedError, UsageError
from airrun.tokenizer import Tokenizer
from airrun.tokenizer.byte_alphabet import CHAR_OF_BYTE
from airrun.tokenizer.metadata import spec_from_metadata
from airrun.tokenizer.wire import spec_from_bytes, spec_to_bytes

HEADER = struct.Struct("<4sHHI")


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    """Byte-level BPE over all bytes with a few merges and special tokens."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "\u00c3 \u00a9"]
    tokens = list(CHAR_OF_BYTE) + [m.replace(" ", "") for m in merges]
    special = ["<|im_start|>", "<|im_end|>", "<user>", "[MASK]"]
    types = [1] * len(tokens) + [3, 3, 4, 3]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens + special,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """SPM with byte tokens; "ab" scores above "bc"."""
    tokens: list[Any] = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    for text, score in [("a", -10), ("b", -11), ("c", -12), ("\u2581", -13), ("ab", -1), ("bc", -2), ("\u2581a", -3)]:
        tokens.append(text)
        types.append(1)
        scores.append(float(score))
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


THREE_TOKENS = {"tokens": ["a", "b", "c"], "token_type": [1, 1, 1], "bos_token_id": None, "eos_token_id": None}


def make(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer(spec_from_bytes(spec_to_bytes(spec_from_metadata(metadata))))


def texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.spec.tokens[i] for i in ids]


def test_everything_survives_packing() -> None:
    spec = make(bpe_metadata(padding_token_id=3, add_bos_token=True, fim_pre_token_id=7)).spec
    assert (spec.model, spec.pre, spec.n_tokens) == ("gpt2", "gpt-2", 268)
    assert (spec.bos_id, spec.eos_id, spec.eot_id, spec.pad_id, spec.unk_id) == (264, 265, 265, 3, None)
    assert (spec.add_bos, spec.add_eos, spec.add_space_prefix) == (True, False, False)
    assert spec.fim_ids == {"prefix": 7}
    assert spec.eog_ids == {265}
    assert spec.chat_template == "{{ messages }}"
    assert spec.chat_templates == {"tool_use": "{{ tools }}"}
    assert spec.tokens[-1] == "[MASK]" and list(spec.tokens[:3]) == list(CHAR_OF_BYTE[:3])


def test_bpe_merges_and_special_tokens() -> None:
    tokenizer = make(bpe_metadata())
    encode = tokenizer.encode
    assert texts(tokenizer, encode("hello world")) == ["hello", "Ġwor", "l", "d"]
    assert texts(tokenizer, encode("é")) == ["\u00c3\u00a9"]
    assert texts(tokenizer, encode("<|im_start|>hello<user>")) == ["<|im_start|>", "hello", "<user>"]
    literal = encode("<|im_start|>hello<user>", parse_special=False)
    assert texts(tokenizer, literal)[-2:] == ["hello", "<user>"] and 264 not in literal
    assert tokenizer.decode(encode("<|im_start|>hello<user>")) == "hello<user>"
    assert tokenizer.decode([264, 0], skip_special=False) == "<|im_start|>\x00"
    assert tokenizer.token_bytes(264) == b"<|im_start|>"
    assert encode("") == []


def test_longest_special_token_goes_first() -> None:
    tokens = [*CHAR_OF_BYTE, "ab", "bcd"]
    metadata = bpe_metadata(tokens=tokens, token_type=[1] * 256 + [4, 4], merges=[], bos_token_id=0, eos_token_id=0)
    assert texts(make(metadata), make(metadata).encode("abcd")) == ["a", "bcd"]


def test_strip_rules_of_phi3_and_modern_bert() -> None:
    phi = bpe_metadata() | {"general.name": "Phi-3 mini"}
    assert texts(make(phi), make(phi).encode("hello <|im_end|> \n hello")) == ["hello", "Ġ", "<|im_end|>", "hello"]
    bert = bpe_metadata() | {"general.name": "modern-bert"}
    assert texts(make(bert), make(bert).encode("hello  [MASK] hello"))[:2] == ["hello", "[MASK]"]


def test_spm_merges_by_score_with_byte_fallback() -> None:
    tokenizer = make(spm_metadata())
    assert texts(tokenizer, tokenizer.encode("abc")) == ["<s>", "\u2581", "ab", "c"]
    assert texts(tokenizer, tokenizer.encode("é", add_special=False))[1:] == ["<0xC3>", "<0xA9>"]
    assert texts(tokenizer, tokenizer.encode("</s>a")) == ["<s>", "</s>", "\u2581a"]
    assert tokenizer.decode(tokenizer.encode("abc é\n")) == "abc é\n"
    assert tokenizer.decode(tokenizer.encode("abc"), continuation=True) == " abc"
    assert make(spm_metadata(add_space_prefix=False)).decode([260, 261, 262]) == "bc "


def test_equal_scores_merge_leftmost_first() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "aa"]
    metadata = spm_metadata(tokens=tokens, token_type=[2, 3, 3, 1, 1], scores=[0.0] * 5, add_space_prefix=False)
    assert texts(make(metadata), make(metadata).encode("aaaaa", add_special=False)) == ["aa", "aa", "a"]


def test_spm_without_byte_tokens_says_unknown() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a"]
    metadata = spm_metadata(tokens=tokens, token_type=[2, 3, 3, 1], scores=[0.0] * 4, add_space_prefix=False)
    assert make(metadata).encode("a\u4e00a", add_special=False) == [3, 0, 3]


def test_defaults_follow_llama_cpp() -> None:
    assert make(bpe_metadata(pre="llama-bpe")).spec.add_bos
    assert not make(bpe_metadata()).spec.add_bos
    assert make(bpe_metadata(add_eos_token=True)).encode("hello")[-1] == 265
    spm = make(spm_metadata()).spec
    assert (spm.bos_id, spm.eos_id, spm.unk_id, spm.add_bos, spm.add_space_prefix) == (1, 2, 0, True, True)
    assert make(bpe_metadata(bos_token_id=0xFFFFFFFF)).spec.bos_id == 11
    assert (
        make(bpe_metadata(tokens=[*CHAR_OF_BYTE, "xx", "", *map(str, range(10, 20))])).spec.tokens[257] == "[EMPTY_257]"
    )


def test_turn_ends_are_found_by_text() -> None:
    def eog(*extra: str) -> set[str]:
        metadata = bpe_metadata(tokens=[*CHAR_OF_BYTE, *extra], token_type=[1] * (256 + len(extra)), bos_token_id=0)
        spec = make(metadata | {"tokenizer.ggml.eos_token_id": 256}).spec
        assert all(spec.token_types[i] in (3, 4) for i in spec.eog_ids)
        return {spec.tokens[i] for i in spec.eog_ids}

    assert eog("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>") == {"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"}
    assert eog("</s>", "<end_of_turn>") == {"</s>", "<end_of_turn>"}
    assert eog("<|return|>", "<|call|>", "<|end|>") == {"<|return|>", "<|call|>"}


def test_strings_may_be_bytes_and_invalid_utf8() -> None:
    metadata = bpe_metadata()
    plain = spec_to_bytes(spec_from_metadata(metadata))
    as_bytes = {k: [t.encode() for t in v] if isinstance(v, list) else v for k, v in metadata.items()}
    assert spec_to_bytes(spec_from_metadata(as_bytes)) == plain
    tokens = [t.encode() for t in CHAR_OF_BYTE] + [b"\xff\xfe", b"ok"]
    tokenizer = make(bpe_metadata(tokens=tokens, token_type=[1] * 256 + [4, 4], bos_token_id=0, eos_token_id=0))
    assert tokenizer.token_bytes(256) == b"\xff\xfe"
    assert tokenizer.decode([256, 257]) == "\ufffd\ufffdok"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pre": "no-such"}, UnsupportedError, "no-such"),
        ({"pre": None}, UnsupportedError, "names no pre-tokenizer"),
        ({"model": "t6"}, UnsupportedError, "t6"),
        ({"model": "none"}, UnsupportedError, "no vocabulary"),
        ({"model": "plamo2"}, ModelFileError, "no token for byte <0x00>"),
        ({"model": "bert", **THREE_TOKENS}, ModelFileError, "adds a BOS"),
        ({"model": "bert", **THREE_TOKENS, "bos_token_id": 1}, ModelFileError, "adds a SEP"),
        (
            {"model": "bert", **THREE_TOKENS, "bos_token_id": 1, "seperator_token_id": 2},
            ModelFileError,
            "no token for unknown words",
        ),
        ({"model": "t5", "unknown_token_id": 2, "precompiled_charsmap": [1, 0]}, ModelFileError, "character map"),
        ({"model": "t5", "precompiled_charsmap": ["x"]}, ModelFileError, "array of bytes"),
        ({"model": "t5", "precompiled_charsmap": b"x"}, ModelFileError, "not an array"),
        ({"model": None}, ModelFileError, "tokenizer.ggml.model"),
        ({"tokens": None}, ModelFileError, "tokens"),
        ({"tokens": []}, ModelFileError, "tokens"),
        ({"tokens": ["a", "b", "a"]}, ModelFileError, "'a' is both token 0 and token 2"),
        ({"tokens": [1, 2]}, ModelFileError, "text was expected"),
        ({"merges": None}, ModelFileError, "merges is missing"),
        ({"merges": "a b"}, ModelFileError, "not an array"),
        ({"token_type": [1, 2]}, ModelFileError, "2 entries"),
        ({"token_type": ["x"] * 268}, ModelFileError, "not an array of numbers"),
        ({"bos_token_id": 268}, ModelFileError, "outside the vocabulary"),
        ({"bos_token_id": "1"}, ModelFileError, "not an integer"),
        ({"add_bos_token": 1}, ModelFileError, "not a boolean"),
    ],
)
def test_bad_metadata(changes: dict[str, Any], error: type[AirError], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_from_metadata(bpe_metadata(**changes))


def test_token_out_of_range() -> None:
    for token in (-1, 268, 1 << 40):
        with pytest.raises(UsageError, match="outside the vocabulary"):
            make(bpe_metadata()).decode([token])


PACKED = [
    spec_to_bytes(spec_from_metadata(m))
    for m in (
        bpe_metadata(),
        spm_metadata(),
        spm_metadata(model="t5", precompiled_charsmap=[4, 0, 0, 0, 0, 4, 0, 0, 0]),
    )
]


def test_limits_of_packed_bytes() -> None:
    good = PACKED[0]
    magic, version, reserved, length = HEADER.unpack_from(good)
    body = good[HEADER.size :]
    bomb = zlib.compress(bytes(1 << 20))
    bad = {
        "header": good[:5],
        "magic": b"XXXX" + good[4:],
        "newer|version": HEADER.pack(magic, version + 1, reserved, length) + body,
        "too old": HEADER.pack(magic, version - 1, reserved, length) + body,
        "impossible header": HEADER.pack(magic, 0, reserved, length) + body,
        "at most": HEADER.pack(magic, version, reserved, 1 << 31) + body,
        "length": HEADER.pack(magic, version, reserved, length) + bomb,
        "length ": good + b"x",
        "length  ": good[:-1],
    }
    for message, data in bad.items():
        with pytest.raises(PlanError, match=message.strip()):
            spec_from_bytes(data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_bytes_give_only_clean_errors(data: st.DataObject) -> None:
    """Mutates below the compression and restores the header, so that the checks behind it are reached."""
    packed = data.draw(st.sampled_from(PACKED))
    magic, version, reserved, _ = HEADER.unpack_from(packed)
    raw = bytearray(zlib.decompress(packed[HEADER.size :]))
    head_end = 4 + struct.unpack_from("<I", raw)[0]
    for _ in range(data.draw(st.integers(1, 4))):
        in_head = data.draw(st.booleans())
        at = data.draw(st.integers(0, head_end - 1) if in_head else st.integers(head_end, len(raw) - 1))
        action = data.draw(st.sampled_from(["set", "delete", "insert", "digit"]))
        if at >= len(raw):
            continue
        if action == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif action == "delete":
            del raw[at : at + data.draw(st.integers(1, 9))]
        elif action == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            raw[at] = data.draw(st.sampled_from(b"0123456789"))
    mutated = HEADER.pack(magic, version, reserved, len(raw)) + zlib.compress(bytes(raw), 1)
    try:
        tokenizer = Tokenizer(spec_from_bytes(mutated))
        tokenizer.encode("hello wor\u00e9 ab <|im_end|>" + "hell" * 20)
        tokenizer.decode(range(tokenizer.spec.n_tokens))
    except AirError as error:
        assert "\n" not in str(error)
