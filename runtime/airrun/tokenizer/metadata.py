"""From the `tokenizer.*` keys of a GGUF file to a `TokenizerSpec`, with llama.cpp's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airrun.errors import ModelFileError, UnsupportedError
from airrun.tokenizer import spec as kinds
from airrun.tokenizer.merge_table import build_merge_table
from airrun.tokenizer.pretokenizers import PreTokenizer, find_pre_tokenizer
from airrun.tokenizer.spec import (
    MAX_CHARSMAP_BYTES,
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    MergeTable,
    TokenizerSpec,
    TokenType,
)
from airrun.tokenizer.special import SpecialTokens, find_special_tokens
from airrun.tokenizer.strings import PackedStrings, decode_text, encode_text
from airrun.tokenizer.tokenizer import Tokenizer

_PREFIX = "tokenizer.ggml."
# A tokenizer model of its own in files, BPE with a pre-tokenizer of this name in fact.
_GEMMA4 = "gemma4"

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

# What llama.cpp assumes where a file names no id.
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    kinds.MODEL_SPM: {"bos": 1, "eos": 2, "unk": 0},
    kinds.MODEL_WPM: {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    kinds.MODEL_UGM: {"eos": 1, "unk": 2, "pad": 0},
    kinds.MODEL_PLAMO2: {"bos": 1, "eos": 2, "unk": 0, "pad": 3},
    **{model: {"bos": 11, "eos": 11} for model in kinds.MERGE_MODELS},
}
_WITHOUT_VOCABULARY = ("none", "no_vocab")


def spec_from_metadata(metadata: Mapping[str, object]) -> TokenizerSpec:
    """Build a spec from the key/value pairs of a GGUF file.

    Parameters
    ----------
    metadata : mapping
        Keys as in the file; values are str, int, float, bool, lists or numpy arrays. Strings may be bytes and
        need not be valid UTF-8.

    Raises
    ------
    ModelFileError
        A key is missing, of the wrong type, or contradicts the vocabulary.
    UnsupportedError
        A tokenizer model or pre-tokenizer that is not implemented.
    """
    kind = _text(metadata, _PREFIX + "model")
    if kind is None:
        raise ModelFileError(f"the file has no tokenizer: {_PREFIX}model is missing")
    if kind in _WITHOUT_VOCABULARY:
        raise UnsupportedError(f"the file has no vocabulary ({_PREFIX}model is {kind!r})")
    model = kinds.MODEL_BPE if kind == _GEMMA4 else kind
    if model not in kinds.MODELS:
        known = ", ".join(sorted(kinds.MODELS | {_GEMMA4}))
        raise UnsupportedError(f"unknown tokenizer model {kind!r} ({_PREFIX}model); supported are {known}")
    pre_name = _GEMMA4 if kind == _GEMMA4 else _text(metadata, _PREFIX + "pre")
    pre = find_pre_tokenizer(pre_name) if model in kinds.MERGE_MODELS else None

    texts = _tokens(metadata)
    n = len(texts)
    index = _index(texts)
    defaults = {} if kind == _GEMMA4 else dict(_DEFAULT_IDS.get(model, {}))
    if pre is not None and not pre.default_bos:
        defaults.pop("bos", None)
    ids = _ids(metadata, defaults, n)
    types = _token_types(metadata, n)
    special = find_special_tokens(
        index, types, ids, pre_name or "", _name(metadata, "general.name"), _name(metadata, "general.architecture")
    )
    spec = TokenizerSpec(
        model=model,
        pre="default" if pre is None or pre_name is None else pre_name,
        tokens=PackedStrings.pack(encode_text(t) for t in texts),
        scores=_scores(metadata, n) if model in kinds.SCORE_MODELS else np.zeros(0, np.float32),
        token_types=types,
        merges=_merges(metadata, pre, index, n) if pre is not None else MergeTable.empty(),
        **_special_ids(special),
        **_flags(metadata, model, pre, ids),
        charsmap=_charsmap(metadata) if model == kinds.MODEL_UGM else b"",
        chat_template=_text(metadata, "tokenizer.chat_template"),
        chat_templates=_named_templates(metadata),
    )
    Tokenizer(spec)  # a vocabulary that its model cannot use is refused here, by the compiler
    return spec


def _special_ids(special: SpecialTokens) -> dict[str, Any]:
    ids = special.ids
    return {f"{name}_id": ids.get(name) for name in ("bos", "eos", "eot", "eom", "unk", "pad", "sep", "mask")} | {
        "fim_ids": {public: ids[name] for name, public in _FIM.items() if name in ids},
        "eog_ids": special.eog_ids,
        "lstrip_ids": special.lstrip_ids,
        "rstrip_ids": special.rstrip_ids,
    }


def _flags(
    metadata: Mapping[str, object], model: str, pre: PreTokenizer | None, ids: Mapping[str, int]
) -> dict[str, Any]:
    if model == kinds.MODEL_WPM:
        adds = {"bos": True, "sep": True}
    elif model in (kinds.MODEL_RWKV, kinds.MODEL_PLAMO2):
        adds = {}
    else:
        by_default = pre.add_bos if pre is not None else model == kinds.MODEL_SPM
        adds = {
            "bos": _flag(metadata, "add_bos_token", by_default) or (pre is not None and pre.force_bos),
            "eos": _flag(metadata, "add_eos_token", model == kinds.MODEL_UGM),
        }
    for name, added in adds.items():
        if added and name not in ids:
            raise ModelFileError(f"the tokenizer adds a {name.upper()} token but the file names none")
    lowercase = _flag(metadata, "normalizer.lowercase", pre is None or pre.lowercase)
    return {
        "add_bos": adds.get("bos", False),
        "add_eos": adds.get("eos", False) or adds.get("sep", False),
        "add_space_prefix": _flag(metadata, "add_space_prefix", model == kinds.MODEL_SPM),
        "remove_extra_whitespaces": _flag(metadata, "remove_extra_whitespaces", False),
        "lowercase": lowercase,
        "strip_accents": _flag(metadata, "normalizer.strip_accents", lowercase),
    }


def _charsmap(metadata: Mapping[str, object]) -> bytes:
    key = _PREFIX + "precompiled_charsmap"
    values = _array(metadata, key)
    if values is None:
        return b""
    if len(values) > MAX_CHARSMAP_BYTES:
        raise ModelFileError(f"{key} has {len(values)} bytes, at most {MAX_CHARSMAP_BYTES} are supported")
    if not all(isinstance(v, int) and -128 <= v <= 255 for v in values):
        raise ModelFileError(f"{key} is not an array of bytes")
    return bytes([v & 255 for v in values])  # type: ignore[operator]  # checked above


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


def _index(texts: Sequence[str]) -> dict[str, int]:
    index = {text: i for i, text in enumerate(texts)}
    if len(index) < len(texts):
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            if first.setdefault(text, i) != i:
                raise ModelFileError(f"{_PREFIX}tokens: {text!r} is both token {first[text]} and token {i}")
    return index


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
