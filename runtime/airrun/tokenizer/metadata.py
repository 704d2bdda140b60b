"""From the `tokenizer.*` keys of a GGUF file to a `TokenizerSpec`, with llama.cpp's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airrun.errors import ModelFileError, UnsupportedError
from airrun.tokenizer.merge_table import build_merge_table
from airrun.tokenizer.pretokenizers import PreTokenizer, find_pre_tokenizer
from airrun.tokenizer.spec import (
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    MODEL_BPE,
    MODEL_SPM,
    MergeTable,
    TokenizerSpec,
    TokenType,
)
from airrun.tokenizer.special import SpecialTokens, find_special_tokens
from airrun.tokenizer.strings import PackedStrings, decode_text, encode_text

_PREFIX = "tokenizer.ggml."

# The GGUF key of each id ("seperator" is spelled so in the specification); the later of two keys wins.
_ID_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "prefix": ("fim_pre_token_id", "prefix_token_id"),
    "suffix": ("fim_suf_token_id", "suffix_token_id"),
    "middle": ("fim_mid_token_id", "middle_token_id"),
    "pad_fim": ("fim_pad_token_id",),
    "repo": ("fim_rep_token_id",),
    "separator": ("fim_sep_token_id",),
}
_FIM = {"prefix": "prefix", "suffix": "suffix", "middle": "middle"} | {
    "pad_fim": "pad",
    "repo": "repo",
    "separator": "separator",
}
# What converters write for "there is no such token".
_NO_ID = (-1, 0xFFFFFFFF)

_KIND_NAMES = {
    "bert": "bert (WordPiece)",
    "t5": "t5 (Unigram)",
    "rwkv": "rwkv",
    "plamo2": "plamo2",
    "hybriddna": "hybriddna",
    "whitespace": "whitespace",
    "no_vocab": "no_vocab (the file has no vocabulary)",
    "none": "none (the file has no vocabulary)",
}


def spec_from_metadata(metadata: Mapping[str, object]) -> TokenizerSpec:
    """See `TokenizerSpec.from_metadata`."""
    kind = _text(metadata, _PREFIX + "model")
    if kind is None:
        raise ModelFileError(f"the file has no tokenizer: {_PREFIX}model is missing")
    if kind not in (MODEL_SPM, MODEL_BPE, "gemma4"):
        raise UnsupportedError(f"tokenizer model {_KIND_NAMES.get(kind, repr(kind))} is not supported yet")
    is_spm = kind == MODEL_SPM
    pre_name = "gemma4" if kind == "gemma4" else _text(metadata, _PREFIX + "pre")
    pre = None if is_spm else find_pre_tokenizer(pre_name)

    texts = _tokens(metadata)
    n = len(texts)
    index = {text: i for i, text in enumerate(texts)}
    defaults: dict[str, int] = {}
    if is_spm:
        defaults = {"bos": 1, "eos": 2, "unk": 0}
    elif kind == MODEL_BPE:
        defaults = {"bos": 11, "eos": 11}
        if pre is not None and not pre.default_bos:
            del defaults["bos"]
    ids = _ids(metadata, defaults, n)
    types = _token_types(metadata, n)
    special = find_special_tokens(
        index, types, ids, pre_name or "", _name(metadata, "general.name"), _name(metadata, "general.architecture")
    )
    return TokenizerSpec(
        model=MODEL_SPM if is_spm else MODEL_BPE,
        pre="default" if is_spm or pre_name is None else pre_name,
        tokens=PackedStrings.pack(encode_text(t) for t in texts),
        scores=_scores(metadata, n) if is_spm else np.zeros(0, np.float32),
        token_types=types,
        merges=_merges(metadata, pre, index, n) if pre is not None else MergeTable.empty(),
        **_special_ids(special),
        **_flags(metadata, pre, ids),
        chat_template=_text(metadata, "tokenizer.chat_template"),
        chat_templates=_named_templates(metadata),
    )


def _special_ids(special: SpecialTokens) -> dict[str, Any]:
    ids = special.ids
    return {f"{name}_id": ids.get(name) for name in ("bos", "eos", "eot", "eom", "unk", "pad", "sep", "mask")} | {
        "fim_ids": {public: ids[name] for name, public in _FIM.items() if name in ids},
        "eog_ids": special.eog_ids,
        "lstrip_ids": special.lstrip_ids,
        "rstrip_ids": special.rstrip_ids,
    }


def _flags(metadata: Mapping[str, object], pre: PreTokenizer | None, ids: Mapping[str, int]) -> dict[str, Any]:
    is_spm = pre is None
    flags = {
        "add_bos": _flag(metadata, "add_bos_token", pre.add_bos if pre is not None else True),
        "add_eos": _flag(metadata, "add_eos_token", False),
        "add_space_prefix": _flag(metadata, "add_space_prefix", is_spm),
        "remove_extra_whitespaces": _flag(metadata, "remove_extra_whitespaces", False),
    }
    if pre is not None and pre.force_bos:
        flags["add_bos"] = True
    for name in ("bos", "eos"):
        if flags[f"add_{name}"] and name not in ids:
            raise ModelFileError(f"the tokenizer adds a {name.upper()} token but the file names none")
    return flags


def _tokens(metadata: Mapping[str, object]) -> list[str]:
    values = _array(metadata, _PREFIX + "tokens")
    if values is None:
        raise ModelFileError(f"the file has no vocabulary: {_PREFIX}tokens is missing")
    if not 0 < len(values) <= MAX_TOKENS:
        raise ModelFileError(f"{_PREFIX}tokens has {len(values)} entries, expected 1 to {MAX_TOKENS}")
    texts = [_to_text(v, _PREFIX + "tokens") for v in values]
    for i, text in enumerate(texts):
        if not text:
            texts[i] = f"[EMPTY_{i}]"
        elif len(text) > MAX_TOKEN_BYTES // 4 and len(encode_text(text)) > MAX_TOKEN_BYTES:
            raise ModelFileError(f"token {i} is longer than {MAX_TOKEN_BYTES} bytes")
    return texts


def _token_types(metadata: Mapping[str, object], n: int) -> NDArray[np.uint8]:
    values = _numbers(metadata, _PREFIX + "token_type", n)
    if values is None:
        return np.full(n, TokenType.NORMAL, np.uint8)
    known = (values >= 0) & (values <= max(TokenType))
    return np.where(known, values, TokenType.UNDEFINED).astype(np.uint8)


def _scores(metadata: Mapping[str, object], n: int) -> NDArray[np.float32]:
    values = _numbers(metadata, _PREFIX + "scores", n)
    if values is None:
        return np.zeros(n, np.float32)
    scores = values.astype(np.float32)
    if np.isnan(scores).any():
        raise ModelFileError(f"{_PREFIX}scores contains NaN")
    return scores


def _merges(metadata: Mapping[str, object], pre: PreTokenizer, index: Mapping[str, int], n: int) -> MergeTable:
    key = _PREFIX + "merges"
    lines = _array(metadata, key)
    if lines is None:
        # Kimi K2 is the one BPE model without a merge list
        if _text(metadata, _PREFIX + "pre") != "kimi-k2":
            raise ModelFileError(f"{key} is missing")
        lines = []
    return build_merge_table([_to_text(v, key) for v in lines], index, n, byte_level=pre.byte_level)


def _ids(metadata: Mapping[str, object], defaults: Mapping[str, int], n: int) -> dict[str, int]:
    ids = {name: i for name, i in defaults.items() if i < n}
    for name, keys in _ID_KEYS.items():
        for key in keys:
            value = metadata.get(_PREFIX + key)
            if value is None:
                continue
            if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
                raise ModelFileError(f"{_PREFIX}{key} is not an integer")
            if int(value) in _NO_ID:
                continue
            if not 0 <= int(value) < n:
                raise ModelFileError(f"{_PREFIX}{key} = {value} is outside the vocabulary of {n} tokens")
            ids[name] = int(value)
    return ids


def _named_templates(metadata: Mapping[str, object]) -> dict[str, str]:
    prefix = "tokenizer.chat_template."
    named = {key[len(prefix) :]: _text(metadata, key) for key in sorted(metadata) if key.startswith(prefix)}
    return {name: source for name, source in named.items() if source is not None}


def _to_text(value: object, key: str) -> str:
    if isinstance(value, bytes | bytearray):
        return decode_text(bytes(value))
    if isinstance(value, str):
        # one spelling for bytes that are not UTF-8, whoever decoded the file
        return value if value.isascii() else decode_text(encode_text(value))
    raise ModelFileError(f"{key} holds {type(value).__name__} where text was expected")


def _text(metadata: Mapping[str, object], key: str) -> str | None:
    value = metadata.get(key)
    return None if value is None else _to_text(value, key)


def _name(metadata: Mapping[str, object], key: str) -> str:
    value = metadata.get(key)
    return _to_text(value, key) if isinstance(value, str | bytes) else ""


def _flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:
    value = metadata.get(_PREFIX + key, default)
    if not isinstance(value, bool | np.bool_):
        raise ModelFileError(f"{_PREFIX}{key} is not a boolean")
    return bool(value)


def _array(metadata: Mapping[str, object], key: str) -> Sequence[object] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        listed: list[object] = value.tolist()
        return listed
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    raise ModelFileError(f"{key} is not an array")


def _numbers(metadata: Mapping[str, object], key: str, n: int) -> NDArray[Any] | None:
    if key not in metadata:
        return None
    value = metadata[key]
    try:
        numbers = np.asarray(value)
    except (ValueError, OverflowError):
        numbers = np.zeros(0, np.object_)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise ModelFileError(f"{key} is not an array of numbers")
    if len(numbers) < n:
        raise ModelFileError(f"{key} has {len(numbers)} entries for {n} tokens")
    return numbers[:n]
