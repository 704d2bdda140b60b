"""Tokenizers against llama.cpp: token for token on its vocabulary files and on small models."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path

import pytest

from airrun.errors import UnsupportedError
from airrun.tokenizer import Tokenizer, TokenizerSpec

VOCABULARIES = ("deepseek-coder", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "starcoder")
SEPARATOR = "\n__ggml_vocab_test__\n"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path: Path) -> dict[str, object]:
    """Tokenizer keys of a GGUF v3 file; the gguf package takes seconds for 400,000 strings, this a fraction."""
    data = path.read_bytes()
    magic, version, _, n_pairs = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    at = 24

    def text() -> bytes:
        nonlocal at
        (size,) = struct.unpack_from("<Q", data, at)
        at += 8 + size
        return data[at - size : at]

    def value(kind: int) -> object:
        nonlocal at
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            return [value(inner) for _ in range(count)]
        (number,) = struct.unpack_from("<" + _NUMBERS[kind], data, at)
        at += struct.calcsize("<" + _NUMBERS[kind])
        return number

    found = {}
    for _ in range(n_pairs):
        key = text().decode()
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        found[key] = value(kind)
    return {k: v for k, v in found.items() if k.startswith(("tokenizer.", "general."))}


@lru_cache(maxsize=len(VOCABULARIES))
def packed(path: Path) -> bytes:
    return TokenizerSpec.from_metadata(read_metadata(path)).to_bytes()


@pytest.mark.parametrize("name", VOCABULARIES)
def test_equals_llama_cpp(zoo: Path, name: str) -> None:
    path = zoo / "vocab" / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer(TokenizerSpec.from_bytes(packed(path)))
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().split("\n")[: len(texts)]
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(i) for i in line.split()], text
        assert tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.parametrize(("name", "limit"), [("starcoder", 1_500_000), ("llama-bpe", 4_000_000)])
def test_packed_size(zoo: Path, name: str, limit: int) -> None:
    data = packed(zoo / "vocab" / f"ggml-vocab-{name}.gguf")
    assert len(data) < limit
    assert TokenizerSpec.from_bytes(data).to_bytes() == data


def test_small_models_equal_llama_cpp(zoo: Path) -> None:
    checked = 0
    for golden in sorted((zoo / "models").glob("*/tokenizer_golden.json")):
        expected = json.loads(golden.read_text())
        try:
            spec = TokenizerSpec.from_metadata(read_metadata(golden.with_name("model.gguf")))
        except UnsupportedError as error:
            assert golden.parent.name.startswith("rwkv") and "rwkv" in str(error)
            continue
        tokenizer = Tokenizer(spec)
        for text, ids in zip(expected["texts"], expected["llama_cpp"], strict=True):
            assert tokenizer.encode(text) == ids, (golden.parent.name, text)
            checked += 1
    assert checked > 300


def test_other_kinds_are_named(zoo: Path) -> None:
    with pytest.raises(UnsupportedError, match="bert"):
        TokenizerSpec.from_metadata(read_metadata(zoo / "vocab" / "ggml-vocab-bert-bge.gguf"))
