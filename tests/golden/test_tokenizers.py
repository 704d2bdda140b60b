"""Tokenizers against llama.cpp: token for token on its vocabulary files, on small models and on recorded ids.

With `AIR_LLAMA_CPP` set to a source tree of llama.cpp, the vocabularies in its `models` are tested as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
from functools import lru_cache
from pathlib import Path

import pytest
from record_tokenizers import GOLDEN, ZOO
from tokenizer_vocabularies import changed, read_metadata, vocabularies

from airrun.errors import UnsupportedError
from airrun.tokenizer import Tokenizer
from airrun.tokenizer.metadata import spec_from_metadata
from airrun.tokenizer.pretokenizers import PRE_TOKENIZERS
from airrun.tokenizer.spec import MODEL_WPM
from airrun.tokenizer.wire import spec_from_bytes, spec_to_bytes

SEPARATOR = "\n__ggml_vocab_test__\n"
FOLDERS = (ZOO / "vocab", Path(os.environ.get("AIR_LLAMA_CPP", "/nowhere"), "models"))
FILES = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.gguf.out"))}
RECORDED = json.loads(GOLDEN.read_text())
IDS = {name: group["ids"] for group in RECORDED["groups"] for name in group["names"]}
PRE = {name.removeprefix("pre "): ids for name, ids in IDS.items() if name.startswith("pre ")}


@lru_cache(maxsize=len(FILES))
def packed(path: Path) -> bytes:
    return spec_to_bytes(spec_from_metadata(read_metadata(path)))


@pytest.mark.parametrize("out", FILES.values(), ids=FILES.keys())
def test_equals_llama_cpp(out: Path) -> None:
    tokenizer = Tokenizer(spec_from_bytes(packed(out.with_suffix(""))))
    texts = out.with_suffix(".inp").read_bytes().decode().split(SEPARATOR)
    lines = out.read_text().split("\n")[: len(texts)]
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(i) for i in line.split()], text
        if tokenizer.spec.model != MODEL_WPM:  # which drops accents, capitals and white space
            assert tokenizer.decode(ids, skip_special=False) == text


def test_the_golden_data_has_vocabularies(zoo: Path) -> None:
    assert len(FILES) >= 9


@pytest.mark.parametrize(("name", "limit"), [("starcoder", 1_500_000), ("llama-bpe", 4_000_000)])
def test_packed_size(zoo: Path, name: str, limit: int) -> None:
    data = packed(zoo / "vocab" / f"ggml-vocab-{name}.gguf")
    assert len(data) < limit
    assert spec_to_bytes(spec_from_bytes(data)) == data


def test_small_models_equal_llama_cpp(zoo: Path) -> None:
    checked = 0
    for golden in sorted((zoo / "models").glob("*/tokenizer_golden.json")):
        expected = json.loads(golden.read_text())
        tokenizer = Tokenizer(spec_from_metadata(read_metadata(golden.with_name("model.gguf"))))
        for text, ids in zip(expected["texts"], expected["llama_cpp"], strict=True):
            assert tokenizer.encode(text) == ids, (golden.parent.name, text)
            checked += 1
    assert checked > 300


def check(tokenizer: Tokenizer, name: str, expected: list[list[int]]) -> None:
    for case, ids in zip(RECORDED["cases"], expected, strict=True):
        assert tokenizer.encode(*case) == ids, (name, case)


def test_every_pre_tokenizer_equals_llama_cpp(zoo: Path) -> None:
    # for words that are tokens are taken whole or merged, and white space is marked or not, one vocabulary will do
    llama3 = spec_from_bytes(packed(zoo / "vocab" / "ggml-vocab-llama-bpe.gguf"))
    assert PRE.keys() == PRE_TOKENIZERS.keys() - {"whitespace"}
    for kind in set(PRE_TOKENIZERS.values()):
        names = [name for name, other in PRE_TOKENIZERS.items() if other == kind and name in PRE]
        assert len({str(PRE[name]) for name in names}) <= 1
        for name in names[:1]:
            spec = dataclasses.replace(llama3, pre=name, add_bos=kind.add_bos or kind.force_bos)
            check(Tokenizer(spec), name, PRE[name])


def test_every_kind_equals_llama_cpp(zoo: Path) -> None:
    made = {name: make for name, make in vocabularies(zoo) if not name.startswith("pre ")}
    assert made.keys() | {f"pre {name}" for name in PRE} == IDS.keys()
    for name, make in made.items():
        spec = spec_from_metadata(make())
        check(Tokenizer(spec_from_bytes(spec_to_bytes(spec))), name, IDS[name])


def test_unknown_kinds_are_named(zoo: Path) -> None:
    metadata = read_metadata(zoo / "vocab" / "ggml-vocab-bert-bge.gguf")
    with pytest.raises(UnsupportedError, match="'wordpiece2'.*supported are bert, gemma4, gpt2"):
        spec_from_metadata(changed(metadata, model="wordpiece2"))
    with pytest.raises(UnsupportedError, match="has no vocabulary"):
        spec_from_metadata(changed(metadata, model="none"))
